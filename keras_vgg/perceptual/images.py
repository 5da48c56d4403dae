"""The checks and the scale of two images that are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vgg.features import channel_axis
from keras_vgg.graph import all_layers, borrowed
from keras_vgg.layers import ImagePreprocessing

BYTES = (0.0, 255.0)


def checked_range(value_range: tuple[float, float]) -> tuple[float, float]:
    """Return the range. ValueError: it does not rise."""
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must rise, not {value_range}")
    return value_range


def require_one_size(y_true: Any, y_pred: Any, least: int, reason: str) -> None:
    """Raise a ValueError unless both are [n, h, w, channels] of one size, `least` or larger.

    Args:
        y_true: Images.
        y_pred: Images.
        least: The least side, in pixels.
        reason: What needs that side, such as "the layers block5_pool".
    """
    shapes = tuple(y_true.shape), tuple(y_pred.shape)
    sides = [shape[2:] if channel_axis() == 1 else shape[1:-1] for shape in shapes]
    # Maps of 1 x 1 would broadcast without an error.
    if {len(shape) for shape in shapes} != {4} or any(
        a != b and None not in (a, b) for a, b in zip(*sides, strict=True)
    ):
        raise ValueError(f"images must be [n, h, w, channels] of one size, not {shapes}")
    # PyTorch's order, which would be taken for images 3 pixels high.
    first, last = (1, -1) if channel_axis() == -1 else (-1, 1)
    for shape in shapes:
        if shape[first] in (1, 3) and shape[last] not in (1, 3, None):
            raise ValueError(
                f"the channels of images of shape {shape} must be axis {last % 4}, as "
                "keras.config.image_data_format() says"
            )
    for height, width in sides:
        if min(least if side is None else side for side in (height, width)) < least:
            raise ValueError(
                f"images must be at least {least}x{least} for {reason}, not {height}x{width}"
            )


def for_network(images: Any, value_range: tuple[float, float], channels: int | None) -> Any:
    """Return images as float32 in [0, 255]; grey ones are repeated for a network with 3 channels.

    Args:
        images: [n, h, w, 1 or 3] of any type.
        value_range: The range of their values.
        channels: The channels of the network's input.
    """
    images = ops.cast(images, "float32")
    axis = channel_axis()
    if images.shape[axis] == 1 and channels == 3:
        images = ops.repeat(images, 3, axis=axis)
    low, high = value_range
    return images if value_range == BYTES else (images - low) * (255.0 / (high - low))


def nan_unless_finite(distance: Any, images: Sequence[Any]) -> Any:
    """Return distances [n] or [n, h, w], with NaN for an image that holds NaN or infinity.

    The network's ReLUs can return 0 for NaN, which would hide NaN in the images.
    """
    finite = True
    for image in images:
        axes = tuple(range(1, len(image.shape)))
        finite = ops.logical_and(finite, ops.all(ops.isfinite(image), axis=axes))
    finite = ops.reshape(finite, (-1, *[1] * (len(distance.shape) - 1)))
    return ops.where(finite, distance, float("nan"))


def least_side(extractor: keras.Model) -> int:
    """Return the least side of images of which the pooling layers leave a pixel."""
    kinds = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
    layers = [borrowed(layer) for layer in extractor.layers]
    return math.prod(max(layer.strides) for layer in layers if isinstance(layer, kinds))


def has_preprocessing(model: keras.Model) -> bool:
    """Return whether a network, or one inside it, has its preprocessing inside."""
    return any(isinstance(layer, ImagePreprocessing) for layer in all_layers(model))

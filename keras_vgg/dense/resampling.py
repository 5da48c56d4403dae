"""Layers that bring a map to another map's size, and kernels that interpolate."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.layers import resized


@keras.saving.register_keras_serializable("keras_vgg")
class ResizeLike(keras.layers.Layer):
    """Resize a map bilinearly to another map's height and width: [map, other map] -> map.

    Cells are squares with their values in the middle (half-pixel centres), as in `tf.image.resize`.
    """

    def call(self, inputs):
        x, like = inputs
        return resized(x, *_sides(like))

    def compute_output_shape(self, input_shape):
        return _with_sides_of(*input_shape)


@keras.saving.register_keras_serializable("keras_vgg")
class Enlarge(keras.layers.Layer):
    """Enlarge a map bilinearly by a factor, as `keras.layers.UpSampling2D` does, at any size."""

    def __init__(self, factor: int, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor

    def call(self, inputs):
        height, width = _sides(inputs)
        return resized(inputs, self.factor * height, self.factor * width)

    def compute_output_shape(self, input_shape):
        sides = (side and self.factor * side for side in input_shape[1:3])
        return (input_shape[0], *sides, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable("keras_vgg")
class CropLike(keras.layers.Layer):
    """Cut the bottom and the right off a map, to another map's sides: [map, other map] -> map."""

    def call(self, inputs):
        x, like = inputs
        height, width = _sides(like)
        return x[:, :height, :width]

    def compute_output_shape(self, input_shape):
        return _with_sides_of(*input_shape)


def _sides(x: Any) -> tuple[Any, Any]:
    """Return the height and width of a map; a tensor if it is not known before the map."""
    shape: Any = ops.shape(x)
    return shape[1], shape[2]


def _with_sides_of(shape: tuple, other: tuple) -> tuple:
    return (shape[0], *other[1:3], shape[3])


def cropped(x: Any, like: Any, name: str) -> Any:
    """Return a map cut to another map's sides, or the map itself if both are known to be equal."""
    sides, other = tuple(x.shape)[1:3], tuple(like.shape)[1:3]
    if sides == other and None not in sides:
        return x
    return CropLike(name=name)([x, like])


@keras.saving.register_keras_serializable("keras_vgg")
class BilinearInitializer(keras.initializers.Initializer):
    """The kernel of a transposed convolution that interpolates each channel bilinearly.

    A `Conv2DTranspose` with a kernel of 2f x 2f, strides of f and `padding="same"` then enlarges a
    map f times, with half-pixel centres. Beyond the border, the map counts as zero.
    """

    def __call__(self, shape, dtype=None):
        height, width, outputs, inputs = shape
        if outputs != inputs:
            raise ValueError(f"interpolation keeps the channels; {inputs} cannot become {outputs}")
        window = np.outer(_triangle(height), _triangle(width))
        kernel = window[:, :, np.newaxis, np.newaxis] * np.eye(outputs)
        return ops.convert_to_tensor(kernel, dtype or keras.config.floatx())

    def get_config(self) -> dict[str, Any]:
        return {}


def _triangle(size: int) -> np.ndarray:
    """Return the weights of linear interpolation by size / 2: for 4, [0.25, 0.75, 0.75, 0.25]."""
    places = np.arange(size) - (size - 1) / 2
    return 1 - np.abs(places) / (size / 2)

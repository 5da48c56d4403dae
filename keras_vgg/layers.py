"""Layers that VGG needs and Keras lacks: normalisation, dilated pools, image preprocessing.

`load_keras_file` reads files that may hold these layers, or those of other rooms.
"""

from __future__ import annotations

import contextvars
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.containers import require_archive, require_hdf5
from keras_vgg.finite import check_range
from keras_vgg.memory_errors import first_line, is_out_of_memory, unread_file


@keras.saving.register_keras_serializable("keras_vgg")
class LocalResponseNormalization(keras.layers.Layer):
    """Krizhevsky's normalisation across neighbouring channels, for configuration A-LRN.

    y_c = x_c / (bias + alpha * sum of x_j^2 over j = c - depth_radius ... c + depth_radius)^beta

    The defaults are the paper's (k=2, n=5, alpha=1e-4, beta=0.75) in `tf.nn.lrn`'s terms.
    PyTorch's LocalResponseNorm divides alpha by n, so the same layer there has alpha=5e-4.

    The input is [n, height, width, channels] (or channels first) of any float dtype. The output has
    the same shape; the arithmetic is in float32.
    """

    def __init__(
        self,
        depth_radius: int = 2,
        bias: float = 2.0,
        alpha: float = 1e-4,
        beta: float = 0.75,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if depth_radius < 0:
            raise ValueError(f"depth_radius must be 0 or more, not {depth_radius}")
        self.depth_radius = depth_radius
        self.bias = bias
        self.alpha = alpha
        self.beta = beta
        self.data_format = data_format or keras.config.image_data_format()
        self.supports_masking = True

    def call(self, inputs):
        axis = 1 if self.data_format == "channels_first" else 3
        x: Any = ops.cast(inputs, "float32")
        channels = x.shape[axis]
        padding = [(0, 0)] * 4
        padding[axis] = (self.depth_radius, self.depth_radius)
        squares: Any = ops.pad(ops.square(x), padding)
        window = [slice(None)] * 4
        total = 0.0
        for offset in range(2 * self.depth_radius + 1):
            window[axis] = slice(offset, offset + channels)
            total = total + squares[tuple(window)]
        y = x * ops.power(self.bias + self.alpha * total, -self.beta)
        return ops.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "depth_radius": self.depth_radius,
            "bias": self.bias,
            "alpha": self.alpha,
            "beta": self.beta,
            "data_format": self.data_format,
        }


@keras.saving.register_keras_serializable("keras_vgg")
class DilatedMaxPooling2D(keras.layers.Layer):
    """A 2x2 max-pool of stride 1 whose four places are `dilation_rate` rows and columns apart.

    This is the pool of an à trous network. The input and the output have the same shape. At the
    bottom and the right, the places outside the map do not count, as with `padding="same"`.
    """

    def __init__(
        self, dilation_rate: int = 2, data_format: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if dilation_rate < 1:
            raise ValueError(f"dilation_rate must be 1 or more, not {dilation_rate}")
        self.dilation_rate = dilation_rate
        self.data_format = data_format or keras.config.image_data_format()

    def call(self, inputs):
        x: Any = inputs
        d = self.dilation_rate
        for axis in (2, 3) if self.data_format == "channels_first" else (1, 2):
            before = (slice(None),) * axis
            here, there, rest = x[*before, :-d], x[*before, d:], x[*before, -d:]
            x = ops.concatenate([ops.maximum(here, there), rest], axis=axis)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dilation_rate": self.dilation_rate,
            "data_format": self.data_format,
        }


# The ImageNet means of the published Oxford models, RGB, in [0, 255].
IMAGENET_MEAN = (123.68, 116.779, 103.939)

_FLOAT32_MAX = float(np.finfo("float32").max)


def _finite_numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Return the values as floats; raise a ValueError unless float32 can hold all of them."""
    try:
        numbers = () if isinstance(values, str) else tuple(map(float, values))
        has_text = any(isinstance(value, str) for value in values)
    except (TypeError, ValueError, OverflowError):
        numbers, has_text = (), False
    if has_text or not (numbers and all(abs(n) <= _FLOAT32_MAX for n in numbers)):
        raise ValueError(
            f"{name} must be finite numbers, one for each channel, not {str(values)[:80]}"
        )
    return numbers


def bgr_order(channels: int) -> list[int]:
    """Return which input channel each output channel of "bgr" is: 2, 1, 0, 5, 4, 3 and so on."""
    threes = channels // 3 * 3
    return [i // 3 * 3 + 2 - i % 3 if i < threes else i for i in range(channels)]


@keras.saving.register_keras_serializable("keras_vgg")
class ImagePreprocessing(keras.layers.Layer):
    """Preprocess images as a network expects them: (x - mean) / std, as RGB or BGR.

    The input is [n, height, width, channels] (or channels first), RGB in [0, 255], of any dtype.
    The output has the same shape and the layer's compute dtype. The arithmetic is in float32, so
    that half precision loses nothing. Grey images, of one channel, become three channels if `mean`
    has three values: a network for RGB then sees what it would see for R = G = B.

    The layer warns of eager images that seem to be in [0, 1] or [-1, 1].

    Args:
        mean: One value for each channel, in RGB order, in units of [0, 255].
        std: As `mean`; a single 1.0 keeps the scale.
        channel_order: Order of the output's channels, "rgb" or "bgr". "bgr" reverses each three
            channels, and leaves a rest of one or two as it is.
        data_format: "channels_last" or "channels_first"; None for Keras' default.

    Raises:
        ValueError: `mean` or `std` are not finite numbers, a `std` is not positive, or
            `channel_order` is unknown.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = (1.0,),
        channel_order: str = "rgb",
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order must be 'rgb' or 'bgr', not {channel_order!r}")
        self.mean = _finite_numbers("mean", mean)
        self.std = _finite_numbers("std", std)
        if any(s <= 0 or 1 / s > _FLOAT32_MAX for s in self.std):
            raise ValueError(f"std must be positive, not {self.std}")
        self.channel_order = channel_order
        self.data_format = data_format or keras.config.image_data_format()

    @classmethod
    def caffe(cls, **kwargs: Any) -> ImagePreprocessing:
        """Return the layer for Oxford's and keras.applications' VGG: BGR minus ImageNet's mean."""
        return cls(IMAGENET_MEAN, (1.0,), "bgr", **kwargs)

    @classmethod
    def torchvision(cls, **kwargs: Any) -> ImagePreprocessing:
        """Return the layer for torchvision's and timm's VGG: (RGB / 255 - mean) / deviation."""
        mean = (0.485, 0.456, 0.406)
        std = (0.229, 0.224, 0.225)
        return cls([255 * m for m in mean], [255 * s for s in std], "rgb", **kwargs)

    def build(self, input_shape) -> None:
        channels = self.compute_output_shape(input_shape)[self._axis]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(
                    f"preprocessing {name} {values} is for {len(values)} channels, but the input "
                    f"has {channels}; pass an ImagePreprocessing with one value for each channel"
                )

    def call(self, inputs):
        advice = "scale them, or name their range where a value_range can be given"
        check_range(inputs, advice=advice, refuse=False)
        shape = (-1, 1, 1) if self._axis == 1 else (-1,)
        x: Any = ops.cast(inputs, "float32")
        mean = ops.reshape(ops.convert_to_tensor(self.mean, "float32"), shape)
        scale = ops.reshape(ops.convert_to_tensor([1 / s for s in self.std], "float32"), shape)
        x = (x - mean) * scale  # a single channel becomes as many as there are means
        if self.channel_order == "bgr":
            channels = x.shape[self._axis]
            if channels == 3:
                x = ops.flip(x, axis=self._axis)
            else:
                x = ops.take(x, bgr_order(channels), axis=self._axis)
        return ops.cast(x, self.compute_dtype)

    @property
    def _axis(self) -> int:
        """The axis of the channels."""
        return 1 if self.data_format == "channels_first" else 3

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        if shape[self._axis] == 1 and len(self.mean) == 3:
            shape[self._axis] = 3
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mean": list(self.mean),
            "std": list(self.std),
            "channel_order": self.channel_order,
            "data_format": self.data_format,
        }


_READING = contextvars.ContextVar("reading", default=False)


def is_reading_file() -> bool:
    """Return whether a configuration is that of a file, which may be a stranger's.

    It must then name no other file and no download.
    """
    return _READING.get()


# The rooms that define other layers of saved networks, besides those that import these.
_ROOMS_WITH_LAYERS = ("dense", "features", "graph", "perceptual")


def register_layers() -> None:
    """Make every layer of the package known to Keras, which finds those of a file by their names.

    The rooms above this one are imported by their names, and only to read a file: nothing here
    depends on them.
    """
    for room in _ROOMS_WITH_LAYERS:
        importlib.import_module(f"{__package__}.{room}")


def load_keras_file(path: Path) -> Any:
    """Return the model of a .keras file, not compiled.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged, holds no model, or needs layers of another package.
        MemoryError: memory does not hold the model.
    """
    require_archive(path)
    require_hdf5(path, "model.weights.h5")
    register_layers()
    token = _READING.set(True)
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises many errors for a damaged archive
        if is_out_of_memory(error):
            raise unread_file(path, error) from error
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    finally:
        _READING.reset(token)
    if not isinstance(model, keras.Model):
        raise ValueError(f"{path} is damaged: it holds a {type(model).__name__}")
    return model


def resized(maps: Any, height: Any, width: Any) -> Any:
    """Return maps [n, h, w, c] at another size, bilinearly, with half-pixel centres.

    `height` and `width` may be tensors, which Keras 3.15 refuses: TensorFlow's compiled functions
    do not know the sides of images that differ in size.
    """
    if isinstance(height, int) and isinstance(width, int):
        options: dict[str, Any] = {"interpolation": "bilinear", "data_format": "channels_last"}
        return ops.image.resize(maps, (height, width), **options)
    return _interpolated(_interpolated(maps, height, 1), width, 2)


def _interpolated(maps: Any, side: Any, axis: int) -> Any:
    """Return maps with another number of rows (axis 1) or columns (axis 2)."""
    shape: Any = ops.shape(maps)
    last: Any = ops.cast(shape[axis] - 1, "float32")
    numbers: Any = ops.arange(side, dtype="float32")
    places: Any = (numbers + 0.5) * (last + 1) / ops.cast(side, "float32")
    places = ops.clip(places - 0.5, 0.0, last)
    low: Any = ops.floor(places)
    above = ops.take(maps, ops.cast(ops.minimum(low + 1, last), "int32"), axis=axis)
    below: Any = ops.take(maps, ops.cast(low, "int32"), axis=axis)
    share = ops.reshape(places - low, (1, -1, 1, 1) if axis == 1 else (1, 1, -1, 1))
    return below + (above - below) * ops.cast(share, maps.dtype)

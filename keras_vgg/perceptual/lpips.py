"""LPIPS, the learned perceptual image patch similarity (Zhang et al., arXiv:1801.03924)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_vgg.features import channel_axis
from keras_vgg.layers import ImagePreprocessing, resized
from keras_vgg.perceptual.distance import LAYERS, ImageDistance, learned
from keras_vgg.perceptual.images import BYTES


@keras.saving.register_keras_serializable("keras_vgg")
class LPIPS(ImageDistance):
    """The perceptual distance LPIPS, version 0.1, on VGG-16: 0 for equal images, larger is worse.

    It is a loss, a metric and a function: `model.compile(loss=LPIPS(), metrics=[LPIPS()])`, and
    `LPIPS()(a, b)` for the distance of each pair, [n]. Tensors give gradients. `metric()` returns
    a Keras metric for a loop of your own, and `evaluate` takes a data set of pairs.

    The published distance is that of weights="torchvision", on which its authors learned the
    weights of the channels. Other weights give other figures.

    Args:
        weights: VGG-16's weights, as the builder takes them: "torchvision", "imagenet" (Keras'
            file, Oxford's network), a path, or "hf://OWNER/NAME". Or a VGG-16 without batch norm
            and with its preprocessing inside, which two distances can share.
        preprocessing: The preprocessing of a file that does not state it, such as
            `ImagePreprocessing.torchvision()`.
        value_range: Range of the images' values, such as (0, 1) or (-1, 1).
        spatial: Whether to return a map [n, h, w] of the image's size in place of its mean.
        name: The name of the loss or the metric.

    Raises:
        ValueError: as the builder; the preprocessing is not known; a network that is no VGG-16, or
            has batch norm; a range that does not rise.
        OSError: there is no weight file, or a download failed.
    """

    def __init__(
        self,
        weights: str | Path | keras.Model = "torchvision",
        *,
        preprocessing: ImagePreprocessing | None = None,
        value_range: tuple[float, float] = BYTES,
        spatial: bool = False,
        name: str = "lpips",
    ) -> None:
        self._spatial = spatial
        layers = learned("lpips_vgg.safetensors")
        self._channel_weights = [layers[f"lin{i}"] for i in range(len(LAYERS))]
        super().__init__(weights, preprocessing, value_range, name)
        needed = [len(weights) for weights in self._channel_weights]
        if self._widths != needed:
            raise ValueError(f"{name} needs VGG-16's channels {needed}, not {self._widths}")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "spatial": self._spatial}

    def _distance(self, first: Any, second: Any, first_maps: Any, second_maps: Any) -> Any:
        axis = channel_axis()
        shape: Any = ops.shape(first)
        size = shape[2:] if axis == 1 else shape[1:3]
        total: Any = 0.0
        for a, b, weights in zip(first_maps, second_maps, self._channel_weights, strict=True):
            squares = ops.square(_unit(a, axis) - _unit(b, axis))
            # [n, h, w]: the sum over the channels, each with its weight.
            distance: Any = ops.matmul(
                squares if axis == -1 else ops.moveaxis(squares, 1, -1),
                ops.convert_to_tensor(weights[:, None]),
            )
            if self._spatial:
                distance = resized(distance, *size)
                total = total + distance[..., 0]
            else:
                total = total + ops.mean(distance, axis=(1, 2, 3))
        return total


def _unit(features: Any, axis: int) -> Any:
    """Return features divided by each pixel's length; where all are 0, the gradient is finite."""
    squares: Any = ops.sum(ops.square(features), axis=axis, keepdims=True)
    is_zero = squares == 0
    length: Any = ops.where(is_zero, 0.0, ops.sqrt(ops.where(is_zero, 1.0, squares)))
    return features / (length + 1e-10)

"""DISTS, the distance of an image's structure and texture (Ding et al., arXiv:2004.07728)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.features import channel_axis
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.perceptual.distance import ImageDistance, learned
from keras_vgg.perceptual.images import BYTES

_SMALL = 1e-6  # the paper's c1 and c2
_COLORS = 3


@keras.saving.register_keras_serializable("keras_vgg")
class DISTS(ImageDistance):
    """The distance DISTS on VGG-16: 0 for equal images, about 1 for unlike ones.

    It compares the mean of every feature (texture) and its covariance over the places (structure),
    and forgives a texture whose details are elsewhere. Its uses are those of `LPIPS`. It has no
    map, because it compares sums over the whole image. The network's max pools are `L2Pooling`.

    The published distance is that of weights="torchvision", on which its authors learned the
    weights of the features. They scale images to a smallest side of 256 pixels first; this class
    does not scale.

    Args:
        weights: VGG-16's weights, as the builder takes them: "torchvision", "imagenet" (Keras'
            file, Oxford's network), a path, or "hf://OWNER/NAME". Or a VGG-16 without batch norm
            and with its preprocessing inside, which two distances can share.
        preprocessing: The preprocessing of a file that does not state it, such as
            `ImagePreprocessing.torchvision()`.
        value_range: Range of the images' values, such as (0, 1) or (-1, 1).
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
        name: str = "dists",
    ) -> None:
        super().__init__(weights, preprocessing, value_range, name, pooling_layers="l2")
        widths = [_COLORS, *self._widths]
        values = learned("dists.safetensors")
        if sum(widths) != len(values["alpha"]):
            raise ValueError(f"{name} needs VGG-16's channels, not {widths[1:]}")
        total = sum(part.sum() for part in values.values())
        ends = np.cumsum(widths)[:-1]
        self._texture, self._structure = (
            np.split(values[part] / total, ends) for part in ("alpha", "beta")
        )

    def _distance(self, first: Any, second: Any, first_maps: Any, second_maps: Any) -> Any:
        similarity: Any = 0.0
        pairs = zip([first / 255.0, *first_maps], [second / 255.0, *second_maps], strict=True)
        for pair, alpha, beta in zip(pairs, self._texture, self._structure, strict=True):
            texture, structure = _similarities(*pair)
            alpha, beta = (ops.convert_to_tensor(part) for part in (alpha, beta))
            similarity = similarity + ops.sum(alpha * texture + beta * structure, axis=1)
        return 1.0 - similarity


def _similarities(a: Any, b: Any) -> tuple[Any, Any]:
    """Return how alike the means, and the structures, of two maps are in each channel, [n, c]."""
    axes = (2, 3) if channel_axis() == 1 else (1, 2)

    def mean(x: Any) -> Any:
        return ops.mean(x, axis=axes)

    a_mean, b_mean = mean(a), mean(b)
    texture = (2 * a_mean * b_mean + _SMALL) / (a_mean**2 + b_mean**2 + _SMALL)
    # The products of what exceeds the mean: E[ab] - E[a] E[b] would lose digits.
    a, b = (x - ops.mean(x, axis=axes, keepdims=True) for x in (a, b))
    variances = mean(ops.square(a)) + mean(ops.square(b))
    return texture, (2 * mean(a * b) + _SMALL) / (variances + _SMALL)

"""Fit the weights that a pruned VGG has left to what the whole network computes, without training.

Where filters are gone, all later layers get other inputs. Layer by layer, from the first to the
last, least squares find the kernel and the bias with which a layer comes closest to its own outputs
in the whole network, from the inputs that it gets now (He et al., arXiv:1707.06168). It takes
images, and neither labels nor gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_vgg.export.answers import answers
from keras_vgg.finite import require_finite_images, require_finite_weights

_BATCH = 32
_ROWS = 8  # outputs of a filter to fit, for each of its weights
_IMAGES = 256  # images that a layer is fitted on, at least, if there are so many
# What a change of the weights costs, relative to the mean square of the inputs: with few images,
# least squares alone would fit these, and no others.
_RIDGE = 1e-2


def reconstruct(
    model: keras.Model,
    small: keras.Model,
    kept: Mapping[str, np.ndarray],
    images: np.ndarray,
    on_layer: Callable[[str], None] = lambda name: None,
) -> None:
    """Change the weights of a pruned network so that each layer computes what it did before.

    The weights behind the first missing filter are changed in place, but for those of batch
    normalisation. For each filter, 8 outputs for each of its weights are fitted, at random places
    of the images, or as many as the images have. The same call gives the same weights.

    Args:
        model: A VGG of this package, channels last.
        small: What `prune.remove_filters` returns for it and `kept`.
        kept: Convolution -> the numbers of the filters that are left.
        images: [n, height, width, channels] RGB in [0, 255], such as the training images. A few
            hundred are enough for large images; at 32x32, 1,000 or more.
        on_layer: Called with the name of each convolution and dense layer that is done.

    Raises:
        ValueError: no images; images or weights that are not finite; a network whose image size is
            open.
    """
    if not len(images):
        raise ValueError("the reconstruction needs images; there are 0")
    if None in model.input_shape[1:]:
        raise ValueError(f"the reconstruction needs a fixed image size, not {model.input_shape}")
    require_finite_images(images)
    require_finite_weights(model)
    before, now = _Computed(model.input, images), _Computed(small.input, images)
    is_changed = False  # whether filters before the layer are gone
    for layer in fitted_layers(small):
        whole = model.get_layer(layer.name)
        if is_changed:
            before, now = before.nearer_to(whole), now.nearer_to(layer)
            _fit(layer, whole, kept.get(layer.name), before, now)
        is_changed |= layer.weights[0].shape != whole.weights[0].shape
        on_layer(layer.name)


@dataclass(frozen=True)
class _Computed:
    """What a network computes of all images at one of its tensors: [n, ...]."""

    tensor: Any
    values: np.ndarray

    def nearer_to(self, layer: Any) -> _Computed:
        """Return what a later layer gets, if it is no more than what is known; else what is known.

        So a layer near the end needs no pass through the whole network.
        """
        if np.prod(layer.input.shape[1:]) > np.prod(self.values.shape[1:]):
            return self
        return _Computed(layer.input, self.inputs_of(layer)(np.arange(len(self.values))))

    def inputs_of(self, layer: Any) -> Callable[[np.ndarray], np.ndarray]:
        """Return a function from images' numbers to what a later layer gets of them."""
        if self.tensor is layer.input:
            return lambda numbers: self.values[numbers]
        part = keras.Model(self.tensor, layer.input)
        return lambda numbers: answers(part, self.values[numbers])


def fitted_layers(model: keras.Model) -> list[keras.layers.Conv2D | keras.layers.Dense]:
    """Return the layers that `reconstruct` passes, in order: convolutions and dense layers."""
    kinds = (keras.layers.Conv2D, keras.layers.Dense)
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def _fit(
    layer: keras.layers.Conv2D | keras.layers.Dense,
    whole: keras.layers.Conv2D | keras.layers.Dense,
    chosen: np.ndarray | None,
    before: _Computed,
    now: _Computed,
) -> None:
    """Fit a layer whose filters are `chosen` of those in the whole network; None: all."""
    kernel, bias = layer.get_weights()
    whole_kernel, whole_bias = whole.get_weights()
    if chosen is not None:
        whole_kernel, whole_bias = whole_kernel[..., chosen], whole_bias[chosen]
    outputs = kernel.shape[-1]
    features = kernel.size // outputs
    inside: Any = layer.output
    grid = inside.shape[1:3] if isinstance(layer, keras.layers.Conv2D) else (1, 1)
    places, images = grid[0] * grid[1], len(now.values)
    count = min(images, max(_IMAGES, -(-_ROWS * features // places)))
    each = min(places, -(-_ROWS * features // count))
    inputs_before, inputs_now = before.inputs_of(whole), now.inputs_of(layer)
    generator = np.random.default_rng(0)

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield inputs [rows, features], and what their outputs [rows, outputs] lack."""
        chosen_images = np.arange(count) * images // count
        for numbers in np.split(chosen_images, range(_BATCH, count, _BATCH)):
            at = np.divmod([generator.permutation(places)[:each] for _ in numbers], grid[1])
            rows_before = _at_places(layer, inputs_before(numbers), at)
            rows_now = _at_places(layer, inputs_now(numbers), at)
            wanted = rows_before @ whole_kernel.reshape(-1, outputs) + whole_bias
            yield rows_now, wanted - (rows_now @ kernel.reshape(-1, outputs) + bias)

    change, shift = least_squares(rows(), count * each, features)
    layer.set_weights([kernel + change.reshape(kernel.shape), bias + shift])


def _at_places(
    layer: keras.layers.Conv2D | keras.layers.Dense,
    inputs: np.ndarray,
    at: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return what a layer's filters see at places of its output: float32 [images * places, ...].

    `at` is the places' rows and columns, each [images, places]; a dense layer has one place.
    """
    inputs = inputs.astype(np.float32)
    if isinstance(layer, keras.layers.Dense):
        return inputs
    height, width = layer.kernel_size
    row_step, column_step = layer.dilation_rate
    if layer.padding == "same":
        spans = (row_step * (height - 1), column_step * (width - 1))
        margins = [(span // 2, span - span // 2) for span in spans]
        inputs = np.pad(inputs, [(0, 0), *margins, (0, 0)])
    numbers = np.arange(len(inputs))[:, np.newaxis]
    parts = [
        inputs[numbers, at[0] + row * row_step, at[1] + column * column_step]
        for row in range(height)
        for column in range(width)
    ]
    return np.concatenate(parts, axis=-1).reshape(at[0].size, -1)


def least_squares(
    pairs: Iterator[tuple[np.ndarray, np.ndarray]], rows: int, features: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [features, outputs] and biases [outputs], ridge regression's.

    Args:
        pairs: Inputs [n, features] and what is wanted of them [n, outputs], in parts.
        rows: Number of rows of all parts. If they are fewer than the features, all are in memory
            at the same time.
        features: Number of features.
    """
    if rows < features:
        inputs, wanted = map(np.concatenate, zip(*pairs, strict=True))
        mean, mean_wanted = inputs.mean(axis=0, dtype=np.float64), wanted.mean(axis=0)
        centred = inputs - mean
        products = centred @ centred.T
        _add_ridge(products, features)
        weights = centred.T @ np.linalg.solve(products, wanted - mean_wanted)
        return weights, mean_wanted - mean @ weights
    squares = mixed = mean = mean_wanted = np.zeros(())
    for inputs, wanted in pairs:
        squares = squares + (inputs.T @ inputs).astype(np.float64)
        mixed = mixed + (inputs.T @ wanted).astype(np.float64)
        mean = mean + inputs.sum(axis=0, dtype=np.float64) / rows
        mean_wanted = mean_wanted + wanted.sum(axis=0, dtype=np.float64) / rows
    squares = squares - rows * np.outer(mean, mean)
    _add_ridge(squares, features)
    weights = np.linalg.solve(squares, mixed - rows * np.outer(mean, mean_wanted))
    return weights, mean_wanted - mean @ weights


def _add_ridge(products: np.ndarray, features: int) -> None:
    """Add to the diagonal of centred inputs' products; with constant inputs, weights are 0."""
    products[np.diag_indices_from(products)] += max(_RIDGE * np.trace(products) / features, 1e-30)

"""Remove whole filters of a VGG's convolutions. The result is a plain VGG with other widths.

Which filters: those that a criterion ranks last. How many of each layer: as a sensitivity analysis
on validation images says, in which each layer alone loses more and more of its filters (Li et al.,
arXiv:1608.08710). A network that has lost filters must be trained again; `keras_vgg.runs.prune_run`
does both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_vgg.backend import as_array, backend_name, is_tensorflow
from keras_vgg.export.answers import answers
from keras_vgg.export.fold import in_float32
from keras_vgg.finite import require_finite_images, require_finite_weights
from keras_vgg.layers import LocalResponseNormalization

CRITERIA = ("taylor", "l1", "batch_norm")

_CONVOLUTION = re.compile(r"block\d_conv\d")
_BATCH = 32
_STEPS = 8  # numbers of filters that the sensitivity analysis tries for a layer, at most
_WIDE = 64  # a layer of so many filters loses multiples of 8: processors compute those fastest


@dataclass(frozen=True)
class Sensitivity:
    """How the network's answers change without the least important filters of one layer.

    Attributes:
        layer: The convolution's name.
        order: Its filters' numbers, the least important first.
        removed: Numbers of filters removed, ascending from 0.
        divergences: The mean Kullback-Leibler divergence of the answers without these filters from
            the network's own, for each of `removed`.
    """

    layer: str
    order: np.ndarray
    removed: tuple[int, ...]
    divergences: tuple[float, ...]


def convolutions(model: keras.Model) -> list[keras.layers.Conv2D]:
    """Return the convolutions of a VGG's blocks, in order.

    Raises:
        ValueError: the model has none, such as block1_conv1.
    """
    found = [layer for layer in model.layers if _CONVOLUTION.fullmatch(layer.name)]
    if not found or not all(isinstance(layer, keras.layers.Conv2D) for layer in found):
        raise ValueError(f"model {model.name!r} has no convolutions block1_conv1 ... as a VGG has")
    return found


def importance(
    model: keras.Model, criterion: str, images: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Return how important each filter of each convolution is: layer -> [filters], the larger more.

    Args:
        model: A VGG that gives probabilities.
        criterion: "taylor": how much the loss changes without the filter, to first order: the
            square of the sum of gradient times weight, summed over batches of 32 images; the last
            one counts by its images (Molchanov et al., arXiv:1906.10771). "l1": the sum of the
            kernel's absolute values (Li et al., arXiv:1608.08710). "batch_norm": the absolute scale
            of its batch normalisation (Liu et al., arXiv:1708.06519).
        images: [n, height, width, channels] RGB in [0, 255]. Only "taylor" reads them.
        labels: [n] class numbers, or [n, classes] zeros and ones for several labels an image.

    Raises:
        ValueError: the criterion is unknown, or needs batch normalisation and the network has none;
            "taylor" on another backend than TensorFlow.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    layers = convolutions(model)
    if criterion == "l1":
        return {c.name: np.abs(as_array(c.kernel)).sum(axis=(0, 1, 2)) for c in layers}
    norms = _batch_norms(model)
    if criterion == "batch_norm":
        missing = [layer.name for layer in layers if layer.name not in norms]
        if missing:
            raise ValueError(
                f"criterion 'batch_norm' needs batch normalisation after every convolution, and"
                f" {missing[0]} has none; use 'taylor' or 'l1'"
            )
        return {layer.name: np.abs(as_array(norms[layer.name].gamma)) for layer in layers}
    # In float16, the gradients of a network that is sure of its answers become 0.
    model = in_float32(model)
    layers, norms = convolutions(model), _batch_norms(model)
    # What scales a filter's output: the kernel and the bias, or the batch normalisation behind it.
    scales = {
        layer.name: [norms[layer.name].gamma, norms[layer.name].beta]
        if layer.name in norms
        else [v for v in (layer.kernel, layer.bias) if v is not None]
        for layer in layers
    }
    return _taylor(model, scales, images, labels)


def require_backend(criterion: str) -> None:
    """Raise ValueError if a criterion does not run on this backend of Keras."""
    if criterion == "taylor" and not is_tensorflow():
        raise ValueError(
            f"criterion 'taylor' needs Keras on TensorFlow, not on {backend_name()}: set "
            "KERAS_BACKEND=tensorflow, or use 'l1'"
        )


def sensitivities(
    model: keras.Model,
    scores: Mapping[str, np.ndarray],
    images: np.ndarray,
    on_layer: Callable[[Sensitivity], None] = lambda layer: None,
    *,
    several_labels: bool,
    measured: Mapping[str, Sensitivity] | None = None,
) -> list[Sensitivity]:
    """Return how the answers change without the least important filters of each layer alone.

    The answers are compared with the network's own. The loss against the labels would mislead where
    a network is too sure of wrong answers: with fewer filters it is less sure, and its loss falls.

    Args:
        model: A VGG that gives probabilities.
        scores: As `importance` returns them.
        images: [n, height, width, channels] RGB in [0, 255], of the validation split.
        on_layer: Called with the result of each layer that has just been measured.
        several_labels: Whether the probabilities are those of several labels an image, which do
            not sum to 1.
        measured: Layer -> the result of an earlier call with the same arguments, which is not
            measured again.

    Raises:
        ValueError: no images; images or weights that are not finite; a model with channels first.
    """
    if not len(images):
        raise ValueError("the sensitivity needs images; there are 0")
    require_finite_images(images)
    require_finite_weights(model)
    _require_channels_last(model)
    own = answers(model, images)
    norms = _batch_norms(model)
    results = []
    for layer in convolutions(model):
        if measured and layer.name in measured:
            results.append(measured[layer.name])
            continue
        order = order_of(scores[layer.name])
        counts = [] if _sees_neighbours(layer.name, model) else _counts(layer.filters)
        without = [order[:count] for count in counts]
        changed = _answers_without(model, norms.get(layer.name, layer), without, images)
        divergences = [divergence(own, others, several_labels) for others in changed]
        results.append(Sensitivity(layer.name, order, (0, *counts), (0.0, *divergences)))
        on_layer(results[-1])
    return results


def order_of(scores: np.ndarray) -> np.ndarray:
    """Return the numbers of a layer's filters, the least important first."""
    return np.argsort(scores, kind="stable")


def require_reachable(
    widths: Sequence[int],
    macs: Callable[[Sequence[int]], int],
    limit: float,
    *,
    first_stays: bool = False,
) -> None:
    """Raise ValueError if one step cannot reach a limit, whatever the sensitivities are.

    Args:
        widths: Number of filters of each convolution.
        macs, limit: As `plan`.
        first_stays: Whether the first convolution keeps all of its filters, as with local response
            normalisation.
    """
    most = [max(_counts(width), default=0) for width in widths]
    if first_stays:
        most[0] = 0
    _check_limit(widths, most, macs, limit)


def plan(
    layers: Sequence[Sensitivity], macs: Callable[[Sequence[int]], int], limit: float
) -> dict[str, np.ndarray]:
    """Return which filters to keep: layer -> their numbers, ascending.

    Filters go step by step, each time from the layer in which the divergence rises least for each
    multiply-accumulate that is saved.

    Args:
        layers: As `sensitivities` returns them, from the first convolution to the last.
        macs: A function from the number of filters of each layer to the network's
            multiply-accumulates.
        limit: The most multiply-accumulates allowed.

    Raises:
        ValueError: the limit cannot be reached, since each layer keeps a part of its filters.
    """
    # Fewer filters are not better, though a few images may say so.
    changes = [np.maximum.accumulate(layer.divergences) for layer in layers]
    widths = [len(layer.order) for layer in layers]
    steps = [0] * len(layers)
    _check_limit(widths, [layer.removed[-1] for layer in layers], macs, limit)
    current = macs(widths)
    while current > limit:
        best, best_price, best_macs = None, np.inf, current
        for i, layer in enumerate(layers):
            if steps[i] + 1 == len(layer.removed):
                continue
            trial = list(widths)
            trial[i] = len(layer.order) - layer.removed[steps[i] + 1]
            cost = macs(trial)
            price = (changes[i][steps[i] + 1] - changes[i][steps[i]]) / (current - cost)
            if price < best_price:
                best, best_price, best_macs = i, price, cost
        assert best is not None  # the least is within the limit
        steps[best] += 1
        widths[best] = len(layers[best].order) - layers[best].removed[steps[best]]
        current = best_macs
    return {
        layer.layer: np.sort(layer.order[layer.removed[step] :])
        for layer, step in zip(layers, steps, strict=True)
    }


def remove_filters(model: keras.Model, kept: Mapping[str, np.ndarray]) -> keras.Model:
    """Return a copy of a VGG with fewer filters. All other layers and weights stay the same.

    The copy answers as the model with the other filters' outputs set to zero.

    Args:
        model: A VGG of this package: a chain of layers, channels last.
        kept: Convolution -> the numbers of the filters to keep, ascending. A layer that is not
            named keeps all.

    Raises:
        ValueError: a layer does not exist or cannot be pruned; a number is out of range, or there
            is none.
    """
    for name, numbers in kept.items():
        _check_kept(model, name, numbers)

    def narrower(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer.name in kept:
            config["filters"] = len(kept[layer.name])
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(model, clone_function=narrower)
    passing: np.ndarray | None = None  # the channels that reach a layer; None: all
    for layer in model.layers:
        weights = layer.get_weights()
        if isinstance(layer, keras.layers.Conv2D):
            chosen = kept.get(layer.name)
            weights = _cut(weights, passing, chosen)
            passing = chosen
        elif isinstance(layer, keras.layers.BatchNormalization) and passing is not None:
            weights = [values[passing] for values in weights]
        elif isinstance(layer, keras.layers.Dense):
            if passing is not None:
                weights = _cut(_by_place(layer, model), passing, None)
                weights[0] = weights[0].reshape(-1, layer.units)
            passing = None
        if weights:
            copy.get_layer(layer.name).set_weights(weights)
    return copy


def divergence(own: np.ndarray, others: np.ndarray, several_labels: bool = False) -> float:
    """Return the mean Kullback-Leibler divergence of other probabilities from a network's own.

    Both are [n, classes]. With `several_labels`, a label and its absence are two classes, and the
    divergences of the labels are summed.
    """
    own, others = (values.astype(np.float64) for values in (own, others))
    if several_labels:
        own, others = (np.stack([values, 1 - values], axis=-1) for values in (own, others))
    least = keras.config.epsilon()
    own, others = (np.clip(values, least, 1) for values in (own, others))
    return float(np.sum(own * np.log(own / others)) / len(own))


def _cross_entropy(probabilities: Any, labels: Any) -> Any:
    probabilities = keras.ops.cast(probabilities, "float32")
    if len(labels.shape) == 2:
        return keras.ops.mean(keras.losses.binary_crossentropy(labels, probabilities))
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(labels, probabilities))


def _taylor(
    model: keras.Model,
    scales: Mapping[str, list[Any]],
    images: np.ndarray,
    labels: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the sum over batches of (the sum over a filter's weights of gradient x weight)^2.

    The gradient is of the sum of the images' losses, over `_BATCH`.
    """
    require_backend("taylor")
    import tensorflow as tf

    if not len(images) or len(images) != len(labels):
        raise ValueError(
            f"criterion 'taylor' needs labelled images; there are {len(images)}, {len(labels)} "
            "labels"
        )
    require_finite_images(images)
    variables = {name: [v.value for v in values] for name, values in scales.items()}

    @tf.function(reduce_retracing=True)
    def changes(some_images, some_labels):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = _cross_entropy(model(some_images, training=False), some_labels)
        gradients: Any = tape.gradient(value, variables)
        return {
            name: tf.add_n(
                [
                    tf.reduce_sum(g * v, axis=list(range(len(v.shape) - 1)))
                    for g, v in zip(gradients[name], values, strict=True)
                ]
            )
            for name, values in variables.items()
        }

    totals = {name: np.zeros(values[0].shape[-1]) for name, values in scales.items()}
    for start in range(0, len(images), _BATCH):
        batch = slice(start, start + _BATCH)
        # The loss is a mean: in a smaller batch, each image would count more.
        share = len(images[batch]) / _BATCH
        products = changes(tf.constant(images[batch]), tf.constant(labels[batch]))
        for name, product in products.items():
            totals[name] += (share * product.numpy().astype(np.float64)) ** 2
    return totals


def _batch_norms(model: keras.Model) -> dict[str, Any]:
    """Return the batch normalisation behind each convolution, by the convolution's name."""
    return {
        layer.name.removesuffix("_bn"): layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }


def _check_limit(
    widths: Sequence[int],
    most_removed: Sequence[int],
    macs: Callable[[Sequence[int]], int],
    limit: float,
) -> None:
    """Raise ValueError if a limit is out of reach; `most_removed` filters may go of each layer."""
    pairs = list(zip(widths, most_removed, strict=True))
    least = macs([width - removed for width, removed in pairs])
    if least <= limit:
        return
    least_of_all = macs([1 if removed else width for width, removed in pairs])
    more_steps = ", or take more steps" if least_of_all <= limit else ""
    raise ValueError(
        f"at most {limit:,.0f} multiply-accumulates cannot be reached in one step: the least is"
        f" {least:,}; ask for more{more_steps}"
    )


def _counts(filters: int) -> list[int]:
    """Return the numbers of filters to remove from a layer, ascending; some filters stay."""
    unit = 8 if filters >= _WIDE else 1
    step = unit * max(1, -(-filters // (unit * _STEPS)))
    return list(range(step, filters, step))


def _answers_without(
    model: keras.Model, layer: Any, without: Sequence[np.ndarray], images: np.ndarray
) -> list[np.ndarray]:
    """Return the answers for each of several sets of channels of a layer that give zero."""
    before = keras.Model(model.input, layer.output)
    behind = keras.Model(layer.output, model.output)
    masks = np.ones((len(without), layer.output.shape[-1]), np.float32)
    for mask, channels in zip(masks, without, strict=True):
        mask[channels] = 0.0
    parts: list[list[np.ndarray]] = [[] for _ in without]
    for start in range(0, len(images), _BATCH) if without else ():
        inside = before(images[start : start + _BATCH], training=False)
        for part, mask in zip(parts, masks, strict=True):
            masked = inside * keras.ops.cast(mask, inside.dtype)
            part.append(as_array(behind(masked, training=False)))
    return [np.concatenate(part) for part in parts]


def _require_channels_last(model: keras.Model) -> None:
    if convolutions(model)[0].data_format != "channels_last":
        raise ValueError("filters are removed from a model with channels last")


def _check_kept(model: keras.Model, name: str, numbers: np.ndarray) -> None:
    layers = {layer.name: layer for layer in convolutions(model)}
    if name not in layers:
        raise ValueError(f"model {model.name!r} has no convolution {name!r} to take filters from")
    numbers, filters = np.asarray(numbers), layers[name].filters
    _require_channels_last(model)
    rises = numbers.ndim == 1 and numbers.dtype.kind in "iu" and bool(np.all(np.diff(numbers) > 0))
    if not len(numbers) or not rises or numbers[0] < 0 or numbers[-1] >= filters:
        raise ValueError(
            f"{name} has the filters 0 to {filters - 1}; name at least one to keep, ascending, not"
            f" {numbers.tolist()}"
        )
    if _sees_neighbours(name, model) and len(numbers) < filters:
        raise ValueError(
            "local response normalisation lets each filter of block1_conv1 see its neighbours, so"
            " none can be removed"
        )


def _sees_neighbours(name: str, model: keras.Model) -> bool:
    """Return whether a layer's filters are normalised by each other, so that all must stay."""
    has_lrn = any(isinstance(layer, LocalResponseNormalization) for layer in model.layers)
    return has_lrn and name == "block1_conv1"


def _cut(
    weights: list[np.ndarray], passing: np.ndarray | None, chosen: np.ndarray | None
) -> list[np.ndarray]:
    """Return kernel [..., in, out] and bias for the channels that are left."""
    kernel, *bias = weights
    if passing is not None:
        kernel = kernel[..., passing, :]
    if chosen is not None:
        kernel, bias = kernel[..., chosen], [values[chosen] for values in bias]
    return [kernel, *bias]


def _by_place(layer: keras.layers.Dense, model: keras.Model) -> list[np.ndarray]:
    """Return a dense layer's kernel as [places, channels, units], and its bias."""
    kernel, *bias = layer.get_weights()
    channels = convolutions(model)[-1].filters
    return [kernel.reshape(-1, channels, kernel.shape[-1]), *bias]

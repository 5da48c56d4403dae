"""fc1 and fc2 of a VGG, nine tenths of its weights, as products of two thin matrices.

Denton et al. (arXiv:1404.0736) truncate the singular value decomposition of a layer's weights;
Zhang et al. (arXiv:1505.06798) that of what the layer answers on real images, which keeps what
the images use and is what is done here. (Han et al., arXiv:1510.00149, store VGG-16 in 1/49 of
its size, with pruning and Huffman coding, which no runtime computes with.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_vgg.finite import require_finite_images, require_finite_weights

LAYERS = ("fc1", "fc2")
ENERGIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)

_BATCH = 32


@dataclass(frozen=True)
class Spectrum:
    """How a layer's answers on real images are distributed over orthogonal directions.

    Attributes:
        directions: [units, units] float32, orthonormal columns, the most important first.
        energy: [units] float64, the mean square of the answers, less their mean, along each.
        mean: [units] float32, the mean answer, before bias and activation.
    """

    directions: np.ndarray
    energy: np.ndarray
    mean: np.ndarray

    def rank(self, share: float) -> int:
        """The least number of directions with this share of the energy."""
        cumulated = np.cumsum(self.energy) / self.energy.sum()
        return min(int(np.searchsorted(cumulated, share)) + 1, len(self.energy))


@dataclass(frozen=True)
class Point:
    """A network: layer -> rank, its parameters, and its top-1 accuracy in [0, 1]."""

    ranks: Mapping[str, int]
    parameters: int
    top1: float
    tuned: bool


@dataclass(frozen=True)
class Compression:
    """What was tried, and the smallest network that keeps the accuracy.

    Attributes:
        model: the compressed network.
        chosen: its point.
        original: the point of the network as it was; its ranks are full.
        points: every network that was tried, from the smallest.
    """

    model: keras.Model
    chosen: Point
    original: Point
    points: tuple[Point, ...]


def spectrum(layer: keras.layers.Dense, inputs: np.ndarray) -> Spectrum:
    """The spectrum of a dense layer's answers to `inputs` [n, in], float32, before the bias."""
    kernel = np.asarray(layer.kernel)
    answers = inputs @ kernel
    mean = answers.mean(axis=0)
    answers -= mean
    covariance = (answers.T @ answers).astype(np.float64) / len(answers)
    energy, directions = np.linalg.eigh(covariance)
    return Spectrum(directions[:, ::-1].astype(np.float32), np.maximum(energy[::-1], 0.0), mean)


def factorise(
    model: keras.Model, ranks: Mapping[str, int], spectra: Mapping[str, Spectrum]
) -> keras.Model:
    """A copy of a model with some dense layers as two: NAME_factor, of rank units, and NAME.

    Of all factorisations of that rank it is the one whose answers on the spectrum's images are
    nearest in the mean square. Of what a direction's spread is, each of the two has the square
    root: 8-bit integers then lose least between and in them together. Every other layer and weight
    stays as it was.

    Raises:
        ValueError: a layer that there is not or is not dense; a rank that makes nothing smaller.
    """
    for name, rank in ranks.items():
        _check_rank(model, name, rank)

    def two_for_one(layer: keras.Layer, *args, **kwargs):
        if layer.name in ranks:
            factor = keras.layers.Dense(
                ranks[layer.name], use_bias=False, name=f"{layer.name}_factor"
            )
            args = (factor(args[0]), *args[1:])
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(model, call_function=two_for_one)
    for old in model.layers:
        if old.name in ranks:
            first, second, bias = _factors(old, ranks[old.name], spectra[old.name])
            copy.get_layer(f"{old.name}_factor").set_weights([first])
            copy.get_layer(old.name).set_weights([second, bias])
        elif old.weights:
            copy.get_layer(old.name).set_weights(old.get_weights())
    return copy


def compress(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    training: np.ndarray,
    max_drop: float = 0.25,
    energies: Sequence[float] = ENERGIES,
    fine_tune_steps: int = 0,
) -> Compression:
    """Factorise fc1 and fc2 as far as the accuracy on validation images allows.

    The ranks come from the spectra: for each of `energies`, those that keep that share of both
    layers' energy. From the smallest on, each network is tested; the first that loses no more than
    `max_drop` is it, if the next does not either, for one alone may be right by chance.

    Args:
        model: a VGG with head="fc".
        images, labels: [n, size, size, 3] and [n] integers, of the validation set.
        training: [m, size, size, 3], of the training set: the images of the spectra and of fine
            tuning. No layer gets a rank above m.
        max_drop: percentage points of top-1 accuracy.
        energies: shares in (0, 1], ascending.
        fine_tune_steps: teach each network the original's probabilities, for so many batches of 32
            blends of training images; kept where it is better for it.

    Raises:
        ValueError: the model has no dense fc1 and fc2; no rank makes it smaller and keeps the
            accuracy; images or weights that are not finite; an argument out of its range.
    """
    _check(model, images, labels, training, max_drop, energies)
    body, head = _split(model)
    features, taught = (
        np.asarray(body.predict(x, batch_size=_BATCH, verbose=0))  # pyright: ignore[reportArgumentType]
        for x in (images, training)
    )
    between = keras.Model(*(model.get_layer(name).input for name in LAYERS))
    inputs = taught, _answers(between, taught)
    spectra = {
        name: spectrum(model.get_layer(name), given)
        for name, given in zip(LAYERS, inputs, strict=True)
    }

    def measured(network: keras.Model, ranks: Mapping[str, int], tuned: bool = False) -> Point:
        right = float(np.mean(_answers(network, features).argmax(axis=1) == labels))
        return Point(ranks, rest + network.count_params(), right, tuned)

    rest = model.count_params() - head.count_params()
    full = {name: min(head.get_layer(name).kernel.shape) for name in LAYERS}
    original = measured(head, full)
    points: list[Point] = []
    good: tuple[keras.Model, Point] | None = None
    for energy in energies:
        ranks = {name: min(found.rank(energy), len(taught)) for name, found in spectra.items()}
        ranks = {n: r for n, r in ranks.items() if r < _break_even(head.get_layer(n))}
        if not ranks or (points and points[-1].ranks == ranks):
            continue
        small = factorise(head, ranks, spectra)
        point = measured(small, ranks)
        if fine_tune_steps:
            before = small.get_weights()
            _teach(small, head, taught, fine_tune_steps)
            point = _better(small, before, point, measured(small, ranks, tuned=True))
        points.append(point)
        lost = _lost(original, point)
        if lost > max_drop:
            good = None
        elif good is None:
            good = small, point
        else:
            break
    if good is not None:
        small, chosen = good
        whole = factorise(model, chosen.ranks, spectra)
        _copy_layers(small, whole)
        return Compression(whole, chosen, original, tuple(points))
    tried = ", ".join(f"{p.parameters:,} parameters {p.top1:.2%}" for p in points)
    raise ValueError(
        f"no factorisation keeps the accuracy of {original.top1:.2%} within {max_drop:g} percentage"
        f" points: {tried or 'none makes the network smaller'}"
    )


def _better(network: keras.Model, weights: list[np.ndarray], before: Point, tuned: Point) -> Point:
    """Return the better point; give the network the weights from before if that is the better."""
    if tuned.top1 > before.top1:
        return tuned
    network.set_weights(weights)
    return before


def _copy_layers(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the weights of each layer of `source`."""
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


def _factors(
    layer: keras.layers.Dense, rank: int, found: Spectrum
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernels [in, rank] and [rank, units]; bias [units], with the mean of what was cut off."""
    kernel, bias = layer.get_weights()
    directions = found.directions[:, :rank]
    root = (found.energy[:rank] ** 0.25).astype(np.float32)
    root = np.maximum(root, 1e-3 * root[0] or 1.0)
    bias = bias + found.mean - (found.mean @ directions) @ directions.T
    return kernel @ directions / root, root[:, np.newaxis] * directions.T, bias


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """images -> what fc1 is given -> probabilities; the layers are the model's own."""
    middle = model.get_layer(LAYERS[0]).input
    return keras.Model(model.inputs[0], middle), keras.Model(middle, model.outputs[0])


def _answers(network: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Not predict, which compiles every network anew, and says so."""
    starts = range(0, len(inputs), _BATCH)
    batches = [network(inputs[start : start + _BATCH], training=False) for start in starts]
    return np.concatenate([np.asarray(keras.ops.convert_to_numpy(batch)) for batch in batches])


def _teach(network: keras.Model, teacher: keras.Model, features: np.ndarray, steps: int) -> None:
    """The factors alone, by Adam, on the probabilities of the network that they stand for.

    Blends of two images show more of what the network does than the images, which it was trained
    on, do. Without dropout, for the answers to learn are given without, and so that it is
    repeatable.
    """
    dropouts = {layer: layer.rate for layer in network.layers if hasattr(layer, "rate")}
    for layer in dropouts:
        layer.rate = 0.0
    for layer in network.layers:
        layer.trainable = layer.name.removesuffix("_factor") in LAYERS
    # A step of Adam is as large as its rate, whatever the weights: a hundredth of theirs at first.
    sizes = [np.std(layer.get_weights()[0]) for layer in network.layers if layer.trainable_weights]
    rate = keras.optimizers.schedules.CosineDecay(0.01 * float(min(sizes)), steps)
    adam = keras.optimizers.Adam(rate)  # pyright: ignore[reportArgumentType]  # Keras says float
    network.compile(adam, loss="kl_divergence")
    generator = np.random.default_rng(0)
    batch = min(_BATCH, len(features))
    for _ in range(steps):
        one, other = (generator.choice(len(features), batch, replace=False) for _ in range(2))
        share = generator.uniform(size=(batch,) + (1,) * (features.ndim - 1)).astype(np.float32)
        blend = share * features[one] + (1 - share) * features[other]
        network.train_on_batch(blend, _answers(teacher, blend))
    for layer in network.layers:
        layer.trainable = True
    for layer, dropped in dropouts.items():
        layer.rate = dropped


def _lost(original: Point, point: Point) -> float:
    """Percentage points, without float64's last digits."""
    return round(100 * (original.top1 - point.top1), 9)


def _break_even(layer: keras.layers.Dense) -> int:
    """The rank from which on two kernels are no smaller than one."""
    kernel: Any = layer.kernel  # the stub has None, of a layer that is not built
    inputs, units = kernel.shape
    return -(-inputs * units // (inputs + units))


def _check_rank(model: keras.Model, name: str, rank: int) -> None:
    layers = {layer.name: layer for layer in model.layers}
    if not isinstance(layers.get(name), keras.layers.Dense):
        raise ValueError(f"{model.name} has no dense layer {name!r}: compress a VGG with head='fc'")
    if not 1 <= rank < _break_even(layers[name]):
        raise ValueError(
            f"{name} can have a rank from 1 to {_break_even(layers[name]) - 1}, not {rank}: beyond,"
            " two kernels are no smaller than one"
        )


def _check(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    training: np.ndarray,
    max_drop: float,
    energies: Sequence[float],
) -> None:
    for name in LAYERS:
        _check_rank(model, name, 1)
    if not len(images) or not len(training) or np.shape(labels) != (len(images),):
        raise ValueError(
            "compression needs labelled images to choose ranks by, and images of the training set;"
            f" there are {len(images)} with labels {np.shape(labels)}, and {len(training)}"
        )
    require_finite_weights(model)
    require_finite_images(images)
    require_finite_images(training, "the training images hold")
    if not max_drop >= 0:
        raise ValueError(f"max_drop must be 0 or more percentage points, not {max_drop}")
    if (
        not energies
        or list(energies) != sorted(energies)
        or not 0 < energies[0] <= energies[-1] <= 1
    ):
        raise ValueError(f"energies must be ascending shares in (0, 1], not {tuple(energies)}")

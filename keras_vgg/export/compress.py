"""Factorise fc1 and fc2 of a VGG, nine tenths of the weights, into products of thin matrices.

Denton et al. (arXiv:1404.0736) truncate the singular value decomposition of a layer's weights.
Zhang et al. (arXiv:1505.06798) truncate that of the layer's answers on real images, which keeps
what the images use. This module does the second. (Han et al., arXiv:1510.00149, store VGG-16 in
1/49 of the size with pruning and Huffman coding, but no runtime computes with that form.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_vgg.export.answers import answers
from keras_vgg.finite import require_finite_images, require_finite_weights

LAYERS = ("fc1", "fc2")
ENERGIES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)

_BATCH = 32


@dataclass(frozen=True)
class Spectrum:
    """How a layer's answers on real images are distributed over orthogonal directions.

    Attributes:
        directions: [units, units] float32, orthonormal columns, the most important first.
        energy: [units] float64, the variance of the answers along each direction.
        mean: [units] float32, the mean answer, before bias and activation.
    """

    directions: np.ndarray
    energy: np.ndarray
    mean: np.ndarray

    def rank(self, share: float) -> int:
        """Return the least number of directions with this share of the energy."""
        cumulated = np.cumsum(self.energy) / self.energy.sum()
        return min(int(np.searchsorted(cumulated, share)) + 1, len(self.energy))


@dataclass(frozen=True)
class Point:
    """A network that was tried.

    Attributes:
        ranks: layer -> rank.
        parameters: Number of parameters of the whole network.
        top1: Accuracy on the validation images, in [0, 1].
        tuned: Whether the network has the weights after fine-tuning.
    """

    ranks: Mapping[str, int]
    parameters: int
    top1: float
    tuned: bool


@dataclass(frozen=True)
class Compression:
    """The networks that were tried, and the smallest one that keeps the accuracy.

    Attributes:
        model: The compressed network.
        chosen: The point of the compressed network.
        original: The point of the original network, with full ranks.
        points: Every network that was tried, from the smallest.
    """

    model: keras.Model
    chosen: Point
    original: Point
    points: tuple[Point, ...]


def spectrum(layer: keras.layers.Dense, inputs: np.ndarray) -> Spectrum:
    """Return the spectrum of a dense layer's answers to `inputs` [n, in] float32, without bias."""
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
    """Return a copy of a model with some dense layers as two: NAME_factor, of rank units, and NAME.

    No other factorisation of that rank has answers on the spectrum's images that are nearer in the
    mean square. Each of the two layers gets the square root of a direction's standard deviation:
    8-bit integers then lose least in both together. Every other layer and weight stays the same.

    Raises:
        ValueError: a layer does not exist or is not dense; a rank makes nothing smaller.
    """
    for name, rank in ranks.items():
        _check_rank(model, name, rank)

    def called_layer(layer: keras.Layer, *args, **kwargs):
        if layer.name in ranks:
            factor = keras.layers.Dense(
                ranks[layer.name], use_bias=False, name=f"{layer.name}_factor"
            )
            args = (factor(args[0]), *args[1:])
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(model, call_function=called_layer)
    for layer in model.layers:
        if layer.name in ranks:
            first, second, bias = _factors(layer, ranks[layer.name], spectra[layer.name])
            copy.get_layer(f"{layer.name}_factor").set_weights([first])
            copy.get_layer(layer.name).set_weights([second, bias])
        elif layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
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

    The ranks come from the spectra: for each of `energies`, the ranks that keep that share of both
    layers' energy. The networks are tested from the smallest on. The first network that loses at
    most `max_drop` is chosen if the next one does too; one alone may pass by chance. The largest
    network has no next one, and is chosen if it alone passes.

    Args:
        model: A VGG with head="fc".
        images, labels: [n, size, size, 3] and [n] integers, of the validation split.
        training: [m, size, size, 3], of the training split: the images of the spectra and of
            fine-tuning. No layer gets a rank above m.
        max_drop: Percentage points of top-1 accuracy.
        energies: Shares in (0, 1], ascending.
        fine_tune_steps: Teach each network the original's probabilities, for so many batches of 32
            blends of training images. The tuned weights are kept if they are better.

    Raises:
        ValueError: the model has no dense fc1 and fc2; no rank makes the model smaller and keeps
            the accuracy; images or weights that are not finite; an argument out of range.
    """
    _check(model, images, labels, training, max_drop, energies)
    body, head = _split(model)
    features, training_features = (
        np.asarray(body.predict(x, batch_size=_BATCH, verbose=0))  # pyright: ignore[reportArgumentType]
        for x in (images, training)
    )
    spectra = _spectra(model, training_features)
    body_parameters = model.count_params() - head.count_params()

    def measured(network: keras.Model, ranks: Mapping[str, int], tuned: bool = False) -> Point:
        top1 = float(np.mean(answers(network, features).argmax(axis=1) == labels))
        return Point(ranks, body_parameters + network.count_params(), top1, tuned)

    original = measured(head, {name: min(head.get_layer(name).kernel.shape) for name in LAYERS})
    points: list[Point] = []
    passed: tuple[keras.Model, Point] | None = None
    for ranks in _rank_choices(head, spectra, energies, len(training_features)):
        small = factorise(head, ranks, spectra)
        point = measured(small, ranks)
        if fine_tune_steps:
            weights = small.get_weights()
            _teach(small, head, training_features, fine_tune_steps)
            tuned = measured(small, ranks, tuned=True)
            if tuned.top1 > point.top1:
                point = tuned
            else:
                small.set_weights(weights)
        points.append(point)
        if _lost(original, point) > max_drop:
            passed = None
        elif passed is None:
            passed = small, point
        else:
            break
    if passed is not None:
        small, chosen = passed
        compressed = factorise(model, chosen.ranks, spectra)
        _copy_layers(small, compressed)
        return Compression(compressed, chosen, original, tuple(points))
    attempts = ", ".join(f"{p.parameters:,} parameters {p.top1:.2%}" for p in points)
    raise ValueError(
        f"no factorisation keeps the accuracy of {original.top1:.2%} within {max_drop:g} percentage"
        f" points: {attempts or 'none makes the network smaller'}"
    )


def _spectra(model: keras.Model, features: np.ndarray) -> dict[str, Spectrum]:
    """Return the spectra of fc1 and fc2 on the inputs of fc1."""
    fc1_to_fc2 = keras.Model(*(model.get_layer(name).input for name in LAYERS))
    inputs = features, answers(fc1_to_fc2, features)
    return {
        name: spectrum(model.get_layer(name), layer_inputs)
        for name, layer_inputs in zip(LAYERS, inputs, strict=True)
    }


def _rank_choices(
    head: keras.Model, spectra: Mapping[str, Spectrum], energies: Sequence[float], most: int
) -> Iterator[dict[str, int]]:
    """Yield the ranks of each energy that make a layer smaller, no choice twice; at most `most`."""
    last: dict[str, int] = {}
    for energy in energies:
        ranks = {name: min(spectra[name].rank(energy), most) for name in spectra}
        ranks = {n: rank for n, rank in ranks.items() if rank < _break_even(head.get_layer(n))}
        if ranks and ranks != last:
            yield ranks
            last = ranks


def _copy_layers(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the weights of each layer of `source`."""
    for layer in source.layers:
        if layer.weights:
            target.get_layer(layer.name).set_weights(layer.get_weights())


def _factors(
    layer: keras.layers.Dense, rank: int, spectrum: Spectrum
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return kernels [in, rank] and [rank, units], and a bias [units] with the mean of the rest."""
    kernel, bias = layer.get_weights()
    directions = spectrum.directions[:, :rank]
    root = (spectrum.energy[:rank] ** 0.25).astype(np.float32)
    root = np.maximum(root, 1e-3 * root[0] or 1.0)
    bias = bias + spectrum.mean - (spectrum.mean @ directions) @ directions.T
    return kernel @ directions / root, root[:, np.newaxis] * directions.T, bias


def _split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Split before fc1: images -> features, features -> probabilities. No layer is copied."""
    features = model.get_layer(LAYERS[0]).input
    return keras.Model(model.inputs[0], features), keras.Model(features, model.outputs[0])


def _teach(network: keras.Model, teacher: keras.Model, features: np.ndarray, steps: int) -> None:
    """Train the factors alone, with Adam, on the teacher's probabilities.

    Blends of two images show more of the teacher than the images on which the teacher was trained.
    Dropout is off, because the teacher answers without dropout, and so that a run can be repeated.
    """
    dropouts = {layer: layer.rate for layer in network.layers if hasattr(layer, "rate")}
    for layer in dropouts:
        layer.rate = 0.0
    for layer in network.layers:
        layer.trainable = layer.name.removesuffix("_factor") in LAYERS
    # Adam's step is as large as the learning rate, whatever the weights: it begins at a hundredth
    # of their standard deviation.
    sizes = [np.std(layer.get_weights()[0]) for layer in network.layers if layer.trainable_weights]
    rate = keras.optimizers.schedules.CosineDecay(0.01 * float(min(sizes)), steps)
    adam = keras.optimizers.Adam(rate)  # pyright: ignore[reportArgumentType]  # Keras says float
    network.compile(adam, loss="kl_divergence")
    generator = np.random.default_rng(0)
    batch = min(_BATCH, len(features))
    for _ in range(steps):
        first, second = (generator.choice(len(features), batch, replace=False) for _ in range(2))
        share = generator.uniform(size=(batch,) + (1,) * (features.ndim - 1)).astype(np.float32)
        blend = share * features[first] + (1 - share) * features[second]
        network.train_on_batch(blend, answers(teacher, blend))
    for layer in network.layers:
        layer.trainable = True
    for layer, dropout_rate in dropouts.items():
        layer.rate = dropout_rate


def _lost(original: Point, point: Point) -> float:
    """Return the lost percentage points, rounded to drop float64's last digits."""
    return round(100 * (original.top1 - point.top1), 9)


def _break_even(layer: keras.layers.Dense) -> int:
    """Return the least rank at which two kernels are no smaller than one."""
    kernel: Any = layer.kernel  # The annotation allows None, for a layer that is not built.
    inputs, units = kernel.shape
    return -(-inputs * units // (inputs + units))


def _check_rank(model: keras.Model, name: str, rank: int) -> None:
    layers = {layer.name: layer for layer in model.layers}
    if not isinstance(layers.get(name), keras.layers.Dense):
        raise ValueError(f"{model.name} has no dense layer {name!r}: compress a VGG with head='fc'")
    if not 1 <= rank < _break_even(layers[name]):
        raise ValueError(
            f"{name} can have a rank from 1 to {_break_even(layers[name]) - 1}, not {rank}: with a"
            " higher rank, two kernels are no smaller than one"
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

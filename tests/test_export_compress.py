"""Thin factors answer like the layers they stand for, and ranks are chosen by accuracy."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vgg.export import compress as module
from keras_vgg.export.compress import LAYERS, compress, factorise, spectrum
from keras_vgg.models import vgg

GENERATOR = np.random.default_rng(0)
# Classes that an image's brightness tells apart, so that a network can be right or wrong.
LABELS = np.arange(60) % 5
IMAGES = (20 + 45 * LABELS[:, None, None, None] + GENERATOR.uniform(0, 20, (60, 32, 32, 3))).astype(
    np.float32
)
TEST, TRAINING = (IMAGES[:30], LABELS[:30]), IMAGES[30:]


def network(**options: object) -> keras.Model:
    keras.utils.set_random_seed(1)
    options = {"hidden_units": 48, "batch_norm": True} | options
    model = vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=5,
        width_multiplier=1 / 8,
        kernel_regularizer=keras.regularizers.L2(1e-4),
        include_preprocessing=True,
        **options,
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            layer.set_weights([w + GENERATOR.normal(0, 0.1, w.shape) for w in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """Its classifier is fitted to the features of its random convolutions, by least squares."""
    model = network()
    last = model.get_layer("predictions")
    hidden = keras.Model(model.inputs[0], last.input).predict(IMAGES, verbose=0)
    centred = hidden - hidden.mean(axis=0)
    kernel = np.linalg.lstsq(centred, 20 * np.eye(5)[LABELS], rcond=1e-4)[0].astype(np.float32)
    last.set_weights([kernel, -hidden.mean(axis=0) @ kernel])
    found = model.predict(TEST[0], verbose=0).argmax(axis=1)
    assert np.mean(found == TEST[1]) > 0.9
    return model


def inputs_of(model: keras.Model, name: str, images: np.ndarray) -> np.ndarray:
    return keras.Model(model.inputs[0], model.get_layer(name).input).predict(images, verbose=0)


def spectra_of(model: keras.Model, images: np.ndarray = TRAINING) -> dict:
    return {
        name: spectrum(model.get_layer(name), inputs_of(model, name, images)) for name in LAYERS
    }


def test_with_all_that_the_images_use_the_answers_are_the_same(model: keras.Model) -> None:
    ranks = {"fc1": 27, "fc2": 23}  # the highest that make it smaller; 30 images use at most 29
    few = TRAINING[:12]
    before = [w.copy() for w in model.get_weights()]

    small = factorise(model, ranks, spectra_of(model, few))

    expected = model.predict(few, verbose=0)
    np.testing.assert_allclose(small.predict(few, verbose=0), expected, atol=1e-4)
    assert expected.std(axis=0).max() > 0.1
    assert small.count_params() < model.count_params()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert small.get_layer("fc1").kernel_regularizer.l2 == pytest.approx(1e-4)
    assert small.get_layer("fc1_factor").kernel.shape == (64, 27)
    assert not small.get_layer("fc1_factor").use_bias


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_error_is_the_tail_of_the_spectrum_and_no_other_rank_does_better(
    rank: int, model: keras.Model
) -> None:
    layer = model.get_layer("fc1")
    inputs = inputs_of(model, "fc1", TRAINING)
    found = spectrum(layer, inputs)
    kernel, bias = layer.get_weights()
    first, second, new_bias = module._factors(layer, rank, found)

    def error(answers: np.ndarray) -> float:
        return float(np.square(answers - (inputs @ kernel + bias)).mean(axis=0).sum())

    ours = error(inputs @ first @ second + new_bias)
    assert ours == pytest.approx(found.energy[rank:].sum(), rel=1e-3)
    # The truncated decomposition of the weights, with the mean made good as well.
    u, s, v = np.linalg.svd(kernel)
    weights = (u[:, :rank] * s[:rank]) @ v[:rank]
    cut = inputs.mean(axis=0) @ (kernel - weights)
    assert ours < error(inputs @ weights + bias + cut)
    # The two share the spread of each direction.
    between = (inputs @ first).std(axis=0)
    np.testing.assert_allclose(between, np.linalg.norm(second, axis=1), rtol=1e-2)


def test_the_rank_is_the_least_with_the_energy() -> None:
    found = module.Spectrum(np.eye(4), np.array([6.0, 3.0, 1.0, 0.0]), np.zeros(4))
    assert [found.rank(share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]


def test_the_smallest_that_keeps_the_accuracy_is_chosen(model: keras.Model) -> None:
    found = compress(
        model, *TEST, training=TRAINING, max_drop=5, energies=(0.3, 0.6, 0.9, 0.99, 0.9999)
    )

    def top1(network: keras.Model) -> float:
        return float(np.mean(network.predict(TEST[0], verbose=0).argmax(axis=1) == TEST[1]))

    assert found.original.top1 == top1(model)
    assert found.original.parameters == model.count_params()
    place = found.points.index(found.chosen)
    assert place > 0  # a smaller one was refused
    assert found.original.top1 - found.points[place - 1].top1 > 0.05
    for next_one in found.points[place + 1 :]:  # as good: it was not by chance
        assert found.original.top1 - next_one.top1 <= 0.05
    sizes = [point.parameters for point in found.points]
    assert sizes == sorted(sizes)
    assert found.chosen.top1 == top1(found.model) >= found.original.top1 - 0.05
    assert found.model.count_params() == found.chosen.parameters < model.count_params()
    for name, rank in found.chosen.ranks.items():
        assert found.model.get_layer(f"{name}_factor").units == rank


@pytest.mark.slow
def test_one_that_is_right_by_chance_is_passed_over(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops = iter([0, 9, 0])
    monkeypatch.setattr(module, "_lost", lambda original, point: next(drops))
    energies = [*np.linspace(0.3, 0.999, 20)]  # some have the same ranks
    found = compress(model, *TEST, training=TRAINING, max_drop=5, energies=energies)
    assert len(found.points) == 3
    assert found.chosen is found.points[2]


@pytest.mark.slow
def test_fine_tuning_gets_by_with_less(model: keras.Model) -> None:
    options = {"training": TRAINING, "energies": (0.3, 0.6, 0.9, 0.9999)}
    plain = compress(model, *TEST, max_drop=5, **options)
    tuned = compress(model, *TEST, max_drop=5, fine_tune_steps=150, **options)
    assert tuned.points[0].tuned
    lost, reached = (module._lost(plain.original, p.points[0]) for p in (plain, tuned))
    assert reached < lost
    found = compress(model, *TEST, max_drop=reached + 0.1, fine_tune_steps=150, **options)

    assert found.chosen.tuned
    assert found.chosen.parameters < plain.chosen.parameters
    answers = found.model.predict(TEST[0], verbose=0).argmax(axis=1)
    assert np.mean(answers == TEST[1]) == found.chosen.top1  # it has the tuned weights
    assert all(layer.trainable for layer in found.model.layers)
    assert found.model.get_layer("fc1_dropout").rate == 0.5


@pytest.mark.slow
def test_a_saved_one_is_the_same(model: keras.Model, tmp_path: Path) -> None:
    small = factorise(model, {"fc2": 5}, spectra_of(model))
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(
        loaded.predict(TEST[0], verbose=0), small.predict(TEST[0], verbose=0)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "gap"}, "no dense layer 'fc1': compress a VGG with head='fc'"),
        ({"head": "conv"}, "no dense layer 'fc1'"),
    ],
)
def test_other_heads_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress(network(**options), *TEST, training=TRAINING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:3]}, r"there are 30 with labels \(3,\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "there are 0 with labels"),
        ({"training": IMAGES[:0]}, r"there are 30 with labels \(30,\), and 0"),
        ({"max_drop": -1}, "max_drop must be 0 or more"),
        ({"energies": ()}, "ascending shares"),
        ({"energies": (0.9, 0.5)}, "ascending shares"),
        ({"energies": (0.5, 1.5)}, "ascending shares"),
        ({"energies": (0.1,), "max_drop": 0}, r"no factorisation keeps the accuracy of .* param"),
    ],
)
def test_wrong_arguments_are_refused(change: dict, message: str, model: keras.Model) -> None:
    arguments = {"images": TEST[0], "labels": TEST[1], "training": TRAINING} | change
    with pytest.raises(ValueError, match=message):
        compress(model, **arguments)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("rank", [0, 28, pytest.param(64, marks=pytest.mark.slow)])
def test_a_rank_that_makes_nothing_smaller_is_refused(rank: int, model: keras.Model) -> None:
    with pytest.raises(ValueError, match=f"a rank from 1 to 27, not {rank}"):
        factorise(model, {"fc1": rank}, spectra_of(model))

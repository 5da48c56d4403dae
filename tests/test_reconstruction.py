"""keras_vgg.export.reconstruction: what is left of a pruned network computes what it did before."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_vgg import vgg
from keras_vgg.export import prune, reconstruction
from keras_vgg.export.reconstruction import fitted_layers, least_squares, reconstruct
from tests.dense_networks import answers, values
from tests.test_prune import CASES, images, network


def halves(model: keras.Model) -> dict[str, np.ndarray]:
    """Every other filter of each convolution from the second on."""
    return {c.name: np.arange(0, c.filters, 2) for c in prune.convolutions(model)[1:]}


def with_equal_pairs(model: keras.Model) -> keras.Model:
    """Let filters 0 and 1, 2 and 3, ... be the same, from the second convolution on."""
    norms = prune._batch_norms(model)
    for layer in prune.convolutions(model)[1:]:
        for part in filter(None, (layer, norms.get(layer.name))):
            weights = part.get_weights()
            for array in weights:
                array[..., 1::2] = array[..., ::2]
            part.set_weights(weights)
    return model


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("case", ["fc", *(case for case in CASES if case != "fc")])
def test_a_filter_that_another_equals_leaves_its_part_to_it(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "_RIDGE", 1e-6)
    model = with_equal_pairs(network(**CASES[case]))
    before, kept = model.get_weights(), halves(model)
    small = prune.remove_filters(model, kept)
    some = images(model, 64)
    own, removed = answers(model, some), answers(small, some)
    passed: list[str] = []
    reconstruct(model, small, kept, some, passed.append)
    lost = np.abs(removed - own).max()
    assert lost > 0.02
    assert np.abs(answers(small, some) - own).max() < lost / 50
    assert passed == [layer.name for layer in fitted_layers(small)]
    for array, again in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, again)


def test_answers_to_new_images_come_closer() -> None:
    model = network(**CASES["fc"])
    kept = halves(model)
    small = prune.remove_filters(model, kept)
    new = images(model, 300)[200:]
    own, removed = answers(model, new), answers(small, new)
    reconstruct(model, small, kept, images(model, 200))
    fitted = answers(small, new)
    assert prune.divergence(own, fitted) < 0.5 * prune.divergence(own, removed)


@pytest.mark.slow
def test_layers_before_the_first_missing_filter_stay_and_a_call_repeats() -> None:
    model = network(**CASES["fc"])
    kept = {"block3_conv1": np.arange(0, 16, 2)}
    fitted = []
    for _ in range(2):
        small = prune.remove_filters(model, kept)
        sliced = {layer.name: layer.get_weights() for layer in fitted_layers(small)}
        reconstruct(model, small, kept, images(model, 40))
        fitted.append(small.get_weights())
        names = [layer.name for layer in fitted_layers(small)]
        for name in names:
            changed = any(
                (one != other).any()
                for one, other in zip(
                    sliced[name], small.get_layer(name).get_weights(), strict=True
                )
            )
            assert changed == (names.index(name) > names.index("block3_conv1")), name
    for array, again in zip(*fitted, strict=True):
        np.testing.assert_array_equal(array, again)


@pytest.mark.parametrize("rows", [50, 12])
def test_least_squares_are_those_of_ridge_regression(rows: int) -> None:
    from sklearn.linear_model import Ridge

    generator = np.random.default_rng(0)
    inputs = generator.normal(3, 2, (rows, 20)).astype(np.float32)
    wanted = generator.normal(1, 1, (rows, 4)).astype(np.float32)
    parts = iter([(inputs[:7], wanted[:7]), (inputs[7:], wanted[7:])])
    weights, biases = least_squares(parts, rows, 20)
    penalty = reconstruction._RIDGE * rows * inputs.var(axis=0).sum() / 20
    expected = Ridge(alpha=penalty).fit(inputs.astype(np.float64), wanted)
    np.testing.assert_allclose(weights, np.transpose(expected.coef_), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(biases, expected.intercept_, rtol=1e-3, atol=1e-3)


def test_constant_inputs_get_no_weights() -> None:
    wanted = np.array([[1.0], [3.0]], np.float32)
    for features in (1, 5):
        parts = iter([(np.full((2, features), 4, np.float32), wanted)])
        weights, biases = least_squares(parts, 2, features)
        np.testing.assert_array_equal(weights, np.zeros((features, 1)))
        np.testing.assert_allclose(biases, [2.0])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 1, "padding": "same"},
        {"kernel_size": (2, 4), "padding": "same"},
        {"kernel_size": 5, "padding": "valid"},
        {"kernel_size": 3, "padding": "same", "dilation_rate": 2},
    ],
)
def test_a_filter_sees_what_keras_multiplies_it_with(options: dict[str, Any]) -> None:
    layer = keras.layers.Conv2D(6, **options)
    inputs = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    outputs = values(layer(inputs))
    at = np.divmod(np.tile(np.arange(outputs[0, :, :, 0].size), (2, 1)), outputs.shape[2])
    seen = reconstruction._at_places(layer, inputs, at)
    kernel = values(layer.kernel).reshape(-1, 6)
    np.testing.assert_allclose(seen @ kernel, outputs.reshape(-1, 6), atol=1e-5)


def test_images_of_one_size_are_needed() -> None:
    model = network(**CASES["fc"])
    small = prune.remove_filters(model, halves(model))
    with pytest.raises(ValueError, match="the reconstruction needs images; there are 0"):
        reconstruct(model, small, halves(model), images(model, 0))
    broken = np.full((1, 32, 32, 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="finite"):
        reconstruct(model, small, halves(model), broken)
    model = vgg("A", weights=None, width_multiplier=1 / 16, include_top=False)
    with pytest.raises(ValueError, match=r"needs a fixed image size, not \(None, None, None, 3\)"):
        reconstruct(model, model, {}, np.zeros((1, 32, 32, 3), np.float32))

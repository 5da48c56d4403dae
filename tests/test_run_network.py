"""A run's network in inference: the same answers with fewer operations."""

from typing import Any

import keras
import numpy as np
import pytest

from keras_vgg import data, evaluation
from keras_vgg.export.fold import in_float32
from keras_vgg.fit import build_model
from keras_vgg.recipe import Recipe
from keras_vgg.runs.network import lean

CLASSES = 3


def network(policy: str, batch_norm: bool = True, several_labels: bool = False) -> keras.Model:
    recipe = Recipe(width_multiplier=1 / 16, hidden_units=32, batch_norm=batch_norm)
    statistics = data.ChannelStatistics(
        np.full(3, 120.0), np.full(3, 60.0), np.ones(3), np.eye(3), 1
    )
    keras.utils.set_random_seed(0)
    return build_model(recipe, CLASSES, statistics, policy, several_labels=several_labels)


def answers(model: keras.Model, protocol: Any) -> np.ndarray:
    shape = {"center": (3, 32, 32, 3), "dense": (2, 64, 40, 3), "multi-crop": (2, 4, 32, 32, 3)}
    images = np.random.default_rng(0).uniform(0, 255, shape[protocol]).astype("float32")
    model.jit_compile = False
    return np.asarray(evaluation.runner(model, evaluation.Protocol(protocol), CLASSES)(images))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("several_labels", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("protocol", evaluation.PROTOCOLS)
def test_answers_without_batch_norm_are_the_same_bit_by_bit(protocol, several_labels) -> None:
    model = network("mixed_bfloat16", batch_norm=False, several_labels=several_labels)
    expected = answers(model, protocol)
    np.testing.assert_array_equal(answers(lean(model), protocol), expected)
    assert np.ptp(expected) > 0.01  # The network tells the classes apart.


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("several_labels", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("protocol", ["dense", "center", "multi-crop"])
def test_answers_with_batch_norm_are_as_near_to_those_in_float32(protocol, several_labels) -> None:
    model = network("mixed_bfloat16", several_labels=several_labels)
    small = lean(model)
    assert not [layer for layer in small.layers if layer.name.endswith("_bn")]
    exact = answers(in_float32(model), protocol)
    errors = [np.abs(answers(one, protocol) - exact).mean() for one in (model, small)]
    assert errors[1] < 2 * errors[0]


def test_only_weights_that_are_rounded_in_each_call_change_their_type() -> None:
    model = network("mixed_bfloat16")
    rounded = lean(model)
    types = {weight.path: weight.dtype for weight in rounded.weights}
    for path, type_ in types.items():
        assert type_ == ("float32" if path.startswith("predictions/") else "bfloat16"), path
    assert {weight.dtype for weight in model.weights} == {"float32"}  # The model is as it was.


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16"])
def test_a_model_without_such_weights_is_returned_itself(policy: str) -> None:
    model = network(policy)
    assert lean(model) is model

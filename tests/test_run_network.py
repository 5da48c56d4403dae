"""A run's network in inference: the same answers, bit by bit, with fewer operations."""

import keras
import numpy as np
import pytest

from keras_vgg import data, evaluation
from keras_vgg.fit import build_model
from keras_vgg.recipe import Recipe
from keras_vgg.runs.network import rounded_once

CLASSES = 3


def network(policy: str, batch_norm: bool = True, several_labels: bool = False) -> keras.Model:
    recipe = Recipe(width_multiplier=1 / 16, hidden_units=32, batch_norm=batch_norm)
    statistics = data.ChannelStatistics(
        np.full(3, 120.0), np.full(3, 60.0), np.ones(3), np.eye(3), 1
    )
    keras.utils.set_random_seed(0)
    return build_model(recipe, CLASSES, statistics, policy, several_labels=several_labels)


@pytest.mark.parametrize(
    ("several_labels", "batch_norm"),
    [
        (False, False),
        (True, True),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("protocol", evaluation.PROTOCOLS)
def test_answers_are_the_same_bit_by_bit(protocol, several_labels, batch_norm) -> None:
    model = network("mixed_bfloat16", batch_norm, several_labels)
    rounded = rounded_once(model)
    shape = {"center": (3, 32, 32, 3), "dense": (2, 64, 40, 3), "multi-crop": (2, 4, 32, 32, 3)}
    images = np.random.default_rng(0).uniform(0, 255, shape[protocol]).astype("float32")
    answers = []
    for one in (model, rounded):
        one.jit_compile = False
        answers.append(evaluation.runner(one, evaluation.Protocol(protocol), CLASSES)(images))
    np.testing.assert_array_equal(*answers)
    assert np.ptp(answers[0]) > 0.01  # The network tells the classes apart.


def test_only_weights_that_are_rounded_in_each_call_change_their_type() -> None:
    model = network("mixed_bfloat16")
    rounded = rounded_once(model)
    types = {weight.path: weight.dtype for weight in rounded.weights}
    for path, type_ in types.items():
        stays = "_bn/" in path or path.startswith("predictions/")
        assert type_ == ("float32" if stays else "bfloat16"), path
    assert {weight.dtype for weight in model.weights} == {"float32"}  # The model is as it was.


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16"])
def test_a_model_without_such_weights_is_returned_itself(policy: str) -> None:
    model = network(policy)
    assert rounded_once(model) is model

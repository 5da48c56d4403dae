"""keras_vgg.fit.single_pass: Keras' steps and losses, in fewer operations."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import hardware
from keras_vgg.fit import compile_model, single_pass
from keras_vgg.fit.optimizer import SGD
from keras_vgg.recipe import Recipe
from tests.test_optimizer import small_network


def compiled(optimizer: keras.optimizers.Optimizer, variable: keras.Variable, jit: bool) -> Any:
    return tf.function(lambda gradient: optimizer.apply([gradient], [variable]), jit_compile=jit)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_steps_are_those_of_keras(nesterov: bool, jit: bool) -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=(7, 5)).astype(np.float32)
    gradients = random.normal(size=(20, 7, 5)).astype(np.float32)
    options: Any = {"momentum": 0.9, "nesterov": nesterov}
    ends = []
    for optimizer in (keras.optimizers.SGD(0.1, **options), SGD(0.1, **options)):
        variable = keras.Variable(first)
        optimizer.build([variable])

        step = compiled(optimizer, variable, jit)
        names = {op.type for op in step.get_concrete_function(gradients[0]).graph.get_operations()}
        assert ("ResourceApplyKerasMomentum" in names) == isinstance(optimizer, SGD)
        for gradient in gradients:
            step(gradient)
        ends.append((np.asarray(variable), np.asarray(optimizer.momentums[0])))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_without_momentum_keras_takes_the_step() -> None:
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer = SGD(0.5, momentum=0.0)
    optimizer.apply([np.ones(3, np.float32)], [variable])
    np.testing.assert_array_equal(variable, [0.5] * 3)


OPTIMIZERS = {
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "no momentum": {"momentum": 0.0},
    "clipped": {"momentum": 0.9, "global_clipnorm": 1.0},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_and_its_gradient_are_those_of_keras(name: str) -> None:
    recipe = Recipe(weight_decay=0.01)
    model = small_network(recipe)
    images = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype(np.float32)

    def decay() -> tuple[float, list[np.ndarray]]:
        with tf.GradientTape() as tape:
            model(images)
            total: Any = sum(model.losses)
        kernels = [v.value for v in model.trainable_variables if v.name == "kernel"]
        gradients: Any = tape.gradient(total, kernels)
        return float(total), [gradient.numpy() for gradient in gradients]

    loss, gradients = decay()
    single_pass.shorten_weight_decay(model, SGD(0.1, **OPTIMIZERS[name]))
    assert {type(v.regularizer) for v in model.trainable_variables if v.name == "kernel"} == {
        single_pass.L2
    }
    other_loss, other_gradients = decay()
    assert loss > 0
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for one, other in zip(gradients, other_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_decay_in_the_step_is_that_of_keras(jit: bool) -> None:
    """With a rate for each block, and a batch in two parts."""
    recipe = Recipe(weight_decay=0.1, learning_rate=0.05)
    random = np.random.default_rng(2)
    images = random.normal(size=(12, 6, 6, 3)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)[random.integers(3, size=12)]
    options: Any = {"momentum": 0.9, "layer_decay": 0.5, "gradient_accumulation_steps": 2}
    first = small_network(recipe).get_weights()
    losses, ends = [], []
    for shortened in (False, True):
        model, optimizer = small_network(recipe), SGD(0.05, **options)
        model.set_weights(first)
        if shortened:
            single_pass.shorten_weight_decay(model, optimizer)
            assert any(getattr(v.regularizer, "is_in_step", False) for v in model.weights)
        model.compile(optimizer, "categorical_crossentropy", jit_compile=jit)
        history = model.fit(images, targets, batch_size=2, epochs=4, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
        ends.append(model.get_weights())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_compiled_model_is_saved_with_keras_own() -> None:
    recipe = Recipe(weight_decay=0.01)
    model = small_network(recipe)
    compile_model(model, recipe, hardware.Engine(("cpu:0",), "float32", False))
    layer = model.get_layer("fc1")
    assert type(layer.kernel.regularizer) is single_pass.L2
    config = layer.get_config()["kernel_regularizer"]
    assert (config["module"], config["class_name"]) == ("keras.regularizers", "L2")

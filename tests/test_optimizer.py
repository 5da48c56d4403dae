"""keras_vgg.fit.optimizer: PyTorch's steps, decoupled decay, Muon for kernels, weight averages."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import hardware
from keras_vgg.fit import compile_model, fit, preparation
from keras_vgg.fit.averages import Averages
from keras_vgg.fit.optimizer import SGD, AdamW, Layerwise, Muon, averaged_weights, optimizer_for
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from tests import test_fit
from tests.test_survive import assert_same

pytestmark = pytest.mark.usefixtures("blank_plots")

TINY = test_fit.TINY.replace(batch_norm=True, dropout=0.0, rgb_shift=0.0)
ADAMW = TINY.replace(optimizer="adamw", learning_rate=0.002, weight_decay=0.05)
MUON = TINY.replace(optimizer="muon", learning_rate=0.002, weight_decay=0.05, nesterov=True)
MOMENTUM = TINY.replace(learning_rate=0.01)
NESTEROV = MOMENTUM.replace(nesterov=True)


def small_network(recipe: Recipe) -> keras.Model:
    """A network with a kernel of each kind, batch norm, and the recipe's weight decay."""
    decay = keras.regularizers.L2(recipe.weight_decay / 2) if recipe.optimizer == "sgd" else None
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, kernel_regularizer=decay, name="block5_conv1")(inputs)
    x = keras.layers.BatchNormalization(name="block5_conv1_bn")(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    x = keras.layers.Dense(5, activation="tanh", kernel_regularizer=decay, name="fc1")(x)
    x = keras.layers.Dense(3, activation="softmax", kernel_regularizer=decay, name="predictions")(x)
    return keras.Model(inputs, x)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("steps", [40, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "recipe", [ADAMW, MOMENTUM, NESTEROV], ids=["adamw", "momentum", "nesterov"]
)
def test_steps_are_pytorchs(recipe: Recipe, steps: int) -> None:
    """Kernels decay; biases, gamma and beta do not. Both take the gradients of the loss alone."""
    torch = pytest.importorskip("torch")
    keras.utils.set_random_seed(0)
    model = small_network(recipe)
    variables, optimizer = model.trainable_variables, optimizer_for(recipe)
    optimizer.build(variables)
    values = [torch.nn.Parameter(torch.tensor(v.numpy())) for v in variables]
    kernels = [p for p, v in zip(values, variables, strict=True) if v.name == "kernel"]
    others = [p for p, v in zip(values, variables, strict=True) if v.name != "kernel"]
    assert len(kernels) == 3
    groups: Any = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        theirs = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    else:
        options = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        theirs = torch.optim.SGD(groups, lr=recipe.learning_rate, **options)
    rng = np.random.default_rng(0)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape(persistent=True) as tape:
            loss = keras.losses.CategoricalCrossentropy()(labels, model(images, training=True))
            total = loss + sum(model.losses)
        watched = [v.value for v in variables]
        optimizer.apply(tape.gradient(total, watched), variables)
        return tape.gradient(loss, watched)

    for _ in range(steps):
        images = rng.normal(size=(8, 6, 6, 3)).astype("float32")
        gradients = step(images, np.eye(3, dtype="float32")[rng.integers(3, size=8)])
        for parameter, gradient in zip(values, gradients, strict=True):
            parameter.grad = torch.tensor(gradient.numpy())
        theirs.step()
    for variable, value in zip(variables, values, strict=True):
        found, expected = variable.numpy(), value.detach().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=variable.path)


def step_with(recipe: Recipe, gradient: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return each variable of the network before and after one step."""
    model = small_network(recipe)
    optimizer = optimizer_for(recipe)
    optimizer.build(model.trainable_variables)
    before = [v.numpy() for v in model.trainable_variables]
    gradients = [keras.ops.full(v.shape, gradient) for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    return {
        v.path: (old, v.numpy()) for v, old in zip(model.trainable_variables, before, strict=True)
    }


@pytest.mark.parametrize("recipe", [ADAMW, MUON], ids=["adamw", "muon"])
def test_decoupled_decay_is_the_learning_rate_of_the_block_times_the_kernel(recipe: Recipe) -> None:
    recipe = recipe.replace(layer_decay=0.5, weight_decay=0.3)
    for path, (before, after) in step_with(recipe, gradient=0.0).items():
        rate = recipe.learning_rate * (0.5 if path.startswith("block5") else 1)
        decay = 0.3 * rate if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(after, (1 - decay) * before, rtol=1e-6, err_msg=path)


def test_the_gradient_is_cut_to_its_norm_over_all_weights() -> None:
    plain = TINY.replace(momentum=0.0, weight_decay=0.0, learning_rate=1.0, clip_norm=0.25)
    steps = [after - before for before, after in step_with(plain, 3.0).values()]
    assert np.sqrt(sum((step**2).sum() for step in steps)) == pytest.approx(0.25, rel=1e-4)
    before, after = step_with(plain.replace(clip_norm=1e6), 3.0)["fc1/bias"]
    np.testing.assert_allclose(after - before, -3.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_a_batch_in_parts_is_cut_once(optimizer: str) -> None:
    """Parts that cancel each other would be cut to another mean."""
    recipe = {"sgd": NESTEROV, "adamw": ADAMW, "muon": MUON}[optimizer]
    recipe = recipe.replace(batch_size=32, clip_norm=0.25, weight_decay=0.0)
    rng = np.random.default_rng(0)
    model = small_network(recipe)
    first = model.get_weights()
    shapes = [v.shape for v in model.trainable_variables]
    batches = [[rng.normal(size=(4, *shape)).astype("float32") for shape in shapes] for _ in "abc"]
    results = []
    for parts in (1, 4):
        model.set_weights(first)
        step = optimizer_for(recipe.replace(gradient_accumulation=parts))
        step.build(model.trainable_variables)
        for batch in batches:
            for part in range(parts):
                gradients = [g[part] if parts > 1 else g.mean(axis=0) for g in batch]
                step.apply([*map(tf.constant, gradients)], model.trainable_variables)
        results.append(model.get_weights())
    for whole, divided in zip(*results, strict=True):
        np.testing.assert_allclose(divided, whole, rtol=1e-4, atol=1e-6)
    assert not np.array_equal(results[0][0], first[0])


def test_muon_is_for_kernels_but_the_last_and_its_steps_are_orthogonal() -> None:
    model = small_network(MUON)
    optimizer = optimizer_for(MUON.replace(weight_decay=0.0, layer_decay=0.5))
    optimizer.build(model.trainable_variables)
    assert isinstance(optimizer, Muon)
    pairs = zip(model.trainable_variables, optimizer.adam_velocities, strict=True)
    assert [v.path for v, adam in pairs if adam is None] == ["block5_conv1/kernel", "fc1/kernel"]
    before = [v.numpy() for v in model.trainable_variables]
    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables]
    optimizer.apply([*map(tf.constant, gradients)], model.trainable_variables)
    steps = {
        v.path: (v.numpy() - old) / MUON.learning_rate
        for v, old in zip(model.trainable_variables, before, strict=True)
    }
    for path, factor in (("block5_conv1/kernel", 0.5), ("fc1/kernel", 1.0)):
        matrix = steps[path].reshape(-1, steps[path].shape[-1])
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * factor * max(matrix.shape) ** 0.5)
        assert 0.6 < values.min() <= values.max() < 1.3, path
    np.testing.assert_allclose(np.abs(steps["predictions/kernel"]), 1.0, rtol=1e-3)  # Adam's first


@pytest.mark.parametrize("optimizer", [SGD, AdamW, Muon])
def test_the_configuration_holds_every_choice(optimizer: type[Layerwise]) -> None:
    options = {"layer_decay": 0.5, "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.9}
    original = optimizer(0.25, global_clipnorm=1.0, **options)
    config = original.get_config()
    assert config.items() >= (options | {"global_clipnorm": 1.0}).items()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(original))
    assert type(again) is optimizer
    assert again.get_config() == config


def test_without_new_fields_nothing_is_averaged_cut_or_decoupled() -> None:
    optimizer = optimizer_for(Recipe())
    assert type(optimizer) is SGD
    config = optimizer.get_config()
    plain = keras.optimizers.SGD(0.05, momentum=0.9, name=config["name"]).get_config()
    assert config == plain | {"layer_decay": 1.0, "weight_decay": 0.0}
    optimizer.build([keras.Variable([1.0])])
    assert len(optimizer.variables) == 3  # iteration, learning rate, momentum


# --- averages of the weights -----------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 4])
def test_the_average_begins_fast_and_ignores_parts_of_a_batch(parts: int) -> None:
    recipe = Recipe(ema_momentum=0.4, gradient_accumulation=parts, momentum=0.0, learning_rate=1.0)
    weight = keras.Variable([0.0], name="kernel")
    optimizer = optimizer_for(recipe)
    optimizer.build([weight])
    for _ in range(12 * parts):
        optimizer.apply([keras.ops.convert_to_tensor([-1.0])], [weight])
    expected = 1.0
    for step in range(1, 12):
        momentum = min(0.4, (1 + step) / (10 + step))
        expected = momentum * expected + (1 - momentum) * (step + 1)
    assert weight.numpy() == [12.0]
    ((_, average),) = optimizer.averaged()
    np.testing.assert_allclose(average.numpy(), [expected], rtol=1e-6)


def test_a_validation_has_the_averages_and_training_goes_on_bit_for_bit() -> None:
    recipe = NESTEROV.replace(ema_momentum=0.5)
    model = small_network(recipe)
    compile_model(model, recipe, hardware.Engine(("cpu:0",), "float32", False))
    rng = np.random.default_rng(0)
    batches = [
        (rng.normal(size=(4, 6, 6, 3)).astype("float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]])
        for _ in range(3)
    ]
    for images, labels in batches:
        model.train_on_batch(images, labels)
    before = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    averaged = [(v, a.numpy()) for v, a in averaged_weights(model)]
    averages = Averages(lambda epoch: batches)
    averages.enter(model, 0, 10**6)  # batch norm has settled, for other weights
    for variable, average in averaged:
        np.testing.assert_array_equal(variable.numpy(), average)
    moving = model.get_layer("block5_conv1_bn").moving_variance
    place = [v is moving for v in model.variables].index(True)
    assert not np.array_equal(moving.numpy(), before[place])
    model.optimizer.finalize_variable_values(model.trainable_variables)
    averages.leave()
    after = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    for now, was in zip(after, before, strict=True):
        np.testing.assert_array_equal(now, was)


def test_the_averages_are_found_behind_a_scaled_loss() -> None:
    weight = keras.Variable([1.0])
    inner = SGD(0.1, use_ema=True, ema_momentum=0.9)
    scaled = keras.optimizers.LossScaleOptimizer(inner)
    scaled.build([weight])
    model: Any = types.SimpleNamespace(optimizer=scaled)
    ((variable, average),) = averaged_weights(model)
    assert variable is weight
    assert average is not weight
    assert [*averaged_weights(types.SimpleNamespace(optimizer=SGD(0.1)))] == []
    assert [*averaged_weights(types.SimpleNamespace(optimizer=keras.optimizers.Adam()))] == []


@pytest.mark.parametrize(
    ("recipe", "hosts_count", "message"),
    [
        (TINY.replace(clip_norm=0.5), 1, "clip_norm=0.5 works on one device"),
        (TINY.replace(ema_momentum=0.9), 2, "ema_momentum=0.9 with batch_norm works on one host"),
    ],
    ids=["devices", "hosts"],
)
def test_what_several_devices_or_hosts_would_compute_otherwise_is_refused(
    recipe: Recipe, hosts_count: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation.hosts, "count", lambda: hosts_count)
    devices = hardware.Engine(("cpu:0", "cpu:1"), "float32", False)
    with pytest.raises(ValueError, match=message):
        preparation._require_possible(recipe, devices)
    preparation._require_possible(TINY, devices)
    preparation._require_possible(recipe.replace(clip_norm=0.0, batch_norm=False), devices)


class Killed(keras.callbacks.Callback):
    """End without a word to the run: in a step, or in a validation, when averages are in."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.step, self.epoch = step, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.epoch == 1 and batch == self.step:
            raise InterruptedError

    def on_test_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self.epoch == 1 and self.step is None:
            raise InterruptedError


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [NESTEROV, ADAMW, MUON], ids=["sgd", "adamw", "muon"])
def test_killed_and_resumed_it_ends_as_if_it_had_not_been(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.replace(
        ema_momentum=0.9, clip_norm=1.0, cutmix=1.0, unmixed_epochs=1, checkpoint_steps=2
    )
    whole = fit(recipe, tmp_path / "whole", verbose=0)
    for step in (5, None):  # within an epoch, and then in the validation of the same epoch
        with pytest.raises(InterruptedError):
            fit(recipe, tmp_path / "run", verbose=0, callbacks=[Killed(step)])
        assert not Run.open(tmp_path / "run").finished
    assert_same(fit(recipe, tmp_path / "run", verbose=0), whole)

"""Images go to the device as bytes. On JAX, the weights stay there; the step is compiled once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_vgg.fit.inputs import channel_statistics, load_source, training_data, validation_data
from tests.other_backends import on_jax
from tests.test_fit import TINY

SCRIPT = """
import json
import sys

import jax
import jax.monitoring
import keras
import numpy as np

from keras_vgg.fit import fit
from keras_vgg.recipe import Recipe

folder, devices = sys.argv[1:]
recipe = Recipe(
    width_multiplier=1 / 16, hidden_units=8, test_fraction=0.5, validation_fraction=0.3,
    batch_size=16, epochs=2, learning_rate=0.01, warmup_epochs=0.5, precision="float32",
    devices=devices, brightness=0.1, rgb_shift=0.1,
)
synchronised, compiled, fitting = [0], [], [False]


class Watch(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        fitting[0] = True

    def on_train_end(self, logs=None):
        fitting[0] = False


class ReadsModel(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.model.weights


def count(event, seconds, **kwargs):
    if event.endswith("backend_compile_duration"):
        compiled.append(kwargs["fun_name"])


jax.monitoring.register_event_duration_secs_listener(count)
trainer = keras.Model
synchronise = trainer.jax_state_sync


def counted(model):
    if fitting[0] and getattr(model, "_jax_state", None) and not model._jax_state_synced:
        synchronised[0] += 1
    return synchronise(model)


trainer.jax_state_sync = counted
plain = fit(recipe, folder + "/plain", verbose=0, callbacks=[Watch()])
first, functions = synchronised[0], list(compiled)
read = fit(recipe, folder + "/read", verbose=0, callbacks=[Watch(), ReadsModel()])
names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
same = all(a[n] == b[n] for a, b in zip(plain.history, read.history) for n in names)
print(json.dumps({
    "backend": keras.backend.backend(), "devices": jax.device_count(), "same": same,
    "synchronised": first, "with a callback": synchronised[0] - first,
    "compiled": [functions.count(f"jit({name}_step)") for name in ("train", "test")],
    "history": plain.history,
}))
"""


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("varied", [False, True])
def test_training_images_are_bytes_and_validation_images_have_fractions(varied: bool) -> None:
    changes = {"mixup": 0.2, "hue": 0.1, "rotation": 10.0, "color": "grey", "rgb_shift": 0.0}
    recipe = TINY.replace(**changes) if varied else TINY
    source = load_source(recipe)
    batches = training_data(recipe, source, channel_statistics(recipe, source.train))
    assert batches.element_spec[0].dtype == tf.uint8
    (images, _), *_ = validation_data(recipe, source).take(1)
    assert images.dtype == tf.float32
    assert not tf.reduce_all(images == tf.round(images))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_weights_stay_on_the_device_and_the_step_is_compiled_once(
    tmp_path: Path, devices: int
) -> None:
    pytest.importorskip("jax")
    printed = on_jax("-c", SCRIPT, str(tmp_path), str(devices), devices=devices)
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert (told["backend"], told["devices"]) == ("jax", devices)
    assert told["same"], "a callback that reads the model at each step changes the training"
    rows = told["history"]
    steps = 898 * 0.7 // 16
    assert len(rows) == 2
    assert rows[-1]["loss"] < rows[0]["loss"]
    # At the end of an epoch's steps, and of its validation.
    assert told["synchronised"] <= 2 * 2
    assert told["with a callback"] >= 2 * steps
    assert told["compiled"] == [1, 1]


RESUMED = """
import sys

import keras
import numpy as np

from keras_vgg.fit import fit
from keras_vgg.recipe import Recipe
from tests.test_survive import assert_same


class Stop(keras.callbacks.Callback):
    \"\"\"A kill in the validation of the first epoch.\"\"\"

    def on_test_batch_begin(self, batch, logs=None):
        if batch == 1:
            raise InterruptedError


folder, text = sys.argv[1:]
recipe = Recipe.from_json(text)
whole = fit(recipe, f"{folder}/whole", verbose=0)
try:
    fit(recipe, f"{folder}/cut", verbose=0, callbacks=[Stop()])
except InterruptedError:
    assert_same(fit(recipe, f"{folder}/cut", verbose=0), whole)
    print(keras.backend.backend())
"""


@pytest.mark.slow
def test_a_run_that_was_stopped_in_a_validation_goes_on_on_jax(tmp_path: Path) -> None:
    """No step is left of the epoch, so that no step function is there yet."""
    pytest.importorskip("jax")
    recipe = TINY.replace(checkpoint_steps=1, batch_norm=False)
    printed = on_jax("-c", RESUMED, str(tmp_path), recipe.to_json())
    assert printed.splitlines()[-1] == "jax"

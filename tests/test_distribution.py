"""Several devices give the losses of one, and nothing in what is kept tells of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from keras_vgg import hardware
hardware.prepare_environment()
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from keras_vgg.fit import fit
from keras_vgg.recipe import Recipe

folder, batch_norm, rate = Path(sys.argv[1]), sys.argv[2] == "True", float(sys.argv[3])
recipe = Recipe(
    width_multiplier=1 / 16, hidden_units=8, validation_fraction=0.1, batch_size=64, dropout=0.0,
    test_fraction=0.6, epochs=2, brightness=0.1, rgb_shift=0.1,
    batch_norm=batch_norm, learning_rate=rate,
)

class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 4:
            raise KeyboardInterrupt

def told(devices, name):
    run = fit(recipe.replace(devices=devices), folder / name, verbose=0)
    layers = run.model().layers
    return {
        "history": run.history,
        "engine": run.read_json("environment.json")["engine"],
        "synchronized": any(getattr(layer, "synchronized", False) for layer in layers),
    }

runs = [told("1", "one"), told("2", "two")]
try:
    again = recipe.replace(devices="2", checkpoint_steps=2)
    fit(again, folder / "again", verbose=0, callbacks=[Stop()])
except KeyboardInterrupt:
    runs.append(told("2", "again"))
print(json.dumps(runs))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("batch_norm", "rate"), [(True, 0.0001), (False, 0.01)])
def test_two_devices_give_the_losses_of_one(tmp_path: Path, batch_norm: bool, rate: float) -> None:
    """The rate is low with batch norm, which in so small a network blows rounding up."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    command += map(str, (batch_norm, rate))
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, two, again = json.loads(done.stdout.splitlines()[-1])
    assert one["engine"].startswith("cpu, float32")
    assert two["engine"].startswith("2 cpus, float32, without XLA")
    assert not two["synchronized"]
    for other, tolerance in ((one, 1e-5), (again, 1e-6)):
        for a, b in zip(two["history"], other["history"], strict=True):
            for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
                assert b[name] == pytest.approx(a[name], rel=tolerance), name

"""What DESIGN promises of every backend, on JAX.

Whole test files run again there only in `make slow`; `make test` opens one saved file.
"""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vgg import models
from tests.other_backends import on_jax

pytest.importorskip("jax")
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="this is that run")
@pytest.mark.parametrize(
    "name",
    [
        "test_layers.py",
        "test_models.py",
        "test_weights.py",
        "test_channels.py",
        "test_imagenet.py",
        "test_transfer.py",
    ],
)
def test_the_same_tests_pass_on_jax(name):
    # Building every variant is the same code on every backend; the rest computes.
    options = [
        "-q",
        "-m",
        "not slow",
        "-k",
        "not is_the_table and not published",
        "-p",
        "no:cacheprovider",
    ]
    out = on_jax("-m", "pytest", *options, str(HERE / name))
    assert "passed" in out


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="this is that run")
def test_batches_are_augmented_as_repeatably_on_jax():
    # RandAugment, of eleven layers, takes minutes there.
    names = "a_batch_is_a_function_of_its_seed and not rand_augment"
    options = ["-q", "-k", names, "-p", "no:cacheprovider"]
    assert "passed" in on_jax("-m", "pytest", *options, str(HERE / "test_mixing.py"))


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="this is that run")
def test_a_file_saved_here_gives_the_same_outputs_on_jax(tmp_path):
    model = models.vgg(
        "A-LRN",
        weights=None,
        input_shape=(32, 32, 3),
        width_multiplier=1 / 16,
        hidden_units=8,
        classes=7,
        batch_norm=True,
        include_preprocessing=True,
    )
    x = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "expected.npz", x=x, y=model.predict(x, verbose=0))
    code = (
        "import sys, keras, numpy as np, keras_vgg\n"
        "folder = sys.argv[1]\n"
        "file = np.load(folder + '/expected.npz')\n"
        "model = keras.saving.load_model(folder + '/model.keras')\n"
        "difference = np.abs(model.predict(file['x'], verbose=0) - file['y']).max()\n"
        "print(keras.backend.backend(), difference)\n"
    )
    backend, difference = on_jax("-c", code, str(tmp_path)).split()[-2:]
    assert backend == "jax"
    assert float(difference) < 1e-5

"""The same explanations on JAX and PyTorch: what is worked out by hand, there too."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

HERE = Path(__file__).parent
BY_HAND = (
    "cam_before or formula or linear_model or finite_differences or (two and levels) "
    "or occlusion_by_hand or left_alone or freed or does_not_use or frozen or too_small"
)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_tests_pass_on(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-k", BY_HAND, "-p", "no:cacheprovider"),
            str(HERE / "test_explain.py"),
        ],
        cwd=HERE.parent,
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "passed" in done.stdout

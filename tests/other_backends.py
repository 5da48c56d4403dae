"""Run tests and scripts on another backend of Keras, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# XLA_FLAGS: XLA optimises nothing, which is half the time to compile.
UNOPTIMISED = "--xla_backend_optimization_level=0"


def passes_on(backend: str, *options: str) -> str:
    """Run pytest with these options on a backend, and return what it printed; all must pass."""
    return _on(backend, "pytest", "-q", "-p", "no:cacheprovider", *options)


def on_jax(*arguments: str, devices: int = 1) -> str:
    """Run Python with these arguments on JAX, and return what it printed; it must succeed."""
    flags = f"{UNOPTIMISED} --xla_force_host_platform_device_count={devices}"
    return _printed(arguments, KERAS_BACKEND="jax", XLA_FLAGS=flags)


def command_on(backend: str, *words: str) -> str:
    """Run keras-vgg with these words on a backend, and return what it printed; it must succeed."""
    return _on(backend, "keras_vgg.cli", *words)


def _on(backend: str, module: str, *arguments: str) -> str:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    return _printed(("-m", module, *arguments), KERAS_BACKEND=backend, XLA_FLAGS=UNOPTIMISED)


def _printed(arguments: tuple[str, ...], **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-3000:]
    return done.stdout

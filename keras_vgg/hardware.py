"""One place decides how to use the machine, and says what it decided."""

from __future__ import annotations

import dataclasses
import os

from keras_vgg.recipe import Recipe


def prepare_environment() -> None:
    """Set what TensorFlow reads when it is imported; variables that are set already win.

    oneDNN is off by default on x86 processors without AVX-512, where it still trains a small
    VGG about 1.5 times as fast (see training/README.md).
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@dataclasses.dataclass(frozen=True)
class Engine:
    """How a model is trained: `precision` is a Keras dtype policy."""

    device: str
    precision: str
    jit_compile: bool

    def __str__(self) -> str:
        xla = "with XLA" if self.jit_compile else "without XLA"
        return f"{self.device}, {self.precision}, {xla}"


def choose_engine(recipe: Recipe) -> Engine:
    """Decide device, precision and XLA for a recipe on this machine.

    jit="auto" compiles on accelerators only: on a CPU XLA's convolutions are slower than oneDNN's
    for small networks.
    """
    import keras

    devices = keras.distribution.list_devices("gpu") + keras.distribution.list_devices("tpu")
    device = devices[0] if devices else "cpu"
    jit = {"on": True, "off": False, "auto": bool(devices)}[recipe.jit]
    return Engine(device, recipe.precision, jit)

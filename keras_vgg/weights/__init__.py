"""Published checkpoints, readers of each format, and loading that is whole or not at all."""

import importlib
from typing import Any

# Name -> the module that has it; imported when first used, so that the table needs no Keras.
_HOMES = {
    "CHECKPOINTS": "published",
    "NAMES": "published",
    "Checkpoint": "published",
    "find": "published",
    "TOP": "tensors",
    "Tensors": "tensors",
    "Weights": "tensors",
    "fetch": "download",
    "assign": "loading",
    "copy_weights": "loading",
    "load_weights": "loading",
    "obtain": "loading",
    "read_weights": "loading",
    "tensors_of": "loading",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Published checkpoints, readers of each format, and loading that sets all weights or none."""

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "CHECKPOINTS",
    "NAMES",
    "TOP",
    "Checkpoint",
    "Tensors",
    "Weights",
    "assign",
    "check_preprocessing",
    "copy_weights",
    "fetch",
    "find",
    "for_channels",
    "hub_repository",
    "load_weights",
    "obtain",
    "preprocessing_for",
    "read_weights",
    "tensors_of",
]

# A type checker and an editor read the imports; at run time a name is imported when it is first
# used, so that the table below and `keras-vgg --help` load no framework.
if TYPE_CHECKING:
    from keras_vgg.weights.channels import for_channels, preprocessing_for
    from keras_vgg.weights.download import fetch
    from keras_vgg.weights.loading import (
        assign,
        check_preprocessing,
        copy_weights,
        load_weights,
        obtain,
        read_weights,
        tensors_of,
    )
    from keras_vgg.weights.published import (
        CHECKPOINTS,
        NAMES,
        Checkpoint,
        find,
        hub_repository,
    )
    from keras_vgg.weights.tensors import TOP, Tensors, Weights
else:
    _HOMES = {
        "CHECKPOINTS": "published",
        "NAMES": "published",
        "Checkpoint": "published",
        "find": "published",
        "TOP": "tensors",
        "Tensors": "tensors",
        "Weights": "tensors",
        "for_channels": "channels",
        "preprocessing_for": "channels",
        "fetch": "download",
        "assign": "loading",
        "check_preprocessing": "loading",
        "copy_weights": "loading",
        "hub_repository": "published",
        "load_weights": "loading",
        "obtain": "loading",
        "read_weights": "loading",
        "tensors_of": "loading",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Searches over recipes with keras-tuner: `search`, and `VGGHyperModel` for any other tuner."""

try:
    import keras_tuner  # noqa: F401
except ImportError as error:
    raise ImportError(
        "keras_vgg.tuning needs keras-tuner: pip install 'keras-vgg[tune]'"
    ) from error

from keras_vgg.tuning.hypermodel import Limits, VGGHyperModel
from keras_vgg.tuning.results import Attempt, attempts, best
from keras_vgg.tuning.searching import search
from keras_vgg.tuning.space import Range, Space, default_space, parse_space, space_around

__all__ = [
    "Attempt",
    "Limits",
    "Range",
    "Space",
    "VGGHyperModel",
    "attempts",
    "best",
    "default_space",
    "parse_space",
    "search",
    "space_around",
]

"""keras_vgg: the VGG family of arXiv:1409.1556, complete, in Keras 3."""

import importlib
from typing import Any

__version__ = "0.2.0"

# Public name -> the module that has it; imported when first used.
_HOMES = {
    "VGG11": "models",
    "VGG11LRN": "models",
    "VGG13": "models",
    "VGG16": "models",
    "VGG16C": "models",
    "VGG19": "models",
    "vgg": "models",
    "ImagePreprocessing": "layers",
    "LocalResponseNormalization": "layers",
    "load_weights": "weights",
    "copy_weights": "weights",
    "read_weights": "weights",
    "convert_weights": "convert",
    "preprocess_input": "imagenet",
    "decode_predictions": "imagenet",
    "feature_extractor": "transfer",
    "embed": "transfer",
    "linear_probe": "transfer",
    "PerceptualLoss": "transfer",
    "load_source": "data",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "evaluate": "evaluation",
    "grad_cam": "explain",
    "overlay": "explain",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

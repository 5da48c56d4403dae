"""keras_vgg: the VGG family of arXiv:1409.1556, complete, in Keras 3."""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0.dev0"

__all__ = [
    "DISTS",
    "LPIPS",
    "VGG11",
    "VGG11LRN",
    "VGG13",
    "VGG16",
    "VGG16C",
    "VGG19",
    "ImagePreprocessing",
    "LocalResponseNormalization",
    "PerceptualLoss",
    "Predictor",
    "Recipe",
    "Run",
    "__version__",
    "convert_weights",
    "copy_weights",
    "cross_validate",
    "decode_predictions",
    "embed",
    "evaluate",
    "evaluate_run",
    "export_run",
    "feature_extractor",
    "finetune",
    "grad_cam",
    "linear_probe",
    "load_recipe",
    "load_source",
    "load_weights",
    "overlay",
    "predict_files",
    "preprocess_input",
    "read_weights",
    "recipe_for",
    "train",
    "vgg",
]

# The modules that the guides name, as attributes: `keras_vgg.dense` after `import keras_vgg`.
_MODULES = (
    "architecture",
    "augment",
    "convert",
    "data",
    "dense",
    "evaluation",
    "explain",
    "export",
    "features",
    "fit",
    "hardware",
    "imagenet",
    "layers",
    "localization",
    "models",
    "perceptual",
    "recipe",
    "report",
    "retrieval",
    "run",
    "runs",
    "summary",
    "transfer",
    "tuning",
    "weights",
)

# A type checker and an editor read the imports; at run time a name is imported when it is first
# used, so that the table below and `keras-vgg --help` load no framework.
if TYPE_CHECKING:
    from keras_vgg import architecture as architecture
    from keras_vgg import augment as augment
    from keras_vgg import convert as convert
    from keras_vgg import data as data
    from keras_vgg import dense as dense
    from keras_vgg import evaluation as evaluation
    from keras_vgg import explain as explain
    from keras_vgg import export as export
    from keras_vgg import features as features
    from keras_vgg import fit as fit
    from keras_vgg import hardware as hardware
    from keras_vgg import imagenet as imagenet
    from keras_vgg import layers as layers
    from keras_vgg import localization as localization
    from keras_vgg import models as models
    from keras_vgg import perceptual as perceptual
    from keras_vgg import recipe as recipe
    from keras_vgg import report as report
    from keras_vgg import retrieval as retrieval
    from keras_vgg import run as run
    from keras_vgg import runs as runs
    from keras_vgg import summary as summary
    from keras_vgg import transfer as transfer
    from keras_vgg import tuning as tuning
    from keras_vgg import weights as weights
    from keras_vgg.convert import convert_weights
    from keras_vgg.data import load_source
    from keras_vgg.evaluation import evaluate
    from keras_vgg.explain import grad_cam, overlay
    from keras_vgg.fit import recipe_for, train
    from keras_vgg.imagenet import decode_predictions, preprocess_input
    from keras_vgg.layers import ImagePreprocessing, LocalResponseNormalization
    from keras_vgg.models import VGG11, VGG11LRN, VGG13, VGG16, VGG16C, VGG19, vgg
    from keras_vgg.perceptual import DISTS, LPIPS, PerceptualLoss
    from keras_vgg.recipe import Recipe, load_recipe
    from keras_vgg.run import Run
    from keras_vgg.runs import (
        Predictor,
        cross_validate,
        evaluate_run,
        export_run,
        finetune,
        predict_files,
    )
    from keras_vgg.transfer import embed, feature_extractor, linear_probe
    from keras_vgg.weights import copy_weights, load_weights, read_weights
else:
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
        "DISTS": "perceptual",
        "LPIPS": "perceptual",
        "PerceptualLoss": "perceptual",
        "load_source": "data",
        "Recipe": "recipe",
        "load_recipe": "recipe",
        "Run": "run",
        "recipe_for": "fit",
        "train": "fit",
        "cross_validate": "runs",
        "evaluate_run": "runs",
        "finetune": "runs",
        "predict_files": "runs",
        "Predictor": "runs",
        "export_run": "runs",
        "evaluate": "evaluation",
        "grad_cam": "explain",
        "overlay": "explain",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES and name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
        _register_layers()
        return getattr(module, name) if name in _HOMES else module


# keras.saving.load_model knows the layers of a saved network once they are imported. This package
# does not import Keras before it is needed, and Keras may be imported after it.


_layers_are_known = False


def _register_layers() -> None:
    """Make all layers known to Keras once, if it is there and no room here is half imported."""
    global _layers_are_known
    if _layers_are_known or "keras" not in sys.modules:
        return
    modules = [
        module for name, module in list(sys.modules.items()) if name.startswith(f"{__name__}.")
    ]
    specs = [getattr(module, "__spec__", None) for module in modules]
    if not any(getattr(s, "_initializing", False) for s in specs):
        importlib.import_module(f"{__name__}.layers").register_layers()
        _layers_are_known = True


class _AfterKeras:
    """Finds Keras as Python would, and makes the layers known as soon as it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "keras":
            return None
        place = sys.meta_path.index(self)
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(place, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register_layers()

            spec.loader.exec_module = exec_module
        return spec


if "keras" in sys.modules:
    _register_layers()
else:
    sys.meta_path.insert(0, _AfterKeras())


def __dir__() -> list[str]:
    # The module tuning needs an extra; `help(keras_vgg)` looks at each name that is listed.
    return sorted({*__all__, *_MODULES} - {"tuning"})

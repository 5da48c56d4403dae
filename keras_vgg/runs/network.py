"""The network of a run, ready to evaluate and to classify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_vgg import hardware
from keras_vgg.run import Run

if TYPE_CHECKING:
    import keras


def open_network(run: Run) -> keras.Model:
    """Load a run's best model for inference; its answers are those of `run.model()`.

    Warns and raises: as `Run.model`.
    """
    model = rounded_once(run.model())
    model.jit_compile = hardware.compiles_evaluation(run.recipe)
    return model


def rounded_once(model: keras.Model) -> keras.Model:
    """Return a copy that stores in bfloat16 the weights that the model rounds to it in each call.

    Those are the weights of convolutions and dense layers of the policy mixed_bfloat16. Rounding
    the 138 million weights of VGG-16 takes a sixth of the time of one image. The answers are the
    same, bit by bit. The model itself is returned if it has no such layer.
    """
    import keras

    from keras_vgg.export.fold import flat_layers, with_dtypes

    kinds = (keras.layers.Conv2D, keras.layers.Dense)

    def is_mixed(layer: keras.Layer) -> bool:
        return type(layer) in kinds and layer.dtype_policy.name == "mixed_bfloat16"

    if not any(map(is_mixed, flat_layers(model))):
        return model
    return with_dtypes(model, lambda layer: "bfloat16" if is_mixed(layer) else layer.dtype_policy)

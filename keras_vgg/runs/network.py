"""The network of a run, ready to evaluate and to classify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_vgg import hardware
from keras_vgg.run import Run

if TYPE_CHECKING:
    import keras


def open_network(run: Run, model: keras.Model | None = None) -> keras.Model:
    """Load a run's best model for inference; `model` is that of `run.model()`, if it is loaded.

    Its answers are those of `run.model()`, bit by bit. With batch normalisation in mixed_bfloat16
    they are as near to those in float32, but not the same.

    Warns and raises: as `Run.model`.
    """
    model = lean(model or run.model())
    model.jit_compile = hardware.compiles_evaluation(run.recipe)
    return model


def lean(model: keras.Model) -> keras.Model:
    """Return a copy of a network in mixed_bfloat16 with fewer operations.

    Batch normalisations become part of the convolutions before they are rounded: a small network
    is 1.5 times as fast without them. Then the weights of convolutions and dense layers are stored
    in bfloat16: rounding the 138 million weights of VGG-16 takes a sixth of the time of one image.
    Only the batch normalisations change the answers, within the error of bfloat16
    (training/README.md has figures). The model itself is returned if it has no layer of this
    policy.
    """
    import keras

    from keras_vgg.export.fold import flat_layers, folded, with_dtypes

    kinds = (keras.layers.Conv2D, keras.layers.Dense)

    def is_mixed(layer: keras.Layer) -> bool:
        return type(layer) in kinds and layer.dtype_policy.name == "mixed_bfloat16"

    if not any(map(is_mixed, flat_layers(model))):
        return model
    model = folded(model, preprocessing=False)
    return with_dtypes(model, lambda layer: "bfloat16" if is_mixed(layer) else layer.dtype_policy)

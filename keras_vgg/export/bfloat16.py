"""Rewrite a network to store its weights, and to compute, in bfloat16."""

from __future__ import annotations

import keras
from keras import layers

from keras_vgg.export.fold import flat_layers

# TensorFlow adds products in float32 in the first two. The others compute no sums.
_LAYERS = (
    layers.Conv2D,
    layers.Dense,
    layers.MaxPooling2D,
    layers.Flatten,
    layers.Dropout,
    layers.ReLU,
)


def in_bfloat16(model: keras.Model) -> keras.Model:
    """Return a copy whose convolutions and dense layers have bfloat16 weights and feature maps.

    The last layer stays in float32, and with it the soft-max and the probabilities. Every layer of
    another kind, such as the preprocessing, stays in float32 too.
    """
    last = list(flat_layers(model))[-1]

    def cloned_layer(layer: keras.Layer) -> keras.Layer:
        lower = type(layer) in _LAYERS and layer is not last
        dtype = "bfloat16" if lower else "float32"
        return type(layer).from_config({**layer.get_config(), "dtype": dtype})

    copy = keras.models.clone_model(model, clone_function=cloned_layer, recursive=True)
    copy.set_weights(model.get_weights())
    return copy

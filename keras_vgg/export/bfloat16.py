"""Rewrite a network to store its weights, and to compute, in bfloat16."""

from __future__ import annotations

import keras
from keras import layers

from keras_vgg.export.fold import flat_layers, with_dtypes

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

    def dtype_of(layer: keras.Layer) -> str:
        return "bfloat16" if type(layer) in _LAYERS and layer is not last else "float32"

    return with_dtypes(model, dtype_of)

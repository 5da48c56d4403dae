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

    The last layer with a kernel stays in float32, and all behind it: the scores, the soft-max and
    the probabilities. Every layer of another kind, such as the preprocessing, stays in float32 too.
    """
    all_layers = list(flat_layers(model))
    last = max((i for i, layer in enumerate(all_layers) if hasattr(layer, "kernel")), default=-1)
    lower = {id(layer) for layer in all_layers[:last] if _is_lower(layer)}
    return with_dtypes(model, lambda layer: "bfloat16" if id(layer) in lower else "float32")


def _is_lower(layer: keras.Layer) -> bool:
    """Return whether a layer computes in bfloat16, unless it belongs to the scores."""
    if type(layer) is layers.Activation:  # behind batch normalisation
        return layer.activation is keras.activations.relu
    return type(layer) in _LAYERS

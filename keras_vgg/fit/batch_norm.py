"""Batch norm as one operation of TensorFlow while a network is trained.

Keras 3 spells it out in a dozen operations, each of which goes through the whole feature map, and
their gradients; see training/README.md for what that costs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vgg.backend import is_tensorflow


def fuse(model: keras.Model) -> None:
    """Let a model's batch norm layers train so, on TensorFlow; their results stay the same.

    Only this model's layers do: what is saved, or cloned, is Keras' own.
    """
    if is_tensorflow():
        for layer in batch_norms(model):
            layer.call = partial(_call, layer)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def _call(
    layer: keras.layers.BatchNormalization,
    inputs: tf.Tensor,
    training: bool | None = None,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    fits = (
        layer.axis in (-1, 3)
        and len(inputs.shape) == 4
        and inputs.dtype != tf.float64
        and layer.scale
        and layer.center
        and not (layer.synchronized or layer.renorm)
        and mask is None
    )
    if not (training and layer.trainable and fits):
        outputs: Any = type(layer).call(layer, inputs, training=training, mask=mask)
        return outputs
    # An epsilon below 1.001e-5, cuDNN's least, is that.
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        ops.convert_to_tensor(layer.gamma),
        ops.convert_to_tensor(layer.beta),
        epsilon=layer.epsilon,
    )
    # It answers with the unbiased variance; Keras averages that of the batch as it is.
    size: Any = ops.size(inputs)
    count: Any = ops.cast(size // inputs.shape[-1], "float32")
    variance *= (count - 1) / count
    averages: Any = ((layer.moving_mean, mean), (layer.moving_variance, variance))
    for average, found in averages:
        average.assign(average * layer.momentum + found * (1 - layer.momentum))
    return outputs

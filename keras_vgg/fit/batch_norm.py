"""Batch normalisation in training as one fused operation of TensorFlow.

Keras 3 computes it in a dozen operations and their gradients, and each operation reads the whole
feature map. training/README.md shows the cost.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vgg.backend import is_tensorflow


def fuse(model: keras.Model) -> None:
    """Fuse a model's batch normalisation in training, on TensorFlow. The results stay the same.

    Only the layers of this model object change: a saved or cloned model has Keras' layers.
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
    can_be_fused = (
        layer.axis in (-1, 3)
        and len(inputs.shape) == 4
        and inputs.dtype != tf.float64
        and layer.scale
        and layer.center
        and not (layer.synchronized or layer.renorm)
        and mask is None
    )
    if not (training and layer.trainable and can_be_fused):
        outputs: Any = type(layer).call(layer, inputs, training=training, mask=mask)
        return outputs
    # This operation raises an epsilon below 1.001e-5, cuDNN's minimum, to that value.
    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        inputs,
        ops.convert_to_tensor(layer.gamma),
        ops.convert_to_tensor(layer.beta),
        epsilon=layer.epsilon,
    )
    # This operation returns the unbiased variance; Keras averages the biased one.
    size: Any = ops.size(inputs)
    count: Any = ops.cast(size // inputs.shape[-1], "float32")
    variance *= (count - 1) / count
    averages: Any = ((layer.moving_mean, mean), (layer.moving_variance, variance))
    for average, batch_value in averages:
        average.assign(average * layer.momentum + batch_value * (1 - layer.momentum))
    return outputs

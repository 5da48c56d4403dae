"""Weight decay and momentum in fewer passes over the weights, on TensorFlow.

A step of VGG-16 reads and writes 138 million weights, their gradients and their momentum, whatever
the batch. Keras does this in a dozen operations, each of which reads or writes all of them.
training/README.md shows the cost.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_vgg.backend import is_tensorflow


class SGD(keras.optimizers.SGD):
    """Keras' SGD, whose step with momentum is one operation on TensorFlow.

    Variables that a strategy copies to several devices get Keras' own step.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        weights: Any = variable
        momentum: Any = None
        if is_tensorflow() and self.momentum:
            momentum = self.momentums[self._get_variable_index(variable)].value
            weights = variable.value if isinstance(variable, keras.Variable) else variable
        if not (_is_on_one_device(weights) and _is_on_one_device(momentum)):
            super().update_step(gradient, variable, learning_rate)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=weights.handle,
            accum=momentum.handle,
            lr=tf.cast(learning_rate, weights.dtype),
            grad=tf.cast(gradient, weights.dtype),
            momentum=tf.cast(self.momentum, weights.dtype),
            use_nesterov=self.nesterov,
        )


def _is_on_one_device(variable: Any) -> bool:
    is_copied = isinstance(variable, tf.distribute.DistributedValues)
    return isinstance(variable, tf.Variable) and not is_copied


class L2(keras.regularizers.L2):
    """Keras' L2, whose sum of squares is one operation of TensorFlow."""

    def __call__(self, x: Any) -> Any:
        return 2.0 * self.l2 * tf.nn.l2_loss(ops.convert_to_tensor(x))


def shorten_weight_decay(model: keras.Model) -> None:
    """Let a model compute its L2 losses as `L2` does, on TensorFlow.

    Only the variables of this model object change: a saved or cloned model has Keras' regularizers.
    """
    if is_tensorflow():
        for variable in model.trainable_variables:
            if type(variable.regularizer) is keras.regularizers.L2:
                variable.regularizer = L2(variable.regularizer.l2)

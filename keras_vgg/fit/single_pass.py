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

    The decay of a variable whose `L2` leaves it to the step is one operation more, and not part of
    the gradient. Variables that a strategy copies to several devices get Keras' own step.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        place = self._get_variable_index(variable)
        weights: Any = variable
        momentum: Any = None
        if is_tensorflow() and self.momentum:
            momentum = self.momentums[place].value
            weights = variable.value if isinstance(variable, keras.Variable) else variable
        if not (_is_on_one_device(weights) and _is_on_one_device(momentum)):
            super().update_step(gradient, variable, learning_rate)
            return
        rate, keep = (tf.cast(value, weights.dtype) for value in (learning_rate, self.momentum))
        decay = self._trainable_variables[place].regularizer
        if isinstance(decay, L2) and decay.is_in_step:
            # keep * (momentum - rate * 2 l2 / keep * weights) - rate * gradient
            # = keep * momentum - rate * (gradient + 2 l2 * weights)
            tf.raw_ops.ResourceApplyGradientDescent(
                var=momentum.handle, alpha=rate * (2.0 * decay.l2) / keep, delta=weights.value()
            )
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=weights.handle,
            accum=momentum.handle,
            lr=rate,
            grad=tf.cast(gradient, weights.dtype),
            momentum=keep,
            use_nesterov=self.nesterov,
        )


def _is_on_one_device(variable: Any) -> bool:
    is_copied = isinstance(variable, tf.distribute.DistributedValues)
    return isinstance(variable, tf.Variable) and not is_copied


class L2(keras.regularizers.L2):
    """Keras' L2, whose sum of squares is one operation of TensorFlow.

    Args:
        l2: As Keras' L2.
        is_in_step: Whether `SGD` decays the variable in its step; this loss then has no gradient.
    """

    def __init__(self, l2: float, is_in_step: bool) -> None:
        super().__init__(l2)
        self.is_in_step = is_in_step

    def __call__(self, x: Any) -> Any:
        x = ops.convert_to_tensor(x)
        return 2.0 * self.l2 * tf.nn.l2_loss(tf.stop_gradient(x) if self.is_in_step else x)


def shorten_weight_decay(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Let a model compute its L2 losses as `L2` does, on TensorFlow.

    The optimizer decays the weights in its step if it can: `SGD` with momentum as it is (Nesterov's
    would take as many passes as the gradient), on one device. Clipping needs the whole gradient.
    Only the variables of this model object change: a saved or cloned model has Keras' regularizers.

    Args:
        model: The network; all of its training is with `optimizer`.
        optimizer: The optimizer that it will be compiled with.
    """
    if not is_tensorflow():
        return
    is_in_step = (
        isinstance(optimizer, SGD)
        and bool(optimizer.momentum)
        and not optimizer.nesterov
        and (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue) == (None,) * 3
    )
    for variable in model.trainable_variables:
        if isinstance(variable.regularizer, keras.regularizers.L2):
            on_one_device = _is_on_one_device(variable.value)
            variable.regularizer = L2(float(variable.regularizer.l2), is_in_step and on_one_device)

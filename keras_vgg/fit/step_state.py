"""What callbacks may do at each step without making a fast device wait.

On JAX, the weights travel from step to step on the device, and a step is only begun when the call
returns. Keras fetches the losses of every step for a callback that has `on_train_batch_end`, and
puts the weights back into the model for a callback that reads its `model`. Both make the device
wait for Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_vgg.backend import is_jax


def leaves_steps_alone(callback: keras.callbacks.Callback) -> bool:
    """On JAX, let Keras not wait at each step for a callback's `on_train_batch_end`.

    Returns:
        Whether it does not: then Keras does not call the method.
    """
    if not is_jax():
        return False
    callback.on_train_batch_end = keras.callbacks.Callback.on_train_batch_end.__get__(callback)
    return True


def carries_learning_rate(model: Any, rate: Callable[[], float]) -> bool:
    """Let each step of the fit that begins take its learning rate from a function, on JAX.

    The optimiser's variable is a part of what the steps hand on, which no public function reaches
    without taking all of it off the device. So the step itself is wrapped.

    Returns:
        Whether it does. False: set `model.optimizer.learning_rate` before each step; or no fit
        begins, where a run is resumed at the end of an epoch's steps.
    """
    variables = model.optimizer.variables
    places = [i for i, v in enumerate(variables) if v is model.optimizer.learning_rate]
    if not is_jax() or not places or model.train_function is None:
        return False
    import jax
    import jax.numpy as jnp

    step = getattr(model.train_function, "step", model.train_function)
    (place,) = places

    def with_rate(state: tuple, iterator: Any) -> Any:
        _, _, values, _ = state
        value, before = jnp.asarray(np.float32(rate())), values[place]
        # An array that is bound to a device, among others that are not, is another type for JAX,
        # which would compile the step anew.
        values[place] = jax.device_put(value, before.sharding) if before.committed else value
        return step(state, iterator)

    with_rate.step = step  # the next fit wraps it anew
    model.train_function = with_rate
    return True

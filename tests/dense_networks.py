"""What the tests of dense networks share."""

import keras
import numpy as np


def values(tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def randomized(model: keras.Model, gain: float = 2.0) -> keras.Model:
    """Give all weights other numbers: score layers begin with zeros, and biases too."""
    random = np.random.default_rng(0)
    for weight in model.trainable_weights:
        fan_in = np.prod(weight.shape[:-1]) or 1
        weight.assign(random.normal(0, (gain / fan_in) ** 0.5, weight.shape))
    return model

"""What the tests of networks share."""

import keras
import numpy as np


def values(tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def answers(model: keras.Model, inputs) -> np.ndarray:
    """What `model.predict` gives for a batch; on TensorFlow without a graph, which takes 0.3 s.

    Without a graph, JAX compiles each layer by itself, which takes longer.
    """
    if keras.backend.backend() == "tensorflow":
        return values(model(inputs, training=False))
    return model.predict(inputs, verbose=0)


def randomized(model: keras.Model, gain: float = 2.0) -> keras.Model:
    """Give all weights other numbers: score layers begin with zeros, and biases too."""
    random = np.random.default_rng(0)
    for weight in model.trainable_weights:
        fan_in = np.prod(weight.shape[:-1]) or 1
        weight.assign(random.normal(0, (gain / fan_in) ** 0.5, weight.shape))
    return model

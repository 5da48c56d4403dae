"""A network's answers to arrays."""

from __future__ import annotations

import keras
import numpy as np

from keras_vgg.backend import as_array

_BATCH = 32


def answers(network: keras.Model, inputs: np.ndarray) -> np.ndarray:
    """Return a network's outputs. `predict` would compile every network anew, with a warning."""
    starts = range(0, len(inputs), _BATCH)
    batches = [network(inputs[start : start + _BATCH], training=False) for start in starts]
    return np.concatenate([as_array(batch) for batch in batches])

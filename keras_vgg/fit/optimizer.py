"""SGD with a lower learning rate for the blocks nearer to the input."""

from __future__ import annotations

import re
from typing import Any

import keras

BLOCKS = 5


class LayerwiseSGD(keras.optimizers.SGD):
    """SGD with a learning rate `decay` times lower for each block below the classifier.

    The factor is 1 for the classifier, `decay` for block 5, and `decay`^5 for block 1
    (Howard & Ruder, arXiv:1801.06146, section 3.1, by block).
    """

    def __init__(self, learning_rate: Any, decay: float, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self.decay = decay

    def update_step(self, gradient, variable, learning_rate) -> None:
        # On TensorFlow, Keras passes a tf.Variable, which has a name and no path.
        path = getattr(variable, "path", variable.name)
        super().update_step(gradient, variable, learning_rate * self.decay ** _depth(path))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "decay": self.decay}


def _depth(path: str) -> int:
    """Return how many blocks a variable is below the classifier."""
    block = re.search(r"(?:^|/)block(\d)_", path)
    return BLOCKS + 1 - int(block[1]) if block else 0

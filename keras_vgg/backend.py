"""The backend of Keras. All modules of the package ask here.

The first call imports Keras. Until then, KERAS_BACKEND can change the backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def backend_name() -> str:
    """Return "tensorflow", "jax", "torch" or another backend's name."""
    import keras

    return keras.backend.backend()


def is_tensorflow() -> bool:
    return backend_name() == "tensorflow"


def is_jax() -> bool:
    return backend_name() == "jax"


def is_torch() -> bool:
    return backend_name() == "torch"


def require_tensorflow_for_files() -> None:
    """Raise ValueError on another backend: SavedModels are TensorFlow's, and LiteRT's files too."""
    if not is_tensorflow():
        raise ValueError(
            f"files are written by Keras on TensorFlow, not on {backend_name()}: set "
            "KERAS_BACKEND=tensorflow and load the network there"
        )


def as_array(tensor: Any) -> np.ndarray:
    """Return a tensor of any backend as a NumPy array; Keras annotates the result as a tensor."""
    import keras

    array: Any = keras.ops.convert_to_numpy(tensor)
    return array

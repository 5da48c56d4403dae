"""Which backend Keras computes with. Everything else in the package asks here.

Keras is imported when the first question is asked: KERAS_BACKEND decides until then.
"""

from __future__ import annotations


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

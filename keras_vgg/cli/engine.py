"""The start of TensorFlow, with its chatter held back."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator


def import_engine(backend: str | None = None) -> None:
    """Import TensorFlow with its native start-up chatter kept off stderr.

    Args:
        backend: What Keras, which TensorFlow imports, is to run on; None: as it is set.

    Raises:
        ValueError: that is not installed, or Keras runs on another already.
    """
    from keras_vgg import hardware

    if backend is not None:
        if importlib.util.find_spec(backend) is None:
            raise ValueError(f"--backend {backend}: pip install 'keras-vgg[{backend}]'")
        os.environ["KERAS_BACKEND"] = backend
    hardware.prepare_environment()
    with _native_stderr_held():
        import tensorflow as tf

        if backend != "jax":  # it would take a GPU's memory from JAX
            tf.config.list_physical_devices()
    if backend is None:
        return
    import keras

    if keras.backend.backend() != backend:
        raise ValueError(
            f"Keras runs on {keras.backend.backend()} already: set KERAS_BACKEND={backend} before"
        )


@contextlib.contextmanager
def _native_stderr_held() -> Iterator[None]:
    """Hold what C++ libraries write to stderr; show it only if something fails."""
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)

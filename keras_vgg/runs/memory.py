"""Too little memory as one line with advice, on every backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from keras_vgg.backend import is_torch
from keras_vgg.hardware import NO_MEMORY_FAULTS, available_memory, find_machine

# What TensorFlow and PyTorch call their errors; JAX and PyTorch on a CPU have words in others.
_NAMES = ("ResourceExhaustedError", "OutOfMemoryError")
_WORDS = ("RESOURCE_EXHAUSTED", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def memory_error_explained(advice: str) -> Iterator[None]:
    """Turn a backend's error of too little memory into a MemoryError of one line with advice."""
    try:
        yield
    except Exception as error:
        text = str(error)
        named = type(error).__name__ in _NAMES or any(words in text for words in _WORDS)
        if not named or any(words in text for words in NO_MEMORY_FAULTS):
            raise
        first = (text.strip().splitlines() or [type(error).__name__])[0]
        raise MemoryError(f"the memory is too small: {advice} ({first})") from error


def require_memory(needed: float, what: str, advice: str) -> None:
    """Raise a MemoryError if main memory has fewer bytes left; with an accelerator, raise nothing.

    On Linux, nobody learns of too little main memory: the system ends the process.
    """
    available = available_memory()
    if available is None or needed <= available or _has_accelerator():
        return
    raise MemoryError(
        f"{what} needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are "
        f"left: {advice}"
    )


def _has_accelerator() -> bool:
    if not is_torch():
        return find_machine().kind != "cpu"
    import torch  # Keras lists no devices of PyTorch

    return torch.cuda.is_available()

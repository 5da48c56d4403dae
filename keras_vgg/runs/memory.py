"""Too little memory as one line with advice, on every backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from keras_vgg.backend import is_torch
from keras_vgg.hardware import available_memory, find_machine
from keras_vgg.memory_errors import first_line, is_exhausted, is_of_disk


@contextlib.contextmanager
def memory_error_explained(advice: str) -> Iterator[None]:
    """Turn a backend's error of too little memory into a MemoryError of one line with advice."""
    try:
        yield
    except Exception as error:
        if not is_exhausted(error) or is_of_disk(error):
            raise
        raise MemoryError(f"the memory is too small: {advice} ({first_line(error)})") from error


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

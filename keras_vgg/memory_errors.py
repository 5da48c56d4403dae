"""Whether an error says that memory ran out, on every backend. Nothing here loads a framework."""

from __future__ import annotations

from pathlib import Path

# What TensorFlow and PyTorch call their errors; JAX and PyTorch on a CPU have words in others.
_NAMES = ("ResourceExhaustedError", "OutOfMemoryError")
_WORDS = ("RESOURCE_EXHAUSTED", "can't allocate memory", "not enough memory")
# TensorFlow calls these exhausted resources, as it calls a lack of memory.
_DISK_FAULTS = ("No space left", "Disk quota exceeded", "Too many open files")


def is_exhausted(error: BaseException) -> bool:
    """Return whether a backend ran out of memory, or of what `is_of_disk` names."""
    if isinstance(error, MemoryError):  # Python's own, or one that `unread_file` has explained
        return False
    return type(error).__name__ in _NAMES or any(words in str(error) for words in _WORDS)


def is_of_disk(error: BaseException) -> bool:
    """Return whether an error says that the disk is full, or that too many files are open."""
    return any(words in str(error) for words in _DISK_FAULTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or of a backend says that memory ran out."""
    return isinstance(error, MemoryError) or (is_exhausted(error) and not is_of_disk(error))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unread_file(path: Path, error: BaseException) -> MemoryError:
    """Return the error of a file that memory does not hold, which may be sound."""
    return MemoryError(f"the memory is too small to read {path} ({first_line(error)})")

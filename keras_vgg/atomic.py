"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"  # how a name begins that a kill in the middle of a write leaves


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to: its file is put at `path` when all went well, and else removed.

    It lies beside `path` and ends like it, for Keras decides a format by the suffix.

    Raises:
        OSError: the file cannot be made or put in place.
    """
    handle, name = tempfile.mkstemp(prefix=PARTIAL, suffix=path.name, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp's is for the owner alone
        with open(name, "rb") as file:
            os.fsync(file.fileno())  # else a machine that crashes may keep the name alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file, which appears at `path` whole or not at all. As `whole_file`."""
    with whole_file(path) as partial:
        write(partial)

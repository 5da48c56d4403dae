"""Files that are written whole or not at all, and arrays that are read or named as damaged."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import tokenize
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

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


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; its folder is made. As `whole_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def cache_folder() -> Path:
    """Return the user's folder for what can be computed again; it need not exist.

    KERAS_VGG_CACHE names it; else it is keras_vgg in XDG_CACHE_HOME, LOCALAPPDATA or ~/.cache.
    """
    own = os.environ.get("KERAS_VGG_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "keras_vgg"


# zipfile and NumPy have many ways to say that a file is damaged; TokenError is NumPy's from
# Python 3.12 on, for a header that is no Python.
_DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile),
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array of an .npz file, by its name.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged. The error names the file.
    """
    with path.open("rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged: {error}") from error

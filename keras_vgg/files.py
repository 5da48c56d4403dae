"""Atomic writes, and arrays that are read completely or reported as damaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import struct
import tempfile
import tokenize
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Python tells the mask only by setting it, which another thread would see: once, at the start.
_UMASK = os.umask(0o022)
os.umask(_UMASK)

PARTIAL = ".partial-"  # the start of the name of a file that is not complete


def whole_names(folder: Path) -> set[str]:
    """Return the names in a folder, without the incomplete files that a kill leaves."""
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if not name.startswith(PARTIAL)}


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to. At the end, move its file to `path`; after an error, remove it.

    The file is in the folder of `path` and has the same suffix, because Keras chooses a format by
    the suffix. Its name has the number of this process, for `remove_leftovers`.

    Raises:
        OSError: the file cannot be written or moved.
    """
    prefix = f"{PARTIAL}{os.getpid()}-"
    suffix = "".join(path.suffixes)[-20:]  # of a name that may be as long as names may be
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as file:  # Windows flushes only files that are open for writing
            os.fsync(file.fileno())  # otherwise a crash of the machine may leave an empty file
        os.chmod(name, _mode_of(path))  # mkstemp lets only the owner read
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _mode_of(path: Path) -> int:
    """Return the permissions of a file that is replaced, or that the user gives a new file."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    return 0o666 & ~_UMASK


def remove_leftovers(folder: Path) -> None:
    """Remove the incomplete files that a kill left in a folder, at any depth.

    Those of another process that runs on this machine stay: it may be writing them. Processes of
    other machines are not seen.
    """
    for leftover in folder.rglob(f"{PARTIAL}*"):
        writer = re.match(f"{PARTIAL}([0-9]+)-", leftover.name)
        if writer is None or not _is_another_process(int(writer[1])):
            with contextlib.suppress(PermissionError):  # Windows does not delete an open file
                leftover.unlink(missing_ok=True)  # another command may have ended with it


def _is_another_process(number: int) -> bool:
    """Return whether a process of this number runs, and is not this one; False on Windows."""
    if number == os.getpid() or os.name == "nt":  # os.kill of Windows ends the process
        return False
    try:
        os.kill(number, 0)
    except PermissionError:  # it is another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file, which appears at `path` complete or not at all. As `whole_file`."""
    with whole_file(path) as partial:
        write(partial)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, and make the folder if it is missing. As `whole_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def cache_folder() -> Path:
    """Return the user's folder for files that can be computed again. The folder may not exist.

    The folder is KERAS_VGG_CACHE, or keras_vgg in XDG_CACHE_HOME, LOCALAPPDATA or ~/.cache; for a
    user without a home folder, in that of temporary files.
    """
    configured = os.environ.get("KERAS_VGG_CACHE")
    if configured:
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "keras_vgg"
    except RuntimeError:  # the user has no home folder, as in some containers
        return Path(tempfile.gettempdir(), "keras_vgg")


def keras_home(file: str) -> Path:
    """Return the folder of Keras' cache: KERAS_HOME or ~/.keras, if it can be written.

    Otherwise it is the folder that get_file of Keras takes in its place, unless the first has
    `file`, such as "models/imagenet_class_index.json".
    """
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    if os.access(home, os.W_OK) or (home / file).is_file():
        return home
    return Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir(), ".keras")


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# zipfile and NumPy raise many errors for a damaged file. From Python 3.12 on, NumPy raises
# TokenError for a header that is not Python.
_DAMAGE = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile),
)


def is_of_the_disk(error: Exception) -> bool:
    """Return whether the system could not read, which may pass; a damaged file stays damaged.

    A damaged archive may lead to a place that no file has, which is EINVAL.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return every array of an .npz file by its name.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged. The error names the file.
    """
    with path.open("rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except _DAMAGE as error:
            if is_of_the_disk(error):
                raise
            raise ValueError(f"{path} is damaged: {error}") from error

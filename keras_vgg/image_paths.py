"""The files and folders that a command's arguments name. Nothing here loads TensorFlow."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PATTERN = "*?["


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with ~ and ~NAME replaced by a home folder; the ~ of no user's name stays."""
    return Path(os.path.expanduser(path))


def require_list(paths: Any) -> None:
    """Raise ValueError for one path in the place of a list of paths."""
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise ValueError(f"files must be a list: put {os.fspath(paths)!r} into one")


def unless_literal(path: str | os.PathLike[str]) -> Path:
    """Return a path as `expanded` does, unless something is at the path as it is.

    A shell leaves the ~ of --workdir=~/run as it is, so that a folder may be called ~, too.
    """
    return Path(path) if os.path.lexists(path) else expanded(path)


def existing_paths(arguments: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the files and folders that the arguments name, in their order.

    An argument is a path, or a pattern such as "photos/**/*.jpg", which names its matches by name;
    ** matches folders at any depth. A path that exists is no pattern, whatever its characters.

    Raises:
        FileNotFoundError: there is nothing at a path, or nothing matches a pattern.
    """
    paths: list[str] = []
    for argument in arguments:
        text = str(expanded(argument))
        if os.path.lexists(text):
            paths.append(text)
        elif any(character in text for character in _PATTERN):
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise FileNotFoundError(f"no file matches the pattern {text}")
            paths += matches
        else:
            raise FileNotFoundError(f"{text}: no such image file or folder")
    return paths

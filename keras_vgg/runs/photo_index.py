"""The index of a folder of photographs: what describes each file, on disk, so it is made once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg.console import progress_bars
from keras_vgg.data.folders import find_images
from keras_vgg.data.left_out import LeftOut, printable
from keras_vgg.files import read_arrays, write_atomically

_CHUNK = 64  # files that are described together
_SECONDS = 60  # between two saves of a long computation
_FORMAT = 1

# Paths -> their descriptors [n, d] and hashes [n, 32], and the reason for each file that is bad.
Describe = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray, dict[str, str]]]


@dataclass(frozen=True)
class IndexedFile:
    """A file as it was when it was described.

    Attributes:
        path: Below the folder, with / between its parts.
        bytes: The file's size.
        time: Its time of change, in nanoseconds.
        reason: Why it cannot be read; empty for an image.
    """

    path: str
    bytes: int
    time: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class PhotoIndex:
    """The descriptors of a folder's images.

    Attributes:
        folder: The folder's absolute path.
        settings: What decides a descriptor, in types of JSON.
        files: One for each row of the arrays.
        bad: Files that cannot be read.
        descriptors: float32 [n, d].
        hashes: uint8 [n, 32].
    """

    folder: str
    settings: Mapping[str, Any]
    files: tuple[IndexedFile, ...] = ()
    bad: tuple[IndexedFile, ...] = ()
    descriptors: np.ndarray | None = None
    hashes: np.ndarray | None = None


@dataclass(frozen=True)
class Update:
    """What an update of an index did.

    Attributes:
        described: The number of files that are new, have changed, or can be read now.
        removed: The number of files that are no longer in the folder.
        left_out: What the folder holds besides images.
    """

    described: int
    removed: int
    left_out: tuple[LeftOut, ...]


def open_index(path: Path, folder: Path, settings: Mapping[str, Any]) -> PhotoIndex:
    """Return the index of a file, or an empty one if there is no file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged, of other settings or of another folder.
    """
    absolute = os.path.realpath(folder)
    if not path.exists():
        return PhotoIndex(absolute, settings)
    advice = "name another file with --index, or delete this one"
    arrays = read_arrays(path)
    try:
        listing = json.loads(arrays["listing"].tobytes())
        if listing["format"] != _FORMAT:
            raise ValueError(f"its format is {listing['format']}, not {_FORMAT}")
        files, bad = (
            tuple(IndexedFile(*map(_checked, row, (str, int, int, str))) for row in listing[part])
            for part in ("files", "bad")
        )
        known_settings, known_folder = dict(listing["settings"]), str(listing["folder"])
        descriptors, hashes = arrays["descriptors"], arrays["hashes"]
        if not descriptors.shape[0] == len(files) == hashes.shape[0] or hashes.shape[1:] != (32,):
            raise ValueError("its arrays do not fit its list of files")
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is no index of photographs, {advice}: {error}") from error
    if known_settings != json.loads(json.dumps(settings)):
        differ = [
            f"{name} {known_settings.get(name)!r} instead of {settings.get(name)!r}"
            for name in {**settings, **known_settings}
            if known_settings.get(name) != settings.get(name)
        ]
        raise ValueError(f"{path} is an index with {', '.join(differ)}: {advice}")
    # A folder may have moved with its photographs, but then some of them are the same.
    if known_folder != absolute and not any(_is_unchanged(absolute, file) for file in files):
        raise ValueError(f"{path} is the index of {known_folder}, not of {folder}: {advice}")
    return PhotoIndex(absolute, settings, files, bad, descriptors, hashes)


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"its list of files holds {value!r}")
    return value


def save_index(index: PhotoIndex, path: Path) -> None:
    """Write an index, whole or not at all. OSError: it cannot be written."""
    listing = {"format": _FORMAT, "folder": index.folder, "settings": dict(index.settings)}
    for name in ("files", "bad"):
        rows = getattr(index, name)
        listing[name] = [[row.path, row.bytes, row.time, row.reason] for row in rows]
    # A path that is not UTF-8 has surrogates, which JSON writes as \udce9 in ASCII.
    text = np.frombuffer(json.dumps(listing).encode("ascii"), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write(target: Path) -> None:
        with target.open("wb") as file:
            arrays: dict[str, Any] = {
                "descriptors": _or_empty(index.descriptors, 0, "float32"),
                "hashes": _or_empty(index.hashes, 32, "uint8"),
            }
            np.savez(file, listing=text, **arrays)

    write_atomically(path, write)


def _or_empty(array: np.ndarray | None, columns: int, kind: str) -> np.ndarray:
    return np.zeros((0, columns), kind) if array is None else array


def update_index(
    index: PhotoIndex, path: Path, describe: Describe, verbose: bool = False
) -> tuple[PhotoIndex, Update]:
    """Return the index of the folder as it is now; write it if it has changed.

    A file with the same path, size and time is not read again, unless it could not be read: the
    reason may have passed. A long computation is saved every minute, so that a repeated one goes on
    from there.

    Args:
        index: The index so far.
        path: The file to write.
        describe: Makes the descriptors of files.
        verbose: Show a progress bar.

    Raises:
        ValueError: the folder has no image.
        OSError: the index cannot be written.
    """
    paths, left_out = find_images(index.folder)
    if not paths:
        raise ValueError(
            f"folder {printable(index.folder)} has no image (JPEG, PNG, BMP, GIF, WebP) at any "
            "depth"
        )
    present = {file.path: file for file in (_state(index.folder, path) for path in paths)}
    kept = _kept(index, present)
    known = {file.path for file in kept.files}
    new = [file for name, file in present.items() if name not in known]
    tried = {replace(file, reason="") for file in index.bad}
    removed = len({file.path for file in (*index.files, *index.bad)} - set(present))
    parts = [kept]
    saved = time.monotonic()
    with progress_bars(verbose and bool(new)) as progress:
        task = progress.add_task("describing", total=len(new))
        for start in range(0, len(new), _CHUNK):
            chunk = new[start : start + _CHUNK]
            parts.append(_described(kept, chunk, describe))
            progress.advance(task, len(chunk))
            if time.monotonic() - saved > _SECONDS:
                parts = [_joined(parts)]
                save_index(parts[0], path)
                saved = time.monotonic()
    current = _joined(parts)
    still_bad = tried & {replace(file, reason="") for file in current.bad}
    added = len(new) - len(still_bad)
    if added or removed or current.bad != index.bad or not path.exists():
        save_index(current, path)
    return current, Update(added, removed, left_out)


def _state(folder: str, path: str) -> IndexedFile:
    status = os.stat(path)
    relative = os.path.relpath(path, folder).replace(os.sep, "/")
    return IndexedFile(relative, status.st_size, status.st_mtime_ns)


def _is_unchanged(folder: str, file: IndexedFile) -> bool:
    """Return whether a folder has a file of the same path, size and time."""
    try:
        return _state(folder, os.path.join(folder, *file.path.split("/"))) == file
    except OSError:
        return False


def _kept(index: PhotoIndex, present: Mapping[str, IndexedFile]) -> PhotoIndex:
    """Return the images of an index whose files are the same as before."""
    rows = [i for i, file in enumerate(index.files) if present.get(file.path) == file]
    if index.descriptors is None or index.hashes is None or not rows:
        return replace(index, files=(), bad=(), descriptors=None, hashes=None)
    return replace(
        index,
        files=tuple(index.files[i] for i in rows),
        bad=(),
        descriptors=index.descriptors[rows],
        hashes=index.hashes[rows],
    )


def _described(index: PhotoIndex, chunk: Sequence[IndexedFile], describe: Describe) -> PhotoIndex:
    """Return the index of a chunk of the folder's files."""
    paths = [os.path.join(index.folder, *file.path.split("/")) for file in chunk]
    descriptors, hashes, reasons = describe(paths)
    pairs = list(zip(chunk, paths, strict=True))
    good = tuple(file for file, path in pairs if path not in reasons)
    bad = tuple(replace(file, reason=reasons[path]) for file, path in pairs if path in reasons)
    arrays = (descriptors, hashes) if good else (None, None)
    return PhotoIndex(index.folder, index.settings, good, bad, *arrays)


def _joined(parts: Sequence[PhotoIndex]) -> PhotoIndex:
    """Return the index of the files of all parts."""
    descriptors = [part.descriptors for part in parts if part.descriptors is not None]
    hashes = [part.hashes for part in parts if part.hashes is not None]
    return PhotoIndex(
        parts[0].folder,
        parts[0].settings,
        tuple(file for part in parts for file in part.files),
        tuple(file for part in parts for file in part.bad),
        np.concatenate(descriptors) if descriptors else None,
        np.concatenate(hashes) if hashes else None,
    )

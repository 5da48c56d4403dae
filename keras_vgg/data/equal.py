"""Which images of a data set are equal, byte for byte: a copy in the test split measures nothing.

Files of one size are hashed. Hashes are remembered by path, size and time of change, in a file of
the user's cache.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vgg.console import is_terminal, progress_bars
from keras_vgg.data.left_out import printable
from keras_vgg.data.split import Source, Split, labels_of
from keras_vgg.files import cache_folder, sha256_of, write_json

_NAMED = 3  # pairs
_SHOWN_FROM = 50_000_000  # bytes to hash, from which a progress bar is shown
# What this process has hashed, as in a memory file. A part of a folder has another memory file than
# the whole.
_hashed: dict[str, list] = {}


@dataclass(frozen=True)
class EqualImages:
    """Images of `later` that equal one of `earlier`, or of another class of the same split.

    `first` has pairs of names; it is empty for images in memory.
    """

    earlier: str
    later: str
    count: int
    first: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        subject = f"{self.count:,} {self.later} image{'s' * (self.count != 1)}"
        where = f"also in {self.earlier}"
        if self.earlier == self.later:
            where = "also in another class"
        names = "; ".join(f"{later} = {earlier}" for earlier, later in self.first)
        return f"{subject} {where}{f': {names}' if names else ''}"


def equal_file_groups(split: Split) -> dict[str, list[str]]:
    """Return the files that have an equal one: path -> all paths of its content."""
    hashes = _hashes([str(path) for path in split.paths] if split.paths is not None else [])
    members = collections.defaultdict(list)
    for path, digest in hashes.items():
        members[digest].append(path)
    return {path: same for same in members.values() if len(same) > 1 for path in same}


def equal_images(splits: Mapping[str, Split]) -> tuple[EqualImages, ...]:
    """Return the equal images of two splits, and those of two classes of one split.

    Images in memory and files are compared; TFRecord files are not read.
    """
    keys = _keys(splits)
    first_of = {name: _first_places(keys[name]) for name in keys}
    equal = []
    for earlier, later in itertools.combinations(keys, 2):
        pairs = [
            (first_of[earlier][key], place)
            for place, key in enumerate(keys[later])
            if key is not None and key in first_of[earlier]
        ]
        equal.append(_described(splits, earlier, later, pairs))
    for name in keys:
        labels = labels_of(splits[name])
        pairs = [
            (first_of[name][key], place)
            for place, key in enumerate(keys[name])
            if key is not None and np.any(labels[first_of[name][key]] != labels[place])
        ]
        equal.append(_described(splits, name, name, pairs))
    return tuple(images for images in equal if images.count)


def equal_in(source: Source) -> tuple[EqualImages, ...]:
    """Return the equal images of a source: those that a pack states, or else those found."""
    return equal_images(source.splits()) if source.equal is None else source.equal


def _described(
    splits: Mapping[str, Split], earlier: str, later: str, pairs: list[tuple[int, int]]
) -> EqualImages:
    first_paths, other_paths = splits[earlier].paths, splits[later].paths
    named = ()
    if first_paths is not None and other_paths is not None:
        named = tuple(
            (printable(first_paths[first]), printable(other_paths[place]))
            for first, place in pairs[:_NAMED]
        )
    return EqualImages(earlier, later, len(pairs), named)


def _first_places(keys: list[object]) -> dict[object, int]:
    places: dict[object, int] = {}
    for place, key in enumerate(keys):
        if key is not None:
            places.setdefault(key, place)
    return places


def _keys(splits: Mapping[str, Split]) -> dict[str, list[object]]:
    """Return a key for each image; equal images have the same. None: no other image is equal."""
    paths = [
        str(path) for split in splits.values() if split.paths is not None for path in split.paths
    ]
    hashes = _hashes(paths)
    keys: dict[str, list[object]] = {}
    for name, split in splits.items():
        if split.images is not None:
            keys[name] = [hashlib.sha256(image.tobytes()).digest() for image in split.images]
        elif split.paths is not None:
            keys[name] = [hashes.get(str(path)) for path in split.paths]
    return keys


def _hashes(paths: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each file that shares its size; a file that is gone has none."""
    stamps: dict[str, tuple[int, int]] = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue  # whoever reads the image says so
        stamps[path] = (status.st_size, status.st_mtime_ns)
    sizes = collections.Counter(size for size, _ in stamps.values())
    shared = {path: stamp for path, stamp in stamps.items() if sizes[stamp[0]] > 1 and stamp[0]}
    if not shared:
        return {}
    memory = _memory_file(paths)
    stored = _remembered(memory)
    remembered = stored | _hashed
    hashes, new = {}, []
    for path, stamp in shared.items():
        entry = remembered.get(os.path.abspath(path))
        if entry and entry[:2] == list(stamp):
            hashes[path] = entry[2]
        else:
            new.append(path)
    total = sum(shared[path][0] for path in new)
    with progress_bars(total >= _SHOWN_FROM and is_terminal(sys.stderr)) as bars:
        for path in bars.track(new, description="looking for equal files"):
            try:
                hashes[path] = sha256_of(path)
            except OSError:
                continue  # whoever reads the image says so
    entries = {os.path.abspath(p): [*shared[p], hashes[p]] for p in shared if p in hashes}
    _hashed.update(entries)
    if any(stored.get(path) != entry for path, entry in entries.items()):
        _remember(memory, entries)
    return hashes


def _memory_file(paths: list[str]) -> Path:
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    try:
        folder = os.path.commonpath(folders)
    except ValueError:  # on several drives of Windows
        folder = os.pathsep.join(sorted({os.path.splitdrive(name)[0] for name in folders}))
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    return cache_folder() / "hashes" / f"{name}.json"


def _remembered(memory: Path) -> dict[str, list]:
    try:
        entries = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {p: e for p, e in entries.items() if isinstance(e, list) and len(e) == 3}


def _remember(memory: Path, entries: dict[str, list]) -> None:
    """Write the hashes; a cache that cannot be written costs time and nothing else."""
    try:
        write_json(memory, entries)
    except OSError:
        return

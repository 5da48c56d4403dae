"""Class folders as a source: every image below a class, at any depth, whatever its name."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_vgg.data.decode import EXTENSIONS
from keras_vgg.data.equal import equal_file_groups
from keras_vgg.data.groups import group_names
from keras_vgg.data.hold_out import hold_out
from keras_vgg.data.inspection import without_bad_images
from keras_vgg.data.left_out import (
    HEAD_BYTES,
    READ_FORMATS,
    LeftOut,
    kind_of,
    printable,
    what_is_there,
)
from keras_vgg.data.split import Source, Split, labels_of

_LOOSE = "in no class folder"
_UNLABELLED = f"{_LOOSE} (keras-vgg predict classifies them)"
_EXACT = ("train", "val", "validation", "test")
# The names of the splits' folders, in small letters.
_PARTS: dict[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class _LeftOutFiles:
    """Files that are not read, by reason."""

    def __init__(self) -> None:
        self._paths: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, reason: str, path: str) -> None:
        self._paths[reason].append(path)

    def summary(self, folder: str = "") -> tuple[LeftOut, ...]:
        """Return each reason with its count and first names, the most frequent first.

        `folder`: only files below it.
        """
        chosen = {
            reason: [path for path in paths if path.startswith(os.path.join(folder, ""))]
            for reason, paths in self._paths.items()
        }
        rows = sorted(chosen.items(), key=lambda item: (-len(item[1]), item[0]))
        return tuple(LeftOut.of(reason, paths) for reason, paths in rows if paths)


def load_folder(
    name: str,
    root: Path,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    skip_bad: bool,
    group_pattern: str | None = None,
) -> Source:
    """Open a folder for each class, or such folders in train/, val/ and test/.

    Training/, valid/, validation/ and testing/ are such names too, in small or capital letters.

    Args:
        name: The source's, such as "folder:photos".
        root: The folder.
        validation_fraction: Share of the training images held out where there is no val/.
        test_fraction: Share held out where there is neither train/ nor test/.
        seed: Decides what is held out. Equal files stay on one side.
        skip_bad: Leave out images that do not decode, with a line on stderr.
        group_pattern: A regular expression on the path below `root`, see `groups.group_names`.

    Raises:
        ValueError: the folder has no class folders, or a class has no image.
    """
    left_out = _LeftOutFiles()
    rng = np.random.default_rng(seed)
    parts = _parts(root)
    if not parts:
        class_names, everything = _classes(root, "all", left_out, skip_bad)
        everything = with_groups(everything, root, group_pattern)
        groups = equal_file_groups(everything)
        rest, test = hold_out(everything, test_fraction, "test", rng, groups)
        train, validation = hold_out(rest, validation_fraction, "validation", rng, groups)
        train = replace(train, name="train")
        return Source(name, class_names, train, validation, test, left_out.summary())
    if "train" not in parts:
        names = ", ".join(folder.name for folder in parts.values())
        raise ValueError(f"{root} has {names} but no train folder")
    _note_loose_files(root, left_out)
    for folder in _class_folders(root, left_out):
        if root / folder not in parts.values():
            left_out.add("folder beside train", str(root / folder))
    class_names, train = _classes(parts["train"], "train", left_out, skip_bad)
    train = with_groups(train, root, group_pattern)
    validation = test = None
    if "validation" in parts:
        folder = parts["validation"]
        validation = _known_classes(folder, "validation", class_names, left_out, skip_bad)
    if "test" in parts:
        test = _known_classes(parts["test"], "test", class_names, left_out, skip_bad)
    test = test and with_groups(test, root, group_pattern)
    validation = validation and with_groups(validation, root, group_pattern)
    if validation is None:
        groups = equal_file_groups(train)
        train, validation = hold_out(train, validation_fraction, "validation", rng, groups)
    return Source(name, class_names, train, validation, test, left_out.summary())


def _parts(root: Path) -> dict[str, Path]:
    """Return the folders of the splits, if there are any, by the split's name.

    Other spellings, such as Training and valid, count where the training folder holds folders: a
    class may have such a name, too.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    training = [path for path in folders if _PARTS.get(path.name.lower()) == "train"]
    if not any(child.is_dir() for folder in training for child in folder.iterdir()):
        exact = [path for path in folders if path.name in _EXACT]
        if [path.name for path in exact] == ["train"] and len(folders) > 1:
            return {}  # a class of vehicles
        folders = exact
    parts: dict[str, Path] = {}
    for folder in folders:
        part = _PARTS.get(folder.name.lower())
        if part in parts:
            names = f"{parts[part].name} and {folder.name}"
            raise ValueError(f"{root} has both {names}: keep one of them")
        if part is not None:
            parts[part] = folder
    return parts


def find_images(folder: str) -> tuple[list[str], tuple[LeftOut, ...]]:
    """Return the image files below a folder, at any depth, by name; and what is not read."""
    left_out = _LeftOutFiles()
    paths = [path for path, is_image in _images(Path(folder), left_out) if is_image]
    return paths, left_out.summary()


def _classes(
    root: Path, name: str, left_out: _LeftOutFiles, skip_bad: bool
) -> tuple[tuple[str, ...], Split]:
    """Return the class names and the images of a folder that decides what the classes are."""
    _note_loose_files(root, left_out)
    folders = _class_folders(root, left_out)
    if len(folders) < 2:
        raise ValueError(
            f"{printable(root)} has {len(folders)} class folders, and classification needs at "
            f"least 2: put each class's images in {printable(root)}/<class>/"
        )
    split = _split(root, name, folders, range(len(folders)), left_out)
    _require_every_class(root, folders, split, left_out)
    if skip_bad:
        split = without_bad_images(split)
        _require_every_class(root, folders, split, left_out)
    return tuple(map(printable, folders)), split


def _known_classes(
    root: Path, name: str, class_names: tuple[str, ...], left_out: _LeftOutFiles, skip_bad: bool
) -> Split | None:
    """Return the images of a folder whose classes are training's; None where it has none."""
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    folders = _class_folders(root, left_out)
    has_labels = folders or name != "test"
    _note_loose_files(root, left_out, _LOOSE if has_labels else _UNLABELLED)
    known = [folder for folder in folders if printable(folder) in labels]
    for folder in folders:
        if folder not in known:
            for path, _ in _images(root / folder, left_out):
                left_out.add(f"in a class of {name} that train has not", path)
    split = _split(root, name, known, [labels[printable(folder)] for folder in known], left_out)
    if skip_bad and split.size:
        split = without_bad_images(split)
    return split if split.size else None


def with_groups(split: Split, root: str | os.PathLike[str], pattern: str | None) -> Split:
    """Return a split of files with the groups that a pattern finds in the paths below `root`."""
    if pattern is None or split.paths is None:
        return split
    relative = [os.path.relpath(path, root).replace(os.sep, "/") for path in split.paths]
    return replace(split, groups=group_names(relative, pattern))


def _note_loose_files(root: Path, left_out: _LeftOutFiles, of_an_image: str = _LOOSE) -> None:
    with os.scandir(root) as entries:
        for path in sorted(entry.path for entry in entries if not _is_folder(entry)):
            reason = _why_left_out(path)
            left_out.add(of_an_image if reason is None else reason, path)


def _class_folders(root: Path, left_out: _LeftOutFiles) -> list[str]:
    with os.scandir(root) as entries:
        folders = sorted(entry.name for entry in entries if _is_folder(entry))
    for folder in folders:
        if folder.startswith("."):
            left_out.add("hidden folder", str(root / folder))
    return [folder for folder in folders if not folder.startswith(".")]


def _split(
    root: Path,
    name: str,
    folders: list[str],
    labels: range | list[int],
    left_out: _LeftOutFiles,
) -> Split:
    """Return the images of class folders: the classes in order, the files by name within each."""
    paths, counts = [], []
    for folder in folders:
        files = [path for path, is_image in _images(root / folder, left_out) if is_image]
        paths += files
        counts.append(len(files))
    repeated = np.repeat(np.array(labels, dtype=np.int32), counts)
    return Split(name, len(paths), labels=repeated, paths=np.array(paths, dtype=object))


def _images(folder: Path, left_out: _LeftOutFiles) -> Iterator[tuple[str, bool]]:
    """Yield (path, True) for each image at any depth, by name, and note what is left out."""
    # A link to an enclosing folder would bring the other classes' images. A class folder that is a
    # link lies in two places.
    own = folder.resolve()
    reached = own if folder.name in ("", "..") else folder.parent.resolve() / folder.name
    parents = {*own.parents, *reached.parents}
    enclosing = {_identity(parent) for parent in parents}
    seen: set[tuple[int, int]] = set()

    def walk(path: str) -> Iterator[str]:
        identity = _identity(path)
        if identity in enclosing:
            left_out.add("link to an enclosing folder", path)
            return
        if identity in seen:
            left_out.add("link to a folder that was read already", path)
            return
        seen.add(identity)
        try:
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            left_out.add("folder that cannot be opened", path)
            return
        for entry in listed:
            if not _is_folder(entry):
                yield entry.path
            elif entry.name.startswith("."):
                left_out.add("hidden folder", entry.path)
            else:
                yield from walk(entry.path)

    for path in walk(str(folder)):
        reason = _why_left_out(path)
        if reason is None:
            yield path, True
        else:
            left_out.add(reason, path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder; a link that leads nowhere, or in circles, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _why_left_out(path: str) -> str | None:
    """Return why a file is not read; None for an image.

    A file is an image if its name or its first bytes say so: what a name alone claims is read,
    and is then a damaged image.
    """
    name = os.path.basename(path)
    if name.startswith("."):
        return "hidden file"
    if not os.path.isfile(path):
        return "broken link" if os.path.islink(path) else "neither a file nor a folder"
    if name.lower().endswith(EXTENSIONS):
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return "file that cannot be opened"
    kind = kind_of(head)
    if kind in READ_FORMATS:
        return None
    suffix = os.path.splitext(name)[1].lower()
    return f"{kind or 'no image'} ({printable(suffix) or 'without a suffix'})"


def _require_every_class(
    root: Path, folders: list[str], split: Split, left_out: _LeftOutFiles
) -> None:
    counts = np.bincount(labels_of(split), minlength=len(folders))
    empty = [folder for folder, count in zip(folders, counts, strict=True) if count == 0]
    if empty:
        others = left_out.summary(str(root / empty[0]))
        raise ValueError(
            f"{printable(root)}: no image that can be read (JPEG, PNG, BMP, GIF, WebP) in class "
            f"{', '.join(map(printable, empty[:10]))}{what_is_there(others)}; add images, or "
            "remove the folder"
        )

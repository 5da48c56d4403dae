"""The image files that arguments name: files, folders, patterns and tables, without labels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from keras_vgg.data.folders import find_images
from keras_vgg.data.left_out import LeftOut, printable, what_is_there
from keras_vgg.data.table_rows import MISSING_FILE, read_table
from keras_vgg.image_paths import existing_paths

TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class ImageFiles:
    """Image files in the order of the arguments; within a folder by name.

    Attributes:
        paths: Each file once.
        left_out: What the folders hold besides images, folders without images, and the rows of
            tables without a path.
        repeated: How many times an argument named a file again.
    """

    paths: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    repeated: int = 0


def image_files(arguments: Iterable[str | os.PathLike[str]], columns: str = "") -> ImageFiles:
    """Return the image files that arguments name.

    A folder stands for the images below it, at any depth, as in a folder: source: a file's bytes
    say whether it is an image. A folder without images is left out. A file that an argument names
    is taken as an image, whatever it is, but for a table (.csv, .tsv, .jsonl), which stands for the
    paths in its column of paths, whether there is a file at a path or not.

    Args:
        arguments: Files, folders, patterns and tables.
        columns: The column of paths of a table, if its name is no common one, such as "path=file".

    Raises:
        FileNotFoundError: there is nothing at a path, or nothing matches a pattern.
        ValueError: the arguments name no image at all, or a table cannot be read.
    """
    paths: dict[str, str] = {}
    left_out: list[LeftOut] = []
    empty: dict[str, tuple[LeftOut, ...]] = {}
    named = 0
    for argument in existing_paths(arguments):
        if os.path.isdir(argument):
            files, others = find_images(argument)
            left_out += others
            if not files:
                empty[argument] = others
        elif argument.lower().endswith(TABLES):
            files, others = _of_table(argument, columns)
            left_out += others
        else:
            files = [argument]
        named += len(files)
        for file in files:
            paths.setdefault(os.path.abspath(file), file)
    if empty and not named:
        folder, others = next(iter(empty.items()))
        raise ValueError(
            f"folder {printable(folder)} has no image (JPEG, PNG, BMP, GIF, WebP) at any depth"
            f"{what_is_there(others)}"
        )
    if empty:
        left_out.append(LeftOut.of("folder without images", list(empty)))
    if not named:
        raise ValueError("there is no image to classify; name at least one image file or folder")
    return ImageFiles(tuple(paths.values()), tuple(left_out), named - len(paths))


def _of_table(file: str, columns: str) -> tuple[list[str], list[LeftOut]]:
    """Return the paths of a table in the order of its rows, and the rows that have none."""
    table = read_table(file, columns, require_labels=False)
    rows = [(row.line, row.path) for row in table.rows]
    rows += [(bad.line, bad.detail) for bad in table.bad if bad.reason == MISSING_FILE]
    others = [bad for bad in table.bad if bad.reason != MISSING_FILE]
    names = [f"{printable(file)}, line {bad.line}: {bad.reason}" for bad in others]
    left_out = [LeftOut.of("rows of a table", names)] if names else []
    return [path for _, path in sorted(rows)], left_out

"""A table as a source: paths, labels, splits and groups in CSV, TSV or JSON Lines."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_vgg.console import note_once
from keras_vgg.data.equal import equal_file_groups
from keras_vgg.data.groups import group_names
from keras_vgg.data.hold_out import hold_out
from keras_vgg.data.inspection import without_bad_images
from keras_vgg.data.left_out import NAMED, LeftOut
from keras_vgg.data.split import Source, Split
from keras_vgg.data.table_files import BadRow
from keras_vgg.data.table_rows import Row, Table, read_table

_MOST_BAD_ROWS = 0.1  # share of the rows that may be skipped
_NAMED_ROWS = 5
_FOREIGN_CLASS = "class that train has not"


def load_table(
    name: str,
    file: Path,
    *,
    columns: str = "",
    group_pattern: str | None = None,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    skip_bad_rows: bool,
    skip_bad_images: bool,
) -> Source:
    """Open the images that a table names.

    With a column of splits, the source has the splits that the column names, and a validation split
    is held out of train if the column has none. Without it, test and validation are held out. The
    classes are those of the training images: sorted by name, or by number if all are integers.

    Args:
        name: The source's, such as "csv:photos.csv".
        file: The table.
        columns: The names of columns, see `table_rows.read_table`.
        group_pattern: A regular expression on the paths as in the table, in place of a column.
        validation_fraction: Share of the training images held out where no row is for validation.
        test_fraction: Share held out where there is no column of splits.
        seed: Decides what is held out. Groups and equal files stay on one side.
        skip_bad_rows: Leave out rows that cannot be used, with a line on stderr.
        skip_bad_images: Leave out images that do not decode, with a line on stderr.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a table of images with labels, or a row is bad; more than a
            tenth of the rows, or of a split's images, is bad, where they are left out.
    """
    if not file.exists():
        raise FileNotFoundError(f"source {name!r}: there is no file {file}")
    table = read_table(file, columns)
    if group_pattern is not None and "group" in table.columns:
        raise ValueError(
            f"{file} has the column {table.columns['group']!r} of groups: leave out group_pattern, "
            "or the column with columns='group='"
        )
    _raise_or_name(table, skip_bad_rows)
    parts: dict[str, list[Row]] = collections.defaultdict(list)
    for row in table.rows:
        parts[row.split or "all"].append(row)
    deciding = "train" if "split" in table.columns else "all"
    class_names = _class_names(table, parts[deciding], deciding)
    left_out = _bad_rows_left_out(table.bad)
    splits: dict[str, Split] = {}
    for part, rows in parts.items():
        known, foreign = _divided(rows, class_names)
        left_out += _foreign_left_out(part, foreign)
        if known:
            split = _split(part, known, class_names, table, group_pattern)
            splits[part] = without_bad_images(split) if skip_bad_images else split
    rng = np.random.default_rng(seed)
    test, validation = splits.get("test"), splits.get("validation")
    train = splits[deciding]
    equal = equal_file_groups(train) if validation is None else {}
    if "split" not in table.columns:
        train, test = hold_out(train, test_fraction, "test", rng, equal)
    if validation is None:
        train, validation = hold_out(train, validation_fraction, "validation", rng, equal)
    train = replace(train, name="train")
    return Source(name, class_names, train, validation, test, tuple(left_out))


def _raise_or_name(table: Table, skip_bad: bool) -> None:
    """Raise ValueError for bad rows; if they may be skipped and are few, name them on stderr."""
    if not table.bad:
        return
    total = len(table.bad) + len(table.rows)
    first = "; ".join(map(str, table.bad[:_NAMED_ROWS]))
    more = "; ..." if len(table.bad) > _NAMED_ROWS else ""
    message = f"{len(table.bad):,} of {total:,} rows of {table.file} cannot be used: {first}{more}"
    if not skip_bad:
        raise ValueError(f'{message}. Correct them, or skip them with on_bad_image="skip"')
    if len(table.bad) > _MOST_BAD_ROWS * total:
        raise ValueError(f"{message}. More than {_MOST_BAD_ROWS:.0%} is too many to skip")
    note_once(f"skipped: {message}")


def _class_names(table: Table, rows: Sequence[Row], split: str) -> tuple[str, ...]:
    """Return the classes of some rows, in order."""
    if not rows:
        where = "" if split == "all" else f" whose split is {split}"
        raise ValueError(f"{table.file} has no row{where} that can be used")
    names = {label for row in rows for label in row.labels}
    fewest = 1 if table.several_labels else 2
    if len(names) < fewest:
        raise ValueError(
            f"{table.file} has {len(names)} classes in its column {table.label_column!r}, and "
            f"classification needs at least {fewest}"
        )
    if all(re.fullmatch("[+-]?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _divided(rows: Sequence[Row], class_names: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Return the rows of these classes, and those with another class."""
    known = set(class_names)
    good = [row for row in rows if known.issuperset(row.labels)]
    return good, [row for row in rows if not known.issuperset(row.labels)]


def _split(
    name: str,
    rows: Sequence[Row],
    class_names: Sequence[str],
    table: Table,
    group_pattern: str | None,
) -> Split:
    """Return the images of some rows, in the order of the table."""
    numbers = {class_name: number for number, class_name in enumerate(class_names)}
    if table.several_labels:
        labels = np.zeros((len(rows), len(class_names)), np.uint8)
        for position, row in enumerate(rows):
            labels[position, [numbers[label] for label in row.labels]] = 1
    else:
        labels = np.array([numbers[row.labels[0]] for row in rows], np.int32)
    groups = None
    if group_pattern is not None:
        groups = group_names([row.written for row in rows], group_pattern)
    elif "group" in table.columns:
        groups = np.array([row.group for row in rows], dtype=object)
    paths = np.array([row.path for row in rows], dtype=object)
    return Split(name, len(rows), labels=labels, paths=paths, groups=groups)


def _bad_rows_left_out(bad: Sequence[BadRow]) -> list[LeftOut]:
    """Return the bad rows by reason, the most frequent first."""
    by_reason: dict[str, list[BadRow]] = collections.defaultdict(list)
    for row in bad:
        by_reason[row.reason].append(row)
    ordered = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return [
        LeftOut(f"rows ({reason})", len(rows), tuple(row.place for row in rows[:NAMED]))
        for reason, rows in ordered
    ]


def _foreign_left_out(part: str, rows: Sequence[Row]) -> list[LeftOut]:
    if not rows:
        return []
    named = tuple(f"line {row.line} ({', '.join(row.labels)})" for row in rows[:NAMED])
    return [LeftOut(f"{part} rows ({_FOREIGN_CLASS})", len(rows), named)]

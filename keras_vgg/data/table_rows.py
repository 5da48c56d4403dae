"""The rows of a table of images: CSV, TSV or JSON Lines, with every bad row named by its line."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keras_vgg.data.table_columns import COLUMN_NAMES, find_roles, parse_columns, quoted
from keras_vgg.data.table_files import BadRow, read_records

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_OPTIONAL = ("group", "split")  # columns that a test does without
MISSING_FILE = "file does not exist"  # the reason of such a bad row
_UNKNOWN_SPLIT = "unknown split"
_SEPARATORS = "|;,"  # of several labels in a cell: the first that any cell has
_SCANNED_FROM = 100  # files of one folder, from which the folder is listed


class Row(NamedTuple):
    """A row of a table.

    `written` is the path as in the table, `path` the same from the current folder. `labels` is
    empty where a row has none.
    """

    line: int
    written: str
    path: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None


@dataclass(frozen=True)
class Table:
    """What a table holds.

    Attributes:
        file: The table.
        columns: What a column holds ("path", "label", "labels", "split", "group") -> its name.
        rows: The rows that can be used, in order.
        bad: The others, in order.
    """

    file: Path
    columns: Mapping[str, str]
    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, or none."""
        return "labels" in self.columns

    @property
    def label_column(self) -> str | None:
        """The name of the column of the label or the labels; None: there is none."""
        return self.columns.get("labels", self.columns.get("label"))


def columns_of(file: str | os.PathLike[str], columns: str) -> str:
    """Return `columns` without the group and the split, where a table has no such column.

    Raises:
        FileNotFoundError, ValueError: as `read_table`.
    """
    names, _ = read_records(Path(file), columns)
    given = parse_columns(columns).items()
    kept = [(role, name) for role, name in given if role not in _OPTIONAL or name in ("", *names)]
    return ",".join(f"{role}={name}" for role, name in kept)


def read_table(
    file: str | os.PathLike[str], columns: str = "", *, require_labels: bool = True
) -> Table:
    """Read a table of images.

    The kind follows from suffix and content: JSON Lines begin with {, and everything else is CSV,
    with a header, whose delimiter (comma, semicolon, tab or |) is found. Text is UTF-8, with or
    without a byte order mark. Paths are relative to the file's folder.

    Args:
        file: The table.
        columns: The columns that have no common name (`table_columns.COLUMN_NAMES`), such as
            "path=file,label=diagnosis". "group=" says that no column holds groups.
        require_labels: Whether a row needs a label. Without it, only the paths are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a table, or a column cannot be told.
    """
    file = Path(file)
    names, records = read_records(file, columns)
    roles = find_roles(file, names, columns, tuple(COLUMN_NAMES) if require_labels else ("path",))
    for role in ("path", "label") if require_labels else ("path",):
        if role not in roles and not (role == "label" and "labels" in roles):
            raise ValueError(
                f"{file}: no column is known as the {role}; the columns are {quoted(names)}: name "
                f"it with columns='{role}=NAME'"
            )
    read = _Reader(file.parent, names, roles)
    rows: list[Row] = []
    bad: list[BadRow] = []
    for row in read.rows(list(records)):
        (bad if isinstance(row, BadRow) else rows).append(row)  # pyright: ignore[reportArgumentType]
    if bad and not rows and all(row.reason == _UNKNOWN_SPLIT for row in bad):
        raise ValueError(
            f"{file}: the column {roles['split']!r} names no split (train, val or test) in any "
            "row; if it holds something else, leave it out with columns='split='"
        )
    existing = existing_files([row.path for row in rows])
    missing = [row for row in rows if row.path not in existing]
    bad += [BadRow(row.line, MISSING_FILE, row.path) for row in missing]
    rows = [row for row in rows if row.path in existing] if missing else rows
    return Table(file, roles, tuple(rows), tuple(sorted(bad)))


def existing_files(paths: Sequence[str]) -> set[str]:
    """Return the paths at which there is a file. A folder of many is listed once."""
    by_folder: dict[str, list[str]] = collections.defaultdict(list)
    for path in paths:
        by_folder[os.path.dirname(path)].append(path)
    existing: set[str] = set()
    for folder, files in by_folder.items():
        names: set[str] = set()
        if len(files) >= _SCANNED_FROM:
            try:
                with os.scandir(folder or ".") as entries:
                    names = {entry.name for entry in entries if entry.is_file()}
            except FileNotFoundError:
                continue
            except OSError:
                pass  # a folder that may be entered and not listed
        # A file system may take a name that it lists otherwise, such as one in other letters.
        existing.update(p for p in files if os.path.basename(p) in names or os.path.isfile(p))
    return existing


# --- cells -----------------------------------------------------------------------------------


class _Reader:
    """Turn records into rows, or say why a record is bad."""

    def __init__(self, root: Path, names: Sequence[str], roles: Mapping[str, str]) -> None:
        self._root = str(root)
        places = {role: names.index(name) for role, name in roles.items()}
        self._labels_place = places.pop("labels", None)
        self._text_places = [*places.items()]
        self._separator = ""
        self._line_of: dict[str, int] = {}

    def rows(self, records: Sequence[tuple[int, Sequence[Any] | BadRow]]) -> Iterator[Row | BadRow]:
        if self._labels_place is not None:
            place = self._labels_place
            cells = [record[place] for _, record in records if not isinstance(record, BadRow)]
            texts = [c for c in cells if isinstance(c, str) and not c.lstrip().startswith("[")]
            self._separator = next((s for s in _SEPARATORS if any(s in t for t in texts)), "")
        for line, record in records:
            yield record if isinstance(record, BadRow) else self._row(line, record)

    def _row(self, line: int, record: Sequence[Any]) -> Row | BadRow:
        texts: dict[str, str] = {}
        for role, place in self._text_places:
            text = _cell_text(record[place])
            if text is None:
                return BadRow(line, f"{role} is not a text", str(record[place])[:40])
            if "\n" in text:
                return BadRow(line, f"line break in the {role}", "is a quote missing?")
            if not text:
                return BadRow(line, f"no {role}")
            texts[role] = text
        split = texts.get("split")
        if split is not None:
            known = _SPLITS.get(split.lower())
            if known is None:
                return BadRow(line, _UNKNOWN_SPLIT, split[:40])
            split = known
        label = texts.get("label")
        labels: tuple[str, ...] | None = (label,) if label else ()
        if self._labels_place is not None:
            labels = self._labels(record[self._labels_place])
        if labels is None:
            return BadRow(line, "labels are not a list of texts")
        written = texts["path"]
        path = os.path.join(self._root, written)
        first = self._line_of.setdefault(os.path.normpath(path), line)
        if first != line:
            return BadRow(line, "path of an earlier row", f"line {first}")
        return Row(line, written, path, labels, split, texts.get("group"))

    def _labels(self, cell: Any) -> tuple[str, ...] | None:
        """Return the labels of a cell; None: it holds something else."""
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError):
                return None
        if not isinstance(cell, list):
            text = _cell_text(cell)
            if text is None:
                return None
            cell = text.split(self._separator) if self._separator else [text]
        texts = [_cell_text(part) for part in cell]
        if None in texts:
            return None
        return tuple(dict.fromkeys(text for text in texts if text))


def _cell_text(value: Any) -> str | None:
    """Return a cell as a text; None: it is a list or an object."""
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    return None if isinstance(value, (list, dict)) else json.dumps(value)

"""The records of a table's file: CSV with any delimiter, or JSON Lines, each with its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_vgg.data.left_out import printable
from keras_vgg.data.table_columns import COLUMN_NAMES, parse_columns, plain

_DELIMITERS = ",;\t|"
_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


class BadRow(NamedTuple):
    """A row that cannot be used. `detail` is what is wrong in it, such as a path; or empty."""

    line: int
    reason: str
    detail: str = ""

    @property
    def place(self) -> str:
        return f"line {self.line}{self._in_brackets}"

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}{self._in_brackets}"

    @property
    def _in_brackets(self) -> str:
        return f" ({printable(self.detail)})" if self.detail else ""


Records = Iterable[tuple[int, Sequence[Any] | BadRow]]


def read_records(file: Path, columns: str) -> tuple[list[str], Records]:
    """Return the names of a file's columns, and (line, cells or what is wrong) of each record.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, is empty, or is neither CSV nor JSON Lines.
    """
    text = _text(file)
    return _json_lines(text) if _is_json(file, text) else _csv(file, text, columns)


def _text(file: Path) -> str:
    if file.is_dir():
        raise ValueError(f"{file} is a folder, not a table; its source would be folder:{file}")
    content = file.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{file} is UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file} is not UTF-8: line {line} has the byte {content[error.start]:#04x}; save it "
            "as UTF-8 (in Excel: CSV UTF-8)"
        ) from None
    if not text.strip():
        raise ValueError(f"{file} is empty")
    return text


def _is_json(file: Path, text: str) -> bool:
    first = text.lstrip()[0]
    if first == "[" and file.suffix.lower() in _JSON_SUFFIXES:
        raise ValueError(f"{file} is one JSON array; write one object a line (JSON Lines)")
    return first == "{" or file.suffix.lower() in _JSON_SUFFIXES


def _csv(file: Path, text: str, columns: str) -> tuple[list[str], Records]:
    """Return the names of the columns, and (line, cells) of each row."""
    delimiter = "\t" if file.suffix.lower() in (".tsv", ".tab") else _delimiter(file, text, columns)
    rows = _csv_rows(file, text, delimiter)
    _, header = next(rows)
    names = [name.strip() for name in header]

    def records() -> Records:
        for line, cells in rows:
            if len(cells) == len(names):
                yield line, cells
            else:
                detail = f"{len(cells)}, and the header has {len(names)}"
                yield line, BadRow(line, "wrong number of cells", detail)

    return names, records()


def _csv_rows(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line of each row, and the row; empty lines are no rows."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # What follows may be anything, so no row is skipped here.
            raise ValueError(
                f"{file}: the row that begins in line {line} cannot be read: {error}; is a quote "
                "missing?"
            ) from None
        if cells is None:
            return
        if cells:
            yield line, cells
        line = reader.line_num + 1


def _delimiter(file: Path, text: str, columns: str) -> str:
    """Return the delimiter that gives the header the most known names, then the most names."""
    known = {name for names in COLUMN_NAMES.values() for name in names}
    known |= {plain(name) for name in parse_columns(columns).values()}

    def count(delimiter: str) -> tuple[int, int]:
        try:
            _, header = next(_csv_rows(file, text, delimiter))
        except ValueError:  # quotes that are none with this delimiter
            return 0, 0
        return sum(plain(name) in known for name in header), len(header)

    return max(_DELIMITERS, key=count)


def _json_lines(text: str) -> tuple[list[str], Records]:
    """Return the names of all fields, and (line, values) of each object; "" where one is absent."""
    objects: list[tuple[int, Any]] = []
    names: dict[str, None] = {}
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            value = BadRow(line, "not JSON", " ".join(str(error).split()))
        if isinstance(value, dict):
            names.update(dict.fromkeys(value))
        elif not isinstance(value, BadRow):
            value = BadRow(line, "not a JSON object", content.strip()[:20])
        objects.append((line, value))
    ordered = list(names)

    def records() -> Records:
        for line, value in objects:
            is_bad = isinstance(value, BadRow)
            yield line, value if is_bad else [value.get(name, "") for name in ordered]

    return ordered, records()

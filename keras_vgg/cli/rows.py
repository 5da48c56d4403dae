"""What commands have in common that print a row for each file: a table, CSV or JSON Lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from keras_vgg.image_paths import expanded

RowFormat = Literal["table", "csv", "jsonl"]

# What a name ends in -> its format; "" is a format that these commands do not write.
_SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    **dict.fromkeys((".tsv", ".json", ".xlsx", ".xls", ".parquet", ".html", ".md"), ""),
}


def row_format(format: RowFormat | None, out: Path | None) -> RowFormat:
    """Return the format that --format and --out decide together.

    Raises:
        FileNotFoundError: there is no folder for the file.
        ValueError: the options contradict each other.
    """
    if out is None:
        return format or "table"
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} for --out {out}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    named = _SUFFIXES.get(out.suffix.lower())
    if format in ("csv", "jsonl"):
        if named not in (None, format):
            other = ", or leave out --format" if named else ""
            raise ValueError(
                f"--format {format} and --out {out} disagree: name a file that ends in "
                f".{format}{other}"
            )
        return format
    if format is None and named == "csv":
        return "csv"
    if format is None and named == "jsonl":
        return "jsonl"
    if format == "table":
        raise ValueError(
            f"--format table is printed, and not written into a file: leave out --out {out}, or "
            "choose --format csv or --format jsonl"
        )
    raise ValueError(
        f"--out {out} needs --format csv or --format jsonl, or a name that ends in .csv or .jsonl"
    )


def require_no_input(option: str, out: Path | None, inputs: Iterable[Path | str]) -> None:
    """Raise ValueError if a command would replace one of its inputs by its output.

    Args:
        option: The option that names the output, such as "--out".
        out: The output; None: the command writes no file.
        inputs: The files that the command reads; folders among them are passed over.
    """
    if out is None or not out.exists():
        return
    for path in map(expanded, inputs):
        if path.exists() and path.samefile(out):
            raise ValueError(
                f"{option} {out} would replace a file that the command reads: name another file"
            )


@contextlib.contextmanager
def text_file(path: Path | None) -> Iterator[TextIO]:
    """Give a text file that appears whole at the end; None: stdout.

    A path that is not UTF-8 keeps its bytes.
    """
    if path is None:
        reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")
        yield sys.stdout
        return
    if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
        return
    from keras_vgg.files import whole_file

    path = path.resolve() if path.is_symlink() else path  # the link stays
    with (
        whole_file(path) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file

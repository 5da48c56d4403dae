"""Say why a recipe file cannot be run: its line, the text there, and what was meant."""

from __future__ import annotations

import builtins
import difflib
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_LONGEST = 80  # characters of a line in a message


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name that is nearest, or an empty text."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, 1)
    if not close:  # Upper and lower case make all letters differ.
        close = [other for other in known if other.casefold() == name.casefold()]
    return f"; did you mean {close[0]!r}?" if close else ""


def describe_fault(path: Path, error: BaseException, fields: Sequence[str]) -> str:
    """Return where and why a recipe file failed, such as "line 3, 'x = (': '(' was never closed".

    Args:
        path: The file, which was run with `runpy.run_path`.
        error: The exception.
        fields: The names of a recipe's fields.
    """
    if isinstance(error, SyntaxError):
        other = error.filename and error.filename != str(path)
        file = f"{error.filename}, " if other else ""
        place = _place(error.lineno, error.text or "")
        return f"{file}{place}{error.msg or 'it is not Python'}"
    reason, name = _reason(error, fields)
    spans = _spans(path, error.__traceback__)
    if not spans:
        return reason
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    first, last = spans[-1]
    # A call has many lines. The line of the field tells more than the first.
    field = re.compile(rf"\b{re.escape(name)}\b['\"]?\s*[=:]") if name else None
    numbers = [n for n in range(first, last + 1) if field and field.search(_line(lines, n))]
    number = numbers[0] if numbers else first
    return f"{_place(number, _line(lines, number))}{reason}"


def describe_missing(path: Path, values: Mapping[str, Any], kind: type) -> str:
    """Return why a file that ran has no recipe.

    Args:
        path: The file.
        values: The names that the file defines.
        kind: The class Recipe.
    """
    if "RECIPE" not in values:
        recipes = [name for name, value in values.items() if isinstance(value, kind)]
        hint = f"; rename {recipes[0]!r} to RECIPE" if recipes else ""
        return f"recipe {path} defines no RECIPE = Recipe(...){hint}"
    recipe = values["RECIPE"]
    what = "the class Recipe" if recipe is kind else f"of type {type(recipe).__name__}"
    return f"recipe {path} defines no RECIPE = Recipe(...): its RECIPE is {what}"


def _reason(error: BaseException, fields: Sequence[str]) -> tuple[str, str | None]:
    """Return what is wrong, on one line, and the field that the fault is about, if any."""
    text = " ".join(str(error).split())
    if isinstance(error, TypeError):
        unknown = re.search(r"Recipe\S* got an unexpected keyword argument '(\w+)'", text)
        if unknown:
            return f"a recipe has no field {unknown[1]!r}{did_you_mean(unknown[1], fields)}", (
                unknown[1]
            )
    if isinstance(error, ValueError):
        field = re.match(r"a recipe has no field '(\w+)'|(\w+)", text)
        return text, field and (field[1] or field[2])
    if isinstance(error, NameError) and error.name:
        if error.name == "Recipe":
            return f"{text}; write first: from keras_vgg import Recipe", None
        return f"{text}{did_you_mean(error.name, _names(error.__traceback__))}", None
    if isinstance(error, AttributeError) and error.name:
        return f"{text}{did_you_mean(error.name, dir(error.obj))}", None
    if isinstance(error, ModuleNotFoundError) and error.name:
        package, _, rest = error.name.rpartition(".")
        known = [
            name.rpartition(".")[2] for name in sys.modules if name.rpartition(".")[0] == package
        ]
        return f"{text}{did_you_mean(rest, known)}", None
    if isinstance(error, ImportError):
        name = re.search(r"cannot import name '(\w+)' from '([\w.]+)'", text)
        hint = did_you_mean(name[1], dir(sys.modules.get(name[2]))) if name else ""
        return f"{text}{hint}", None
    if isinstance(error, SystemExit):
        return f"it ends the program (sys.exit({error.code!r}))", None
    return f"{type(error).__name__}: {text}" if text else type(error).__name__, None


def _spans(path: Path, trace: TracebackType | None) -> list[tuple[int, int]]:
    """Return (first, last) line of each call in the file, the outermost first."""
    return [
        (frame.lineno, frame.end_lineno or frame.lineno)
        for frame in traceback.extract_tb(trace)
        if frame.filename == str(path) and frame.lineno
    ]


def _names(trace: TracebackType | None) -> list[str]:
    """Return the names that the innermost frame knows."""
    names = dir(builtins)
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        names += [*trace.tb_frame.f_locals, *trace.tb_frame.f_globals]
    return [name for name in names if not name.startswith("__")]


def _line(lines: Sequence[str], number: int) -> str:
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _place(number: int | None, text: str) -> str:
    """Return "line 3, 'text': ", as far as it is known."""
    if not number:
        return ""
    text = text.strip()
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"line {number}, {text!r}: " if text else f"line {number}: "

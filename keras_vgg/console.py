"""Text output of commands and long computations: tables, progress bars, shares, durations."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.progress import Progress
    from rich.table import Column, Table

_GAP = 2  # spaces between the columns of a narrow table
_NARROWEST = 12  # characters of a column whose words are broken into lines
_WIDEST = 40  # characters that a column of text asks for; the others are on further lines

_printed_notes: ContextVar[set[str] | None] = ContextVar("_printed_notes", default=None)


@contextlib.contextmanager
def notes_once() -> Iterator[None]:
    """Let `note_once` print no line twice in this context: a command may open a source often."""
    if _printed_notes.get() is not None:  # a context around this one
        yield
        return
    token = _printed_notes.set(set())
    try:
        yield
    finally:
        _printed_notes.reset(token)


@contextlib.contextmanager
def notes_dropped() -> Iterator[None]:
    """Drop what is printed on stderr; `note_once` may print the same lines after it."""
    token = _printed_notes.set(set())
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        _printed_notes.reset(token)


def note(line: str) -> None:
    """Print a line on stderr; stdout is for results."""
    if sys.stderr is not None:  # as with 2>&-; print would take stdout
        print(line, file=sys.stderr)


def note_once(line: str) -> None:
    """Print a line on stderr; within `notes_once`, not a second time."""
    printed = _printed_notes.get()
    if printed is not None:
        if line in printed:
            return
        printed.add(line)
    note(line)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; None, as with >&-, is none."""
    return stream is not None and stream.isatty()


def progress_bars(shown: bool) -> Progress:
    """Return a rich.progress.Progress for a with statement: bar, count, time left, on stderr.

    If not `shown`, the bars draw nothing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),  # stdout is for results
        disable=not shown,
    )


def new_table(title: str, *headers: str) -> Table:
    """Return an empty table. The first column is aligned left, the others right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", show_header=any(headers), box=box.SIMPLE_HEAD
    )
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    return table


@dataclasses.dataclass(frozen=True)
class FittedTable:
    """A table that rich prints without cutting a number, in a terminal of any width.

    A table that is too wide gets headers of several lines, then names of several lines. If that is
    not enough, the columns are printed in groups, one below the other, each with the names.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | str]:
        width, columns = options.max_width, [_measured(column) for column in self.table.columns]
        if _needed_width(self.table) <= width:
            yield self.table
            return
        names, *others = columns
        rest = sum(_GAP + column.narrow for column in others)
        if min(names.narrow, 16) + rest <= width:
            yield _narrow_table(self.table, columns, width)
            return
        groups: list[list[_Measured]] = []
        for column in others:
            group = groups[-1] if groups else []
            taken = min(names.narrow, 16) + sum(_GAP + other.narrow for other in group)
            if group and taken + _GAP + column.narrow <= width:
                group.append(column)
            else:
                groups.append([column])
        for number, group in enumerate(groups):
            if number:
                yield ""
            yield _narrow_table(self.table, [names, *group], width)


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A column of a table, and its widths in characters: with its header on one line, and less.

    A `narrow` column has a header of several lines; a column of text has cells of several lines.
    """

    column: Column
    header: tuple[str, ...]
    cells: tuple[str, ...]
    wide: int
    narrow: int


def _measured(column: Column) -> _Measured:
    from rich.cells import cell_len

    header, *cells = (str(cell) for cell in (column.header, *column.cells))
    longest = max((cell_len(line) for cell in cells for line in cell.split("\n")), default=0)
    if not column.no_wrap:
        longest = min(longest, _WIDEST)
    words = tuple(header.split())
    return _Measured(
        column,
        words,
        tuple(cells),
        max(longest, cell_len(header)),
        max([longest, *map(cell_len, words)]),
    )


def _needed_width(table: Table) -> int:
    """Return the width of a table of `new_table`, in which every column has three more."""
    return 1 + sum(3 + _measured(column).wide for column in table.columns)


def _narrow_table(table: Table, columns: Sequence[_Measured], width: int) -> Table:
    """Return some columns as a table of at most `width`; the first one gives way, then the last."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    widths = [column.narrow for column in columns]
    space = width - _GAP * (len(columns) - 1)
    for place in (0, -1):
        excess = sum(widths) - space
        widths[place] -= max(0, min(excess, widths[place] - _NARROWEST))
    narrow = Table(
        show_header=table.show_header,
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, _GAP - 1, 0, 0),
    )
    for column, column_width in zip(columns, widths, strict=True):
        narrow.add_column(
            Text("\n".join(column.header)),
            justify=column.column.justify,
            width=column_width,
            overflow="fold",
        )
    for cells, row in zip(zip(*(c.cells for c in columns), strict=True), table.rows, strict=True):
        narrow.add_row(*map(Text, cells), end_section=row.end_section)
    return narrow


def show(content: str | Table) -> None:
    """Print a line or a table on stdout. No table is cut: see `FittedTable`.

    Raises:
        BrokenPipeError: the reader of stdout has closed the pipe.
    """
    if isinstance(content, str):
        _console().print(content, soft_wrap=True)
        return
    # A pipe has no width.
    console = _console(None if is_terminal(sys.stdout) else max(120, _needed_width(content)))
    if content.title:
        # rich folds a title to its table's width, but a path in a title must stay on one line.
        console.print(content.title, style="italic", soft_wrap=True)
        content.title = None
    console.print(FittedTable(content))


def _console(width: int | None = None) -> Console:
    """Return a console for stdout. Without markup, a class may have a name such as [red]."""
    from rich.console import Console

    class RaisingConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich itself would exit with status 1; the command line has its own

    return RaisingConsole(width=width, markup=False, highlight=False, emoji=False)


def percent(share: float | None) -> str:
    """Return a share such as 12.34%; an empty text for None."""
    return "" if share is None else f"{share:.2%}"


def duration(seconds: float) -> str:
    """Return a duration as on a clock: 0:42, 2:13:05 or 3 d 4 h."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def duration_in_words(seconds: float | None) -> str:
    """Return a duration for a sentence: 42 s, 3 min 5 s or 2 h 13 min; a dash for None."""
    if seconds is None:
        return "–"
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

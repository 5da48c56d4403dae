"""Text output of commands and long computations: tables, progress bars, shares, durations."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table


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


def show(content: str | Table) -> None:
    """Print a line or a table on stdout."""
    from rich.console import Console

    # A pipe has no width. Without markup, a class may have a name such as [red].
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, markup=False, highlight=False)
    if not isinstance(content, str) and content.title:
        # rich folds a title to its table's width, but a path in a title must stay on one line.
        console.print(content.title, style="italic", soft_wrap=True)
        content.title = None
    console.print(content, soft_wrap=isinstance(content, str))


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

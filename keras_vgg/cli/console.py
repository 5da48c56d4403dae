"""What commands print: tables, lines, shares."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def new_table(title: str, *headers: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", show_header=any(headers), box=box.SIMPLE_HEAD
    )
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def show(what: str | Table) -> None:
    from rich.console import Console

    # A path must come out whole, to be copied, where a title is folded to its table's width; a
    # pipe has no width of its own; a class may be called [red].
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, markup=False, highlight=False)
    title = None if isinstance(what, str) else what.title
    if title:
        console.print(title, style="italic", soft_wrap=True)
        what.title = None
    console.print(what, soft_wrap=isinstance(what, str))

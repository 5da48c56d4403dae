"""A table of results for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table


def table(
    rows: Sequence[Sequence[object]], headers: Sequence[str], title: str | None = None
) -> Table:
    """Return a table for the terminal: text to the left, numbers to the right, None as a dash.

    Args:
        rows: The cells. Whole numbers get thousands' separators, floats four significant digits.
        headers: One for each column.

    Raises:
        ValueError: a row is not as long as the headers.
    """
    from rich.table import Table
    from rich.text import Text

    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"row {number} has {len(row)} cells, not {len(headers)}")
    result = Table(title=title)
    for index, header in enumerate(headers):
        textual = any(isinstance(row[index], str) for row in rows)
        result.add_column(header, justify="left" if textual else "right")
    for row in rows:
        result.add_row(*(Text(_cell(value)) for value in row))
    return result


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)

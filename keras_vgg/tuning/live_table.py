"""What a user sees of a search: a table of its trials, the best, and the time left."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from keras_vgg.console import duration
from keras_vgg.tuning.results import Attempt, attempts, best

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_SHOWN = 12  # trials: the latest


class LiveTable:
    """A live table on stderr where that is a terminal; elsewhere a line a trial, on stdout.

    Args:
        workdir: The search's.
        budget: Seconds; None: no limit.
        verbose: Show anything.
    """

    def __init__(self, workdir: Path, budget: float | None, verbose: bool) -> None:
        self._workdir = workdir
        self._budget = budget
        self._told: set[int] = set()
        self._live = None
        self._lines = verbose
        if verbose and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._lines = False

    def __enter__(self) -> Self:
        self._told = {a.number for a in attempts(self._workdir) if a.at is not None}
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self, spent: float) -> None:
        """Show how the trials stand."""
        if self._live is None and not self._lines:
            return
        found = attempts(self._workdir)
        if self._live is not None:
            self._live.update(self._picture(found, spent), refresh=True)
            return
        for attempt in found:
            if attempt.at is not None and attempt.number not in self._told:
                self._told.add(attempt.number)
                print(f"{line(attempt)}; {self._footer(found, spent)}", flush=True)

    def _footer(self, found: list[Attempt], spent: float) -> str:
        winner = best(found)
        said = f"best {winner.val_accuracy:.2%} (trial {winner.number})" if winner else "none yet"
        if self._budget is None:
            return f"{said}, {duration(spent)} so far"
        return f"{said}, {duration(max(self._budget - spent, 0))} left"

    def _picture(self, found: list[Attempt], spent: float) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(trial_table(found[-_SHOWN:]), Text(self._footer(found, spent)))


def line(attempt: Attempt) -> str:
    """A trial that has ended, for a log."""
    result = attempt.reason or f"{attempt.val_accuracy:.2%}, {attempt.parameters:,} parameters"
    took = f"{len(attempt.curve)} of {attempt.epochs} epochs, {attempt.seconds:.0f} s"
    return f"trial {attempt.number} {attempt.state}: {result}, {took}"


def trial_table(found: list[Attempt]) -> Table:
    """The trials as a table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("trial", "state", "accuracy", "parameters", "epochs", "s"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    table.add_column("tried")
    for a in found:
        accuracy = a.val_accuracy if a.finished else max(a.curve, default=None)
        tried = a.reason or ", ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in a.values.items()
        )
        table.add_row(
            str(a.number),
            a.state,
            "" if accuracy is None else f"{accuracy:.2%}",
            f"{a.parameters:,}",
            f"{len(a.curve)}/{a.epochs}",
            f"{a.seconds:.0f}",
            Text(tried),
        )
    return table

"""The display of a search: a table of its trials, the best one, and the time left."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from keras_vgg.console import FittedTable, duration, is_terminal, new_table, percent
from keras_vgg.tuning.results import Attempt, attempts, best

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_SHOWN = 12  # newest trials


class LiveTable:
    """A live table on stderr if stderr is a terminal; otherwise a line a trial on stdout.

    Args:
        workdir: The search's folder.
        budget: Seconds; None: no limit.
        verbose: Whether to show anything.
    """

    def __init__(self, workdir: Path, budget: float | None, verbose: bool) -> None:
        self._workdir = workdir
        self._budget = budget
        self._printed: set[int] = set()  # numbers of trials
        self._live = None
        self._lines = verbose
        if verbose and is_terminal(sys.stderr):
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(console=console, auto_refresh=False, transient=True)
            self._lines = False

    def __enter__(self) -> Self:
        self._printed = {trial.number for trial in attempts(self._workdir) if trial.ended}
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

    def update(self, spent: float) -> None:
        """Show the trials as they are after `spent` seconds."""
        if self._live is None and not self._lines:
            return
        trials = attempts(self._workdir)
        if self._live is not None:
            self._live.update(self._picture(trials, spent), refresh=True)
            return
        for trial in trials:
            if trial.ended and trial.number not in self._printed:
                self._printed.add(trial.number)
                print(f"{trial_line(trial)}; {self._footer(trials, spent)}", flush=True)

    def _footer(self, trials: list[Attempt], spent: float) -> str:
        winner = best(trials)
        score = f"best {winner.val_accuracy:.2%} (trial {winner.number})" if winner else "none yet"
        if self._budget is None:
            return f"{score}, {duration(spent)} so far"
        return f"{score}, {duration(max(self._budget - spent, 0))} left"

    def _picture(self, trials: list[Attempt], spent: float) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(FittedTable(trial_table(trials[-_SHOWN:])), Text(self._footer(trials, spent)))


def trial_line(trial: Attempt) -> str:
    """Return a line of a log for a trial that has ended."""
    result = trial.reason or f"{trial.val_accuracy:.2%}, {trial.parameters:,} parameters"
    effort = f"{len(trial.curve)} of {trial.epochs} epochs, {trial.seconds:.0f} s"
    return f"trial {trial.number} {trial.state}: {result}, {effort}"


def trial_table(trials: list[Attempt]) -> Table:
    """Return the trials as a table for a terminal."""
    from rich.text import Text

    table = new_table("", "trial", "state", "accuracy", "parameters", "epochs", "s")
    table.add_column("values")
    for trial in trials:
        accuracy = trial.val_accuracy if trial.finished else max(trial.curve, default=None)
        values = trial.reason or ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in trial.values.items()
        )
        table.add_row(
            str(trial.number),
            trial.state,
            percent(accuracy),
            f"{trial.parameters:,}",
            f"{len(trial.curve)}/{trial.epochs}",
            f"{trial.seconds:.0f}",
            Text(values),
        )
    return table

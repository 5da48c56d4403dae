"""What a user sees of a training run: epoch, step, images/s, learning rate and time left.

On a terminal a bar on stderr, and above it a row for each finished epoch; elsewhere a line an epoch
on stdout, for a log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import keras

from keras_vgg.console import duration
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.fit.timing import Timing
from keras_vgg.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAWN = 0.1  # seconds between two pictures of the bar, at least
ONE_LINE = 120  # columns on which the bar and all its figures stand side by side


def may_end_early(recipe: Recipe) -> bool:
    """Whether training can end before its last epoch, so that the time left is an upper bound."""
    return bool(recipe.early_stopping) or recipe.schedule == "plateau"


class Figure(NamedTuple):
    """A figure of a finished epoch, for a table and for a line of a log."""

    heading: str
    cell: str
    phrase: str
    width: int  # of the widest cell to be expected


def epoch_figures(
    row: Mapping[str, float], epochs: int, left: float | None, at_most: bool
) -> list[Figure]:
    """What to show of a row of metrics.csv.

    Args:
        row: The row.
        epochs: Epochs of the whole run.
        left: Seconds; None: nothing can be said, or nothing is left.
        at_most: Whether it may be less.
    """
    number = f"{row['epoch']:.0f}/{epochs}"
    figures = [Figure("epoch", number, f"epoch {number}", 2 * len(str(epochs)) + 1)]
    for name, width in {"loss": 6, "accuracy": 8, "val_loss": 6, "val_accuracy": 8}.items():
        form = _percent if "accuracy" in name else _loss
        figures.append(Figure(name, form(row[name]), f"{name} {form(row[name])}", width))
    rate, learning_rate = f"{row['images_per_second']:,.0f}", f"{row['learning_rate']:.3g}"
    seconds = f"{row['seconds']:.1f}" if row["seconds"] < 100 else f"{row['seconds']:.0f}"
    time_left = "" if left is None else duration(left)
    return [
        *figures,
        Figure("images/s", rate, f"{rate} images/s", 6),
        Figure("lr", learning_rate, f"lr {learning_rate}", 8),
        Figure("seconds", seconds, f"{seconds} s", 6),
        Figure("at most" if at_most else "left", time_left, _left(left, at_most), 8),
    ]


def log_line(figures: list[Figure]) -> str:
    """One line in which every figure has its name."""
    return "  ".join(figure.phrase for figure in figures if figure.phrase)


def table_row(figures: list[Figure], headings: bool = False) -> str:
    """One line of a table, or its headings: 80 columns or fewer up to 999 epochs."""
    return " ".join(
        (f.heading if headings else f.cell).rjust(max(f.width, len(f.heading))) for f in figures
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _left(seconds: float | None, at_most: bool) -> str:
    if seconds is None:
        return ""
    return f"{'at most ' if at_most else ''}{duration(seconds)} left"


def _console() -> Console:
    from rich.console import Console

    # Where FORCE_COLOR is set rich would take a log file for a terminal.
    return Console(stderr=True, force_terminal=sys.stderr.isatty())


class TrainingProgress(keras.callbacks.Callback):
    """Shows how training goes; stands in for Keras' own bar. Use it in a with statement.

    However training ends, the terminal is as it was; where it ends with an exception, the bar's
    last picture stays.

    Args:
        recorder: Sets the learning rate and keeps the records; it must come before this callback.
        validation_steps: Batches of a validation.
        verbose: As in `keras_vgg.fit.fit`.
        clock: Seconds.
    """

    def __init__(
        self,
        recorder: Recorder,
        validation_steps: int,
        verbose: int | str = "auto",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        recipe = recorder.run.recipe
        self._recorder = recorder
        self._batch_size = recipe.batch_size
        self._parts = recipe.gradient_accumulation
        self._at_most = may_end_early(recipe)
        self._timing = Timing(recipe.epochs, recorder.steps_per_epoch, validation_steps)
        self._clock = clock
        self._drawn = -REDRAWN
        self._logs: Mapping[str, float] = {}
        self._console: Console | None = None
        self._lines = bool(verbose)
        self._headed = False
        if verbose and verbose != 2:
            console = _console()
            if console.is_terminal and not console.is_dumb_terminal:
                self._console, self._lines = console, False
        self._live = None

    def __enter__(self) -> Self:
        if self._console is not None:
            from rich.live import Live

            # Drawn by the training thread: a thread of its own would take turns with the steps.
            # What is printed to a stdout that is not this terminal is none of the bar's business.
            self._live = Live(
                get_renderable=self._picture,
                console=self._console,
                auto_refresh=False,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.transient = kind is None
            self._live.stop()
            self._live = None

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._logs = {}
        now = self._clock()
        self._timing.epoch_begins(now, epoch, self._recorder.first_step)
        self._draw_at_times(now)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        now = self._clock()
        self._timing.step_ends(now, self._recorder.first_step + (batch + 1) // self._parts)
        self._logs = logs or {}
        self._draw_at_times(now)

    def on_test_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # Not its end: a callback that has one makes Keras fetch the losses of every batch.
        now = self._clock()
        self._timing.validation_step_begins(now, batch)
        self._draw_at_times(now)

    def on_test_end(self, logs: dict | None = None) -> None:
        now = self._clock()
        self._timing.validation_ends(now)
        self._draw_at_times(now)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._timing.epoch_ends(self._clock())
        epochs = self._timing.epochs
        assert self.model is not None, "Keras gives a callback its model before it trains"
        is_last = epoch + 1 == epochs or self.model.stop_training
        left = None if is_last else self._timing.left()
        figures = epoch_figures(self._recorder.history[-1], epochs, left, self._at_most)
        if self._live is not None:
            if not self._headed:
                self._print_above(table_row(figures, headings=True))
                self._headed = True
            self._print_above(table_row(figures))
        elif self._lines:
            print(log_line(figures), flush=True)

    def _print_above(self, line: str) -> None:
        """Print above the bar, cut off at the terminal's width."""
        from rich.text import Text

        assert self._live is not None, "the bar is shown"
        self._live.console.print(Text(line), no_wrap=True, overflow="crop", crop=True)

    def _draw_at_times(self, now: float) -> None:
        if self._live is not None and now - self._drawn >= REDRAWN:
            self._drawn = now
            self._live.refresh()

    def _figures(self) -> str:
        """What the steps so far say: speed, learning rate, loss, accuracy."""
        parts = []
        step_seconds = self._timing.step_seconds
        if step_seconds:
            parts.append(f"{self._batch_size / step_seconds:,.0f} images/s")
        if self._timing.step:
            parts.append(f"lr {self._recorder.learning_rate:.3g}")
        if "loss" in self._logs:
            parts.append(f"loss {_loss(self._logs['loss'])}")
        if "accuracy" in self._logs:
            parts.append(f"accuracy {_percent(self._logs['accuracy'])}")
        return "  ".join(parts)

    def _picture(self) -> RenderableType:
        """The bar: one line on a wide terminal, two on a narrow one."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        timing = self._timing
        done, total, what = timing.step, timing.steps, "step"
        if timing.step == timing.steps:
            done, total, what = timing.validated, timing.validation_steps, "validation"
        figures = self._figures()
        assert self._console is not None, "the bar has a terminal"
        wide = self._console.width >= ONE_LINE
        left = _left(timing.left(), self._at_most)
        after = [part for part in (figures if wide else "", left) if part]
        line = Table.grid(expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(
            f"epoch {timing.epoch + 1}/{timing.epochs}  {what} {done}/{total}  ",
            ProgressBar(total=total, completed=done),
            Text("".join(f"  {part}" for part in after)),
        )
        return line if wide else Group(line, Text(figures, no_wrap=True, overflow="ellipsis"))

"""The display of a training run: epoch, step, images/s, learning rate and time left.

On a terminal, stderr shows a bar and above it a row for each finished epoch. Without a terminal,
stdout gets a line for each epoch, for a log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import keras

from keras_vgg.console import duration, is_terminal
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.fit.schedule import compared_column, figure_column
from keras_vgg.fit.step_state import leaves_steps_alone
from keras_vgg.fit.timing import Timing
from keras_vgg.fit.verdict import is_due
from keras_vgg.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAWN = 0.1  # fewest seconds between two pictures of the bar
ONE_LINE = 120  # terminal columns that the bar and all figures need side by side


def may_end_early(recipe: Recipe) -> bool:
    """Return whether training can end before its last epoch: the time left is then a maximum."""
    return bool(recipe.early_stopping) or recipe.schedule == "plateau"


class Figure(NamedTuple):
    """A figure of a finished epoch, for a table and for a line of a log."""

    heading: str
    cell: str
    phrase: str
    width: int  # of the widest expected cell


def epoch_figures(
    row: Mapping[str, float], epochs: int, left: float | None, at_most: bool
) -> list[Figure]:
    """Return what to show of a row of metrics.csv.

    Args:
        row: The row.
        epochs: Epochs of the run.
        left: Seconds left; None: unknown, or none are left.
        at_most: Whether `left` is a maximum.
    """
    number = f"{row['epoch']:.0f}/{epochs}"
    figures = [Figure("epoch", number, f"epoch {number}", 2 * len(str(epochs)) + 1)]
    columns = {"loss": 6, "accuracy": 8, "val_loss": 6, "val_accuracy": 8}
    if figure_column(row) == "val_pr_auc":
        columns = {"loss": 6, "pr_auc": 8, "val_loss": 6, "val_pr_auc": 8}
    if "val_balanced_accuracy" in row:  # then it selects; the terminal has no room for both
        columns["val_balanced_accuracy"] = columns.pop("val_accuracy")
    for name, width in columns.items():
        form = _percent if "accuracy" in name else _loss
        heading = "balanced val" if name == "val_balanced_accuracy" else name
        figures.append(Figure(heading, form(row[name]), f"{name} {form(row[name])}", width))
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
    """Return a line for a log, in which every figure has a name."""
    return "  ".join(figure.phrase for figure in figures if figure.phrase)


def table_row(figures: list[Figure], headings: bool = False) -> str:
    """Return a line of a table, or the headings: at most 80 columns up to 999 epochs."""
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

    # With FORCE_COLOR, rich would treat a log file as a terminal.
    return Console(stderr=True, force_terminal=is_terminal(sys.stderr))


class TrainingProgress(keras.callbacks.Callback):
    """Show the progress of training, in place of Keras' bar. Use it in a with statement.

    At the end, the terminal is as before. After an exception, the last picture of the bar stays.

    rich.progress.Progress is not used: the time left needs epochs and validations (`Timing`), and a
    narrow terminal needs a second line, so a Progress with columns takes more lines than this Live.

    Args:
        recorder: The recorder of the run. It must come before this callback.
        validation_steps: Batches of a validation.
        verbose: As in `keras_vgg.train`.
        clock: Returns seconds.
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
        self._is_late = leaves_steps_alone(self)  # see Recorder

    def __enter__(self) -> Self:
        if self._console is not None:
            from rich.live import Live

            # The training thread draws: another thread would compete with the steps. The bar must
            # not redirect a stdout that is a file or a pipe.
            self._live = Live(
                get_renderable=self._picture,
                console=self._console,
                auto_refresh=False,
                redirect_stdout=is_terminal(sys.stdout),
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
        self._draw_if_due(now)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if self._is_late and batch:
            self._end_step(batch - 1, self._recorder.losses)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._end_step(batch, logs)

    def _end_step(self, batch: int, logs: dict[str, float] | None) -> None:
        now = self._clock()
        self._timing.step_ends(now, self._recorder.first_step + (batch + 1) // self._parts)
        self._logs = logs or {}
        self._draw_if_due(now)

    def on_test_begin(self, logs: dict | None = None) -> None:
        if self._is_late:
            self._timing.step_ends(self._clock(), self._recorder.steps_per_epoch)

    def on_test_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # Not on_test_batch_end: with that method, Keras fetches the losses of every batch.
        now = self._clock()
        self._timing.validation_step_begins(now, batch)
        self._draw_if_due(now)

    def on_test_end(self, logs: dict | None = None) -> None:
        now = self._clock()
        self._timing.validation_ends(now)
        self._draw_if_due(now)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._timing.epoch_ends(self._clock())
        epochs = self._timing.epochs
        assert self.model is not None, "Keras gives a callback its model before it trains"
        is_last = epoch + 1 == epochs or self.model.stop_training
        left = None if is_last else self._timing.left()
        figures = epoch_figures(self._recorder.history[-1], epochs, left, self._at_most)
        if self._live is not None:
            if not self._headed:
                self._print_row(table_row(figures, headings=True))
                self._headed = True
            self._print_row(table_row(figures))
        elif self._lines:
            print(log_line(figures), flush=True)
        if not is_last and is_due(epoch + 1, self._recorder.run.recipe):
            self._say_if_useless(epoch + 1)

    def _say_if_useless(self, epoch: int) -> None:
        row = self._recorder.history[-1]
        value = row[compared_column(row)]
        if not self._recorder.commonest.explains(value):
            return
        line = self._recorder.commonest.line(value, epoch)
        if self._live is not None:
            from rich.text import Text

            self._live.console.print(Text(line))  # above the bar, on as many lines as it needs
        elif self._lines:
            print(line, flush=True)

    def _print_row(self, row: str) -> None:
        """Print a row of the table above the bar, cut at the terminal's width."""
        from rich.text import Text

        assert self._live is not None, "the bar is shown"
        self._live.console.print(Text(row), no_wrap=True, overflow="crop", crop=True)

    def _draw_if_due(self, now: float) -> None:
        if self._live is not None and now - self._drawn >= REDRAWN:
            self._drawn = now
            self._live.refresh()

    def _figures(self) -> str:
        """Return the figures of the steps so far: speed, learning rate, loss, accuracy."""
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
        if "pr_auc" in self._logs:
            parts.append(f"pr_auc {_loss(self._logs['pr_auc'])}")
        return "  ".join(parts)

    def _picture(self) -> RenderableType:
        """Draw the bar: one line on a wide terminal, two lines on a narrow one."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        timing = self._timing
        done, total, unit = timing.step, timing.steps, "step"
        if timing.step == timing.steps:
            done, total, unit = timing.validated, timing.validation_steps, "validation"
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
            f"epoch {timing.epoch + 1}/{timing.epochs}  {unit} {done}/{total}  ",
            ProgressBar(total=total, completed=done),
            Text("".join(f"  {part}" for part in after)),
        )
        return line if wide else Group(line, Text(figures, no_wrap=True, overflow="ellipsis"))

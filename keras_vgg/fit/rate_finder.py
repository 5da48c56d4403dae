"""Find a learning rate: train some steps while the rate rises, and look at the loss.

Smith, arXiv:1506.01186, section 3.3: the rate rises until the loss does. The rate to train with is
below the one at which the loss was lowest.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vgg import data, hardware, plotting
from keras_vgg.files import write_atomically
from keras_vgg.fit import hosts
from keras_vgg.fit.checkpoint import Progress
from keras_vgg.fit.distribution import scope
from keras_vgg.fit.preparation import memory_error_explained, prepare, require_backend
from keras_vgg.fit.training import announce, datasets
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, directory_of_run

STEPS = 100
RANGES = {"sgd": (1e-5, 10.0), "adamw": (1e-6, 1.0), "muon": (1e-6, 1.0)}
_DIVISOR = 10  # from the rate of the lowest loss to the suggestion
_SMOOTHING = 0.8  # momentum of the average of the losses
_DIVERGED = 4.0  # times the lowest loss: the rate is far too high
_LEAST_FALL = 0.02  # of the first loss; a smaller fall may be noise
_BELOW_DEFAULT = 0.049  # in place of 0.05, a recipe's default
# What a training leaves in its directory, and a sweep does not.
_OF_A_RUN = ("data.json", "model.keras", "checkpoints", "results.json")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The losses of a rising learning rate.

    Attributes:
        rates: The learning rate of each step.
        losses: The loss of each step's batch, before the step.
        optimizer: That of the recipe.
    """

    rates: Sequence[float]
    losses: Sequence[float]
    optimizer: str = "sgd"

    @property
    def smoothed(self) -> np.ndarray:
        """The average of the losses so far, in which the newer ones count more."""
        average, values = 0.0, []
        for step, loss in enumerate(self.losses):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            values.append(average / (1 - _SMOOTHING ** (step + 1)))
        return np.array(values)

    @property
    def lowest(self) -> int:
        """The step with the lowest smoothed loss."""
        return int(self.smoothed.argmin())

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate with the lowest loss, of two digits; None: the loss did not fall."""
        smoothed, lowest = self.smoothed, self.lowest
        if smoothed[lowest] > (1 - _LEAST_FALL) * smoothed[0]:
            return None
        suggestion = float(f"{self.rates[lowest] / _DIVISOR:.1e}")
        # With another optimizer, a recipe takes the rate meant for sgd for a forgotten default.
        is_refused = self.optimizer != "sgd" and suggestion == Recipe.learning_rate
        return _BELOW_DEFAULT if is_refused else suggestion


def find_learning_rate(
    recipe: Recipe, folder: str | Path, verbose: bool = True
) -> tuple[Sweep, Recipe]:
    """Train at most 100 steps with a rising learning rate, and write what they say to a folder.

    The folder gets learning_rate.csv, the plot learning_rate.png, and recipe.json, the recipe with
    the suggested rate. Files of an earlier call are replaced; an earlier recipe.json is removed if
    there is no rate to suggest. The sweep has the data, the first weights and the optimizer of the
    recipe, and neither its warm-up nor its schedule. The trained network is thrown away.

    Args:
        recipe: The recipe; its learning rate does not matter.
        folder: The folder, which is made if it is missing.
        verbose: Print what a training prints of the data and the teachers that it opens.

    Returns:
        The losses, and the recipe with the suggested rate.

    Raises:
        ValueError, OSError: as `keras_vgg.train`; the loss did not fall at any rate; the recipe
            trains several networks, or begins with a linear classifier; the folder holds a run.
        MemoryError: the memory is too small for the recipe's batches.
    """
    require_backend()
    recipe, folder = recipe.with_absolute_paths(), directory_of_run(folder)
    _require_one_training(recipe)
    _require_no_run(folder)
    with memory_error_explained(recipe):
        sweep = _swept(recipe, verbose)
    folder.mkdir(parents=True, exist_ok=True)
    _write_rows(sweep, folder / "learning_rate.csv")
    plot_sweep(sweep, folder / "learning_rate.png")
    if sweep.suggestion is None:
        (folder / "recipe.json").unlink(missing_ok=True)  # of an earlier call
        raise ValueError(
            f"the loss did not fall at any learning rate from {sweep.rates[0]:g} to "
            f"{sweep.rates[-1]:g} (see {folder / 'learning_rate.png'}): check the labels, use "
            "batch_norm, or another initialization"
        )
    suggested = recipe.replace(learning_rate=sweep.suggestion)
    text = suggested.to_json()
    write_atomically(folder / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
    return sweep, suggested


def _require_one_training(recipe: Recipe) -> None:
    if hosts.count() > 1:
        raise ValueError("a learning rate is found on one host; leave out --coordinator")
    if recipe.folds and not recipe.fold:
        raise ValueError(f"folds={recipe.folds} are several trainings; choose one, such as fold=1")
    if recipe.init_head == "probe":
        raise ValueError(
            "init_head='probe' begins with the best classifier, so no loss can show a rate for it; "
            "find the rate with init_head='none'"
        )


def _require_no_run(folder: Path) -> None:
    of_a_run = next((name for name in _OF_A_RUN if (folder / name).exists()), None)
    if of_a_run is not None:
        raise ValueError(
            f"{folder} holds a run that has begun (it has {of_a_run}), whose recipe.json would be "
            "replaced; choose another folder"
        )


def _swept(recipe: Recipe, verbose: bool) -> Sweep:
    keras.utils.set_random_seed(recipe.seed)
    engine = hardware.choose_engine(recipe)
    with tempfile.TemporaryDirectory() as temporary, scope(engine):
        run = Run(Path(temporary), recipe)
        prepared = prepare(run, engine, is_new=True, announce=verbose)
        if verbose:
            announce(prepared, recipe, prepared.engine, Progress())
        run = dataclasses.replace(run, recipe=prepared.recipe)
        training, _ = datasets(run, prepared, verbose=0)
        low, high = RANGES[recipe.optimizer]
        rising = _Rising(np.geomspace(low, high, STEPS), prepared.recipe.gradient_accumulation)
        with data.bad_images_named(prepared.source.train, prepared.validation):
            prepared.trained.fit(
                training(0),
                steps_per_epoch=STEPS * prepared.recipe.gradient_accumulation,
                callbacks=[rising],
                shuffle=False,
                verbose=0,  # pyright: ignore[reportArgumentType]  # Keras annotates str alone
            )
    if not rising.losses:
        raise ValueError(
            "the loss of the first batch is not a number, before any step: use batch_norm, or "
            "another initialization"
        )
    rates = rising.rates[: len(rising.losses)].tolist()
    return Sweep(rates, rising.losses, recipe.optimizer)


class _Rising(keras.callbacks.Callback):
    """Set the rate of each step, and note its loss. End when the loss has become far too high."""

    def __init__(self, rates: np.ndarray, parts: int) -> None:
        super().__init__()
        self.rates, self.losses, self._parts = rates, [], parts
        self._sum = self._sum_before = 0.0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        assert self.model is not None, "Keras gives a callback its model before it trains"
        self.model.optimizer.learning_rate = float(self.rates[batch // self._parts])

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        # Keras reports the mean of all batches so far.
        self._sum = (batch + 1) * float((logs or {})["loss"])
        if (batch + 1) % self._parts:
            return
        loss = (self._sum - self._sum_before) / self._parts
        self._sum_before = self._sum
        if math.isfinite(loss):
            self.losses.append(loss)
        lowest = min(Sweep(self.rates.tolist(), self.losses).smoothed, default=math.nan)
        if not math.isfinite(loss) or loss > _DIVERGED * lowest:
            assert self.model is not None
            self.model.stop_training = True


def _write_rows(sweep: Sweep, path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["learning_rate", "loss", "smoothed_loss"])
    writer.writerows(zip(sweep.rates, sweep.losses, sweep.smoothed.tolist(), strict=True))
    write_atomically(path, lambda partial: partial.write_text(text.getvalue(), encoding="utf-8"))


def plot_sweep(sweep: Sweep, path: Path) -> None:
    """Draw loss against learning rate, with the lowest loss and the suggestion."""
    figure, (axes,) = plotting.new_figure(7, 3.5)
    axes.set_xscale("log")
    axes.plot(
        sweep.rates, sweep.losses, color=plotting.MUTED, linewidth=0.6, label="loss of a batch"
    )
    axes.plot(sweep.rates, sweep.smoothed, **plotting.line_style(0), label="smoothed")
    if sweep.suggestion is not None:
        axes.axvline(
            sweep.suggestion, color=plotting.BEST, label=f"suggestion: {sweep.suggestion:g}"
        )
    # What diverges would leave no room for the rest.
    low, first = float(min(sweep.losses)), float(sweep.smoothed[0])
    axes.set_ylim(low - 0.05 * (first - low), first + 0.5 * (first - low) + 1e-3)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    plotting.show_legend(axes)
    plotting.save_png(figure, path)

"""keras-vgg tune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.cli.arguments import command_line
from keras_vgg.console import note, show
from keras_vgg.recipe import Recipe, load_recipe


@dataclasses.dataclass(frozen=True)
class Tune:
    """Search for a better recipe: keras-vgg tune [RECIPE.py] --workdir DIR --budget 30m

    A trial is a training run with other values of some of the recipe's fields. keras-tuner chooses
    the values. Trials are compared on the validation images; the test images are not read. The
    folder gets a run directory for each trial, trials.csv, plots, and best_recipe.py for keras-vgg
    train. Repeat the command to resume an interrupted search, also with more trials or a larger
    budget. Several processes search together if KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
    KERASTUNER_ORACLE_PORT are set; the tuner id of one of them is chief.
    """

    workdir: Path
    """Folder of the search: new, empty, or of the same search."""
    recipe: tyro.conf.Positional[Path | None] = None
    """A recipe file (default: the recipe of the digits)."""
    tuner: Literal["random", "bayesian", "hyperband", "grid"] = "hyperband"
    """Algorithm of keras-tuner. Hyperband gives most trials few epochs, and all epochs to the
    best."""
    max_trials: int | None = None
    """Number of trials at most (default: until the budget or the tuner ends)."""
    budget: str | None = None
    """Time for the search, over all calls: 90s, 30m or 2h (default: no limit)."""
    space: tuple[str, ...] = ()
    """Values to try instead of the default ones: learning_rate=0.01:0.3:log
    width_multiplier=0.25,0.5 train_scale=32-36,32-40 hue=0:0.1:0.02. A single value is set and not
    searched."""
    only: bool = False
    """Search only the fields that --space names."""
    max_parameters: int | None = None
    """Refuse networks with more parameters."""
    max_memory_mb: float | None = None
    """Refuse networks that need more memory to train, as computed, in units of 10^6 bytes."""
    max_latency_ms: float | None = None
    """Refuse networks that take more milliseconds for one image on this machine."""
    seed: int = 0
    """Seed of the tuner: the same seed gives the same trials again."""
    prune: tyro.conf.FlagConversionOff[bool] = True
    """End trials that are below the median of the others. Hyperband ignores this: it halves."""
    worker_timeout: float = 60.0
    """Seconds without a message from a worker after which the chief gives its trial to another."""

    def __call__(self) -> None:
        from keras_vgg import tuning
        from keras_vgg.tuning.live_table import trial_table

        recipe = load_recipe(self.recipe) if self.recipe else Recipe()
        space = tuning.parse_space(self.space)
        if recipe.select_by != "accuracy":
            note(f"val_accuracy is the {recipe.select_by.replace('_', ' ')}, as select_by says")
        if self.budget is None and self.max_trials is None:
            note(f"the search has no limit of time: it ends when {self.tuner} does (--budget 30m)")
        trials = tuning.search(
            recipe,
            self.workdir,
            tuner=self.tuner,
            space=space if self.only else tuning.space_around(recipe, space),
            limits=tuning.Limits(self.max_parameters, self.max_memory_mb, self.max_latency_ms),
            max_trials=self.max_trials,
            budget=None if self.budget is None else _seconds(self.budget),
            seed=self.seed,
            prune=self.prune,
            worker_timeout=self.worker_timeout,
        )
        best_trial = tuning.best(trials)
        if best_trial is None:  # In a worker, search returns no trials.
            return
        ranked = sorted(trials, key=lambda trial: trial.val_accuracy or 0, reverse=True)
        show(trial_table(ranked[:10]))
        show(
            f"best of {len(trials)} trials: {best_trial.number}, validation accuracy "
            f"{best_trial.val_accuracy:.2%}, {best_trial.parameters:,} parameters"
        )
        names = ("best_recipe.py", "trials.csv", "search.png", "parallel_coordinates.png")
        show("\n".join(str(self.workdir / name) for name in names))
        show(f"next: {command_line('train', self.workdir / names[0], '--workdir', 'RUN')}")


def _seconds(text: str) -> float:
    """Return the seconds of a time such as 90s, 30m or 2h."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise ValueError(f"--budget must be a time such as 90s, 30m or 2h, not {text!r}") from None

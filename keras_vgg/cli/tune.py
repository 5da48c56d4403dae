"""keras-vgg tune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.console import show
from keras_vgg.recipe import Recipe, load_recipe


@dataclasses.dataclass(frozen=True)
class Tune:
    """Search for a better recipe: keras-vgg tune [RECIPE.py] --workdir DIR --budget 30m

    Trials are training runs with other values of some of the recipe's fields, chosen by keras-tuner
    and compared on the validation images; the test images are not read. The folder gets a run
    directory for each, trials.csv, plots, and best_recipe.py for keras-vgg train. Repeating a
    command goes on with what was interrupted, also with more trials or a larger budget. Several
    processes search together where KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
    KERASTUNER_ORACLE_PORT are set: one is called chief.
    """

    workdir: Path
    """The folder of the search: new, empty, or of the same search."""
    recipe: tyro.conf.Positional[Path | None] = None
    """A recipe file (default: the recipe of the digits)."""
    tuner: Literal["random", "bayesian", "hyperband", "grid"] = "hyperband"
    """keras-tuner's algorithm. Hyperband gives most trials few epochs, the best all of them."""
    max_trials: int | None = None
    """At most so many (default: until the budget or the tuner ends)."""
    budget: str | None = None
    """Time for all of it, over all calls: 90s, 30m or 2h (default: no limit)."""
    space: tuple[str, ...] = ()
    """What is tried in place of the default: learning_rate=0.01:0.3:log width_multiplier=0.25,0.5
    train_scale=32-36,32-40 hue=0:0.1:0.02; a single value is set and not searched."""
    only: bool = False
    """Search what --space names and nothing else."""
    max_parameters: int | None = None
    """Refuse larger networks."""
    max_memory_mb: float | None = None
    """Refuse what needs more memory to train, by arithmetic, in units of 10^6 bytes."""
    max_latency_ms: float | None = None
    """Refuse networks that take longer for an image on this machine."""
    seed: int = 0
    """Seed of the tuner: the same seed gives the same trials again."""
    prune: tyro.conf.FlagConversionOff[bool] = True
    """End trials that are below the median of the others (not with hyperband, which halves)."""
    worker_timeout: float = 60.0
    """The chief gives a worker's trial to another after so many seconds without a sign of life."""

    def __call__(self) -> None:
        from keras_vgg import tuning
        from keras_vgg.tuning.live_table import trial_table

        recipe = load_recipe(self.recipe) if self.recipe else Recipe()
        space = tuning.parse_space(self.space)
        found = tuning.search(
            recipe,
            self.workdir,
            tuner=self.tuner,
            space=space if self.only else tuning.default_space(recipe) | space,
            limits=tuning.Limits(self.max_parameters, self.max_memory_mb, self.max_latency_ms),
            max_trials=self.max_trials,
            budget=None if self.budget is None else _seconds(self.budget),
            seed=self.seed,
            prune=self.prune,
            worker_timeout=self.worker_timeout,
        )
        winner = tuning.best(found)
        if winner is None:  # a worker's
            return
        ranked = sorted(found, key=lambda a: a.val_accuracy or 0, reverse=True)
        show(trial_table(ranked[:10]))
        show(
            f"best of {len(found)} trials: {winner.number}, validation accuracy "
            f"{winner.val_accuracy:.2%}, {winner.parameters:,} parameters"
        )
        names = ("best_recipe.py", "trials.csv", "search.png", "parallel_coordinates.png")
        show("\n".join(str(self.workdir / name) for name in names))
        show(f"next: keras-vgg train {self.workdir / names[0]} --workdir RUN")


def _seconds(text: str) -> float:
    """90s, 30m or 2h."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise ValueError(f"the budget is a time such as 90s, 30m or 2h, not {text!r}") from None

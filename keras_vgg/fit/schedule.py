"""Learning rates as pure functions of the recipe, the step and the history."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence

from keras_vgg.recipe import Recipe

Row = Mapping[str, float]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, drops: int = 0) -> float:
    """Return the learning rate of one step.

    Args:
        recipe: The recipe.
        step: The number of steps before this one, since the start of training.
        steps_per_epoch: Steps in an epoch.
        drops: How often a plateau has lowered the learning rate so far.
    """
    first, end, rate = _part(recipe, step // steps_per_epoch)
    step -= first * steps_per_epoch
    warmup = 0 if first else round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return rate * (step + 1) / warmup
    if recipe.schedule == "cosine":
        total = (end - first) * steps_per_epoch
        progress = (step - warmup) / max(1, total - warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.schedule == "step":
        drops = sum(step >= epoch * steps_per_epoch for epoch in recipe.step_epochs)
    elif recipe.schedule == "constant":
        drops = 0
    return rate * recipe.decay_factor**drops


def _part(recipe: Recipe, epoch: int) -> tuple[int, int, float]:
    """Return what lies between two restarts: its first epoch, its end, and its learning rate."""
    starts = (0, *recipe.restart_epochs)
    number = bisect.bisect_right(starts, epoch) - 1
    ends = (*recipe.restart_epochs, recipe.epochs)
    return starts[number], ends[number], (recipe.learning_rate, *recipe.restart_rates)[number]


def part_end(recipe: Recipe, epoch: int) -> int:
    """Return the epoch, from 0, of the next restart after `epoch`, or the number of epochs."""
    return _part(recipe, epoch)[1]


def plateau_drops(recipe: Recipe, history: Sequence[Row]) -> int:
    """Return how often the figure that selects has stopped improving (section 3.1).

    Only the history since the last restart decides, so a resumed run continues exactly.
    """
    best, epochs_waited, drops = -math.inf, 0, 0
    for row in history[_part(recipe, len(history))[0] :]:
        value = row[selecting_column(recipe, history)]
        if value > best:
            best, epochs_waited = value, 0
        else:
            epochs_waited += 1
        if epochs_waited >= recipe.plateau_patience:
            epochs_waited, drops = 0, drops + 1
    return drops


def selecting_column(recipe: Recipe, history: Sequence[Row]) -> str:
    """Return the column of metrics.csv whose highest value selects the best epoch.

    With several labels an image, that is val_pr_auc, whatever `select_by` is.
    """
    if history and figure_column(history[0]) == "val_pr_auc":
        return "val_pr_auc"
    return f"val_{recipe.select_by}"


def figure_column(row: Row) -> str:
    """Return the column of the figure that every run of this kind has."""
    return "val_pr_auc" if "val_pr_auc" in row else "val_accuracy"


def compared_column(row: Row) -> str:
    """Return the column that a `keras_vgg.fit.verdict.Baseline` explains, or not."""
    return "val_balanced_accuracy" if "val_balanced_accuracy" in row else figure_column(row)


def best_row(history: Sequence[Row], recipe: Recipe | None = None) -> Row:
    """Return the best epoch: the highest figure that selects, then the lowest validation loss.

    Args:
        history: Rows of metrics.csv, at least one.
        recipe: Its `select_by` names the figure; None: as the default recipe.
    """
    column = selecting_column(recipe or Recipe(), history)
    return max(history, key=lambda row: (row[column], -row["val_loss"]))


def is_over(recipe: Recipe, history: Sequence[Row]) -> bool:
    """Return whether training ends now: by early stopping, or after the last plateau."""
    if not history:
        return False
    if recipe.schedule == "plateau" and plateau_drops(recipe, history) > recipe.plateau_drops:
        return True
    restart = _part(recipe, len(history))[0]
    since_best = history[-1]["epoch"] - max(restart, best_row(history, recipe)["epoch"])
    return bool(recipe.early_stopping) and since_best >= recipe.early_stopping

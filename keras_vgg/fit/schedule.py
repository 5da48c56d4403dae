"""Learning rates as pure functions of the recipe, the step and the history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from keras_vgg.recipe import Recipe

Row = Mapping[str, float]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, drops: int = 0) -> float:
    """The learning rate of one step.

    Args:
        step: Steps taken since the start of training.
        drops: How often a plateau has lowered it so far.
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.schedule == "cosine":
        total = recipe.epochs * steps_per_epoch
        progress = (step - warmup) / max(1, total - warmup)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if recipe.schedule == "step":
        drops = sum(step >= epoch * steps_per_epoch for epoch in recipe.step_epochs)
    elif recipe.schedule == "constant":
        drops = 0
    return recipe.learning_rate * recipe.decay_factor**drops


def plateau_drops(recipe: Recipe, history: Sequence[Row]) -> int:
    """How often the validation accuracy has stopped improving (section 3.1).

    It is a function of the history alone, so that a resumed run continues it exactly.
    """
    best, waited, drops = -math.inf, 0, 0
    for row in history:
        if row["val_accuracy"] > best:
            best, waited = row["val_accuracy"], 0
        else:
            waited += 1
        if waited >= recipe.plateau_patience:
            waited, drops = 0, drops + 1
    return drops


def best_row(history: Sequence[Row]) -> Row:
    """The epoch that selects the model: highest validation accuracy, then lowest loss."""
    return max(history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))


def is_over(recipe: Recipe, history: Sequence[Row]) -> bool:
    """Whether training ends before its last epoch: stopped early, or past the last plateau."""
    if not history:
        return False
    if recipe.schedule == "plateau" and plateau_drops(recipe, history) > recipe.plateau_drops:
        return True
    since_best = history[-1]["epoch"] - best_row(history)["epoch"]
    return bool(recipe.early_stopping) and since_best >= recipe.early_stopping

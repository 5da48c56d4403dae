"""What a reader of a report should know of a run's images and of its result."""

from __future__ import annotations

from keras_vgg import data
from keras_vgg.fit import best_row
from keras_vgg.fit.schedule import compared_column
from keras_vgg.fit.verdict import baseline
from keras_vgg.run import Run


def remarks_on(run: Run) -> list[str]:
    """Return the remarks that the training of a run printed, on its images and its best network.

    Runs of earlier versions have no inventory, and so no remarks.
    """
    inventory = run.read_json("data.json").get("inventory")
    if inventory is None:
        return []
    lines = data.Inventory.from_json(run.class_names, inventory).lines()
    counts = inventory["class_counts"].get("validation", [])
    if not sum(counts) or not run.history or run.several_labels:
        return lines
    best = best_row(run.history, run.recipe)
    figure = best[compared_column(best)]
    guess = baseline(run.class_names, counts, run.recipe.select_by)
    if not guess.can_be_beaten:
        return [*lines, guess.too_few_line()]
    return [*lines, guess.final_line(figure)] if guess.explains(figure) else lines

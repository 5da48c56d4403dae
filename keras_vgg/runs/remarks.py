"""What a reader of a report should know of a run's images and of its result."""

from __future__ import annotations

from keras_vgg import data
from keras_vgg.fit.verdict import baseline, final_lines
from keras_vgg.run import Run


def remarks_on(run: Run) -> list[str]:
    """Return the remarks that the training of a run printed, on its images and its best network.

    Of a run that has not finished, or of an earlier version, they do not say how far training's own
    accuracy is above that of the kept network. The earliest have no inventory, and so no remarks.
    """
    inventory = run.read_json("data.json").get("inventory")
    if inventory is None:
        return []
    lines = data.Inventory.from_json(run.class_names, inventory).lines()
    printed = run.results.get("remarks")
    if printed is not None:
        return [*lines, *map(str, printed)]
    counts = inventory["class_counts"].get("validation", [])
    if not sum(counts) or not run.history or run.several_labels:
        return lines
    guess = baseline(run.class_names, counts, run.recipe.select_by)
    return [*lines, *final_lines(run.recipe, run.history, guess)]

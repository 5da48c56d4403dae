"""What a reader of a report should know of a run's images and of its result."""

from __future__ import annotations

from keras_vgg import data
from keras_vgg.fit import best_row
from keras_vgg.fit.verdict import commonest_class
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
    accuracy = best_row(run.history, run.recipe).get("val_accuracy") if run.history else None
    if not sum(counts) or accuracy is None or run.several_labels:
        return lines
    commonest = commonest_class(run.class_names, counts)
    if not commonest.can_be_beaten:
        return [*lines, commonest.too_few_line()]
    return [*lines, commonest.final_line(accuracy)] if commonest.explains(accuracy) else lines

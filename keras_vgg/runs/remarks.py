"""What a reader of a report should know of a run's images and of its result."""

from __future__ import annotations

from typing import Any

from keras_vgg import data
from keras_vgg.fit import best_row
from keras_vgg.fit.verdict import Commonest
from keras_vgg.run import Run


def remarks_on(run: Run) -> list[str]:
    """Return the remarks that the training of a run printed, on its images and its best network.

    Runs of earlier versions have no inventory, and so no remarks.
    """
    inventory = run.read_json("data.json").get("inventory")
    if inventory is None:
        return []
    lines = data.Inventory.from_json(run.class_names, inventory).lines()
    commonest = _commonest(run.class_names, inventory["class_counts"].get("validation", []))
    accuracy = best_row(run.history, run.recipe).get("val_accuracy") if run.history else None
    if commonest is None or accuracy is None or run.several_labels:
        return lines
    if not commonest.can_be_beaten:
        return [*lines, commonest.too_few_line()]
    return [*lines, commonest.final_line(accuracy)] if commonest.explains(accuracy) else lines


def _commonest(class_names: tuple[str, ...], counts: list[int]) -> Commonest | None:
    """Return the commonest class of the validation images; None: the classes are not counted."""
    total = sum(counts)
    if total == 0:
        return None
    largest: Any = max(range(len(counts)), key=counts.__getitem__)
    return Commonest(class_names[largest], counts[largest] / total, total)

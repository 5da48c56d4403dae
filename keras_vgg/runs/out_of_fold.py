"""The table of a cross-validation: an answer for each image, by the network that never saw it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vgg import data
from keras_vgg.data.left_out import printable
from keras_vgg.files import write_atomically

COLUMNS = ("path", "group", "fold", "class")
_PROBABILITY = "probability_"  # and the class, in the header


@dataclass(frozen=True)
class Answers:
    """The held-out images of a fold, their labels, and the probabilities of each class."""

    split: data.Split
    labels: np.ndarray
    probabilities: np.ndarray


def write_table(path: Path, folds: Sequence[Answers], class_names: Sequence[str]) -> None:
    """Write a row for each image, fold by fold."""
    class_names = _different(class_names)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{_PROBABILITY}{name}" for name in class_names)])
    for number, fold in enumerate(folds, 1):
        groups = fold.split.groups
        for place in range(fold.split.size):
            name = f"test image {place} of fold {number}"
            if fold.split.paths is not None:
                name = printable(fold.split.paths[place])
            group = "" if groups is None else printable(groups[place] or "")
            label = _label_text(fold.labels[place], class_names)
            # Nine digits give the same float32 when they are read.
            shares = [f"{share:.9g}" for share in fold.probabilities[place]]
            writer.writerow([name, group, number, label, *shares])
    write_atomically(path, lambda partial: partial.write_text(text.getvalue(), encoding="utf-8"))


def _different(class_names: Sequence[str]) -> list[str]:
    """Return the names; those of several classes, such as ImageNet's cranes, get their numbers."""
    counts = Counter(class_names)
    return [
        name if counts[name] == 1 else f"{name} ({number})"
        for number, name in enumerate(class_names)
    ]


def _label_text(label: np.ndarray, class_names: Sequence[str]) -> str:
    """Return the class of an image, or its labels as a JSON list."""
    if np.ndim(label) == 0:
        return class_names[int(label)]
    names = [name for name, present in zip(class_names, label, strict=True) if present]
    return json.dumps(names, ensure_ascii=False)


def read_table(
    path: Path, class_names: Sequence[str], several_labels: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels, probabilities and groups, as `keras_vgg.evaluation.Evaluation` has them."""
    numbers = {name: number for number, name in enumerate(_different(class_names))}
    labels, probabilities, groups = [], [], []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, strict=True)
            if len(next(rows)) != len(COLUMNS) + len(class_names):
                raise ValueError("it has other columns")
            for row in rows:
                label = row[COLUMNS.index("class")]
                if several_labels:
                    present = [numbers[name] for name in json.loads(label)]
                    labels.append(np.isin(np.arange(len(class_names)), present))
                else:
                    labels.append(numbers[label])
                groups.append(row[COLUMNS.index("group")])
                probabilities.append([float(share) for share in row[len(COLUMNS) :]])
        kind = np.uint8 if several_labels else np.int32
        return np.array(labels, kind), np.array(probabilities, np.float32), np.array(groups)
    except (ValueError, KeyError, IndexError, StopIteration, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error

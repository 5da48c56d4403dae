"""Write the answers of a `Predictor` for a program: as CSV or as JSON Lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TextIO

from keras_vgg.runs.predictor import Answer

AnswerFormat = Literal["csv", "jsonl"]


def write_answers(
    answers: Iterable[Answer],
    file: TextIO,
    format: AnswerFormat,
    class_names: Sequence[str],
    top: int | None = 5,
    *,
    several_labels: bool = False,
) -> tuple[int, list[Answer]]:
    """Write one row for each answer, as the answers come.

    A CSV has the columns path, class, probability and reason, then class_2, probability_2 and so on
    for the `top` classes; for all classes, one column for each class, in the order of the network.
    A line of JSON has path, class, probability, reason, and `probabilities`: a list of
    {"class", "probability"}, the most probable first. The reason says why a file could not be
    read; then the other values are empty or null. The class may be "unknown".

    With several labels an image, `several_labels`, the column labels follows the path: all labels
    of the image, the most probable first, with | between them in a CSV, and as a list in JSON.

    Args:
        answers: The answers.
        file: An open text file; a CSV needs newline="".
        format: "csv" or "jsonl".
        class_names: One name for each class.
        top: How many classes to write; None: all.
        several_labels: Whether an image may have several labels.

    Returns:
        The number of answers, and the answers without probabilities.
    """
    count, bad = 0, []
    shown = len(class_names) if top is None else min(top, len(class_names))
    writer = csv.writer(file, lineterminator="\n")
    if format == "csv":
        columns = ["class", "probability", "reason", *_columns(class_names, top)]
        writer.writerow(["path", *(["labels"] if several_labels else []), *columns])
    for answer in answers:
        count += 1
        if answer.probabilities is None:
            bad.append(answer)
        if format == "csv":
            row = _row(answer, shown, top is None)
            if several_labels:
                row.insert(1, "|".join(name for name, _ in answer.labels))
            writer.writerow(row)
        else:
            fields = _fields(answer, shown)
            if several_labels:
                labels = None if answer.reason else [name for name, _ in answer.labels]
                fields = {"path": fields.pop("path"), "labels": labels, **fields}
            file.write(json.dumps(fields) + "\n")
    return count, bad


def _columns(class_names: Sequence[str], top: int | None) -> list[str]:
    if top is None:
        return [f"probability of {name}" for name in class_names]
    places = range(2, 1 + min(top, len(class_names)))
    return [f"{column}_{place}" for place in places for column in ("class", "probability")]


def _row(answer: Answer, shown: int, every_class: bool) -> list[Any]:
    if answer.probabilities is None:
        columns = shown if every_class else 2 * (shown - 1)
        return [answer.path, "", "", answer.reason, *[""] * columns]
    ranked = answer.ranked(shown)
    first = [answer.path, answer.name, _digits(ranked[0][1]), ""]
    if every_class:
        return [*first, *map(_digits, answer.probabilities)]
    return [*first, *(cell for name, p in ranked[1:] for cell in (name, _digits(p)))]


def _fields(answer: Answer, shown: int) -> dict[str, Any]:
    ranked = [{"class": name, "probability": float(_digits(p))} for name, p in answer.ranked(shown)]
    return {
        "path": answer.path,
        "class": answer.name,
        "probability": ranked[0]["probability"] if ranked else None,
        "reason": answer.reason or None,
        "probabilities": ranked,
    }


def _digits(probability: float) -> str:
    """Return all digits that a float32 has."""
    return f"{probability:.9g}"

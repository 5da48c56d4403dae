"""What a page shows, as plain values: `keras_vgg.runs.report` gathers them, the page draws them.

Fractions are in [0, 1]. Every text may be anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Images whose answer is as sure as (low, high]; the last two are None without images."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ClassScores:
    """What is right of one class; None where there is nothing to divide by."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class Scores:
    """How good a run is on a split, as `keras_vgg.evaluation` found it; fractions in [0, 1]."""

    count: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float | None
    top5_interval: tuple[float, float] | None
    loss: float
    classes: Sequence[ClassScores]
    confusion: np.ndarray
    bins: Sequence[Bin]
    calibration_error: float

    @property
    def class_names(self) -> list[str]:
        return [one.name for one in self.classes]


@dataclass(frozen=True)
class Picture:
    """uint8 [h, w, 3] RGB, and what it shows."""

    pixels: np.ndarray
    alt: str
    caption: str


@dataclass(frozen=True)
class Shown:
    """An image with the network's answers (class, probability, whether it is the true one)."""

    title: str
    file: str | None
    answers: Sequence[tuple[str, float, bool]]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Evaluated:
    """An entry of results.json; fractions in [0, 1]."""

    name: str
    count: int
    top1: float
    interval: tuple[float, float] | None
    top5: float | None
    loss: float


@dataclass(frozen=True)
class Exported:
    """A row of the exports' table; None where it was not measured."""

    format: str
    bytes: int
    top1: float | None
    top5: float | None
    agreement: float | None = None
    max_difference: float | None = None
    latency_ms: Sequence[tuple[float, float]] = ()
    peak_bytes: int | None = None


@dataclass(frozen=True)
class RunContent:
    """One run.

    Attributes:
        number: From 1; what a plot calls it.
        changes: (field, its value, the default) of what is not as in `Recipe()`.
        split: The split that `scores`, `mistakes` and `hits` are of.
        explained: The layer whose map their pictures have over them.
        missing: Section (evaluation, evaluations, export, metrics) -> why it is not there and how
            to get it.
    """

    number: int
    name: str
    subtitle: str
    changes: Sequence[tuple[str, Any, Any]]
    recipe: Sequence[tuple[str, Any]]
    environment: Sequence[tuple[str, Any]]
    history: Sequence[Mapping[str, float]] = ()
    best_epoch: int | None = None
    parameters: int | None = None
    training_seconds: float | None = None
    evaluated: Sequence[Evaluated] = ()
    split: str | None = None
    scores: Scores | None = None
    mistakes: Sequence[Shown] = ()
    hits: Sequence[Shown] = ()
    explained: str = ""
    exports: Sequence[Exported] = ()
    export_images: int | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def best_accuracy(self) -> float | None:
        """On the validation images, at the best epoch."""
        rows = [row for row in self.history if row.get("epoch") == self.best_epoch]
        return rows[0].get("val_accuracy") if rows else None


@dataclass(frozen=True)
class Comparison:
    """A run beside the first: the difference of the top-1 accuracies, and McNemar's p."""

    difference: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Page:
    """All of a report.

    Attributes:
        comparisons: One for each run after the first; empty where they were not compared.
        differences: (field, each run's value) of what the recipes do not share.
        not_compared: Why there is no comparison of several runs, and how to get it.
        made: When, and by which version.
    """

    title: str
    runs: Sequence[RunContent]
    made: str
    comparisons: Sequence[Comparison] = ()
    differences: Sequence[tuple[str, Sequence[Any]]] = ()
    not_compared: str | None = None

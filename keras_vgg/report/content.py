"""The content of a report as plain values, which `keras_vgg.runs.report` gathers.

Fractions are in [0, 1]. Any text may be hostile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Images with a confidence in (low, high]; without images, the last two are None."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class; None for a share of zero images."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class FigureRow:
    """A row of the table of figures, as texts; `baseline` is empty if nobody uses one."""

    title: str
    value: str
    interval: str
    baseline: str
    above_baseline: bool


@dataclass(frozen=True)
class ClassCurves:
    """The curves of one class against the rest: [2, points] in [0, 1], x then y.

    `share` is the share of the class's images.
    """

    name: str
    share: float
    auc: float
    average_precision: float
    roc: np.ndarray
    precision_recall: np.ndarray


@dataclass(frozen=True)
class Majority:
    """The commonest class, and the share of images that it gets right as the only answer."""

    name: str
    share: float


@dataclass(frozen=True)
class Scores:
    """The evaluation of a run on some images.

    `over`: what the intervals are over, if it is not the images, such as "over 56 groups".
    """

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
    balanced_accuracy: float | None = None
    majority: Majority | None = None
    figures: Sequence[FigureRow] = ()
    curves: Sequence[ClassCurves] = ()
    over: str = ""

    @property
    def class_names(self) -> list[str]:
        return [one.name for one in self.classes]


@dataclass(frozen=True)
class LabelRow:
    """The scores of one label by itself; None for a figure that is undefined."""

    name: str
    images: int
    average_precision: float | None
    auc: float | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class LabelScores:
    """The evaluation of a run that gives an image several labels.

    `own_thresholds`: the thresholds were chosen on these images. `over`: as in `Scores`.
    """

    count: int
    figures: Sequence[FigureRow]
    labels: Sequence[LabelRow]
    own_thresholds: bool
    over: str = ""


@dataclass(frozen=True)
class Picture:
    """An image, uint8 [h, w, 3] RGB, with its alternative text and caption."""

    pixels: np.ndarray
    alt: str
    caption: str


@dataclass(frozen=True)
class Shown:
    """An image with the network's answers: (class, probability, whether it is the true class)."""

    title: str
    file: str | None
    answers: Sequence[tuple[str, float, bool]]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Evaluated:
    """An entry of results.json; `source` is another set than the run's own."""

    name: str
    count: int
    top1: float
    interval: tuple[float, float] | None
    top5: float | None
    loss: float
    balanced_accuracy: float | None = None
    source: str | None = None


@dataclass(frozen=True)
class EvaluatedLabels:
    """An entry of results.json of several labels an image; None for an undefined figure."""

    name: str
    count: int
    mean_average_precision: float | None
    interval: tuple[float, float] | None
    auc: float | None
    micro_f1: float | None
    macro_f1: float | None
    exact_match: float | None
    source: str | None = None


@dataclass(frozen=True)
class Exported:
    """A row of the table of exports; None for a value that was not measured.

    With several labels an image, `top1` is the mean average precision.
    """

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
        number: From 1; plots label the run with it.
        changes: (field, value, default) of the fields that differ from `Recipe()`.
        selecting_column: The column of `history` whose highest value selects the best epoch.
        images_title: The images of `scores`, `mistakes` and `hits`, such as "test images".
        explained: The layer whose Grad-CAM is over the pictures.
        verified_on: The images that verified `exports`, such as "40 validation images".
        remarks: What a reader should know of the images and the result; empty if nothing is wrong.
        missing: Section (evaluation, evaluations, export, metrics) -> why it is missing, and how to
            get it.
    """

    number: int
    name: str
    subtitle: str
    changes: Sequence[tuple[str, Any, Any]]
    recipe: Sequence[tuple[str, Any]]
    environment: Sequence[tuple[str, Any]]
    history: Sequence[Mapping[str, float]] = ()
    best_epoch: int | None = None
    selecting_column: str = "val_accuracy"
    parameters: int | None = None
    training_seconds: float | None = None
    evaluated: Sequence[Evaluated] = ()
    images_title: str | None = None
    scores: Scores | None = None
    evaluated_labels: Sequence[EvaluatedLabels] = ()
    labels: LabelScores | None = None
    several_labels: bool = False
    mistakes: Sequence[Shown] = ()
    hits: Sequence[Shown] = ()
    explained: str = ""
    exports: Sequence[Exported] = ()
    verified_on: str | None = None
    remarks: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def best_value(self) -> float | None:
        """The validation figure that selects, of the best epoch."""
        rows = [row for row in self.history if row.get("epoch") == self.best_epoch]
        return rows[0].get(self.selecting_column) if rows else None

    @property
    def figure(self) -> str:
        """The figure that selects: "accuracy", "balanced_accuracy", or "pr_auc"."""
        return self.selecting_column.removeprefix("val_")


@dataclass(frozen=True)
class Comparison:
    """A run compared with the first: the difference of the top-1 accuracies, and McNemar's p."""

    difference: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        made: The date and the version of the package.
        comparisons: One for each run after the first; empty if the runs are not compared.
        differences: (field, value of each run) of the fields in which the recipes differ.
        not_compared: Why several runs are not compared, and how to compare them.
    """

    title: str
    runs: Sequence[RunContent]
    made: str
    comparisons: Sequence[Comparison] = ()
    differences: Sequence[tuple[str, Sequence[Any]]] = ()
    not_compared: str | None = None

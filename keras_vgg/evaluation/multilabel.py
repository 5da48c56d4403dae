"""Results of an evaluation in which an image has any number of labels, also none."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from keras_vgg.evaluation.figure import Figure, to_fields
from keras_vgg.evaluation.resampling import (
    Counted,
    Ranking,
    interval_of,
    mean_over_classes,
    rank_resamplings,
    ratio,
    resampled_counts,
)
from keras_vgg.finite import require_probabilities

THRESHOLD = 0.5


def choose_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the threshold of each class that maximises its F1 on validation images.

    An image has a label if its probability is at least the threshold. A threshold lies halfway
    between the lowest probability that gets the label and the next lower one (0 if there is none).
    Of several with the same F1, the highest is taken: it gives the label to the fewest images. A
    class that no image has gets 0.5.

    Args:
        labels: [n, classes], 1 where an image has a label, else 0.
        probabilities: [n, classes] in [0, 1].

    Returns:
        [classes] float64 in [0, 1].

    Raises:
        ValueError: the arrays do not fit each other, or have no image; labels are not 0 or 1.
    """
    labels, probabilities = _checked(labels, probabilities)
    thresholds = [
        _threshold(has, scores) for has, scores in zip(labels.T, probabilities.T, strict=True)
    ]
    return np.array(thresholds)


def _threshold(has_label: np.ndarray, scores: np.ndarray) -> float:
    if not has_label.any():
        return THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # the ends of the ties
    hits = np.cumsum(has_label[order])[last]
    # The first maximum is the highest threshold. F1 as a quotient of whole numbers: ties are exact.
    best = int(np.argmax(2 * hits / (last + 1 + has_label.sum())))
    lower = ranked[last[best + 1]] if best + 1 < len(last) else 0.0
    # float64 keeps the middle of two float32 numbers between them.
    return float((ranked[last[best]] + lower) / 2)


@dataclass(frozen=True, eq=False)
class MultiLabelEvaluation(Counted):
    """The predictions of one model for images with any number of labels, and their figures.

    Every figure equals scikit-learn's where that gives no warning.

    Attributes:
        labels: [n, classes] uint8: 1 where an image has a label, else 0.
        probabilities: [n, classes] float32, each in [0, 1]; a row has any sum.
        class_names: One name for each class, in the order of the model's outputs.
        thresholds: [classes]: an image gets a label if the probability is at least this. Choose
            them on validation images, with `choose_thresholds`. Default: 0.5 for all.
        groups: As in `Evaluation`.

    Raises:
        ValueError: the arrays do not fit each other or the names, or have no image; labels are not
            0 or 1; a threshold is not in [0, 1].
    """

    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    thresholds: np.ndarray = field(default_factory=lambda: np.empty(0))
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        labels, _ = _checked(self.labels, self.probabilities)
        object.__setattr__(self, "labels", labels.astype(np.uint8))
        classes = len(self.class_names)
        if self.labels.shape[1] != classes:
            raise ValueError(f"labels {self.labels.shape} do not fit {classes} class names")
        thresholds = np.asarray(self.thresholds, np.float64)
        if not thresholds.size:
            thresholds = np.full(classes, THRESHOLD)
        if thresholds.shape != (classes,):
            raise ValueError(
                f"thresholds must be {classes} numbers, one for each class, not {thresholds.shape}"
            )
        wrong = thresholds[~((thresholds >= 0) & (thresholds <= 1))]
        if wrong.size:
            raise ValueError(f"a threshold must be in [0, 1], not {wrong[0]:g}")
        object.__setattr__(self, "thresholds", thresholds)

    @cached_property
    def predicted(self) -> np.ndarray:
        """[n, classes] uint8: 1 where the model gives a label."""
        return (self.probabilities >= self.thresholds).astype(np.uint8)

    @cached_property
    def images(self) -> np.ndarray:
        """[classes] int64: the number of images that have each label."""
        return self.labels.sum(axis=0, dtype=np.int64)

    @cached_property
    def precision(self) -> np.ndarray:
        """[classes] float64: share of right answers among a label's answers; nan without any."""
        return ratio(self._hits, self.predicted.sum(axis=0, dtype=np.int64))

    @cached_property
    def recall(self) -> np.ndarray:
        """[classes] float64: share of a label's images that get it; nan without any."""
        return ratio(self._hits, self.images)

    @cached_property
    def f1(self) -> np.ndarray:
        """[classes] float64: harmonic mean of precision and recall; nan if both are nan."""
        either = self.images + self.predicted.sum(axis=0, dtype=np.int64)
        return ratio(2 * self._hits, either)

    @cached_property
    def _hits(self) -> np.ndarray:
        return (self.labels & self.predicted).sum(axis=0, dtype=np.int64)

    @property
    def average_precision(self) -> np.ndarray:
        """[classes] float64: area under each precision-recall curve; nan if no image has it."""
        return self._by_class["average_precision"]

    @property
    def auc(self) -> np.ndarray:
        """[classes] float64: area under each ROC curve; nan if no image, or all, have the label."""
        return self._by_class["auc"]

    @cached_property
    def auc_intervals(self) -> list[tuple[float, float] | None]:
        """The 95 % bootstrap interval of each class's `auc`; None if it is undefined."""
        drawn = self._resampled["auc_by_class"][1:]
        return [
            None if np.isnan(area) else interval_of(values)
            for area, values in zip(self.auc, drawn.T, strict=True)
        ]

    def figures(self) -> dict[str, Figure]:
        """Return mean_average_precision, auc, micro_f1, macro_f1 and exact_match.

        The first two are means over the classes that define them: over those that at least one
        image has, and for auc also that one image lacks. F1 is at the thresholds; a class that no
        image has and none gets counts as 0 in macro_f1, as in scikit-learn. exact_match is the
        share of images that get all their labels and no other. Intervals: 95 %, percentile, over
        images or groups drawn with replacement, as often as `keras_vgg.evaluation.figures` states
        for auc; an exact_match of 0 or 1 has the exact interval, as `Evaluation.interval`.
        """
        return dict(self._figures)

    @cached_property
    def _figures(self) -> dict[str, Figure]:
        prevalence = self.images[self.images > 0] / self.count
        none_has = "no image has a label"
        titles: dict[str, tuple[str, float | None, str]] = {
            "mean_average_precision": (
                "mean average precision",
                float(prevalence.mean()) if len(prevalence) else None,
                none_has,
            ),
            "auc": ("mean AUC of the labels", 0.5, "each label has all images, or none"),
            "micro_f1": ("micro F1", None, "no image has a label or gets one"),
            "macro_f1": ("macro F1", None, "no image has a label or gets one"),
            "exact_match": ("exact match", self._commonest_share, ""),
        }
        figures = {}
        for key, (title, baseline, undefined) in titles.items():
            values = self._resampled[key]
            if np.isnan(values[0]):
                figures[key] = Figure(title, None, None, undefined=undefined)
            else:
                figures[key] = Figure(
                    title,
                    float(values[0]),
                    self._interval(key, values),
                    baseline,
                    is_share=key != "auc",
                )
        return figures

    def _interval(self, key: str, values: np.ndarray) -> tuple[float, float] | None:
        """Return the interval of a figure from its value and those of its resamplings."""
        if key == "exact_match" and values[0] in (0.0, 1.0):
            return self._all_or_none_interval(float(values[0]))
        return interval_of(values[1:])

    @cached_property
    def _commonest_share(self) -> float:
        """Share of the commonest combination of labels: the best exact match of one answer."""
        _, counts = np.unique(self.labels, axis=0, return_counts=True)
        return float(counts.max() / self.count)

    @cached_property
    def _rankings(self) -> list[Ranking]:
        columns = zip(self.probabilities.T, self.labels.T, strict=True)
        return [Ranking(scores, has_label) for scores, has_label in columns]

    @cached_property
    def _by_class(self) -> dict[str, np.ndarray]:
        itself = next(resampled_counts(self.count, 0))
        points = [ranking.points(itself) for ranking in self._rankings]
        return {
            "auc": np.array([one.auc()[0] for one in points]),
            "average_precision": np.array([one.average_precision()[0] for one in points]),
        }

    @cached_property
    def _resampled(self) -> dict[str, np.ndarray]:
        """Return each figure of the images and of the resampled images."""
        hits, labels, predicted = (
            array.astype(np.float64)
            for array in (self.labels & self.predicted, self.labels, self.predicted)
        )
        exact = (self.labels == self.predicted).all(axis=1).astype(np.float64)
        blocks: list[dict[str, np.ndarray]] = []
        resamplings = rank_resamplings(self.count, len(self.class_names))
        for counts in resampled_counts(self.count, resamplings, groups=self._group_of):
            points = [ranking.points(counts) for ranking in self._rankings]
            areas = np.stack([one.auc() for one in points], axis=1)
            precisions = np.stack([one.average_precision() for one in points], axis=1)
            drawn = counts.astype(np.float64)
            right, either = drawn @ hits, drawn @ labels + drawn @ predicted
            blocks.append(
                {
                    "auc_by_class": areas,
                    "average_precision_by_class": precisions,
                    "micro_f1": ratio(2 * right.sum(axis=1), either.sum(axis=1)),
                    "f1_by_class": ratio(2 * right, either),
                    "exact_match": drawn @ exact / drawn.sum(axis=1),
                }
            )
        values = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
        f1 = values["f1_by_class"]
        if not np.isnan(f1[0]).all():
            f1[0] = np.nan_to_num(f1[0])  # as in scikit-learn
        return values | {
            "mean_average_precision": mean_over_classes(values["average_precision_by_class"]),
            "auc": mean_over_classes(values["auc_by_class"]),
            "macro_f1": mean_over_classes(f1),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain Python values for JSON; None stands for nan."""

        def plain(values: np.ndarray) -> list[float | None]:
            return [None if np.isnan(value) else float(value) for value in values]

        return {
            "count": self.count,
            **({} if self.group_count is None else {"groups": self.group_count}),
            # Lists in class order: names may repeat.
            "class_names": list(self.class_names),
            "images": self.images.tolist(),
            "thresholds": self.thresholds.tolist(),
            "precision_by_class": plain(self.precision),
            "recall_by_class": plain(self.recall),
            "f1_by_class": plain(self.f1),
            "average_precision_by_class": plain(self.average_precision),
            "auc_by_class": plain(self.auc),
            "auc_by_class_intervals": [
                None if interval is None else list(interval) for interval in self.auc_intervals
            ],
            **to_fields(self._figures),
        }


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.ndim != 2 or labels.shape != probabilities.shape or not labels.size:
        raise ValueError(
            "labels and probabilities must both be [n, classes] with n >= 1, not "
            f"{labels.shape} and {probabilities.shape}"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1 for each class")
    if not np.isfinite(probabilities).all():
        raise ValueError("the probabilities are not finite: they hold nan or inf")
    require_probabilities(probabilities)
    return labels, probabilities

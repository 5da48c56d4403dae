"""ROC and precision-recall curves of an evaluation, each class against the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_vgg.evaluation.resampling import Ranking, resampled_counts
from keras_vgg.evaluation.result import Evaluation

MOST_CLASSES = 10
_MOST_POINTS = 200  # of a curve: more are not seen


@dataclass(frozen=True, eq=False)
class ClassCurves:
    """The curves of one class against the rest, from the strictest threshold on.

    Attributes:
        name: The class.
        share: Share of its images.
        auc, average_precision: The areas under the curves.
        false_alarms, sensitivity: [points] the ROC curve, from (0, 0) to (1, 1).
        recall, precision: [points] the precision-recall curve, from recall 0 to 1.
    """

    name: str
    share: float
    auc: float
    average_precision: float
    false_alarms: np.ndarray
    sensitivity: np.ndarray
    recall: np.ndarray
    precision: np.ndarray


def class_curves(evaluation: Evaluation) -> list[ClassCurves]:
    """Return the curves of each class against the rest; for two classes, of the second one.

    A class without images, or with all of them, has no curves. More than 10 classes have none.
    """
    classes = len(evaluation.class_names)
    if classes > MOST_CLASSES:
        return []
    return [
        _curves(
            evaluation.class_names[number],
            evaluation.probabilities[:, number],
            evaluation.labels == number,
        )
        for number in ([1] if classes == 2 else range(classes))
        if 0 < np.count_nonzero(evaluation.labels == number) < evaluation.count
    ]


def _curves(name: str, scores: np.ndarray, positive: np.ndarray) -> ClassCurves:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_alarms, sensitivity, _ = roc_curve(positive, scores)
    precision, recall, _ = precision_recall_curve(positive, scores)
    points = Ranking(scores, positive).points(next(resampled_counts(len(scores), 0)))
    kept, kept_of_recall = _some_of(len(false_alarms)), _some_of(len(recall))
    return ClassCurves(
        name=name,
        share=float(positive.mean()),
        auc=float(points.auc()[0]),
        average_precision=float(points.average_precision()[0]),
        false_alarms=false_alarms[kept],
        sensitivity=sensitivity[kept],
        recall=recall[::-1][kept_of_recall],
        precision=precision[::-1][kept_of_recall],
    )


def _some_of(points: int) -> np.ndarray:
    """Return the places of at most 200 points, the first and the last among them."""
    return np.unique(np.linspace(0, points - 1, _MOST_POINTS).round().astype(int))

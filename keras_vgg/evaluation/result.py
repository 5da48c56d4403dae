"""Results of an evaluation: accuracies with intervals; fusion and comparison of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from keras_vgg.evaluation.figure import SPECIFICITY, Figure, figures, to_fields
from keras_vgg.evaluation.multilabel import MultiLabelEvaluation
from keras_vgg.evaluation.resampling import (
    Counted,
    group_numbers,
    interval_of,
    resampled_means,
)
from keras_vgg.finite import require_probabilities

_CLIP = 1e-7  # keras.config.epsilon(), where Keras' cross-entropy clips
_RESAMPLINGS = 20_000


@dataclass(frozen=True, eq=False)
class Evaluation(Counted):
    """The predictions of one model on one data set, and the figures that follow from them.

    Attributes:
        labels: [n] integers in [0, classes), the true class of each image.
        probabilities: [n, classes] float32 in [0, 1]; row i is the prediction for labels[i].
        class_names: One name for each class, in the order of the model's outputs.
        groups: [n] the group of each image, such as a patient: intervals are then over groups. An
            image whose group is None, empty or NaN is by itself. None: intervals are over images.

    Raises:
        ValueError: the arrays do not fit each other or the names; a label is no class; a
            probability is not finite or not in [0, 1].
    """

    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        classes, labels = len(self.class_names), np.asarray(self.labels)
        if labels.ndim != 1 or np.shape(self.probabilities) != (labels.size, classes):
            raise ValueError(
                f"{classes} classes need labels [n] and probabilities [n, {classes}], not"
                f" {list(labels.shape)} and {list(np.shape(self.probabilities))}"
            )
        if labels.size:
            if labels.dtype.kind not in "iu" or labels.min() < 0:
                raise ValueError("labels must be integers from 0")
            if labels.max() >= classes:
                raise ValueError(f"label {labels.max()} is none of the {classes} classes")
        if not np.isfinite(self.probabilities).all():
            raise ValueError("a probability is not finite")
        require_probabilities(np.asarray(self.probabilities))

    @cached_property
    def top1(self) -> float:
        """Fraction of images whose most probable class is the true one."""
        return float(np.mean(self.probabilities.argmax(axis=1) == self.labels))

    @cached_property
    def top5(self) -> float | None:
        """Fraction with the true class among the five most probable; None for <= 5 classes."""
        classes = len(self.class_names)
        if classes <= 5:
            return None
        from sklearn.metrics import top_k_accuracy_score

        return float(
            top_k_accuracy_score(self.labels, self.probabilities, k=5, labels=range(classes))
        )

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy in nats, probabilities clipped to [1e-7, 1 - 1e-7] as in Keras."""
        true = self.probabilities[np.arange(self.count), self.labels].astype(np.float64)
        return float(-np.log(np.clip(true, _CLIP, 1 - _CLIP)).mean())

    @cached_property
    def confusion(self) -> np.ndarray:
        """[classes, classes] int64 counts: rows are true classes, columns predicted ones."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(
            self.labels, self.probabilities.argmax(axis=1), labels=range(len(self.class_names))
        )

    @cached_property
    def per_class(self) -> np.ndarray:
        """[classes] float64: accuracy on the images of each class; nan if it has no images."""
        images = self.confusion.sum(axis=1)
        return np.divide(
            self.confusion.diagonal(),
            images,
            out=np.full(len(images), np.nan),
            where=images > 0,
        )

    @cached_property
    def precision(self) -> np.ndarray:
        """[classes] float64: share of right answers among the answers; nan if there are none."""
        answers = self.confusion.sum(axis=0)
        return np.divide(
            self.confusion.diagonal(), answers, out=np.full(len(answers), np.nan), where=answers > 0
        )

    @cached_property
    def f1(self) -> np.ndarray:
        """[classes] float64: harmonic mean of per_class and precision; nan if both are nan."""
        either = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return np.divide(
            2 * self.confusion.diagonal(),
            either,
            out=np.full(len(either), np.nan),
            where=either > 0,
        )

    def figures(self, specificity: float = SPECIFICITY) -> dict[str, Figure]:
        """Return the figures beside accuracy, with intervals: see `keras_vgg.evaluation.figures`.

        Raises:
            ValueError: there is no image; specificity is not in (0, 1).
        """
        if specificity not in self._figures:
            self._figures[specificity] = figures(
                self.labels,
                self.probabilities,
                self.class_names,
                specificity=specificity,
                groups=self.groups,
            )
        return dict(self._figures[specificity])

    @cached_property
    def _figures(self) -> dict[float, dict[str, Figure]]:
        """The figures that were asked for, by specificity."""
        return {}

    @cached_property
    def majority_class(self) -> str:
        """Name of the class with the most images; the first of several."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return self.class_names[int(counts.argmax())]

    def to_dict(self, specificity: float = SPECIFICITY) -> dict[str, Any]:
        """Return all figures as plain Python values for JSON; None stands for nan."""
        return {
            "count": self.count,
            **({} if self.group_count is None else {"groups": self.group_count}),
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "top1_interval": list(self.interval()),
            # Lists in class order: names may repeat (ImageNet has two cranes), so no dict.
            "class_names": list(self.class_names),
            "per_class": [None if np.isnan(a) else float(a) for a in self.per_class],
            "confusion": self.confusion.tolist(),
            "majority_class": self.majority_class,
            **to_fields(self.figures(specificity)),
            **({"specificity": specificity} if len(self.class_names) == 2 else {}),
        }

    def interval(self, top: int = 1, level: float = 0.95) -> tuple[float, float]:
        """Return the bootstrap interval of the top-1 or top-5 accuracy, as (low, high).

        The number of right answers among n images drawn with replacement is binomial. So its
        percentiles are exact, as if there were infinitely many resamplings. With groups, whole
        groups are drawn, up to 20,000 times. If all answers are right, or none, the bootstrap has
        no width: the interval is then Clopper and Pearson's exact one, for as many trials as there
        are images or groups. The interval covers the choice of images or groups, not the seed of
        the training.

        Raises:
            ValueError: level is not in (0, 1); top is neither 1 nor 5; top is 5 and there are five
                classes or fewer.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), not {level}")
        accuracy = self.top1 if top == 1 else self.top5 if top == 5 else None
        if accuracy is None:
            raise ValueError(f"there is no top-{top} accuracy for {len(self.class_names)} classes")
        if accuracy in (0.0, 1.0):
            return self._all_or_none_interval(accuracy, level)
        if self._group_of is not None:
            bounds = interval_of(resampled_means(self._hits(top), self._group_of), level)
            assert bounds is not None, "each draw has images"
            return bounds
        from scipy.stats import binom

        tails = ((1 - level) / 2, (1 + level) / 2)
        low, high = binom.ppf(tails, self.count, accuracy) / self.count
        return float(low), float(high)

    def _hits(self, top: int) -> np.ndarray:
        """Return 1 for each image whose true class is among the most probable, else 0."""
        if top == 1:
            return (self.probabilities.argmax(axis=1) == self.labels).astype(np.float64)
        # The order of scikit-learn, which has the last of equal classes first.
        ranked = np.argsort(self.probabilities, axis=1, kind="stable")[:, ::-1][:, :top]
        return (ranked == self.labels[:, np.newaxis]).any(axis=1).astype(np.float64)


Evaluated = TypeVar("Evaluated", Evaluation, MultiLabelEvaluation)


def fuse(evaluations: Sequence[Evaluated]) -> Evaluated:
    """Average the posteriors of several evaluations of the same images (section 4.4).

    All are of one kind. The groups, and with several labels an image the thresholds, are those of
    the first.

    Raises:
        ValueError: there is no evaluation, or the images or classes differ.
    """
    if not evaluations:
        raise ValueError("there is no evaluation to fuse")
    first = evaluations[0]
    for other in evaluations[1:]:
        _require_same_images(first, other)
    if len(evaluations) == 1:
        return first
    total = np.zeros(first.probabilities.shape)
    for one in evaluations:
        total += one.probabilities
    mean = (total / len(evaluations)).astype(np.float32)
    return replace(first, probabilities=mean)


@dataclass(frozen=True)
class Comparison:
    """The difference of two evaluations, `one` and `other`, of the same images.

    Attributes:
        difference: Top-1 accuracy of `other` minus that of `one`.
        interval: Bootstrap interval of the difference; both evaluations are resampled together, by
            whole groups if `one` has groups. If no image differs, the exact interval.
        one_only, other_only: Number of images that only `one`, or only `other`, has right.
        p_value: McNemar's exact test: if both were equally good, the probability that `one_only`
            and `other_only` would differ at least as much. It takes images as independent: with
            groups, read the interval instead.
        groups: Number of groups that the interval is over; None: it is over images.
    """

    difference: float
    interval: tuple[float, float]
    one_only: int
    other_only: int
    p_value: float
    groups: int | None = None


def compare(one: Evaluation, other: Evaluation, level: float = 0.95) -> Comparison:
    """Compare two models by the images on which only one of them is right.

    Raises:
        ValueError: the images or classes differ; level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}")
    _require_same_images(one, other)
    from scipy.stats import binomtest

    right, right_other = (e.probabilities.argmax(axis=1) == e.labels for e in (one, other))
    only, only_other = int((right & ~right_other).sum()), int((~right & right_other).sum())
    differ = only + only_other
    p_value = binomtest(only, differ).pvalue if differ else 1.0
    group_of = group_numbers(one.groups, one.count)
    if group_of is None:
        shares = np.array([only, only_other, one.count - differ]) / one.count
        drawn = np.random.default_rng(0).multinomial(one.count, shares, size=_RESAMPLINGS)
        differences = (drawn[:, 1] - drawn[:, 0]) / one.count
    else:
        differences = resampled_means(right_other.astype(np.float64) - right, group_of)
    low, high = np.quantile(differences, ((1 - level) / 2, (1 + level) / 2))
    if not differ:  # all draws are alike: the exact interval of no difference in so many
        high = 1 - ((1 - level) / 2) ** (1 / (one.group_count or one.count))
        low = -high
    return Comparison(
        difference=(only_other - only) / one.count,
        interval=(float(low), float(high)),
        one_only=only,
        other_only=only_other,
        p_value=float(p_value),
        groups=one.group_count,
    )


def _require_same_images(one: Evaluated, other: Evaluated) -> None:
    if one.class_names != other.class_names:
        raise ValueError(
            f"the evaluations have different classes: {one.class_names[:5]} and "
            f"{other.class_names[:5]}, {len(one.class_names)} and {len(other.class_names)} in all"
        )
    if not np.array_equal(one.labels, other.labels):
        raise ValueError(
            f"the evaluations have different images: {one.count} and {other.count} images, "
            "and the labels differ"
        )

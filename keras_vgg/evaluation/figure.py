"""Figures beside accuracy, with bootstrap intervals: they show what uneven classes hide.

Every figure equals scikit-learn's. What scikit-learn gives with a warning, or not at all, is
undefined here, with the reason.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_vgg.evaluation.resampling import (
    RESAMPLINGS,
    Ranking,
    group_numbers,
    interval_of,
    mean_over_classes,
    rank_resamplings,
    ratio,
    resampled_counts,
)

SPECIFICITY = 0.95
_ONE_CLASS = "all images are of one class"
_CELLS = 2 * 10**6  # drawn cells of confusion matrices in memory at once


@dataclass(frozen=True)
class Figure:
    """One figure of an evaluation.

    Attributes:
        title: The figure in words, for a table.
        value: A share in [0, 1], for kappa a number in [-1, 1]; None if it is undefined.
        interval: 95 % bootstrap interval over images or groups; None if it is undefined, or was
            not computed.
        baseline: What one and the same answer for every image gets; None if nobody uses it.
        undefined: Why there is no value; else empty.
        is_share: Whether people write the figure in per cent.
        threshold: For a sensitivity: the least probability at which the second class is answered.
    """

    title: str
    value: float | None
    interval: tuple[float, float] | None
    baseline: float | None = None
    undefined: str = ""
    is_share: bool = True
    threshold: float | None = None

    @property
    def above_baseline(self) -> bool:
        """Whether the value is above the baseline, or one of them is unknown."""
        return self.value is None or self.baseline is None or self.value > self.baseline

    def text(self) -> str:
        """Return the value with its interval and threshold for a table."""
        interval = self.interval_text()
        text = f"{self.value_text()} ({interval})" if interval else self.value_text()
        return text if self.threshold is None else f"{text} from {self.threshold:.4g} on"

    def value_text(self) -> str:
        """Return the value, or why there is none."""
        return f"undefined: {self.undefined}" if self.value is None else self.number(self.value)

    def interval_text(self) -> str:
        """Return the interval, such as 70.12% to 74.30%; empty without one."""
        return " to ".join(map(self.number, self.interval)) if self.interval else ""

    def baseline_text(self) -> str:
        """Return a remark for a table if the value is not above the baseline, else nothing."""
        if self.above_baseline or self.baseline is None:
            return ""
        return f"not above {self.number(self.baseline)}, one answer for all"

    def number(self, value: float) -> str:
        """Return a number as people write this figure: in per cent, or with four places."""
        return f"{value:.2%}" if self.is_share else f"{value:.4f}"


def figures(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    specificity: float = SPECIFICITY,
    seed: int = 0,
    groups: Sequence[Hashable] | np.ndarray | None = None,
) -> dict[str, Figure]:
    """Return the figures of an evaluation beside its accuracy, by their keys in results.json.

    An image's answer is its most probable class.

    - majority_share: the share of the commonest class, which one answer for all images gets right;
    - balanced_accuracy: the mean accuracy of the classes that have images;
    - macro_precision, macro_recall, macro_f1: the means over the classes that have images or
      answers. As in scikit-learn, a class counts as 0 if the figure has no image or no answer;
    - kappa: Cohen's kappa, agreement beyond chance; 0 is chance and 1 is perfect;
    - auc: two classes: the area under the ROC curve of the second class; more: the mean of the
      areas of each class against the rest, over the classes that have images and are not all;
    - average_precision, sensitivity (two classes): the area under the precision-recall curve of the
      second class, and the largest share of its images that a threshold finds which leaves at least
      `specificity` of the first class alone.

    The intervals (95 %, percentile) are over images drawn with replacement, 1,000 times; a class of
    which nothing was drawn keeps its figure. For auc,
    average_precision and sensitivity less often if there are more than 5 x 10^4 scores (500 times
    for 10,000 images of 10 classes), and never above 10^7 (see
    `keras_vgg.evaluation.resampling.rank_resamplings`).

    Args:
        labels: [n] integers in [0, classes), n >= 1.
        probabilities: [n, classes].
        class_names: One for each class.
        specificity: In (0, 1), for two classes.
        seed: Decides which images are drawn.
        groups: [n] the group of each image, such as a patient: whole groups are then drawn, as many
            as there are. An image whose group is None, empty or NaN is by itself.

    Raises:
        ValueError: there is no image, or another number of groups; specificity is not in (0, 1).
    """
    check_specificity(specificity)
    if not len(labels):
        raise ValueError("the figures need at least 1 image, and the evaluation has no images")
    labels = np.asarray(labels, np.int64)
    answers = probabilities.argmax(axis=1)
    numbers = group_numbers(groups, len(labels))
    return _of_answers(labels, answers, class_names, seed, numbers) | _of_ranks(
        labels, probabilities, class_names, specificity, seed, numbers
    )


def check_specificity(specificity: float) -> None:
    """Raise ValueError if a specificity is not in (0, 1)."""
    if not 0 < specificity < 1:
        raise ValueError(f"specificity must be in (0, 1), such as 0.95, not {specificity:g}")


def to_fields(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Return figures as plain values for JSON; None and a reason stand for undefined ones."""
    fields: dict[str, Any] = {}
    for key, figure in figures.items():
        fields[key] = figure.value
        fields[f"{key}_interval"] = None if figure.interval is None else list(figure.interval)
        if figure.threshold is not None:
            fields[f"{key}_threshold"] = figure.threshold
    fields["undefined"] = {key: one.undefined for key, one in figures.items() if one.undefined}
    return fields


# --- figures of the answers ------------------------------------------------------------------


def _of_answers(
    labels: np.ndarray,
    answers: np.ndarray,
    class_names: Sequence[str],
    seed: int,
    groups: np.ndarray | None,
) -> dict[str, Figure]:
    classes = len(class_names)
    cells, cell_of, counts = np.unique(
        labels * classes + answers, return_inverse=True, return_counts=True
    )
    true, answered = cells // classes, cells % classes
    random = np.random.default_rng(seed)
    if groups is None:
        drawn = _drawn_cells(counts, classes, random)
    else:
        drawn = _cells_of_drawn_groups(cell_of, groups, seed)
    blocks = [_answer_shares(counts[np.newaxis], true, answered, classes)]
    blocks += [_answer_shares(block, true, answered, classes) for block in drawn]
    values = {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}
    # The classes over which scikit-learn's macro averages go, where nothing counts as 0.
    present = np.unique(np.concatenate([true, answered]))
    macro = {key: values[key][:, present] for key in ("precision", "recall", "f1")}
    for shares in macro.values():
        shares[0] = np.nan_to_num(shares[0])
    per_class = np.bincount(labels, minlength=classes)
    commonest = int(per_class.argmax())
    share = per_class[commonest] / len(labels)
    if groups is None:
        drawn_shares = random.binomial(len(labels), share, RESAMPLINGS) / len(labels)
    else:
        drawn_shares = values["prevalence"][1:, commonest]
    one_class = "all labels and answers are one class"
    return {
        "majority_share": _figure(
            f"majority baseline: always {class_names[commonest]}", np.r_[share, drawn_shares]
        ),
        "balanced_accuracy": _figure(
            "balanced accuracy",
            mean_over_classes(values["recall"]),
            baseline=None if share == 1 else 1 / int((per_class > 0).sum()),
        ),
        "macro_precision": _figure("macro precision", mean_over_classes(macro["precision"])),
        "macro_recall": _figure("macro recall", mean_over_classes(macro["recall"])),
        "macro_f1": _figure("macro F1", mean_over_classes(macro["f1"])),
        "kappa": _figure(
            "Cohen's kappa", values["kappa"], baseline=0.0, undefined=one_class, is_share=False
        ),
    }


def _drawn_cells(
    counts: np.ndarray, classes: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield [m, cells]: resampled images are a multinomial draw of a confusion matrix's cells."""
    images = int(counts.sum())
    rows = max(_CELLS // (len(counts) + classes), 1)
    for start in range(0, RESAMPLINGS, rows):
        yield random.multinomial(images, counts / images, size=min(rows, RESAMPLINGS - start))


def _cells_of_drawn_groups(
    cell_of: np.ndarray, groups: np.ndarray, seed: int
) -> Iterator[np.ndarray]:
    """Yield [m, cells]: the images of resampled groups in each cell of the confusion matrix."""
    from scipy.sparse import csr_array

    size = int(groups.max()) + 1
    contents = csr_array(
        (np.ones(len(groups), np.int64), (groups, cell_of)), shape=(size, int(cell_of.max()) + 1)
    )
    blocks = resampled_counts(size, RESAMPLINGS, seed)
    next(blocks)  # the groups themselves
    for counts in blocks:
        yield np.asarray(counts @ contents)


def _answer_shares(
    counts: np.ndarray, true: np.ndarray, answered: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Return shares [m, classes], and kappa [m], of m confusion matrices.

    The shares are recall, precision, F1, and prevalence: that of the images.

    Args:
        counts: [m, cells] images in the cells that are not empty, in the order of `true`.
        true, answered: [cells] the row and the column of each cell.
    """
    from scipy.sparse import csr_array

    def sums(columns: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Return [m, classes]: the sums of the member cells by class."""
        kept = np.flatnonzero(members)
        ones = (np.ones(len(kept)), (kept, columns[kept]))
        return np.asarray(counts @ csr_array(ones, shape=(len(columns), classes)))

    everywhere = np.ones(len(true), bool)
    images, answers = sums(true, everywhere), sums(answered, everywhere)
    right = sums(true, true == answered)
    total = counts.sum(axis=1)
    agreed = right.sum(axis=1) / total
    by_chance = (images * answers).sum(axis=1) / total.astype(np.float64) ** 2
    return {
        "recall": ratio(right, images),
        "precision": ratio(right, answers),
        "f1": ratio(2 * right, images + answers),
        "prevalence": ratio(images, total[:, np.newaxis]),
        "kappa": ratio(agreed - by_chance, 1 - by_chance),
    }


# --- figures of the ranks --------------------------------------------------------------------


def _of_ranks(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    specificity: float,
    seed: int,
    groups: np.ndarray | None,
) -> dict[str, Figure]:
    classes = len(class_names)
    if classes == 2:
        ranking = Ranking(probabilities[:, 1], labels == 1)
        return _of_two_classes(
            ranking, float(np.mean(labels == 1)), class_names[1], specificity, seed, groups
        )
    rankings = [Ranking(probabilities[:, column], labels == column) for column in range(classes)]
    resamplings = rank_resamplings(len(labels), classes)
    areas = [
        np.stack([ranking.points(counts).auc() for ranking in rankings], axis=1)
        for counts in resampled_counts(len(labels), resamplings, seed, groups)
    ]
    return {
        "auc": _figure(
            "AUC, each class against the rest",
            mean_over_classes(np.concatenate(areas)),
            baseline=0.5,
            undefined=_ONE_CLASS,
            is_share=False,
        )
    }


def _of_two_classes(
    ranking: Ranking,
    share: float,
    second: str,
    specificity: float,
    seed: int,
    groups: np.ndarray | None,
) -> dict[str, Figure]:
    """Return the figures of the second class, which has this share of the images."""
    images = ranking.images
    blocks = [
        ranking.points(counts)
        for counts in resampled_counts(images, rank_resamplings(images, 1), seed, groups)
    ]
    areas, precisions = (
        np.concatenate([getattr(points, name)() for points in blocks])
        for name in ("auc", "average_precision")
    )
    found = np.concatenate([points.sensitivity(specificity) for points in blocks])
    ties = blocks[0].place(specificity)  # 0: the strictest threshold is above all probabilities
    threshold = float(ranking.thresholds[ties - 1]) if ties and 0 < share < 1 else None
    return {
        "auc": _figure(
            f"ROC AUC of {second}", areas, baseline=0.5, undefined=_ONE_CLASS, is_share=False
        ),
        "average_precision": _figure(
            f"average precision of {second}",
            precisions,
            baseline=share if share < 1 else None,
            undefined=f"no image is of {second}",
            is_share=False,
        ),
        "sensitivity": _figure(
            f"sensitivity for {second} at {100 * specificity:g} % specificity",
            found,
            undefined=_ONE_CLASS,
            threshold=threshold,
        ),
    }


def _figure(title: str, values: np.ndarray, undefined: str = "", **options: Any) -> Figure:
    """Return a figure from its value and those of its resamplings."""
    if np.isnan(values[0]):
        return Figure(title, None, None, undefined=undefined, **options)
    return Figure(title, float(values[0]), interval_of(values[1:]), **options)

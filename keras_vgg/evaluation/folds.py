"""Compare two recipes over the folds of one cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FoldComparison:
    """The difference of a figure between `one` and `other`, over the same folds.

    Attributes:
        difference: Mean over the folds of the figure of `other` minus that of `one`.
        interval: Interval of the mean difference, from Student's t with folds - 1 degrees of
            freedom.
        statistic: The t of the corrected resampled t-test.
        p_value: If both recipes were equally good, the probability of a t at least as far from 0.
    """

    difference: float
    interval: tuple[float, float]
    statistic: float
    p_value: float


def compare_folds(
    one: Sequence[float],
    other: Sequence[float],
    train_images: Sequence[int],
    test_images: Sequence[int],
    level: float = 0.95,
) -> FoldComparison:
    """Compare a figure of two recipes by the corrected resampled t-test (Nadeau & Bengio, 2003).

    The networks of different folds share training images, so their figures are not independent, and
    a plain t-test finds differences that are not there. The correction multiplies the variance of
    the k differences by 1 / k + test images / training images, instead of 1 / k.

    Args:
        one: The figure of the first recipe in each fold.
        other: The same of the second.
        train_images: Training images of each fold.
        test_images: Held-out images of each fold.
        level: Of the interval.

    Raises:
        ValueError: there are fewer than two folds, the lengths differ, a fold has no image, or
            level is not in (0, 1).
    """
    lengths = {len(one), len(other), len(train_images), len(test_images)}
    if len(lengths) > 1 or lengths == {0} or lengths == {1}:
        raise ValueError(
            f"a comparison needs the same two folds or more, not {len(one)} and {len(other)}"
        )
    if min(*train_images, *test_images) < 1:
        raise ValueError("every fold needs training and held-out images")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), not {level}")
    from scipy.stats import t as student

    differences = np.asarray(other, np.float64) - np.asarray(one, np.float64)
    folds = len(differences)
    ratio = float(np.mean(np.asarray(test_images) / np.asarray(train_images)))
    mean = float(differences.mean())
    error = float(np.sqrt((1 / folds + ratio) * differences.var(ddof=1)))
    # The error is 0 if all folds have the same difference.
    statistic = mean / error if error else float(np.sign(mean) * np.inf) if mean else 0.0
    reach = float(student.ppf((1 + level) / 2, folds - 1)) * error
    return FoldComparison(
        difference=mean,
        interval=(mean - reach, mean + reach),
        statistic=statistic,
        p_value=float(2 * student.sf(abs(statistic), folds - 1)),
    )

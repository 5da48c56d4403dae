"""Bootstrap over images or groups: how often each image is drawn, and the drawn images' ranks.

A figure of resampled images needs no copy of their scores: the number of times that each image was
drawn is enough. The functions take these counts, [resamplings, images], for many resamplings at
once. Images of one group, such as a patient, are not independent: the groups are then drawn, each
with all its images.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

RESAMPLINGS = 1000
FEW_GROUPS = 20  # From fewer groups, percentile intervals come out too narrow.
_MOST = 20_000
_FEWEST = 100
_BLOCK = 2**19  # counts in memory at once, so that they stay in a processor's cache
_WORK = 5 * 10**7  # images x classes x resamplings of one evaluation: about a second
_MOST_SCORES = 10**7  # images x classes


def rank_resamplings(images: int, classes: int) -> int:
    """Return the number of resamplings for figures that need the ranks of all scores.

    It is 1,000 up to 5 x 10^4 scores (images x classes), then 5 x 10^7 / scores, but at least 100.
    Above 10^7 scores it is 0: these figures then have no interval.
    """
    scores = images * classes
    return 0 if scores > _MOST_SCORES else min(RESAMPLINGS, max(_FEWEST, _WORK // max(scores, 1)))


def group_numbers(groups: Sequence[Hashable] | np.ndarray | None, images: int) -> np.ndarray | None:
    """Return int64 [n] from 0 on: images of one group have one number.

    An image whose group is None, empty or NaN is a group of its own. None: there are no groups,
    only one that holds all images, or only groups of one image; then images are drawn.

    Raises:
        ValueError: there are not as many groups as images.
    """
    if groups is None:
        return None
    of_image = _numbered(groups, images)
    return of_image if 1 < len(np.unique(of_image)) < images else None


def _numbered(groups: Sequence[Hashable] | np.ndarray, images: int) -> np.ndarray:
    """Return the number of each image's group; raises as `group_numbers`."""
    if len(groups) != images:
        raise ValueError(f"each image needs a group: {len(groups)} groups, {images} images")
    numbers: dict[Hashable, int] = {}
    keys = [(number,) if _is_missing(group) else group for number, group in enumerate(groups)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def _is_missing(group: Any) -> bool:
    """Return whether a group is none: also the NaN, NaT and NA of pandas' tables."""
    if group is None or type(group).__name__ in ("NAType", "NaTType"):
        return True
    return group == "" if isinstance(group, str) else bool(group != group)


class Counted:
    """The numbers of images and groups of an evaluation, which has `labels` and `groups`."""

    labels: np.ndarray
    groups: np.ndarray | None

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.labels)

    @cached_property
    def group_count(self) -> int | None:
        """Number of groups that the intervals are over; None: they are over images."""
        return None if self._group_of is None else int(self._group_of.max()) + 1

    @cached_property
    def is_one_group(self) -> bool:
        """Whether all images, two or more, are of one group: intervals are then over images."""
        if self.groups is None or self.count < 2:
            return False
        return not _numbered(self.groups, self.count).any()

    @property
    def over(self) -> str:
        """What the intervals are over, for a table; empty: images, and there is nothing to say."""
        if self.is_one_group:
            return "over the images of one group: intervals come out too narrow"
        return "" if self.group_count is None else groups_text(self.group_count)

    def _all_or_none_interval(self, share: float, level: float = 0.95) -> tuple[float, float]:
        """Return Clopper and Pearson's exact interval of a share of the images that is 0 or 1.

        All resamplings of such images are alike, so that the bootstrap interval has no width.
        """
        bound = ((1 - level) / 2) ** (1 / (self.group_count or self.count))
        return (bound, 1.0) if share else (0.0, 1 - bound)

    @cached_property
    def _group_of(self) -> np.ndarray | None:
        return group_numbers(self.groups, self.count)


def groups_text(groups: int) -> str:
    """Return what intervals over so many groups are over, for a table."""
    text = f"over {groups:,} groups"
    return text if groups >= FEW_GROUPS else f"{text}, too few: intervals come out too narrow"


def resampled_counts(
    images: int, resamplings: int, seed: int = 0, groups: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield blocks int64 [m, images]: how often each image was drawn in each of m resamplings.

    The first block is one row of ones, the images themselves. So one computation gives a figure and
    its resamplings. As many are drawn as there are: images, or whole groups.

    Args:
        images: How many images there are.
        resamplings: How many rows follow the first.
        seed: Decides what is drawn.
        groups: From `group_numbers`.
    """
    yield np.ones((1, images), np.int64)
    random = np.random.default_rng(seed)
    most = max(_BLOCK // images, 1)
    units = images if groups is None else int(groups.max()) + 1
    for start in range(0, resamplings, most):
        rows = min(most, resamplings - start)
        drawn = random.integers(0, units, (rows, units)) + units * np.arange(rows)[:, np.newaxis]
        counts = np.bincount(drawn.ravel(), minlength=units * rows).reshape(rows, units)
        yield counts if groups is None else counts[:, groups]


def resampled_means(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the mean of a number of each image, [n], in resamplings of whole groups.

    There are 20,000 resamplings for up to 2,500 groups, and 1,000 or more for any number.
    """
    sums, sizes = np.bincount(groups, values), np.bincount(groups)
    resamplings = min(_MOST, max(RESAMPLINGS, _WORK // len(sizes)))
    blocks = resampled_counts(len(sizes), resamplings, seed)
    next(blocks)  # the groups themselves
    return np.concatenate([(counts @ sums) / (counts @ sizes) for counts in blocks])


def interval_of(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile interval of a figure's resamplings; nan stands for an undefined one.

    Resamplings in which the figure is undefined are left out. None: no resampling defines it.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def ratio(numerators: np.ndarray, denominators: np.ndarray | float) -> np.ndarray:
    """Return the quotients as float64; nan where the denominator is 0."""
    tops, bottoms = np.broadcast_arrays(numerators, denominators)
    return np.divide(tops, bottoms, out=np.full(tops.shape, np.nan), where=bottoms != 0)


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Return the means over the classes that define a figure; nan if none does.

    Args:
        values: [m, classes], the first row of the images themselves; nan stands for undefined. A
            class that a resampling leaves undefined keeps the value of the first row: a small class
            of which no image was drawn must not change which classes the mean is over.
    """
    itself = values[0]
    kept = np.where(np.isnan(values), itself, values)[:, ~np.isnan(itself)]
    return kept.mean(axis=1) if kept.size else np.full(len(values), np.nan)


@dataclass(frozen=True)
class Points:
    """The places on the curves of resamplings at which sensitivity rises: one for each tie.

    Attributes:
        before, through: [m, ties] images above a tie, and up to its end.
        hits_before, hits: [m, ties] the same of the positive images.
        images, positives: [m] all images, and all positive ones.
    """

    before: np.ndarray
    through: np.ndarray
    hits_before: np.ndarray
    hits: np.ndarray
    images: np.ndarray
    positives: np.ndarray

    def auc(self) -> np.ndarray:
        """Return the area under each ROC curve; nan without a positive or a negative image."""
        negatives = self.images - self.positives
        # Twice the negative images below a tie, where a negative image in the tie counts half.
        above = (self.before - self.hits_before) + (self.through - self.hits)
        pairs = ((self.hits - self.hits_before) * (2 * negatives[:, np.newaxis] - above)).sum(1)
        return ratio(pairs, 2 * self.positives * negatives)

    def average_precision(self) -> np.ndarray:
        """Return the mean precision at each positive image; nan without a positive image."""
        gains = self.hits - self.hits_before
        # A tie of which nothing was drawn at the top has no precision and no gain.
        sums = np.nansum(gains * ratio(self.hits, self.through), axis=1)
        return ratio(sums, self.positives)

    def sensitivity(self, specificity: float) -> np.ndarray:
        """Return the largest sensitivity of a threshold with at least this specificity."""
        negatives = self.images - self.positives
        best = np.where(self._allowed(specificity), self.hits, 0).max(axis=1, initial=0)
        return np.where(negatives > 0, ratio(best, self.positives), np.nan)

    def place(self, specificity: float) -> int:
        """Return how many ties of the first resampling the threshold of `sensitivity` includes."""
        return int(self._allowed(specificity)[0].sum())

    def _allowed(self, specificity: float) -> np.ndarray:
        negatives = (self.images - self.positives)[:, np.newaxis]
        false_alarms = self.through - self.hits
        # 1 - 0.95 is not 0.05 exactly; numbers of images are.
        return false_alarms <= np.floor((1 - specificity) * negatives + 1e-6)


class Ranking:
    """The images of one class against the rest, sorted once by the class's probability.

    Args:
        scores: [n] the probability of the class; equal scores are a tie.
        positive: [n] whether an image has the class.
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        is_positive = np.asarray(positive)[self._order].astype(bool)
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        ends = np.r_[starts[1:], len(ranked)]
        # Only the ties that hold a positive image add to the figures.
        positives = np.r_[0, np.cumsum(is_positive)]
        holds_positive = positives[ends] > positives[starts]
        self._starts, self._ends = starts[holds_positive], ends[holds_positive]
        self._positives = self._order[is_positive]
        self._hits_before, self._hits = positives[self._starts], positives[self._ends]
        self.images = len(scores)
        self.thresholds = ranked[self._starts]  # the score of each tie, the highest first

    def points(self, counts: np.ndarray) -> Points:
        """Return the points of the curves for resamplings [m, n]."""
        images = _cumulative(counts, self._order)
        positives = _cumulative(counts, self._positives)
        return Points(
            before=np.take(images, self._starts, axis=1),
            through=np.take(images, self._ends, axis=1),
            hits_before=np.take(positives, self._hits_before, axis=1),
            hits=np.take(positives, self._hits, axis=1),
            images=images[:, -1],
            positives=positives[:, -1],
        )


def _cumulative(counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return [m, k + 1]: the sums of the first 0, 1, ... k counts in an order of k images."""
    sums = np.zeros((len(counts), len(order) + 1), np.int64)
    np.cumsum(np.take(counts, order, axis=1), axis=1, out=sums[:, 1:])
    return sums

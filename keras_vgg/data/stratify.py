"""Which images to hold out where an image may have several labels: iterative stratification."""

from __future__ import annotations

import numpy as np


def draw_by_labels(
    labels: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Draw images so that each label keeps its share on both sides, as nearly as possible.

    This is iterative stratification (Sechidis et al., ECML 2011): the label that the fewest
    undecided images have comes first, because it has the least choice. Its images go, in random
    order, to the side that lacks more of this label. Images without a label count as a label of
    their own. A label on two images or more, or in two groups or more, gets at least one on each
    side, unless a rarer label has already decided all of its images.

    Args:
        labels: [n, classes], 1 where an image has a label, else 0.
        fraction: Share of the images to hold out, in (0, 1).
        rng: Decides the order.
        groups: [n] integers: images of one number stay on one side. None: each image by itself.

    Returns:
        [n] bool: True where an image is held out.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    numbers, group_of = np.unique(groups, return_inverse=True)
    with_none = np.column_stack([labels, ~labels.any(axis=1)]).astype(np.int64)
    counts = np.zeros((len(numbers), with_none.shape[1]), np.int64)
    np.add.at(counts, group_of, with_none)
    return _drawn_groups(counts, fraction, rng)[group_of]


def _drawn_groups(counts: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Return which groups to hold out, bool [groups]; counts: [groups, labels] of images."""
    totals = counts.sum(axis=0)
    # Fractions of an image count too: otherwise rounding would add up over many labels.
    most = np.maximum(totals - 1, 0)
    lacking = np.clip(totals * fraction, np.minimum(most, 1), most).astype(np.float64)
    undecided = totals.copy()
    is_open = np.ones(len(counts), bool)
    held = np.zeros(len(counts), bool)
    order = rng.permutation(len(counts))
    while undecided.any():
        label = int(np.where(undecided > 0, undecided, undecided.max() + 1).argmin())
        members = order[(is_open & (counts[:, label] > 0))[order]]
        for group in members.tolist():
            row = counts[group]
            lacking_elsewhere = undecided[label] - lacking[label]
            fits = row[label] <= lacking[label] + 0.5
            if fits and _lacks_more(lacking, undecided, label, lacking_elsewhere):
                held[group] = True
                lacking = lacking - row
            undecided = undecided - row
        is_open[members] = False
        _hold_one(counts[:, label], members, held, lacking, counts)
    return held


def _lacks_more(
    lacking: np.ndarray, undecided: np.ndarray, label: int, lacking_elsewhere: float
) -> bool:
    """Return whether the held-out side lacks more of a label; of a tie, more images in all."""
    if lacking[label] != lacking_elsewhere:
        return bool(lacking[label] > lacking_elsewhere)
    return bool(2 * lacking.sum() > undecided.sum())


def _hold_one(
    of_label: np.ndarray,
    members: np.ndarray,
    held: np.ndarray,
    lacking: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Hold out the smallest of these groups if no group with the label is held out yet."""
    if len(members) and not held[of_label > 0].any() and (of_label > 0).sum() > 1:
        smallest = members[of_label[members].argmin()]
        held[smallest] = True
        lacking -= counts[smallest]

"""Boxes: two formats, the overlap of two boxes, and the merging of many boxes into a few.

A box has one of two formats:
- relative: (centre x, centre y, width, height), as shares of the window that the box was predicted
  in: x and width of the window's width, y and height of its height, x to the right and y down. A
  localiser's outputs have this format ("a 4-D vector storing its center coordinates, width, and
  height", appendix A). A box may reach beyond its window.
- corners: (left, top, right, bottom) in pixels of the image, not rounded. Pixel (row, column)
  covers column ... column + 1 and row ... row + 1, so a whole image is (0, 0, width, height).
"""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5  # intersection over union of a correct box; appendix A, as in the ILSVRC
# Two equal boxes that are shifted by a third of a side have a match score of 0.7, and an
# intersection over union of 0.5.
MATCH = 0.7


def to_corners(
    boxes: np.ndarray,
    window: int | tuple[int, int],
    offset: tuple[np.ndarray | float, np.ndarray | float] = (0, 0),
) -> np.ndarray:
    """Return relative boxes [..., 4] as corners, float64.

    Args:
        boxes: Relative. A negative width or height, which a regressor can predict, counts as 0.
        window: The side of the window, or (height, width), in pixels.
        offset: (top, left) of the window in the image, in pixels: numbers, or arrays that fit
            boxes[..., 0].

    Raises:
        ValueError: a box does not have four numbers; the window has no area.
    """
    x, y, width, height = _columns(boxes)
    rows, columns = _sides(window)
    top, left = offset
    half_width, half_height = np.maximum(width, 0) / 2, np.maximum(height, 0) / 2
    return np.stack(
        [
            left + columns * (x - half_width),
            top + rows * (y - half_height),
            left + columns * (x + half_width),
            top + rows * (y + half_height),
        ],
        axis=-1,
    )


def to_relative(
    corners: np.ndarray,
    window: int | tuple[int, int],
    offset: tuple[np.ndarray | float, np.ndarray | float] = (0, 0),
) -> np.ndarray:
    """Return corners [..., 4] as relative boxes, float64: the inverse of `to_corners`."""
    left, top, right, bottom = _columns(corners)
    rows, columns = _sides(window)
    start_row, start_column = offset
    return np.stack(
        [
            ((left + right) / 2 - start_column) / columns,
            ((top + bottom) / 2 - start_row) / rows,
            (right - left) / columns,
            (bottom - top) / rows,
        ],
        axis=-1,
    )


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the area that both boxes cover over the area that either covers, in [0, 1].

    Args:
        one: Corners [..., 4].
        other: Corners of a shape that broadcasts: [n, 1, 4] and [m, 4] give [n, m].

    Returns:
        [...] float64; 0 for a box without area (right before left, bottom before top, or nan).

    Raises:
        ValueError: a box does not have four numbers.
    """
    left, top, right, bottom = _columns(one)
    left_other, top_other, right_other, bottom_other = _columns(other)
    width = np.minimum(right, right_other) - np.maximum(left, left_other)
    height = np.minimum(bottom, bottom_other) - np.maximum(top, top_other)
    both = np.maximum(width, 0) * np.maximum(height, 0)
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    area_other = np.maximum(right_other - left_other, 0) * np.maximum(bottom_other - top_other, 0)
    either = area + area_other - both
    have_area = (area > 0) & (area_other > 0)
    return np.divide(both, either, out=np.zeros(either.shape), where=have_area)


def located(boxes: np.ndarray, truth: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Return whether boxes are correct: bool [...], broadcast as in `intersection_over_union`.

    "The bounding box prediction is deemed correct if its intersection over union ratio with the
    ground-truth bounding box is above 0.5" (appendix A): a ratio of exactly 0.5 is wrong.

    Raises:
        ValueError: there is no box; a box does not have four numbers; threshold is not in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), not {threshold}")
    agreement = intersection_over_union(boxes, truth)
    if agreement.size == 0:
        raise ValueError("there are no boxes to judge")
    return agreement > threshold


def localization_error(boxes: np.ndarray, truth: np.ndarray, threshold: float = THRESHOLD) -> float:
    """Return the share of boxes that are not `located`, in [0, 1]. Raises what `located` raises."""
    return float(1 - located(boxes, truth, threshold).mean())


def match_score(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return how different two boxes are, in [0, 2]: `merge_boxes` merges the least different.

    The score is the distance of the centres, as a share of the diagonal of the smallest box around
    both, plus 1 - intersection over union. It has no unit, and is 0 for equal boxes. OverFeat adds
    "the distance between centers" and "the intersection area", but names no units, and does not say
    how a larger intersection makes a better match. The intersection with a box without area is 0.

    Arguments and errors are those of `intersection_over_union`. A nan gives a nan.
    """
    one, other = (np.asarray(boxes, np.float64) for boxes in (one, other))
    apart = 1 - intersection_over_union(one, other)  # raises an error if these are not boxes
    difference = (one[..., :2] + one[..., 2:] - other[..., :2] - other[..., 2:]) / 2
    distance = np.hypot(difference[..., 0], difference[..., 1])
    low, high = np.minimum(one, other), np.maximum(one, other)
    # Take the extremes of all corners: the right of a box may lie before its left.
    around = np.maximum(high[..., 2:], high[..., :2]) - np.minimum(low[..., :2], low[..., 2:])
    diagonal = np.hypot(around[..., 0], around[..., 1])
    return apart + np.divide(distance, diagonal, out=np.zeros(distance.shape), where=diagonal != 0)


def merge_boxes(
    boxes: np.ndarray, scores: np.ndarray, match: float = MATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the predictions of many places greedily, in the manner of OverFeat (arXiv:1312.6229).

    The two boxes with the lowest `match_score` become one box, until the lowest score is `match` or
    more. The rating of a merged box comes from the class scores of its places. The papers leave
    three points open. Here:

    - A merged box is the mean of its original boxes, so that all places count the same, whatever
      their scores.
    - The rating is the sum of the original boxes' scores, as in OverFeat ("cumulatively adding").
    - If several pairs match equally well, the first in the order of `boxes` is merged.

    Args:
        boxes: Corners [n, 4], one or more, finite.
        scores: [n]: the scores of the boxes' class at their places, such as posteriors.
        match: In [0, 2]; 0 merges nothing. The best value depends on the distance of the places.

    Returns:
        Boxes [m, 4] and ratings [m], float64, the highest rating first; m <= n.

    Raises:
        ValueError: there is no box; a shape is wrong; a value is not finite; match is not in
            [0, 2].
    """
    boxes, scores = np.array(boxes, np.float64), np.array(scores, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) == 0:
        raise ValueError(f"boxes to merge must be [n, 4] with n >= 1, not {boxes.shape}")
    if scores.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes need as many scores, not {scores.shape}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("boxes and scores to merge must be finite")
    if not 0 <= match <= 2:
        raise ValueError(f"match must be in [0, 2], not {match}")
    members = np.ones(len(boxes))
    # Only the upper triangle counts: every pair once. inf: not a pair, or a box that is merged.
    pairs = match_score(boxes[:, np.newaxis], boxes)
    pairs[np.tril_indices(len(boxes))] = np.inf
    kept = np.ones(len(boxes), bool)
    while len(boxes) > 1:
        first, second = np.unravel_index(pairs.argmin(), pairs.shape)
        if not pairs[first, second] < match:
            break
        count = members[first] + members[second]
        weights = members[[first, second]] / count
        boxes[first] = weights @ boxes[[first, second]]
        scores[first] += scores[second]
        members[first] = count
        kept[second] = False
        pairs[second] = pairs[:, second] = np.inf
        new_scores = np.where(kept, match_score(boxes[first], boxes), np.inf)
        pairs[first, first + 1 :] = new_scores[first + 1 :]
        pairs[:first, first] = new_scores[:first]
    order = np.argsort(-scores[kept], kind="stable")
    return boxes[kept][order], scores[kept][order]


def _columns(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must be [..., 4], not {boxes.shape}")
    return tuple(np.moveaxis(boxes, -1, 0))


def _sides(window: int | tuple[int, int]) -> tuple[int, int]:
    height, width = np.broadcast_to(window, 2).tolist()
    if not (height > 0 and width > 0):
        raise ValueError(f"a window must have a height and width above 0, not {window}")
    return height, width

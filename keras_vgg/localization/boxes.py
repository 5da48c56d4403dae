"""Boxes: two ways to write them down, how well two agree, and how many are merged into a few.

A box is one of
- relative: (centre x, centre y, width, height), as shares of the window in which it is predicted:
  x and width of the window's width, y and height of its height, x to the right and y down. This
  is what a localiser's outputs are ("a 4-D vector storing its center coordinates, width, and
  height", appendix A). A box may reach beyond its window.
- corners: (left, top, right, bottom) in pixels of the image, not rounded. Pixel (row, column)
  covers column ... column + 1 and row ... row + 1, so a whole image is (0, 0, width, height).
"""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5  # of the intersection over union; appendix A, as in the ILSVRC
# Two boxes of one size, a third of it apart along one side, match at 0.7; they overlap at 0.5.
MATCH = 0.7


def to_corners(
    boxes: np.ndarray,
    window: int | tuple[int, int],
    offset: tuple[np.ndarray | float, np.ndarray | float] = (0, 0),
) -> np.ndarray:
    """Relative boxes [..., 4] as corners, float64.

    Args:
        boxes: Relative. A width or height below 0, which a regressor may give, counts as 0.
        window: Its side, or (height, width), in pixels.
        offset: (top, left) of the window in the image, in pixels: numbers, or arrays that fit
            boxes[..., 0].

    Raises:
        ValueError: not four numbers a box; a window without extent.
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
    """What `to_corners` undoes: corners [..., 4] as relative boxes, float64; arguments as there."""
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
    """How well boxes agree: the area that both cover over the area that either does, in [0, 1].

    Args:
        one: Corners [..., 4].
        other: Likewise, of a shape that broadcasts: [n, 1, 4] and [m, 4] give [n, m].

    Returns:
        [...] float64. A box without area (turned inside out, or with a nan) agrees with none: 0.

    Raises:
        ValueError: not four numbers a box.
    """
    left, top, right, bottom = _columns(one)
    left_other, top_other, right_other, bottom_other = _columns(other)
    width = np.minimum(right, right_other) - np.maximum(left, left_other)
    height = np.minimum(bottom, bottom_other) - np.maximum(top, top_other)
    both = np.maximum(width, 0) * np.maximum(height, 0)
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    area_other = np.maximum(right_other - left_other, 0) * np.maximum(bottom_other - top_other, 0)
    either = area + area_other - both
    good = (area > 0) & (area_other > 0)
    return np.divide(both, either, out=np.zeros(either.shape), where=good)


def located(boxes: np.ndarray, truth: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Whether boxes are where they should be: bool [...], as `intersection_over_union` broadcasts.

    "The bounding box prediction is deemed correct if its intersection over union ratio with the
    ground-truth bounding box is above 0.5" (appendix A): above, so one of just 0.5 is wrong.

    Raises:
        ValueError: there is no box, or it is not four numbers; threshold is not in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), not {threshold}")
    agreement = intersection_over_union(boxes, truth)
    if agreement.size == 0:
        raise ValueError("there are no boxes to judge")
    return agreement > threshold


def localization_error(boxes: np.ndarray, truth: np.ndarray, threshold: float = THRESHOLD) -> float:
    """The share of boxes that are not `located`, in [0, 1]; arguments and errors as there."""
    return float(1 - located(boxes, truth, threshold).mean())


def match_score(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far boxes are from being the same, in [0, 2]: what greedy merging goes by.

    The distance of the centres plus what the boxes do not share. OverFeat adds "the distance
    between centers" and "the intersection area", and does not say in which units, nor how a larger
    intersection makes a better match. Here the distance is a share of the diagonal of the smallest
    box around both, and what is not shared is 1 - intersection over union: no unit is left, and 0
    is the same box twice. A box without area shares nothing.

    Args and raises: as `intersection_over_union`. A nan gives a nan.
    """
    one, other = (np.asarray(boxes, np.float64) for boxes in (one, other))
    apart = 1 - intersection_over_union(one, other)  # refuses what is not boxes
    difference = (one[..., :2] + one[..., 2:] - other[..., :2] - other[..., 2:]) / 2
    distance = np.hypot(difference[..., 0], difference[..., 1])
    low, high = np.minimum(one, other), np.maximum(one, other)
    # The extremes of all corners, for a box may be turned inside out.
    around = np.maximum(high[..., 2:], high[..., :2]) - np.minimum(low[..., :2], low[..., 2:])
    diagonal = np.hypot(around[..., 0], around[..., 1])
    return apart + np.divide(distance, diagonal, out=np.zeros(distance.shape), where=diagonal != 0)


def merge_boxes(
    boxes: np.ndarray, scores: np.ndarray, match: float = MATCH
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the predictions of many places greedily, in the manner of OverFeat (arXiv:1312.6229).

    The two boxes with the lowest `match_score` become one, again and again, until the lowest is
    `match` or more. A merged box is rated by the class scores of the places that it comes from.
    The papers leave open, and here is so:

    - the average of two merged boxes is that of their members, so that no place counts for more
      than another. Coordinates are averaged as they are, whatever a place's score;
    - the rating is the sum of the members' scores, as in OverFeat ("cumulatively adding");
    - of equally good pairs the one that comes first in `boxes` is merged.

    Args:
        boxes: Corners [n, 4], one or more, finite.
        scores: [n], of the boxes' class at their places, such as posteriors.
        match: In [0, 2]; 0 merges nothing. The best value depends on how far places are apart.

    Returns:
        Boxes [m, 4] and ratings [m], float64, the best rated first; m <= n.

    Raises:
        ValueError: there is no box; another shape; not finite; match outside [0, 2].
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
    # The upper triangle: every pair once. inf: no pair, or merged away.
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
        anew = np.where(kept, match_score(boxes[first], boxes), np.inf)
        pairs[first, first + 1 :] = anew[first + 1 :]
        pairs[:first, first] = anew[:first]
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

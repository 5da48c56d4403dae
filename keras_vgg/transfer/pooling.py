"""Pool a feature map to one vector for retrieval: generalised mean, and maxima of regions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

_OVERLAP = 0.4  # of neighbouring squares, of their area: Tolias et al., section 3.2


class Region(NamedTuple):
    """A square of a feature map, in cells."""

    top: int
    left: int
    side: int


def generalized_mean(feature_map: Any, power: float = 3.0) -> Any:
    """Return GeM, [n, c]: the mean of x^power over the map, to the power 1 / power.

    Radenovic et al., arXiv:1711.02512, equation 2. With power 1 it is average pooling; as the power
    grows, it becomes max pooling. Negative values count as 0.

    Args:
        feature_map: [n, h, w, c], of any backend.
        power: At least 1.

    Raises:
        ValueError: the power is smaller than 1 or not finite.
    """
    if not 1 <= power < float("inf"):
        raise ValueError(f"power must be a number of at least 1, not {power}")
    values: Any = ops.relu(ops.cast(feature_map, "float32"))
    # A power of a large value overflows float32, so that the largest value is taken out first.
    largest: Any = ops.max(values, axis=(1, 2), keepdims=True)
    scale: Any = ops.where(largest > 0, largest, ops.ones_like(largest))
    mean: Any = ops.mean(ops.power(values / scale, power), axis=(1, 2))
    # A root has no derivative at 0: a channel that is 0 everywhere would get the gradient NaN.
    alive: Any = mean > 0
    root: Any = ops.power(ops.where(alive, mean, ops.ones_like(mean)), 1 / power)
    return ops.where(alive, root * scale[:, 0, 0, :], ops.zeros_like(mean))


def regions(height: int, width: int, levels: int = 3) -> list[Region]:
    """Return R-MAC's squares on a map of this size.

    Tolias et al., arXiv:1511.05879, section 3.2. On level l the squares have the side
    2 min(height, width) / (l + 1), rounded down. There are l of them along the shorter side, and
    l + m - 1 along the longer one, at equal distances from edge to edge. The number m is chosen so
    that neighbours on the first level overlap by 40 % of their area, as nearly as possible.

    Raises:
        ValueError: a side or the number of levels is smaller than 1.
    """
    if min(height, width, levels) < 1:
        raise ValueError(
            f"a map of {height} x {width} with {levels} levels has no regions: all three must be "
            "at least 1"
        )
    shorter, longer = sorted((height, width))
    more = _more_along(shorter, longer)
    squares = []
    for level in range(1, levels + 1):
        side = max(1, 2 * shorter // (level + 1))
        rows = level + (more if height > width else 0)
        columns = level + (more if width > height else 0)
        squares += [
            Region(top, left, side)
            for top in _starts(height, side, rows)
            for left in _starts(width, side, columns)
        ]
    return squares


def _more_along(shorter: int, longer: int) -> int:
    """Return m - 1, the number of squares that the longer side has more than the shorter one."""
    if shorter == longer:
        return 0
    counts = np.arange(2, max(3, 2 + 2 * -(-longer // shorter)))
    overlaps = 1 - (longer - shorter) / (counts - 1) / shorter
    return int(counts[np.abs(overlaps - _OVERLAP).argmin()]) - 1


def _starts(length: int, side: int, count: int) -> list[int]:
    """Return where `count` squares begin, from edge to edge."""
    if count == 1:
        return [(length - side) // 2]
    return [place * (length - side) // (count - 1) for place in range(count)]


def region_maxima(feature_map: Any, levels: int = 3) -> Any:
    """Return the maximum of each channel in each of `regions`, [n, regions, c].

    Args:
        feature_map: [n, h, w, c] of known size, of any backend.
        levels: As for `regions`.
    """
    height, width = feature_map.shape[1:3]
    maxima: list[Any] = []
    for top, left, side in regions(height, width, levels):
        square = feature_map[:, top : top + side, left : left + side]
        maxima.append(ops.max(square, axis=(1, 2)))
    return ops.stack(maxima, axis=1)

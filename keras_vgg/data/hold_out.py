"""How one split is held out of another: the same share of every class, no group on two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from keras_vgg.data.groups import draw_by_group, units
from keras_vgg.data.split import Split, labels_of
from keras_vgg.data.stratify import draw_by_labels


def hold_out(
    split: Split,
    fraction: float,
    name: str,
    rng: np.random.Generator,
    equal_paths: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Split, Split | None]:
    """Split into (the rest, the held-out split `name`), the same fraction of every class.

    Both keep the order of `split`. A class of two images or more has at least one on each side; a
    class of one image stays in the rest. A fraction of 0 holds out nothing: (split, None).
    Where an image may have several labels, `stratify.draw_by_labels` draws. The images of a group
    stay on one side, and the shares are then as even as groups allow.

    Args:
        equal_paths: Path -> all paths of the same content, one list for all of them, for files that
            have an equal one (`equal_file_groups`). Such files stay on one side; in the rest where
            their classes differ.
    """
    if fraction == 0:
        return split, None
    if split.groups is not None:
        held = _draw_by_groups(split, fraction, rng, equal_paths or {})
    else:
        draw = _draw_by_labels if split.several_labels else _draw_by_class
        equal = _equal_positions(split, equal_paths or {})
        held = draw(labels_of(split), fraction, rng, equal)
    rest = split.take(np.flatnonzero(~held))
    if not held.any():
        return rest, None
    return rest, replace(split.take(np.flatnonzero(held)), name=name)


def _draw_by_class(
    labels: np.ndarray, fraction: float, rng: np.random.Generator, equal: Mapping[int, list[int]]
) -> np.ndarray:
    """Return which images to hold out, bool [n], for labels [n]."""
    held = np.zeros(len(labels), dtype=bool)
    for label in range(labels.max(initial=-1) + 1):
        members = np.flatnonzero(labels == label)
        count = min(max(int(len(members) * fraction + 0.5), 1), len(members) - 1)
        order = rng.permutation(members)
        if equal:
            _hold_groups(held, order, count, equal, labels)
        else:
            held[order[: max(count, 0)]] = True
    return held


def _draw_by_labels(
    labels: np.ndarray, fraction: float, rng: np.random.Generator, equal: Mapping[int, list[int]]
) -> np.ndarray:
    """Return which images to hold out, bool [n], for labels [n, classes]."""
    groups = np.arange(len(labels))
    for position, members in equal.items():
        groups[position] = members[0]
    return draw_by_labels(labels, fraction, rng, groups)


def _draw_by_groups(
    split: Split,
    fraction: float,
    rng: np.random.Generator,
    equal_paths: Mapping[str, Sequence[str]],
) -> np.ndarray:
    """Return which images to hold out, bool [n], for a split with groups."""
    numbers = unit_numbers(split, equal_paths)
    labels = labels_of(split)
    if split.several_labels:
        return draw_by_labels(labels, fraction, rng, numbers)
    return draw_by_group(numbers, labels, fraction, rng)


def unit_numbers(split: Split, equal_paths: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return int [n]: images of one group, and equal files, have the same number."""
    equal = None
    if equal_paths and split.paths is not None:
        # Equal files share one list, so its first path stands for all of them.
        equal = [equal_paths.get(str(path), (None,))[0] for path in split.paths]
    return units(split.size, split.groups, equal)


def _equal_positions(
    split: Split, equal_paths: Mapping[str, Sequence[str]]
) -> dict[int, list[int]]:
    """Return position -> the positions of all equal files in the split, where there are several.

    They ascend, and all positions of equal files have the same list: a set may have thousands.
    """
    if not equal_paths or split.paths is None:
        return {}
    positions = {str(path): position for position, path in enumerate(split.paths)}
    groups: dict[int, list[int]] = {}
    for path, position in positions.items():
        if position in groups:
            continue
        equal = equal_paths.get(path, ())
        group = sorted(positions[other] for other in equal if other in positions)
        if len(group) > 1:
            groups.update(dict.fromkeys(group, group))
    return groups


def _hold_groups(
    held: np.ndarray,
    order: np.ndarray,
    count: int,
    equal: Mapping[int, list[int]],
    labels: np.ndarray,
) -> None:
    """Mark about `count` images of a class as held out: in this order, equal ones together."""
    taken = 0
    passed = held.copy()
    spare: list[int] | None = None  # a group that is too large, if no smaller one fits
    for position in order.tolist():
        if taken >= count:
            return
        if passed[position]:
            continue
        group = equal.get(position, [position])
        passed[group] = True
        if len(set(labels[group].tolist())) > 1:
            continue
        if taken + len(group) <= count:
            held[group] = True
            taken += len(group)
        elif len(group) < len(order):
            spare = spare or group
    if not taken and spare:
        held[spare] = True

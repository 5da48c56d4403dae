"""Groups of images that no split divides, such as a patient's: their names, draws and folds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_vgg.data.left_out import listed, printable

if TYPE_CHECKING:
    from keras_vgg.data.split import Split

_NAMED = 5  # names in a message
_PASSES = 20  # of a draw at most; the first two or three change something
_LEAST_GAIN = 1e-12  # less is rounding, and two units could change sides for ever


def group_names(paths: Sequence[str], pattern: str) -> np.ndarray:
    """Return the group of each path: what the first parenthesis of a regular expression matches.

    Without a parenthesis, it is what the whole expression matches.

    Raises:
        ValueError: the pattern is not a regular expression, or a path does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"group_pattern {pattern!r} is not a regular expression: {error}"
        ) from None
    number = min(expression.groups, 1)
    matches = [expression.search(path) for path in paths]
    names = [match and match[number] for match in matches]
    without = [path for path, name in zip(paths, names, strict=True) if not name]
    if without:
        first = listed([printable(path) for path in without[:_NAMED]], len(without))
        raise ValueError(
            f"group_pattern {pattern!r} finds no group in {len(without):,} of {len(paths):,} "
            f"paths: {first}"
        )
    return np.array(names, dtype=object)


def units(size: int, *keys: Iterable[Hashable | None] | None) -> np.ndarray:
    """Return int [size]: images that share a key of any kind, at any remove, share a number.

    Args:
        size: The number of images.
        keys: A key for each image, such as its group. None: no other image has it.
    """
    parents = list(range(size))
    for column in keys:
        if column is None:
            continue
        first_of: dict[Hashable, int] = {}
        for position, key in enumerate(column):
            if key is not None:
                _join(parents, first_of.setdefault(key, position), position)
    roots = np.array([_root(parents, position) for position in range(size)], dtype=int)
    return np.unique(roots, return_inverse=True)[1]


def _root(parents: list[int], position: int) -> int:
    while parents[position] != position:
        parents[position] = parents[parents[position]]
        position = parents[position]
    return position


def _join(parents: list[int], one: int, other: int) -> None:
    first, second = sorted((_root(parents, one), _root(parents, other)))
    parents[second] = first


class _Contents:
    """How many images of each class each unit has.

    `labels` is int [n], or [n, classes] with a 1 for each label of an image. In the second case,
    one more class counts all images.
    """

    def __init__(self, unit_of: np.ndarray, labels: np.ndarray) -> None:
        if labels.ndim == 1:
            owners, classes = unit_of, labels.astype(int)
            width = int(labels.max(initial=-1)) + 1
        else:
            images, classes = np.nonzero(labels)
            width = labels.shape[1] + 1
            owners = np.concatenate([unit_of[images], unit_of])
            classes = np.concatenate([classes, np.full(len(unit_of), width - 1)])
        keys, counts = np.unique(owners * width + classes, return_counts=True)
        self.of_unit: list[list[tuple[int, int]]] = [
            [] for _ in range(int(unit_of.max(initial=-1)) + 1)
        ]
        for unit, label, count in zip(
            (keys // width).tolist(), (keys % width).tolist(), counts.tolist(), strict=True
        ):
            self.of_unit[unit].append((label, count))
        self.images = np.bincount(classes, minlength=width).tolist()
        self.units = np.bincount(keys % width, minlength=width).tolist()
        # Every class counts the same, whatever its size.
        self.weights = [1 / max(images, 1) ** 2 for images in self.images]
        self.sizes = np.bincount(unit_of)


def draw_by_group(
    unit_of: np.ndarray, labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Return bool [n]: about this fraction of each class, in whole units.

    Units come in random order, and one changes sides if this brings the classes nearer to the
    fraction, until none does. For units of one class, the difference is then at most half of the
    class's largest unit. A class of two units or more has at least one on each side, where this is
    possible.

    Args:
        unit_of: [n], from `units`.
        labels: int [n].
        fraction: Above 0 and below 1.
        rng: Decides the order.
    """
    drawing = _Drawing(_Contents(unit_of, labels), fraction)
    order = rng.permutation(len(drawing.taken)).tolist()
    for _ in range(_PASSES):
        moved = [drawing.move(unit) for unit in order if drawing.gain(unit) > _LEAST_GAIN]
        if not any(moved):
            break
    drawing.take_one_of_each_class(order)
    return np.array(drawing.taken, dtype=bool)[unit_of]


class _Drawing:
    """Which units are taken, and how many images of each class are missing."""

    def __init__(self, contents: _Contents, fraction: float) -> None:
        self.contents = contents
        self.taken = [False] * len(contents.of_unit)
        self.missing = [min(max(int(n * fraction + 0.5), 1), n - 1) for n in contents.images]
        # Units of each class on the two sides: those in the rest, those that are taken.
        self.sides = (list(contents.units), [0] * len(contents.units))

    def gain(self, unit: int) -> float:
        """Return how much nearer to the fraction the classes come if a unit changes sides."""
        sign = -1 if self.taken[unit] else 1
        return sum(
            self.contents.weights[label] * count * (2 * sign * self.missing[label] - count)
            for label, count in self.contents.of_unit[unit]
        )

    def may_move(self, unit: int) -> bool:
        """Return whether each of a unit's classes keeps a unit on this side."""
        side = self.sides[self.taken[unit]]
        return all(side[label] > 1 for label, _ in self.contents.of_unit[unit])

    def move(self, unit: int) -> bool:
        """Let a unit change sides if it may."""
        if not self.may_move(unit):
            return False
        origin, target = self.sides[self.taken[unit]], self.sides[not self.taken[unit]]
        sign = -1 if self.taken[unit] else 1
        self.taken[unit] = not self.taken[unit]
        for label, count in self.contents.of_unit[unit]:
            self.missing[label] -= sign * count
            origin[label] -= 1
            target[label] += 1
        return True

    def take_one_of_each_class(self, order: list[int]) -> None:
        """Take the smallest unit of each class of two units or more that has none."""
        taken = self.sides[True]
        for label, count in enumerate(self.contents.units):
            if count > 1 and not taken[label]:
                content = self.contents.of_unit
                having = [u for u in order if any(label == other for other, _ in content[u])]
                having = [unit for unit in having if self.may_move(unit)]
                if having:
                    self.move(min(having, key=lambda unit: self.contents.sizes[unit]))


def assign_folds(
    unit_of: np.ndarray,
    labels: np.ndarray,
    folds: int,
    rng: np.random.Generator,
    class_names: Sequence[str],
) -> np.ndarray:
    """Return int [n]: the fold of each image, from 0, in whole units and with even classes.

    The largest units come first, equal ones in random order. Each goes to the fold that has the
    smallest share of the unit's classes. Without groups, the folds differ by at most one image of
    each class.

    Raises:
        ValueError: a class has one unit alone, or there are fewer units than folds.
    """
    contents = _Contents(unit_of, labels)
    count = len(contents.of_unit)
    if count < folds:
        raise ValueError(
            f"{folds} folds need {folds} images or groups of images, and there are {count}"
        )
    for name, number in zip(class_names, contents.units, strict=False):
        if number == 1:
            raise ValueError(
                f"class {name!r} has one image, or one group of images (equal files are a group), "
                "so no network that is tested on it could learn the class; add other images, or "
                "leave the class out"
            )
    order = rng.permutation(count)
    order = order[np.argsort(-contents.sizes[order], kind="stable")].tolist()
    loads = [[0] * folds for _ in contents.images]
    images = [0] * folds
    fold_of = np.zeros(count, dtype=int)
    for unit in order:
        costs = [
            sum(contents.weights[c] * n * loads[c][fold] for c, n in contents.of_unit[unit])
            for fold in range(folds)
        ]
        best = min(range(folds), key=lambda fold: (costs[fold], images[fold]))
        fold_of[unit] = best
        images[best] += int(contents.sizes[unit])
        for label, number in contents.of_unit[unit]:
            loads[label][best] += number
    return fold_of[unit_of]


@dataclass(frozen=True)
class SharedGroups:
    """Groups that have images in two splits."""

    earlier: str
    later: str
    count: int
    first: tuple[str, ...]

    def __str__(self) -> str:
        names = listed(self.first, self.count)
        groups = "group has" if self.count == 1 else "groups have"
        return f"{self.count:,} {groups} images in {self.earlier} and in {self.later}: {names}"


def shared_groups(splits: Mapping[str, Split]) -> tuple[SharedGroups, ...]:
    """Return the groups that stand on two sides, for each pair of splits that has such groups."""
    names = {
        name: set(_present(split.groups))
        for name, split in splits.items()
        if split.groups is not None
    }
    pairs = []
    for earlier, later in itertools.combinations(names, 2):
        both = sorted(names[earlier] & names[later])
        if both:
            first = tuple(map(printable, both[:_NAMED]))
            pairs.append(SharedGroups(earlier, later, len(both), first))
    return tuple(pairs)


def _present(groups: Iterable[str | None]) -> Iterable[str]:
    return (group for group in groups if group is not None)

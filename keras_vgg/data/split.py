"""What a source hands out: splits of labelled images, and how one split is held out of another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a source, in exactly one of three forms.

    `images`: uint8 [n, h, w, 3] RGB, in memory, with `labels`.
    `paths`: n image files, decoded when they are needed, with `labels`.
    `records`: a tf.data.Dataset of (encoded image, label), always in the same order; no `labels`.
    `labels` is int32 [n].
    """

    name: str
    size: int
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    paths: np.ndarray | None = None
    records: tf.data.Dataset | None = None

    def __post_init__(self) -> None:
        forms = [form for form in (self.images, self.paths, self.records) if form is not None]
        if len(forms) != 1:
            raise ValueError(f"split {self.name!r} needs one of images, paths and records")
        if self.records is None and not len(forms[0]) == len(self.labels) == self.size:
            raise ValueError(
                f"split {self.name!r}: {len(forms[0])} images, {len(self.labels)} labels, "
                f"size {self.size} must be the same"
            )

    def fingerprint(self) -> str:
        """A digest that changes when images are added, removed, renamed or relabelled.

        Of files it reads the names (with their class folder), not the contents; of a stream, only
        the size is known.
        """
        digest = hashlib.sha256(str(self.size).encode())
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels, np.int32))
        if self.images is not None:
            digest.update(np.ascontiguousarray(self.images))
        if self.paths is not None:
            for path in self.paths:
                digest.update("/".join(str(path).replace(os.sep, "/").split("/")[-2:]).encode())
        return digest.hexdigest()

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, in that order. Only for images and paths."""
        return replace(
            self,
            size=len(indices),
            labels=self.labels[indices],
            images=None if self.images is None else self.images[indices],
            paths=None if self.paths is None else self.paths[indices],
        )


@dataclass(frozen=True)
class Source:
    """A data set: label i of every split means class_names[i]."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split | None


def hold_out(
    split: Split, fraction: float, name: str, class_names: Sequence[str], rng: np.random.Generator
) -> tuple[Split, Split | None]:
    """Split into (the rest, the held-out split `name`), the same fraction of every class.

    Both keep the order of `split`. A fraction of 0 holds out nothing: (split, None).
    ValueError if a class is too small to have an image on both sides.
    """
    if fraction == 0:
        return split, None
    held = np.zeros(split.size, dtype=bool)
    for label, class_name in enumerate(class_names):
        members = np.flatnonzero(split.labels == label)
        count = int(len(members) * fraction + 0.5)
        if not 0 < count < len(members):
            raise ValueError(
                f"class {class_name!r} has {len(members)} images: too few to hold out "
                f"{fraction:g} of them for {name}; add images or change the fraction"
            )
        held[rng.permutation(members)[:count]] = True
    rest = split.take(np.flatnonzero(~held))
    return rest, replace(split.take(np.flatnonzero(held)), name=name)

"""What a source hands out: splits of labelled images, in memory, in files or in TFRecord files."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from keras_vgg.augment.picture import without_autograph
from keras_vgg.data.decode import BitDepth
from keras_vgg.data.left_out import LeftOut, printable

if TYPE_CHECKING:
    from keras_vgg.data.equal import EqualImages

# Records start..stop of one named thing: a file, or a written split.
Piece = tuple[str, int, int]


def between(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """Return the parts of pieces that hold records `start` to `stop` of all pieces in order."""
    parts = []
    for name, first, last in pieces:
        low, high = max(start, 0), min(stop, last - first)
        if low < high:
            parts.append((name, first + low, first + high))
        start, stop = start - (last - first), stop - (last - first)
    return parts


@dataclass(frozen=True)
class Shard:
    """Records `start` to `stop` of one TFRecord file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Records:
    """Images in TFRecord files: `parse` takes a serialized record apart, (encoded, int label).

    `identity` says which images these are, for a fingerprint: another set has another.
    """

    shards: tuple[Shard, ...]
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    identity: str = ""

    @property
    def size(self) -> int:
        return sum(shard.stop - shard.start for shard in self.shards)

    def share(self, host: int, hosts: int) -> Records:
        """Return every `hosts`-th shard, from number `host` on."""
        return replace(self, shards=self.shards[host::hosts])

    def between(self, start: int, stop: int) -> Records:
        """Return records `start` to `stop` in the order of `dataset`, without empty shards."""
        pieces = between([astuple(shard) for shard in self.shards], start, stop)
        return replace(self, shards=tuple(Shard(*piece) for piece in pieces))

    def name_of(self, position: int) -> str:
        """Return "PATH, record N" of a position in the order of `dataset`; N counts in the file."""
        (shard,) = self.between(position, position + 1).shards
        return f"{printable(shard.path)}, record {shard.start}"

    def without(self, positions: Collection[int]) -> Records:
        """Return all records but those at `positions` in the order of `dataset`."""
        edges = itertools.pairwise([-1, *sorted(positions), self.size])
        parts = (self.between(before + 1, after).shards for before, after in edges)
        return replace(self, shards=tuple(itertools.chain(*parts)))

    @without_autograph  # which finds no source of os.fsencode
    def columns(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return path, start and stop of every shard: string, int64 and int64 [shards]."""
        return (
            tf.constant([os.fsencode(shard.path) for shard in self.shards], tf.string),
            tf.constant([shard.start for shard in self.shards], tf.int64),
            tf.constant([shard.stop for shard in self.shards], tf.int64),
        )

    def dataset(self) -> tf.data.Dataset:
        """Return (encoded image, label) of every record, in order."""
        shards = tf.data.Dataset.from_tensor_slices(self.columns())
        # The stub has no function of several columns.
        return shards.flat_map(self.read)  # pyright: ignore[reportArgumentType]

    def read(self, path: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.data.Dataset:
        """Return (encoded image, label) of one shard's records, in order."""
        return tf.data.TFRecordDataset(path).skip(start).take(stop - start).map(self.parse)


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a source, in exactly one of three forms.

    `images`: uint8 [n, h, w, 3] RGB, in memory, with `labels`.
    `paths`: n image files, decoded when they are needed, with `labels`.
    `records`: n images in TFRecord files, read in sequence; no `labels`.
    `labels` is int32 [n], or where an image may have several labels, uint8 [n, classes]: 1 for
    each label that it has, else 0. `bit_depth` says what 16-bit files become, see `data.decode`.
    `groups` is [n] names, such as patients: no draw divides the images of a group.
    """

    name: str
    size: int
    labels: np.ndarray | None = None
    images: np.ndarray | None = None
    paths: np.ndarray | None = None
    records: Records | None = None
    bit_depth: BitDepth = "16"
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        forms = [form for form in (self.images, self.paths, self.records) if form is not None]
        if len(forms) != 1:
            raise ValueError(f"split {self.name!r} needs one of images, paths and records")
        if self.records is not None:
            return
        images, labels = len(pictures_of(self)), len(labels_of(self))
        if not images == labels == self.size:
            raise ValueError(
                f"split {self.name!r}: {images} images, {labels} labels, "
                f"size {self.size} must be the same"
            )
        if self.groups is not None and len(self.groups) != self.size:
            raise ValueError(
                f"split {self.name!r}: {len(self.groups)} groups, and {self.size} images"
            )
        if self.several_labels:
            _require_zeros_and_ones(self.name, labels_of(self))

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels is not None and self.labels.ndim == 2

    def fingerprint(self) -> str:
        """Return a digest that changes when images are added, removed, renamed or relabelled.

        Of files it reads the names (with their class folder), not the contents; of records, their
        identity, the names of the shards and the range of records in each.
        """
        digest = hashlib.sha256(str(self.size).encode())
        if self.bit_depth != "16":
            digest.update(self.bit_depth.encode())
        if self.labels is not None:
            if self.several_labels:
                digest.update(f"{self.labels.shape} labels ".encode())
            digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        if self.images is not None:
            digest.update(np.ascontiguousarray(self.images).data)
        if self.paths is not None:
            for path in self.paths:
                name = "/".join(str(path).replace(os.sep, "/").split("/")[-2:])
                digest.update(name.encode("utf-8", "surrogateescape"))  # any bytes, on Linux
        if self.records is not None:
            digest.update(self.records.identity.encode())
            for shard in self.records.shards:
                name = os.path.basename(shard.path)
                digest.update(f"{name} {shard.start} {shard.stop} ".encode())
        return digest.hexdigest()

    def take(self, indices: np.ndarray) -> Split:
        """Return the images at `indices`, in that order."""
        if self.records is not None:
            shards = tuple(s for i in indices for s in self.records.between(i, i + 1).shards)
            records = replace(self.records, shards=shards)
            return replace(self, size=len(indices), records=records, groups=self._groups(indices))
        return replace(
            self,
            size=len(indices),
            labels=labels_of(self)[indices],
            images=None if self.images is None else self.images[indices],
            paths=None if self.paths is None else self.paths[indices],
            groups=self._groups(indices),
        )

    def _groups(self, indices: Any) -> np.ndarray | None:
        return None if self.groups is None else self.groups[indices]

    def stamp(self, *, times: bool = True) -> str | None:
        """Return what changes when a file is written anew under its name; None without files.

        Without `times` it is of the sizes alone, which a copy of the files keeps.
        """
        if self.images is not None:
            return None
        digest = hashlib.sha256()
        shards = self.records.shards if self.records is not None else ()
        for path in self.paths if self.paths is not None else [shard.path for shard in shards]:
            status = os.stat(path)
            digest.update(f"{status.st_size} ".encode())
            if times:
                digest.update(f"{status.st_mtime_ns} ".encode())
        return digest.hexdigest()

    def between(self, start: int, stop: int) -> Split:
        """Return images `start` to `stop`, in the same order."""
        if self.records is None:
            return self.take(np.arange(self.size)[start:stop])
        records, groups = self.records.between(start, stop), self._groups(slice(start, stop))
        return replace(self, size=records.size, records=records, groups=groups)

    def spread(self, count: int) -> Split:
        """Return at most `count` images, evenly spaced through the split, in the same order."""
        return self if count >= self.size else self.take(np.arange(count) * self.size // count)

    def without(self, positions: Collection[int]) -> Split:
        """Return all images but those at `positions`, in the same order."""
        kept = np.delete(np.arange(self.size), np.array(sorted(positions), int))
        if self.records is None:
            return self.take(kept)
        records = self.records.without(positions)
        return replace(self, size=records.size, records=records, groups=self._groups(kept))


def _require_zeros_and_ones(name: str, labels: np.ndarray) -> None:
    if labels.dtype != np.uint8 or labels.max(initial=0) > 1:
        raise ValueError(
            f"split {name!r}: labels [n, classes] must be uint8, each 0 or 1, not {labels.dtype} "
            f"from {labels.min(initial=0)} to {labels.max(initial=0)}"
        )


def labels_of(split: Split) -> np.ndarray:
    """Return the labels of a split of images or files; TypeError for records, which hold theirs."""
    if split.labels is None:
        raise TypeError(f"split {split.name!r} has no labels beside its images")
    return split.labels


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the number of images of each class, int64 [classes]; -1 is an unknown label.

    An image with several labels counts for each of them.
    """
    if labels.ndim == 2:
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels[labels >= 0], minlength=classes)


def pictures_of(split: Split) -> np.ndarray:
    """Return the images of a split, or the paths of its files as bytes. TypeError for records."""
    if split.images is not None:
        return split.images
    if split.paths is None:
        raise TypeError(f"split {split.name!r} has records, neither images nor paths")
    # Bytes, because TensorFlow refuses a name that is not UTF-8.
    return np.array([os.fsencode(path) for path in split.paths], dtype=object)


@dataclass(frozen=True)
class Source:
    """A data set: label i of every split means class_names[i].

    `left_out`: what of its folder is not read. `equal`: the equal images of its splits, of records
    that know them; None: compare the images. `packed_counts`: split -> images of each class in
    records.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split | None
    left_out: tuple[LeftOut, ...] = ()
    equal: tuple[EqualImages, ...] | None = None
    packed_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.train.several_labels

    def splits(self) -> dict[str, Split]:
        """Return the splits that the source has, by name: train, validation, test."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def class_counts(self) -> dict[str, list[int]]:
        """Return split -> images of each class, for the splits whose labels are known."""
        counts = {}
        for name, split in self.splits().items():
            packed = self.packed_counts.get(name, ())
            if split.labels is not None:
                counts[name] = class_counts(split.labels, len(self.class_names)).tolist()
            elif sum(packed) == split.size:  # not where damaged images are left out
                counts[name] = list(packed)
        return counts

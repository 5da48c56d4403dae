"""Which images of a split a contact sheet shows."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from keras_vgg.data.decode import TENSORFLOW_ERRORS, reason
from keras_vgg.data.split import Records, Shard, Split, labels_of, pictures_of

# From records, so many of a shard are looked at for each image wanted, in so many shards.
_LOOK, _SHARDS = 4, 16


def choose(split: Split, images: int, classes: int, rng: np.random.Generator) -> Split:
    """Return a split of at most so many images, evenly of its classes, in the order of labels."""
    if split.records is not None:
        shards, labels = _first_records(split.records, images, classes, rng)
        picked = _evenly(np.array(labels), images, rng)
        records = replace(split.records, shards=tuple(shards[i] for i in picked))
        return replace(split, size=len(picked), records=records)
    order = rng.permutation(split.size)
    labels = labels_of(split)
    if split.several_labels:  # each set of labels counts as a class
        labels = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return split.take(order[_evenly(labels[order], images, rng)])


def label_name(label: int | np.ndarray, class_names: Sequence[str], split_name: str) -> str:
    if isinstance(label, np.ndarray):
        return ", ".join(str(class_names[int(i)]) for i in np.flatnonzero(label)) or "no label"
    if not 0 <= label < len(class_names):
        raise ValueError(
            f"an image of split {split_name!r} has label {label}, "
            f"and there are {len(class_names)} class names"
        )
    return str(class_names[label])


def _evenly(labels: np.ndarray, images: int, rng: np.random.Generator) -> np.ndarray:
    """Return indices of `labels`, by label: in turns one of each class, the first ones first."""
    _, of_class, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(of_class, kind="stable")
    turn = np.empty(len(labels), int)
    turn[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Where the last turn is not whole, which classes have one is drawn.
    picked = np.lexsort((rng.permutation(len(counts))[of_class], turn))[:images]
    return picked[np.argsort(labels[picked], kind="stable")]


def _first_records(
    records: Records, images: int, classes: int, rng: np.random.Generator
) -> tuple[list[Shard], list[int]]:
    """Return single records, and their labels, from the heads of shards in random order.

    No more are read than are needed for `images` images evenly of `classes` classes, or than the
    limits above allow: a class that comes late in every shard is missed.
    """
    single: list[Shard] = []
    labels: list[int] = []
    counts: collections.Counter[int] = collections.Counter()
    for opened, number in enumerate(rng.permutation(len(records.shards))):
        shard = records.shards[number]
        if len(single) >= images and (opened == _SHARDS or _even(counts, images, classes)):
            break
        stop = min(shard.stop, shard.start + _LOOK * images)
        head = replace(records, shards=(replace(shard, stop=stop),)).dataset()
        before = len(single)
        try:
            for place, (_, label) in enumerate(head, shard.start):
                single.append(Shard(shard.path, place, place + 1))
                labels.append(int(label))
                counts[int(label)] += 1
                if _even(counts, images, classes):
                    break
        except TENSORFLOW_ERRORS as error:
            place = shard.start + len(single) - before
            raise ValueError(f"{shard.path}, record {place}: {reason(error)}") from error
    if not single:
        raise ValueError("the split's files hold no records to show")
    return single, labels


def _even(counts: collections.Counter[int], images: int, classes: int) -> bool:
    """Return whether `images` can be taken, and no class twice more often than another."""
    turns, rest = divmod(images, max(classes, 1))
    whole = sum(min(count, turns) for count in counts.values()) >= images - rest
    return whole and sum(min(count, turns + 1) for count in counts.values()) >= images


def stored(split: Split) -> Iterator[tuple[tf.Tensor, int | np.ndarray]]:
    """Yield (uint8 [h, w, 3] or an encoded image, label or uint8 [classes]) in order."""
    if split.records is not None:
        for encoded, label in split.records.dataset():
            yield encoded, int(label)
        return
    read = tf.constant if split.paths is None else tf.io.read_file
    for picture, label in zip(pictures_of(split), labels_of(split), strict=True):
        yield read(picture), label if split.several_labels else int(label)

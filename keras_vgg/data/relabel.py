"""Give the images of a split the class numbers of another list of classes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import tensorflow as tf

from keras_vgg.data.split import Records, Split


def relabelled(split: Split, numbers: np.ndarray, classes: int) -> tuple[Split, set[int]]:
    """Return the images of known classes with other class numbers, and the numbers present.

    Args:
        split: The images. One with several labels is left out if one of its classes is unknown.
        numbers: [classes of the split] the other number of each class, -1 for an unknown class.
        classes: How many classes the other list has.
    """
    numbers = np.append(numbers, -1)  # so that label -1, of an image without one, stays -1
    if split.records is not None:
        return _of_records(split, split.records, numbers)
    labels = np.asarray(split.labels)
    if split.several_labels:
        numbers = numbers[:-1]
        is_known = numbers >= 0
        others = np.zeros((split.size, classes), np.uint8)
        others[:, numbers[is_known]] = labels[:, is_known]
        kept = np.flatnonzero(~labels[:, ~is_known].any(axis=1))
        present = np.flatnonzero(others[kept].any(axis=0))
    else:
        others = numbers[labels].astype(np.int32)
        kept = np.flatnonzero(others >= 0)
        present = others[kept]
    return replace(split, labels=others).take(kept), set(present.tolist())


def _of_records(split: Split, records: Records, numbers: np.ndarray) -> tuple[Split, set[int]]:
    """Read all labels once, because records have none beside their images."""
    labels = records.dataset().map(lambda _, label: label).as_numpy_iterator()
    others = numbers[np.fromiter(labels, np.int64, split.size)]
    parse = partial(_parse, parse=records.parse, numbers=numbers)
    result = replace(split, records=replace(records, parse=parse))
    unknown = np.flatnonzero(others < 0).tolist()
    kept = result.without(unknown) if unknown else result
    return kept, set(others[others >= 0].tolist())


def _parse(serialized, *, parse, numbers: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
    encoded, label = parse(serialized)
    return encoded, tf.gather(tf.constant(numbers, tf.int32), label)

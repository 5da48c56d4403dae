"""How large a split's images are, from the heads of their files: no pixel is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_vgg.data.decode import TENSORFLOW_ERRORS, encoded_sides
from keras_vgg.data.split import Split, pictures_of

_HEAD_BYTES = 2**16  # most files state their size within these; a large Exif block comes before it


def median_smallest_side(split: Split, limit: int = 200) -> int:
    """Return the median of the smallest sides, in pixels, of at most `limit` images of a split.

    Files are spread evenly over the split; records are the first ones. Images that state no size
    are left out.

    Raises:
        ValueError: no image states its size.
    """
    sides = [side for side in _smallest_sides(split, limit) if side > 0]
    if not sides:
        raise ValueError(
            f"no image of split {split.name!r} states its size: `keras-vgg data check` says what "
            "is wrong with each"
        )
    return int(np.median(sides))


def _smallest_sides(split: Split, limit: int) -> Iterator[int]:
    if split.images is not None:  # the images in memory have one size
        yield min(split.images.shape[1:3])
    elif split.paths is not None:
        for path in pictures_of(split.spread(limit)):
            yield _side_of_file(path)
    elif split.records is not None:
        for encoded, _ in split.records.dataset().take(limit):
            yield _side_of_bytes(encoded)


def _side_of_file(path: bytes) -> int:
    """Return the smallest side that a file states; 0 if it states none or cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            side = _side_of_bytes(tf.constant(head))
            if side == 0 and os.fstat(file.fileno()).st_size > _HEAD_BYTES:
                side = _side_of_bytes(tf.constant(head + file.read()))
    except OSError:
        return 0
    return side


def _side_of_bytes(encoded: tf.Tensor) -> int:
    try:
        return int(tf.reduce_min(encoded_sides(encoded)))
    except TENSORFLOW_ERRORS:
        return 0

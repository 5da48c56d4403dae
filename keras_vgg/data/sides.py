"""How large a split's images are, from the heads of some of its files, and 16-bit files' levels."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vgg.data.decode import (
    TENSORFLOW_ERRORS,
    BitDepth,
    decode_16_bit,
    encoded_sides,
    is_16_bit,
    orientation,
)
from keras_vgg.data.left_out import printable
from keras_vgg.data.split import Split, pictures_of

_HEAD_BYTES = 2**16  # most files state their size within these; a large Exif block comes before it
_MEASURED = 200  # images of a split


@dataclass(frozen=True)
class Sizes:
    """The sizes of images in pixels, upright, and the 16-bit files that would be almost one grey.

    Attributes:
        images: Number of images that state a size, of those that were looked at.
        height: The smallest, median and largest.
        width: As `height`.
        few_levels: (name, smallest, largest value) of each 16-bit PNG file that uses less than an
            eighth of the values of its split's `bit_depth`.
    """

    images: int
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    few_levels: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, sides: np.ndarray, few_levels: list[tuple[str, int, int]]) -> Sizes:
        """Return the sizes of at least one image, of these heights and widths: int [n, 2]."""
        height, width = (
            (int(side.min()), int(np.median(side)), int(side.max())) for side in sides.T
        )
        return cls(len(sides), height, width, tuple(few_levels))

    def __str__(self) -> str:
        smallest, largest = (f"{self.height[i]}x{self.width[i]}" for i in (0, 2))
        return smallest if smallest == largest else f"{smallest} to {largest}"


def sizes_of(split: Split, limit: int = _MEASURED) -> Sizes | None:
    """Return the sizes of at most `limit` images of a split; None if no image states its size.

    Files are spread evenly over the split; records are the first ones. Only 16-bit PNG files are
    decoded, and those in records are not.
    """
    if split.images is not None:  # they have one size
        height, width = split.images.shape[1:3]
        return Sizes(split.size, (height,) * 3, (width,) * 3)
    sides, few_levels = [], []
    for head, path in _heads(split, limit):
        height, width, deep = _facts(head)
        if height and width:
            sides.append((height, width))
        if deep and path is not None and split.bit_depth != "stretch":
            low, high = _range_of(path)
            if uses_few_levels(low, high, split.bit_depth):
                few_levels.append((printable(os.fsdecode(path)), low, high))
    return Sizes.of(np.array(sides), few_levels) if sides else None


def median_smallest_side(split: Split, limit: int = _MEASURED) -> int:
    """Return the median of the smallest sides, in pixels, of the images that `sizes_of` looks at.

    Raises:
        ValueError: no image states its size.
    """
    if split.images is not None:
        return min(split.images.shape[1:3])
    sides = [min(facts[:2]) for facts in map(_facts, (head for head, _ in _heads(split, limit)))]
    sides = [side for side in sides if side > 0]
    if not sides:
        raise ValueError(
            f"no image of split {split.name!r} states its size: `keras-vgg data check` says what "
            "is wrong with each"
        )
    return int(np.median(sides))


def uses_few_levels(low: int, high: int, bit_depth: BitDepth) -> bool:
    """Return whether a 16-bit file of these values has fewer than 32 of 256 greys as it is read."""
    return bit_depth != "stretch" and high - low < 2 ** (int(bit_depth) - 3)


def range_of_16_bit(encoded: tf.Tensor) -> tf.Tensor:
    """Return the smallest and largest value of a 16-bit PNG file, int32 [2]."""
    values = decode_16_bit(encoded)
    return tf.stack([tf.reduce_min(values), tf.reduce_max(values)])


def _heads(split: Split, limit: int) -> Iterator[tuple[bytes, bytes | None]]:
    """Return what a file begins with, at least up to its size, and its path; of records None."""
    if split.records is not None:
        try:
            for encoded, _ in split.records.dataset().take(limit):
                yield encoded.numpy(), None
        except TENSORFLOW_ERRORS:
            return  # as below
        return
    for path in pictures_of(split.spread(limit)):
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD_BYTES)
                if not min(_facts(head)[:2]) and os.fstat(file.fileno()).st_size > _HEAD_BYTES:
                    head += file.read()
        except OSError:
            continue  # whoever reads the image says so
        yield head, path


def _facts(encoded: bytes) -> tuple[int, int, bool]:
    """Return height, width, and whether an encoded image is a 16-bit PNG; 0, 0 for no size."""
    try:
        height, width, deep = _facts_function()(tf.constant(encoded)).numpy().tolist()
    except TENSORFLOW_ERRORS:
        return 0, 0, False
    return height, width, bool(deep)


@functools.cache
def _facts_function() -> tf.types.experimental.PolymorphicFunction:
    def facts(encoded: tf.Tensor) -> tf.Tensor:
        sides = encoded_sides(encoded)
        # Exif's orientations 5 to 8 have rows for columns.
        upright = tf.where(orientation(encoded) >= 5, tf.reverse(sides, [0]), sides)
        return tf.concat([upright, [tf.cast(is_16_bit(encoded), tf.int32)]], 0)

    return tf.function(facts, input_signature=[tf.TensorSpec([], tf.string)])


def _range_of(path: bytes) -> tuple[int, int]:
    """Return the smallest and largest value of a 16-bit PNG file; all of them if it is damaged."""
    try:
        low, high = range_of_16_bit(tf.io.read_file(path)).numpy().tolist()
    except TENSORFLOW_ERRORS:
        return 0, 2**16 - 1
    return low, high

"""How large a split's images are, from the heads of some of its files, and 16-bit files' levels."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_vgg.data.decode import (
    MAX_PIXELS,
    TENSORFLOW_ERRORS,
    BitDepth,
    decode_16_bit,
    encoded_sides,
    is_16_bit,
    orientation,
)
from keras_vgg.data.left_out import printable
from keras_vgg.data.options import untuned
from keras_vgg.data.split import Split, pictures_of

_HEAD_BYTES = 2**16  # most files state their size within these; a large Exif block comes before it
_MEASURED = 200  # images of a split
_DECODED = 10  # 16-bit files of a split; one of 24 megapixels takes most of a second


@dataclass(frozen=True)
class Sizes:
    """The sizes of images in pixels, upright, and the 16-bit files that would be almost one grey.

    Attributes:
        images: Number of images that state a size, of those that were looked at.
        height: The smallest, median and largest.
        width: As `height`.
        deep: Number of 16-bit PNG files that were decoded.
        few_levels: (name, smallest, largest value) of each of them that gives fewer than 32 of 256
            greys with its split's `bit_depth`.
    """

    images: int
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    deep: int = 0
    few_levels: tuple[tuple[str, int, int], ...] = ()

    @classmethod
    def of(cls, sides: np.ndarray, deep: int, few_levels: list[tuple[str, int, int]]) -> Sizes:
        """Return the sizes of at least one image, of these heights and widths: int [n, 2]."""
        height, width = (
            (int(side.min()), int(np.median(side)), int(side.max())) for side in sides.T
        )
        return cls(len(sides), height, width, deep, tuple(few_levels))

    def __str__(self) -> str:
        (low, _, high), (narrow, _, wide) = self.height, self.width
        if (low, narrow) == (high, wide):
            return f"images of {wide}x{high} pixels"
        return f"images {narrow} to {wide} pixels wide and {low} to {high} high"


class _Image(NamedTuple):
    """One image of a split: what its head states, its bytes as far as they were read, its place."""

    height: int
    width: int
    is_deep: bool
    encoded: bytes
    place: str | int  # a file's path, or a position in records


def sizes_of(split: Split) -> Sizes | None:
    """Return the sizes of at most 200 images of a split; None if no image states its size.

    Files are spread evenly over the split; records are the first ones. Nothing is decoded but the
    first ten 16-bit PNG files.
    """
    if split.images is not None:  # they have one size
        height, width = split.images.shape[1:3]
        return Sizes(split.size, (height,) * 3, (width,) * 3)
    sides, deep, few_levels = [], 0, []
    for image in _images(split):
        if not image.height or not image.width:
            continue
        sides.append((image.height, image.width))
        if image.is_deep and deep < _DECODED and image.height * image.width <= MAX_PIXELS:
            ends = _ends(image)
            deep += ends is not None
            if ends is not None and uses_few_levels(*ends, split.bit_depth):
                few_levels.append((_name(image.place, split), *ends))
    return Sizes.of(np.array(sides), deep, few_levels) if sides else None


def median_smallest_side(split: Split, limit: int = _MEASURED) -> int:
    """Return the median of the smallest sides, in pixels, of the images that `sizes_of` looks at.

    Raises:
        ValueError: no image states its size.
    """
    if split.images is not None:
        return min(split.images.shape[1:3])
    sides = [min(image.height, image.width) for image in _images(split, limit)]
    sides = [side for side in sides if side > 0]
    if not sides:
        raise ValueError(
            f"no image of split {split.name!r} states its size: `keras-vgg data check` says what "
            "is wrong with each"
        )
    return int(np.median(sides))


def few_levels_text(rows: Sequence[tuple[str, int, int]], deep: int) -> str:
    """Return what to say of 16-bit files of few levels; the caller adds what to set.

    Args:
        rows: As `Sizes.few_levels`, at least one.
        deep: How many 16-bit files were looked at.
    """
    name, low, high = rows[0]
    return (
        f"{len(rows):,} of {deep:,} 16-bit files that were looked at use few of their levels, "
        f"and become almost one grey: {name} has values from {low} to {high}"
    )


def uses_few_levels(low: int, high: int, bit_depth: BitDepth) -> bool:
    """Return whether a 16-bit file of these values has fewer than 32 of 256 greys as it is read."""
    if bit_depth == "stretch":
        return False
    largest = 2 ** int(bit_depth) - 1  # what is above becomes white
    return min(high, largest) - min(low, largest) < (largest + 1) // 8


def range_of_16_bit(encoded: tf.Tensor) -> tf.Tensor:
    """Return the smallest and largest value of a 16-bit PNG file, int32 [2]."""
    values = decode_16_bit(encoded)
    return tf.stack([tf.reduce_min(values), tf.reduce_max(values)])


def _images(split: Split, limit: int = _MEASURED) -> Iterator[_Image]:
    """Return some images. Files that cannot be read are passed over: whoever reads them says so."""
    if split.records is not None:
        try:
            rows = enumerate(untuned(split.records.dataset().take(limit)))
            for position, (encoded, _) in rows:
                content = encoded.numpy()
                yield _Image(*_stated(content), content, position)
        except TENSORFLOW_ERRORS:
            pass
        return
    for path in pictures_of(split.spread(limit)):
        try:
            with open(path, "rb") as file:
                content = file.read(_HEAD_BYTES)
                stated = _stated(content)
                if not min(stated[:2]) and os.fstat(file.fileno()).st_size > _HEAD_BYTES:
                    content += file.read()
                    stated = _stated(content)
        except OSError:
            continue
        yield _Image(*stated, content, os.fsdecode(path))


def _stated(encoded: bytes) -> tuple[int, int, bool]:
    """Return height, width, and whether an encoded image is a 16-bit PNG; 0, 0 for no size."""
    try:
        height, width, is_deep = _head_reader()(tf.constant(encoded)).numpy().tolist()
    except TENSORFLOW_ERRORS:
        return 0, 0, False
    return height, width, bool(is_deep)


@functools.cache
def _head_reader() -> tf.types.experimental.PolymorphicFunction:
    def read(encoded: tf.Tensor) -> tf.Tensor:
        sides = encoded_sides(encoded)
        # Exif's orientations 5 to 8 have rows for columns.
        upright = tf.where(orientation(encoded) >= 5, tf.reverse(sides, [0]), sides)
        return tf.concat([upright, [tf.cast(is_16_bit(encoded), tf.int32)]], 0)

    return tf.function(read, input_signature=[tf.TensorSpec([], tf.string)])


def _name(place: str | int, split: Split) -> str:
    if isinstance(place, str):
        return printable(place)
    assert split.records is not None, "only records have positions"
    return split.records.name_of(place)


def _ends(image: _Image) -> tuple[int, int] | None:
    """Return the smallest and largest value of a 16-bit PNG file; None if it is damaged."""
    try:
        with tf.device("CPU"):
            whole = tf.constant(image.encoded)
            if isinstance(image.place, str):
                whole = tf.io.read_file(os.fsencode(image.place))
            low, high = range_of_16_bit(whole).numpy().tolist()
    except TENSORFLOW_ERRORS:
        return None
    return low, high

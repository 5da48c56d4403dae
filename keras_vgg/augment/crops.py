"""Crops of a drawn area and aspect ratio, as Inception was trained on (arXiv:1409.4842)."""

from __future__ import annotations

import math

import tensorflow as tf

from keras_vgg.augment.geometry import Window

ATTEMPTS = 10  # a crop that does not fit into the image is drawn again
CROP_RATIO = (3 / 4, 4 / 3)
LARGEST_RATIO = 10.0


def check_crop(area: tuple[float, float], ratio: tuple[float, float]) -> None:
    """ValueError unless both are rising ranges within their limits."""
    if not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
        raise ValueError(f"crop_area={area} must be two rising shares of the image in (0, 1]")
    if not (len(ratio) == 2 and 1 / LARGEST_RATIO <= ratio[0] <= ratio[1] <= LARGEST_RATIO):
        raise ValueError(
            f"crop_ratio={ratio} must be two rising ratios of width to height in "
            f"[{1 / LARGEST_RATIO:g}, {LARGEST_RATIO:g}]"
        )


def area_window(
    sides: tf.Tensor,
    draws: tf.Tensor,
    *,
    size: int,
    area: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> Window:
    """Return the Window of a drawn rectangle of an image, which becomes a square of `size`.

    Its share of the image's area is drawn evenly from `area`, the logarithm of its width / height
    from that of `ratio`, and every place in the image is equally likely. If it is larger than the
    image, it is drawn again; after 10 times, it is the largest one in the middle whose ratio is in
    the range.

    Args:
        sides: Height and width of the image.
        draws: float32 [10, 4], uniform in [0, 1): of each attempt area, ratio, row and column.
    """
    check_crop(area, ratio)
    whole = tf.cast(sides, tf.float32)
    share = area[0] + (area[1] - area[0]) * draws[:, 0]
    logs = math.log(ratio[0]), math.log(ratio[1])
    drawn_ratio = tf.exp(logs[0] + (logs[1] - logs[0]) * draws[:, 1])
    extent = tf.sqrt(
        share[:, tf.newaxis]
        * (whole[0] * whole[1])
        * tf.stack([1.0 / drawn_ratio, drawn_ratio], axis=1)
    )
    extent = tf.cast(tf.round(extent), tf.int64)
    room = tf.cast(sides, tf.int64) - extent
    fits = tf.reduce_all((extent > 0) & (room >= 0), axis=1)
    corner = tf.cast(draws[:, 2:] * tf.cast(room + 1, tf.float32), tf.int64)
    largest = _largest(sides, ratio)
    middle = (tf.cast(sides, tf.int64) - largest) // 2
    chosen = tf.argmax(tf.concat([fits, [True]], axis=0), output_type=tf.int32)
    extent = tf.concat([extent, largest[tf.newaxis]], axis=0)[chosen]
    corner = tf.concat([corner, middle[tf.newaxis]], axis=0)[chosen]
    # The image is resized so that the rectangle is a square. Both round alike, halves up: a
    # rectangle that ends with the image ends with the resized image.
    scaled = (2 * tf.cast(sides, tf.int64) * size + extent) // (2 * extent)
    start = (2 * corner * size + extent) // (2 * extent)
    return Window(scaled, start, size, inside=True)


def _largest(sides: tf.Tensor, ratio: tuple[float, float]) -> tf.Tensor:
    """Return height and width, int64 [2], of the largest rectangle of a ratio in the range."""
    height, width = tf.unstack(tf.cast(sides, tf.float32))
    sides_in_range = tf.stack(
        [tf.minimum(height, width / ratio[0]), tf.minimum(width, height * ratio[1])]
    )
    return tf.maximum(tf.cast(tf.round(sides_in_range), tf.int64), 1)

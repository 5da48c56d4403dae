"""The colour operations of AutoAugment's successors: uint8 [size, size, 1 or 3] -> the same.

They are Pillow's (`ImageEnhance`, `ImageOps`), which the papers use, and like Pillow they cut off
what follows the point. Each takes its strength as a float32 scalar, and some do not use it.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from keras_vgg.augment.color import LUMA, adjust_to_uint8

Tone = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_ALMOST = 1e-3  # below a whole number: float32 has 99.99999 for 100


def unchanged(image: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    return image


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiply by `factor`: 0 is black."""
    return _whole(tf.cast(image, tf.float32) * factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scale the distance from the image's mean luma: 0 is grey."""
    pixels = tf.cast(image, tf.float32)
    # Rows first: the mean over both axes at once is ten times as slow.
    means = tf.reduce_mean(tf.reduce_mean(pixels, axis=0), axis=0)
    mean = tf.reduce_sum(means * LUMA) if image.shape[-1] == 3 else means[0]
    return _whole(pixels * factor + (1.0 - factor) * mean)


def saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scale the distance of each pixel from its luma: 0 is grey. Pillow's name is Color."""
    if image.shape[-1] == 1:
        return image
    # adjust_to_uint8 adds a half, to round.
    shift = tf.fill([3], _ALMOST - 0.5)
    return adjust_to_uint8(tf.cast(image, tf.float32), (0.0, 1.0, factor, 0.0), shift)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scale the distance from the image blurred: 0 is blurred, 2 sharpened.

    A pixel of the blurred image is 5 / 13 of it and 1 / 13 of each of its 8 neighbours. The
    outermost pixels stay as they are.
    """
    pixels = tf.cast(image, tf.float32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    middle = pixels[1:-1, 1:-1]
    change = (1.0 - factor) * (box - 9.0 * middle) / 13.0
    return _whole(pixels + tf.pad(change, [[1, 1], [1, 1], [0, 0]]))


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keep the upper `bits` of the 8 bits of each value."""
    kept = 256 - tf.bitwise.left_shift(1, 8 - tf.cast(bits, tf.int32))
    return tf.bitwise.bitwise_and(image, tf.cast(kept, tf.uint8))


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Invert the values from `threshold` on."""
    lowest = tf.cast(tf.math.ceil(threshold), tf.uint8)
    return tf.where(image >= lowest, 255 - image, image)


def autocontrast(image: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Spread the values of each channel over [0, 255]; a channel of one value stays as it is."""
    pixels = tf.cast(image, tf.float32)
    low = tf.reduce_min(tf.reduce_min(pixels, axis=0), axis=0)
    high = tf.reduce_max(tf.reduce_max(pixels, axis=0), axis=0)
    one_value = high == low
    gain = tf.where(one_value, 1.0, 255.0 / tf.maximum(high - low, 1.0))
    return _whole(pixels * gain - tf.where(one_value, 0.0, low * gain))


def equalize(image: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
    """Give each channel an even histogram; one with too few values stays as it is."""
    channels = image.shape[-1] or 3
    bins = tf.cast(image, tf.int32) + 256 * tf.range(channels)
    counts = tf.math.bincount(
        tf.reshape(bins, [-1]), minlength=256 * channels, maxlength=256 * channels
    )
    counts = tf.reshape(counts, [channels, 256])
    values = tf.range(256)
    highest = tf.reduce_max(tf.where(counts > 0, values, 0), axis=1)
    of_highest = tf.gather(counts, highest, batch_dims=1)
    step = (tf.reduce_sum(counts, axis=1) - of_highest)[:, tf.newaxis] // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = (below + step // 2) // tf.maximum(step, 1)
    table = tf.where(step == 0, values, tf.minimum(table, 255))
    return tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), bins)


def _whole(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(pixels + _ALMOST, 0.0, 255.0), tf.uint8)

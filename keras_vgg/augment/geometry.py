"""Rescaling, cropping, mirroring; and doing the first two on no more of an image than is kept."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_vgg.augment.picture import Picture, decoded_smaller, picture_of

# How an image comes to a scale: its smallest side is that long and the rest is cropped; both sides
# are, whatever its shape; or its largest side is, and zeros are put beside it.
Resize = Literal["crop", "squash", "pad"]


class View(NamedTuple):
    """How a window is seen: turned, sheared, moved or mirrored.

    `map`: float32 [2, 3], from a place in the result to the place in the window that is seen there,
    (row, column) from the upper left corner in pixels; a pixel's centre is at a half. `mirrored`:
    bool [2], whether `map` mirrors the rows' order, and the columns'. `moved`: int64 [2], by how
    many rows and columns the window lies elsewhere, if `is_upright`: a bool scalar, whether `map`
    does nothing else.
    """

    map: tf.Tensor
    mirrored: tf.Tensor
    moved: tf.Tensor
    is_upright: tf.Tensor


class Window(NamedTuple):
    """The pixels `start` to `start` + (size, size) of an image resized to `scaled`.

    Both are int64 [2], (vertical, horizontal). What lies outside the resized image is zero; with
    `inside`, nothing does. `view`: how they are seen; None: as they are, or mirrored.
    """

    scaled: tf.Tensor
    start: tf.Tensor
    size: int
    inside: bool = False
    view: View | None = None


def rescale(
    image: tf.Tensor,
    side: int | tf.Tensor,
    antialias: bool = True,
    resize: Resize = "crop",
) -> tf.Tensor:
    """Resize [h, w, 3] of any dtype to float32 of the same range; bilinear.

    Args:
        side: The smallest side, the other in proportion ("crop"); both sides ("squash"); or the
            largest side ("pad"; the zeros are put beside it by `pad_to`).
        antialias: Widen the filter when shrinking.

    Raises:
        ValueError: `side` is an int below 1.
    """
    if not tf.is_tensor(side) and side < 1:
        raise ValueError(f"side={side}: an image side is at least 1 pixel")
    sides = scaled_sides(tf.shape(image)[:2], side, resize)
    return tf.image.resize(image, tf.cast(sides, tf.int32), antialias=antialias)


def scaled_sides(
    sides: tf.Tensor | np.ndarray, side: int | tf.Tensor | None, resize: Resize = "crop"
) -> tf.Tensor:
    """Return the sides, int64 [2], of an image of `sides` [2] that is brought to a scale.

    As `rescale` says; a side in proportion is rounded to the nearest pixel, halves up. None leaves
    the image as it is.

    Raises:
        ValueError: another `resize`.
    """
    if resize not in ("crop", "squash", "pad"):
        raise ValueError(f'resize={resize!r} must be "crop", "squash" or "pad"')
    # 64 bits, because the products below overflow 32 on a long strip of pixels.
    sides = tf.cast(sides, tf.int64)
    if side is None:
        return sides
    side = tf.cast(side, tf.int64)
    if resize == "squash":
        return tf.stack([side, side])
    decisive = tf.reduce_min(sides) if resize == "crop" else tf.reduce_max(sides)
    # Integer arithmetic: the decisive side comes out exact.
    scaled = (2 * sides * side + decisive) // (2 * decisive)
    return scaled if resize == "crop" else tf.maximum(scaled, 1)


def pad_to(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Zero-pad [h, w, 3] evenly to at least [height, width, 3]; same dtype.

    An odd pixel goes to the bottom or right. A side that is long enough already is left alone.
    """
    h, w = sides_of(image)
    rows, columns = larger(height - h, 0), larger(width - w, 0)
    if isinstance(rows, int) and isinstance(columns, int) and rows == columns == 0:
        return image
    top, left = rows // 2, columns // 2
    paddings = [[top, rows - top], [left, columns - left], [0, 0]]
    return tf.pad(image, paddings)  # pyright: ignore[reportArgumentType]  # tensors too


def random_crop(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """A [size, size, 3] window of [h, w, 3], every offset equally likely; same dtype.

    ValueError (tf.errors.InvalidArgumentError where sides are only known at run time) if the image
    is smaller than `size`.
    """
    sides = sides_of_at_least(size, image)
    # One draw for both offsets. u < 1 implies u * n < n in float32 for any side an image can have.
    reach = tf.cast(tf.stack(sides) - (size - 1), tf.float32)
    top, left = tf.unstack(tf.cast(tf.random.stateless_uniform([2], seed) * reach, tf.int32))
    return crop(image, top, left, size)


def center_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """The central [size, size, 3] of [h, w, 3], offset floor((side - size) / 2); same dtype.

    Errors as for `random_crop`.
    """
    h, w = sides_of_at_least(size, image)
    return crop(image, (h - size) // 2, (w - size) // 2, size)


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """[h, w, 3] mirrored left to right with probability 1/2; same shape and dtype."""
    return mirror_if(image, tf.random.stateless_uniform([], seed) < 0.5)


def mirror_if(image: tf.Tensor, mirrored: tf.Tensor, axis: int = 1) -> tf.Tensor:
    """[h, w, 3] mirrored left to right, or along another axis, where the bool scalar says so."""
    # The axes to reverse are [1] or none: one op. A tf.cond costs more on a small image, and a
    # slice of stride -1 ten times as much on a large one.
    flipped = tf.reverse(image, tf.range(axis, axis + tf.cast(mirrored, tf.int32)))
    flipped.set_shape(image.shape)
    return flipped


def random_window(
    sides: tf.Tensor,
    draws: tf.Tensor,
    *,
    size: int,
    scale: tuple[int, int] | None = None,
    crop_padding: int = 0,
    resize: Resize = "crop",
) -> Window:
    """Where a training crop comes from, in an image of `sides` [2].

    `draws`, float32 [3] uniform in [0, 1), choose the scale, an integer scale[0]..scale[1] (None:
    the image is not rescaled), and the offsets, every one equally likely, in the image rescaled as
    `rescale` says, with `crop_padding` zeros around it. "pad" puts zeros up to a square of the
    scale, and every image gets zeros up to `size` where it is smaller. A crop has as few of these
    zeros as it can, and never zeros alone.
    """
    side = None
    if scale is not None:
        smallest, largest = scale
        if not 1 <= smallest <= largest:
            raise ValueError(
                f"scale={scale} must be (smallest, largest) with 1 <= smallest <= largest"
            )
        side = smallest + tf.cast(draws[0] * (largest - smallest + 1), tf.int64)
    scaled = scaled_sides(sides, side, resize)
    framed = tf.maximum(_squared(scaled, side, resize) + 2 * crop_padding, size)
    before = (framed - scaled) // 2  # zeros
    spare = scaled - size
    first = tf.maximum(-before, tf.maximum(tf.minimum(spare, 0) - crop_padding, 1 - size))
    last = tf.minimum(
        framed - size - before, tf.minimum(tf.maximum(spare, 0) + crop_padding, scaled - 1)
    )
    # u < 1 implies u * n < n in float32 for any side an image can have.
    offset = tf.cast(draws[1:] * tf.cast(last - first + 1, tf.float32), tf.int64)
    inside = crop_padding == 0 and scale is not None and scale[0] >= size and resize != "pad"
    return Window(scaled, first + offset, size, inside)


def _squared(scaled: tf.Tensor, side: int | tf.Tensor | None, resize: Resize) -> tf.Tensor:
    """Return the sides with the zeros of "pad": a square."""
    if resize != "pad" or side is None:
        return scaled
    return tf.maximum(scaled, tf.cast(side, tf.int64))


def central_window(
    sides: tf.Tensor | np.ndarray,
    *,
    size: int,
    scale: int | None = None,
    resize: Resize = "crop",
) -> Window:
    """The central [size, size] of an image of `sides` [2], rescaled as `rescale` says."""
    scaled = scaled_sides(sides, scale, resize)
    framed = tf.maximum(_squared(scaled, scale, resize), size)
    inside = scale is not None and scale >= size and resize != "pad"
    return Window(scaled, (framed - size) // 2 - (framed - scaled) // 2, size, inside)


def resample(image: tf.Tensor | Picture, window: Window, exact: bool = True) -> tf.Tensor:
    """The window of the image, resized bilinearly: float32 [size, size, 3], the image's range.

    Only the pixels that matter are read. `exact` equals resizing the whole image with
    `tf.image.resize(antialias=True)` and cropping. Otherwise the window is moved to whole pixels
    of the source, by at most half of one, and resized without antialiasing, which is twice as
    fast; but an image that is shrunk or enlarged more than twofold is still resampled exactly. A
    JPEG that is at least 2, 4 or 8 times as large as the window needs is decoded so much smaller
    first, which moves the window by at most a pixel of the smaller image.
    """
    image = picture_of(image)
    low, high = visible(window)
    if exact:
        part = resampled_exactly(image, window.scaled, low, high)
    else:
        image = decoded_smaller(image, window.scaled)
        sides = tf.cast(image.sides, tf.int64)
        part = tf.cond(
            tf.reduce_all((2 * sides >= window.scaled) & (sides <= 2 * window.scaled)),
            lambda: tf.image.resize(
                # As floats: the kernel for bytes takes half as long again.
                tf.cast(source_window(image, window), tf.float32),
                tf.cast(high - low, tf.int32),
            ),
            lambda: resampled_exactly(image, window.scaled, low, high),
        )
    return _in_frame(part, window, low, high, image.channels)


def cut(image: tf.Tensor | Picture, window: Window) -> tf.Tensor:
    """The window of an image that is not rescaled: [size, size, 3] of the image's dtype."""
    low, high = visible(window)
    image = picture_of(image)
    return _in_frame(part_of(image, low, high), window, low, high, image.channels)


def visible(window: Window) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of a window that is image: from, to; int64 [2] each, in the rescaled image."""
    if window.inside:
        return window.start, window.start + window.size
    return tf.maximum(window.start, 0), tf.minimum(window.start + window.size, window.scaled)


def snapped(
    sides: tf.Tensor | np.ndarray, scaled: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """low..high of an image resized to `scaled` -> the nearest whole pixels of the source.

    All int64 [2]; at least one pixel.
    """
    # Rounded to nearest; a wide enlargement must not leave the image or come to nothing.
    first = tf.minimum((2 * low * sides + scaled) // (2 * scaled), sides - 1)
    last = tf.maximum((2 * high * sides + scaled) // (2 * scaled), first + 1)
    return first, last


def source_window(image: Picture, window: Window) -> tf.Tensor:
    """The window, moved to whole pixels of the source, as it is there: [height, width, 3]."""
    sides = tf.cast(image.sides, tf.int64)
    return part_of(image, *snapped(sides, window.scaled, *visible(window)))


def part_of(image: Picture, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """The pixels first..last, int64 [2] each, of the image as it is."""
    part = image.read(tf.cast(tf.concat([first, last - first], 0), tf.int32))
    part.set_shape([None, None, image.channels])
    return part


def resampled_exactly(
    image: Picture, scaled: tf.Tensor, low: tf.Tensor, high: tf.Tensor
) -> tf.Tensor:
    """The pixels low..high, int64 [2] each, of the image resized to `scaled`, antialiased."""
    sides = tf.cast(image.sides, tf.int64)
    enlarged = tf.cast(scaled, tf.float32) / tf.cast(sides, tf.float32)
    # Around the window, what the filter reaches: 1 pixel of the larger of the two grids.
    reach = tf.cast(tf.math.ceil(tf.maximum(1.0 / enlarged, 1.0)), tf.int64) + 1
    first = tf.maximum(low * sides // scaled - reach, 0)
    last = tf.minimum(-(-high * sides // scaled) + reach, sides)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=part_of(image, first, last)[tf.newaxis],
        size=tf.cast(high - low, tf.int32),
        scale=enlarged,
        translation=tf.cast(first, tf.float32) * enlarged - tf.cast(low, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )
    return resized[0]


def _in_frame(
    part: tf.Tensor, window: Window, low: tf.Tensor, high: tf.Tensor, channels: int
) -> tf.Tensor:
    if not window.inside:
        around = tf.stack([low - window.start, window.start + window.size - high], axis=1)
        part = tf.pad(part, tf.pad(around, [[0, 1], [0, 0]]))
    part.set_shape([window.size, window.size, channels])
    return part


def sides_of(image: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Height and width, as ints where they are known before run time."""
    height, width, dynamic = image.shape[0], image.shape[1], tf.shape(image)
    return dynamic[0] if height is None else height, dynamic[1] if width is None else width


def sides_of_at_least(size: int, image: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Height and width; ValueError if they are known to be less than `size`."""
    sides = sides_of(image)
    for side in sides:
        if isinstance(side, int) and side < size:
            raise ValueError(f"cannot crop {size} x {size} pixels from {sides[0]} x {sides[1]}")
    return sides


def crop(image: tf.Tensor, top: int | tf.Tensor, left: int | tf.Tensor, size: int) -> tf.Tensor:
    """Return the [size, size, channels] at (top, left) of an image, with its dtype."""
    channels = image.shape[-1]
    window = tf.slice(image, [top, left, 0], [size, size, channels])
    window.set_shape([size, size, channels])
    return window


def larger(a: int | tf.Tensor, b: int | tf.Tensor) -> int | tf.Tensor:
    """The maximum, as an int where both are."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tf.maximum(a, b)

"""Rotation, shear, translation and mirror images, with scale and crop as one map of places.

A window (`augment.Window`) is a square of an image that is resized. A `View` says how the window is
seen. Together they are one affine map, from the centre of a pixel of the result to its place in the
source; there the image is interpolated bilinearly, once. So a turned crop is as sharp as a crop,
and its corners show what lies there in the photograph, beyond the window. Black is only what lies
beyond the photograph.

Bilinear interpolation reads two pixels a direction, so a map that shrinks the image more than
twofold would miss pixels and alias. The two directions are looked at by themselves, before the
turn, which changes no area:

- A JPEG that is at least 2, 4 or 8 times as large as the window needs is decoded so much smaller,
  as `resample(exact=False)` has it decoded.
- An image that is still at least k times too large, k = 2, 3, ..., is first reduced k times, with
  antialiasing, in the part that the result shows. What the map then shrinks is less than twofold.
- A view that does no more than mirror, and move by whole pixels, is `resample(exact=False)` of a
  window that lies elsewhere, and a reversal: pixel for pixel what a window without a view gives.

At the border of the image, its outermost pixels are repeated for half a pixel, up to its edge, and
the edge is blended with black over one pixel of the result. For a result as large as its source,
that is an interpolation with black pixels around the image.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_vgg.augment.geometry import (
    View,
    Window,
    cut,
    mirror_if,
    part_of,
    resample,
    resampled_exactly,
)
from keras_vgg.augment.picture import Picture, decoded_smaller

Number = float | tf.Tensor


def affine_map(
    center: Number,
    angle: Number = 0.0,
    shear: tuple[Number, Number] = (0.0, 0.0),
    shift: tuple[Number, Number] = (0.0, 0.0),
) -> tf.Tensor:
    """Return the map, float32 [2, 3], of an image that is sheared, then turned, then moved.

    It goes from a place in the result to the place that is seen there, as `View.map` does.

    Args:
        center: Row and column of the place that shear and turn keep.
        angle: Radians, counterclockwise.
        shear: Every pixel is moved up by shear[0] times its distance to the right of the centre,
            and then to the left by shear[1] times its distance below the centre.
        shift: Pixels down and to the right.
    """
    cosine, sine = tf.cos(angle), tf.sin(angle)
    down, right = (tf.cast(part, tf.float32) for part in shear)
    # The inverses: of the turn, then of the shear.
    turn = tf.reshape(tf.stack([cosine, sine, -sine, cosine]), [2, 2])
    slant = tf.reshape(tf.stack([1.0 + down * right, down, right, 1.0]), [2, 2])
    linear = tf.matmul(slant, turn)
    moved = center + tf.stack([tf.cast(part, tf.float32) for part in shift])
    # Multiplied and added, for a matmul on a GPU may round its operands to TF32.
    offset = center - tf.reduce_sum(linear * moved, axis=1)
    return tf.concat([linear, offset[:, tf.newaxis]], axis=1)


def mirror_map(size: int, mirrored: tf.Tensor) -> tf.Tensor:
    """Return the map of a [size, size] image mirrored: bool [2], the rows' order, the columns'."""
    flipped = tf.cast(mirrored, tf.float32)
    return tf.concat([tf.linalg.diag(1.0 - 2.0 * flipped), (size * flipped)[:, tf.newaxis]], axis=1)


def compose(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Return the map of an image that is changed as `first` says, and then as `second` says."""
    linear, offset = first[:, :2], first[:, 2]
    product = tf.reduce_sum(linear[:, :, tf.newaxis] * second[tf.newaxis], axis=1)
    return product + tf.pad(offset[:, tf.newaxis], [[0, 0], [2, 0]])


def view_of(size: int, changes: list[tf.Tensor], mirrored: tf.Tensor) -> View:
    """Return the View of a window of `size` that is mirrored and then changed in turn by maps."""
    changed, whole = tf.eye(2, 3), mirror_map(size, mirrored)
    for change in changes:
        changed, whole = compose(changed, change), compose(whole, change)
    shift = whole[:, 2] - mirror_map(size, mirrored)[:, 2]
    moved = tf.round(shift)
    is_upright = tf.reduce_all(changed[:, :2] == tf.eye(2)) & tf.reduce_all(shift == moved)
    return View(whole, mirrored, tf.cast(moved, tf.int64), is_upright)


def corners(sides: tf.Tensor | np.ndarray, window: Window) -> tf.Tensor:
    """Return where the window's corners lie in the image of `sides` [2]: float32 [4, 2].

    (row, column) in pixels of the image, from its upper left corner, of the upper left, upper
    right, lower right and lower left corner of what is seen; some may lie outside the image.
    """
    places = float(window.size) * tf.constant([[0, 0], [0, 1], [1, 1], [1, 0]], tf.float32)
    if window.view is not None:
        places = _mapped(window.view.map, places)
    return (tf.cast(window.start, tf.float32) + places) * _ratio(sides, window.scaled)


def seen(image: Picture, window: Window, rescaled: bool) -> tf.Tensor:
    """Return the window of an image as its view shows it: float32 [size, size, channels].

    `rescaled`: whether window.scaled may differ from the image's sides.
    """
    view = window.view
    assert view is not None, "a window without a view is resampled, or cut"

    start = window.start + view.moved
    inside = (start < window.scaled) & (start + window.size > 0)  # or nothing is to be resampled
    elsewhere = window._replace(start=start, inside=False)

    def upright() -> tf.Tensor:
        pixels = resample(image, elsewhere, exact=False) if rescaled else cut(image, elsewhere)
        pixels = tf.cast(pixels, tf.float32)
        return mirror_if(mirror_if(pixels, view.mirrored[1]), view.mirrored[0], axis=0)

    pixels = tf.cond(
        view.is_upright & tf.reduce_all(inside), upright, lambda: warp(image, window, view)
    )
    pixels.set_shape([window.size, window.size, image.channels])
    return pixels


def warp(image: Picture, window: Window, view: View) -> tf.Tensor:
    """Return what `seen` does of a view that turns, shears or moves, interpolated once."""
    image = decoded_smaller(image, window.scaled)
    read_sides = tf.cast(image.sides, tf.int64)
    reduction = tf.maximum(read_sides // window.scaled, 1)
    sides = tf.maximum(read_sides // reduction, 1)
    ratio = _ratio(sides, window.scaled)
    start = tf.cast(window.start, tf.float32)
    linear = ratio[:, tf.newaxis] * view.map[:, :2]
    offset = ratio * (start + view.map[:, 2])
    whole = tf.concat([linear, offset[:, tf.newaxis]], axis=1)
    # The outermost centres of the result's pixels, and two pixels around them.
    low, high = 0.5, window.size - 0.5
    outermost = _mapped(whole, tf.constant([[low, low], [low, high], [high, low], [high, high]]))
    nearest, farthest = tf.reduce_min(outermost, axis=0), tf.reduce_max(outermost, axis=0)
    first = tf.clip_by_value(tf.cast(tf.floor(nearest - 2.0), tf.int64), 0, sides - 1)
    last = tf.clip_by_value(tf.cast(tf.math.ceil(farthest + 2.0), tf.int64), first + 1, sides)
    places = whole - tf.pad(_column(first), [[0, 0], [2, 0]])
    pixels = tf.cond(
        tf.reduce_all(reduction == 1),
        lambda: _interpolated(part_of(image, first, last), places, window.size),
        lambda: _interpolated(resampled_exactly(image, sides, first, last), places, window.size),
    )
    # Where a pixel of the result lies whole in the image, it is not blended with black.
    step = tf.norm(linear, axis=1)
    length = tf.cast(sides, tf.float32)
    inside = tf.reduce_all((nearest >= step / 2) & (farthest <= length - step / 2))
    return tf.cond(
        inside,
        lambda: pixels,
        lambda: _blended_with_black(pixels, whole / step[:, tf.newaxis], length / step),
    )


def _interpolated(part: tf.Tensor, places: tf.Tensor, size: int) -> tf.Tensor:
    """Return float32 [size, size, channels] of a part of an image; beyond it, its outermost pixels.

    `places` is the map from the result to the part.
    """
    # A box of one pixel is interpolated at its centre. This op takes two thirds of the time of
    # ImageProjectiveTransformV3, reads bytes, and gives the same. Places are shares of the part.
    linear, offset = places[:, :2], places[:, 2]
    length = tf.cast(tf.maximum(tf.shape(part)[:2] - 1, 1), tf.float32)
    down, right, first = (
        tf.tile(values / length, [2])
        for values in (linear[:, 0], linear[:, 1], offset + 0.5 * tf.reduce_sum(linear, 1) - 0.5)
    )
    counted = tf.range(size, dtype=tf.float32)
    along = counted[:, tf.newaxis] * right + first
    ones = tf.ones([size])
    with tf.device("CPU"):  # a GPU may round the operands of a matmul to TF32
        boxes = tf.matmul(
            tf.stack([counted, ones], axis=1),
            tf.stack([tf.tile(down, [size]), tf.reshape(along, [-1])]),
        )
    return tf.reshape(
        tf.raw_ops.CropAndResize(
            image=part[tf.newaxis],
            boxes=tf.reshape(tf.clip_by_value(boxes, 0.0, 1.0), [-1, 4]),
            box_ind=tf.zeros([size * size], tf.int32),
            crop_size=[1, 1],
            method="bilinear",
            extrapolation_value=0.0,
        ),
        [size, size, part.shape[-1]],
    )


def _blended_with_black(pixels: tf.Tensor, places: tf.Tensor, sides: tf.Tensor) -> tf.Tensor:
    """Multiply pixels by the share of each that lies in the image.

    `places` maps a place in the result to one in the image, and `sides`, float32 [2], are the
    image's; both in such units that a pixel of the result is 1 across each edge.
    """
    size, channels = pixels.shape[0], pixels.shape[2]
    assert size is not None, "a window's size is known"
    centers = tf.range(size, dtype=tf.float32) + 0.5
    shares = []
    for axis in range(2):
        down, right, offset = tf.unstack(places[axis])
        place = (down * centers + offset)[:, tf.newaxis] + (right * centers)[tf.newaxis]
        # The smaller of the distances to the two edges, from half a pixel outside.
        depth = 0.5 * sides[axis] - tf.abs(place - 0.5 * sides[axis]) + 0.5
        shares.append(tf.clip_by_value(depth, 0.0, 1.0))
    share = tf.reshape(shares[0] * shares[1], [-1, 1])
    # A product of matrices repeats it for each channel; broadcasting takes longer.
    return pixels * tf.reshape(tf.matmul(share, tf.ones([1, channels])), [size, size, channels])


def _mapped(places_map: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Return where a map [2, 3] takes places [n, 2]."""
    return tf.reduce_sum(places_map[:, :2] * places[:, tf.newaxis], axis=2) + places_map[:, 2]


def _ratio(sides: tf.Tensor | np.ndarray, scaled: tf.Tensor) -> tf.Tensor:
    return tf.cast(sides, tf.float32) / tf.cast(scaled, tf.float32)


def _column(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(values, tf.float32)[:, tf.newaxis]

"""Image to image: what happens to a picture between its source and the model (section 3.1).

Images are RGB, [h, w, 3], in [0, 255]; normalisation belongs to the model. Every random function
takes its `seed`, an int32 or int64 tensor of shape [2], and nothing else decides what it draws, so
that a training stream can be repeated or resumed exactly. All functions run eagerly and in tf.data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Rec.601 luma and the NTSC colour-difference axes. The last two rows sum to zero: greys stay grey.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
# A hue rotation by t with saturation s is GREY + s * (cos(t) * CHROMA + sin(t) * QUADRATURE).
_GREY = (_RGB @ np.diag([1.0, 0.0, 0.0]) @ _YIQ).astype(np.float32)
_CHROMA = (_RGB @ np.diag([0.0, 1.0, 1.0]) @ _YIQ).astype(np.float32)
_QUADRATURE = (_RGB @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ).astype(np.float32)


def rescale(image: tf.Tensor, smallest_side: int | tf.Tensor, antialias: bool = True) -> tf.Tensor:
    """[h, w, 3] of any dtype -> float32 with min(h, w) == smallest_side, same range; bilinear.

    Isotropic: the longer side is rounded to the nearest pixel, halves up. `antialias` widens the
    filter when shrinking. ValueError if `smallest_side` is an int below 1.
    """
    if not tf.is_tensor(smallest_side) and smallest_side < 1:
        raise ValueError(f"smallest_side={smallest_side}: an image side is at least 1 pixel")
    sides = tf.shape(image)[:2]
    shortest = tf.reduce_min(sides)
    # Integer arithmetic: the smallest side comes out exact, and no side can round to 0.
    sides = (2 * sides * smallest_side + shortest) // (2 * shortest)
    return tf.image.resize(image, sides, antialias=antialias)


def pad_to(image: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor) -> tf.Tensor:
    """Zero-pad [h, w, 3] evenly to at least [height, width, 3]; same dtype.

    An odd pixel goes to the bottom or right. A side that is long enough already is left alone.
    """
    h, w = _sides(image)
    rows, columns = _larger(height - h, 0), _larger(width - w, 0)
    if isinstance(rows, int) and isinstance(columns, int) and rows == columns == 0:
        return image
    top, left = rows // 2, columns // 2
    return tf.pad(image, [[top, rows - top], [left, columns - left], [0, 0]])


def random_crop(image: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """A [size, size, 3] window of [h, w, 3], every offset equally likely; same dtype.

    ValueError (tf.errors.InvalidArgumentError where sides are only known at run time) if the image
    is smaller than `size`.
    """
    sides = _sides_of_at_least(size, image)
    # One draw for both offsets. u < 1 implies u * n < n in float32 for any side an image can have.
    reach = tf.cast(tf.stack(sides) - (size - 1), tf.float32)
    top, left = tf.unstack(tf.cast(tf.random.stateless_uniform([2], seed) * reach, tf.int32))
    return _window(image, top, left, size)


def center_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """The central [size, size, 3] of [h, w, 3], offset floor((side - size) / 2); same dtype.

    Errors as for `random_crop`.
    """
    h, w = _sides_of_at_least(size, image)
    return _window(image, (h - size) // 2, (w - size) // 2, size)


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """[h, w, 3] mirrored left to right with probability 1/2; same shape and dtype."""
    mirrored = tf.cast(tf.random.stateless_uniform([], seed) < 0.5, tf.int32)
    # A stride of -1 or 1 is one cheap op; tf.cond would cost more than the rest of the pipeline.
    flipped = image[:, :: 1 - 2 * mirrored]
    flipped.set_shape(image.shape)
    return flipped


def adjust_color(
    image: tf.Tensor,
    brightness_delta: float | tf.Tensor = 0.0,
    contrast_factor: float | tf.Tensor = 1.0,
    saturation_factor: float | tf.Tensor = 1.0,
    hue_angle: float | tf.Tensor = 0.0,
) -> tf.Tensor:
    """[h, w, 3] in [0, 255] -> float32 in [0, 255]; brightness, contrast, saturation, hue, in turn.

    `brightness_delta` is added, in [0, 255] units (tf.image.adjust_brightness).
    `contrast_factor` scales about each channel's mean (tf.image.adjust_contrast).
    `saturation_factor` interpolates from the pixel's Rec.601 grey, 0, to itself, 1, and beyond:
    not tf.image's saturation, which scales the S of HSV. `hue_angle`, in radians, rotates the
    I-Q plane of YIQ and so keeps luma, unlike the H of HSV.
    All four are one affine map of RGB, applied once and clipped once.
    """
    image = tf.cast(image, tf.float32)
    offset = brightness_delta
    if not _equals(contrast_factor, 1.0):
        mean = tf.reduce_mean(image, axis=(0, 1))
        # contrast * (x + delta) + (1 - contrast) * (mean + delta), without its term in x
        offset += (1.0 - contrast_factor) * mean
    if _equals(saturation_factor, 1.0) and _equals(hue_angle, 0.0):
        return tf.clip_by_value(contrast_factor * image + offset, 0.0, 255.0)
    matrix = _GREY + saturation_factor * (
        tf.cos(hue_angle) * _CHROMA + tf.sin(hue_angle) * _QUADRATURE
    )
    # Multiply and add, for a matmul on a GPU may round its operands to TF32.
    red, green, blue = tf.unstack(contrast_factor * image + offset, axis=-1)
    mixed = [row[0] * red + row[1] * green + row[2] * blue for row in tf.unstack(matrix)]
    return tf.clip_by_value(tf.stack(mixed, axis=-1), 0.0, 255.0)


def color_jitter(
    image: tf.Tensor,
    seed: tf.Tensor,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> tf.Tensor:
    """[h, w, 3] in [0, 255] -> float32 in [0, 255]: `adjust_color` with uniformly drawn amounts.

    Brightness delta from 255 * [-brightness, brightness]; contrast and saturation factors from
    [1 - x, 1 + x]; hue angle from 2 pi * [-hue, hue]. A strength of 0 costs and changes nothing.
    ValueError unless brightness, contrast and saturation are in [0, 1] and hue in [0, 0.5].
    """
    limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
    strengths = {
        "brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue
    }  # fmt: skip
    for name, strength in strengths.items():
        if not 0.0 <= strength <= limits[name]:
            raise ValueError(f"{name}={strength} must be between 0 and {limits[name]:g}")
    if not any(strengths.values()):
        return tf.cast(image, tf.float32)
    draws = tf.unstack(tf.random.stateless_uniform([4], seed, minval=-1.0, maxval=1.0))
    return adjust_color(
        image,
        255.0 * brightness * draws[0] if brightness else 0.0,
        1.0 + contrast * draws[1] if contrast else 1.0,
        1.0 + saturation * draws[2] if saturation else 1.0,
        2.0 * math.pi * hue * draws[3] if hue else 0.0,
    )


def rgb_shift(
    image: tf.Tensor,
    seed: tf.Tensor,
    strength: float,
    eigenvalues: Sequence[float] | np.ndarray | tf.Tensor,
    eigenvectors: Sequence[Sequence[float]] | np.ndarray | tf.Tensor,
) -> tf.Tensor:
    """[h, w, 3] in [0, 255] -> float32 in [0, 255]: Krizhevsky's PCA colour shift (section 3.1).

    Adds 255 * P @ (alpha * lambda) to every pixel, alpha ~ N(0, strength) drawn once an image and
    component; the paper's strength, a standard deviation, is 0.1. `eigenvalues` [3] and
    `eigenvectors` [3, 3], in columns, are those of the covariance of RGB in [0, 1] units over the
    training set: `keras_vgg.data.statistics` measures them.
    """
    alpha = tf.random.stateless_normal([3], seed, stddev=strength)
    weights = alpha * tf.cast(eigenvalues, tf.float32)
    shift = 255.0 * tf.reduce_sum(tf.cast(eigenvectors, tf.float32) * weights, axis=1)
    return tf.clip_by_value(tf.cast(image, tf.float32) + shift, 0.0, 255.0)


def train_image(
    image: tf.Tensor,
    seed: tf.Tensor,
    *,
    size: int,
    scale: tuple[int, int] | None = None,
    crop_padding: int = 0,
    flip: bool = True,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    shift: float = 0.0,
    eigenvalues: Sequence[float] | np.ndarray | None = None,
    eigenvectors: Sequence[Sequence[float]] | np.ndarray | None = None,
) -> tf.Tensor:
    """[h, w, 3] uint8 or float in [0, 255] -> [size, size, 3] float32 in [0, 255] (section 3.1).

    In turn: rescale to a smallest side drawn uniformly from the integers scale[0]..scale[1];
    zero-pad by `crop_padding` on each side, and further up to `size` where the image is smaller;
    random crop; horizontal flip; `color_jitter`; `rgb_shift` of strength `shift`.
    Each has a stream of its own: switching one off does not change what the others draw.
    ValueError for a bad `scale` or `crop_padding`, a `shift` without eigen-decomposition, and what
    `color_jitter` refuses.
    """
    if crop_padding < 0:
        raise ValueError(f"crop_padding={crop_padding} must be 0 or more pixels")
    if shift and (eigenvalues is None or eigenvectors is None):
        raise ValueError(
            f"shift={shift} needs eigenvalues and eigenvectors of the training set's RGB "
            "covariance: see keras_vgg.data.statistics"
        )
    scale_seed, crop_seed, flip_seed, color_seed, shift_seed = tf.unstack(tf.random.split(seed, 5))
    if scale is not None:
        image = rescale(image, _random_side(scale, scale_seed))
    h, w = _sides(image)
    image = pad_to(image, _larger(h + 2 * crop_padding, size), _larger(w + 2 * crop_padding, size))
    image = random_crop(image, size, crop_seed)
    if flip:
        image = random_flip(image, flip_seed)
    image = color_jitter(image, color_seed, brightness, contrast, saturation, hue)
    if shift:
        image = rgb_shift(image, shift_seed, shift, eigenvalues, eigenvectors)
    return image


def eval_image(image: tf.Tensor, *, size: int, scale: int | None = None) -> tf.Tensor:
    """[h, w, 3] uint8 or float in [0, 255] -> [size, size, 3] float32 in [0, 255]; no randomness.

    Rescale to smallest side `scale` (the paper's Q) if given, zero-pad up to `size` where the image
    is smaller, take the centre. So 28 x 28 at size 32 gets two zero pixels on each side: it is
    padded, not stretched.
    """
    if scale is not None:
        image = rescale(image, scale)
    return tf.cast(center_crop(pad_to(image, size, size), size), tf.float32)


def grid_crops(
    image: tf.Tensor,
    *,
    size: int,
    scale: int | None = None,
    padding: int = 0,
    grid: int = 5,
    flip: bool = True,
) -> tf.Tensor:
    """The paper's multi-crop views (section 3.2): [h, w, 3] -> float32 [views, size, size, 3].

    The image is rescaled to the smallest side `scale` (None: not) and padded with zeros, by
    `padding` on every side and then to at least [size, size], as `train_image` does. Crops lie on
    a regular `grid` x `grid` from corner to corner, offsets rounded down, row by row; with `flip`
    their mirror images follow. 50 views by default. ValueError if grid < 2.
    """
    if grid < 2:
        raise ValueError(f"grid={grid}: from corner to corner there are at least 2 crops a side")
    if scale is not None:
        image = rescale(image, scale)
    h, w = _sides(image)
    image = pad_to(image, _larger(h + 2 * padding, size), _larger(w + 2 * padding, size))
    h, w = _sides_of_at_least(size, image)
    crops = [
        _window(image, (h - size) * row // (grid - 1), (w - size) * column // (grid - 1), size)
        for row in range(grid)
        for column in range(grid)
    ]
    views = tf.cast(tf.stack(crops), tf.float32)
    return tf.concat([views, tf.reverse(views, [2])], 0) if flip else views


def _random_side(scale: tuple[int, int], seed: tf.Tensor) -> int | tf.Tensor:
    smallest, largest = scale
    if not 1 <= smallest <= largest:
        raise ValueError(f"scale={scale} must be (smallest, largest) with 1 <= smallest <= largest")
    if smallest == largest:
        return smallest
    return tf.random.stateless_uniform([], seed, smallest, largest + 1, tf.int32)


def _sides(image: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Height and width, as ints where they are known before run time."""
    static, dynamic = image.shape, tf.shape(image)
    return tuple(dynamic[i] if static[i] is None else static[i] for i in (0, 1))


def _sides_of_at_least(size: int, image: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    sides = _sides(image)
    for side in sides:
        if isinstance(side, int) and side < size:
            raise ValueError(f"cannot crop {size} x {size} pixels from {sides[0]} x {sides[1]}")
    return sides


def _window(image: tf.Tensor, top: int | tf.Tensor, left: int | tf.Tensor, size: int) -> tf.Tensor:
    window = tf.slice(image, [top, left, 0], [size, size, 3])
    window.set_shape([size, size, 3])
    return window


def _larger(a: int | tf.Tensor, b: int | tf.Tensor) -> int | tf.Tensor:
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tf.maximum(a, b)


def _equals(value: float | tf.Tensor, neutral: float) -> bool:
    """Whether `value` is known, before run time, to change nothing."""
    return not tf.is_tensor(value) and value == neutral

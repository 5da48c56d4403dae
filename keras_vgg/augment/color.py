"""Colour as one affine map of RGB an image: brightness, contrast, saturation, hue, RGB shift."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

LUMA = (0.299, 0.587, 0.114)  # Rec.601: the shares of red, green and blue
# Luma and the NTSC colour-difference axes. The last two rows sum to zero: greys stay grey.
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)
# A hue rotation by t with saturation s is GREY + s * (cos(t) * CHROMA + sin(t) * QUADRATURE).
_GREY = (_RGB @ np.diag([1.0, 0.0, 0.0]) @ _YIQ).astype(np.float32)
_CHROMA = (_RGB @ np.diag([0.0, 1.0, 1.0]) @ _YIQ).astype(np.float32)
_QUADRATURE = (_RGB @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ _YIQ).astype(np.float32)

# Brightness delta, contrast and saturation factors, hue angle: see `adjust_color`.
Amounts = tuple[float | tf.Tensor, float | tf.Tensor, float | tf.Tensor, float | tf.Tensor]


def to_grey(image: tf.Tensor | np.ndarray) -> tf.Tensor:
    """Return Rec.601 luma, [..., 3] -> [..., 1] of the same dtype; R = G = B stays as it is."""
    image = tf.convert_to_tensor(image)
    red, green, blue = tf.unstack(tf.cast(image, tf.float32), 3, axis=-1)
    luma = green + _YIQ[0, 0] * (red - green) + _YIQ[0, 2] * (blue - green)
    if image.dtype.is_integer:
        luma = tf.round(luma)
    return tf.cast(luma, image.dtype)[..., tf.newaxis]


def adjust_color(
    image: tf.Tensor,
    brightness_delta: float | tf.Tensor = 0.0,
    contrast_factor: float | tf.Tensor = 1.0,
    saturation_factor: float | tf.Tensor = 1.0,
    hue_angle: float | tf.Tensor = 0.0,
    shift: tf.Tensor | None = None,
) -> tf.Tensor:
    """[h, w, 3] in [0, 255] -> float32 in [0, 255]; the adjustments in the order of the arguments.

    `brightness_delta` is added, in [0, 255] units (tf.image.adjust_brightness).
    `contrast_factor` scales about each channel's mean (tf.image.adjust_contrast).
    `saturation_factor` interpolates from the pixel's Rec.601 grey, 0, to itself, 1, and beyond:
    not tf.image's saturation, which scales the S of HSV. `hue_angle`, in radians, rotates the
    I-Q plane of YIQ and so keeps luma, unlike the H of HSV. `shift` [3] is added to RGB.
    All five are one affine map of RGB, applied once and clipped once.
    """
    image = tf.cast(image, tf.float32)
    gain, matrix, offset = _affine(
        image, brightness_delta, contrast_factor, saturation_factor, hue_angle, shift
    )
    if matrix is None:
        return tf.clip_by_value(gain * image + offset, 0.0, 255.0)
    assert isinstance(offset, tf.Tensor), "a matrix makes it one for each channel"
    # Multiply and add, for a matmul on a GPU may round its operands to TF32.
    rows = tf.unstack(gain * matrix)
    red, green, blue = tf.unstack(image, axis=-1)
    mixed = [
        row[0] * red + row[1] * green + row[2] * blue + offset[i] for i, row in enumerate(rows)
    ]
    return tf.clip_by_value(tf.stack(mixed, axis=-1), 0.0, 255.0)


def _affine(
    image: tf.Tensor,
    brightness_delta: float | tf.Tensor,
    contrast_factor: float | tf.Tensor,
    saturation_factor: float | tf.Tensor,
    hue_angle: float | tf.Tensor,
    shift: tf.Tensor | None,
) -> tuple[float | tf.Tensor, tf.Tensor | None, float | tf.Tensor]:
    """(gain, matrix, offset) of x -> gain * matrix @ x + offset; None is the identity matrix."""
    offset = brightness_delta
    if not _equals(contrast_factor, 1.0):
        # Rows first: the mean over both axes at once is ten times as slow.
        mean = tf.reduce_mean(tf.reduce_mean(image, axis=0), axis=0)
        # contrast * (x + delta) + (1 - contrast) * (mean + delta), without its term in x
        offset += (1.0 - contrast_factor) * mean
    matrix = None
    if not (_equals(saturation_factor, 1.0) and _equals(hue_angle, 0.0)):
        rotation = tf.cos(hue_angle) * _CHROMA + tf.sin(hue_angle) * _QUADRATURE
        matrix = saturation_factor * rotation + _GREY
        offset = tf.reduce_sum(matrix * offset, axis=1)
    return contrast_factor, matrix, offset if shift is None else offset + shift


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
    check_strengths(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    draws = tf.random.stateless_uniform([4], seed)
    return adjust_color(image, *jitter_amounts(draws, brightness, contrast, saturation, hue))


def check_strengths(**strengths: float) -> None:
    """ValueError unless every strength of `color_jitter` is in its range."""
    for name, strength in strengths.items():
        limit = 0.5 if name == "hue" else 1.0
        if not 0.0 <= strength <= limit:
            raise ValueError(f"{name}={strength} must be between 0 and {limit:g}")


def jitter_amounts(
    draws: tf.Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> Amounts:
    """Four draws from [0, 1) -> the first four arguments of `adjust_color`."""
    draws = tf.unstack(2.0 * draws - 1.0, num=4)
    return (
        255.0 * brightness * draws[0] if brightness else 0.0,
        1.0 + contrast * draws[1] if contrast else 1.0,
        1.0 + saturation * draws[2] if saturation else 1.0,
        2.0 * math.pi * hue * draws[3] if hue else 0.0,
    )


def color_vector(amounts: Amounts, shift: tf.Tensor | None) -> tf.Tensor:
    """Return the arguments of `adjust_color` as `color_batch` takes them: float32 [7]."""
    shift = tf.zeros([3]) if shift is None else shift
    return tf.concat([tf.stack([tf.cast(x, tf.float32) for x in amounts]), shift], axis=0)


def color_batch(images: Any, amounts: Any) -> Any:
    """Return `adjust_color` of whole images, on any backend of Keras.

    Args:
        images: [n, h, w, 1 or 3] in [0, 255], of any dtype.
        amounts: float32 [n, 7]: for each image, the amounts of `adjust_color` and its shift.

    Returns:
        float32 [n, h, w, 1 or 3] in [0, 255]. Of a grey image, saturation and hue change nothing,
        and a shift is the shift of the luma.
    """
    images, amounts = ops.cast(images, "float32"), ops.cast(amounts, "float32")
    brightness, contrast, saturation, hue = (amounts[:, i, None] for i in range(4))
    shift: Any = amounts[:, 4:]
    offset = brightness + (1.0 - contrast) * ops.mean(ops.mean(images, axis=1), axis=1)
    gain = contrast[..., None]
    if images.shape[-1] == 1:
        luma: Any = ops.convert_to_tensor(LUMA, "float32")
        offset += ops.sum(shift * luma, axis=1, keepdims=True)
        values = gain[:, None] * images
    else:
        cosine: Any = ops.cos(hue[..., None])
        sine: Any = ops.sin(hue[..., None])
        grey, chroma, quadrature = map(ops.convert_to_tensor, (_GREY, _CHROMA, _QUADRATURE))
        matrix: Any = saturation[..., None] * (cosine * chroma + sine * quadrature) + grey
        offset = ops.sum(matrix * offset[:, None], axis=2) + shift
        # Multiply and add, for a matmul on a GPU may round its operands to TF32.
        columns = (gain * matrix)[:, None, None]
        values = sum(images[..., i : i + 1] * columns[..., i] for i in range(3))
    return ops.clip(values + offset[:, None, None], 0.0, 255.0)


def adjust_to_uint8(image: tf.Tensor, amounts: Amounts, shift: tf.Tensor | None) -> tf.Tensor:
    """Return `adjust_color`, rounded to uint8, of [size, size, 1 or 3] float32, fast in tf.data.

    Of a grey image, saturation and hue change nothing, and a shift is the shift of the luma.
    """
    if image.shape[-1] == 1:
        luma_shift = None if shift is None else tf.reduce_sum(shift * LUMA)
        gain, _, offset = _affine(image, amounts[0], amounts[1], 1.0, 0.0, luma_shift)
        return tf.cast(tf.clip_by_value(gain * image + (offset + 0.5), 0.0, 255.0), tf.uint8)
    gain, matrix, offset = _affine(image, *amounts, shift)
    matrix = gain * (tf.eye(3) if matrix is None else matrix)
    # A matmul with 3 columns is all overhead. With several pixels a row, and the matrix as often on
    # the diagonal, it is faster by far than the same as multiplications, by XLA too.
    height, width = image.shape[0], image.shape[1]
    assert height is not None, "a window's size is known"
    assert width is not None
    pixels = math.gcd(height * width, 8)
    diagonal = tf.reshape(tf.eye(pixels), [pixels, 1, pixels, 1])
    matrix = tf.reshape(diagonal * tf.reshape(tf.transpose(matrix), [1, 3, 1, 3]), [3 * pixels] * 2)
    offset = tf.tile(tf.broadcast_to(offset + 0.5, [3]), [pixels])
    rows = tf.matmul(tf.reshape(image, [-1, 3 * pixels]), matrix)
    rows = tf.minimum(tf.nn.relu(tf.nn.bias_add(rows, offset)), 255.0)
    return tf.reshape(tf.cast(rows, tf.uint8), image.shape)


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
    return adjust_color(image, shift=random_shift(seed, strength, eigenvalues, eigenvectors))


def random_shift(
    seed: tf.Tensor,
    strength: float,
    eigenvalues: Sequence[float] | np.ndarray | tf.Tensor,
    eigenvectors: Sequence[Sequence[float]] | np.ndarray | tf.Tensor,
) -> tf.Tensor:
    """What `rgb_shift` adds: float32 [3], in [0, 255] units."""
    alpha = tf.random.stateless_normal([3], seed, stddev=strength)
    weights = alpha * tf.cast(eigenvalues, tf.float32)
    return 255.0 * tf.reduce_sum(tf.cast(eigenvectors, tf.float32) * weights, axis=1)


def _equals(value: float | tf.Tensor, neutral: float) -> bool:
    """Whether `value` is known, before run time, to change nothing."""
    return not tf.is_tensor(value) and bool(value == neutral)

"""TrivialAugment and RandAugment: operations that are drawn for each image by itself.

TrivialAugment (arXiv:2103.10158, the wide space) draws one operation and its level. RandAugment
(arXiv:1909.13719) draws some, all of one level. The operations and what a level means for each are
those of torchvision's classes of these names. Here the geometric ones become one map, which is
composed with scale and crop (`augment.affine`), so the others come after them in any case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_vgg.augment import tones
from keras_vgg.augment.affine import affine_map, seen, view_of
from keras_vgg.augment.geometry import central_window
from keras_vgg.augment.picture import picture_of

LEVELS = 31
MOST_OPERATIONS = 8

# Geometric operations by the number of their entry in _parameters, then the tones.
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TONES: dict[str, tones.Tone] = {
    "identity": tones.unchanged,
    "brightness": tones.brightness,
    "saturation": tones.saturation,
    "contrast": tones.contrast,
    "sharpness": tones.sharpness,
    "posterize": tones.posterize,
    "solarize": tones.solarize,
    "autocontrast": tones.autocontrast,
    "equalize": tones.equalize,
}
OPERATIONS = (*GEOMETRIC, *TONES)
FACTORS = ("brightness", "saturation", "contrast", "sharpness")  # 1 plus or minus a strength
_SIGNED = np.isin(OPERATIONS, [*GEOMETRIC, *FACTORS])


@dataclass(frozen=True)
class Policy:
    """How many operations are drawn for each image, and how strong they are.

    `level`: of all operations, 0 to 30; None: each draws its own. The other fields are the
    strengths of the highest level: degrees; pixels to the side for each pixel; pixels of
    translation, or the share of the image's side; the distance of a factor from 1; bits that
    posterize takes away. Solarize goes from a threshold of 255 down to 0.
    """

    operations: int
    level: int | None
    rotation: float
    shear: float
    pixels: float
    share: float
    factor: float
    bits: int


def trivial_augment() -> Policy:
    """Return TrivialAugment's policy: one operation, of a level that is drawn, the wide space."""
    return Policy(1, None, rotation=135.0, shear=0.99, pixels=32.0, share=0.0, factor=0.99, bits=6)


def rand_augment(operations: int = 2, magnitude: int = 9) -> Policy:
    """Return RandAugment's policy: so many operations, all of the level `magnitude` of 0 to 30.

    An operation may be drawn twice. ValueError unless operations are 1 to 8 and the magnitude 0 to
    30.
    """
    if not 1 <= operations <= MOST_OPERATIONS:
        raise ValueError(f"rand_operations={operations} must be from 1 to {MOST_OPERATIONS}")
    if not 0 <= magnitude < LEVELS:
        raise ValueError(f"rand_magnitude={magnitude} must be from 0 to {LEVELS - 1}")
    return Policy(
        operations,
        magnitude,
        rotation=30.0,
        shear=0.3,
        pixels=0.0,
        share=150 / 331,
        factor=0.9,
        bits=4,
    )


class Operation(NamedTuple):
    """An operation that was drawn: the number of its name in OPERATIONS, and its signed strength.

    The strength of brightness, saturation, contrast and sharpness is the factor.
    """

    number: tf.Tensor
    strength: tf.Tensor


def strengths(policy: Policy, size: int) -> np.ndarray:
    """Return the unsigned strength of each operation at each level: float32 [14, 31].

    The strength of a factor is its distance from 1.
    """
    rising = np.linspace(0.0, 1.0, LEVELS)
    # Whole pixels, as in torchvision.
    pixels = np.floor(np.linspace(0.0, policy.pixels + policy.share * size, LEVELS) + 1e-6)
    table = {
        "rotate": policy.rotation * rising,
        "shear_x": policy.shear * rising,
        "shear_y": policy.shear * rising,
        "translate_x": pixels,
        "translate_y": pixels,
        **dict.fromkeys(FACTORS, policy.factor * rising),
        "posterize": 8 - np.round(policy.bits * rising),
        "solarize": 255.0 * (1.0 - rising),
    }
    return np.array([table.get(name, 0.0 * rising) for name in OPERATIONS], np.float32)


def draw(policy: Policy, seed: tf.Tensor, size: int) -> list[Operation]:
    """Return the operations of an image of `size`, which its seed [2] decides."""
    draws = tf.random.stateless_uniform([policy.operations, 3], seed)
    numbers = tf.cast(draws[:, 0] * len(OPERATIONS), tf.int32)
    if policy.level is None:
        levels = tf.cast(draws[:, 1] * LEVELS, tf.int32)
    else:
        levels = tf.fill([policy.operations], policy.level)
    values = tf.gather_nd(tf.constant(strengths(policy, size)), tf.stack([numbers, levels], axis=1))
    signed = tf.gather(tf.constant(_SIGNED), numbers) & (draws[:, 2] < 0.5)
    values = tf.where(signed, -values, values)
    is_factor = tf.gather(tf.constant(np.isin(OPERATIONS, FACTORS)), numbers)
    values = tf.where(is_factor, 1.0 + values, values)
    pairs = zip(tf.unstack(numbers), tf.unstack(values), strict=True)
    return [Operation(number, value) for number, value in pairs]


def map_of(operation: Operation, size: int) -> tf.Tensor:
    """Return the map [2, 3] of an operation on a [size, size] image; a tone's changes nothing.

    The image is turned about its centre, and sheared from its upper left corner.
    """
    angle, across, along, right, down = tf.unstack(
        operation.strength * tf.one_hot(operation.number, len(GEOMETRIC))
    )
    center = tf.where(operation.number == 0, size / 2, 0.0)
    return affine_map(center, angle * np.float32(np.pi / 180), (along, across), (down, right))


def tone(operation: Operation, image: tf.Tensor) -> tf.Tensor:
    """Return uint8 [size, size, 1 or 3] as an operation colours it; geometry changes nothing."""
    result = _toned(operation.number, operation.strength, image)
    result.set_shape(image.shape)
    return result


@tf.function(autograph=False)  # traced once for images of a size, not for every operation
def _toned(number: tf.Tensor, strength: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    branches = [lambda change=change: change(image, strength) for change in TONES.values()]
    return tf.switch_case(tf.maximum(number - len(GEOMETRIC), 0), branches)


def apply(operation: Operation, image: tf.Tensor) -> tf.Tensor:
    """Return uint8 [size, size, 1 or 3] after one operation, with black around the image."""
    size = image.shape[0]
    assert size is not None, "the strength of an operation follows the size"
    view = view_of(size, [map_of(operation, size)], tf.constant([False, False]))
    window = central_window(tf.shape(image)[:2], size=size)._replace(view=view)
    pixels = seen(picture_of(image), window, rescaled=False)
    return tone(operation, tf.cast(pixels + 0.5, tf.uint8))

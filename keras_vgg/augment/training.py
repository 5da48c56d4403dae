"""A training image: crop, view and colour, drawn from one seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg.augment.affine import affine_map, seen, view_of
from keras_vgg.augment.color import (
    Amounts,
    adjust_to_uint8,
    check_strengths,
    color_vector,
    jitter_amounts,
    random_shift,
)
from keras_vgg.augment.crops import ATTEMPTS, CROP_RATIO, area_window
from keras_vgg.augment.geometry import (
    Resize,
    Window,
    cut,
    mirror_if,
    random_window,
    resample,
)
from keras_vgg.augment.picture import Picture, picture_of, takes_pictures, without_autograph
from keras_vgg.augment.policies import Operation, Policy, draw, map_of, tone

JITTER = ("brightness", "contrast", "saturation", "hue")


@takes_pictures
@without_autograph
def train_image(
    image: tf.Tensor | Picture,
    seed: tf.Tensor,
    *,
    size: int,
    scale: tuple[int, int] | None = None,
    resize: Resize = "crop",
    crop_padding: int = 0,
    crop_area: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] = CROP_RATIO,
    rotation: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    flip: bool = True,
    vertical_flip: bool = False,
    policy: Policy | None = None,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    shift: float = 0.0,
    eigenvalues: Sequence[float] | np.ndarray | None = None,
    eigenvectors: Sequence[Sequence[float]] | np.ndarray | None = None,
    cutout: float = 0.0,
) -> tf.Tensor:
    """[h, w, 3] in [0, 255], or a Picture -> uint8 [size, size, 3] (section 3.1).

    In turn: the crop of `train_window`, whose arguments the first ones are; `flip` left to right
    and `vertical_flip`, each of half of the images; rotation, shear, translation; the operations of
    `policy` (`trivial_augment`, `rand_augment`), the geometric ones before the others; rounding;
    `color_jitter`; `rgb_shift` of strength `shift`; rounding; `cut_out` with the side `cutout`.
    Of a Picture only what is seen is read, and resampled once: a crop as `resample(exact=False)`
    says, a turned one as `augment.affine` says. Jitter and shift are one affine map of RGB.
    Switching one operation off does not change what the others draw.
    ValueError for what `train_window` and `color_jitter` refuse, a `cutout` outside [0, 1], and a
    `shift` without eigen-decomposition.
    """
    check_strengths(cutout=cutout)
    jitter = (brightness, contrast, saturation, hue)
    color = _drawn_color(seed, jitter, (shift, eigenvalues, eigenvectors))
    pixels = _cropped(
        image, seed, size=size, scale=scale, resize=resize, crop_padding=crop_padding,
        crop_area=crop_area, crop_ratio=crop_ratio, rotation=rotation, shear=shear,
        translation=translation, flip=flip, vertical_flip=vertical_flip, policy=policy,
    )  # fmt: skip
    if shift or any(jitter):
        pixels = adjust_to_uint8(tf.cast(pixels, tf.float32), *color)
    return cut_out(pixels, _view_draws(seed)[6:], cutout) if cutout else pixels


@takes_pictures
@without_autograph
def train_image_uncolored(
    image: tf.Tensor | Picture,
    seed: tf.Tensor,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    shift: float = 0.0,
    eigenvalues: Sequence[float] | np.ndarray | None = None,
    eigenvectors: Sequence[Sequence[float]] | np.ndarray | None = None,
    **window: Any,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return what `color_batch` makes `train_image` of: (uint8 [size, size, 3], float32 [7]).

    These are the image before `color_jitter`, and the amounts that are drawn. A training step on a
    GPU computes the colours faster than the processor that decodes, and does not round them.
    `window`: the other arguments of `train_image`, but `cutout`, which needs the colours. Errors as
    in `train_image`.
    """
    jitter = (brightness, contrast, saturation, hue)
    color = _drawn_color(seed, jitter, (shift, eigenvalues, eigenvectors))
    return _cropped(image, seed, **window), color_vector(*color)


def _drawn_color(
    seed: tf.Tensor, jitter: tuple[float, float, float, float], shift: tuple[float, Any, Any]
) -> tuple[Amounts, tf.Tensor | None]:
    """Return the amounts of jitter, and the shift that is added, of an image's seed."""
    check_strengths(**dict(zip(JITTER, jitter, strict=True)))
    strength, eigenvalues, eigenvectors = shift
    if strength and (eigenvalues is None or eigenvectors is None):
        raise ValueError(
            f"shift={strength} needs eigenvalues and eigenvectors of the training set's RGB "
            "covariance: see keras_vgg.data.statistics"
        )
    added = random_shift(_folded(seed, _SHIFT), *shift) if strength else None
    return jitter_amounts(_draws(seed)[4:], *jitter), added


def _cropped(
    image: tf.Tensor | Picture,
    seed: tf.Tensor,
    *,
    flip: bool = True,
    vertical_flip: bool = False,
    policy: Policy | None = None,
    **options: Any,
) -> tf.Tensor:
    """Return the crop of `train_window`, whose arguments these are, as `policy` changes it."""
    image = picture_of(image)
    window = train_window(
        image.sides, seed, flip=flip, vertical_flip=vertical_flip, policy=policy, **options
    )
    rescaled = options.get("scale") is not None or options.get("crop_area") is not None
    pixels = _rounded(_seen(image, window, seed, rescaled, flip, vertical_flip))
    for operation in [] if policy is None else _operations(policy, seed, window.size):
        pixels = tone(operation, pixels)
    return pixels


def _seen(
    image: Picture, window: Window, seed: tf.Tensor, rescaled: bool, flip: bool, vertical_flip: bool
) -> tf.Tensor:
    """Return the window of an image, mirrored: as its view says, or without one as drawn."""
    if window.view is not None:
        return seen(image, window, rescaled)
    pixels = resample(image, window, exact=False) if rescaled else cut(image, window)
    if flip:
        pixels = mirror_if(pixels, _is_mirrored(seed)[1])
    if vertical_flip:
        pixels = mirror_if(pixels, _is_mirrored(seed)[0], axis=0)
    return pixels


def train_window(
    sides: tf.Tensor,
    seed: tf.Tensor,
    *,
    size: int,
    scale: tuple[int, int] | None = None,
    resize: Resize = "crop",
    crop_padding: int = 0,
    crop_area: tuple[float, float] | None = None,
    crop_ratio: tuple[float, float] = CROP_RATIO,
    rotation: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    flip: bool = True,
    vertical_flip: bool = False,
    policy: Policy | None = None,
) -> Window:
    """Return where `train_image` takes its crop from, of an image of `sides` [2], and its view.

    Args:
        sides: Height and width of the image.
        seed: int [2], that of `train_image`.
        size: Side of the crop.
        scale: Rescale to a smallest side drawn uniformly from the integers scale[0]..scale[1], or
            as `resize` says (`augment.rescale`).
        resize: "crop", "squash" or "pad".
        crop_padding: Zero-pad by this on each side, and further up to `size` where the image is
            smaller; then the crop is anywhere, but never in zeros alone.
        crop_area: Take a crop of a drawn share of the image's area instead, whose width / height is
            drawn from `crop_ratio`, and make a square of it (`area_window`). `scale`, `resize` and
            `crop_padding` are then not used.
        crop_ratio: See `crop_area`.
        rotation: Degrees. Turn about the centre by up to this, to either side.
        shear: Move rows, and then columns, to the side by up to this times their distance from the
            centre.
        translation: Move by up to this share of `size`, in each direction.
        flip, vertical_flip, policy: Those of `train_image`, which decide the view too.

    Raises:
        ValueError: a range is wrong.
    """
    if not 0 <= crop_padding < size:
        raise ValueError(f"crop_padding={crop_padding} must be 0 or more pixels, below size={size}")
    for name, value, limit in (
        ("rotation", rotation, 180.0),
        ("shear", shear, 1.0),
        ("translation", translation, 1.0),
    ):
        if not 0 <= value <= limit:
            raise ValueError(f"{name}={value} must be between 0 and {limit:g}")
    if crop_area is not None:
        draws = tf.random.stateless_uniform([ATTEMPTS, 4], _folded(seed, _CROP))
        window = area_window(sides, draws, size=size, area=crop_area, ratio=crop_ratio)
    else:
        draws = _draws(seed)[:3]
        window = random_window(
            sides, draws, size=size, scale=scale, crop_padding=crop_padding, resize=resize
        )
    changes: list[tf.Tensor] = []
    if rotation or shear or translation:
        drawn = tf.unstack(2.0 * _view_draws(seed)[:5] - 1.0)
        turn, down, right = math.pi / 180 * rotation * drawn[0], *(shear * u for u in drawn[1:3])
        moved = [translation * size * u for u in drawn[3:]]
        changes.append(affine_map(size / 2, turn, (down, right), (moved[0], moved[1])))
    if policy is not None:
        changes += [map_of(operation, size) for operation in _operations(policy, seed, size)]
    if not changes:
        return window
    mirrored = _is_mirrored(seed) & tf.constant([vertical_flip, flip])
    return window._replace(view=view_of(size, changes, mirrored))


def cut_out(image: tf.Tensor, draws: tf.Tensor, side: float) -> tf.Tensor:
    """[size, size, channels] uint8 -> the same with a square in the image's mean colour (Cutout).

    The square's side is the share `side` of the image's, rounded; its centre is a pixel of the
    image, each equally likely (`draws`: float32 [2] in [0, 1)), so that the image's edge may cut
    the square (arXiv:1708.04552).
    """
    size = image.shape[0]
    assert size is not None, "a crop's size is known"
    length = round(side * size)
    first = tf.cast(draws * size, tf.int32) - length // 2
    places = tf.range(size)
    inside = (places >= first[:, tf.newaxis]) & (places < first[:, tf.newaxis] + length)
    square = inside[0][:, tf.newaxis] & inside[1][tf.newaxis]
    # Rows first: the mean over both axes at once is ten times as slow.
    mean = tf.reduce_mean(tf.reduce_mean(tf.cast(image, tf.float32), axis=0), axis=0)
    return tf.where(square[..., tf.newaxis], _rounded(mean), image)


# What is folded into an image's seed for draws of their own. 2 is `data.training_dataset`'s, for
# the batch that the image begins.
_SHIFT, _VIEW, _CROP, _POLICY = 1, 3, 4, 5


def _folded(seed: tf.Tensor, number: int) -> Any:
    return tf.random.fold_in(seed, number)  # an int for the stub


def _draws(seed: tf.Tensor) -> tf.Tensor:
    """Scale, two offsets, mirroring, four of colour; in [0, 1)."""
    return tf.random.stateless_uniform([8], seed)


def _view_draws(seed: tf.Tensor) -> tf.Tensor:
    """Rotation, two of shear, two of translation, vertical mirroring, two of Cutout; in [0, 1)."""
    return tf.random.stateless_uniform([8], _folded(seed, _VIEW))


def _is_mirrored(seed: tf.Tensor) -> tf.Tensor:
    """Return whether a flip mirrors the order of the rows, and of the columns: bool [2]."""
    return tf.stack([_view_draws(seed)[5], _draws(seed)[3]]) < 0.5


def _operations(policy: Policy, seed: tf.Tensor, size: int) -> list[Operation]:
    return draw(policy, _folded(seed, _POLICY), size)


def _rounded(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(pixels if pixels.dtype.is_integer else pixels + 0.5, tf.uint8)

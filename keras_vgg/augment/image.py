"""A whole image's way to the model: in training, in evaluation, and the paper's many views."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from keras_vgg.augment.color import (
    to_grey,
)
from keras_vgg.augment.geometry import (
    Resize,
    central_window,
    crop,
    cut,
    larger,
    pad_to,
    resample,
    rescale,
    sides_of,
    sides_of_at_least,
)
from keras_vgg.augment.picture import (
    Picture,
    decoded,
    may_take_pictures,
    picture_of,
    takes_pictures,
    without_autograph,
)


@takes_pictures
@without_autograph
def eval_image(
    image: tf.Tensor | Picture, *, size: int, scale: int | None = None, resize: Resize = "crop"
) -> tf.Tensor:
    """[h, w, 3] in [0, 255], or a Picture -> float32 [size, size, 3] in [0, 255]; not random.

    Rescale to the smallest side `scale` (the paper's Q) if given, or as `resize` says
    (`augment.rescale`), with antialiasing; zero-pad up to `size` where the image is smaller; take
    the centre. So 28 x 28 at size 32 gets two zero pixels on each side: it is padded, not
    stretched.
    """
    image = picture_of(image)
    window = central_window(image.sides, size=size, scale=scale, resize=resize)
    if scale is None:
        return tf.cast(cut(image, window), tf.float32)
    return resample(image, window)


@takes_pictures
@without_autograph
def whole_image(
    image: tf.Tensor | Picture, *, size: int, scale: int | None = None, resize: Resize = "crop"
) -> tf.Tensor:
    """[h, w, 3] in [0, 255], or a Picture -> float32 [h', w', 3] in [0, 255], uncropped.

    As `eval_image` sees it, without the crop: rescaled to the smallest side `scale` if given, with
    antialiasing, the longer side rounded to the nearest pixel; zero-padded to `size`.
    """
    image = decoded(image)
    image = _rescaled(tf.cast(image, tf.float32) if scale is None else image, scale, resize)
    return pad_to(image, size, size)


def _rescaled(image: tf.Tensor, scale: int | None, resize: Resize) -> tf.Tensor:
    """Return the image at a scale, with the zeros of "pad"; None: as it is."""
    if scale is None:
        return image
    image = rescale(image, scale, resize=resize)
    return pad_to(image, scale, scale) if resize == "pad" else image


@takes_pictures
@without_autograph
def grid_crops(
    image: tf.Tensor | Picture,
    *,
    size: int,
    scale: int | None = None,
    resize: Resize = "crop",
    padding: int = 0,
    grid: int = 5,
    flip: bool = True,
) -> tf.Tensor:
    """The paper's multi-crop views (section 3.2): [h, w, 3] -> float32 [views, size, size, 3].

    The image is rescaled to the smallest side `scale` (None: not), or as `resize` says, and padded
    with zeros, by `padding` on every side and then to at least [size, size]. Crops lie on
    a regular `grid` x `grid` from corner to corner, offsets rounded down, row by row; with `flip`
    their mirror images follow. 50 views by default. ValueError if grid < 2.
    """
    if grid < 2:
        raise ValueError(f"grid={grid}: from corner to corner there are at least 2 crops a side")
    image = _rescaled(decoded(image), scale, resize)
    h, w = sides_of(image)
    image = pad_to(image, larger(h + 2 * padding, size), larger(w + 2 * padding, size))
    h, w = sides_of_at_least(size, image)
    crops = [
        crop(image, (h - size) * row // (grid - 1), (w - size) * column // (grid - 1), size)
        for row in range(grid)
        for column in range(grid)
    ]
    views = tf.cast(tf.stack(crops), tf.float32)
    return tf.concat([views, tf.reverse(views, [2])], 0) if flip else views


def in_grey(transform: Callable) -> partial:
    """Return a transform like the given one, whose images have one channel (`to_grey`).

    A transform that takes a Picture is given one of one channel, which costs a third to resample.
    The images of any other transform are made grey at its end.
    """
    transform = partial(transform)  # a partial of a partial is one partial
    function = _of_grey_picture if may_take_pictures(transform) else _made_grey
    return partial(function, transform.func, *transform.args, **transform.keywords)


def channels_for(transform: Callable) -> int:
    """Return how many channels of an image a transform uses: 1 for one of `in_grey`, else 3."""
    is_grey = isinstance(transform, partial) and transform.func is _of_grey_picture
    return 1 if is_grey else 3


def _made_grey(transform: Callable, *args: Any, **options: Any) -> tf.Tensor:
    return to_grey(transform(*args, **options))


@takes_pictures
def _of_grey_picture(
    transform: Callable, image: tf.Tensor | Picture, *args: Any, **options: Any
) -> tf.Tensor:
    return transform(_grey_picture(picture_of(image)), *args, **options)


def _grey_picture(picture: Picture) -> Picture:
    """Return a Picture whose parts have one channel."""
    if picture.channels == 1:
        return picture
    reduced = picture.reduced
    return Picture(
        picture.sides,
        lambda part: to_grey(picture.read(part)),
        None if reduced is None else lambda halvings: _grey_picture(reduced(halvings)),
        channels=1,
    )

"""An image of which any part can be read, and marks on the functions that take one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import tensorflow as tf

_Function = TypeVar("_Function", bound=Callable)


class Picture(NamedTuple):
    """An image of which any part can be read without the rest.

    `sides`: int32 [2], height and width. `read` maps an int32 [4], (top, left, height, width), to
    that part, [height, width, channels]. `reduced` maps an int32 scalar, 0 to 3, to the Picture
    that is 1, 2, 4 or 8 times smaller, sides rounded up: a JPEG is decoded at that size. None:
    there is no such Picture. `channels`: 3, or 1 for a grey image.
    """

    sides: tf.Tensor
    read: Callable[[tf.Tensor], tf.Tensor]
    reduced: Callable[[tf.Tensor], Picture] | None = None
    channels: int = 3


def picture_of(image: tf.Tensor | Picture) -> Picture:
    """Return a decoded image [h, w, 1 or 3] as a Picture, and a Picture as it is."""
    if isinstance(image, Picture):
        return image
    image = tf.convert_to_tensor(image)
    channels = image.shape[-1] or 3

    def read(part: tf.Tensor) -> tf.Tensor:
        return tf.slice(image, tf.pad(part[:2], [[0, 1]]), tf.concat([part[2:], [channels]], 0))

    return Picture(tf.shape(image)[:2], read, channels=channels)


def takes_pictures(function: _Function) -> _Function:
    """Decorator: `function` takes a Picture for its image as well as a tensor."""
    function.takes_pictures = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


def without_autograph(function: _Function) -> _Function:
    """Decorator: TensorFlow traces `function`, and does not rewrite its source first.

    Rewriting takes seconds at the start of a process, and code without Python's `if` and `for` on
    tensors does not need it.
    """
    return tf.autograph.experimental.do_not_convert(function)


def may_take_pictures(transform: Callable) -> bool:
    """Whether `transform`, or what it is a functools.partial of, is marked by `takes_pictures`."""
    while isinstance(transform, functools.partial):
        transform = transform.func
    return getattr(transform, "takes_pictures", False)


def decoded(image: tf.Tensor | Picture) -> tf.Tensor:
    """Return the whole of a Picture, uint8 [h, w, channels], and an image as it is."""
    if not isinstance(image, Picture):
        return image
    whole = image.read(tf.pad(image.sides, [[2, 0]]))
    whole.set_shape([None, None, image.channels])
    return whole


def decoded_smaller(image: Picture, scaled: tf.Tensor) -> Picture:
    """Return the smallest Picture that the image is decoded as and that is not below `scaled`."""
    if image.reduced is None:
        return image
    sides = tf.cast(image.sides, tf.int64)
    halved = tf.stack([sides // 2, sides // 4, sides // 8])
    fitting = tf.reduce_all(halved >= scaled, axis=1)
    return image.reduced(tf.reduce_sum(tf.cast(fitting, tf.int32)))

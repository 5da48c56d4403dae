"""One image at a time, from a file or an array, as a network takes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg.augment import channels_for, may_take_pictures
from keras_vgg.data.decode import (
    TENSORFLOW_ERRORS,
    BitDepth,
    decode,
    reason,
    transform_encoded,
)


class ImageLoader:
    """Decodes and transforms images as `evaluation_dataset` does; several threads may share it.

    It is traced once for files and once for arrays, whatever their sizes.

    Args:
        transform: A decoded image, [h, w, 3] in [0, 255], or a Picture -> [size, size, channels].
        bit_depth: As `keras_vgg.data.decode`.
    """

    def __init__(self, transform: Callable, bit_depth: BitDepth = "16") -> None:
        def of_file(path: tf.Tensor) -> tf.Tensor:
            encoded = tf.io.read_file(path)
            if may_take_pictures(transform):
                channels = channels_for(transform)
                return transform_encoded(encoded, transform, bit_depth=bit_depth, channels=channels)
            return transform(decode(encoded, bit_depth=bit_depth))

        self._of_file = _on_cpu(of_file, tf.TensorSpec([], tf.string))
        self._of_array = _on_cpu(transform, tf.TensorSpec([None, None, 3], tf.float32))

    def of_file(self, path: str) -> np.ndarray:
        """Return the image of a file, float32 [size, size, channels].

        Raises:
            FileNotFoundError, ValueError: there is no file, or it is no whole image. The message is
                the reason, without the path.
        """
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            raise ValueError("is a folder")
        if not os.path.isfile(path):
            raise FileNotFoundError("no such image file")
        try:
            return self._of_file(os.fsencode(path))
        except TENSORFLOW_ERRORS as error:
            empty = os.path.isfile(path) and os.path.getsize(path) == 0
            raise ValueError("the file is empty" if empty else reason(error)) from error

    def of_array(self, image: np.ndarray) -> np.ndarray:
        """Return the image of an array, [h, w, 3] RGB in [0, 255], as `of_file`."""
        return self._of_array(image.astype(np.float32))


def _on_cpu(function: Callable, spec: tf.TensorSpec) -> Callable[[Any], np.ndarray]:
    """Return a function, traced now, that takes a value and gives an array."""
    with tf.device("CPU"):
        traced = tf.function(function, input_signature=[spec]).get_concrete_function()

    def call(value: Any) -> np.ndarray:
        with tf.device("CPU"):
            return traced(tf.constant(value, spec.dtype)).numpy()

    return call

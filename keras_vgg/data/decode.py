"""Encoded image to RGB, and finding the files that do not decode."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_vgg.data.split import Split

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, BMP, GIF (first frame) or WebP bytes -> uint8 [h, w, 3] RGB.

    Grey is repeated, alpha dropped. tf.errors.InvalidArgumentError for anything else, a truncated
    file included.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as uint8 [h, w, 3] RGB.

    FileNotFoundError if there is no such file; ValueError naming it if it is no whole image.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        reason = "is a folder, not an image file" if path.is_dir() else "no such image file"
        raise (ValueError if path.is_dir() else FileNotFoundError)(f"{path}: {reason}")
    reason = _why_bad(str(path))
    if reason is not None:
        raise ValueError(f"{path}: {reason}")
    return decode(path.read_bytes()).numpy()


def find_bad_images(split: Split) -> list[tuple[str, str]]:
    """(path, reason) of every file of the split that does not decode; [] if it has no files.

    Reads and decodes all of them, in parallel.
    """
    if split.paths is None:
        return []
    with tf.device("CPU"):
        paths = tf.constant(split.paths)

    def decoded(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The shape, for without a use of the image the decoding would be pruned away.
        return index, tf.shape(decode(tf.io.read_file(paths[index])))

    good = np.zeros(split.size, dtype=bool)
    indices = tf.data.Dataset.range(split.size).map(decoded, num_parallel_calls=tf.data.AUTOTUNE)
    for index, _ in indices.ignore_errors().prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        good[index] = True
    suspects = [str(path) for path in split.paths[~good]]
    return [(path, _why_bad(path) or "could not be read") for path in suspects]


def raise_for_bad_images(split: Split) -> None:
    """ValueError naming the split's bad files, the first ten with reasons; None if there are none.

    TensorFlow's own decoding error does not name the file: call this on tf.errors.OpError.
    """
    bad = find_bad_images(split)
    if bad:
        listed = "; ".join(f"{path}: {reason}" for path, reason in bad[:10])
        more = "; ..." if len(bad) > 10 else ""
        raise ValueError(
            f"{len(bad)} of {split.size} images of split {split.name!r} cannot be decoded: "
            f'{listed}{more}. Mend or remove them, or skip them with on_bad_image="skip"'
        )


@contextlib.contextmanager
def bad_images_named(*splits: Split) -> Iterator[None]:
    """Turn a reading or decoding error met inside into a ValueError that names the images."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        for split in splits:
            raise_for_bad_images(split)
        raise ValueError(f"TensorFlow stopped: {error.message.splitlines()[0]}") from error


def _why_bad(path: str) -> str | None:
    try:
        encoded = tf.io.read_file(path)
        if not encoded.numpy():
            return "the file is empty"
        decode(encoded)
    except tf.errors.OpError as error:
        if not path.lower().endswith(EXTENSIONS) or "Unknown image file format" in error.message:
            return "not a JPEG, PNG, BMP, GIF or WebP image"
        # "{{function_node ...}} reason [Op:DecodeImage]" -> "reason"
        return error.message.split("}} ")[-1].split(" [Op:")[0]
    return None

"""A contact sheet: some images of a split beside what evaluation and training make of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg.augment import Picture, Window, corners
from keras_vgg.data.decode import BitDepth, decode, transform_encoded
from keras_vgg.data.inspection import bad_images_named
from keras_vgg.data.sheet_drawing import Outline, Row, draw, drawn_size, shrunk
from keras_vgg.data.sheet_images import choose, label_name, stored
from keras_vgg.data.split import Split
from keras_vgg.files import write_atomically
from keras_vgg.image_paths import expanded

Box = tuple[float, float, float, float]  # top, left, height, width in source pixels


def contact_sheet(
    split: Split,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str],
    train: Callable[[tf.Tensor | Picture, tf.Tensor], tf.Tensor],
    evaluate: Callable[[tf.Tensor | Picture], tf.Tensor],
    window: Callable[[tf.Tensor, tf.Tensor], Window],
    images: int = 6,
    views: int = 5,
    seed: int = 0,
) -> list[list[Box]]:
    """Draw images of a split as evaluation and training see them, as a PNG at 150 dots an inch.

    A row is an image: the original with its class, height and width, and a numbered rectangle where
    each view comes from, turned or sheared where the view is; what evaluation sees; the views,
    framed in the rectangles' colours. The part of a crop that lies beyond the image has no place in
    the original: its rectangle ends there.

    Args:
        path: the PNG to write, whole or not at all; a missing folder is made.
        class_names: label i means class_names[i].
        train: (image, seed [2]) -> uint8 [size, size, 3], as for `training_dataset`.
        evaluate: image -> uint8 or float32 [size, size, 3] in [0, 255], as for
            `evaluation_dataset`.
        window: (sides [2], seed [2]) -> where `train` crops, such as `augment.train_window` given
            the same options.
        images: how many, of classes as different as can be; all of a smaller split. Of records,
            those that come first in a few shards.
        views: training views of each image; view v of row i depends on (seed, i, v) alone.
        seed: decides the images too.

    Returns:
        For each image, for each view, (top, left, height, width) of what its rectangle spans in the
        image, in pixels of the source. `train` may round a crop to whole pixels there, half a pixel
        away.

    Raises:
        ValueError: `images` or `views` is below 1, the split is empty, a label has no name, or an
            image cannot be decoded, which the message names.
        OSError: the file cannot be written.
    """
    for name, count in (("images", images), ("views", views)):
        if count < 1:
            raise ValueError(f"{name}={count}: a contact sheet needs at least 1")
    if split.size == 0:
        raise ValueError(f"split {split.name!r} has no images to show")
    chosen = choose(split, images, len(class_names), np.random.default_rng(seed))
    rows = []
    # On the CPU, as in a tf.data pipeline.
    with tf.device("CPU"), bad_images_named(chosen):
        for i, (source, label) in enumerate(stored(chosen)):
            name = label_name(label, class_names, split.name)
            base = tf.constant([seed, i], tf.int64)
            # Any, for the stub of fold_in gives ints.
            seeds: Any = [tf.random.fold_in(base, view) for view in range(views)]
            rows.append(_row(source, name, train, evaluate, window, seeds, split.bit_depth))
    path = expanded(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(draw(rows).savefig, format="png"))
    return [[_box(row.sides, outline) for outline in row.outlines] for row in rows]


def _row(
    source: tf.Tensor,
    name: str,
    train: Callable,
    evaluate: Callable,
    window: Callable,
    seeds: Sequence[tf.Tensor],
    bit_depth: BitDepth,
) -> Row:
    def transformed(transform: Callable) -> np.ndarray:
        # The pipelines' way, where training decodes no more of a JPEG than its crop.
        encoded = source.dtype == tf.string
        pixels = np.asarray(
            transform_encoded(source, transform, bit_depth=bit_depth)
            if encoded
            else transform(source)
        )
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    image = (decode(source, bit_depth=bit_depth) if source.dtype == tf.string else source).numpy()
    height, width = image.shape[:2]
    drawn = drawn_size(height, width)
    return Row(
        caption=f"{' '.join(name.split())}, {height} × {width}",
        original=shrunk(image, drawn),
        sides=(height, width),
        drawn=drawn,
        evaluated=transformed(evaluate),
        views=[transformed(lambda image, seed=seed: train(image, seed)) for seed in seeds],
        outlines=[
            _outline(window(tf.constant([height, width]), seed), height, width) for seed in seeds
        ],
    )


def _outline(window: Window, height: int, width: int) -> Outline:
    places = np.asarray(corners(np.array([height, width]), window), float)
    if window.view is not None and not window.view.is_upright:
        return Outline(places, is_turned=True)
    return Outline(np.clip(places, 0, [height, width]), is_turned=False)


def _box(sides: tuple[int, int], outline: Outline) -> Box:
    """Return what an outline spans in the image, in source pixels."""
    places = np.clip(outline.corners, 0, sides)
    (top, left), (height, width) = places.min(axis=0).tolist(), np.ptp(places, axis=0).tolist()
    return top, left, height, width

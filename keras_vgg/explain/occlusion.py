"""Occlusion: the probability that a class loses when a part of the image is covered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import keras
import numpy as np

from keras_vgg.explain.network import channels_first, opened


def occlusion_sensitivity(
    model: keras.Model,
    images: np.ndarray,
    *,
    classes: int | Sequence[int] | None = None,
    window: int | None = None,
    stride: int | None = None,
    fill: float | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Return how much the class's probability drops if a pixel is covered: float32 [n, h, w].

    A square slides over the image. At each place, the drop is the class's probability without the
    square minus that with the square. A pixel gets the mean drop of all squares that cover it
    (Zeiler & Fergus, ECCV 2014, arXiv:1311.2901, section 4.2). Values are in [-1, 1]; a positive
    value means that the pixel speaks for the class.

    Args:
        model, images, classes: As for `grad_cam`.
        window: Side of the square in pixels. Default: a 7th of the image's smaller side.
        stride: Pixels from one place to the next; the last square ends at the image's border.
            Default: half the window.
        fill: Value that fills the square, in the image's unit. Default: the image's own mean of
            each channel.
        batch_size: Covered images at a time.

    Raises:
        ValueError: the window is larger than the image; the stride is larger than the window or
            below 1; as for `grad_cam`.
    """
    network = opened(model)
    images = network.batch(images, batch_size)
    if channels_first():
        images = np.moveaxis(images, 1, -1)
    height, width = images.shape[1:3]
    window = max(1, round(min(height, width) / 7)) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= min(height, width):
        raise ValueError(f"window must be 1 to {min(height, width)} pixels, not {window}")
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride must be 1 to {window} pixels, the window's side, not {stride}: a larger one "
            "leaves pixels that no window covers"
        )
    corners = list(itertools.product(*(_starts(side, window, stride) for side in (height, width))))

    def probabilities(batch: np.ndarray) -> np.ndarray:
        return network.probabilities(
            np.moveaxis(batch, -1, 1) if channels_first() else batch, batch_size
        )

    uncovered = probabilities(images)
    labels = network.classes(classes, len(images))
    labels = np.where(labels < 0, uncovered.argmax(-1), labels)
    sums = np.zeros(images.shape[:3])
    covers = np.zeros((height, width))
    for top, left in corners:
        covers[top : top + window, left : left + window] += 1
    for i, image in enumerate(images):
        filling = image.mean((0, 1)) if fill is None else fill
        for start in range(0, len(corners), batch_size):
            part = corners[start : start + batch_size]
            batch = np.repeat(image[np.newaxis], len(part), 0)
            for covered, (top, left) in zip(batch, part, strict=True):
                covered[top : top + window, left : left + window] = filling
            drops = uncovered[i, labels[i]] - probabilities(batch)[:, labels[i]]
            for drop, (top, left) in zip(drops, part, strict=True):
                sums[i, top : top + window, left : left + window] += drop
    return (sums / covers).astype("float32")


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Return where windows begin, so that they cover every pixel."""
    return sorted({*range(0, side - window, stride), side - window})

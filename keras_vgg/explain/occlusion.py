"""Occlusion: what a class loses when a part of the image is covered."""

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
    """How much of the class's probability a window takes that covers a pixel: float32 [n, h, w].

    A square slides over the image; at each place the class's probability without it less that with
    it is noted, and a pixel has the mean of all squares that cover it (Zeiler & Fergus, ECCV 2014,
    arXiv:1311.2901, section 4.2). Positive: the pixel speaks for the class; in [-1, 1].

    Args:
        model, images, classes: As `grad_cam`.
        window: Side of the square in pixels. Default: a 7th of the image's smaller side.
        stride: Pixels from one place to the next; the last ends at the image's border. Default:
            half the window.
        fill: What the square is filled with, in the image's unit. Default: the image's own mean of
            each channel.
        batch_size: Covered images at a time.

    Raises:
        ValueError: a window that is larger than the image, or a stride that is larger than the
            window or below 1; and as `grad_cam`.
    """
    network = opened(model)
    images = network.batch(images)
    if channels_first():
        images = np.moveaxis(images, 1, -1)
    height, width = images.shape[1:3]
    window = max(1, round(min(height, width) / 7)) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= min(height, width):
        raise ValueError(f"window must be 1 to {min(height, width)} pixels, not {window}")
    if not 1 <= stride <= window:
        raise ValueError(
            f"stride must be 1 to {window} pixels, the window's side, not {stride}: else there are "
            "pixels that no window covers"
        )
    corners = list(itertools.product(*(_starts(side, window, stride) for side in (height, width))))

    def probabilities(batch: np.ndarray) -> np.ndarray:
        return network.probabilities(
            np.moveaxis(batch, -1, 1) if channels_first() else batch, batch_size
        )

    whole = probabilities(images)
    wanted = network.classes(classes, len(images))
    wanted = np.where(wanted < 0, whole.argmax(-1), wanted)
    found = np.zeros(images.shape[:3])
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
            drops = whole[i, wanted[i]] - probabilities(batch)[:, wanted[i]]
            for drop, (top, left) in zip(drops, part, strict=True):
                found[i, top : top + window, left : left + window] += drop
    return (found / covers).astype("float32")


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows begin, so that every pixel is covered."""
    return sorted({*range(0, side - window, stride), side - window})

"""Mean, deviation and principal components of RGB over the images of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vgg.console import progress_bars
from keras_vgg.data.options import untuned
from keras_vgg.data.pipeline import in_order
from keras_vgg.data.split import Split

_PIXELS = 2**18  # as doubles at a time, so that a large photograph takes no gigabytes


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """The statistics of RGB over the pixels of `images` images.

    `mean`, `std`: float64 [3] in [0, 255] units. `eigenvalues` [3], descending, and `eigenvectors`
    [3, 3], in columns, of the covariance of RGB in [0, 1] units, for `augment.rgb_shift`.
    """

    mean: np.ndarray
    std: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    images: int

    @classmethod
    def unknown(cls) -> ChannelStatistics:
        """Return the statistics of no image: mean 0 and deviation 1."""
        return cls(np.zeros(3), np.ones(3), np.zeros(3), np.eye(3), images=0)


def statistics(
    split: Split,
    transform: Callable[[tf.Tensor], tf.Tensor] | None = None,
    limit: int | None = 10_000,
    verbose: bool = False,
) -> ChannelStatistics:
    """Return mean, deviation and principal components of RGB over at most `limit` images.

    Those images are evenly spaced through it (of a stream: the first ones). Every pixel counts the
    same, so that, without a `transform(image)` to one size, a larger image weighs more; what a
    transform pads, counts too. A `limit` of None takes all; memory does not grow with them.
    `verbose` shows a progress bar on stderr. ValueError if limit < 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: statistics need at least 1 image")
    count = split.size if limit is None else min(limit, split.size)
    chosen = np.arange(count) * split.size // count

    def moments(image: tf.Tensor) -> tf.Tensor:
        image = image if transform is None else transform(image)
        pixels = tf.reshape(image, [-1, 3])

        def add(start: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            part = tf.cast(pixels[start : start + _PIXELS], tf.float64) / 255.0
            # With a column of ones, one product has the count, the sums and those of products.
            part = tf.pad(part, [[0, 0], [0, 1]], constant_values=1.0)
            return start + _PIXELS, sums + tf.matmul(part, part, transpose_a=True)

        start = (tf.constant(0), tf.zeros([4, 4], tf.float64))
        return tf.while_loop(lambda start, sums: start < tf.shape(pixels)[0], add, start)[1]

    sums = untuned(in_order(split, chosen, moments).prefetch(tf.data.AUTOTUNE))
    total = np.zeros([4, 4])
    with progress_bars(verbose) as bars:
        images = sums.as_numpy_iterator()
        for image_sums, _ in bars.track(images, total=count, description="statistics"):
            total += image_sums
    mean = total[:3, 3] / total[3, 3]
    covariance = total[:3, :3] / total[3, 3] - np.outer(mean, mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    return ChannelStatistics(
        mean=255.0 * mean,
        # Rounding can take the variance of a constant channel a hair below 0.
        std=255.0 * np.sqrt(np.maximum(np.diag(covariance), 0.0)),
        eigenvalues=np.maximum(eigenvalues[::-1], 0.0),
        eigenvectors=eigenvectors[:, ::-1],
        images=count,
    )

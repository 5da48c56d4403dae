"""Saliency: the pixels that change a class's score most."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_vgg.explain.heat import scaled
from keras_vgg.explain.network import channels_last, opened


def saliency(
    model: keras.Model,
    images: np.ndarray,
    *,
    classes: int | Sequence[int] | None = None,
    samples: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Return how much the class's score changes with each pixel: float32 [n, h, w] in [0, 1].

    The gradient of the score, before the soft-max, by the image: for each pixel the largest
    magnitude over the channels, divided by the maximum (Simonyan, Vedaldi, Zisserman, 2013,
    arXiv:1312.6034, section 3). Several samples give SmoothGrad: the gradient is averaged over
    copies of the image with normal noise (Smilkov et al., 2017, arXiv:1706.03825, who use 50
    samples and noise of 0.1 to 0.2).

    Args:
        model, images, classes: As for `grad_cam`.
        samples: Number of noisy copies.
        noise: Standard deviation of the noise, as a share of the image's own range of values.
        seed: Seed of the noise. The noise of image i depends only on (seed, i).
        batch_size: Images at a time.

    Raises:
        ValueError: samples is below 1, or above 1 without noise; noise is negative; as for
            `grad_cam`.
    """
    if samples < 1 or not 0 <= noise < np.inf:
        raise ValueError(f"samples must be 1 or more and noise 0 or more, not {samples}, {noise}")
    if samples > 1 and noise == 0:
        raise ValueError(
            f"{samples} samples without noise are all the same: set noise, such as 0.15"
        )
    network = opened(model)
    images = network.batch(images, batch_size)
    # Take the class of the image without noise: noise must not change what is explained.
    labels = network.chosen(images, classes, batch_size)
    gradient_of = network.score_gradient(None)
    heats = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        deviation = noise * np.ptp(batch, axis=(1, 2, 3))
        generators = [np.random.default_rng([seed, start + i]) for i in range(len(batch))]
        batch_labels = ops.convert_to_tensor(labels[start : start + batch_size])
        total = 0.0
        for _ in range(samples):
            noises = [
                generator.normal(0, d, batch.shape[1:])
                for generator, d in zip(generators, deviation, strict=True)
            ]
            noisy = (batch + np.stack(noises)).astype("float32")
            _, gradient = gradient_of([ops.convert_to_tensor(noisy)], batch_labels)
            total = total + channels_last(gradient).astype("float64")
        heats += [scaled(one) for one in np.abs(total).max(-1)]
    return np.stack(heats)

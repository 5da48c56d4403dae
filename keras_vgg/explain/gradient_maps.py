"""Saliency: which pixels a class's score changes with most."""

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
    """How much the class's score changes with each pixel: float32 [n, h, w] in [0, 1].

    The largest magnitude over the channels of the gradient of the score, before the soft-max, by
    the image (Simonyan, Vedaldi, Zisserman, 2013, arXiv:1312.6034, section 3), divided by its
    maximum. With several samples it is SmoothGrad: the gradient is averaged over copies of the
    image with normal noise on them (Smilkov et al., 2017, arXiv:1706.03825; 50 samples and noise
    0.1 to 0.2 there).

    Args:
        model, images, classes: As `grad_cam`.
        samples: How many noisy copies.
        noise: Standard deviation of the noise, as a share of the image's own range of values.
        seed: Seed of the noise; the noise of image i depends on (seed, i) alone.
        batch_size: Images at a time.

    Raises:
        ValueError: no sample, several without noise, negative noise; and as `grad_cam`.
    """
    if samples < 1 or not 0 <= noise < np.inf:
        raise ValueError(f"samples must be 1 or more and noise 0 or more, not {samples}, {noise}")
    if samples > 1 and noise == 0:
        raise ValueError(
            f"{samples} samples without noise are all the same: give noise, such as 0.15"
        )
    network = opened(model)
    images = network.batch(images)
    # The class of the image itself: noise must not change what is explained.
    chosen = network.chosen(images, classes, batch_size)
    gradient_of = network.score_gradient(None)
    heats = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        deviation = noise * np.ptp(batch, axis=(1, 2, 3))
        draws = [np.random.default_rng([seed, start + i]) for i in range(len(batch))]
        wanted = ops.convert_to_tensor(chosen[start : start + batch_size])
        total = 0.0
        for _ in range(samples):
            added = [
                one.normal(0, d, batch.shape[1:]) for one, d in zip(draws, deviation, strict=True)
            ]
            noisy = (batch + np.stack(added)).astype("float32")
            _, gradient = gradient_of([ops.convert_to_tensor(noisy)], wanted)
            total = total + channels_last(gradient).astype("float64")
        heats += [scaled(one) for one in np.abs(total).max(-1)]
    return np.stack(heats)

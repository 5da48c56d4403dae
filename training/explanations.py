"""Measure whether explanations show what a network looks at, on images with known places.

command:  python training/explanations.py [--pictures 100]
hardware: 2 CPU cores, a minute
result:   the table of training/README.md, "Explanations"

A small network learns to tell three digits apart; each digit is at a random place of a larger image
of noise. For new images that the network classifies correctly, two figures are measured: the share
of the heat in the digit's box, divided by the box's share of the image; and the correlation with
the heat of the same network with random weights (Adebayo et al., Sanity Checks for Saliency Maps,
arXiv:1810.03292).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported below

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.utils import Bunch  # noqa: E402

from keras_vgg import explain, vgg  # noqa: E402

SIDE, BOX = 64, 24
DIGITS = (0, 1, 7)
CHANCE = (BOX / SIDE) ** 2
FINER = "block4_conv2_relu"  # 8x8 places; the last convolution has 4x4
HEATS: dict[str, Callable[..., np.ndarray]] = {
    "Grad-CAM": explain.grad_cam,
    "Grad-CAM++": partial(explain.grad_cam, method="grad-cam++"),
    f"Grad-CAM, {FINER}": partial(explain.grad_cam, layer=FINER),
    f"Grad-CAM++, {FINER}": partial(explain.grad_cam, layer=FINER, method="grad-cam++"),
    "occlusion, 12 pixels": partial(explain.occlusion_sensitivity, window=12, stride=12),
    "saliency": explain.saliency,
    "SmoothGrad, 25 samples": partial(explain.saliency, samples=25, noise=0.15),
}


class Pictures(NamedTuple):
    """Images, float32 [n, SIDE, SIDE, 3] in [0, 255], their classes, and (top, left) of boxes."""

    images: np.ndarray
    labels: np.ndarray
    corners: np.ndarray


def composed(count: int, seed: int) -> Pictures:
    """Return images of scikit-learn's digits, three times as large, on noise."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    assert isinstance(digits, Bunch)  # it is a tuple only with return_X_y
    images = rng.uniform(0, 120, (count, SIDE, SIDE, 3)).astype("float32")
    labels = rng.integers(0, len(DIGITS), count)
    corners = rng.integers(0, SIDE - BOX + 1, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        of_class = digits.images[digits.target == DIGITS[label]]
        digit = of_class[rng.integers(len(of_class))] * (255 / 16)
        digit = np.kron(digit, np.ones((BOX // 8, BOX // 8)))[..., np.newaxis]
        place = image[top : top + BOX, left : left + BOX]
        np.maximum(place, digit, out=place)
    return Pictures(images, labels, corners)


def network(seed: int) -> keras.Model:
    """Return the network with random weights."""
    keras.utils.set_random_seed(seed)
    return vgg(
        "A",
        weights=None,
        input_shape=(SIDE, SIDE, 3),
        classes=len(DIGITS),
        width_multiplier=1 / 8,
        batch_norm=True,
        head="gap",
        include_preprocessing=True,
    )


def trained() -> keras.Model:
    model = network(seed=0)
    images, labels, _ = composed(600, seed=0)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=32, epochs=5, verbose=0)  # pyright: ignore[reportArgumentType]
    return model


def recognised(model: keras.Model, count: int) -> Pictures:
    """Return `count` new images that the network classifies correctly.

    Raises:
        ValueError: the network classifies too few images correctly.
    """
    pictures = composed(2 * count, seed=1)
    probabilities = np.asarray(model.predict(pictures.images, verbose=0))  # pyright: ignore[reportArgumentType]
    right = probabilities.argmax(-1) == pictures.labels
    if right.sum() < count:
        raise ValueError(
            f"the network classifies {right.sum()} of {2 * count} images correctly, not {count}"
        )
    return Pictures(*(values[right][:count] for values in pictures))


def on_object(heats: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the boxes' shares of the heat, divided by their share of the image (1 to 7.1: all)."""
    inside = [
        heat[top : top + BOX, left : left + BOX].sum()
        for heat, (top, left) in zip(heats, corners, strict=True)
    ]
    all_heat = heats.sum((1, 2))
    shares = np.divide(inside, all_heat, out=np.zeros(len(heats)), where=all_heat > 0)
    return shares / CHANCE


def likeness(heats: np.ndarray, others: np.ndarray) -> float:
    """Return the mean correlation of two sets of heat maps; a map of zeros has correlation 0."""
    pairs = zip(heats.reshape(len(heats), -1), others.reshape(len(others), -1), strict=True)
    return float(np.mean([np.corrcoef(a, b)[0, 1] if a.any() and b.any() else 0 for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=100)
    count = parser.parse_args().pictures
    model, random = trained(), network(seed=1)
    images, labels, corners = recognised(model, count)
    print("| heat | on the object, times chance | images above chance | like random weights' |")
    print("|---|---|---|---|")
    for name, heat in HEATS.items():
        # Negative values are evidence against the class.
        trained_heat, random_heat = (
            np.maximum(heat(net, images, classes=labels), 0) for net in (model, random)
        )
        times = on_object(trained_heat, corners)
        print(
            f"| {name} | {times.mean():.2f} | {(times > 1).mean():.0%} "
            f"| {likeness(trained_heat, random_heat):+.2f} |"
        )


if __name__ == "__main__":
    main()

"""Heat of a net that was really trained: it needs the weights, and lies on the object."""

from functools import partial

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_vgg import explain, vgg

SIDE, BOX = 64, 24
DIGITS = (0, 1, 7)
HEATS = {
    "grad-cam": explain.grad_cam,
    "grad-cam++": partial(explain.grad_cam, method="grad-cam++"),
    "occlusion": partial(explain.occlusion_sensitivity, window=12, stride=12),
    "saliency": explain.saliency,
    "smoothgrad": partial(explain.saliency, samples=6, noise=0.1),
}


def net():
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


def composed(count, seed):
    """A digit somewhere on a larger picture of noise: images, labels, (top, left) of its box."""
    rng = np.random.default_rng(seed)
    digits = load_digits()
    images = rng.uniform(0, 120, (count, SIDE, SIDE, 3)).astype("float32")
    labels = rng.integers(0, len(DIGITS), count)
    corners = rng.integers(0, SIDE - BOX + 1, (count, 2))
    for image, label, (top, left) in zip(images, labels, corners, strict=True):
        of_class = digits.images[digits.target == DIGITS[label]]
        digit = of_class[rng.integers(len(of_class))] * (255 / 16)
        digit = np.kron(digit, np.ones((BOX // 8, BOX // 8)))[..., np.newaxis]
        place = image[top : top + BOX, left : left + BOX]
        np.maximum(place, digit, out=place)
    return images, labels, corners


@pytest.fixture(scope="module")
def trained():
    keras.utils.set_random_seed(0)
    model = net()
    images, labels, _ = composed(600, seed=0)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=32, epochs=5, verbose=0)
    return model


@pytest.fixture(scope="module")
def shown(trained):
    """New pictures that the net gets right."""
    images, labels, corners = composed(24, seed=1)
    right = trained.predict(images, verbose=0).argmax(-1) == labels
    assert right.mean() > 0.8
    return images[right][:12], corners[right][:12]


@pytest.mark.parametrize("method", HEATS)
def test_the_heat_lies_on_the_object(trained, shown, method):
    # The box's share of the heat, as a multiple of its share of the picture; 1 is chance.
    images, corners = shown
    heats = np.maximum(HEATS[method](trained, images), 0)
    boxes = [
        heat[top : top + BOX, left : left + BOX]
        for heat, (top, left) in zip(heats, corners, strict=True)
    ]
    shares = np.array([box.sum() / heat.sum() for box, heat in zip(boxes, heats, strict=True)])
    times = shares / (BOX / SIDE) ** 2
    # A class activation map has 4 x 4 cells here, and the box covers a cell and a half a side.
    assert times.mean() > (1.4 if method.startswith("grad-cam") else 2)
    assert (times > 1).mean() >= 0.8


@pytest.mark.parametrize("method", HEATS)
def test_other_weights_give_another_map(trained, shown, method):
    # Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, arXiv:1810.03292.
    images, _ = shown
    keras.utils.set_random_seed(1)
    random = net()
    classes = trained.predict(images, verbose=0).argmax(-1)
    found = []
    for model in (trained, random):
        heats = np.maximum(HEATS[method](model, images, classes=classes), 0)
        found.append(heats.reshape(len(heats), -1))
    correlations = [
        np.corrcoef(a, b)[0, 1] if a.any() and b.any() else 0.0 for a, b in zip(*found, strict=True)
    ]
    assert np.mean(correlations) < 0.5

"""Heat of a net that was really trained: it needs the weights, and lies on the object."""

import numpy as np
import pytest

from training import explanations
from training.explanations import HEATS, likeness, on_object

PICTURES = 12


@pytest.fixture(scope="module")
def trained():
    return explanations.trained()


@pytest.fixture(scope="module")
def shown(trained):
    return explanations.recognised(trained, PICTURES)


@pytest.fixture(scope="module")
def heats(trained, shown):
    images, labels, _ = shown
    return {
        name: np.maximum(heat(trained, images, classes=labels), 0) for name, heat in HEATS.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", HEATS)
def test_the_heat_lies_on_the_object(heats, shown, name):
    times = on_object(heats[name], shown.corners)
    # The last map has 4x4 places, and the box covers a place and a half a side.
    coarse = name in ("Grad-CAM", "Grad-CAM++")
    assert times.mean() > (1.4 if coarse else 1.8)
    assert (times > 1).mean() >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", HEATS)
def test_other_weights_give_another_map(heats, shown, name):
    random = explanations.network(seed=1)
    others = np.maximum(HEATS[name](random, shown.images, classes=shown.labels), 0)
    assert likeness(heats[name], others) < 0.75


def test_the_measures_by_hand():
    heats = np.zeros((3, explanations.SIDE, explanations.SIDE))
    heats[0] = 1  # everywhere alike
    heats[1, :24, :24] = 2  # on the object alone
    found = on_object(heats, np.zeros((3, 2), int))
    np.testing.assert_allclose(found, [1, 1 / explanations.CHANCE, 0])
    assert likeness(heats[1:2], 1 - heats[1:2]) == pytest.approx(-1)
    assert likeness(heats[2:], heats[:1]) == 0

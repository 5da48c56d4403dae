"""The arithmetic of docs/scaling.md."""

from pathlib import Path

import pytest

from keras_vgg.recipe import Recipe, load_recipe
from training.scaling import Assumed, checkpoint_bytes, cost, markdown, network, parse

ROOT = Path(__file__).parent.parent
D = load_recipe(ROOT / "training" / "recipes" / "imagenet_d.py")


def test_the_page_has_what_the_command_prints() -> None:
    assert markdown(D, Assumed()) in (ROOT / "docs" / "scaling.md").read_text()


def test_vgg16_by_hand() -> None:
    """Table 2's 138M parameters; 15.47 GMAC forward (README), three times that for training."""
    parameters, flop = network(D)
    assert parameters == 138_357_544
    assert flop == pytest.approx(6 * 15.47e9, rel=1e-3)
    assert checkpoint_bytes(D) == 8 * parameters


def test_a_step_on_eight_gpus_by_hand() -> None:
    found = cost(D, 8, Assumed(tflops=50, gbytes=10, batch=64))
    assert found.computing == pytest.approx(64 * 92.8e9 / 50e12, rel=1e-3)
    assert found.exchanging == pytest.approx(2 * 7 / 8 * 553.4e6 / 10e9, rel=1e-3)
    assert found.images_per_second == pytest.approx(
        8 * 64 / (found.computing + found.exchanging), rel=1e-6
    )


def test_one_gpu_exchanges_nothing() -> None:
    alone = cost(Recipe(), 1, Assumed())
    assert (alone.exchanging, alone.efficiency) == (0, 1)


@pytest.mark.parametrize("arguments", [["--tflops", "0"], ["--batch", "-1"]])
def test_what_cannot_be(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=r"must be more than 0: --(tflops 0|batch -1)"):
        parse(arguments)

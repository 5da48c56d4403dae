"""Colour augmentation in the training step: the same colours, on every backend."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment
from keras_vgg.fit import color_step, fit, inputs
from keras_vgg.recipe import Recipe
from tests import test_fit
from tests.other_backends import passes_on

pytestmark = pytest.mark.usefixtures("blank_plots")

STRENGTHS = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4, "hue": 0.1}
TINY = test_fit.TINY.replace(dropout=0.0, epochs=1, **STRENGTHS)


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("names", [[*STRENGTHS, "shift"], ["contrast"], ["hue"], ["shift"]])
def test_the_colours_of_a_batch_are_those_of_each_image(channels: int, names: list[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 24, 30, channels), np.uint8)
    strengths = {name: (STRENGTHS | {"shift": 0.1})[name] for name in names}
    decomposition = {"eigenvalues": np.ones(3) / 10, "eigenvectors": np.eye(3)}
    options: Any = {"size": 16, **decomposition, **strengths}
    pairs = [(image, tf.constant([5, number])) for number, image in enumerate(images)]
    expected = np.stack([augment.train_image(*pair, **options) for pair in pairs])
    apart = [augment.train_image_uncolored(*pair, **options) for pair in pairs]
    pixels, amounts = (np.stack(values) for values in zip(*apart, strict=True))
    assert (pixels.dtype, amounts.dtype, amounts.shape) == ("uint8", "float32", (6, 7))
    colored = keras.ops.convert_to_numpy(augment.color_batch(pixels, amounts))
    assert colored.dtype == "float32"
    assert np.abs(colored - expected).max() <= 0.501  # the pipeline rounds them
    assert np.abs(colored - pixels).mean() > 1 or (channels == 1 and names == ["hue"])


def test_colours_in_their_order_by_numpy() -> None:
    """`color_batch` against the arguments of `adjust_color`, one after the other."""
    image = np.random.default_rng(1).integers(90, 160, (1, 8, 9, 3), np.uint8)
    amounts = np.array([[12, 1.2, 0.7, 0.3, 3, -2, 1]], np.float32)
    values = image + 12.0
    values = 1.2 * values + (1 - 1.2) * values.mean(axis=(1, 2), keepdims=True)
    luma = values @ [0.299, 0.587, 0.114]
    values = 0.7 * values + 0.3 * luma[..., None]
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    turn = np.array(
        [[1, 0, 0], [0, math.cos(0.3), -math.sin(0.3)], [0, math.sin(0.3), math.cos(0.3)]]
    )
    values = values @ (np.linalg.inv(to_yiq) @ turn @ to_yiq).T + [3, -2, 1]
    colored = keras.ops.convert_to_numpy(augment.color_batch(image, amounts))
    np.testing.assert_allclose(colored, values, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cutout": 0.5}, (TypeError, "cutout")),
        ({"shift": 0.1}, (ValueError, "needs eigenvalues and eigenvectors")),
        ({"hue": 0.6}, (ValueError, "hue=0.6 must be between 0 and 0.5")),
    ],
)
def test_wrong_options(options: dict[str, Any], error: tuple[type[Exception], str]) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(error[0], match=error[1]):
        augment.train_image_uncolored(image, tf.constant([0, 0]), size=8, **options)


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({}, True),
        ({"color": "grey", "hue": 0.0}, True),
        ({"auto_augment": "trivial"}, True),
        ({"jit": "off"}, False),
        ({"cutout": 0.5}, False),
        ({"mixup": 0.2, "unmixed_epochs": 1, "epochs": 2}, False),
        ({"random_erasing": 0.5}, False),
        ({**dict.fromkeys(STRENGTHS, 0.0), "rgb_shift": 0.0}, False),
    ],
)
def test_colours_wait_for_the_step_if_nothing_comes_after_them(
    changes: dict, possible: bool
) -> None:
    assert color_step.is_possible(TINY.replace(**changes)) is possible


def losses(recipe: Recipe, folder: Path) -> list[float]:
    kept: list[float] = []
    fit(recipe, folder, verbose=0, callbacks=[Losses(kept)])
    return kept


class Losses(keras.callbacks.Callback):
    def __init__(self, kept: list) -> None:
        super().__init__()
        self.kept = kept

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.kept.append((logs or {})["loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"class_weights": "balanced", "gradient_accumulation": 2}, {"color": "grey"}],
    ids=["weights and parts", "grey"],
)
def test_a_training_takes_the_same_steps_as_with_colours_in_the_pipeline(
    changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TINY.replace(batch_norm=False, initialization="he_normal", **changes)
    color_apart = []
    monkeypatch.setattr(
        inputs,
        "training_transform",
        lambda *args, kept=inputs.training_transform: color_apart.append(args[2]) or kept(*args),
    )
    apart = losses(recipe, tmp_path / "apart")
    monkeypatch.setattr(color_step, "is_possible", lambda recipe: False)
    together = losses(recipe, tmp_path / "together")
    assert color_apart == [True, False]
    assert len(apart) >= 9
    np.testing.assert_allclose(apart, together, rtol=1e-3)
    assert np.ptp(together) > 0.01  # it learns, so that equal losses say something


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize(
    ("backend", "left_out", "count"), [("jax", "grey", 21), ("torch", "a_training", 20)]
)
def test_the_same_on_another_backend(backend: str, left_out: str, count: int) -> None:
    """Training runs on TensorFlow and JAX only."""
    tests = f"not another_backend and not {left_out}"
    passed = passes_on(backend, "tests/test_color_step.py", "-k", tests)
    assert f"{count} passed" in passed

"""keras_vgg.fit.rate_finder: what a rising learning rate shows, and the recipe that it writes."""

from __future__ import annotations

import csv
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg.cli import main
from keras_vgg.fit import find_learning_rate, rate_finder
from keras_vgg.fit.rate_finder import Sweep, _Rising
from keras_vgg.recipe import Recipe, load_recipe
from tests.test_fit import TINY

RATES = np.geomspace(1e-5, 10, 100)
# Falls from 2.3 to 0.5 around 0.01, and rises from about 0.3 on.
VALLEY = 2.3 - 1.8 / (1 + (0.01 / RATES) ** 1.5) + RATES**2


def sweep(losses: np.ndarray) -> Sweep:
    return Sweep(RATES[: len(losses)].tolist(), losses.tolist())


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss() -> None:
    found = sweep(VALLEY)
    assert found.smoothed[0] == VALLEY[0]
    assert 0.1 < found.rates[found.lowest] < 0.7
    assert found.suggestion == pytest.approx(found.rates[found.lowest] / 10, rel=0.05)
    noisy = sweep(VALLEY + np.random.default_rng(0).normal(0, 0.1, 100))
    assert 0.5 < noisy.suggestion / found.suggestion < 2


@pytest.mark.parametrize("losses", [np.full(100, 2.3), 2.3 + RATES, np.array([2.3, 2.29, 40.0])])
def test_a_loss_that_does_not_fall_suggests_nothing(losses: np.ndarray) -> None:
    assert sweep(losses).suggestion is None


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_of_a_batch_is_what_the_mean_of_all_grows_by(parts: int) -> None:
    rising = _Rising(RATES, parts)
    model = types.SimpleNamespace(optimizer=types.SimpleNamespace(), stop_training=False)
    rising.set_model(model)
    losses = np.repeat(VALLEY, parts)
    rates = []
    for batch in range(10 * parts):
        rising.on_train_batch_begin(batch)
        rates.append(model.optimizer.learning_rate)
        rising.on_train_batch_end(batch, {"loss": float(losses[: batch + 1].mean())})
    assert rates == np.repeat(RATES[:10], parts).tolist()
    np.testing.assert_allclose(rising.losses, VALLEY[:10])
    assert not model.stop_training
    for batch in range(10 * parts, 11 * parts):
        rising.on_train_batch_end(batch, {"loss": 1e6})
    assert model.stop_training


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_sweep(worst: float) -> None:
    rising = _Rising(RATES, 1)
    model = types.SimpleNamespace(optimizer=types.SimpleNamespace(), stop_training=False)
    rising.set_model(model)
    rising.on_train_batch_end(0, {"loss": 2.0})
    rising.on_train_batch_end(1, {"loss": worst})
    assert model.stop_training
    assert rising.losses == [2.0]


def test_the_recipe_is_written_and_the_run_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(rate_finder, "_swept", lambda recipe, verbose: sweep(VALLEY))
    folder = tmp_path / "run-learning-rate"
    flags = ["--workdir", str(tmp_path / "run"), "--epochs", "3", "--find-learning-rate"]
    assert main(["train", *flags]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    names = {path.name for path in folder.iterdir()}
    assert names == {"learning_rate.csv", "learning_rate.png", "recipe.json"}
    rate = sweep(VALLEY).suggestion
    assert load_recipe(folder / "recipe.json") == Recipe(epochs=3, learning_rate=rate)
    with (folder / "learning_rate.csv").open() as file:
        assert len([*csv.DictReader(file)]) == 100
    out = capsys.readouterr().out
    assert f"suggested is a tenth of it, {rate:g}" in out
    assert f"next: keras-vgg train {folder / 'recipe.json'} --workdir" in out


@pytest.mark.parametrize("name", ["data.json", "model.keras", "checkpoints", "results.json"])
def test_a_run_that_has_begun_keeps_its_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_finder, "_swept", lambda recipe, verbose: sweep(VALLEY))
    (tmp_path / "recipe.json").write_text("precious")
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{tmp_path} holds a run that has begun") as caught:
        find_learning_rate(Recipe(), tmp_path)
    assert name in str(caught.value)
    assert (tmp_path / "recipe.json").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", name}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("workdir", [".", "..", "../run/."])
def test_the_folder_is_beside_a_workdir_without_a_name(
    workdir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_finder, "_swept", lambda recipe, verbose: sweep(VALLEY))
    (tmp_path / "run" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "inner" if workdir == ".." else tmp_path / "run")
    assert main(["train", "--workdir", workdir, "--find-learning-rate"]) == 0
    assert (tmp_path / "run-learning-rate" / "recipe.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--finish"], "--find-learning-rate is for a training that has not begun"),
        (["--folds", "3"], "folds=3 are several trainings; choose one, such as fold=1"),
        (
            ["--init-head", "probe", "--init", "imagenet", "--head", "gap"],
            "init_head='probe' begins with the best classifier",
        ),
        (["--source", "folder:nowhere", "--image-size", "32"], "nowhere"),
    ],
    ids=["finish", "folds", "probe", "no data"],
)
def test_what_cannot_be_swept(
    tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    assert main(["train", "--workdir", str(tmp_path / "run"), "--find-learning-rate", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


def test_without_a_fall_there_is_a_plot_and_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_finder, "_swept", lambda recipe, verbose: sweep(VALLEY))
    find_learning_rate(Recipe(), tmp_path)  # whose suggestion is not for what follows
    monkeypatch.setattr(rate_finder, "_swept", lambda recipe, verbose: sweep(2.3 + RATES))
    with pytest.raises(ValueError, match="did not fall at any learning rate from 1e-05 to 10"):
        find_learning_rate(Recipe(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"learning_rate.csv", "learning_rate.png"}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_sweep_falls_diverges_and_is_the_same_each_time(optimizer: str, tmp_path: Path) -> None:
    recipe = TINY.replace(optimizer=optimizer, learning_rate=0.001)
    found, suggested = find_learning_rate(recipe, tmp_path / "one", verbose=False)
    again, _ = find_learning_rate(recipe, tmp_path / "two", verbose=False)
    assert found == again
    assert found.smoothed.min() < found.smoothed[0] - 0.1
    assert 1e-4 < suggested.learning_rate < 0.5


def one_step(model: keras.Model, *_: object, callbacks: list, **__: object) -> None:
    """In place of `keras.Model.fit`, which would trace a step that the tests below do not need."""
    callbacks[0].set_model(model)
    callbacks[0].on_train_batch_end(0, {"loss": 1.0})


def test_a_first_loss_that_is_no_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.Model, "fit", one_step)

    def stop(callback: keras.callbacks.Callback, batch: int, logs: dict | None = None) -> None:
        callback.model.stop_training = True

    monkeypatch.setattr(rate_finder._Rising, "on_train_batch_end", stop)
    with pytest.raises(ValueError, match="the loss of the first batch is not a number"):
        find_learning_rate(TINY, tmp_path / "sweep")
    assert not list(tmp_path.glob("sweep/*"))


@pytest.mark.slow
def test_a_suggestion_is_never_the_rate_that_another_optimizer_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.Model, "fit", one_step)

    def fall(callback: rate_finder._Rising, batch: int, logs: dict | None = None) -> None:
        # The loss is lowest at 0.498, a tenth of which is 0.05, the default for sgd.
        lowest = int(np.abs(callback.rates - 0.498).argmin())
        callback.losses.extend([*np.linspace(9, 1, lowest + 1), 100.0])
        assert callback.model is not None
        callback.model.stop_training = True

    monkeypatch.setattr(rate_finder._Rising, "on_train_batch_end", fall)
    recipe = TINY.replace(optimizer="adamw", learning_rate=0.001)
    found, suggested = find_learning_rate(recipe, tmp_path, verbose=False)
    assert found.suggestion == suggested.learning_rate == 0.049
    assert load_recipe(tmp_path / "recipe.json").learning_rate == 0.049
    assert Sweep(found.rates, found.losses, "sgd").suggestion == 0.05


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> Sweep:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(rate_finder, "_swept", exhausted)
    with pytest.raises(MemoryError, match="batches of 64; try a smaller --batch-size"):
        find_learning_rate(Recipe(), tmp_path / "rate")


@pytest.mark.slow
def test_what_is_opened_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(keras.Model, "fit", one_step)
    recipe = TINY.replace(step_epochs=(1,))
    rate_finder._swept(recipe, verbose=True)
    out = capsys.readouterr().out
    assert "digits: 319 training, 40 validation images, 10 classes" in out
    assert "step_epochs has no effect: the schedule is cosine, not step" in out
    rate_finder._swept(recipe, verbose=False)
    assert capsys.readouterr().out == ""

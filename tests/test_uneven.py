"""Uneven classes: balanced sampling, balanced accuracy, focal loss, and what selects the epoch."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from keras_vgg import data
from keras_vgg.data.balance import balanced_order
from keras_vgg.fit import fit, preparation
from keras_vgg.fit.metrics import BalancedAccuracy, loss_for, metrics_for
from keras_vgg.fit.progress import epoch_figures, log_line, table_row
from keras_vgg.fit.schedule import best_row, is_over, plateau_drops
from keras_vgg.fit.verdict import guessed_classes
from keras_vgg.recipe import Recipe
from tests.test_fit import TINY

LABELS = np.repeat([0, 1, 2, 4], [600, 60, 6, 30])  # no image is of class 3


@pytest.mark.parametrize(("batch", "steps"), [(64, 10), (3, 7), (4, 5), (5, 40), (1, 9)])
def test_classes_have_equal_shares_and_images_take_turns(batch, steps):
    drawn = {label: [] for label in (0, 1, 2, 4)}
    for epoch in range(6):
        order = balanced_order(LABELS, steps, batch, 7, epoch)
        assert order.dtype == np.int32
        for labels in LABELS[order].reshape(steps, batch):
            counts = [np.sum(labels == label) for label in drawn]
            assert max(counts) - min(counts) <= 1
        for label, images in drawn.items():
            images += order[LABELS[order] == label].tolist()
        counts = [len(images) for images in drawn.values()]
        assert max(counts) - min(counts) <= 1
    for label, images in drawn.items():
        size = np.sum(label == LABELS)
        for start in range(0, len(images), size):
            turn = images[start : start + size]
            assert len({*turn}) == len(turn)


def test_the_order_is_that_of_seed_and_epoch():
    first = balanced_order(LABELS, 5, 8, 0, 3)
    np.testing.assert_array_equal(first, balanced_order(LABELS, 5, 8, 0, 3))
    for other in (balanced_order(LABELS, 5, 8, 1, 3), balanced_order(LABELS, 5, 8, 0, 4)):
        assert (first != other).any()


def numbered_split():
    """A split whose images hold their own numbers."""
    numbers = np.arange(len(LABELS))
    images = np.stack([numbers // 256, numbers % 256, LABELS], axis=-1)
    images = images.astype(np.uint8).reshape(-1, 1, 1, 3)
    return data.Split("train", len(LABELS), LABELS.astype(np.int32), images)


def drawn(split, batches, **options):
    dataset = data.training_dataset(
        split, options.pop("batch", 8), lambda image, seed: image, seed=3, balanced=True, **options
    )
    pairs = [*dataset.take(batches).as_numpy_iterator()]
    for images, labels in pairs:
        np.testing.assert_array_equal(images[:, 0, 0, 2], labels)
    numbers = [images[:, 0, 0].astype(int) @ [256, 1, 0] for images, _ in pairs]
    return np.stack(numbers)


def test_batches_are_balanced_from_any_step_and_on_any_host():
    split = numbered_split()
    steps = data.steps_per_epoch(split, 8)
    whole = drawn(split, steps + 3)
    assert steps == len(LABELS) // 8
    np.testing.assert_array_equal(whole[:steps].ravel(), balanced_order(LABELS, steps, 8, 3, 0))
    np.testing.assert_array_equal(
        whole[steps:].ravel(), balanced_order(LABELS, steps, 8, 3, 1)[:24]
    )
    resumed = drawn(split, 4, start_epoch=0, start_step=steps - 1)
    np.testing.assert_array_equal(resumed, whole[steps - 1 :])
    shares = [drawn(split, 5, batch=4, host=host, hosts=2) for host in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole[:5])


def test_records_are_refused():
    records = data.Records((), parse=lambda record: (record, record))
    split = data.Split("train", 0, records=records)
    object.__setattr__(split, "size", 8)
    with pytest.raises(ValueError, match="balanced sampling needs images in any order"):
        data.training_dataset(split, 4, lambda image, seed: image, seed=0, balanced=True)


@pytest.mark.slow
def test_a_training_refuses_records_before_anything_is_timed_or_written(tmp_path, monkeypatch):
    images = np.zeros((40, 32, 32, 3), np.uint8)
    train, validation = (
        data.Split(name, 40, np.arange(40, dtype=np.int32) % 2, images)
        for name in ("train", "validation")
    )
    data.pack(data.Source("made", ("a", "b"), train, validation, None), tmp_path / "packed")
    recipe = TINY.replace(source=f"records:{tmp_path / 'packed'}", sampling="balanced")
    monkeypatch.setattr(preparation, "measured_engine", None)
    with pytest.raises(ValueError, match="split 'train' is read from TFRecord files"):
        fit(recipe, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_balanced_accuracy_is_scikit_learns_over_all_batches():
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 103, p=[0.7, 0.2, 0.06, 0.04, 0])
    probabilities = rng.dirichlet(np.ones(5), 103).astype("float32")
    probabilities[:, 4] = 0  # no image has this class
    metric = BalancedAccuracy(5)
    for start in range(0, 103, 32):
        chosen = slice(start, start + 32)
        targets = np.eye(5, dtype="float32")[labels[chosen]]
        weights = np.full(len(targets), 1.03, "float32")
        filling = 32 - len(targets)  # images of weight 0 fill the last batch, as on JAX
        metric.update_state(
            np.concatenate([targets, np.eye(5, dtype="float32")[np.zeros(filling, int)]]),
            np.concatenate([probabilities[chosen], np.zeros((filling, 5), "float32")]),
            np.concatenate([weights, np.zeros(filling, "float32")]),
        )
    expected = balanced_accuracy_score(labels, probabilities.argmax(axis=1))
    assert float(metric.result()) == pytest.approx(expected, abs=1e-7)
    metric.reset_state()
    assert float(metric.result()) == 0


def test_metrics_of_earlier_recipes_stay():
    assert [m.name for m in metrics_for(Recipe(), 10)] == ["accuracy", "top5_accuracy"]
    balanced = metrics_for(Recipe(select_by="balanced_accuracy"), 3)
    assert [m.name for m in balanced] == ["accuracy", "balanced_accuracy"]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_is_keras(smoothing):
    rng = np.random.default_rng(0)
    targets = np.eye(4, dtype="float32")[rng.integers(4, size=9)]
    probabilities = rng.dirichlet(np.ones(4), 9).astype("float32")
    recipe = Recipe(loss="focal", label_smoothing=smoothing)
    plain = loss_for(Recipe(label_smoothing=smoothing))(targets, probabilities)
    flat = loss_for(recipe.replace(focal_gamma=0))(targets, probabilities)
    assert float(flat) == pytest.approx(float(plain), rel=1e-5)
    keras_loss = keras.losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=2.0, label_smoothing=smoothing
    )
    focal = loss_for(recipe)(targets, probabilities)
    assert float(focal) == float(keras_loss(targets, probabilities))
    smooth = targets * (1 - smoothing) + smoothing / 4
    each = -(smooth * (1 - probabilities) ** 2 * np.log(probabilities)).sum(axis=1)
    assert float(focal) == pytest.approx(each.mean(), rel=1e-5)


def rows(*pairs):
    return [
        {"epoch": i, "val_accuracy": accuracy, "val_balanced_accuracy": balanced, "val_loss": 1.0}
        for i, (accuracy, balanced) in enumerate(pairs, 1)
    ]


def test_the_figure_that_selects_decides():
    history = rows((0.9, 0.2), (0.8, 0.5), (0.7, 0.4))
    balanced = Recipe(select_by="balanced_accuracy", plateau_patience=1, early_stopping=2)
    assert best_row(history)["epoch"] == best_row(history, Recipe())["epoch"] == 1
    assert best_row(history, balanced)["epoch"] == 2
    assert plateau_drops(balanced, history) == 1
    assert plateau_drops(balanced.replace(select_by="accuracy"), history) == 2
    assert not is_over(balanced, history)
    assert is_over(balanced.replace(select_by="accuracy"), history)


def test_guesses_are_told_from_a_network_that_has_learned():
    labels = np.repeat([0, 1, 3], [400, 40, 6])
    guesses = guessed_classes([400, 40, 0, 6])
    rng = np.random.default_rng(0)
    drawn = np.mean([rng.binomial(n, 1 / 3, 2000) / n for n in (400, 40, 6)], axis=0)
    assert guesses.share == pytest.approx(1 / 3)
    assert np.mean(drawn > guesses.limit) == pytest.approx(0.05, abs=0.02)
    # An answer that is always the same has an accuracy of 90 %, and a balanced accuracy of 33 %.
    assert guesses.explains(balanced_accuracy_score(labels, np.zeros(446)))
    assert not guesses.explains(0.6)
    assert "balanced accuracy, 33.33%, is no better than guessing" in guesses.final_line(1 / 3)
    assert not guessed_classes([1, 1]).can_be_beaten


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": "equal"}, "sampling must be one of uniform, balanced, not 'equal'"),
        ({"loss": "hinge"}, "loss must be one of crossentropy, focal, not 'hinge'"),
        ({"focal_gamma": -1.0}, r"focal_gamma must be in \[0, 10\], not -1"),
        ({"focal_gamma": float("nan")}, r"focal_gamma must be in \[0, 10\], not nan"),
        ({"select_by": "f1"}, "select_by must be one of accuracy, balanced_accuracy, not 'f1'"),
        (
            {"sampling": "balanced", "class_weights": "balanced"},
            "would balance the classes twice; choose one",
        ),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_the_selecting_figure_is_shown():
    row = rows((0.9, 0.25))[0]
    row |= {"loss": 1.0, "accuracy": 0.9, "images_per_second": 1, "learning_rate": 0.1}
    figures = epoch_figures(row | {"seconds": 1.0}, 999, 10.0, True)
    assert "val_balanced_accuracy 25.00 %" in log_line(figures)
    assert "val_accuracy" not in log_line(figures)
    assert "balanced val" in table_row(figures, headings=True)
    assert len(table_row(figures)) == len(table_row(figures, headings=True)) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_selecting_figure_is_that_of_the_kept_network(backend, tmp_path):
    """The validation split, 54 images, is no multiple of the batch: on JAX, filling is needed."""
    if backend == "jax":
        pytest.importorskip("jax")
    code = f"""
from sklearn.metrics import balanced_accuracy_score
from keras_vgg import Recipe, train
from keras_vgg.runs import evaluate_runs
recipe = Recipe(width_multiplier=1 / 16, hidden_units=8, test_fraction=0.7, epochs=3, batch_size=32,
                sampling="balanced", loss="focal", select_by="balanced_accuracy")
run = train(recipe, r"{tmp_path / "run"}", verbose=0)
(evaluation,) = evaluate_runs([run], "validation")
exact = balanced_accuracy_score(evaluation.labels, evaluation.probabilities.argmax(axis=1))
column = [row["val_balanced_accuracy"] for row in run.history]
assert len(evaluation.labels) % 32
assert abs(run.results["validation_balanced_accuracy"] - exact) < 1e-6, (run.results, exact)
assert max(column) == run.results["validation_balanced_accuracy"]
print("exact")
"""
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert result.stdout.endswith("exact\n"), result.stderr

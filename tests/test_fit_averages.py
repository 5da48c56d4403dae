"""keras_vgg.fit.averages and verdict: what batch norm has averaged, and what a run has learned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from keras_vgg import data
from keras_vgg.fit import evaluation_transform, fit, load_source, outcome, verdict
from keras_vgg.fit.averages import Averages, unsettled
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from tests.test_fit import TINY

SMALL = Recipe(
    width_multiplier=1 / 16,
    hidden_units=16,
    test_fraction=0.8,
    batch_size=32,
    epochs=2,
    learning_rate=0.01,
    dropout=0.0,
)


def network() -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9, name="first")(x)
    x = keras.layers.Dropout(0.5, seed=1)(x)
    x = keras.layers.Conv2D(4, 3)(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name="second")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def batches(count: int) -> list[tuple[np.ndarray, None]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(3, 2, (16, 8, 8, 3)).astype("float32"), None) for _ in range(count)]


@pytest.mark.parametrize("taken", [1, 20, 65])
def test_estimates_are_the_mean_over_the_batches(taken: int) -> None:
    model = network()
    before = model.get_weights()
    averages = Averages(lambda epoch: batches(5))
    averages.enter(model, 0, taken)
    first = model.get_layer("first")
    outputs = [keras.ops.convert_to_numpy(model.get_layer("conv")(x)) for x, _ in batches(5)]
    mean = np.mean([x.mean(axis=(0, 1, 2)) for x in outputs], axis=0)
    variance = np.mean([x.var(axis=(0, 1, 2)) for x in outputs], axis=0)
    np.testing.assert_allclose(first.moving_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.moving_variance.numpy(), variance, rtol=1e-4)
    averages.leave()
    for now, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, was)


def test_layers_that_settle_later_are_estimated_alone() -> None:
    model = network()
    first, second = model.get_layer("first"), model.get_layer("second")
    second.momentum = 0.99
    averages = Averages(lambda epoch: batches(5))
    averages.enter(model, 0, 20)
    estimate = second.moving_mean.numpy()
    averages.leave()
    before = first.moving_mean.numpy()
    averages.enter(model, 1, 100)
    np.testing.assert_array_equal(first.moving_mean.numpy(), before)
    np.testing.assert_allclose(second.moving_mean.numpy(), estimate, rtol=1e-4, atol=1e-5)


def test_averages_that_have_settled_are_left_alone() -> None:
    model = network()
    assert len(unsettled(model, 65)) == 2
    assert unsettled(model, 66) == []
    model.get_layer("second").trainable = False
    assert [layer.name for layer in unsettled(model, 1)] == ["first"]
    before = model.get_weights()

    def never(epoch: int) -> list:
        raise AssertionError("no batch is needed")

    Averages(never).enter(model, 0, 66)
    for now, was in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, was)


@pytest.mark.slow
def test_a_short_training_keeps_a_model_that_is_as_right_as_training_was(tmp_path: Path) -> None:
    recipe = SMALL.replace(epochs=4, learning_rate=0.05, warmup_epochs=0.0)
    run = fit(recipe, tmp_path / "run", verbose=0)
    best = run.history[run.results["best_epoch"] - 1]
    assert best["accuracy"] > 0.5
    assert run.results["training_accuracy"] > best["accuracy"] - 0.05


@pytest.mark.slow
def test_a_short_training_keeps_estimates_and_goes_on_with_its_own_averages(tmp_path: Path) -> None:
    run = fit(TINY.replace(epochs=1, batch_norm=True), tmp_path / "run", verbose=0)
    model = run.model()
    convolution = keras.Model(model.inputs, model.get_layer("block1_conv1").output)
    train = load_source(run.recipe).train
    batches = data.evaluation_dataset(train, 64, evaluation_transform(run.recipe))
    images = np.concatenate([images for images, _ in batches.as_numpy_iterator()])
    variance = convolution.predict(images, verbose=0).var(axis=(0, 1, 2))
    kept = model.get_layer("block1_conv1_bn").moving_variance.numpy()
    np.testing.assert_allclose(kept, variance, rtol=0.15)
    (path,) = (run.directory / "checkpoints").glob("*.npz")
    with np.load(path) as arrays:
        (name,) = (n for n in arrays.files if n.endswith("block1_conv1_bn/moving_variance"))
        own = arrays[name]
    # After nine steps, it still holds 39 % of its first value, 1.
    assert not np.allclose(own, variance, rtol=0.15)


def test_the_kept_network_is_tested_on_some_training_images(
    tiny_run: Run, measured_images: int, monkeypatch
) -> None:
    """As evaluation sees them, spread over the split; the constant says how many."""
    assert measured_images == 1000
    monkeypatch.setattr(outcome, "_MEASURED_IMAGES", 40)
    source = load_source(tiny_run.recipe)
    train = source.train
    assert train.size > 40
    prepared = SimpleNamespace(source=source, class_weights=None)
    batches = data.evaluation_dataset(train.spread(40), 40, evaluation_transform(tiny_run.recipe))
    (images, labels), *rest = batches.as_numpy_iterator()
    assert (len(labels), rest) == (40, [])
    right = np.asarray(tiny_run.model()(images)).argmax(axis=1) == labels
    asked = []
    evaluation_dataset = data.evaluation_dataset
    monkeypatch.setattr(
        data,
        "evaluation_dataset",
        lambda split, *rest: asked.append(split.size) or evaluation_dataset(split, *rest),
    )
    assert outcome._training_figure(tiny_run, prepared) == pytest.approx(right.mean())
    assert asked == [40]
    counts = np.bincount(train.labels)
    weights = 1 / counts[labels]  # as training's own accuracy with balanced batches
    balanced = Run(tiny_run.directory, tiny_run.recipe.replace(sampling="balanced"))
    expected = np.average(right, weights=weights)
    assert outcome._training_figure(balanced, prepared) == pytest.approx(expected)


@pytest.mark.slow
def test_a_training_image_that_is_gone_is_named_at_the_end(tiny_run: Run, tmp_path: Path) -> None:
    paths = np.array([str(tmp_path / "gone.png")], dtype=object)
    train = data.Split("train", 1, labels=np.zeros(1, np.int32), paths=paths)
    source = data.Source("folder", tiny_run.class_names, train, None, None)
    prepared: Any = SimpleNamespace(source=source, class_weights=None)
    with pytest.raises(ValueError, match=r"gone\.png"):
        outcome._training_figure(tiny_run, prepared)


@pytest.mark.slow
def test_training_goes_on_with_averages_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """What is trained is the same, bit for bit, with and without estimates for validations."""
    fit(SMALL, tmp_path / "with", verbose=0)
    monkeypatch.setattr(Averages, "enter", lambda *arguments: None)
    fit(SMALL, tmp_path / "without", verbose=0)
    name = "checkpoints/epoch-000002.npz"
    kept, plain = (np.load(tmp_path / run / name) for run in ("with", "without"))
    pairs = [
        (key, kept[other], plain[key])
        for key, other in zip(plain.files, kept.files, strict=True)
        if key.split(" ")[0].isdigit()
    ]
    assert len(pairs) > 30
    assert [key for key, one, other in pairs if not np.array_equal(one, other)] == []


# --- what a run has learned ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "images", "share", "explained"),
    [
        (0.27, 100, 0.25, True),
        (0.40, 100, 0.25, False),
        (0.34, 100, 0.25, False),
        (0.32, 100, 0.25, True),
        (0.10, 100, 0.25, True),
        (0.79, 29, 24 / 29, True),
        (0.5, 4, 0.5, False),  # even four right answers may be luck
        (1.0, 10, 0.5, False),
    ],
)
def test_an_accuracy_that_one_answer_has_is_explained(
    accuracy: float, images: int, share: float, explained: bool
) -> None:
    assert verdict.Commonest("cat", share, images).explains(accuracy) is explained


def test_too_few_images_to_tell() -> None:
    few = verdict.Commonest("cat", 0.5, 4)
    assert not few.can_be_beaten
    assert few.too_few_line() == (
        "4 validation images are too few to say whether this network is better than always "
        "answering 'cat' (50.00% of 4 images)"
    )
    assert verdict.Commonest("cat", 0.5, 5).can_be_beaten


def test_it_is_looked_at_after_warm_up_and_ever_more_rarely() -> None:
    recipe = Recipe(warmup_epochs=2.5, epochs=40)
    assert [e for e in range(1, 41) if verdict.is_due(e, recipe)] == [3, 4, 6, 10, 18, 34]
    recipe = Recipe(warmup_epochs=0, epochs=10)
    assert [e for e in range(1, 11) if verdict.is_due(e, recipe)] == [1, 2, 4, 8]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 1e-6])
def test_a_useless_run_says_so_and_what_to_change(rate: float, tmp_path: Path, capsys) -> None:
    recipe = SMALL.replace(
        configuration="D",
        batch_norm=False,
        initialization="glorot_uniform",
        learning_rate=rate,
        epochs=3,
        warmup_epochs=1.0,
    )
    fit(recipe, tmp_path / "run", verbose=2)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert sum(line.startswith("after epoch 1, validation accuracy") for line in lines) == 1
    assert sum(line.startswith("after epoch 2, validation accuracy") for line in lines) == 1
    assert "no better than always answering" in out
    last, changes = lines[-2:]
    assert last.startswith("this network is of no use: its best validation accuracy, ")
    assert "--batch-norm True" in changes
    assert f"another --learning-rate than {rate:g}: the loss has hardly moved" in changes


def test_few_images_leave_open_whether_a_good_network_is_better() -> None:
    baseline = verdict.Commonest("cat", 0.4, 5)
    assert baseline.explains(0.8)
    assert baseline.line(0.8, 1) == (
        "after epoch 1, validation accuracy 80.00% is not clearly better than always answering "
        "'cat' (40.00% of 5 images)"
    )
    assert "5 validation images are too few to say" in baseline.final_line(0.8)
    assert "is of no use" in baseline.final_line(0.4)
    # With many images, an accuracy that luck explains is never far above.
    many = verdict.Commonest("cat", 0.1, 145)
    assert not any(many.leaves_open(k / 145) and many.explains(k / 145) for k in range(146))


def test_after_one_epoch_the_loss_has_had_no_time_to_move() -> None:
    row = {"loss": 2.3, "accuracy": 0.1}
    assert verdict.advice(Recipe(epochs=1), [row], 0.1) == "try more --epochs than 1"


@pytest.mark.parametrize(
    ("accuracies", "losses", "expected"),
    [
        ((0.1, 0.1), (2.3, 2.3), "another --learning-rate than 0.01: the loss has hardly moved"),
        ((0.1, 0.1), (9.0, 2.3), "a lower --learning-rate than 0.01, or more --epochs"),
        ((0.2, 0.9), (2.3, 0.4), "90.00%, so the network learns what does not carry over: check"),
    ],
)
def test_advice_follows_the_loss_and_training_accuracy(accuracies, losses, expected) -> None:
    history = [{"accuracy": a, "loss": b} for a, b in zip(accuracies, losses, strict=True)]
    assert expected in verdict.advice(Recipe(learning_rate=0.01), history, 0.1)


def test_advice_compares_balanced_accuracy_with_its_baseline() -> None:
    """90 % of the images are of one class, which the network always answers."""
    row = {"epoch": 1, "loss": 0.33, "accuracy": 0.9, "balanced_accuracy": 0.5}
    row |= {"val_loss": 0.33, "val_accuracy": 0.9, "val_balanced_accuracy": 0.5}
    recipe = Recipe(select_by="balanced_accuracy", epochs=3)
    assert "the loss has hardly moved" in verdict.advice(recipe, [row, row], 0.5)
    said = verdict.advice(recipe, [row | {"balanced_accuracy": 0.8}], 0.5)
    assert said.startswith("training balanced accuracy is 80.00%, so the network learns what does")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"initialization": "glorot"}, "(a network as deep as D does not begin to learn "),
        ({"initialization": "normal:0.01"}, "(a network as deep as D does not begin to learn "),
        ({"initialization": "he_uniform"}, "(a network as deep as D may not begin to learn "),
        ({"initialization": "runs/a"}, None),
        ({"configuration": "B"}, None),
        ({"init": "imagenet"}, None),
        ({"batch_norm": True}, None),
    ],
)
def test_advice_names_nothing_that_the_recipe_has(changes, expected) -> None:
    recipe = Recipe(configuration="D", batch_norm=False).replace(**changes)
    history = [{"accuracy": 0.1, "loss": 2.3}] * 2
    said = verdict.advice(recipe, history, 0.1)
    assert "another --learning-rate" in said
    assert ("--batch-norm" in said) == ("begin to learn" in said) == (expected is not None)
    assert (expected or "") in said


@pytest.mark.slow
def test_a_run_that_learns_says_nothing(tmp_path: Path, capsys) -> None:
    fit(SMALL.replace(epochs=3, learning_rate=0.05), tmp_path / "run", verbose=2)
    out = capsys.readouterr().out
    assert "no better" not in out
    assert "of no use" not in out
    assert "training reported" not in out


@pytest.mark.parametrize(
    ("own", "evaluated", "batch_norm", "expected"),
    [
        (1.0, 0.67, True, "batch norm's moving averages do not fit the weights after 20 batches"),
        (0.9, 0.5, False, "compare train_scale (32, 40) with eval_scale 36"),
        (0.6, 0.58, True, None),
        (0.5, 0.9, True, None),
    ],
)
def test_the_kept_model_is_compared_with_training(
    own: float, evaluated: float, batch_norm: bool, expected: str | None
) -> None:
    line = verdict.gap_line(Recipe(batch_norm=batch_norm), own, evaluated, 300, 20)
    assert (expected in line) if expected else line is None


def test_a_gap_names_the_crops_that_the_recipe_has() -> None:
    recipe = SMALL.replace(batch_norm=False)
    line = verdict.gap_line(recipe, 0.9, 0.5, 1000, 60)
    assert line is not None
    assert line.endswith("compare train_scale (32, 40) with eval_scale 36")
    line = verdict.gap_line(recipe.replace(crop_area=(0.2, 1.0)), 0.9, 0.5, 1000, 60)
    assert line is not None
    assert line.endswith("compare crop_area (0.2, 1.0) with eval_scale 36")


def test_estimates_are_not_blamed_as_moving_averages() -> None:
    line = verdict.gap_line(Recipe(batch_norm=True), 1.0, 0.6, 300, 20, estimated=True)
    assert line is not None
    assert "moving averages" not in line
    assert "use larger batches or a lower learning rate" in line


# --- a small set -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_set_has_smaller_batches_and_the_recipe_stays(tmp_path: Path, capsys) -> None:
    recipe = SMALL.replace(test_fraction=0.98, validation_fraction=0.3, batch_size=64)
    images = data.load_source("digits", test_fraction=0.98, validation_fraction=0.3).train.size
    assert images < 64
    run = fit(recipe, tmp_path / "run", verbose=2)
    line = f"batches of {images}: there are {images} training images, fewer than batch_size (64)"
    assert line in capsys.readouterr().out.splitlines()
    assert run.recipe.batch_size == 64
    assert fit(recipe, tmp_path / "run", verbose=0).history == run.history

"""keras_vgg.fit.distillation: the teachers' answers, the loss, and teachers that do not fit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import hardware
from keras_vgg.cli import _parse
from keras_vgg.fit import compile_model, distillation, fit, load_source, preparation
from keras_vgg.fit.distillation import Teacher, softened, teach
from keras_vgg.fit.frozen import varies
from keras_vgg.fit.inputs import validation_data
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs import evaluate_runs, export_run
from tests import test_fit
from tests.other_backends import on_jax
from tests.test_fit import checkpoint_arrays
from tests.test_optimizer import Killed
from tests.test_survive import assert_same

pytestmark = pytest.mark.usefixtures("blank_plots")

ENGINE = hardware.Engine(("cpu:0",), "float32", False)
DIGITS = tuple("0123456789")
KEPT = test_fit.TINY.replace(
    batch_norm=True,
    epochs=1,
    optimizer="adamw",
    learning_rate=0.003,
    weight_decay=0.05,
    clip_norm=1.0,
    ema_momentum=0.9,
    checkpoint_steps=2,
)


def network(size: int, classes: int, activation: str, channels: int = 3) -> keras.Model:
    inputs = keras.Input((size, size, channels))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Flatten()(x)
    penalty = keras.regularizers.L2(0.01)
    return keras.Model(
        inputs, keras.layers.Dense(classes, activation, kernel_regularizer=penalty)(x)
    )


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_loss_is_hintons_for_the_mean_of_the_teachers(tiny_run: Run) -> None:
    recipe = Recipe(distillation_weight=0.7, distillation_temperature=3.0, weight_decay=0.0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 8, 3)).astype("uint8")
    labels = np.eye(3, dtype="float32")[[0, 1, 2, 0, 1]]
    weights = np.array([1, 2, 1, 0, 1], "float32")
    model, first, second = (network(8, 3, "softmax") for _ in range(3))
    compile_model(model, recipe, ENGINE)
    orders = (np.array([2, 0, 1]), np.array([0, 1, 2]))
    teachers = [
        Teacher(tiny_run, teacher, order)
        for teacher, order in zip((first, second), orders, strict=True)
    ]
    plain = float(model.compute_loss(images, labels, model(images), weights))
    teach(model, teachers, recipe)
    answers = model(images)
    own = answers.numpy()
    crossentropy = -(labels * np.log(own)).sum(axis=1)
    target = np.mean(
        [
            tempered(teacher(images).numpy()[:, order], 3.0)
            for teacher, order in zip((first, second), orders, strict=True)
        ],
        axis=0,
    )
    divergence = (target * np.log(target / tempered(own, 3.0))).sum(axis=1)
    regularization = float(sum(model.losses))
    hard, soft = ((weights * value).mean() for value in (crossentropy, divergence))
    assert plain == pytest.approx(hard + regularization, rel=1e-5)
    found = float(model.compute_loss(images, labels, answers, weights))
    assert found == pytest.approx(0.3 * hard + 0.7 * 9 * soft + regularization, rel=1e-5)
    validation = model.compute_loss(images, labels, answers, weights, training=False)
    assert float(validation) == pytest.approx(plain)


def test_a_run_says_how_many_of_its_images_a_teacher_knows() -> None:
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, keras.layers.Softmax()(inputs[:, 0, 0]))  # the brightest channel
    recipe = Recipe(image_size=64, train_scale=(64, 80), eval_scale=64)
    run = SimpleNamespace(directory="runs/t", results={"validation_accuracy": 0.9}, recipe=recipe)
    teacher = Teacher(cast("Run", run), model, np.array([2, 0, 1]))
    labels = np.arange(100) % 3
    images = np.zeros((100, 4, 4, 3), "uint8")
    images[np.arange(100), :, :, teacher.order[labels]] = 9
    targets = np.eye(3, dtype="float32")[labels]
    told = "teacher runs/t: {} augmented training images are right, and 90% of its own validation"

    def lines(wrong: int, batches: int, **own: object) -> list[str]:
        shown = np.concatenate([images[1 : wrong + 1], images[wrong:]])  # those of the next images
        learner = Recipe(**({"train_scale": None, "crop_padding": 4, "eval_scale": None} | own))
        pairs = [(tf.constant(shown), targets)] * batches
        return distillation.accuracy_lines([teacher], pairs, learner)

    assert lines(0, 9) == [f"{told.format('100% of 300')} images"]
    assert lines(14, 2) == [f"{told.format('86% of 200')} images"]
    line, advice = lines(20, 1)
    assert line == f"{told.format('80% of 100')} images"
    assert advice.startswith("this augmentation makes images that the teacher does not know")
    alike = {"train_scale": (32, 40), "eval_scale": 36, "crop_padding": 0}
    assert lines(20, 1, **alike) == [line]
    assert len(lines(20, 1, **alike, cutout=0.5)) == 2


def test_at_its_own_temperature_a_probability_stays_and_extremes_are_finite() -> None:
    values = np.array([[0.0, 1.0], [0.25, 0.75]], "float32")
    for several in (False, True):
        same = softened(values, 1.0, several).numpy()
        np.testing.assert_allclose(same, values, atol=2e-7)
        hot = softened(values, 10.0, several).numpy()
        assert np.isfinite(hot).all()
        assert (np.abs(hot[1] - 0.5) < 0.1).all()


@pytest.mark.parametrize(("before", "after"), [(64, 32), (32, 48), (40, 32), (32, 33)])
def test_a_teachers_size_is_tensorflows_resize(before: int, after: int) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, before, before, 3)).astype("float32")
    matrix = distillation.resampling(before, after)
    found = np.einsum("ih,nhwc,jw->nijc", matrix, images, matrix)
    expected = tf.image.resize(images, (after, after), antialias=True).numpy()
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize(("own", "theirs"), [(1, 3), (3, 1)])
def test_a_teacher_may_have_other_channels(own: int, theirs: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, own)).astype("uint8")
    teacher = network(6, 3, "softmax", theirs)
    grey = images @ np.array([0.299, 0.587, 0.114], "float32") if own == 3 else images[..., 0]
    expected = teacher(np.repeat(grey[..., None], theirs, axis=-1).astype("float32"))
    np.testing.assert_allclose(distillation._answer(teacher, images), expected, rtol=1e-5)


# --- teachers that do not fit ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            (*DIGITS[:9], "ten", "eleven"),
            r"teacher .* must have the classes of the data, but lacks eleven, ten and has also 9",
        ),
        (DIGITS[:9], "must have the classes of the data, but has also 9"),
        (tuple("abcdefghij"), r"lacks a, b, c, \.\.\. and has also 0, 1, 2, \.\.\."),
    ],
    ids=["another", "fewer", "other"],
)
def test_a_teacher_of_other_classes_is_refused_by_name(
    tiny_run: Run, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        distillation.load_teachers([str(tiny_run.directory)], names)


def test_classes_are_matched_by_name(tiny_run: Run) -> None:
    (teacher,) = distillation.load_teachers([str(tiny_run.directory)], DIGITS[::-1])
    assert teacher.order.tolist() == [*range(9, -1, -1)]
    assert not teacher.model.trainable_variables


def test_classes_of_one_name_keep_their_places(tiny_run: Run, tmp_path: Path) -> None:
    names = ["crane", *DIGITS[1:9], "crane"]
    run = Run.open(shutil.copytree(tiny_run.directory, tmp_path / "run"))
    run.write_json("data.json", run.read_json("data.json") | {"class_names": names})
    (teacher,) = distillation.load_teachers([str(run.directory)], names)
    assert teacher.order.tolist() == [*range(10)]
    with pytest.raises(ValueError, match="a name is that of two classes, so they cannot be match"):
        distillation.load_teachers([str(run.directory)], [names[1], names[0], *names[2:]])


def test_what_is_no_teacher(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        distillation.load_teachers(["nowhere"], DIGITS)
    with pytest.raises(ValueError, match="with one label, but an image of this data has several"):
        distillation.load_teachers([str(tiny_run.directory)], DIGITS, several_labels=True)
    run = Run.open(shutil.copytree(tiny_run.directory, tmp_path / "run"))
    (run.directory / "results.json").unlink()
    with pytest.raises(ValueError, match="has not finished training; resume it first"):
        distillation.load_teachers([str(run.directory)], DIGITS)


def test_a_teacher_that_changes_ends_the_resume(tiny_run: Run, tmp_path: Path) -> None:
    teachers = distillation.open_teachers([str(tiny_run.directory)], DIGITS)
    run = Run(tmp_path, tiny_run.recipe)
    run.write_json(distillation.FILE, distillation.describe(teachers))
    distillation.require_same_teachers(run, teachers)
    changed = run.read_json(distillation.FILE)
    changed["teachers"][0]["sha256"] = "0" * 64
    run.write_json(distillation.FILE, changed)
    with pytest.raises(ValueError, match=r"the network of teacher .* has changed since"):
        distillation.require_same_teachers(run, teachers)


def test_another_split_is_said(tiny_run: Run) -> None:
    (teacher,) = distillation.load_teachers([str(tiny_run.directory)], DIGITS)
    described = tiny_run.read_json("data.json")
    assert len(teacher.lines(described)) == 1
    other = {**described, "splits": {}}
    assert "was trained on another split" in teacher.lines(other)[1]


def test_the_command_line_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = _parse("train", ["--workdir", "run", "--teacher", "a", "runs/b"])
    assert command.recipe.teachers == ("a", "runs/b")
    absolute = command.recipe.with_absolute_paths()
    assert absolute.teachers == (str(tmp_path / "a"), str(tmp_path / "runs" / "b"))
    assert Recipe.from_json(absolute.to_json()) == absolute
    frozen = Recipe(train_scale=(32, 32), eval_scale=32)
    assert varies(frozen.replace(teachers=("a",))) == ["teachers"]


# --- training --------------------------------------------------------------------------------


def test_a_training_learns_from_its_teachers(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise InterruptedError("taught")

    monkeypatch.setattr(preparation.distillation, "teach", stop)
    recipe = test_fit.TINY.replace(teachers=(str(tiny_run.directory),))
    with pytest.raises(InterruptedError, match="taught"):
        fit(recipe, tmp_path / "run", verbose=0)


@pytest.mark.slow
def test_the_averaged_pupil_is_what_is_kept_and_evaluated(tiny_run: Run, tmp_path: Path) -> None:
    """One training with a teacher, averages, AdamW and a cut gradient."""
    recipe = KEPT.replace(teachers=(str(tiny_run.directory),))
    run = fit(recipe, tmp_path / "run", verbose=0)
    (teacher,) = run.read_json(distillation.FILE)["teachers"]
    assert teacher["source"] == str(tiny_run.directory)
    arrays = {name.split(" ", 1)[-1]: value for name, value in checkpoint_arrays(run).items()}
    model = run.model()
    kept = {v.path: keras.ops.convert_to_numpy(v) for v in model.variables}
    for variable in model.trainable_variables:
        key = f"adam_w/{variable.path.replace('/', '_')}_average"
        np.testing.assert_array_equal(kept[variable.path], arrays[key], err_msg=variable.path)
    for name in ("block1_conv1/kernel", "block1_conv1_bn/moving_mean"):
        assert not np.array_equal(kept[name], arrays[name])
    (evaluation,) = evaluate_runs([run], "validation")
    accuracy = (evaluation.probabilities.argmax(axis=1) == evaluation.labels).mean()
    assert accuracy == pytest.approx(run.history[0]["val_accuracy"])
    assert not any("average" in v.path for v in model.variables)
    (artifact,) = export_run(run, formats=["saved_model"], images=8)
    images, _ = next(iter(validation_data(recipe, load_source(recipe))))
    served = tf.saved_model.load(str(artifact.path)).signatures["serving_default"]
    answers = served(images=tf.cast(images, tf.float32))["probabilities"]
    np.testing.assert_allclose(answers, model(images), atol=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_with_a_teacher_it_ends_as_if_it_had_not_been(
    tiny_run: Run, tmp_path: Path
) -> None:
    recipe = test_fit.TINY.replace(
        epochs=2, teachers=(str(tiny_run.directory),), ema_momentum=0.9, checkpoint_steps=2
    )
    whole = fit(recipe, tmp_path / "whole", verbose=0)
    plain = fit(dataclasses.replace(recipe, teachers=()), tmp_path / "plain", verbose=0)
    assert whole.history[0]["loss"] != plain.history[0]["loss"]
    with pytest.raises(InterruptedError):
        fit(recipe, tmp_path / "run", verbose=0, callbacks=[Killed(5)])
    assert_same(fit(recipe, tmp_path / "run", verbose=0), whole)


@pytest.mark.slow
def test_several_labels_have_teachers_too(tmp_path: Path) -> None:
    """The divergence is Keras' binary cross-entropy, which a network equal to its teacher has."""
    recipe = Recipe(distillation_weight=1.0, distillation_temperature=2.0)
    model, teacher = (network(8, 3, "sigmoid") for _ in range(2))
    compile_model(model, recipe, ENGINE, several_labels=True)
    teach(model, [Teacher(Run(tmp_path, recipe), teacher, np.arange(3))], recipe, True)
    images = np.random.default_rng(0).uniform(0, 255, (64, 8, 8, 3)).astype("float32")
    labels = np.zeros((64, 3), "float32")
    before = float(np.abs(model(images) - teacher(images)).mean())
    for _ in range(200):
        model.train_on_batch(images, labels)
    assert float(np.abs(model(images) - teacher(images)).mean()) < before / 2


ON_JAX = """
import sys
import keras, numpy as np
from keras_vgg.fit import fit
from tests.test_distillation import KEPT, Killed, assert_same
from tests.test_fit import checkpoint_arrays

folder, teacher = sys.argv[1:]
recipe = KEPT.replace(teachers=(teacher,), unmixed_epochs=1, cutmix=1.0, epochs=2)
whole = fit(recipe, f"{folder}/whole", verbose=0)
try:
    fit(recipe, f"{folder}/run", verbose=0, callbacks=[Killed(5)])
except InterruptedError:
    assert_same(fit(recipe, f"{folder}/run", verbose=0), whole)
    print(keras.backend.backend(), "the same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("changes", ["", ", optimizer='muon', gradient_accumulation=2"])
def test_averages_teachers_and_a_resume_on_jax(tiny_run: Run, tmp_path: Path, changes: str) -> None:
    pytest.importorskip("jax")
    script = ON_JAX.replace("epochs=2)", f"epochs=2{changes})")
    printed = on_jax("-c", script, str(tmp_path), str(tiny_run.directory))
    assert printed.splitlines()[-1:] == ["jax the same"]

"""A recipe's resize and bit_depth hold wherever a run is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import export, runs
from keras_vgg.demo import Answerer
from keras_vgg.explain import draw
from keras_vgg.export.saved_model import write_saved_model
from keras_vgg.fit import Run, describe, evaluation_transform, fit, load_source
from keras_vgg.recipe import Recipe
from tests.test_decode import png_of_16_bits

pytestmark = pytest.mark.usefixtures("blank_plots")

CLASSES = ("blue", "red")


def picture(class_name: str, seed: int) -> bytes:
    """A PNG of 40x300 pixels and 12 of 16 bits: dim noise, and a coloured square at one end."""
    values = np.random.default_rng(seed).integers(1000, 1100, (40, 300, 3), np.uint16)
    values[5:35, 2:60, 0 if class_name == "red" else 2] = 4000
    return png_of_16_bits(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        for class_name in CLASSES:
            path = folder / class_name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(picture(class_name, seed=number))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    recipe = Recipe(
        source=f"folder:{folder}",
        resize="squash",
        bit_depth="12",
        width_multiplier=1 / 16,
        head="gap",
        batch_size=8,
        learning_rate=0.02,
        epochs=6,
        validation_fraction=0.25,
        test_fraction=0.25,
    )
    return fit(recipe, folder.parent / "run", verbose=0)


@pytest.mark.slow
def test_a_run_finds_its_images_from_any_folder(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    relative = run.recipe.replace(source=f"folder:{folder.name}", epochs=1)
    trained = fit(relative, tmp_path / "run", verbose=0)
    assert trained.recipe.source == Run.open(tmp_path / "run").recipe.source == f"folder:{folder}"

    monkeypatch.chdir(tmp_path)
    assert runs.evaluate_run(Run.open("run")).count == 12

    # A run of an earlier version, whose recipe has a relative path, is used and resumed.
    monkeypatch.chdir(folder.parent)
    old = Run(tmp_path / "run", relative)
    old.write_recipe()
    assert runs.evaluate_run(Run.open(old.directory)).count == 12
    (old.directory / "results.json").unlink()
    assert fit(relative, old.directory, verbose=0).finished
    with pytest.raises(ValueError, match=r"another recipe .*source"):
        fit(relative.replace(source="folder:elsewhere"), old.directory, verbose=0)


def classify(saved_model: Path, files: list[Path]) -> list[list[tuple[str, float]]]:
    signature = tf.saved_model.load(str(saved_model)).signatures["classify"]
    answers = signature(image_bytes=tf.constant([file.read_bytes() for file in files]))
    return [
        [(name.decode(), float(share)) for name, share in zip(*rows, strict=True)]
        for rows in zip(answers["classes"].numpy(), answers["probabilities"].numpy(), strict=True)
    ]


def require_equal(
    answers: list[list[tuple[str, float]]], expected: list[list[tuple[str, float]]]
) -> None:
    for answer, other in zip(answers, expected, strict=True):
        assert [name for name, _ in answer] == [name for name, _ in other]
        shares = [[share for _, share in ranked] for ranked in (answer, other)]
        np.testing.assert_allclose(*shares, atol=1e-5)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("resize", "sees_it"), [("squash", True), ("pad", True), ("crop", False)])
def test_whether_the_ends_of_a_long_image_are_seen(
    resize: str, sees_it: bool, varied_run: Run
) -> None:
    run = Run(varied_run.directory, varied_run.recipe.replace(resize=resize))
    image = np.zeros((40, 300, 3), np.uint8)
    image[5:35, 2:60] = 255
    view = evaluation_transform(run.recipe)(image)
    assert (np.max(view) > 200) == sees_it
    answer = Answerer(run).of_image(image)
    assert (answer.seen > 0.75) == sees_it
    assert (answer.seen < 0.3) == (not sees_it)
    probabilities = np.asarray(run.model()(view[np.newaxis]))[0]
    name, probability = answer.classes[0]
    assert name == run.class_names[probabilities.argmax()]
    assert probability == pytest.approx(probabilities.max(), abs=1e-5)


@pytest.mark.slow
def test_an_object_at_one_end_is_seen_by_every_use_of_a_squashing_run(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [folder / class_name / f"{n}.png" for n in (0, 1) for class_name in CLASSES]
    expected = [file.parent.name for file in files]

    for protocol in ("center", "dense", "multi-crop"):
        assert runs.evaluate_run(run, protocol=protocol).top1 == 1

    predicted = runs.predict_files(run, files)
    assert [ranked[0][0] for ranked in predicted] == expected

    runs.export_run(run, tmp_path / "export", formats=["saved_model"], images=4)
    require_equal(classify(tmp_path / "export" / "saved_model", files), predicted)

    answerer = Answerer(run)
    answers = [answerer.of_file(file) for file in files]
    require_equal([answer.classes for answer in answers], predicted)
    assert min(answer.seen for answer in answers) > 0.75

    drawn: dict = {}
    monkeypatch.setattr(draw, "draw_heats", lambda path, image, heats, **rest: drawn.update(rest))
    runs.explain_files(run, files[:1], out=tmp_path / "explain")
    top, left, height, width = drawn["seen"]
    assert (top, left) == pytest.approx((40 / 18, 300 / 18), abs=0.2)
    assert (height, width) == pytest.approx((40 * 8 / 9, 300 * 8 / 9), abs=0.2)


@pytest.mark.slow
def test_a_padding_run_sees_the_object_and_a_cropping_run_does_not(
    run: Run, tmp_path: Path
) -> None:
    files = []
    for number in range(24):
        for channel, class_name in ((0, "red"), (2, "blue")):
            values = np.random.default_rng(number).integers(500, 2500, (40, 120, 3), np.uint16)
            values[2:38, 2:38] = 0
            values[2:38, 2:38, channel] = 4000
            files.append(tmp_path / "pictures" / class_name / f"{number}.png")
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            files[-1].write_bytes(png_of_16_bits(values))
    recipe = run.recipe.replace(source=f"folder:{tmp_path / 'pictures'}")
    right, answers = {}, {}
    for resize in ("pad", "crop"):
        other = fit(recipe.replace(resize=resize), tmp_path / resize, verbose=0)
        right[resize] = [runs.evaluate_run(other, protocol=p).top1 for p in ("center", "dense")]
        answerer = Answerer(other)
        answers[resize] = [answerer.of_file(file) for file in files[:4]]
    assert right["pad"] == [1, 1]
    named = [answer.classes[0][0] for answer in answers["pad"]]
    assert named == [file.parent.name for file in files[:4]]
    assert min(answer.seen for answer in answers["pad"]) > 0.75
    # Half is chance: the network is given the middle, where there is nothing.
    assert right["crop"][0] < 0.8
    assert max(answer.seen for answer in answers["crop"]) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("resize", "bit_depth"), [("pad", "stretch"), ("squash", "stretch")])
def test_classify_answers_like_predict(
    resize: str,
    bit_depth: str,
    run: Run,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    other = Run(tmp_path / "run", run.recipe.replace(resize=resize, bit_depth=bit_depth))
    other.write_recipe()
    other.write_json("data.json", describe(load_source(other.recipe)))
    asked: dict = {}
    monkeypatch.setattr(export, "export", lambda *_, **options: asked.update(options))
    runs.export_run(other, images=1)
    write_saved_model(
        other.model(),
        tmp_path / "saved_model",
        other.class_names,
        transform=asked["transform"],
        bit_depth=asked["bit_depth"],
    )
    tall = tmp_path / "tall.jpg"
    ramp = np.mgrid[0:300, 0:40].sum(0, dtype=np.uint8)
    tall.write_bytes(tf.io.encode_jpeg(np.stack([ramp, ramp // 2, 255 - ramp], 2)).numpy())
    files = [folder / "red" / "0.png", folder / "blue" / "1.png", tall]

    require_equal(classify(tmp_path / "saved_model", files), runs.predict_files(other, files))

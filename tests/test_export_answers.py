"""Calibrated exports, what a file states of itself, and answers without this package."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import ImagePreprocessing, Predictor, augment, cli, export, export_run, runs, vgg
from keras_vgg.data.split import pictures_of
from keras_vgg.evaluation.temperature import apply_temperature
from keras_vgg.run import Run
from keras_vgg.runs.calibration import calibrate_run, calibration_remarks, read_calibration
from keras_vgg.runs.few_images import few_images_text
from keras_vgg.runs.images import open_split
from tests import pages
from tests.test_predict import array


@pytest.fixture(scope="module")
def run(varied_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose images are rescaled and cropped, with a temperature."""
    folder = tmp_path_factory.mktemp("answers") / "run"
    run = Run.open(shutil.copytree(varied_run.directory, folder))
    calibrate_run(run, shares=[0.8])
    return run


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "exported"
    export_run(run, folder, formats=["litert"], images=20, calibrated=True)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth picture of 61 x 87 that Exif turns on its side."""
    rows, columns = np.mgrid[0:61, 0:87]
    waves = [127 + 120 * np.sin(rows / a + columns / b) for a, b in ((9, 7), (5, 11), (13, 6))]
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(path)
    return path


@pytest.mark.slow
def test_a_share_of_many_digits_is_found_again(varied_run: Run, tmp_path: Path) -> None:
    run = Run.open(shutil.copytree(varied_run.directory, tmp_path / "run"))
    calibrate_run(run, shares=[2 / 3])
    assert tuple(Predictor(run, unknown=2 / 3).class_names) == tuple(run.class_names)


def test_calibration_json(run: Run):
    (evaluation,) = runs.evaluate_runs([run], "validation")
    kept = json.loads((run.directory / "calibration.json").read_text())

    assert kept["split"] == "validation"
    assert kept["images"] == evaluation.count
    assert kept["nll"]["after"] <= kept["nll"]["before"]
    assert set(kept["thresholds"]) == {"0.8", "0.9", "0.95", "0.99"}
    assert len(kept["model_sha256"]) == 64
    few = kept["few_images"]
    assert "the temperature and the thresholds are from few validation images" in few
    assert "fewer than 10 of a class" in few
    calibrated = apply_temperature(evaluation.probabilities, kept["temperature"])
    for kind, probabilities in (
        ("calibrated", calibrated),
        ("uncalibrated", evaluation.probabilities),
    ):
        share = np.mean(probabilities.max(axis=1) >= kept["thresholds"]["0.8"][kind])
        assert 0.8 <= share < 0.8 + 1 / 50


@pytest.mark.parametrize(
    ("counts", "images", "expected"),
    [
        ((60, 40), None, ""),
        ((99, 0), None, "(99 in all, fewer than 100; fewer than 10 of a class: 0 of dog)"),
        ((91, 9), None, "(fewer than 10 of a class: 9 of dog)"),
        ((50, 49), None, "(99 in all, fewer than 100)"),
        ((12, 10), 100, ""),
        ((3, 2), 5, "(5 in all, fewer than 100; fewer than 10 of a class: 3 of cat, 2 of dog)"),
    ],
)
def test_few_images_are_said(counts, images, expected: str):
    text = few_images_text("the thresholds", ("cat", "dog"), counts, images)
    assert (expected in text) if expected else (text == "")


def test_few_images_of_many_classes_are_one_line():
    names = [f"class {number}" for number in range(1000)]
    text = few_images_text("the thresholds", names, [5] * 1000)
    assert "5 of class 0, 5 of class 1, 5 of class 2 and of 997 other classes)" in text
    assert "5,000 in all" not in text


def test_predict_uses_the_temperature_unless_told_otherwise(run: Run, photo: Path, capsys):
    (own,) = Predictor(run, calibrated=False)([photo])
    (answer,) = Predictor(run)([photo])

    calibration = read_calibration(run)
    assert calibration is not None
    expected = apply_temperature(array(own)[np.newaxis], calibration.temperature)[0]
    np.testing.assert_allclose(array(answer), expected, atol=1e-7)
    assert cli.main(["predict", str(run.directory), str(photo), "--format", "csv"]) == 0
    err = capsys.readouterr().err
    assert "probabilities are calibrated: temperature" in err
    assert calibration.few_images in err


def test_unknown_below_the_threshold_of_a_share(run: Run, capsys):
    images = list(pictures_of(open_split(run, "validation")))

    names = [answer.name for answer in Predictor(run, unknown=0.8)(images)]

    kept = sum(name != "unknown" for name in names)
    assert np.ceil(0.8 * len(images)) <= kept < 0.8 * len(images) + 3
    with pytest.raises(ValueError, match=r"none for 0\.7; repeat .* --unknown 0\.7"):
        Predictor(run, unknown=0.7)
    with pytest.raises(ValueError, match=r"a share above 0 and at most 1, such as 0\.95, not 95"):
        Predictor(run, unknown=95)


@pytest.mark.slow
def test_a_temperature_that_stays_1_does_not_calibrate(run: Run, tmp_path: Path, photo: Path):
    copy = Run.open(shutil.copytree(run.directory, tmp_path / "copy"))
    content = copy.read_json("calibration.json") | {"few_images": ""}
    why = "all 5 images are classified correctly"
    for note, told in ((why, f"are not calibrated: {why}"), ("", "are as the network gives them")):
        copy.write_json("calibration.json", content | {"temperature": 1.0, "note": note})
        (line,) = Predictor(copy).notes
        assert line.startswith(f"probabilities {told}")


def test_a_calibration_of_another_model_is_refused(run: Run, tmp_path: Path):
    other = Run.open(shutil.copytree(run.directory, tmp_path / "other"))
    kept = json.loads((other.directory / "calibration.json").read_text())

    other.write_json("calibration.json", kept | {"model_sha256": "0" * 64})
    with pytest.raises(ValueError, match="earlier model of the run; repeat `keras-vgg calibrate"):
        read_calibration(other)
    other.write_json("calibration.json", kept | {"thresholds": [1]})
    with pytest.raises(ValueError, match=r"calibration\.json cannot be read"):
        read_calibration(other)
    (other.directory / "calibration.json").unlink()
    with pytest.raises(ValueError, match=r"calibrated.* needs .*run `keras-vgg calibrate"):
        export_run(other, calibrated=True)
    for shares in ([0.0], [1.5], [-1]):
        with pytest.raises(ValueError, match="unknown must be a share above 0 and at most 1"):
            calibrate_run(other, shares=shares)


def test_calibrate_prints_what_it_keeps(run: Run, tmp_path: Path, capsys):
    copy = shutil.copytree(run.directory, tmp_path / "copy")

    assert cli.main(["calibrate", str(copy), "--unknown", "0.7"]) == 0

    out = capsys.readouterr().out
    for words in ("negative log-likelihood", "expected calibration error", "temperature", "0.7"):
        assert words in out
    assert "are from few validation images" in out
    assert calibration_remarks(Run.open(copy))[0].startswith("calibration.json: the temperature")
    kept = json.loads((copy / "calibration.json").read_text())
    assert set(kept["thresholds"]) == {"0.7", "0.8", "0.9", "0.95", "0.99"}  # 0.8 is from before
    # A file of an earlier version does not say how few its images were.
    earlier = {name: value for name, value in kept.items() if name != "few_images"}
    for fields in (earlier, kept | {"few_images": ""}, kept | {"model_sha256": "0" * 64}):
        Run.open(copy).write_json("calibration.json", fields)
        assert calibration_remarks(Run.open(copy)) == []
    Run.open(copy).write_json("calibration.json", earlier)
    assert read_calibration(Run.open(copy)).few_images == ""  # pyright: ignore[reportOptionalMemberAccess]
    assert cli.main(["calibrate", str(tmp_path)]) == cli.BAD_INPUT
    assert "is not a run directory" in capsys.readouterr().err


def test_a_file_states_what_it_expects(run: Run, exported: Path):
    with zipfile.ZipFile(exported / "model.tflite") as archive:
        stated = json.loads(archive.read("keras_vgg.json"))
        assert archive.read("labels.txt").decode().split() == list(run.class_names)
    record = json.loads((exported / "export.json").read_text())["description"]
    calibration = read_calibration(run)

    assert calibration is not None
    assert stated["scale"] == run.recipe.eval_scale_side == 36
    assert stated["resize"] == run.recipe.resize
    assert stated["input"]["shape"] == [None, 32, 32, 3]
    assert stated["input"]["dtype"] == "float32"
    assert stated["input"]["range"] == [0, 255]
    assert stated["temperature"] == calibration.temperature
    assert stated["unknown_below"]["0.95"] == calibration.threshold(0.95, True)
    assert stated["class_names"] == list(run.class_names)
    assert any("smallest side has 36 pixels" in step for step in stated["steps"])
    assert {**stated["input"], "dtype": None} == {**record["input"], "dtype": None}
    assert stated["steps"] == record["steps"]


@pytest.mark.parametrize("damaged", [b"PK\x01\x02", b'"class_names"'])  # the index; the content
def test_a_damaged_statement_is_one_line(damaged: bytes, exported: Path, tmp_path: Path):
    content = (exported / "model.tflite").read_bytes()
    path = tmp_path / "bad.tflite"
    path.write_bytes(content.replace(damaged, b"?" * len(damaged)))
    with pytest.raises(ValueError, match=r"bad\.tflite is damaged: Bad "):
        Predictor(path)


@pytest.mark.slow
def test_a_calibrated_file_answers_like_the_calibrated_run(run: Run, exported: Path, photo: Path):
    images = [photo, *pictures_of(open_split(run, "validation"))[:3]]
    expected = Predictor(run, unknown=0.95)(images)

    answers = Predictor(exported / "model.tflite", unknown=0.95)(images)

    for answer, of_run in zip(answers, expected, strict=True):
        np.testing.assert_allclose(array(answer), array(of_run), atol=1e-5)
        assert answer.threshold == pytest.approx(of_run.threshold)
        assert answer.class_names == of_run.class_names
    with pytest.raises(
        ValueError, match=r"states a threshold for 0\.8, 0\.9, 0\.95, 0\.99, not for"
    ):
        Predictor(exported / "model.tflite", unknown=0.5)
    (of_calibrated,) = Predictor(exported / "model.tflite", calibrated=True)([photo])
    np.testing.assert_array_equal(array(of_calibrated), array(answers[0]))


def test_a_temperature_inside_a_file_is_said_and_stays(exported: Path, photo: Path, capsys):
    command = ["predict", str(exported / "model.tflite"), str(photo), "--format", "csv"]
    assert cli.main(command) == 0
    assert "probabilities are calibrated: temperature" in capsys.readouterr().err
    assert cli.main([*command, "--no-calibrated"]) == cli.BAD_INPUT
    assert "predict with the run, or export without --calibrated" in capsys.readouterr().err


def of_channels(channels: int) -> keras.Model:
    return vgg(
        "A",
        weights=None,
        input_shape=(32, 32, channels),
        classes=3,
        width_multiplier=1 / 16,
        hidden_units=8,
        include_preprocessing=ImagePreprocessing.torchvision(),
        kernel_initializer="he_normal",
    )


def test_ten_lines_without_this_package(
    exported: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The script of the guide: Pillow, NumPy and ai_edge_litert."""
    (block,) = (
        block
        for block in pages.blocks((pages.ROOT / "docs" / "export.md").read_text(), "python")
        if "ImageOps" in block
    )
    script = block[block.index("# Without keras_vgg") :]
    assert "keras_vgg " not in script.split("\n", 1)[1]
    assert len([line for line in script.splitlines()[1:] if line and line[0] not in " )"]) <= 20
    shutil.copytree(exported, tmp_path / "exported")
    shutil.copy(photo, tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    (expected,) = Predictor(exported / "model.tflite")([photo])

    scope: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(script, "export.md", "exec"), scope)

    np.testing.assert_allclose(scope["probabilities"], array(expected), atol=5e-3)
    assert expected.class_names[scope["probabilities"].argmax()] == expected.name

    noise = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    shutil.rmtree("exported")
    transform = partial(augment.eval_image, size=32, scale=None)
    options = {"images": noise, "formats": ["litert"], "transform": transform}
    export.export(of_channels(3), ("a", "b", "c"), "exported", **options)
    Image.fromarray(noise[0, :29, :31].astype(np.uint8)).save("photo.png")  # smaller
    (answer,) = Predictor("exported/model.tflite")(["photo.png"])
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(script, "export.md", "exec"), scope)
    np.testing.assert_allclose(scope["probabilities"], array(answer), atol=1e-4)
    shutil.copy(photo, "photo.png")

    shutil.rmtree("exported")
    noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1)).astype(np.float32)
    export.export(of_channels(1), ("a", "b", "c"), "exported", images=noise, formats=["litert"])
    (expected,) = Predictor("exported/model.tflite")([photo])
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(script, "export.md", "exec"), scope)
    np.testing.assert_allclose(scope["probabilities"], array(expected), atol=5e-3)


@pytest.mark.slow
def test_every_format_states_the_same(run: Run, photo: Path, tmp_path: Path):
    folder = tmp_path / "all"
    formats = ["saved_model", "litert_int8", "onnx", "openvino"]
    export_run(run, folder, formats=formats, images=40, calibrated=True, tolerance=20)
    (expected,) = Predictor(run)([photo])

    for name, bound in (
        ("saved_model", 1e-5),
        ("model.onnx", 1e-5),
        ("model_int8.tflite", 0.1),
        ("openvino/model.xml", 0.1),
    ):
        predictor = Predictor(folder / name, unknown=0.95)
        (answer,) = predictor([photo])
        assert [note.split(":")[0] for note in predictor.notes] == ["probabilities are calibrated"]
        assert answer.class_names == run.class_names
        np.testing.assert_allclose(array(answer), array(expected), atol=bound)

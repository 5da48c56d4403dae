"""keras-vgg predict and Predictor: files in, rows out, one network for many calls."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import Predictor, augment, cli, runs
from keras_vgg.data.listing import image_files
from keras_vgg.data.split import pictures_of
from keras_vgg.export import export
from keras_vgg.export.model_files import open_model_file
from keras_vgg.image_paths import existing_paths
from keras_vgg.models import vgg
from keras_vgg.run import Run
from keras_vgg.runs import Answer
from keras_vgg.runs.images import open_split


@pytest.fixture(scope="module")
def run(varied_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("predicting") / "run"
    return Run.open(shutil.copytree(varied_run.directory, folder))


@pytest.fixture(scope="module")
def digits(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's validation images as files, in folders of hundreds, by name in their order."""
    folder = tmp_path_factory.mktemp("digits")
    for number, image in enumerate(pictures_of(open_split(run, "validation"))):
        path = folder / f"{number // 20:02d}" / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .keras file of three classes, in no run directory."""
    path = tmp_path_factory.mktemp("network") / "net.keras"
    keras.utils.set_random_seed(3)
    of_three_classes().save(path)
    return path


def of_three_classes(**options: Any) -> keras.Model:
    return vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=3,
        width_multiplier=1 / 16,
        head="gap",
        include_preprocessing=True,
        **options,
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two pictures, one of them damaged, a text, and a picture whose name is not UTF-8."""
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
    picture.save(folder / "a.png")
    picture.save(folder / "deep" / "er" / "b.jpg")
    (folder / "deep" / "bad.jpg").write_bytes((folder / "deep" / "er" / "b.jpg").read_bytes()[:300])
    (folder / "notes.txt").write_text("nothing to see")
    picture.save(os.fsencode(folder) + b"/c\xe9.png", "PNG")
    return folder


def array(answer: Answer) -> np.ndarray:
    assert answer.probabilities is not None, answer.reason
    return answer.probabilities


def output_of(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = cli.main(["predict", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


# --- which files ----------------------------------------------------------------------------------


def test_paths_patterns_and_names_with_brackets(photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(photos)
    (photos / "x[1].png").write_bytes(b"")

    assert existing_paths(["a.png", "**/*.jpg", "x[1].png"]) == [
        *("a.png", "deep/bad.jpg", "deep/er/b.jpg", "x[1].png")
    ]
    with pytest.raises(FileNotFoundError, match=r"pattern \*\.gif"):
        existing_paths(["*.gif"])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such image file or folder"):
        existing_paths(["a.png", "nowhere.png"])


def test_folders_at_any_depth_and_each_file_once(photos: Path):
    files = image_files([photos / "deep" / "er" / "b.jpg", photos])

    assert [os.path.basename(path) for path in files.paths] == [
        *("b.jpg", "a.png", os.fsdecode(b"c\xe9.png"), "bad.jpg")
    ]
    assert files.repeated == 1
    assert [str(left_out) for left_out in files.left_out] == [
        f"1 no image (.txt): {photos / 'notes.txt'}"
    ]
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no image"):
        image_files([photos / "empty"])
    files = image_files([f"{photos}/[ae]*"])
    assert files.paths == (str(photos / "a.png"),)
    assert [str(left_out) for left_out in files.left_out] == [
        f"1 folder without images: {photos / 'empty'}"
    ]
    with pytest.raises(ValueError, match="no image to classify"):
        image_files([])


def test_a_table_names_files_that_may_be_missing(photos: Path):
    table = photos / "table.csv"
    table.write_text("path,remark\na.png,one\ngone.png,two\ndeep/er/b.jpg,three\n")

    files = image_files([table])

    assert [os.path.relpath(path, photos) for path in files.paths] == [
        *("a.png", "gone.png", "deep/er/b.jpg")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "path,patient_id,session,tags,category\na.png,1,2,[x],cat\nb.png,1,2,,\n",
        '{"path": "a.png", "label": {"x": 1}, "split": 3}\n{"path": "b.png", "labels": "[x"}\n',
    ],
)
def test_a_table_is_judged_by_its_paths_alone(photos: Path, text: str):
    (photos / "table.csv").write_text(text)
    files = image_files([photos / "table.csv"])
    assert [os.path.relpath(path, photos) for path in files.paths] == ["a.png", "b.png"]
    assert files.left_out == ()


def test_an_unknown_path_needs_no_tensorflow(tiny_run: Run):
    code = (
        "import sys; from keras_vgg import cli\n"
        f"status = cli.main(['predict', {str(tiny_run.directory)!r}, 'nowhere.png'])\n"
        "sys.exit(status if 'tensorflow' not in sys.modules else 9)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == cli.BAD_INPUT
    assert done.stderr == "keras-vgg: error: nowhere.png: no such image file or folder\n"


# --- rows -----------------------------------------------------------------------------------------


def test_rows_equal_the_posteriors_of_evaluate(
    run: Run, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "answers.csv"
    (evaluation,) = runs.evaluate_runs([run], "validation")

    status, printed, _ = output_of(capsys, run.directory, digits, "--top", "all", "--out", out)
    assert status == 0
    assert printed.split(": ")[-1] == "40 rows\n"

    rows = list(csv.DictReader(out.read_text(encoding="utf-8").splitlines()))
    columns = [f"probability of {name}" for name in run.class_names]
    answered = np.array([[float(row[column]) for column in columns] for row in rows])
    np.testing.assert_allclose(answered, evaluation.probabilities, rtol=0, atol=1e-6)
    best = [run.class_names[i] for i in evaluation.probabilities.argmax(axis=1)]
    assert [row["class"] for row in rows] == best
    assert list(tmp_path.iterdir()) == [out]


def test_a_bad_file_is_a_row_with_its_reason(run: Run, photos: Path, capsys: pytest.CaptureFixture):
    status, out, err = output_of(capsys, run.directory, photos, "--format", "jsonl", "--top", "2")

    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 3
    assert [os.path.basename(row["path"]) for row in rows] == [
        *("a.png", os.fsdecode(b"c\xe9.png"), "bad.jpg", "b.jpg")
    ]
    assert rows[0]["class"] == rows[0]["probabilities"][0]["class"]
    assert rows[0]["probability"] == rows[0]["probabilities"][0]["probability"]
    assert [len(row["probabilities"]) for row in rows] == [2, 2, 0, 2]
    assert rows[2]["class"] is rows[2]["probability"] is None
    assert rows[2]["reason"]
    assert rows[0]["reason"] is None
    assert "1 of 4 files cannot be read" in err
    assert "no image (.txt)" in err


@pytest.mark.slow
def test_a_table_for_a_person_fits_and_keeps_paths(
    run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    status, out, _ = output_of(capsys, run.directory, photos)

    assert status == 3
    lines = out.splitlines()
    assert max(map(len, lines)) <= 200
    assert out.count("%") == 6  # two classes of three pictures
    assert any(r"c\xe9.png" in line for line in lines)
    for word in ("image", "class", "second class", "reason"):
        assert word in lines[1]

    out = tmp_path / "answers.csv"
    output_of(capsys, run.directory, photos, "--out", out, "--top", "1")
    header, *rows = out.read_bytes().splitlines()
    assert header == b"path,class,probability,reason"
    assert rows[1].startswith(os.fsencode(photos) + b"/c\xe9.png,")


def test_all_bad_is_an_error_and_leaves_no_file(
    run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    bad = photos / "deep" / "bad.jpg"

    status, _, err = output_of(
        capsys, run.directory, bad, photos / "notes.txt", "--out", tmp_path / "answers.jsonl"
    )

    assert status == cli.BAD_INPUT
    assert "none of 2 files can be read as an image" in err
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "answers.txt"], "ends in .csv or .jsonl"),
        (["--out", "nowhere/a.csv"], "no folder nowhere"),
        (["--out", "a.csv", "--format", "table"], "--format csv or --format jsonl"),
        (["--top", "0"], "--top must be at least 1, or all, not 0"),
        (["--top", "some"], "some"),
        (["--unknown", "0.95"], "keras-vgg calibrate"),
        (["--eval-scale", "40"], "leave out classes, eval_scale, resize and bit_depth"),
        (["--classes", "nowhere.txt"], "--classes nowhere.txt: there is no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(
    run: Run,
    photos: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
):
    monkeypatch.chdir(photos)

    status, out, err = output_of(capsys, run.directory, photos / "a.png", *options)

    assert (status, out) == (cli.BAD_INPUT, "")
    assert message in err.splitlines()[-1]


# --- Predictor ------------------------------------------------------------------------------------


def test_paths_arrays_and_pictures_get_one_answer(run: Run, digits: Path):
    predictor = Predictor(run)
    path = digits / "00" / "000.png"
    with Image.open(path) as opened:
        picture = opened.copy()
    pixels = np.asarray(picture)

    answers = predictor([path, str(path), picture, pixels, pixels.astype("float32")])

    for answer in answers:
        np.testing.assert_allclose(array(answer), array(answers[0]), atol=1e-6)
    assert [answer.path for answer in answers] == [str(path)] * 2 + [None] * 3
    ((*expected,),) = runs.predict_files(run, [path])
    # A batch of another size may round otherwise.
    ranked = answers[0].ranked()
    assert [name for name, _ in ranked] == [name for name, _ in expected]
    assert [p for _, p in ranked] == pytest.approx([p for _, p in expected], abs=1e-6)
    assert answers[0].name == expected[0][0]


def test_too_little_memory_is_a_memory_error(network: Path, monkeypatch: pytest.MonkeyPatch):
    def too_large(images: np.ndarray) -> np.ndarray:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    predictor = Predictor(network, class_names="abc")
    monkeypatch.setattr(predictor, "_network", too_large)
    with pytest.raises(MemoryError, match=r"too small: .* smaller batch_size \(OOM when"):
        predictor([np.zeros((40, 50, 3), np.uint8)])


def test_many_calls_are_traced_for_few_shapes(network: Path, monkeypatch: pytest.MonkeyPatch):
    from keras_vgg.layers import ImagePreprocessing

    traces = []
    original = ImagePreprocessing.call

    def counted(self, images):
        traces.append(images.shape)
        return original(self, images)

    monkeypatch.setattr(ImagePreprocessing, "call", counted)
    predictor = Predictor(network, class_names="abc", batch_size=4)
    rng = np.random.default_rng(0)
    traces.clear()

    for count in (1, 2, 3, 4, 5, 9, 1, 3):
        images = [rng.integers(0, 256, (30 + count, 41, 3), np.uint8) for _ in range(count)]
        assert len(predictor(images)) == count

    assert 1 <= len(traces) <= 2  # batches of 1 and of 4


def test_images_are_read_as_the_answers_are_taken(network: Path):
    predictor = Predictor(network, batch_size=2)
    taken = []

    def images():
        for number in range(100):
            taken.append(number)
            yield np.full((40, 40, 3), number, np.uint8)

    answers = predictor.stream(images())
    next(answers)
    assert len(taken) == 4  # two batches
    answers.close()
    assert len(taken) == 4


def test_a_foreign_file_says_what_it_does_not_state(network: Path, photos: Path, capsys):
    status, out, err = output_of(capsys, network, photos / "a.png", "--format", "jsonl")

    assert status == 0
    assert json.loads(out)["class"] in "012"
    assert "does not state its class names: the answers are numbers" in err
    assert "does not state the scale of its images: they are rescaled to 32 pixels" in err
    (photos / "names.txt").write_text("ape\nbee\ncat\n", encoding="utf-8-sig")
    options = ("--classes", photos / "names.txt", "--eval-scale", "36")
    status, out, err = output_of(capsys, network, photos / "a.png", "--format", "jsonl", *options)
    assert json.loads(out)["class"] in ("ape", "bee", "cat")
    assert "does not state" not in err


@pytest.mark.slow
def test_dark_16_bit_files_are_said_and_a_depth_brightens_them(
    run: Run, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    values = np.linspace(1000, 2500, 2304).reshape(48, 48).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    rows = []
    for depth, said in (("16", True), ("12", False)):
        status, out, err = output_of(
            *(capsys, network, tmp_path / "deep.png"),
            *("--format", "csv", "--bit-depth", depth),
        )
        assert status == 0
        assert ("set bit_depth (--bit-depth), such as 12" in err) == said
        rows.append(out)
    assert rows[0] != rows[1]
    *_, err = output_of(capsys, run.directory, tmp_path / "deep.png")
    assert "by the bit_depth of its recipe: train with another, such as 12" in err


def test_a_file_that_ends_in_sigmoids_gives_several_labels(photos: Path, tmp_path: Path):
    model = of_three_classes(classifier_activation="sigmoid")
    bias = np.array([4, -4, 2], "float32")
    model.layers[-1].bias.assign(bias)
    model.layers[-1].kernel.assign(np.zeros(model.layers[-1].kernel.shape))
    model.save(tmp_path / "labels.keras")
    predictor = Predictor(tmp_path / "labels.keras", class_names=["cat", "dog", "tree"])
    assert predictor.several_labels
    assert any("gets each label from a probability of 0.5 on" in note for note in predictor.notes)
    (answer,) = predictor([photos / "a.png"])
    assert [name for name, _ in answer.labels] == ["cat", "tree"]
    np.testing.assert_allclose(array(answer), 1 / (1 + np.exp(-bias)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [keras.ops.softmax, keras.ops.sigmoid])
def test_a_file_that_ends_in_an_operation_gives_its_probabilities(
    activation: Any, photos: Path, tmp_path: Path
):
    scores = of_three_classes(classifier_activation=None)
    scores.layers[-1].bias.assign([3.0, -1.0, 2.0])
    keras.Model(scores.input, activation(scores.output)).save(tmp_path / "net.keras")
    predictor = Predictor(tmp_path / "net.keras")
    assert predictor.several_labels == (activation is keras.ops.sigmoid)
    (answer,) = predictor([photos / "a.png"])
    expected = Predictor(saved(scores, tmp_path))([photos / "a.png"])
    values = np.log(array(expected[0]))  # scores, but for a number that a soft-max takes away
    found = array(answer)
    if activation is keras.ops.softmax:
        np.testing.assert_allclose(np.log(found), values, atol=1e-4)
    else:
        logits = np.log(found / (1 - found))
        np.testing.assert_allclose(np.diff(logits), np.diff(values), atol=1e-3)


def saved(model: keras.Model, folder: Path) -> Path:
    model.save(folder / "scores.keras")
    return folder / "scores.keras"


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["litert", "litert_int8", "saved_model"])
def test_a_file_for_any_size_says_which_it_was_tested_at(name: str, photos: Path, tmp_path: Path):
    keras.utils.set_random_seed(3)
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = keras.layers.Dense(3, "softmax")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, x)
    images = np.random.default_rng(0).uniform(0, 255, (32, 32, 32, 3)).astype("float32")
    export(
        model, ["a", "b", "c"], tmp_path / "any", images=images, calibration=images, formats=[name],
        transform=partial(augment.eval_image, size=32, scale=36), tolerance=100,
    )  # fmt: skip
    (file,) = [
        path for path in (tmp_path / "any").iterdir() if path.stem.startswith(("model", "sav"))
    ]
    stated = json.loads((tmp_path / "any" / "export.json").read_text())
    assert "Take the central 32 x 32 pixels" in str(stated)
    (answer,) = Predictor(file)([photos / "a.png"])
    pixels = np.asarray(Image.open(photos / "a.png").convert("RGB"))
    small = augment.eval_image(pixels, size=32, scale=36)
    expected = np.asarray(model(small[None]))[0]
    np.testing.assert_allclose(array(answer), expected, atol=0.02 if "int8" in name else 1e-5)


def test_a_file_for_oblong_images_is_refused(tmp_path: Path):
    vgg(
        "A", weights=None, input_shape=(32, 64, 3), classes=3, width_multiplier=1 / 16, head="gap"
    ).save(tmp_path / "wide.keras")
    with pytest.raises(ValueError, match="takes images of 32 x 64 pixels, and square ones are"):
        Predictor(tmp_path / "wide.keras")


@pytest.mark.slow
def test_a_file_in_a_run_directory_is_not_the_runs_network(run: Run, network: Path, tmp_path: Path):
    directory = tmp_path / "run"
    shutil.copytree(run.directory, directory)
    shutil.copy(network, directory / "other.keras")
    assert Predictor(directory / "model.keras").class_names == run.class_names
    assert Predictor(directory / "other.keras").class_names == ("0", "1", "2")


def test_litert_says_nothing_of_its_delegate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    """It does once in a process, when it first allocates memory; so this is not LiteRT itself."""

    class Interpreter:
        allocated = False

        def __init__(self, model_path: str) -> None:
            pass

        def allocate_tensors(self) -> None:
            if not self.allocated:
                os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")
            self.allocated = True

        def get_signature_runner(self, name: str) -> Interpreter:
            return self

        def get_input_details(self) -> dict[str, dict[str, Any]]:
            return {"images": {"shape": [1, 32, 32, 3], "dtype": np.float32}}

        def get_output_details(self) -> dict[str, dict[str, Any]]:
            return {"probabilities": {"shape": [1, 2]}}

        def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
            self.allocate_tensors()
            return {"probabilities": np.full((len(images), 2), 0.5, np.float32)}

    monkeypatch.setattr("ai_edge_litert.interpreter.Interpreter", Interpreter)
    (tmp_path / "a.tflite").write_bytes(b"")
    network, _, _ = open_model_file(tmp_path / "a.tflite")
    assert network(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 2)
    assert "XNNPACK" not in capfd.readouterr().err


def test_wrong_arguments_of_a_predictor(run: Run, network: Path, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a run directory"):
        Predictor(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a run directory or a model file"):
        Predictor(tmp_path)
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"bad\.tflite is damaged"):
        Predictor(tmp_path / "bad.tflite")
    (tmp_path / "bad.keras").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"bad\.keras is damaged"):
        Predictor(tmp_path / "bad.keras")
    with pytest.raises(ValueError, match="3 classes, and there are 2 class names"):
        Predictor(network, class_names=["a", "b"])
    with pytest.raises(ValueError, match="eval_scale must be at least 32"):
        Predictor(network, eval_scale=20)
    with pytest.raises(ValueError, match="cannot be calibrated"):
        Predictor(network, calibrated=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        Predictor(network, batch_size=0)
    predictor = Predictor(network)
    with pytest.raises(ValueError, match="put the one image into a list"):
        predictor("photo.jpg")
    with pytest.raises(ValueError, match="put the one image into a list"):
        predictor(np.zeros((40, 40, 3), np.uint8))
    assert len(predictor(np.zeros((2, 40, 40, 3), np.uint8))) == 2
    with pytest.raises(ValueError, match=r"ndarray \(4, 4, 7\)"):
        predictor([np.zeros((4, 4, 7))])
    with pytest.raises(ValueError, match="not finite"):
        predictor([np.full((4, 4, 3), np.nan)])
    with pytest.raises(ValueError, match="more than 8 bits"):
        predictor([Image.new("I;16", (8, 8))])
    assert [answer.reason for answer in predictor([tmp_path / "gone.png", tmp_path])] == [
        *("no such image file", "is a folder")
    ]


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_calls(network: Path):
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    predictor = Predictor(network)
    rng = np.random.default_rng(0)

    def call(number: int) -> None:
        predictor([rng.integers(0, 256, (40 + number % 7, 50, 3), np.uint8)] * (1 + number % 3))

    for number in range(100):
        call(number)
    before = resident()
    for number in range(1000):
        call(number)
    assert resident() - before < 20e6

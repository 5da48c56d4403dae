"""Exports of runs and of weight files: which images prove them, which calibrate them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import cli, convert, data, export, runs
from keras_vgg.data.split import labels_of, pictures_of
from keras_vgg.export import compress as compression
from keras_vgg.files import sha256_of
from keras_vgg.fit import Run
from keras_vgg.models import vgg
from keras_vgg.runs import export as exporting
from keras_vgg.weights import read_weights

NAMES = ("a", "b", "c")


def images(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 40, 36, 3), np.uint8)


def source(classes: tuple[str, ...] = NAMES, **changes: data.Split | None) -> data.Source:
    splits = {
        name: data.Split(name, 30, labels=np.arange(30, dtype=np.int32) % 3, images=images(i, 30))
        for i, name in enumerate(("train", "validation", "test"))
    }
    return data.Source("made", classes, **(splits | changes))


def network(**options: object) -> keras.Model:
    keras.utils.set_random_seed(3)
    return vgg(
        "A",
        weights=None,
        classes=3,
        width_multiplier=1 / 16,
        include_preprocessing=True,
        **{"input_shape": (32, 32, 3), "hidden_units": 8} | options,
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the library is asked for, which is not done."""
    asked: dict = {}

    def note(model: keras.Model, names: object, directory: object, **options: object) -> list:
        asked.update(model=model, names=names, directory=directory, **options)
        return []

    monkeypatch.setattr(export, "export", note)
    return asked


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("exporting") / "run"
    return Run.open(shutil.copytree(tiny_run.directory, folder))


def test_a_run_is_proved_on_validation_and_calibrated_on_training_images(
    run: Run, told: dict
) -> None:
    runs.export_run(run, formats=["litert", "litert_int8"])

    validation, train = (runs.images.open_split(run, name) for name in ("validation", "train"))
    np.testing.assert_array_equal(told["labels"], validation.labels)
    assert told["images"].shape == (validation.size, 32, 32, 3)
    assert len(told["calibration"]) == min(exporting.CALIBRATION_IMAGES, train.size)
    flat = {image.tobytes() for image in told["images"]}
    assert not flat & {image.tobytes() for image in told["calibration"]}
    assert told["directory"] == run.directory / "export"

    told.clear()
    runs.export_run(run, images=7)
    assert len(told["images"]) == len(told["labels"]) == 7
    assert "calibration" not in told  # none is needed


@pytest.mark.slow
def test_a_weight_file_is_proved_on_a_source(tmp_path: Path) -> None:
    network().save(tmp_path / "model.keras")

    (artifact,) = runs.export_weights(
        tmp_path / "model.keras", source(), tmp_path / "out", formats=["litert"], images=20
    )

    assert artifact.images == 20
    assert artifact.top1 is not None
    assert (tmp_path / "out" / "class_names.txt").read_text().split() == list(NAMES)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("options", "stated", "side"),
    [
        ({"head": "gap"}, 64, 64),
        ({"head": "gap"}, None, 224),
        ({"head": "fc"}, 72, 72),  # fc1 sees two pixels a side, as at 64
        ({"head": "conv", "train_size": (64, 64)}, 128, 64),  # it comes back as fc
    ],
)
def test_the_input_has_the_size_that_a_keras_file_states(
    options: dict, stated: int | None, side: int, tmp_path: Path, told: dict
) -> None:
    network(input_shape=(stated, stated, 3), **options).save(tmp_path / "model.keras")

    runs.export_weights(tmp_path / "model.keras", source(), tmp_path / "out", images=1)

    assert told["model"].input_shape == (None, side, side, 3)
    assert told["images"].shape == (1, side, side, 3)
    scale = 256 if side == 224 else side
    assert told["transform"].keywords == {"size": side, "scale": scale}


def test_the_input_has_the_size_that_keras_files_in_a_folder_state(
    tmp_path: Path, told: dict
) -> None:
    model = network(head="gap", input_shape=(64, 64, 3))
    keras.saving.save_model(model, tmp_path / "hub", zipped=False)  # as a push does
    runs.export_weights(tmp_path / "hub", source(), tmp_path / "out", images=1)
    assert told["model"].input_shape == (None, 64, 64, 3)
    assert read_weights(tmp_path / "hub").side == 64


def test_what_the_network_of_a_file_answers_differently_is_said(
    tmp_path: Path, told: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    model = network(head="gap", batch_norm=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 1e-2
    model.save(tmp_path / "model.keras")
    runs.export_weights(tmp_path / "model.keras", source(), tmp_path / "out", images=1)
    assert f"{tmp_path / 'model.keras'}: {read_weights(tmp_path / 'model.keras').note}" in (
        capsys.readouterr().err
    )
    assert "epsilon" in read_weights(tmp_path / "model.keras").note


@pytest.mark.slow
def test_a_file_that_states_no_size_has_the_papers(tmp_path: Path, told: dict) -> None:
    for stated, side in ((None, 224), (64, 64)):
        network(head="gap", input_shape=(stated, stated, 3)).save(tmp_path / "model.keras")
        file = tmp_path / f"{side}.safetensors"
        convert.convert_weights(tmp_path / "model.keras", file, "torchvision")
        runs.export_weights(file, source(), tmp_path / f"out-{side}", images=1)
        assert told["model"].input_shape == (None, side, side, 3)


@pytest.mark.slow
def test_logits_become_probabilities(tmp_path: Path, told: dict) -> None:
    model = network()
    model.save(tmp_path / "model.keras")
    convert.convert_weights(tmp_path / "model.keras", tmp_path / "t.safetensors", "torchvision")

    runs.export_weights(tmp_path / "t.safetensors", source(), tmp_path / "out")

    given = told["images"]
    np.testing.assert_allclose(
        told["model"].predict(given, verbose=0), model.predict(given, verbose=0), atol=1e-6
    )


def test_several_labels_stay_several_labels(tmp_path: Path, told: dict) -> None:
    model = network(classifier_activation="sigmoid")
    model.save(tmp_path / "labels.keras")
    labels = np.eye(3, dtype=np.uint8)[np.arange(30) % 3]
    splits = {
        name: data.Split(name, 30, labels=labels, images=images(i, 30))
        for i, name in enumerate(("train", "validation"))
    }
    tagged = data.Source("tagged", NAMES, **splits, test=None)

    runs.export_weights(tmp_path / "labels.keras", tagged, tmp_path / "out")

    assert told["model"].layers[-1].activation is keras.activations.sigmoid
    np.testing.assert_array_equal(told["labels"], labels)
    with pytest.raises(ValueError, match=r"compress needs one label an image, and .*labels\.keras"):
        runs.export_weights(tmp_path / "labels.keras", tagged, tmp_path / "out", compress=True)
    with pytest.raises(ValueError, match=r"source made gives an image one label, and .* several"):
        runs.export_weights(tmp_path / "labels.keras", source(), tmp_path / "out")
    network().save(tmp_path / "one.keras")
    with pytest.raises(
        ValueError, match=r"source tagged gives an image several labels, and .* one"
    ):
        runs.export_weights(tmp_path / "one.keras", tagged, tmp_path / "out")


def test_other_classes_are_refused_and_imagenets_are_only_compared(
    tmp_path: Path, told: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    network().save(tmp_path / "model.keras")
    monkeypatch.setattr(exporting, "imagenet_names", lambda: ("x",) * 1000)
    with pytest.raises(ValueError, match="has 3 classes, source made has 2"):
        runs.export_weights(tmp_path / "model.keras", source(("a", "b")), tmp_path / "out")

    monkeypatch.setattr(exporting, "imagenet_names", lambda: ("x", "y", "z"))
    runs.export_weights(tmp_path / "model.keras", source(("a", "b")), tmp_path / "out")
    assert told["labels"] is None
    assert told["names"] == ("x", "y", "z")


def test_a_file_without_a_classifier_is_refused(tmp_path: Path) -> None:
    base = vgg("A", False, None, input_shape=(32, 32, 3), width_multiplier=1 / 16)
    base.save(tmp_path / "base.keras")

    with pytest.raises(ValueError, match="has no classifier"):
        runs.export_weights(tmp_path / "base.keras", source(), tmp_path / "out")


def test_a_source_without_validation_images_is_refused(tmp_path: Path) -> None:
    network().save(tmp_path / "model.keras")

    with pytest.raises(ValueError, match="made has no validation split"):
        runs.export_weights(tmp_path / "model.keras", source(validation=None), tmp_path / "out")


@pytest.fixture
def compressible(tmp_path: Path) -> Path:
    """A weight file whose fc1 and fc2 have a rank of 2, of 16: nothing is lost without the rest."""
    model = network(hidden_units=16)
    for name in ("fc1", "fc2"):
        layer = model.get_layer(name)
        u, s, v = np.linalg.svd(np.array(layer.kernel), full_matrices=False)
        layer.kernel.assign((u[:, :2] * s[:2]) @ v[:2])
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.slow
def test_a_compressed_one_is_proved_on_images_that_did_not_choose_its_ranks(
    compressible: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen_by = []

    def note(model: keras.Model, images: np.ndarray, labels: np.ndarray, **options: object):
        chosen_by.extend([images, options["training"]])
        return compress(model, images, labels, **options)

    compress = compression.compress
    monkeypatch.setattr(compression, "compress", note)
    proved = []
    real = export.export
    monkeypatch.setattr(export, "export", lambda *a, **o: proved.append(o) or real(*a, **o))

    (artifact,) = runs.export_weights(
        compressible, source(), tmp_path / "out", formats=["litert"], compress=True, tolerance=4
    )

    validation, training = chosen_by
    flat = {image.tobytes() for image in (*validation, *training)}
    assert len(validation) == artifact.images == 15
    assert not flat & {image.tobytes() for image in proved[0]["images"]}
    tried = json.loads((tmp_path / "out" / "compression.json").read_text())
    chosen = tried["points"][tried["chosen"]]
    assert max(chosen["ranks"].values()) <= 2
    assert b"fc1_factor" in artifact.path.read_bytes()
    assert chosen["parameters"] < tried["original"]["parameters"]
    assert tried["original"]["top1"] - chosen["top1"] <= 0.02
    assert (tmp_path / "out" / "compression.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_nothing_is_left_where_compression_fails(compressible: Path, tmp_path: Path) -> None:
    network(head="gap").save(tmp_path / "gap.keras")
    with pytest.raises(ValueError, match="no dense layer 'fc1'"):
        runs.export_weights(tmp_path / "gap.keras", source(), tmp_path / "out", compress=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there exists"):
        runs.export_weights(compressible, source(), tmp_path / "there", compress=True)
    assert {path.name for path in tmp_path.iterdir()} == {"gap.keras", "model.keras", "there"}


@pytest.mark.parametrize(("steps", "compress"), [(-1, True), (5, False)])
def test_fine_tuning_is_of_compressed_ones(run: Run, steps: int, compress: bool) -> None:
    with pytest.raises(ValueError, match=f"fine_tune_steps.*{steps}"):
        runs.export_run(run, fine_tune_steps=steps, compress=compress)


def test_an_untrained_run_is_refused(tmp_path: Path, run: Run) -> None:
    untrained = Run(tmp_path, run.recipe)
    untrained.write_recipe()

    with pytest.raises(ValueError, match="has not finished training"):
        runs.export_run(untrained)


@pytest.mark.parametrize("count", [0, -3])
def test_no_images_prove_nothing(run: Run, count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 image, not {count}"):
        runs.export_run(run, images=count)


def test_classify_names_at_least_one_class(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exporting, "_verification_images", lambda *_: pytest.fail("images are read")
    )
    with pytest.raises(ValueError, match="top must be at least 1 class, not 0"):
        runs.export_run(run, top=0)
    with pytest.raises(ValueError, match="top must be at least 1 class, not -1"):
        runs.export_weights(run.model_path, source(), "nowhere", top=-1)


@pytest.fixture
def other_digits(run: Run, tmp_path: Path) -> str:
    """A folder: source with images of two of the run's classes, in no splits."""
    split = runs.images.open_split(run, "train")
    for place in range(60):
        name = run.class_names[labels_of(split)[place]]
        if name in "37":
            folder = tmp_path / "set" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures_of(split)[place]).save(folder / f"{place}.png")
    return f"folder:{tmp_path / 'set'}"


@pytest.mark.slow
def test_another_source_comes_to_the_network_as_the_recipe_says(
    run: Run, told: dict, other_digits: str
) -> None:
    changed = dataclasses.replace(run, recipe=run.recipe.replace(eval_scale=48, resize="squash"))

    runs.export_run(changed, source=other_digits, formats=["litert", "litert_int8"])

    assert told["transform"].keywords == {"size": 32, "scale": 48, "resize": "squash"}
    assert told["names"] == run.class_names
    assert set(told["labels"].tolist()) == {3, 7}
    train = runs.images.open_split(run, "train")
    assert len(told["calibration"]) == min(exporting.CALIBRATION_IMAGES, train.size)


def test_export_of_a_run_with_source_is_not_that_of_a_weight_file(
    run: Run, other_digits: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: dict = {}

    def note(asked_run: Run, output: object, **options: object) -> list:
        asked.update(run=asked_run, output=output, **options)
        raise ValueError("as far as this")

    monkeypatch.setattr(runs, "export_run", note)
    for path, output in (
        (run.directory, None),
        (run.model_path, run.directory / "model.keras.export"),
    ):
        assert cli.main(["export", str(path), "--source", other_digits]) == cli.BAD_INPUT
        assert "as far as this" in capsys.readouterr().err
        assert asked["run"] == run
        assert asked["output"] == output
        assert asked["source"] == other_digits
    arguments = ["export", str(run.directory), "--source", other_digits, "--seed", "3"]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert "leave out the options of the source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "verified_on"),
    [([], "3 validation images;"), (["--source", "folder:set"], "3 images of folder:set;")],
)
def test_the_table_names_the_images(
    options: list[str],
    verified_on: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    figures = {"bytes": 9, "top1": 1.0, "top5": 1.0}
    artifact = export.Artifact(
        format="litert",
        path=tmp_path / "model.tflite",
        sha256="",
        images=3,
        agreement=1.0,
        max_difference=0.0,
        latency_ms={1: (1.0, 1.0), 2: (1.0, 1.0)},
        peak_bytes=None,
        **figures,
    )
    (tmp_path / "export.json").write_text(json.dumps({"model": figures}))
    monkeypatch.setattr(runs, "export_run", lambda *_, **__: [artifact])
    assert cli.main(["export", str(run.directory), *options]) == cli.OK
    assert f"verified on {verified_on}" in capsys.readouterr().out


def test_what_a_run_decides_is_not_an_option(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exporting, "_verification_images", lambda *_: pytest.fail("images are read")
    )
    for options in ({"thresholds": [0.3] * 10}, {"bit_depth": "12"}, {"calibration": images(0, 2)}):
        (name,) = options
        with pytest.raises(ValueError, match=f"the export decides {name}; leave it out"):
            runs.export_run(run, **options)
    with pytest.raises(ValueError, match="the export decides transform; leave it out"):
        runs.export_weights(run.model_path, source(), "nowhere", transform=np.asarray)


def test_what_is_wrong_is_said_before_images_are_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exporting, "_verification_images", lambda *_: pytest.fail("images are read")
    )
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists; choose another folder, or overwrite it"):
        runs.export_run(run, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is not an export"):
        runs.export_run(run, tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match="tolerance"):
        runs.export_run(run, tmp_path / "new", tolerance=-1)
    with pytest.raises(ValueError, match="method"):
        runs.export_run(run, tmp_path / "new", calibration_method="mean")


@pytest.mark.slow
def test_a_tilde_is_the_home_folder(
    run: Run, tmp_path: Path, told: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    asked: list = []
    monkeypatch.setattr(exporting, "export_for_target", lambda g, t, d, **_: asked.append(d) or [])
    runs.export_run(run, "~/out", images=2)
    runs.export_run(run, "~/out", images=2, target_size=5, formats=["litert"])
    network().save(tmp_path / "model.keras")
    weights_folder = "~/weights"
    assert [told["directory"], *asked] == [tmp_path / "home" / "out"] * 2
    runs.export_weights(tmp_path / "model.keras", source(), weights_folder, images=1)
    assert told["directory"] == tmp_path / "home" / "weights"


def test_the_record_says_of_which_network_and_images_it_is(
    run: Run, told: dict, other_digits: str
) -> None:
    runs.export_run(run, images=2)
    digest = sha256_of(run.model_path)
    assert told["notes"] == {"model_sha256": digest, "images": "validation images"}
    runs.export_run(run, source=other_digits)
    assert told["notes"] == {"model_sha256": digest, "images": f"images of {other_digits}"}


@pytest.mark.slow
def test_classes_that_a_run_does_not_know_may_be_skipped(
    run: Run, tmp_path: Path, told: dict, other_digits: str, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(other_digits.removeprefix("folder:"))
    (folder / "cat").mkdir()
    for number in range(3):
        Image.fromarray(images(number, 1)[0]).save(folder / "cat" / f"{number}.png")
    with pytest.raises(ValueError, match="leave their images out with --unknown-classes skip"):
        runs.export_run(run, source=other_digits)
    runs.export_run(run, source=other_digits, unknown_classes="skip")
    assert set(told["labels"].tolist()) == {3, 7}
    assert "3 of " in capsys.readouterr().err
    outside = str(tmp_path / "model.keras")
    network().save(outside)
    command = ["export", outside, "--source", other_digits, "--unknown-classes", "skip"]
    assert cli.main(command) == cli.BAD_INPUT
    assert "--unknown-classes needs a run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_columns_of_another_table_may_be_named(
    run: Run, told: dict, other_digits: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(other_digits.removeprefix("folder:"))
    rows = [f"{path},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["scan,digit", *rows]) + "\n")
    command = ["export", str(run.directory), "--source", f"csv:{table}", "--format", "litert"]
    assert cli.main(command) == cli.BAD_INPUT
    assert "columns=" in capsys.readouterr().err
    with pytest.raises(IndexError):  # `told` writes no file, of which the command prints figures
        cli.main([*command, "--columns", "path=scan,label=digit"])
    assert set(told["labels"].tolist()) == {3, 7}

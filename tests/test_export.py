"""Exported files answer like the model, in a process without Keras; failures leave nothing."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_vgg import export as module
from keras_vgg.export import FORMATS, Artifact, ExportError, export

NAMES = ["zero", "one", "two", "drei ß"]
IMAGES = np.random.default_rng(1).uniform(0, 255, (35, 32, 32, 3)).astype(np.float32)


class PowerOfNeighbours(layers.Layer):
    """The operations of local response normalisation: pad, slices of channels, their sum, pow."""

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        squares = ops.pad(ops.square(x), [[0, 0], [0, 0], [0, 0], [2, 2]])
        total = sum(squares[..., i : i + x.shape[-1]] for i in range(5))
        return x / ops.power(1.0 + 0.1 * total, 0.75)


def build(*middle: layers.Layer, seed: int = 0, dtype: str = "float32") -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 64, offset=-2, dtype=dtype)(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", dtype=dtype)(x)
    for layer in middle:
        x = layer(x)
    x = layers.MaxPooling2D(4, dtype=dtype)(x)
    x = layers.Flatten(dtype=dtype)(x)
    x = layers.Dropout(0.5, dtype=dtype)(x)  # running it in training mode would show
    outputs = layers.Dense(len(NAMES), activation="softmax", dtype="float32")(x)
    return keras.Model(inputs, outputs)


def build_batch_norm() -> keras.Model:
    norm = layers.BatchNormalization()
    model = build(norm)
    generator = np.random.default_rng(2)
    norm.set_weights([generator.uniform(0.5, 2, 8) for _ in range(4)])
    return model


def tree(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build(PowerOfNeighbours())


@pytest.fixture(scope="module")
def exported(
    model: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Artifact]]:
    directory = tmp_path_factory.mktemp("run") / "export"
    return directory, export(model, NAMES, directory, images=IMAGES)


@pytest.fixture
def wrong_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SavedModel, and so the LiteRT file, is written from another model."""
    write, other = module._write_saved_model, build(seed=99)
    monkeypatch.setattr(module, "_write_saved_model", lambda model, path: write(other, path))


def test_the_folder_holds_these_files(exported: tuple[Path, list[Artifact]]) -> None:
    directory, _ = exported

    assert set(tree(directory)) == {
        "class_names.txt",
        "export.json",
        "model.tflite",
        "saved_model/assets.extra/class_names.txt",
        "saved_model/fingerprint.pb",
        "saved_model/saved_model.pb",
        "saved_model/variables/variables.data-00000-of-00001",
        "saved_model/variables/variables.index",
    }
    for names in ("class_names.txt", "saved_model/assets.extra/class_names.txt"):
        assert (directory / names).read_text(encoding="utf-8") == "zero\none\ntwo\ndrei ß\n"
    assert list(directory.parent.iterdir()) == [directory]
    ordinary = directory.parent / "ordinary"
    ordinary.mkdir()
    assert directory.stat().st_mode == ordinary.stat().st_mode  # not private, as its scratch was
    ordinary.rmdir()


def test_artifacts_state_what_was_verified(exported: tuple[Path, list[Artifact]]) -> None:
    directory, artifacts = exported

    assert [artifact.format for artifact in artifacts] == list(FORMATS)
    assert [artifact.path for artifact in artifacts] == [
        directory / "saved_model",
        directory / "model.tflite",
    ]
    for artifact in artifacts:
        assert artifact.images == len(IMAGES)
        assert artifact.agreement == 1.0
        assert 0 <= artifact.max_difference < 1e-5
    content = (directory / "model.tflite").read_bytes()
    assert artifacts[1].bytes == len(content)
    assert artifacts[1].sha256 == hashlib.sha256(content).hexdigest()
    files = tree(directory / "saved_model")
    assert artifacts[0].bytes == sum(map(len, files.values()))


def test_the_record_repeats_the_artifacts(exported: tuple[Path, list[Artifact]]) -> None:
    directory, artifacts = exported

    record = json.loads((directory / "export.json").read_text())

    assert record["images"] == 35
    assert record["classes"] == 4
    assert set(record["versions"]) == {"keras", "tensorflow", "ai-edge-litert"}
    assert record["versions"]["keras"] == keras.__version__
    for saved, artifact in zip(record["artifacts"], artifacts, strict=True):
        assert directory / saved.pop("path") == artifact.path
        assert saved == {key: value for key, value in vars(artifact).items() if key != "path"}


def test_the_saved_model_stores_every_weight_once(
    model: keras.Model, exported: tuple[Path, list[Artifact]]
) -> None:
    directory, _ = exported

    stored = tf.train.list_variables(str(directory / "saved_model" / "variables" / "variables"))

    assert sum(math.prod(shape) for _, shape in stored if shape) == model.count_params()


SAVED_MODEL_SCRIPT = """
import sys
sys.modules["keras_vgg"] = sys.modules["keras"] = None
import numpy as np, tensorflow as tf
images, output, path = sys.argv[1:]
serve = tf.saved_model.load(path).signatures["serving_default"]
_, inputs = serve.structured_input_signature
assert inputs["images"].shape.as_list() == [None, 32, 32, 3], inputs
assert inputs["images"].dtype == tf.float32, inputs
assert serve.structured_outputs["probabilities"].dtype == tf.float32
np.save(output, serve(images=tf.constant(np.load(images)))["probabilities"].numpy())
"""

LITERT_SCRIPT = """
import sys
sys.modules["keras_vgg"] = sys.modules["keras"] = sys.modules["tensorflow"] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
images, output, path = sys.argv[1:]
interpreter = Interpreter(model_path=path)
signatures = interpreter.get_signature_list()
assert signatures == {"serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}}
assert interpreter.get_input_details()[0]["dtype"] == np.float32
serve = interpreter.get_signature_runner("serving_default")
one = serve(images=np.load(images)[:1])["probabilities"]
everything = serve(images=np.load(images))["probabilities"]
assert np.abs(one - everything[:1]).max() < 1e-5
np.save(output, everything)
"""


@pytest.mark.parametrize(
    ("script", "name"), [(SAVED_MODEL_SCRIPT, "saved_model"), (LITERT_SCRIPT, "model.tflite")]
)
def test_a_fresh_process_without_keras_gets_the_probabilities(
    script: str,
    name: str,
    model: keras.Model,
    exported: tuple[Path, list[Artifact]],
    tmp_path: Path,
) -> None:
    directory, _ = exported
    np.save(tmp_path / "images.npy", IMAGES)
    paths = tmp_path / "images.npy", tmp_path / "output.npy", directory / name

    subprocess.run(
        [sys.executable, "-I", "-c", script, *map(str, paths)],
        check=True,
        capture_output=True,
        timeout=120,
    )

    probabilities = np.load(tmp_path / "output.npy")
    np.testing.assert_allclose(probabilities, model.predict(IMAGES, verbose=0), atol=1e-5)
    assert probabilities.std(axis=0).min() > 1e-3  # they depend on the image


@pytest.mark.parametrize("make", [build, build_batch_norm])
def test_other_models_export_in_silence(
    make: Callable[[], keras.Model], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make()
    capfd.readouterr()

    artifacts = export(model, NAMES, tmp_path / "export", images=IMAGES[:3])

    assert capfd.readouterr() == ("", "")
    assert max(artifact.max_difference for artifact in artifacts) < 1e-5
    assert [artifact.images for artifact in artifacts] == [3, 3]


def test_a_model_in_mixed_precision_is_exported_in_float32(tmp_path: Path) -> None:
    mixed = build(dtype="mixed_float16")
    full = build()
    full.set_weights(mixed.get_weights())

    (artifact,) = export(mixed, NAMES, tmp_path / "export", images=IMAGES[:3], formats=["litert"])

    actual = module._run_litert(artifact.path, IMAGES[:3])
    np.testing.assert_allclose(actual, full.predict(IMAGES[:3], verbose=0), atol=1e-6)
    assert mixed.layers[2].compute_dtype == "float16"  # the caller's model is as it was


@pytest.mark.parametrize("format", FORMATS)
def test_one_format_alone_makes_its_parents(
    format: str, model: keras.Model, tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "digits" / "export"

    (artifact,) = export(model, NAMES, directory, images=IMAGES[:2], formats=[format])

    assert artifact.format == format
    assert {path.name for path in directory.iterdir()} == {
        "class_names.txt",
        "export.json",
        artifact.path.name,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_export_is_replaced_only_when_asked(model: keras.Model, tmp_path: Path) -> None:
    directory = tmp_path / "export"
    arguments = {"images": IMAGES[:2], "formats": ["litert"]}
    export(model, NAMES, directory, **arguments)
    (directory / "stale.txt").write_text("from the first export")
    before = tree(directory)

    with pytest.raises(FileExistsError, match=r"export exists; choose another folder"):
        export(model, NAMES, directory, **arguments)
    assert tree(directory) == before

    export(model, NAMES[::-1], directory, overwrite=True, **arguments)
    assert set(tree(directory)) == {"class_names.txt", "export.json", "model.tflite"}
    assert (directory / "class_names.txt").read_text(encoding="utf-8").startswith("drei ß\n")
    assert list(tmp_path.iterdir()) == [directory]


def test_a_folder_that_is_no_export_is_never_replaced(model: keras.Model, tmp_path: Path) -> None:
    thesis = tmp_path / "home" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")

    with pytest.raises(FileExistsError, match="is not an export"):
        export(model, NAMES, thesis.parent, images=IMAGES[:2], overwrite=True)
    assert thesis.read_text() == "years of work"


@pytest.mark.usefixtures("wrong_files")
@pytest.mark.parametrize(
    ("tolerance", "message"),
    [
        (1e-3, r"differ by up to 0\.\d+ \(tolerance 0.001\)"),
        # However far probabilities may stray, another answer is another answer.
        (1.0, r"the most probable class differs on [1-9]\d* that are not ties"),
    ],
)
def test_files_that_answer_otherwise_are_not_kept(
    tolerance: float, message: str, model: keras.Model, tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "export"

    with pytest.raises(ExportError, match=f"^saved_model: does not answer .*{message}"):
        export(model, NAMES, directory, images=IMAGES, tolerance=tolerance)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_last_format_leaves_the_older_export(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "export"
    export(model, NAMES, directory, images=IMAGES[:2], formats=["saved_model"])
    before = tree(directory)
    monkeypatch.setattr(
        module, "_write_litert", lambda saved_model, path: path.write_bytes(b"not a flatbuffer")
    )

    with pytest.raises(ExportError, match=r"^litert: the file that was written does not run"):
        export(model, NAMES, directory, images=IMAGES[:2], overwrite=True)
    assert tree(directory) == before
    assert list(tmp_path.iterdir()) == [directory]


def test_a_failing_rename_brings_the_older_export_back(tmp_path: Path) -> None:
    directory = tmp_path / "export"
    directory.mkdir()
    (directory / "export.json").write_text("{}")

    with pytest.raises(FileNotFoundError):
        module._put_in_place(tmp_path / "missing", directory, aside=tmp_path / "aside")
    assert tree(tmp_path) == {"export/export.json": b"{}"}


def test_an_operation_that_litert_lacks_is_named(tmp_path: Path) -> None:
    model = build(layers.Lambda(ops.erfinv, output_shape=(32, 32, 8)))

    with pytest.raises(ExportError, match=r"^litert: the model cannot be converted: .*Erfinv"):
        export(model, NAMES, tmp_path / "export", images=IMAGES[:2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("actual", "tolerance", "agreement"),
    [
        ([[0.5, 0.5 + 1e-6]], 1e-5, 0.0),  # a tie that rounding broke
        ([[0.5, 0.501]], 1e-2, None),  # no tie to the file, and one to the model
    ],
)
def test_ties_are_judged_by_the_model(
    actual: list, tolerance: float, agreement: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = np.array([[0.5 + 1e-6, 0.5]] if agreement is not None else [[0.502, 0.5]])
    monkeypatch.setattr(module, "_run_litert", lambda path, images: np.array(actual))
    monkeypatch.setattr(module, "_size_and_sha256", lambda path: (1, "digest"))

    def verify() -> Artifact:
        return module._verified("litert", Path("unused"), IMAGES[:1], expected, tolerance)

    if agreement is None:
        with pytest.raises(ExportError, match="differs on 1 that are not ties"):
            verify()
    else:
        assert verify().agreement == agreement


@pytest.mark.parametrize(
    ("actual", "message"),
    [([[np.nan, np.nan]], "up to nan"), ([[0.5, 0.25, 0.25]], r"gives \(1, 3\) where")],
)
def test_answers_that_cannot_be_compared_fail(
    actual: list, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run_saved_model", lambda path, images: np.array(actual))

    with pytest.raises(ExportError, match=message):
        module._verified("saved_model", Path("x"), IMAGES[:1], np.array([[0.7, 0.3]]), 1e-3)


def test_a_folders_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    def digest(files: dict[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        size, sha256 = module._size_and_sha256(folder)
        assert size == sum(map(len, files.values()))
        return sha256

    base = digest({"a": "1", "b/c": "22"})
    assert digest({"b/c": "22", "a": "1"}) == base
    assert digest({"a": "2", "b/c": "22"}) != base
    assert digest({"a": "1", "b/d": "22"}) != base
    assert digest({"a": "12", "b/c": "2"}) != base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"formats": ["onnx"]}, "unknown export format 'onnx'; known formats: saved_model, litert"),
        ({"formats": []}, "one or more of saved_model, litert"),
        ({"formats": ["litert", "litert"]}, "each once"),
        ({"images": IMAGES[:0]}, "no images"),
        ({"images": IMAGES[:, :16]}, r"images are \(35, 16, 32, 3\); the model takes \(None, 32"),
        ({"images": IMAGES[0]}, r"images are \(32, 32, 3\)"),
        ({"images": np.full((1, 32, 32, 3), np.nan)}, "not finite"),
        ({"class_names": ["a", "b", "c"]}, r"3 class names call for"),
        ({"class_names": ["a", "b", "c", "d\ne"]}, r"'d\\ne' is empty or has a line break"),
    ],
)
def test_wrong_arguments_are_refused(
    change: dict, message: str, model: keras.Model, tmp_path: Path
) -> None:
    arguments = {"class_names": NAMES, "images": IMAGES} | change

    with pytest.raises(ValueError, match=message):
        export(model, directory=tmp_path / "export", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_two_outputs_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3))
    x = layers.Flatten()(inputs)
    two = keras.Model(inputs, [layers.Dense(4)(x), layers.Dense(4)(x)])

    with pytest.raises(ValueError, match="has 1 and 2"):
        export(two, NAMES, tmp_path / "export", images=IMAGES)

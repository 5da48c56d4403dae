"""Exported files answer like the model, in a process without Keras; failures leave nothing."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_vgg.export import Artifact, ExportError, export, exporting, formats, verify
from keras_vgg.export.exporting import own_answers

NAMES = ["zero", "one", "two", "drei ß"]
IMAGES = np.random.default_rng(1).integers(0, 256, (35, 32, 32, 3)).astype(np.float32)
LABELS = np.arange(35) % 4
FILES = {
    "saved_model": "saved_model",
    "litert": "model.tflite",
    "litert_float16": "model_float16.tflite",
    "litert_dynamic": "model_dynamic.tflite",
    "litert_int8": "model_int8.tflite",
    "litert_int16": "model_int16.tflite",
    "onnx": "model.onnx",
    "openvino": "openvino",
}


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


def exported_as(
    formats: Sequence[str], model: keras.Model, directory: Path
) -> tuple[Path, list[Artifact]]:
    artifacts = export(
        model,
        NAMES,
        directory,
        images=IMAGES,
        labels=LABELS,
        calibration=IMAGES[:20],
        formats=formats,
        tolerance=10,
    )
    return directory, artifacts


@pytest.fixture(scope="module")
def exported(
    model: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Artifact]]:
    """All formats but one, which is for the slow tests."""
    formats = [name for name in FILES if name != "litert_dynamic"]
    return exported_as(formats, model, tmp_path_factory.mktemp("run") / "export")


@pytest.fixture(scope="module")
def exported_in_all_formats(
    model: keras.Model, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Artifact]]:
    return exported_as(tuple(FILES), model, tmp_path_factory.mktemp("run") / "export")


@pytest.fixture(
    params=["exported", pytest.param("exported_in_all_formats", marks=pytest.mark.slow)]
)
def every_export(request: pytest.FixtureRequest) -> tuple[Path, list[Artifact]]:
    return request.getfixturevalue(request.param)


@pytest.fixture
def wrong_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is written from another model."""
    other = build(seed=99)
    monkeypatch.setattr(exporting, "folded", lambda model: other)


def test_the_folder_holds_these_files(every_export: tuple[Path, list[Artifact]]) -> None:
    directory, artifacts = every_export

    assert {path.name for path in directory.iterdir()} == {
        "class_names.txt",
        "export.json",
        "quantisation.json",
        *(FILES[artifact.format] for artifact in artifacts),
    }
    names = (directory / "class_names.txt").read_text(encoding="utf-8")
    assert names == "zero\none\ntwo\ndrei ß\n"
    assert list(directory.parent.iterdir()) == [directory]
    ordinary = directory.parent / "ordinary"
    ordinary.mkdir()
    assert directory.stat().st_mode == ordinary.stat().st_mode  # not private, as its scratch was
    ordinary.rmdir()


def test_artifacts_state_what_was_measured(
    model: keras.Model, every_export: tuple[Path, list[Artifact]]
) -> None:
    directory, artifacts = every_export

    assert len(artifacts) >= 6
    assert all(a.path == directory / FILES[a.format] for a in artifacts)
    answers = model.predict(IMAGES, verbose=0).argmax(axis=1)
    sizes = {}
    for artifact in artifacts:
        exact = artifact.format in ("saved_model", "litert", "onnx")
        assert artifact.images == 35
        assert artifact.agreement == 1.0 if exact else artifact.agreement > 0.9
        assert 0 <= artifact.max_difference < (1e-5 if exact else 0.1)
        if exact:
            assert artifact.top1 == np.mean(answers == LABELS)
        assert artifact.top5 is None  # of four classes
        assert (artifact.precision in ("f32", "bf16")) == (artifact.format == "openvino")
        assert set(artifact.latency_ms) == {2}
        assert all(0 < median <= p95 for median, p95 in artifact.latency_ms.values())
        assert 1e7 < artifact.peak_bytes < 4e9
        content = (
            tree(artifact.path) if artifact.path.is_dir() else {"": artifact.path.read_bytes()}
        )
        sizes[artifact.format] = artifact.bytes
        assert artifact.bytes == sum(map(len, content.values()))
        if artifact.path.is_file():
            assert artifact.sha256 == hashlib.sha256(content[""]).hexdigest()
    if "litert_dynamic" in sizes:
        assert sizes["litert_dynamic"] < sizes["litert_float16"] < sizes["litert"]


def test_what_stays_float_in_integers_is_named(every_export: tuple[Path, list[Artifact]]) -> None:
    _, artifacts = every_export

    stayed = {artifact.format: artifact.float_operations for artifact in artifacts}

    assert "CONV_2D" not in stayed["litert_int8"]
    assert {"POW", "SQUARE"} <= set(stayed.pop("litert_int8"))  # of PowerOfNeighbours
    assert "CONV_2D" not in stayed["litert_int16"]
    assert "POW" in stayed.pop("litert_int16")
    assert set(stayed.values()) == {()}


def test_the_record_repeats_the_artifacts(
    model: keras.Model, every_export: tuple[Path, list[Artifact]]
) -> None:
    directory, artifacts = every_export

    record = json.loads((directory / "export.json").read_text())

    assert record["model"]["parameters"] == model.count_params()
    assert record["model"]["top1"] == artifacts[0].top1
    assert record["tolerance"] == 10
    versions = {"keras", "tensorflow", "ai-edge-litert", "tf2onnx", "onnx", "onnxruntime"}
    assert set(record["versions"]) == {*versions, "openvino"}
    assert record["versions"]["keras"] == keras.__version__
    for saved, artifact in zip(record["artifacts"], artifacts, strict=True):
        assert directory / saved.pop("path") == artifact.path
        stated = json.loads(json.dumps({k: v for k, v in vars(artifact).items() if k != "path"}))
        assert saved == stated


LITERT_SCRIPT = """
import sys
sys.modules["keras_vgg"] = sys.modules["keras"] = sys.modules["tensorflow"] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
images, output, *paths = sys.argv[1:]
answers = []
for path in paths:
    interpreter = Interpreter(model_path=path)
    signatures = interpreter.get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}}
    dtype = interpreter.get_input_details()[0]["dtype"]
    assert dtype == (np.uint8 if "int8" in path else np.float32)
    assert interpreter.get_output_details()[0]["dtype"] == np.float32
    serve = interpreter.get_signature_runner("serving_default")
    one = serve(images=np.load(images)[:1].astype(dtype))["probabilities"]
    everything = serve(images=np.load(images).astype(dtype))["probabilities"]
    assert np.abs(one - everything[:1]).max() < 1e-5
    answers.append(everything)
np.save(output, answers)
"""

ONNX_SCRIPT = """
import sys
sys.modules["keras_vgg"] = sys.modules["keras"] = sys.modules["tensorflow"] = None
import numpy as np, onnx, onnxruntime
images, output, path = sys.argv[1:]
assert [(o.domain, o.version) for o in onnx.load(path).opset_import][0] == ("", 18)
session = onnxruntime.InferenceSession(path)
(given,), (found,) = session.get_inputs(), session.get_outputs()
assert (given.name, given.shape, given.type) == ("images", ["batch", 32, 32, 3], "tensor(float)")
assert (found.name, found.shape) == ("probabilities", ["batch", 4])
np.save(output, session.run(None, {"images": np.load(images)}))
"""


OPENVINO_SCRIPT = """
import sys
sys.modules["keras_vgg"] = sys.modules["keras"] = sys.modules["tensorflow"] = None
import json, numpy as np, openvino
images, output, path = sys.argv[1:]
core = openvino.Core()
model = core.read_model(path + "/model.xml")
stated = json.loads(model.get_rt_info(["keras_vgg"]).value)
assert stated["class_names"] == ["zero", "one", "two", "drei ß"], stated
run = core.compile_model(model, "CPU")
np.save(output, [run({"images": np.load(images)})["probabilities"]])
"""


@pytest.mark.parametrize(
    ("script", "differences"),
    [
        (
            LITERT_SCRIPT,
            {"litert": 1e-5, "litert_int8": 0.1, "litert_int16": 0.05, "litert_float16": 1e-2},
        ),
        pytest.param(LITERT_SCRIPT, {"litert_dynamic": 0.1}, marks=pytest.mark.slow),
        (ONNX_SCRIPT, {"onnx": 1e-5}),
        (OPENVINO_SCRIPT, {"openvino": 0.1}),
    ],
    ids=["litert", "dynamic litert", "onnx", "openvino"],
)
def test_a_fresh_process_without_keras_gets_the_probabilities(
    script: str,
    differences: dict[str, float],
    model: keras.Model,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    name = "exported_in_all_formats" if "litert_dynamic" in differences else "exported"
    directory, artifacts = request.getfixturevalue(name)
    np.save(tmp_path / "images.npy", IMAGES)
    files = [directory / FILES[format] for format in differences]
    paths = tmp_path / "images.npy", tmp_path / "output.npy", *files

    subprocess.run(
        [sys.executable, "-I", "-c", script, *map(str, paths)],
        check=True,
        capture_output=True,
        timeout=120,
    )

    expected = model.predict(IMAGES, verbose=0)
    stated = {artifact.format: artifact.max_difference for artifact in artifacts}
    answers = np.load(tmp_path / "output.npy")
    for (format, difference), probabilities in zip(differences.items(), answers, strict=True):
        np.testing.assert_allclose(probabilities, expected, atol=difference, err_msg=format)
        assert probabilities.std(axis=0).min() > 1e-3  # they depend on the image
        assert np.abs(probabilities - expected).max() == pytest.approx(stated[format], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [build, build_batch_norm])
def test_other_models_export_in_silence(
    make: Callable[[], keras.Model], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make()
    capfd.readouterr()

    formats = ("saved_model", "litert", "litert_int8")
    options = {"formats": formats, "calibration": IMAGES[:5], "tolerance": 100}
    artifacts = export(model, NAMES, tmp_path / "export", images=IMAGES[:3], **options)

    assert capfd.readouterr() == ("", "")
    assert max(artifact.max_difference for artifact in artifacts[:2]) < 1e-5
    assert [artifact.images for artifact in artifacts] == [3, 3, 3]
    assert [artifact.top1 for artifact in artifacts] == [None] * 3  # no labels were given


@pytest.mark.slow
def test_every_number_of_threads_is_measured(
    model: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "THREADS", (1, 2))
    (artifact,) = export(model, NAMES, tmp_path / "export", images=IMAGES[:2], formats=["litert"])
    assert set(artifact.latency_ms) == {1, 2}


@pytest.mark.slow
def test_a_model_in_mixed_precision_is_exported_in_float32(tmp_path: Path) -> None:
    mixed = build(dtype="mixed_float16")
    full = build()
    full.set_weights(mixed.get_weights())

    (artifact,) = export(mixed, NAMES, tmp_path / "export", images=IMAGES[:3], formats=["litert"])

    np.save(tmp_path / "images.npy", IMAGES[:3])
    answers = verify.run("litert", artifact.path, tmp_path / "images.npy", tmp_path)
    actual = answers.probabilities
    np.testing.assert_allclose(actual, full.predict(IMAGES[:3], verbose=0), atol=1e-6)
    assert mixed.layers[2].compute_dtype == "float16"  # the caller's model is as it was


def test_a_file_that_is_ended_by_a_signal_is_said_to_be(tmp_path, monkeypatch):
    ended = subprocess.CompletedProcess([], -9, stderr="INFO: a delegate was made\n")
    monkeypatch.setattr(verify.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(ExportError, match=r"^litert: signal 9 ended the process"):
        verify.run("litert", tmp_path / "none.tflite", tmp_path / "images.npy", tmp_path)


def test_packages_may_come_from_pythonpath_or_the_user(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    np.save(tmp_path / "images.npy", np.zeros((1, 32, 32, 3), "float32"))
    with pytest.raises(ExportError, match="does not run"):
        verify.run("litert", tmp_path / "none.tflite", tmp_path / "images.npy", tmp_path)
    assert (tmp_path / "imported").exists()


def test_files_are_written_on_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_vgg.backend.is_tensorflow", lambda: False)
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match="set KERAS_BACKEND=tensorflow and load the network there"):
        export(model, "abc", tmp_path / "a", images=np.zeros((1, 32, 32, 3)))
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "format",
    ["saved_model", "litert_float16", "onnx"],
)
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


@pytest.mark.slow
def test_an_export_is_replaced_only_when_asked(model: keras.Model, tmp_path: Path) -> None:
    directory = tmp_path / "export"
    arguments = {"images": IMAGES[:2], "formats": ["litert"]}
    export(model, NAMES, directory, **arguments)
    (directory / "model.onnx").write_text("from the first export")
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


@pytest.mark.fast_cases(1)
@pytest.mark.usefixtures("wrong_files")
@pytest.mark.parametrize("format", ["litert", "litert_float16"])
def test_files_that_answer_otherwise_are_not_kept(
    format: str, model: keras.Model, tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "export"
    message = {"litert": "does not answer like", "litert_float16": "differs from the model by"}

    with pytest.raises(ExportError, match=f"^{format}: {message[format]}"):
        export(model, NAMES, directory, images=IMAGES, formats=[format])
    assert list(tmp_path.iterdir()) == []


def test_a_stand_in_is_written_and_compared_with_the_model(
    model: keras.Model, tmp_path: Path
) -> None:
    same, other = keras.models.clone_model(model), build(seed=99)
    same.set_weights([w * (1 + 1e-4) for w in model.get_weights()])
    arguments = {"images": IMAGES, "formats": ["litert"], "tolerance": 0}

    def noted(folder: Path) -> keras.Model:
        (folder / "note.txt").write_text("slightly other weights")
        return same

    (artifact,) = export(model, NAMES, tmp_path / "a", stand_in=noted, **arguments)

    assert 0 < artifact.max_difference < 1e-2
    assert (tmp_path / "a" / "note.txt").exists()
    with pytest.raises(ExportError, match=r"^litert: differs from the model by \d+"):
        export(model, NAMES, tmp_path / "b", stand_in=lambda _: other, **arguments)


@pytest.mark.slow
def test_answers_that_are_known_are_not_computed_again(model: keras.Model, tmp_path: Path) -> None:
    known = partial(own_answers, build(seed=99), IMAGES)
    with pytest.raises(ExportError, match=r"^litert: does not answer like the model"):
        export(model, NAMES, tmp_path / "a", images=IMAGES, formats=["litert"], answers=known)


def test_a_failure_in_the_last_format_leaves_the_older_export(
    model: keras.Model,
    exported: tuple[Path, list[Artifact]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = shutil.copytree(exported[0], tmp_path / "export")
    before = tree(directory)
    monkeypatch.setattr(
        formats, "write_litert", lambda source, path, *options: path.write_bytes(b"no flatbuffer")
    )

    with pytest.raises(ExportError, match=r"^litert: the file that was written does not run: \w"):
        export(
            model, NAMES, directory, images=IMAGES[:2], formats=["onnx", "litert"], overwrite=True
        )
    assert tree(directory) == before
    assert list(tmp_path.iterdir()) == [directory]


def test_a_full_disk_is_an_error_and_leaves_the_older_export(
    model: keras.Model,
    exported: tuple[Path, list[Artifact]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = shutil.copytree(exported[0], tmp_path / "export")
    before = tree(directory)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(formats, "write_litert", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, NAMES, directory, images=IMAGES[:2], formats=["litert"], overwrite=True)
    assert tree(directory) == before
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("kilobytes", [10, 60])  # too little for the images, and for the model
def test_files_that_may_not_grow_are_an_error_and_leave_nothing(
    kilobytes: int, model: keras.Model, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * kilobytes, hard))
    try:
        with pytest.raises((OSError, ExportError), match=r"disk full|File too large"):
            export(model, NAMES, tmp_path / "export", images=IMAGES[:2], formats=["saved_model"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_files_weights_are_constants_and_nothing_is_computed_from_them(
    exported: tuple[Path, list[Artifact]], model: keras.Model
) -> None:
    import onnx

    graph = onnx.load(exported[0] / "model.onnx").graph
    assert [value.name for value in graph.input] == ["images"]
    constants = {tensor.name for tensor in graph.initializer}
    assert all(set(node.input) - constants for node in graph.node)
    sizes = [int(np.prod(tensor.dims)) for tensor in graph.initializer]
    assert sum(sizes) == pytest.approx(model.count_params(), rel=0.02)


def test_an_operation_that_litert_lacks_is_named(tmp_path: Path) -> None:
    model = build(layers.Lambda(ops.erfinv, output_shape=(32, 32, 8)))

    with pytest.raises(ExportError, match=r"^litert: the model cannot be converted: .*Erfinv"):
        export(model, NAMES, tmp_path / "export", images=IMAGES[:2], formats=["litert"])
    assert list(tmp_path.iterdir()) == []


def test_ties_are_judged_by_the_model() -> None:
    broken_by_rounding = np.array([[0.5 + 1e-6, 0.5]]), np.array([[0.5, 0.5 + 1e-6]])
    tied_in_the_file_alone = np.array([[0.5005, 0.5]]), np.array([[0.5, 0.5]])[:, ::-1]

    assert verify.compare("litert", *broken_by_rounding[::-1], None, None)[0] == 0.0
    expected, actual = tied_in_the_file_alone
    actual = actual + np.array([[0, 1e-7]])
    with pytest.raises(ExportError, match="differs on 1 that are not ties"):
        verify.compare("litert", actual, expected, None, None)


@pytest.mark.parametrize(
    ("labels", "tolerance", "fails"),
    [
        ([0, 0, 0, 0], 24, True),  # one of four right answers is lost
        ([0, 0, 0, 0], 25, False),
        ([0, 0, 0, 1], 0, False),  # it is gained
        ([0, 0, 0, 2], 0, False),  # wrong before, wrong now
        (None, 24, True),
        (None, 25, False),
    ],
)
def test_a_format_of_less_precision_may_lose_the_tolerance(
    labels: list | None, tolerance: float, fails: bool
) -> None:
    expected = np.eye(3)[[0, 0, 0, 0]]
    actual = np.eye(3)[[0, 0, 0, 1]]
    labels = None if labels is None else np.array(labels)

    if fails:
        with pytest.raises(ExportError, match=r"by 25.00 percentage points on 4 images.*of 24"):
            verify.compare("litert_int8", actual, expected, labels, tolerance)
    else:
        found = verify.compare("litert_int8", actual, expected, labels, tolerance)
        assert found == (0.75, 1.0)


@pytest.mark.parametrize(
    ("actual", "message"),
    [([[np.nan, np.nan]], "gives nan"), ([[0.5, 0.25, 0.25]], r"gives \(1, 3\) where")],
)
@pytest.mark.parametrize("tolerance", [None, 100.0])
def test_answers_that_cannot_be_compared_fail(
    actual: list, message: str, tolerance: float | None
) -> None:
    with pytest.raises(ExportError, match=message):
        verify.compare("onnx", np.array(actual), np.array([[0.7, 0.3]]), None, tolerance)


def test_a_folders_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    def digest(files: dict[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        size, sha256 = verify.size_and_sha256(folder)
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
        (
            {"formats": ["tf1"]},
            "unknown export format 'tf1'; known formats: saved_model, ",
        ),
        ({"formats": ["litert_int8"]}, "needs calibration images, of the training set"),
        ({"formats": ["litert_int8"], "calibration": IMAGES[:0]}, "no images to calibrate"),
        ({"formats": ["litert_int8"], "calibration": IMAGES[0]}, r"images are \(32, 32, 3\)"),
        ({"formats": ["litert_int16"]}, "litert_int16 needs calibration images"),
        ({"calibration_method": "entropy"}, "one of minmax, percentile, mse, not 'entropy'"),
        ({"labels": LABELS[:3]}, r"labels are \(3,\) for 35 images"),
        ({"tolerance": -1}, "tolerance must be 0 or more"),
        ({"tolerance": math.nan}, "tolerance must be 0 or more"),
        ({"top": 0}, "top must be at least 1 class, not 0"),
        ({"top": -1}, "top must be at least 1 class, not -1"),
        ({"formats": []}, "one or more of saved_model, .*, litert"),
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


@pytest.mark.parametrize(("format", "package"), [("onnx", "tf2onnx"), ("openvino", "openvino")])
def test_a_package_that_is_missing_is_named(
    format: str,
    package: str,
    model: keras.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )

    message = rf"{format} needs {package}: pip install 'keras-vgg\[{format}\]'"
    with pytest.raises(ValueError, match=message):
        export(model, NAMES, tmp_path / "export", images=IMAGES, formats=[format])


@pytest.mark.slow
def test_answers_are_compared_if_no_image_has_a_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_labels(bias: float) -> keras.Model:
        options = {
            "kernel_initializer": "zeros",
            "bias_initializer": keras.initializers.Constant(bias),
        }
        head = layers.Dense(4, activation="sigmoid", **options)
        return keras.Sequential([keras.Input((32, 32, 3)), layers.GlobalAvgPool2D(), head])

    unlabelled = np.zeros((35, 4), np.uint8)
    arguments = {"images": IMAGES, "labels": unlabelled, "formats": ["litert_dynamic"]}
    monkeypatch.setattr(exporting, "folded", lambda model: of_labels(9))
    with pytest.raises(ExportError, match=r"other labels than the model, by 100\.00 perc"):
        export(of_labels(-9), NAMES, tmp_path / "export", **arguments)
    export(of_labels(-9), NAMES, tmp_path / "export", tolerance=100, **arguments)
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["model"]["mean_average_precision"] is None


def test_a_model_with_two_outputs_is_refused(tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3))
    x = layers.Flatten()(inputs)
    two = keras.Model(inputs, [layers.Dense(4)(x), layers.Dense(4)(x)])

    with pytest.raises(ValueError, match="has 1 and 2"):
        export(two, NAMES, tmp_path / "export", images=IMAGES)


def test_scores_are_no_probabilities(tmp_path: Path) -> None:
    inputs = keras.Input((32, 32, 3))
    scores = layers.Dense(len(NAMES), bias_initializer="ones")(layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="are no probabilities: end the model in a soft-max"):
        export(
            keras.Model(inputs, scores), NAMES, tmp_path / "e", images=IMAGES, formats=["litert"]
        )
    assert not [*tmp_path.iterdir()]

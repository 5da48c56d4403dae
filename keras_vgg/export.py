"""A Keras model -> SavedModel and LiteRT files that serve without Keras, each one verified.

Every file takes what the model takes, RGB images in [0, 255], and gives what it gives, because
preprocessing is the model's first layer. No file is kept unless it was loaded back and answered
like the model on real images.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

FORMATS = ("saved_model", "litert")

_FILES = {"saved_model": "saved_model", "litert": "model.tflite"}
_RECORD = "export.json"
_BATCH = 32  # images; more than one, so that a batch size frozen into a file is found
_TIE = 1e-5  # two probabilities nearer than this are equal but for float32 rounding


class ExportError(ValueError):
    """A file could not be made from the model, or does not answer like it."""


@dataclass(frozen=True)
class Artifact:
    """One exported file or folder, and how it compares with the model it came from.

    Attributes:
        format: one of FORMATS.
        path: where it is.
        bytes: its size; of a folder, the sum of its files.
        sha256: hex digest; of a folder, over the sorted relative paths, sizes and contents.
        images: how many images it was verified on.
        agreement: fraction of the images with the same most probable class as the model's.
        max_difference: largest |difference| of any probability from the model's.
    """

    format: str
    path: Path
    bytes: int
    sha256: str
    images: int
    agreement: float
    max_difference: float


def export(
    model: keras.Model,
    class_names: Sequence[str],
    directory: str | Path,
    *,
    images: np.ndarray,
    formats: Sequence[str] = FORMATS,
    overwrite: bool = False,
    tolerance: float = 1e-3,
) -> list[Artifact]:
    """Write a model in serving formats, verify each on images, and only then put them in place.

    The folder gets `saved_model/` (signature serving_default: `images` float32
    [batch, size, size, 3] RGB in [0, 255] -> `probabilities` float32 [batch, classes]; the class
    names in its assets.extra/class_names.txt), `model.tflite` (the same signature, float32, any
    batch size, LiteRT's built-in operations only), `class_names.txt` (one a line, in the order of
    the outputs) and `export.json` (the artifacts and the versions that made them).

    A model that computes in lower precision is exported, and compared, in float32: LiteRT's
    operations have no other floating-point type.

    Args:
        model: one input [batch, size, size, 3] RGB in [0, 255], one output [batch, classes].
        class_names: one for each output, without line breaks.
        directory: where the export goes. Missing parents are made. A failure leaves it as it was.
        images: [n, size, size, 3] RGB in [0, 255], n >= 1; real ones, such as the validation set.
        formats: which of FORMATS to write.
        overwrite: replace an export that is there; any other folder is refused all the same.
        tolerance: largest |difference| of a probability that verification accepts.

    Returns:
        One Artifact for each format, in the order of `formats`.

    Raises:
        ExportError: a format cannot represent the model; a probability differs by more than
            `tolerance`; or the most probable class differs where the model's two probabilities
            are not tied (nearer than 1e-5).
        ValueError: an unknown or repeated format, no format, a model with other inputs or outputs,
            class names or images that do not fit the model, or a model that gives nan.
        FileExistsError: the directory exists and is not an export that `overwrite` may replace.
    """
    formats = tuple(formats)
    images = np.asarray(images, dtype=np.float32)
    directory = Path(os.path.abspath(directory))
    _check_formats(formats)
    _check_model(model, class_names)
    _check_images(images, model.input_shape)
    _check_directory(directory, overwrite)

    # The nearest folder that exists is on the same file system, so the last step is a rename.
    anchor = next(parent for parent in directory.parents if parent.exists())
    with tempfile.TemporaryDirectory(dir=anchor, prefix=f".{directory.name}.") as scratch:
        built = Path(scratch, "export")
        built.mkdir()
        with _full_precision(), _quiet():
            model = _in_float32(model)
            expected = np.asarray(model.predict(images, batch_size=_BATCH, verbose=0))
            if not np.isfinite(expected).all():
                raise ValueError("the model's own probabilities are not finite on these images")
            _write_files(model, class_names, built, formats)
            artifacts = [
                _verified(format, built / _FILES[format], images, expected, tolerance)
                for format in formats
            ]
        _write_class_names(class_names, built / "class_names.txt")
        record = _record(artifacts, class_names, images)
        (built / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        directory.parent.mkdir(parents=True, exist_ok=True)
        _put_in_place(built, directory, aside=Path(scratch, "replaced"))
    return [
        Artifact(**{**vars(artifact), "path": directory / artifact.path.name})
        for artifact in artifacts
    ]


def _check_formats(formats: tuple[str, ...]) -> None:
    known = ", ".join(FORMATS)
    for format in formats:
        if format not in FORMATS:
            raise ValueError(f"unknown export format {format!r}; known formats: {known}")
    if not formats or len(set(formats)) != len(formats):
        raise ValueError(f"formats must be one or more of {known}, each once, not {formats}")


def _check_model(model: keras.Model, class_names: Sequence[str]) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"a model with one input and one output can be exported; {model.name!r} has"
            f" {len(model.inputs)} and {len(model.outputs)}"
        )
    if len(model.input_shape) != 4 or model.output_shape[1:] != (len(class_names),):
        raise ValueError(
            f"model {model.name!r} maps {model.input_shape} to {model.output_shape};"
            f" {len(class_names)} class names call for (None, size, size, 3)"
            f" to (None, {len(class_names)})"
        )
    for name in class_names:
        if name.splitlines() != [name]:
            raise ValueError(f"class name {name!r} is empty or has a line break in it")


def _check_images(images: np.ndarray, input_shape: tuple[int | None, ...]) -> None:
    fits = images.ndim == 4 and all(
        want is None or have == want
        for have, want in zip(images.shape[1:], input_shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(f"images are {images.shape}; the model takes {input_shape}")
    if len(images) == 0:
        raise ValueError("there are no images to verify the export on")


def _check_directory(directory: Path, overwrite: bool) -> None:
    if not os.path.lexists(directory):
        return
    if not overwrite:
        raise FileExistsError(f"{directory} exists; choose another folder, or overwrite it")
    if not (directory / _RECORD).is_file():
        raise FileExistsError(
            f"{directory} is not an export (it has no {_RECORD}), so it is not overwritten"
        )


def _write_files(
    model: keras.Model, class_names: Sequence[str], built: Path, formats: tuple[str, ...]
) -> None:
    saved_model = built / _FILES["saved_model"]
    _write(_write_saved_model, "saved_model", model, saved_model)
    if "litert" in formats:
        _write(_write_litert, "litert", saved_model, built / _FILES["litert"])
    if "saved_model" in formats:
        # The place that TensorFlow sets apart in a SavedModel for files it does not read itself.
        _write_class_names(class_names, saved_model / "assets.extra" / "class_names.txt")
    else:
        shutil.rmtree(saved_model)


def _write(writer: Callable[..., None], format: str, *arguments: object) -> None:
    try:
        writer(*arguments)
    except Exception as error:  # a converter raises whatever its C++ side thought of
        raise ExportError(
            f"{format}: the model cannot be converted: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write_saved_model(model: keras.Model, path: Path) -> None:
    import keras
    import tensorflow as tf

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(images, training=False)}

    archive = keras.export.ExportArchive()
    # No track(model): the endpoint tracks its variables, and both would store every weight twice.
    archive.add_endpoint(
        "serving_default",
        serve,
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")],
    )
    archive.write_out(str(path), verbose=False)


def _write_litert(saved_model: Path, path: Path) -> None:
    import tensorflow as tf

    # Not model.export(format="litert"): that lets TensorFlow operations in, which the LiteRT
    # runtime alone cannot run, and calls the output output_0.
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    path.write_bytes(converter.convert())


def _run_saved_model(path: Path, images: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    return np.concatenate(
        [serve(images=tf.constant(batch))["probabilities"].numpy() for batch in _batches(images)]
    )


def _run_litert(path: Path, images: np.ndarray) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return np.concatenate([serve(images=batch)["probabilities"] for batch in _batches(images)])


def _batches(images: np.ndarray) -> list[np.ndarray]:
    return [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]


def _verified(
    format: str, path: Path, images: np.ndarray, expected: np.ndarray, tolerance: float
) -> Artifact:
    """Load an artifact back and compare its answers with the model's."""
    run = {"saved_model": _run_saved_model, "litert": _run_litert}[format]
    try:
        actual = run(path, images)
    except Exception as error:
        raise ExportError(
            f"{format}: the file that was written does not run: {_first_line(error)}"
        ) from error
    if actual.shape != expected.shape:
        raise ExportError(f"{format}: gives {actual.shape} where the model gives {expected.shape}")
    max_difference = float(np.abs(actual - expected).max())
    ours, theirs = expected.argmax(axis=1), actual.argmax(axis=1)
    rows = np.arange(len(images))
    wrong = int(np.sum(expected[rows, ours] - expected[rows, theirs] > _TIE))
    agreement = float(np.mean(ours == theirs))
    # "not <=" rather than ">": a nan must fail.
    if not max_difference <= tolerance or wrong:
        raise ExportError(
            f"{format}: does not answer like the model on {len(images)} images: probabilities"
            f" differ by up to {max_difference:.3g} (tolerance {tolerance:.3g}), and the most"
            f" probable class differs on {wrong} that are not ties (agreement {agreement:.2%})"
        )
    size, digest = _size_and_sha256(path)
    return Artifact(format, path, size, digest, len(images), agreement, max_difference)


def _size_and_sha256(path: Path) -> tuple[int, str]:
    """Of a file, or of all files below a folder as Artifact describes it."""
    if path.is_file():
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    total = 0
    for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*")):
        file = path / name
        if file.is_file():
            size, content = _size_and_sha256(file)
            digest.update(f"{name}\0{size}\0{content}\n".encode())
            total += size
    return total, digest.hexdigest()


def _in_float32(model: keras.Model) -> keras.Model:
    """The model itself, or a copy that computes in float32 where it does not."""
    import keras

    if all(layer.compute_dtype == "float32" for layer in _flat_layers(model)):
        return model

    def in_float32(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=in_float32, recursive=True)
    copy.set_weights(model.get_weights())
    return copy


def _flat_layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        yield layer
        yield from _flat_layers(layer) if hasattr(layer, "layers") else ()


def _record(
    artifacts: Sequence[Artifact], class_names: Sequence[str], images: np.ndarray
) -> dict[str, Any]:
    return {
        "images": len(images),
        "classes": len(class_names),
        "artifacts": [{**asdict(artifact), "path": artifact.path.name} for artifact in artifacts],
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras", "tensorflow", "ai-edge-litert")
        },
    }


def _write_class_names(class_names: Sequence[str], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _put_in_place(built: Path, directory: Path, aside: Path) -> None:
    """Rename built to directory; what was there goes aside, or back if that fails."""
    replaces = os.path.lexists(directory)
    if replaces:
        os.replace(directory, aside)
    try:
        os.replace(built, directory)
    except OSError:
        if replaces:
            os.replace(aside, directory)
        raise


@contextmanager
def _full_precision() -> Iterator[None]:
    """Without TensorFloat-32, whose 10-bit products on a GPU would count as a difference."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the converters' C++ code writes on descriptor 2; their errors are exceptions."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)

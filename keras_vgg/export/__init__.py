"""A Keras model -> files that serve without Keras, each one proved before it is handed over.

Every file takes what the model takes, RGB images in [0, 255], and gives what it gives, because
preprocessing is the model's first layer. No file is kept unless it was run on real images in a
process of its own and answered like the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import augment
from keras_vgg.console import progress_bars
from keras_vgg.evaluation.result import Evaluation
from keras_vgg.export import verify
from keras_vgg.export.fold import folded, in_float32
from keras_vgg.export.folder import whole_folder
from keras_vgg.export.litert import float_operations, write_litert, write_source
from keras_vgg.export.onnx import PACKAGES as ONNX_PACKAGES
from keras_vgg.export.onnx import require_packages, write_onnx
from keras_vgg.export.saved_model import write_saved_model
from keras_vgg.export.verify import Artifact, ExportError
from keras_vgg.files import write_json
from keras_vgg.finite import require_finite_images, require_finite_weights
from keras_vgg.versions import package_versions

if TYPE_CHECKING:
    import keras

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "TOLERANCE",
    "Artifact",
    "ExportError",
    "check_formats",
    "export",
]

_FILES = {
    "saved_model": "saved_model",
    "litert": "model.tflite",
    "litert_float16": "model_float16.tflite",
    "litert_dynamic": "model_dynamic.tflite",
    "litert_int8": "model_int8.tflite",
    "onnx": "model.onnx",
}
FORMATS = tuple(_FILES)
DEFAULT_FORMATS = ("saved_model", "litert")
TOLERANCE = 0.5  # percentage points

_REDUCED = ("litert_float16", "litert_dynamic", "litert_int8")  # the rest are float32
_RECORD = "export.json"
_BATCH = 32  # images


def export(
    model: keras.Model,
    class_names: Sequence[str],
    directory: str | Path,
    *,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    tolerance: float = TOLERANCE,
    transform: Callable[[Any], Any] | None = None,
    top: int = 5,
    stand_in: Callable[[Path], keras.Model] | None = None,
    overwrite: bool = False,
    verbose: bool = False,
) -> list[Artifact]:
    """Write a model in serving formats, prove each on images, and only then put them in place.

    The folder gets, of the formats asked for,

    - `saved_model/`, for TensorFlow Serving, with the signatures `serving_default` and
      `serving_uint8` (images -> probabilities), `classify` (encoded files -> names of the most
      probable classes) and `features`: see `keras_vgg.export.saved_model`;
    - `model.tflite`, `model_float16.tflite`, `model_dynamic.tflite` and `model_int8.tflite`, for
      LiteRT, with the signature `serving_default`: see `keras_vgg.export.litert`;
    - `model.onnx`, opset 18;

    all of which map `images` [batch, size, size, 3] RGB in [0, 255] (float32; uint8 in int8) to
    `probabilities` float32 [batch, classes]. Then `class_names.txt` (one a line, in the order of
    the outputs) and `export.json`: the artifacts with their figures, and the versions that made
    them. Batch normalisation is folded into the convolutions. A model that computes in lower
    precision is exported, and compared, in float32.

    The folder appears whole or not at all; a process killed at any moment leaves what was there
    before, at worst for the next export to put back.

    Args:
        model: one input [batch, size, size, 3] RGB in [0, 255], one output [batch, classes].
        class_names: one for each output, without line breaks.
        directory: where the export goes. Missing parents are made. A failure leaves it as it was.
        images: [n, size, size, 3] RGB in [0, 255], n >= 1; real ones, such as the validation set.
        labels: [n] integers, their classes. Without, no accuracy is stated.
        calibration: [n, size, size, 3], for litert_int8: images of the training set, some hundred.
        formats: which of FORMATS to write.
        tolerance: how many percentage points of top-1 accuracy a format of less than float32 may
            lose (without labels: on how many of the images it may differ from the model). One in
            float32 must answer like the model: probabilities within 1e-3, and the same most
            probable class where the model's two are not tied (nearer than 1e-5).
        transform: what `classify` does with a decoded image, uint8 [h, w, 3] -> [size, size, 3] in
            [0, 255]. Default: the smallest side rescaled to the model's size, and the centre.
        top: how many classes `classify` names.
        stand_in: gives what to write in the model's place, such as a compressed one; it is compared
            with `model`, and `tolerance` is for every format. Called with the folder that is being
            made, into which it may write more.
        overwrite: replace an export that is there; any other folder is refused all the same.
        verbose: show a progress bar on stderr.

    Returns:
        One Artifact for each format, in the order of `formats`.

    Raises:
        ExportError: a format cannot represent the model, or does not answer like it within the
            tolerance.
        ValueError: an unknown or repeated format, no format, a model with other inputs or outputs,
            class names or images that do not fit the model, images or weights that are not finite,
            a package that is not installed, no calibration images for litert_int8.
        FileExistsError: the directory exists and is not an export that `overwrite` may replace.
        OSError: the disk is full, or another process exports to the same place.
    """
    formats = tuple(formats)
    images = np.asarray(images, dtype=np.float32)
    directory = Path(os.path.abspath(directory))
    check_formats(formats)
    _check_model(model, class_names)
    _check_data(model, images, labels, calibration, "litert_int8" in formats)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more percentage points, not {tolerance}")
    if transform is None:
        transform = partial(augment.eval_image, size=_side(model), scale=_side(model))

    with (
        whole_folder(directory, _RECORD, overwrite) as built,
        progress_bars(verbose) as bars,
        _full_precision(),
    ):
        task = bars.add_task("model", total=len(formats) + 1)
        model = in_float32(model)
        expected = _probabilities(model, images)
        scratch = built.parent / "scratch"
        _keep_images(images, scratch)
        lean = folded(model if stand_in is None else in_float32(stand_in(built)))
        artifacts = []
        for format in formats:
            bars.update(task, advance=1, description=format)
            path = built / _FILES[format]
            with _quiet():
                _write(format, lean, path, scratch, class_names, transform, top, calibration)
            exact = format not in _REDUCED and stand_in is None
            most_lost = None if exact else tolerance
            artifacts.append(
                _artifact(format, path, scratch, expected, labels, class_names, most_lost)
            )
        bars.update(task, advance=1)
        _write_class_names(class_names, built / "class_names.txt")
        source = {
            "parameters": model.count_params(),
            "bytes": 4 * model.count_params(),
            **_accuracy(expected, labels, class_names),
        }
        record = _record(artifacts, source, tolerance)
        write_json(built / _RECORD, record)
    return [replace(artifact, path=directory / artifact.path.name) for artifact in artifacts]


def _check_data(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    calibration: np.ndarray | None,
    needs_calibration: bool,
) -> None:
    """Raise ValueError for weights, images or labels on which nothing can be verified."""
    require_finite_weights(model)
    _check_images(images, model.input_shape, "to verify the export on")
    if labels is not None and np.shape(labels) != (len(images),):
        raise ValueError(f"labels are {np.shape(labels)} for {len(images)} images")
    if needs_calibration:
        if calibration is None:
            raise ValueError("litert_int8 needs calibration images, of the training set")
        _check_images(calibration, model.input_shape, "to calibrate on")


def _probabilities(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the model's own answers, [n, classes]. ValueError: they are not finite."""
    # Keras annotates `verbose` as text, and documents 0.
    expected = model.predict(images, batch_size=_BATCH, verbose=0)  # pyright: ignore[reportArgumentType]
    expected = np.asarray(expected)
    if not np.isfinite(expected).all():
        raise ValueError("the model's own probabilities are not finite on these images")
    return expected


def _keep_images(images: np.ndarray, scratch: Path) -> None:
    """Write the images where the processes that run the artifacts read them."""
    scratch.mkdir()
    try:
        np.save(scratch / "images.npy", images)
    except OSError as error:  # NumPy's says how many bytes, and of no file
        raise OSError(f"{scratch} cannot be written; is the disk full? ({error})") from error


def _artifact(
    format: str,
    path: Path,
    scratch: Path,
    expected: np.ndarray,
    labels: np.ndarray | None,
    class_names: Sequence[str],
    most_lost: float | None,
) -> Artifact:
    """Run a written file on the images and return what was found.

    `most_lost`: percentage points of accuracy that it may lose; None: it must answer like the
    model. Raises ExportError where it does not hold that.
    """
    answers = verify.run(format, path, scratch / "images.npy", scratch)
    probabilities = answers.probabilities
    agreement, difference = verify.compare(format, probabilities, expected, labels, most_lost)
    size, digest = verify.size_and_sha256(path)
    return Artifact(
        format=format,
        path=path,
        bytes=size,
        sha256=digest,
        images=len(expected),
        **_accuracy(probabilities, labels, class_names),
        agreement=agreement,
        max_difference=difference,
        latency_ms=answers.latency_ms,
        peak_bytes=answers.peak_bytes,
        float_operations=float_operations(path) if format == "litert_int8" else (),
    )


def _side(model: keras.Model) -> int:
    height, width = model.input_shape[1:3]
    if height is None or height != width:
        raise ValueError(
            f"model {model.name!r} takes {model.input_shape}: pass a transform to images of a size"
            " that it takes"
        )
    return height


def _accuracy(
    probabilities: np.ndarray, labels: np.ndarray | None, class_names: Sequence[str]
) -> dict[str, float | None]:
    if labels is None:
        return {"top1": None, "top5": None}
    found = Evaluation(np.asarray(labels), probabilities, tuple(class_names))
    return {"top1": found.top1, "top5": found.top5}


def check_formats(formats: Sequence[str]) -> None:
    """ValueError for an unknown format, none at all, one twice, or a package that is missing."""
    known = ", ".join(FORMATS)
    for format in formats:
        if format not in FORMATS:
            raise ValueError(f"unknown export format {format!r}; known formats: {known}")
    if not formats or len(set(formats)) != len(formats):
        raise ValueError(f"formats must be one or more of {known}, each once, not {tuple(formats)}")
    if "onnx" in formats:
        require_packages()


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


def _check_images(images: np.ndarray, input_shape: tuple[int | None, ...], purpose: str) -> None:
    fits = images.ndim == 4 and all(
        want is None or have == want
        for have, want in zip(images.shape[1:], input_shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(f"images are {images.shape}; the model takes {input_shape}")
    if len(images) == 0:
        raise ValueError(f"there are no images {purpose}")
    require_finite_images(images, f"the images {purpose} hold")


def _write(
    format: str,
    model: keras.Model,
    path: Path,
    scratch: Path,
    class_names: Sequence[str],
    transform: Callable,
    top: int,
    calibration: np.ndarray | None,
) -> None:
    try:
        if format == "saved_model":
            write_saved_model(model, path, class_names, transform=transform, top=top)
        elif format == "onnx":
            write_onnx(model, path)
        else:
            source = scratch / "saved_model"
            if not source.exists():
                write_source(model, source)
            precision = format.removeprefix("litert").removeprefix("_") or "float32"
            write_litert(source, path, precision, calibration)
    except OSError:
        raise
    except Exception as error:  # a converter raises whatever its C++ side thought of
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{format}: the model cannot be converted: {lines[0]}") from error


def _record(
    artifacts: Sequence[Artifact], source: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    packages = ("keras", "tensorflow", "ai-edge-litert")
    if any(artifact.format == "onnx" for artifact in artifacts):
        packages += ONNX_PACKAGES
    return {
        "model": source,
        "tolerance": tolerance,
        "artifacts": [{**asdict(artifact), "path": artifact.path.name} for artifact in artifacts],
        "versions": package_versions(packages),
    }


def _write_class_names(class_names: Sequence[str], path: Path) -> None:
    path.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


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

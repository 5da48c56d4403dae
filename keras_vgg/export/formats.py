"""The formats of an export, their files, and how a model becomes a file of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.data.decode import BitDepth
from keras_vgg.export import description as descriptions
from keras_vgg.export import onnx, openvino
from keras_vgg.export.bfloat16 import in_bfloat16
from keras_vgg.export.litert import write_litert, write_source
from keras_vgg.export.packages import require_packages
from keras_vgg.export.quantisation import IMAGES, layer_errors
from keras_vgg.export.ranges import CalibrationMethod
from keras_vgg.export.saved_model import write_saved_model
from keras_vgg.export.verify import ExportError
from keras_vgg.native_stderr import without_native_stderr, without_tensorflow_message

if TYPE_CHECKING:
    import keras

FILES = {
    "saved_model": "saved_model",
    "saved_model_bfloat16": "saved_model_bfloat16",
    "litert": "model.tflite",
    "litert_float16": "model_float16.tflite",
    "litert_dynamic": "model_dynamic.tflite",
    "litert_int8": "model_int8.tflite",
    "litert_int16": "model_int16.tflite",
    "onnx": "model.onnx",
    "openvino": "openvino",
}
FORMATS = tuple(FILES)
DEFAULT_FORMATS = ("saved_model", "litert")
FLOAT32_FORMATS = ("saved_model", "litert", "onnx")
INTEGER_FORMATS = ("litert_int8", "litert_int16")  # calibrated on images


def check_formats(formats: Sequence[str]) -> None:
    """Raise ValueError for no format, an unknown or repeated one, or a package that is missing."""
    known = ", ".join(FORMATS)
    for format in formats:
        if format not in FORMATS:
            raise ValueError(f"unknown export format {format!r}; known formats: {known}")
    if not formats or len(set(formats)) != len(formats):
        raise ValueError(f"formats must be one or more of {known}, each once, not {tuple(formats)}")
    for format in formats:
        require_packages(format)


def write_format(
    format: str,
    model: keras.Model,
    path: Path,
    scratch: Path,
    *,
    class_names: Sequence[str],
    transform: Callable,
    bit_depth: BitDepth,
    top: int,
    calibration: np.ndarray | None,
    calibration_method: CalibrationMethod,
    description: dict[str, Any],
) -> None:
    """Write a model as one file or folder; the arguments are those of `keras_vgg.export.export`.

    Args:
        path: The file or folder to write.
        scratch: A folder for the SavedModel from which LiteRT and OpenVINO files are converted.
        description: What `keras_vgg.export.description.describe` returns, which the file keeps.

    Raises:
        ExportError: the format cannot represent the model.
        OSError: the file cannot be written.
    """
    description = descriptions.with_dtype(
        description, "uint8" if format == "litert_int8" else "float32"
    )
    try:
        # What the converters' C++ code prints says nothing more than their exceptions. TensorFlow
        # warns of the table of class names, which the file holds all the same.
        with (
            without_native_stderr(),
            without_tensorflow_message("Issue encountered when serializing"),
        ):
            if format.startswith("saved_model"):
                network = in_bfloat16(model) if format == "saved_model_bfloat16" else model
                write_saved_model(
                    network, path, class_names, transform=transform, bit_depth=bit_depth, top=top
                )
                descriptions.add_to_saved_model(path, description)
            elif format == "onnx":
                onnx.write_onnx(model, path, descriptions.properties(description))
            else:
                source = _source(model, scratch)
                if format == "openvino":
                    openvino.write_openvino(source, path, descriptions.properties(description))
                    return
                precision = format.removeprefix("litert").removeprefix("_") or "float32"
                method = calibration_method if format == "litert_int8" else "minmax"
                write_litert(source, path, precision, calibration, method)
                descriptions.add_to_litert(path, description)
    except OSError:
        raise
    except Exception as error:  # The converters raise exceptions of many types.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{format}: the model cannot be converted: {lines[0]}") from error


def quantisation_errors(
    model: keras.Model, path: Path, scratch: Path, images: np.ndarray
) -> list[dict[str, Any]]:
    """Return what `keras_vgg.export.quantisation` reports of a file of integers, layer by layer.

    Args:
        model: The model that the file was written from.
        scratch: As of `write_format`.
        images: The images that verify the file. Some of them, evenly spaced, are enough.
    """
    full = scratch / "float32.tflite"
    if not full.exists():
        with without_native_stderr():
            write_litert(_source(model, scratch), full, "float32")
    chosen = np.unique(np.linspace(0, len(images) - 1, IMAGES).round().astype(int))
    names = [layer.name for layer in model.layers]
    return layer_errors(path.read_bytes(), full.read_bytes(), images[chosen], names)


def _source(model: keras.Model, scratch: Path) -> Path:
    """Return the SavedModel to convert, which the first call writes."""
    source = scratch / "saved_model"
    if not source.exists():
        write_source(model, source)
    return source

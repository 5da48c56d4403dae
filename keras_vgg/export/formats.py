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
from keras_vgg.export.saved_model import write_saved_model
from keras_vgg.export.verify import ExportError
from keras_vgg.native_stderr import without_native_stderr

if TYPE_CHECKING:
    import keras

FILES = {
    "saved_model": "saved_model",
    "saved_model_bfloat16": "saved_model_bfloat16",
    "litert": "model.tflite",
    "litert_float16": "model_float16.tflite",
    "litert_dynamic": "model_dynamic.tflite",
    "litert_int8": "model_int8.tflite",
    "onnx": "model.onnx",
    "openvino": "openvino",
}
FORMATS = tuple(FILES)
DEFAULT_FORMATS = ("saved_model", "litert")
FLOAT32_FORMATS = ("saved_model", "litert", "onnx")


def check_formats(formats: Sequence[str]) -> None:
    """Raise ValueError for no format, an unknown or repeated one, or a package that is missing."""
    known = ", ".join(FORMATS)
    for format in formats:
        if format not in FORMATS:
            raise ValueError(f"unknown export format {format!r}; known formats: {known}")
    if not formats or len(set(formats)) != len(formats):
        raise ValueError(f"formats must be one or more of {known}, each once, not {tuple(formats)}")
    for module in (onnx, openvino):
        if module.__name__.rpartition(".")[2] in formats:
            module.require_packages()


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
        # What the converters' C++ code prints says nothing more than their exceptions.
        with without_native_stderr():
            if format.startswith("saved_model"):
                network = in_bfloat16(model) if format == "saved_model_bfloat16" else model
                write_saved_model(
                    network, path, class_names, transform=transform, bit_depth=bit_depth, top=top
                )
                descriptions.add_to_saved_model(path, description)
            elif format == "onnx":
                onnx.write_onnx(model, path, descriptions.properties(description))
            else:
                source = scratch / "saved_model"
                if not source.exists():
                    write_source(model, source)
                if format == "openvino":
                    openvino.write_openvino(source, path, descriptions.properties(description))
                    return
                precision = format.removeprefix("litert").removeprefix("_") or "float32"
                write_litert(source, path, precision, calibration)
                descriptions.add_to_litert(path, description)
    except OSError:
        raise
    except Exception as error:  # The converters raise exceptions of many types.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"{format}: the model cannot be converted: {lines[0]}") from error

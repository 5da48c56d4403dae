"""Keras -> LiteRT (TFLite) files of four precisions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

_SIGNATURE = "serving_default"

# A quantised file's way in and out of integers, which is no computation.
_CASTS = {"QUANTIZE", "DEQUANTIZE"}


def write_source(model: keras.Model, path: Path) -> None:
    """The SavedModel that is converted: `images` -> `probabilities`, and no other signature."""
    import tensorflow as tf

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(images, training=False)}

    archive = keras.export.ExportArchive()
    # No track(model): the endpoint tracks its variables, and both would store every weight twice.
    archive.add_endpoint(
        _SIGNATURE,
        serve,
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")],
    )
    # Keras makes the archive of its backend, here TensorFlow.
    archive.write_out(str(path), verbose=False)  # pyright: ignore[reportAttributeAccessIssue]


def write_litert(
    source: Path, path: Path, precision: str, calibration: np.ndarray | None = None
) -> None:
    """Convert what `write_source` wrote.

    `precision` is "float32"; "float16", whose weights are float16 and computed with as float32
    where the machine has nothing better; "dynamic", int8 weights, one scale a channel, and
    float32 images between the layers; "int8", all integers, images uint8 [n, size, size, 3] in,
    probabilities float32 out. `calibration`, [n, size, size, 3] RGB in [0, 255], is what "int8"
    takes the ranges of every layer's values from.

    Only LiteRT's own operations are used: the runtime alone can run the file. An operation that
    has no integer form stays in float32 (`float_operations` lists these).
    """
    import tensorflow as tf

    # Not model.export(format="litert"): that lets TensorFlow operations in, which the LiteRT
    # runtime alone cannot run, and calls the output output_0.
    converter = tf.lite.TFLiteConverter.from_saved_model(str(source))
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        assert calibration is not None  # int8 needs it
        converter.representative_dataset = lambda: (
            {"images": image[np.newaxis].astype(np.float32)} for image in calibration
        )
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
        converter.inference_input_type = tf.uint8
    with warnings.catch_warnings():
        # Calibration uses TensorFlow's interpreter, which says that LiteRT's will replace it.
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        path.write_bytes(converter.convert())


def float_operations(path: Path) -> tuple[str, ...]:
    """Names of the operations of a LiteRT file that compute with float32 values, in order.

    Of a file in integers: what stayed float.
    """
    from ai_edge_litert import schema_py_generated as schema

    # Any: what flatc generates says None for a list that is absent, and these are there.
    model: Any = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    found = []
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            name = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            types = {graph.tensors[i].type for i in operator.outputs}
            if name not in _CASTS and schema.TensorType.FLOAT32 in types:
                found.append(name)
    return tuple(found)

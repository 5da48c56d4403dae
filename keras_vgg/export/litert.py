"""Convert a Keras model to LiteRT (TFLite) files of five precisions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vgg.export.ranges import CalibrationMethod, choose_ranges

_SIGNATURE = "serving_default"


def write_source(model: keras.Model, path: Path, output: str = "probabilities") -> None:
    """Write the SavedModel to convert, with one signature: `images` -> the named output."""
    import tensorflow as tf

    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {output: model(images, training=False)}

    archive = keras.export.ExportArchive()
    # No track(model): the endpoint tracks the variables, and both would store every weight twice.
    archive.add_endpoint(
        _SIGNATURE,
        serve,
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")],
    )
    # Keras returns the archive of the current backend, here TensorFlow.
    archive.write_out(str(path), verbose=False)  # pyright: ignore[reportAttributeAccessIssue]


def write_litert(
    source: Path,
    path: Path,
    precision: str,
    calibration: np.ndarray | None = None,
    calibration_method: CalibrationMethod = "minmax",
) -> None:
    """Convert the SavedModel of `write_source` to a LiteRT file.

    The file uses LiteRT's own operations only, so the runtime alone can run the file. An operation
    that has no integer form stays in float32 (`litert_tensors.float_operations` lists these).

    Args:
        source: The SavedModel.
        path: The file to write.
        precision: "float32"; "float16", float16 weights, computed with as float32 where the
            machine has nothing better; "dynamic", int8 weights with one scale a channel, and
            float32 feature maps; "int8", integers only, images uint8 [n, size, size, 3] in,
            probabilities float32 out; "int16", int8 weights and int16 feature maps, images float32
            in.
        calibration: [n, size, size, 3] RGB in [0, 255], for "int8" and "int16": these images give
            the range of every layer's values.
        calibration_method: How they give the ranges for "int8": see `keras_vgg.export.ranges`.
    """
    import tensorflow as tf

    # Not model.export(format="litert"): that allows TensorFlow operations, which the LiteRT
    # runtime alone cannot run, and names the output output_0.
    converter = tf.lite.TFLiteConverter.from_saved_model(str(source))
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision in ("int8", "int16"):
        assert calibration is not None  # integers need it
        if precision == "int16":
            # The range of the input is that of the images, which a white one completes. 16 bits
            # have steps to spare, and 8 bits get the range without it, in `choose_ranges`.
            calibration = np.concatenate([calibration, np.full_like(calibration[:1], 255)])
        converter.representative_dataset = lambda: (
            {"images": image[np.newaxis].astype(np.float32)} for image in calibration
        )
        kinds = tf.lite.OpsSet
        integers = {
            "int8": kinds.TFLITE_BUILTINS_INT8,
            "int16": kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        }
        converter.target_spec.supported_ops = [integers[precision], kinds.TFLITE_BUILTINS]
    if precision == "int8":
        converter.inference_input_type = tf.uint8
    with warnings.catch_warnings():
        # Calibration uses TensorFlow's interpreter, which warns that LiteRT's will replace it.
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        if precision == "int8":
            assert calibration is not None
            content = _with_chosen_ranges(converter, calibration, calibration_method)
        else:
            content = converter.convert()
    path.write_bytes(content)


def _with_chosen_ranges(
    converter: Any, calibration: np.ndarray, method: CalibrationMethod
) -> bytes:
    """Convert to int8 in two steps, as tf.lite.experimental.QuantizationDebugger does.

    TensorFlow has no public way to change the ranges in between.
    """
    import tensorflow as tf
    from tensorflow.lite.python import convert

    converter._experimental_calibrate_only = True
    chosen = choose_ranges(converter.convert(), calibration, method)
    quantize: Any = convert.mlir_quantize  # Its annotations name other types than tf.uint8 has.
    return quantize(chosen, input_data_type=tf.uint8, output_data_type=tf.float32)

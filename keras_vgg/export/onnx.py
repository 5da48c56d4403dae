"""Keras -> ONNX."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import keras

OPSET = 18
PACKAGES = ("tf2onnx", "onnx", "onnxruntime")


def require_packages() -> None:
    """ValueError naming what is to be installed, where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the format onnx needs {', '.join(missing)}: pip install 'keras-vgg[onnx]'"
        )


def write_onnx(model: keras.Model, path: Path) -> None:
    """Convert a model: `images` float32 [batch, size, size, 3] -> `probabilities` [batch, classes].

    Opset 18. Keras' own export has opset 15, another name for every output, and fails on a model
    that was never called.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")]

    @tf.function(input_signature=signature)
    def serve(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(images, training=False)}

    with warnings.catch_warnings():
        # tf2onnx 1.17 asks NumPy for an alias that it will have again.
        warnings.filterwarnings("ignore", message=r"In the future `np\.object`")
        import onnx
        import tf2onnx

        proto, _ = tf2onnx.convert.from_function(serve, input_signature=signature, opset=OPSET)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))

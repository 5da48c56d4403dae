"""Convert a Keras model to ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

if TYPE_CHECKING:
    import onnx

OPSET = 18


def write_onnx(model: keras.Model, path: Path, properties: Mapping[str, str] | None = None) -> None:
    """Convert a model: `images` float32 [batch, size, size, 3] -> `probabilities` [batch, classes].

    The file has opset 18. Keras' own export has opset 15 and other names of the outputs, and fails
    on a model that was never called. `properties` become the file's metadata_props.
    """
    import tensorflow as tf

    # The converter copies every constant many times (24 GB were not enough for VGG-16). So the
    # weights are inputs first, and become constants afterwards.
    weights = {f"weight_{i}": weight for i, weight in enumerate(model.weights)}
    signature = [
        tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images"),
        *(tf.TensorSpec(weight.shape, tf.float32, name=name) for name, weight in weights.items()),
    ]

    @tf.function(input_signature=signature)
    def serve(images: tf.Tensor, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        with keras.StatelessScope(zip(weights.values(), values, strict=True)):
            return {"probabilities": model(images, training=False)}

    with warnings.catch_warnings():
        # tf2onnx 1.17 uses np.object, an alias that NumPy will define anew.
        warnings.filterwarnings("ignore", message=r"In the future `np\.object`")
        import onnx
        import tf2onnx

        proto, _ = tf2onnx.convert.from_function(serve, input_signature=signature, opset=OPSET)
    _make_constant(proto, {name: np.asarray(weight) for name, weight in weights.items()})
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(proto, dict(properties or {}))
    onnx.save(proto, str(path))
    onnx.checker.check_model(str(path))


def _make_constant(proto: onnx.ModelProto, values: dict[str, np.ndarray]) -> None:
    """Turn inputs of a graph, and all values that depend on constants alone, into constants."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    graph = proto.graph
    inputs = [value for value in graph.input if value.name in values]
    constant_names = {*values, *(tensor.name for tensor in graph.initializer)}
    constant_nodes = []
    for node in graph.node:
        if {*node.input} <= constant_names:
            constant_nodes.append(node)
            constant_names |= {*node.output}
    other_nodes = [node for node in graph.node if node not in constant_nodes]
    needed = {name for node in other_nodes for name in node.input}
    outputs = [name for node in constant_nodes for name in node.output if name in needed]
    constants = {name: value for name, value in values.items() if name in needed}
    if outputs:
        constant_graph = helper.make_graph(
            constant_nodes,
            "constants",
            inputs,
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            [*graph.initializer],
        )
        model = helper.make_model(constant_graph, opset_imports=proto.opset_import)
        constants |= dict(zip(outputs, ReferenceEvaluator(model).run(None, values), strict=True))
    kept_tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    for field in (graph.node, graph.initializer):
        del field[:]
    graph.node.extend(other_nodes)
    graph.initializer.extend(kept_tensors)
    for name, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    for value in inputs:
        graph.input.remove(value)

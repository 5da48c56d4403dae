"""Read the operations and the tensors of a LiteRT file, and run the file to see all its values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# These change the type of a quantised file's values. They compute nothing.
CASTS = {"QUANTIZE", "DEQUANTIZE"}


class Operation(NamedTuple):
    """An operation of a file: its name, such as "CONV_2D", and the numbers of its tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def operations(content: bytes | bytearray) -> list[Operation]:
    """Return the operations of a file's first graph, in the order in which they run."""
    model = _model(content)
    return _operations(model, model.Subgraphs(0))


def float_operations(content: bytes | bytearray) -> tuple[str, ...]:
    """Return the names of a file's operations that compute with float32 values, in order."""
    from ai_edge_litert.schema_py_generated import TensorType

    model = _model(content)
    return tuple(
        operation.name
        for graph in map(model.Subgraphs, range(model.SubgraphsLength()))
        for operation in _operations(model, graph)
        if operation.name not in CASTS
        and any(graph.Tensors(number).Type() == TensorType.FLOAT32 for number in operation.outputs)
    )


def _model(content: bytes | bytearray) -> Any:
    """Return the root of a file. Any: the annotations allow None for fields that a model has."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.Model.GetRootAs(content, 0)


def _operations(model: Any, graph: Any) -> list[Operation]:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    listed = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        tensors = (
            tuple(number for number in map(tensor, range(count)) if number >= 0)  # -1 is no input
            for tensor, count in (
                (operator.Inputs, operator.InputsLength()),
                (operator.Outputs, operator.OutputsLength()),
            )
        )
        listed.append(Operation(name, *tensors))
    return listed


class Network:
    """A file in memory whose tensors can all be read after each image.

    `details` has the name, data type and quantisation of each tensor, by its number.
    """

    def __init__(self, content: bytes | bytearray) -> None:
        from ai_edge_litert import interpreter

        # The default resolver hands whole parts of the graph to XNNPACK, which keeps no values.
        resolver = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self._interpreter: Any = interpreter.Interpreter(
            model_content=bytes(content),
            experimental_op_resolver_type=resolver,
            experimental_preserve_all_tensors=True,
        )
        (image,) = self._interpreter.get_input_details()
        self._image = image
        self._resize(image["shape"][1:])

    def _resize(self, sides: Sequence[int]) -> None:
        self._sides = tuple(map(int, sides))
        self._interpreter.resize_tensor_input(self._image["index"], [1, *self._sides])
        self._interpreter.allocate_tensors()
        details = self._interpreter.get_tensor_details()
        self.details = {int(detail["index"]): detail for detail in details}

    def run(self, image: np.ndarray) -> None:
        """Run the file on one image [size, size, 3] RGB in [0, 255]."""
        if image.shape != self._sides:  # a file for images of any size
            self._resize(image.shape)
        if self._image["dtype"] == np.uint8:
            image = np.rint(image)
        self._interpreter.set_tensor(
            self._image["index"], image[np.newaxis].astype(self._image["dtype"])
        )
        self._interpreter.invoke()

    def values(self, tensor: int) -> np.ndarray:
        """Return a tensor's values as float32 numbers, whatever their type."""
        stored = self._interpreter.get_tensor(tensor)
        quantisation = self.details[tensor]["quantization_parameters"]
        scales, zeros = quantisation["scales"], quantisation["zero_points"]
        if not len(scales):
            return stored
        shape = [1] * stored.ndim
        if len(scales) > 1:
            shape[quantisation["quantized_dimension"]] = -1
        offset = stored.astype(np.float32) - zeros.reshape(shape).astype(np.float32)
        return offset * scales.reshape(shape)


def values_on(
    content: bytes | bytearray, images: np.ndarray, tensors: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number and the values of each of some tensors, image by image."""
    network = Network(content)
    for image in images:
        network.run(image)
        for tensor in tensors:
            yield tensor, network.values(tensor)

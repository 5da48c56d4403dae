"""Write the warm-up requests of a SavedModel in the format that TensorFlow Serving reads."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from tensorflow.core.framework import tensor_pb2

_PACKAGE = "keras_vgg.serving"


def write_warmup(
    requests: Mapping[str, Mapping[str, tf.Tensor]], path: Path, model_name: str
) -> None:
    """Write a TFRecord of tensorflow.serving.PredictionLog: one for each signature -> inputs."""
    prediction_log = _messages()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            log: Any = prediction_log()  # `_messages` makes its class, so no type checker knows it.
            request = log.predict_log.request
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, value in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())


@cache
def _messages() -> type[Message]:
    """Return the class PredictionLog, with the fields that a warm-up request needs.

    The package tensorflow-serving-api has the full class, but brings gRPC with it. The numbers and
    types of the fields are those of tensorflow_serving/apis/*.proto; the names do not matter.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_vgg/serving.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[tensor_pb2.DESCRIPTOR.name],
    )

    def message(name: str, *fields: tuple[str, int, str | None]) -> descriptor_pb2.DescriptorProto:
        descriptor = file.message_type.add(name=name)
        for field, number, kind in fields:
            _add_field(descriptor, field, number, kind)
        return descriptor

    message("ModelSpec", ("name", 1, None), ("signature_name", 3, None))
    request = message("PredictRequest", ("model_spec", 1, f".{_PACKAGE}.ModelSpec"))
    entry = request.nested_type.add(name="InputsEntry")
    entry.options.map_entry = True
    _add_field(entry, "key", 1, None)
    _add_field(entry, "value", 2, ".tensorflow.TensorProto")
    _add_field(request, "inputs", 2, f".{_PACKAGE}.PredictRequest.InputsEntry", repeated=True)
    message("PredictLog", ("request", 1, f".{_PACKAGE}.PredictRequest"))
    message("PredictionLog", ("predict_log", 6, f".{_PACKAGE}.PredictLog"))

    pool = descriptor_pool.Default()  # The default pool has TensorFlow's own messages.
    pool.Add(file)
    prediction_log = pool.FindMessageTypeByName(f"{_PACKAGE}.PredictionLog")
    return message_factory.GetMessageClass(prediction_log)


def _add_field(
    message: descriptor_pb2.DescriptorProto,
    name: str,
    number: int,
    kind: str | None,
    repeated: bool = False,
) -> None:
    """Add a field to a message: a message of type `kind`, or a string if `kind` is None."""
    field = descriptor_pb2.FieldDescriptorProto
    message.field.add(
        name=name,
        number=number,
        label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
        type=field.TYPE_STRING if kind is None else field.TYPE_MESSAGE,
        type_name=kind,
    )

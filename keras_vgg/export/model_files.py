"""Open the files that hold a network: .keras, and those of an export."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import evaluation
from keras_vgg.containers import open_archive
from keras_vgg.evaluation.multilabel import THRESHOLD
from keras_vgg.export import description as descriptions
from keras_vgg.export.checks import activation_name
from keras_vgg.export.packages import require_packages
from keras_vgg.finite import are_probabilities
from keras_vgg.native_stderr import without_native_stderr

_PREPROCESSING = ("ImagePreprocessing", "Rescaling", "Normalization")


class Network:
    """A network of a file, which runs on a batch.

    `shape` is the shape of an image; a side may be None. `answer` maps images to probabilities.
    """

    def __init__(
        self, shape: Sequence[int | None], classes: int, answer: Callable[[np.ndarray], Any]
    ) -> None:
        self.shape, self.classes = tuple(shape), classes
        self._answer = answer

    def __call__(self, images: np.ndarray) -> np.ndarray:
        probabilities = np.asarray(self._answer(images), np.float32)
        if probabilities.ndim != 2:
            raise ValueError(
                f"the model answers with {probabilities.shape}, a map, not with probabilities of "
                "the image: run the file by its own runtime"
            )
        if not np.isfinite(probabilities).all():
            raise ValueError("the model's answers are not finite: they hold nan or inf")
        low, high = probabilities.min(), probabilities.max()
        if not are_probabilities(low, high):
            raise ValueError(
                f"the model's answers are not probabilities: they go from {low:.4g} to {high:.4g}"
            )
        return probabilities


Opened = tuple[Network, Mapping[str, Any], Sequence[str]]
"""A network, what its file states (`keras_vgg.export.description`), and notes for a user."""


def open_model_file(path: Path) -> Opened:
    """Open a .keras file, or a file or folder of an export.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is none of these, is damaged, or maps no images to probabilities.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is not a run directory or a model file: it does not exist")
    opener = next((opener for opener, fits in _OPENERS.items() if fits(path)), None)
    if opener is None:
        raise ValueError(
            f"{path} is not a run directory or a model file: name a run, a .keras, .tflite, .onnx"
            " or OpenVINO .xml file, or a SavedModel folder; convert other weight files by"
            " `keras-vgg convert FILE model.keras`"
        )
    return opener(path)


def _open_keras(path: Path) -> Opened:
    import keras

    from keras_vgg.graph import final_activation
    from keras_vgg.layers import load_keras_file

    model = load_keras_file(path)
    shape, outputs = model.input_shape, model.output_shape
    if not (isinstance(shape, tuple) and isinstance(outputs, tuple) and len(outputs) == 2):
        raise ValueError(f"{path} maps {shape} to {outputs}, not images to probabilities")
    notes = []
    if not any(type(layer).__name__ in _PREPROCESSING for layer in model.layers):
        notes.append(
            f"{path} has no preprocessing layer, and gets images in [0, 255]. If it was "
            "trained on other values, as the networks of keras.applications were, its answers are "
            "wrong: put keras_vgg.ImagePreprocessing in front, and save it again"
        )
    scores = final_activation(model) is keras.activations.linear
    if scores:
        notes.append(f"{path} gives scores; its probabilities are their soft-max")
    stated = {}
    if activation_name(model) == "sigmoid":
        stated = {"output": {"thresholds": [THRESHOLD] * outputs[-1]}}
        notes.append(
            f"{path} ends in sigmoids, and states no thresholds: an image gets each label from a "
            f"probability of {THRESHOLD} on"
        )
    model.jit_compile = False

    def answer(images: np.ndarray) -> np.ndarray:
        values = np.asarray(model.predict_on_batch(images), np.float32)
        return evaluation.softmax(values) if scores else values

    return Network(shape[1:], outputs[-1], answer), stated, notes


def _open_saved_model(path: Path) -> Opened:
    import tensorflow as tf

    try:
        loaded: Any = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    serve = loaded.signatures.get("serving_default")
    inputs = {} if serve is None else serve.structured_input_signature[1]
    if (
        serve is None
        or set(inputs) != {"images"}
        or "probabilities" not in serve.structured_outputs
    ):
        raise ValueError(
            f"{path} has no signature serving_default from images to probabilities, as an export"
            " of this package has"
        )
    stated_file = path / "assets.extra" / descriptions.NAME
    stated = _stated(path, stated_file.read_bytes() if stated_file.is_file() else None)
    classes = serve.structured_outputs["probabilities"].shape[-1]
    # The default argument keeps the model alive while its signature is in use.
    return (
        Network(
            inputs["images"].shape[1:],
            classes,
            lambda images, _loaded=loaded: serve(images=tf.constant(images))["probabilities"],
        ),
        stated,
        (),
    )


def _open_litert(path: Path) -> Opened:
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path))
        with without_native_stderr():  # It names the delegate that it makes.
            interpreter.allocate_tensors()
        serve = interpreter.get_signature_runner("serving_default")
        image = serve.get_input_details()["images"]
        classes = int(serve.get_output_details()["probabilities"]["shape"][-1])
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged, or has no signature serving_default from images to probabilities,"
            f" as an export of this package has ({str(error).splitlines()[0]})"
        ) from error

    def answer(images: np.ndarray) -> np.ndarray:
        if image["dtype"] == np.uint8:
            images = np.rint(images).astype(np.uint8)
        return serve(images=images)["probabilities"]

    # `shape` has a 1 where any side is taken, and the signature -1.
    signature = image.get("shape_signature", image["shape"])
    shape = [int(side) if side > 0 else None for side in signature[1:]]
    return Network(shape, classes, answer), _stated(path, _appended(path)), ()


def _appended(path: Path) -> bytes | None:
    """Return what the archive at the end of a LiteRT file states; None without an archive."""
    if not zipfile.is_zipfile(path):
        return None
    with open_archive(path) as archive:
        has_description = descriptions.NAME in archive.namelist()
        return archive.read(descriptions.NAME) if has_description else None


def _open_onnx(path: Path) -> Opened:
    require_packages("onnx")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (image,), (output,) = session.get_inputs(), session.get_outputs()
    except Exception as error:  # onnxruntime raises exceptions of its own, and ValueError
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    content = session.get_modelmeta().custom_metadata_map.get(descriptions.KEY)
    shape = [side if isinstance(side, int) else None for side in image.shape[1:]]
    network = Network(
        shape, output.shape[-1], lambda images: session.run([output.name], {image.name: images})[0]
    )
    return network, _stated(path, content), ()


def _open_openvino(path: Path) -> Opened:
    require_packages("openvino")
    import openvino

    core = openvino.Core()
    try:
        with without_native_stderr():  # It names what other formats the file does not have.
            model: Any = core.read_model(str(path))
        (image,), (output,) = model.inputs, model.outputs
        compiled: Any = core.compile_model(model, "CPU")
    except (RuntimeError, ValueError) as error:  # OpenVINO's last line is the reason
        raise ValueError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from error
    shape = [side.get_length() if side.is_static else None for side in image.partial_shape][1:]
    classes = output.partial_shape[-1].get_length()
    stated = model.has_rt_info([descriptions.KEY])
    content = model.get_rt_info([descriptions.KEY]).value if stated else None
    network = Network(shape, classes, lambda images: compiled([images])[0])
    return network, _stated(path, content), ()


def _stated(path: Path, content: bytes | str | None) -> Mapping[str, Any]:
    """Return what a file states about itself; without that, the class names that lie beside it."""
    if content is None:
        beside = path.parent / "class_names.txt"
        lines = beside.read_text(encoding="utf-8").splitlines() if beside.is_file() else []
        return {"class_names": lines} if lines else {}
    try:
        stated = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: what it states is not JSON ({error})") from error
    if not isinstance(stated, dict):
        raise ValueError(f"{path} is damaged: what it states is {str(stated)[:40]!r}")
    return stated


_OPENERS: dict[Callable[[Path], Opened], Callable[[Path], bool]] = {
    _open_saved_model: lambda path: (path / "saved_model.pb").is_file(),
    _open_keras: lambda path: path.suffix == ".keras",
    _open_litert: lambda path: path.suffix == ".tflite",
    _open_onnx: lambda path: path.suffix == ".onnx",
    _open_openvino: lambda path: path.suffix == ".xml",
}

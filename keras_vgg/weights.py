"""Keras weight files -> a model, whole or not at all."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import keras
import numpy as np

Tensors = dict[str, list[np.ndarray]]


def read_keras_weights(path: str | Path) -> Tensors:
    """Read a Keras weight file without building its model.

    Args:
        path: A legacy `.h5` file (layers by name, as keras.applications publishes them), a Keras 3
            `.weights.h5` file, or a `.keras` archive.

    Returns:
        For each layer that has weights, by layer name, its tensors in the layer's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of these, is damaged, or holds a value that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source: Path | io.BytesIO = io.BytesIO(archive.read("model.weights.h5"))
        else:
            source = path
        with h5py.File(source, "r") as file:
            tensors = _legacy(file) if "layer_names" in file.attrs else _keras3(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a readable Keras weight file (.h5, .weights.h5 or .keras): {error}"
        ) from error
    if not tensors:
        raise ValueError(f"{path} holds no layer weights")
    bad = [
        name for name, values in tensors.items() if not all(np.isfinite(v).all() for v in values)
    ]
    if bad:
        raise ValueError(f"{path} holds values that are not finite in {', '.join(bad)}")
    return tensors


def _legacy(file: h5py.File) -> Tensors:
    tensors: Tensors = {}
    for name in _strings(file.attrs["layer_names"]):
        names = _strings(file[name].attrs["weight_names"])
        if names:
            tensors[name] = [np.asarray(file[name][n]) for n in names]
    return tensors


def _strings(values: Sequence[bytes | str]) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _keras3(file: h5py.File) -> Tensors:
    tensors: Tensors = {}

    def visit(path: str, group: h5py.Group | h5py.Dataset) -> None:
        layer = "optimizer" not in path.split("/") and path.endswith("vars")
        if layer and isinstance(group, h5py.Group) and len(group):
            name = str(group.attrs.get("name", path))
            tensors[name] = [np.asarray(group[key]) for key in sorted(group, key=int)]

    file.visititems(visit)
    return tensors


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Load a Keras weight file into a model by layer name; see `assign`.

    Raises:
        FileNotFoundError, ValueError: as `read_keras_weights` and `assign`.
    """
    assign(model, read_keras_weights(path), source=str(path))


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the weights of `source`, as between `head="fc"` and `head="conv"`.

    Raises:
        ValueError: as `assign`.
    """
    tensors = {
        layer.name: [keras.ops.convert_to_numpy(w) for w in layer.weights]
        for layer in source.layers
        if layer.weights
    }
    assign(target, tensors, source=source.name)


def assign(model: keras.Model, tensors: Mapping[str, Sequence[np.ndarray]], source: str) -> None:
    """Set every weight of a model, by layer name; strict, and nothing is set when anything differs.

    A dense kernel [h*w*c, units] fits a convolution [h, w, c, units] and the other way round: a
    fully connected layer and its convolutional form hold the same numbers in the same order.

    Args:
        model: Any model whose weighted layers have distinct names.
        tensors: For each layer name, the tensors in the layer's order.
        source: What to call the tensors in an error.

    Raises:
        ValueError: lists the layers that are missing, left over, or of another shape.
    """
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    problems = [f"missing {name}" for name in layers if name not in tensors]
    problems += [f"left over {name}" for name in tensors if name not in layers]
    plan = []
    for name in layers.keys() & tensors.keys():
        wanted = [tuple(w.shape) for w in layers[name].weights]
        found = [tuple(t.shape) for t in tensors[name]]
        if len(wanted) != len(found) or not all(map(_same_numbers, wanted, found)):
            problems.append(f"{name} is {found}, the model wants {wanted}")
        else:
            plan += [
                (w, np.reshape(t, w.shape))
                for w, t in zip(layers[name].weights, tensors[name], strict=True)
            ]
    if problems:
        raise ValueError(
            f"weights of {source} do not fit the model {model.name}, nothing was loaded: "
            + "; ".join(sorted(problems))
        )
    for weight, value in plan:
        weight.assign(value)


def _same_numbers(wanted: tuple[int, ...], found: tuple[int, ...]) -> bool:
    if wanted == found:
        return True
    dense, conv = sorted((wanted, found), key=len)
    return (len(dense), len(conv)) == (2, 4) and dense == (int(np.prod(conv[:3])), conv[3])

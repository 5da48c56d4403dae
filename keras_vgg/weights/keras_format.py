"""Keras weight files: legacy .h5, .weights.h5, .keras archives, and KerasHub presets on disk."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keras_vgg.containers import require_archive, require_hdf5
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.weights.published import CHECKPOINTS
from keras_vgg.weights.tensors import TOP, Tensors, Weights

_CAFFE_FILES = {c.file for c in CHECKPOINTS if c.preprocessing == "caffe"}


def read_h5(path: Path) -> Weights:
    """A legacy `.h5` file (layers by name, as keras.applications has them) or `.weights.h5`."""
    require_hdf5(path)
    with _opening(path), h5py.File(path, "r") as file:
        tensors = _tensors(file)
    # Only the published files say by themselves, by their names, what they expect.
    preprocessing = ImagePreprocessing.caffe() if path.name in _CAFFE_FILES else None
    return Weights(tensors, str(path), preprocessing)


def read_archive(path: Path) -> Weights:
    """A `.keras` archive; nothing in it is run."""
    require_archive(path)
    require_hdf5(path, "model.weights.h5")
    with _opening(path), zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
        config = json.loads(archive.read("config.json"))
        if not isinstance(config, Mapping):
            raise ValueError(f"its config.json holds a {type(config).__name__}, not an object")
        objects = list(_objects(config))
        with h5py.File(content, "r") as file:
            tensors = _tensors(file)
        found = [o for o in objects if o.get("class_name") == "ImagePreprocessing"]
        preprocessing = _preprocessing(found[0]) if len(found) == 1 else None
    lrn = any(o.get("class_name") == "LocalResponseNormalization" for o in objects)
    last = {str(o["name"]): o["activation"] for o in objects if "name" in o and "activation" in o}
    # The convolutional head's predictions are scores, which a layer of their own ends.
    logits = last.get("probabilities", last.get("predictions")) == "linear"
    return Weights(tensors, str(path), preprocessing, lrn=lrn, logits=logits)


def _preprocessing(found: Mapping[str, Any]) -> ImagePreprocessing:
    """The layer of a Keras configuration."""
    config = found.get("config")
    names = ("mean", "std", "channel_order")
    if not isinstance(config, Mapping) or not all(name in config for name in names):
        raise ValueError(f"its config.json gives its ImagePreprocessing no {', '.join(names)}")
    return ImagePreprocessing(*(config[name] for name in names))


def read_preset(folder: Path) -> Weights:
    """A KerasHub preset: a backbone's weights, and a task's head beside them."""
    tensors: Tensors = {}
    for name in ("model.weights.h5", "task.weights.h5"):
        path = folder / name
        if path.is_file():
            require_hdf5(path)
            with _opening(path), h5py.File(path, "r") as file:
                tensors |= _tensors(file)
    preprocessing = None
    path = folder / "preprocessor.json"
    if path.is_file():
        with _opening(path, "no KerasHub preprocessor"):
            preprocessing = _converter(json.loads(path.read_text(encoding="utf-8")))
    return Weights(tensors, str(folder), preprocessing)


def _converter(config: Mapping[str, Any]) -> ImagePreprocessing | None:
    """KerasHub's image converter computes x * scale + offset."""
    for found in _objects(config):
        values = found.get("config")
        if isinstance(values, dict) and values.get("scale") is not None and "offset" in values:
            scale, offset = (np.atleast_1d(values[k] or 0.0) for k in ("scale", "offset"))
            with np.errstate(all="ignore"):  # the layer refuses what is not finite
                mean = np.broadcast_to(-offset / scale, np.broadcast_shapes((3,), scale.shape))
                std = 1 / scale
            return ImagePreprocessing(mean.tolist(), std.tolist(), "rgb")
    return None


def write_legacy(tensors: Tensors, path: Path) -> None:
    """Write the layout in which keras.applications' files are published."""
    names = sorted(tensors)  # Keras goes by the order, which the names of VGG's layers are in
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"] = b"tensorflow"
        for name in names:
            values = tensors[name]
            group = file.create_group(name)
            kinds = ("gamma", "beta", "moving_mean", "moving_variance")
            if len(values) == 2:
                kinds = ("kernel", "bias")
            full_names = [f"{name}/{kind}:0" for kind in kinds]
            group.attrs["weight_names"] = [n.encode() for n in full_names]
            for full, value in zip(full_names, values, strict=True):
                flat = name in TOP and value.ndim == 4
                group[full] = value.reshape(-1, value.shape[-1]) if flat else value


@contextlib.contextmanager
def _opening(
    path: Path, kind: str = "no Keras weight file (.h5, .weights.h5, .keras)"
) -> Iterator[None]:
    """Turn what h5py, zipfile and json say of a damaged file into one ValueError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # h5py, zipfile, zlib and json have many ways to say it
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged, or {kind}: {reason}") from error


def _tensors(file: h5py.File) -> Tensors:
    if "model_weights" in file:  # a whole model, as model.save("x.h5") writes it
        file = file["model_weights"]
    return _legacy(file) if "layer_names" in file.attrs else _keras3(file)


def _legacy(file: h5py.File) -> Tensors:
    tensors: Tensors = {}
    for name in _strings(file.attrs["layer_names"]):
        names = _strings(file[name].attrs["weight_names"])
        if names:
            tensors[name] = [_values(file, f"{name}/{n}") for n in names]
    return tensors


def _values(group: h5py.Group, name: str) -> np.ndarray:
    """An array of a group, in the byte order of this machine."""
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{found.name} is a group, not an array")
    values = np.asarray(found)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _strings(values: Sequence[bytes | str]) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _keras3(file: h5py.File) -> Tensors:
    tensors: Tensors = {}

    def visit(path: str, group: h5py.Group | h5py.Dataset) -> None:
        layer = "optimizer" not in path.split("/") and path.endswith("vars")
        if layer and isinstance(group, h5py.Group) and len(group):
            name = str(group.attrs.get("name", path))
            if name in tensors:
                raise ValueError(f"two layers of it are called {name}")
            tensors[name] = [_values(group, key) for key in sorted(group, key=int)]

    file.visititems(visit)
    return tensors


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every object of a JSON document."""
    if isinstance(config, Mapping):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _objects(value)

"""Read Keras weight files (legacy .h5, .weights.h5, .keras) and KerasHub presets; write .h5."""

from __future__ import annotations

import collections
import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_vgg.architecture import BATCH_NORM_EPSILON
from keras_vgg.containers import require_archive, require_hdf5
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.memory_errors import unread_file
from keras_vgg.weights.published import CHECKPOINTS
from keras_vgg.weights.tensors import (
    TOP,
    Tensors,
    Weights,
    is_base,
    pooling_of,
    require_one_piece,
    unnested,
)

_CAFFE_FILES = {c.file for c in CHECKPOINTS if c.preprocessing == "caffe"}

# Where Keras' files hold the layers of a network; the second name is that of TensorFlow 2.13.
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_NO_NAMES = (
    "it was written by Keras before 3.6, which states no layer names: load it into its network "
    "and save that as .keras"
)


def read_h5(path: Path) -> Weights:
    """Read `.weights.h5`, or a legacy `.h5` (layers by name, as in keras.applications' files)."""
    require_hdf5(path)
    with _opening(path), h5py.File(path, "r") as file:
        tensors = _tensors(file)
        is_ordered = "layer_names" in _model(file).attrs
    tensors, note = unnested(tensors, str(path))
    if is_ordered:
        require_one_piece(tensors, [name.rsplit("/", 1)[-1] for name in tensors], str(path))
    # These formats state no preprocessing; the published files are known by their names.
    preprocessing = ImagePreprocessing.caffe() if path.name in _CAFFE_FILES else None
    return Weights(tensors, str(path), preprocessing, note).with_note(_names_note(tensors))


def read_archive(path: Path) -> Weights:
    """Read a `.keras` archive without running its code."""
    require_archive(path)
    require_hdf5(path, "model.weights.h5")
    with _opening(path), zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
        config = json.loads(archive.read("config.json"))
        with h5py.File(content, "r") as file:
            return _saved_network(_tensors(file, config), config, str(path))


def read_folder(folder: Path) -> Weights:
    """Read the files of a `.keras` archive from a folder, as Keras saves a network on the hub."""
    weights_path, config_path = folder / "model.weights.h5", folder / "config.json"
    require_hdf5(weights_path)
    with _opening(config_path, "no configuration of Keras"):
        config = json.loads(config_path.read_text(encoding="utf-8"))
    with _opening(weights_path), h5py.File(weights_path, "r") as file:
        return _saved_network(_tensors(file, config), config, str(folder))


def is_preset(folder: Path) -> bool:
    """Return whether a folder with model.weights.h5 is a KerasHub preset."""
    path = folder / "config.json"
    if not path.is_file():
        return True
    with _opening(path, "no configuration of Keras"):
        config = json.loads(path.read_text(encoding="utf-8"))
        return str(config.get("registered_name")).startswith("keras_hub>")


def _saved_network(tensors: Tensors, config: Any, source: str) -> Weights:
    """Return the weights of a network, with what its configuration says about them."""
    if not isinstance(config, Mapping):
        raise ValueError(f"config.json holds a {type(config).__name__}, not an object")
    objects = list(_objects(config))
    layers = [o for o in objects if o.get("class_name") == "ImagePreprocessing"]
    preprocessing = _preprocessing(layers[0]) if len(layers) == 1 else None
    classes = {str(o.get("class_name")) for o in objects}
    activations = {
        str(o["name"]): o["activation"] for o in objects if "name" in o and "activation" in o
    }
    # In the convolutional head, a separate layer "probabilities" applies the activation.
    activation = activations.get("probabilities", activations.get("predictions"))
    if activation == "linear":
        activation = _last_activation(objects)
    tensors, note = unnested(tensors, source)
    configs = [o["config"] for o in objects if isinstance(o.get("config"), Mapping)]
    order = [str(values["name"]) for values in configs if "name" in values]
    require_one_piece(tensors, order, source)
    channels, side = _input_of(objects)
    unlike, epsilon_note = [*_unlike(objects)], _epsilon_note(objects)
    grey = preprocessing is not None and len(preprocessing.mean) == 3 and channels == 1
    notes = (
        _names_note(tensors),
        epsilon_note,
        _padding_note(objects),
        _shape_note(objects),
    )
    return Weights(
        tensors,
        source,
        preprocessing,
        note,
        lrn="LocalResponseNormalization" in classes,
        logits=activation == "linear",
        several_labels=activation == "sigmoid",
        grey=grey,
        pooling=pooling_of(classes, tensors),
        side=side,
        unlike=next((text for text, _ in unlike), ""),
        other_function=next((text for text, of_ours in unlike if not of_ours), ""),
        epsilon_note=epsilon_note,
    ).with_note("; ".join(filter(None, notes)))


def _last_activation(objects: list[Mapping[str, Any]]) -> str:
    """Return the activation of a layer of its own, such as one behind `predictions`."""
    for layer in objects:
        kind, config = layer.get("class_name"), layer.get("config")
        if kind == "Softmax":
            return "softmax"
        if kind == "Activation" and isinstance(config, Mapping):
            name = config.get("activation")
            if name in ("softmax", "sigmoid"):
                return name
    return "linear"


def _unlike(objects: list[Mapping[str, Any]]) -> Iterator[tuple[str, bool]]:
    """Yield what convolutions or pools of a network do that those of a VGG do not.

    And whether a dilated or dense network of this package does it too, of the same weights.
    """
    layers = [
        (str(layer.get("class_name")), str(layer["config"].get("name")), layer["config"])
        for layer in objects
        if isinstance(layer.get("config"), Mapping)
    ]
    last = max((place for place, (_, name, _) in enumerate(layers) if is_base(name)), default=-1)
    for place, (kind, name, values) in enumerate(layers):
        other = _other_activation(kind, values)
        if other and (place < last or re.fullmatch(r"block\d_conv\d+_relu", name)):
            yield f"the activation {other} in {name}", False
        activation, dilation = values.get("activation"), values.get("dilation_rate", 1)
        if is_base(name) and activation not in (None, "relu", "linear"):
            yield f"the activation {activation!r} in {name}", False
        if is_base(name) and dilation not in (1, [1, 1]):
            yield f"a dilated convolution {name}", True
        if not re.fullmatch(r"block\d_pool", name):
            continue
        if kind == "DilatedMaxPooling2D" or (
            kind == "MaxPooling2D" and values.get("strides") not in (2, [2, 2])
        ):
            yield f"a pool {name} that keeps the size", True
        elif kind != "MaxPooling2D" or values.get("pool_size") not in (2, [2, 2]):
            yield f"a pool {name} other than the maximum of 2x2", False


def _other_activation(kind: str, values: Mapping[str, Any]) -> str:
    """Return what a layer of its own does in the place of a ReLU, or "" if it is no such layer."""
    if kind in ("LeakyReLU", "ELU", "PReLU"):
        return kind
    if kind == "ReLU" and (values.get("max_value") or values.get("negative_slope")):
        return "ReLU with other ends"
    activation = values.get("activation")
    return repr(activation) if kind == "Activation" and activation not in ("relu", "linear") else ""


def _padding_note(objects: list[Mapping[str, Any]]) -> str:
    """Return a note if a network's pools pad odd sides, as those of `vgg` do not."""
    for layer in objects:
        values = layer.get("config")
        if not isinstance(values, Mapping) or values.get("padding") != "same":
            continue
        if re.fullmatch(r"block\d_pool", str(values.get("name"))):
            return (
                "its pools pad odd sides, and those of this package's classifiers do not: answers "
                "differ for images whose sides are no multiples of 32"
            )
    return ""


def _epsilon_note(objects: list[Mapping[str, Any]]) -> str:
    """Return a note if a network's batch normalisations do not add this package's epsilon."""
    for layer in objects:
        config = layer.get("config")
        if layer.get("class_name") == "BatchNormalization" and isinstance(config, Mapping):
            epsilon = config.get("epsilon")
            if is_base(str(config.get("name"))) and epsilon != BATCH_NORM_EPSILON:
                return (
                    f"its batch normalisation adds epsilon={epsilon} to a variance, and that of "
                    f"this package {BATCH_NORM_EPSILON}: answers differ where variances are small"
                )
    return ""


def _input_of(objects: list[Mapping[str, Any]]) -> tuple[int | None, int | None]:
    """Return the channels, and the side of the square images, that a Keras configuration states.

    None: it states no such number, or its networks differ in it.
    """
    shapes = _input_shapes(objects)
    if not shapes:
        return None, None
    return (
        _only_number({channels for *_, channels in shapes}),
        _only_number({side for *sides, _ in shapes for side in sides}),
    )


def _shape_note(objects: list[Mapping[str, Any]]) -> str:
    """Return a note on images that are not square."""
    for height, width, _ in _input_shapes(objects):
        if isinstance(height, int) and isinstance(width, int) and height != width:
            return f"its images of {height}x{width} are not square: an export takes square ones"
    return ""


def _input_shapes(objects: list[Mapping[str, Any]]) -> list[tuple[Any, Any, Any]]:
    """Return height, width and channels of each input; [] if one is no input of images."""
    inputs = [o.get("config") for o in objects if o.get("class_name") == "InputLayer"]
    shapes = [
        values.get("batch_shape", values.get("batch_input_shape"))  # the second before Keras 3
        for values in inputs
        if isinstance(values, Mapping)
    ]
    if not shapes or not all(isinstance(shape, list) and len(shape) == 4 for shape in shapes):
        return []
    channels_first = keras.config.image_data_format() == "channels_first"
    return [(*shape[2:], shape[1]) if channels_first else tuple(shape[1:]) for shape in shapes]


def _only_number(numbers: set[Any]) -> int | None:
    """Return the only member of a set, if it is a positive integer; otherwise None."""
    number = numbers.pop() if len(numbers) == 1 else None
    return number if isinstance(number, int) and number > 0 else None


def _preprocessing(layer: Mapping[str, Any]) -> ImagePreprocessing:
    """Return the preprocessing that a layer of a Keras configuration describes."""
    config = layer.get("config")
    names = ("mean", "std", "channel_order")
    if not isinstance(config, Mapping) or not all(name in config for name in names):
        raise ValueError(f"the ImagePreprocessing in config.json must state {', '.join(names)}")
    return ImagePreprocessing(*(config[name] for name in names))


def read_preset(folder: Path) -> Weights:
    """Read a KerasHub preset: the backbone's weights, and those of a task's head if it has one."""
    tensors: Tensors = {}
    for name in ("model.weights.h5", "task.weights.h5"):
        path = folder / name
        if path.is_file():
            require_hdf5(path)
            with _opening(path), h5py.File(path, "r") as file:
                stored = _tensors(file)
            if note := _names_note(stored):
                raise ValueError(f"{path}: {note}")
            tensors |= _by_layer(stored, path)
    preprocessing = None
    path = folder / "preprocessor.json"
    if path.is_file():
        with _opening(path, "no KerasHub preprocessor"):
            preprocessing = _converter(json.loads(path.read_text(encoding="utf-8")))
    return Weights(tensors, str(folder), preprocessing)


def _by_layer(tensors: Tensors, path: Path) -> Tensors:
    """Return the tensors by the names of their layers alone."""
    layers: Tensors = {}
    for name, values in tensors.items():
        layer = name.rsplit("/", 1)[-1]
        if layer in layers:
            raise ValueError(f"two layers of {path} are called {layer}")
        layers[layer] = values
    return layers


def _converter(config: Mapping[str, Any]) -> ImagePreprocessing | None:
    """Return the preprocessing of KerasHub's image converter, which is x * scale + offset."""
    for converter in _objects(config):
        values = converter.get("config")
        if isinstance(values, dict) and values.get("scale") is not None and "offset" in values:
            scale, offset = (np.atleast_1d(values[k] or 0.0) for k in ("scale", "offset"))
            with np.errstate(all="ignore"):  # the layer refuses values that are not finite
                mean = np.broadcast_to(-offset / scale, np.broadcast_shapes((3,), scale.shape))
                std = 1 / scale
            return ImagePreprocessing(mean.tolist(), std.tolist(), "rgb")
    return None


def write_legacy(tensors: Tensors, path: Path) -> None:
    """Write an `.h5` file in the layout of keras.applications' published files."""
    names = sorted(tensors)  # Keras reads layers by their order; VGG's names sort in that order
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in names]
        file.attrs["backend"] = b"tensorflow"
        for name in names:
            values = tensors[name]
            group = file.create_group(name)
            kinds = ("gamma", "beta", "moving_mean", "moving_variance")
            if len(values) == 2:
                kinds = ("kernel", "bias")
            weight_names = [f"{name}/{kind}:0" for kind in kinds]
            group.attrs["weight_names"] = [n.encode() for n in weight_names]
            for weight_name, value in zip(weight_names, values, strict=True):
                is_convolutional = name in TOP and value.ndim == 4
                array = value.reshape(-1, value.shape[-1]) if is_convolutional else value
                group[weight_name] = array


@contextlib.contextmanager
def _opening(
    path: Path, kind: str = "no Keras weight file (.h5, .weights.h5, .keras)"
) -> Iterator[None]:
    """Turn the errors of h5py, zipfile and json about a damaged file into a ValueError."""
    try:
        yield
    except MemoryError as error:
        raise unread_file(path, error) from error
    except Exception as error:  # h5py, zipfile, zlib and json raise many types of errors
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} is damaged, or {kind}: {reason}") from error


def _tensors(file: h5py.File, config: Any = None) -> Tensors:
    """Return the weights of each layer; a layer inside a layer has the names of both.

    A layer whose name neither the file nor the configuration states has its path and "/vars".
    """
    model = _model(file)
    return _legacy(model) if "layer_names" in model.attrs else _keras3(model, config)


def _model(file: h5py.File) -> h5py.Group:
    # model.save("x.h5") writes a whole model, with its weights in this group.
    group = file.get("model_weights", file)
    if not isinstance(group, h5py.Group):
        raise ValueError("model_weights is an array, not a group")
    return group


def _legacy(model: h5py.Group) -> Tensors:
    tensors: Tensors = {}
    for name in _strings(model, "layer_names"):
        weight_names = _strings(model[name], "weight_names")
        # A network inside the network is one group; its layers are in the names of the weights.
        inner = [weight_name.rpartition("/")[0] for weight_name in weight_names]
        is_nested = any(is_base(layer.rsplit("/", 1)[-1]) for layer in inner) and not is_base(name)
        for weight_name, layer in zip(weight_names, inner, strict=True):
            key = f"{name}/{layer}" if is_nested else name
            tensors.setdefault(key, []).append(_values(model, f"{name}/{weight_name}"))
    return tensors


def _values(group: h5py.Group, name: str) -> np.ndarray:
    """Return an array of a group, in the byte order of this machine; bfloat16 as float32."""
    dataset = group[name]
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{dataset.name} is a group, not an array")
    values = np.asarray(dataset)
    if values.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16":
        bits = values.view(np.uint16).astype(np.uint32) << 16  # the upper half of a float32
        return bits.view(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _strings(item: h5py.HLObject, attribute: str) -> list[str]:
    """Return the texts of an attribute."""
    values = item.attrs[attribute]
    if not isinstance(values, np.ndarray):
        raise ValueError(f"the attribute {attribute} of {item.name} is not a list")
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if len(set(texts)) < len(texts):  # a small file could name one array many times
        raise ValueError(f"the attribute {attribute} of {item.name} has a name twice")
    return texts


def _keras3(model: h5py.Group, config: Any) -> Tensors:
    groups: dict[str, h5py.Group] = {}  # by the path of the layer; the network's own is ""

    def visit(path: str, item: h5py.Group | h5py.Dataset) -> None:
        layer, _, last = path.rpartition("/")
        is_layer = "optimizer" not in path.split("/") and last == "vars"
        if is_layer and isinstance(item, h5py.Group):
            groups[layer] = item

    model.visititems(visit)
    layer_names = {p: str(g.attrs["name"]) for p, g in groups.items() if "name" in g.attrs}
    if not layer_names:
        layer_names = _names_in_order(groups, config)
    tensors: Tensors = {}
    for path, group in groups.items():
        if not len(group):
            continue
        parts = path.split("/")
        outer = ["/".join(parts[:i]) for i in range(1, len(parts))]
        names = [layer_names[p] for p in outer if p in layer_names]
        name = "/".join([*names, layer_names.get(path, f"{path}/vars")])
        if name in tensors:
            raise ValueError(f"two layers of it are called {name}")
        tensors[name] = [_values(group, str(key)) for key in sorted(group, key=int)]
    return tensors


def _names_in_order(paths: Iterable[str], config: Any) -> dict[str, str]:
    """Return the names of layers by their paths in a file of Keras before 3.6.

    Such a file states a layer's class and a number, as in layers/conv2d and layers/conv2d_1, and
    the configuration states the names in the same order. TensorFlow 2.13 counts each layer with
    weights twice, so the order decides, not the number.
    """
    numbered = collections.defaultdict(list)  # by the path of the network and the class
    for path in paths:
        parent, _, last = path.rpartition("/")
        network, _, container = parent.rpartition("/")
        match = re.fullmatch(r"(.+?)(?:_([0-9]+))?", last)
        if container in _CONTAINERS and match:
            numbered[network, match[1]].append((int(match[2] or 0), path))
    names: dict[str, str] = {}

    def visit(layer: Any, network: str) -> None:
        values = layer.get("config") if isinstance(layer, Mapping) else None
        inner = values.get("layers") if isinstance(values, Mapping) else None
        by_class = collections.defaultdict(list)
        for child in inner if isinstance(inner, list) else []:
            by_class[_snake_case(str(child["class_name"]))].append(child)
        for kind, children in by_class.items():
            places = sorted(numbered[network, kind])
            if len(places) != len(children):
                continue
            for (_, path), child in zip(places, children, strict=True):
                names[path] = str(child["config"]["name"])
                visit(child, path)

    visit(config, "")
    return names


def _snake_case(class_name: str) -> str:
    """Return a class's name as Keras' files write it: max_pooling2d for MaxPooling2D."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _names_note(tensors: Tensors) -> str:
    """Return why no VGG is found in a file that states no layer names; "" for another file."""
    is_vgg = any(is_base(name.rsplit("/", 1)[-1]) for name in tensors)
    return _NO_NAMES if not is_vgg and any(n.endswith("/vars") for n in tensors) else ""


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object in a JSON document."""
    if isinstance(config, Mapping):
        yield config
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _objects(value)

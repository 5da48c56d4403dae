"""Read a weight file of any format; set all weights of a model, or none."""

from __future__ import annotations

import dataclasses
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vgg.architecture import get_configuration
from keras_vgg.backend import as_array
from keras_vgg.containers import require_archive
from keras_vgg.finite import is_finite
from keras_vgg.image_paths import expanded
from keras_vgg.layers import ImagePreprocessing, LocalResponseNormalization
from keras_vgg.weights import keras_format, torch_format
from keras_vgg.weights.channels import FIRST, for_channels
from keras_vgg.weights.published import NAMES, find, hub_repository
from keras_vgg.weights.tensors import Tensors, Weights, check, pooling_of

_FORMATS = (
    "Keras .h5, .weights.h5 or .keras, .safetensors, PyTorch .pth, a KerasHub preset's folder, "
    "a run directory, or hf://OWNER/NAME"
)


def read_weights(path: str | Path, include_top: bool = True) -> Weights:
    """Read a weight file without building its network; the content decides the format.

    A VGG inside another network is found, and wrappers of PyTorch checkpoints are opened: a key
    such as state_dict, and names such as module. before every tensor. `note` of the result says
    so, and names what is left out.

    Args:
        path: Keras' legacy `.h5`, `.weights.h5` or `.keras`; `.safetensors` or PyTorch's `.pth` in
            torchvision's or timm's naming; the folder of a KerasHub VGG preset, or of a run; or
            "hf://OWNER/NAME", a repository of the Hugging Face hub that holds one of these.
        include_top: False leaves out all layers but the convolutions and their batch normalisation,
            whatever head the file has.

    Returns:
        The tensors in Keras' layout, by layer name, and the preprocessing that they expect.

    Raises:
        FileNotFoundError: there is no file at the path.
        OSError: the file cannot be opened or downloaded.
        ValueError: the file has another format, is damaged, claims more bytes than its size can
            explain, or takes too long to read (`keras_vgg.containers` states the limits); or the
            file holds objects other than tensors, or values that are not floating-point numbers,
            not finite, or negative variances. The error names the file.
    """
    repository = hub_repository(path)
    if repository is not None:
        from keras_vgg.weights.download import fetch_repository  # loads network clients

        path = fetch_repository(repository)
    path = expanded(path)
    if not path.exists():
        raise FileNotFoundError(f"no weight file at {path}")
    weights = _reader(path)(path)
    if repository is not None:
        weights = dataclasses.replace(weights, source=f"hf://{repository}")
    if not include_top:
        weights = _base(weights)
    check(weights)
    return weights


def _base(weights: Weights) -> Weights:
    """Return the weights without any head; raise a ValueError if nothing is left."""
    base = weights.base()
    if weights.tensors and not base.tensors:
        reason = weights.note or base.note
        raise ValueError(
            f"{weights.source} holds no convolutions of VGG (block1_conv1 ...): {reason}"
        )
    return base


def _reader(path: Path) -> Callable[[Path], Weights]:
    """Return the function that reads the format of a file or a folder."""
    if path.is_dir():
        if (path / "model.keras").is_file():
            return lambda folder: keras_format.read_archive(folder / "model.keras")
        if (path / "model.weights.h5").is_file():
            is_preset = keras_format.is_preset(path)
            return keras_format.read_preset if is_preset else keras_format.read_folder
        raise ValueError(f"{path} is a folder without weights; pass {_FORMATS}")
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise ValueError(f"{path} is empty")
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return keras_format.read_h5
    if zipfile.is_zipfile(path):
        names = require_archive(path)
        if "model.weights.h5" in names:
            return keras_format.read_archive
        if any(name.endswith("data.pkl") for name in names):
            return torch_format.read_pth
    elif start[8:9] == b"{":
        return torch_format.read_safetensors
    elif start.startswith(b"\x80") or path.suffix in (".pth", ".pt"):
        return torch_format.read_pth
    suffixes = {".keras": "a .keras archive", ".safetensors": "a safetensors file"}
    if path.suffix in suffixes:
        raise ValueError(f"{path} is damaged: its content is not {suffixes[path.suffix]}")
    if path.suffix in (".h5", ".hdf5"):
        raise ValueError(f"{path} is damaged: its content is not an HDF5 file")
    raise ValueError(f"{path} is no weight file; pass {_FORMATS}")


def obtain(
    weights: str | Path, configuration: str, *, batch_norm: bool, include_top: bool
) -> Weights:
    """Return the weights that a builder's `weights=` names: a published checkpoint's or a file's.

    Batch norm of another epsilon gives a warning.

    Raises:
        ValueError, OSError: as `find`, `fetch` and `read_weights`; the file is of a network with
            local response normalisation, and the configuration has none; it states other
            activations than ReLU, or other pools than the maximum of 2x2.
    """
    is_published = weights in NAMES
    if is_published:
        from keras_vgg.weights.download import fetch  # loads network clients

        weights = fetch(find(str(weights), configuration, batch_norm, include_top))
    loaded = read_weights(weights, include_top)
    if is_published:  # The table of published weights states what the file does not.
        loaded = dataclasses.replace(loaded, assumed=False)
    if loaded.lrn and not get_configuration(configuration).lrn:
        raise ValueError(
            f"{loaded.source} is of a network with local response normalisation, and "
            f"configuration {configuration!r} has none: build configuration 'A-LRN'"
        )
    if loaded.other_function:
        raise ValueError(
            f"{loaded.source} has {loaded.other_function}, so another network than this package's: "
            "load the file by keras.saving.load_model, or write its weights alone as .safetensors "
            "to load them all the same"
        )
    if loaded.epsilon_note:
        warnings.warn(f"{loaded.source}: {loaded.epsilon_note}", stacklevel=3)
    return loaded


def load_weights(model: keras.Model, path: str | Path, drop: Sequence[str] = ()) -> Weights:
    """Load a weight file into a model by layer name; see `assign`.

    Weights for RGB images fit a model for another number of channels: see `for_channels`.

    Args:
        model: A VGG.
        path: As `read_weights`.
        drop: Layers that keep the model's weights and ignore the file's, such as
            `("predictions",)` for other classes, or `TOP` for another head.

    Returns:
        The weights of the file, with the preprocessing that they expect.

    Raises:
        FileNotFoundError, ValueError: as `read_weights` and `assign`; or the model has a
            preprocessing inside, and the file states another. The model is unchanged.
    """
    weights = read_weights(path)
    own = [layer for layer in model.layers if isinstance(layer, ImagePreprocessing)]
    if len(own) == 1:
        first = keras.config.image_data_format() == "channels_first"
        output: Any = own[0].output
        check_preprocessing(own[0], weights, output.shape[1 if first else -1])
    for layer in model.layers:
        if layer.name == FIRST and isinstance(layer, keras.layers.Conv2D):
            kernel: Any = layer.kernel
            weights = for_channels(weights, kernel.shape[2])
    assign(model, weights, drop)
    return weights


def check_preprocessing(given: keras.Layer, loaded: Weights, channels: int) -> None:
    """Refuse a preprocessing layer for other images than those that the weights state.

    Means that differ by at most two grey levels are the same: Caffe's networks round them in
    several ways. Only a network for three channels is compared.
    """
    stated = loaded.preprocessing
    if stated is None or loaded.assumed or channels != 3:
        return
    if not isinstance(given, ImagePreprocessing) or len(stated.mean) not in (1, 3):
        return
    values = [
        (layer.channel_order, np.broadcast_to(layer.mean, 3), np.broadcast_to(layer.std, 3))
        for layer in (given, stated)
    ]
    (order, mean, std), (stated_order, stated_mean, stated_std) = values
    is_same = order == stated_order and np.allclose(std, stated_std, rtol=1e-3)
    if not is_same or not np.allclose(mean, stated_mean, rtol=0, atol=2):
        raise ValueError(
            f"{loaded.source} already states what its network expects, {_described(stated)}: omit "
            f"{_described(given)}, or pass the same"
        )


def _described(layer: ImagePreprocessing) -> str:
    mean, std = ([round(float(n), 3) for n in values] for values in (layer.mean, layer.std))
    return f"{layer.channel_order.upper()} with mean {mean} and std {std}"


def tensors_of(model: keras.Model) -> Tensors:
    """Return a model's weights by layer name."""
    return {
        layer.name: [as_array(w) for w in layer.weights] for layer in model.layers if layer.weights
    }


def copy_weights(source: keras.Model, target: keras.Model, drop: Sequence[str] = ()) -> None:
    """Copy the weights of `source` to `target`, such as from `head="fc"` to `head="conv"`.

    Raises:
        ValueError: as `assign`.
    """
    lrn = any(isinstance(layer, LocalResponseNormalization) for layer in source.layers)
    assign(target, Weights(tensors_of(source), source.name, lrn=lrn), drop)


def assign(model: keras.Model, weights: Weights, drop: Sequence[str] = ()) -> None:
    """Set every weight of a model, by layer name; set none if any layer differs.

    A dense kernel [h*w*c, units] fits a convolution [h, w, c, units] and the other way round: a
    fully connected layer and its convolutional form hold the same numbers in the same order.

    Args:
        model: Any model whose weighted layers have distinct names.
        weights: Tensors by layer name.
        drop: Layers to ignore, in the model and in the weights.

    Raises:
        ValueError: layers are missing, left over or of another shape; their values are too large
            for the model's type; or the file says that its network has local response
            normalisation, sigmoids, or another pooling in front of its classifier, and the model
            has not. The error lists them.
    """
    if not isinstance(weights, Weights):
        raise ValueError(
            "weights must be a keras_vgg.weights.Weights, such as Weights(tensors, 'my file'), not "
            f"a {type(weights).__name__}"
        )
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    tensors = weights.tensors
    unknown = [name for name in drop if name not in {**layers, **tensors}]
    if unknown:
        raise ValueError(
            f"cannot drop {', '.join(unknown)}: there is no such layer in the model or the weights"
        )
    layers = {name: layer for name, layer in layers.items() if name not in drop}
    tensors = {name: values for name, values in tensors.items() if name not in drop}
    problems = [f"missing {name}" for name in layers if name not in tensors]
    problems += [f"left over {name}" for name in tensors if name not in layers]
    if "predictions" in layers.keys() & tensors.keys() and _pools_otherwise(model, weights):
        problems.append(
            f"predictions stands behind a global {weights.pooling} pooling, and the model has none"
            " of that kind"
        )
    classes = {type(layer).__name__ for layer in model.layers}
    if weights.lrn and "LocalResponseNormalization" not in classes:
        problems.append("they are for local response normalisation, and the model has none")
    own = getattr(layers.get("predictions"), "activation", None)
    if weights.several_labels and "predictions" in tensors and own is keras.activations.softmax:
        problems.append("they are for sigmoids, and the model ends in a soft-max")
    plan = []
    for name in layers.keys() & tensors.keys():
        expected = [tuple(w.shape) for w in layers[name].weights]
        shapes = [tuple(t.shape) for t in tensors[name]]
        fits = len(expected) == len(shapes) and all(map(_same_numbers, expected, shapes))
        if not fits or not _same_map(model, name, shapes[0]):
            problems.append(f"{name} is {shapes}, the model wants {expected}")
            continue
        pairs = [*zip(layers[name].weights, tensors[name], strict=True)]
        problems += [
            f"{w.path} holds values too large for {w.dtype}" for w, t in pairs if _overflows(t, w)
        ]
        plan += [(w, np.reshape(t, w.shape)) for w, t in pairs]
    if problems and all(re.fullmatch(r"missing \w+_bn", problem) for problem in problems):
        problems = ["the model has batch normalisation, and they have none: batch_norm=False"]
    elif problems and all(re.fullmatch(r"left over \w+_bn", problem) for problem in problems):
        problems = ["they have batch normalisation, and the model has none: batch_norm=True"]
    if problems:
        raise ValueError(
            f"weights of {weights.source} do not fit the model {model.name}; nothing was loaded: "
            + "; ".join(sorted(problems))
            + (f" ({weights.note})" if weights.note else "")
        )
    for weight, value in plan:
        weight.assign(value)


def _pools_otherwise(model: keras.Model, weights: Weights) -> bool:
    """Return whether a file's classifier pools the whole map, and the model's does otherwise."""
    classes = {type(layer).__name__ for layer in model.layers}
    own = pooling_of(classes, {layer.name: layer.weights for layer in model.layers})
    has_head = own is not None or "Flatten" in classes
    return weights.pooling is not None and has_head and own != weights.pooling


def _overflows(values: np.ndarray, weight: keras.Variable) -> bool:
    """Return whether finite values become infinite in a weight's type, as 1e300 does in float32."""
    kind = np.dtype(weight.dtype if weight.dtype in ("float16", "float64") else "float32")
    if values.dtype.itemsize <= kind.itemsize:
        return False
    with np.errstate(over="ignore"):
        return is_finite(values) and not is_finite(values.astype(kind))


def _same_map(model: keras.Model, name: str, kernel: tuple[int, ...]) -> bool:
    """Return whether fc1's kernel [h, w, ...] has the sides of the model's flattened feature map.

    The answer is true for other layers, dense kernels, and models that do not flatten.
    """
    flatten = [layer for layer in model.layers if layer.name == "flatten"]
    if name != "fc1" or len(kernel) != 4 or not flatten:
        return True
    shape = flatten[0].input.shape
    channels_first = keras.config.image_data_format() == "channels_first"
    return tuple(shape[2:] if channels_first else shape[1:3]) == kernel[:2]


def _same_numbers(expected: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether the shapes are equal, or one is dense and the other its convolution."""
    if expected == shape:
        return True
    dense, conv = sorted((expected, shape), key=len)
    return (len(dense), len(conv)) == (2, 4) and dense == (int(np.prod(conv[:3])), conv[3])

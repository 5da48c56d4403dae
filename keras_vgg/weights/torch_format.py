"""Read and write PyTorch's weight files, .safetensors and .pth, in torchvision's or timm's naming.

torchvision numbers the layers of `features`: convolution, (batch norm,) ReLU, and a pool after each
block. The numbers show where a block ends, so one reader takes every configuration. PyTorch's
kernels are OIHW, and fc1's columns are in the order channel, row, column. Keras' kernels are HWIO,
and fc1's rows are in the order row, column, channel.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from keras_vgg.containers import require_archive, require_plausible_size
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.weights.tensors import TOP, Tensors, Weights, listed

if TYPE_CHECKING:
    import torch

NAMINGS = {
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_PREPROCESSING_FIELDS = ("mean", "std", "channel_order")
_FIRST = "features.0.weight"
_WRAPPERS = ("module", "_orig_mod")  # of DataParallel and of torch.compile
_COUNTER = "num_batches_tracked"  # PyTorch has this tensor in batch norm, Keras does not


def read_safetensors(path: Path) -> Weights:
    """Read a .safetensors file; its metadata may state the preprocessing."""
    try:
        with safe_open(path, "np") as file:
            state = {name: _widened(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            preprocessing = (file.metadata() or {}).get("preprocessing")
    except MemoryError:
        raise
    except Exception as error:  # an unknown type, a damaged header, names that are not UTF-8
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    return _weights(state, str(path), preprocessing)


def _widened(value: np.ndarray) -> np.ndarray:
    """Return bfloat16 as the same numbers in float32, because NumPy lacks bfloat16."""
    return value.astype("float32") if value.dtype.name == "bfloat16" else value


def read_pth(path: Path) -> Weights:
    """Read a state dict that `torch.save` wrote, alone or within a checkpoint.

    The reader creates no objects other than tensors, Python's containers, numbers and texts, and
    the argparse.Namespace in which scripts keep their options.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install torch, or use "
            "the same weights as .safetensors"
        )
    import torch

    if zipfile.is_zipfile(path):
        require_archive(path)
    try:
        with (
            # The warnings are about types that are refused below.
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is damaged, or its pickle asks for objects that are not "
            "tensors, which could run code. Use the same weights as .safetensors"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise any type of error
        raise ValueError(f"{path} is damaged, or no PyTorch file: {error}") from error
    state, note = _state_dict(content, path)
    key_types = {type(name).__name__ for name in state if not isinstance(name, str)}
    if key_types:
        raise ValueError(
            f"{path} is no state dict: its names must be text, not {', '.join(sorted(key_types))}"
        )
    unusual = [f"{name} ({kind})" for name, value in state.items() if (kind := _unusual(value))]
    if unusual:
        raise ValueError(
            f"{path} holds tensors that are not dense floating-point numbers: {listed(unusual)}; "
            "save them as dense float32"
        )
    require_plausible_size(path, sum(v.numel() * v.element_size() for v in state.values()))
    arrays = {
        name: (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
        for name, value in state.items()
    }
    return _weights(arrays, str(path), None, note)


def _state_dict(content: Any, path: Path) -> tuple[Mapping[Any, torch.Tensor], str]:
    """Return the state dict of a checkpoint, and a note that says where it was; "" if at the top.

    Raises:
        ValueError: the checkpoint holds no state dict, or those of several VGGs.
    """
    states = dict(_state_dicts(content))
    if len(states) > 1:  # such as an optimizer's, beside the network's
        states = {key: state for key, state in states.items() if _first_convolutions(state)}
    if len(states) > 1:
        raise ValueError(
            f"{path} holds several networks: {listed(states)}; save the state dict of one alone"
        )
    for key, state in states.items():
        return state, f"the weights are the checkpoint's {key}" if key else ""
    raise ValueError(
        f"{path} is no state dict: a state dict maps names to tensors, and a checkpoint holds one "
        "under a name such as state_dict"
    )


def _state_dicts(content: Any, key: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping]]:
    """Yield (key, mapping of tensors) of a checkpoint, such as ("state_dict", ...)."""
    import torch

    if not isinstance(content, Mapping):
        return
    if content and all(torch.is_tensor(value) for value in content.values()):
        yield key, content
    elif depth:
        for name, value in content.items():
            yield from _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)


def _first_convolutions(state: Mapping[Any, Any]) -> list[str]:
    """Return the names that may be the kernel of a VGG's first convolution."""
    names = [name for name in state if isinstance(name, str)]
    return [n for n in names if re.search(rf"(^|\.){re.escape(_FIRST)}$", _without_wrappers(n))]


def _without_wrappers(name: str) -> str:
    """Return a tensor's name without what DataParallel and torch.compile put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _unwrapped(
    state: Mapping[str, np.ndarray], source: str
) -> tuple[Mapping[str, np.ndarray], str]:
    """Return the tensors of a VGG by its own names, and a note; "" if the file has these.

    Names such as module. and _orig_mod. are left out, and so is what stands before features. if
    the VGG is a part of another network. The other tensors keep their names.
    """
    plain = {_without_wrappers(name): name for name in state}
    prefixes = [name.removesuffix(_FIRST) for name in plain if _first_convolutions({name: None})]
    if not prefixes:
        return state, ""
    if len(prefixes) > 1 or len(plain) < len(state):
        places = [n.removesuffix(_FIRST) or "features." for n in _first_convolutions(state)]
        raise ValueError(f"{source} holds several VGGs: {listed(places)}; save one of them alone")
    prefix = prefixes[0]
    names = {
        n.removeprefix(prefix): original for n, original in plain.items() if n.startswith(prefix)
    }
    for name, original in plain.items():
        if not name.startswith(prefix):  # a tensor of the other network, maybe of the same name
            names[f"{name} (outside)" if name in names else name] = original
    removed = {part for name in state for part in name.split(".") if part in _WRAPPERS}
    removed |= {prefix.rstrip(".")} if prefix else set()
    note = f"without {' and '.join(f'{part}.' for part in sorted(removed))} in the tensors' names"
    return {name: state[original] for name, original in names.items()}, note if removed else ""


def _unusual(value: torch.Tensor) -> str | None:
    """Return why a tensor is not a plain array of real numbers; None if it is."""
    if value.is_nested:
        return "nested"
    if str(value.layout) != "torch.strided":
        return str(value.layout).removeprefix("torch.")
    if value.is_meta:
        return "meta, without values"
    if value.is_quantized:
        return "quantised"
    if value.is_neg():
        return "a negated view"
    plain_types = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64")
    dtype = str(value.dtype).removeprefix("torch.")
    return None if dtype in (*plain_types, "uint8", "bool") else dtype


def write_safetensors(
    tensors: Tensors, path: Path, naming: str, preprocessing: ImagePreprocessing | None
) -> None:
    """Write a .safetensors file; its metadata states the preprocessing."""
    fields = {}
    if preprocessing is not None:
        config = preprocessing.get_config()
        fields = {name: config[name] for name in _PREPROCESSING_FIELDS}
    metadata = {"format": "pt", "preprocessing": json.dumps(fields)}
    save_file(to_torch(tensors, naming), path, metadata=metadata)


def write_pth(
    tensors: Tensors, path: Path, naming: str, preprocessing: ImagePreprocessing | None
) -> None:
    """Write a .pth file.

    Raises:
        ValueError: the network does not expect torchvision's input; a .pth cannot state another.
    """
    if not _is_torchvision(preprocessing):
        problem = "is not known to expect" if preprocessing is None else "does not expect"
        raise ValueError(
            f"the network {problem} torchvision's input, which every reader of {path.name} would "
            "assume: write .safetensors, which states the preprocessing, or pass preprocessing if "
            "the source does not state it"
        )
    if importlib.util.find_spec("torch") is None:
        raise ValueError("writing a .pth file needs PyTorch: pip install torch")
    import torch

    state = {name: torch.from_numpy(value) for name, value in to_torch(tensors, naming).items()}
    torch.save(state, path)


def _is_torchvision(preprocessing: ImagePreprocessing | None) -> bool:
    if preprocessing is None:
        return False
    ours, theirs = preprocessing.get_config(), ImagePreprocessing.torchvision().get_config()
    return all(ours[name] == theirs[name] for name in _PREPROCESSING_FIELDS)


def _weights(
    state: Mapping[str, np.ndarray], source: str, preprocessing_json: str | None, note: str = ""
) -> Weights:
    state, names_note = _unwrapped(state, source)
    tensors = from_torch(state, source)
    preprocessing: ImagePreprocessing | None = ImagePreprocessing.torchvision()
    if preprocessing_json:
        try:
            values = json.loads(preprocessing_json)
            preprocessing = (
                ImagePreprocessing(*(values[n] for n in _PREPROCESSING_FIELDS)) if values else None
            )
        except (TypeError, ValueError, LookupError, RecursionError) as error:
            raise ValueError(
                f"{source} states a preprocessing that cannot be read: "
                f"{preprocessing_json[:200]} ({error})"
            ) from error
    broken_note = ""
    broken = [n for n in TOP if n in tensors and not np.isfinite(tensors[n][0]).any()]
    if broken == list(TOP) and not preprocessing_json:
        # torchvision's vgg16_features, the base of amdegroot's SSD, holds Oxford's tensors.
        tensors = {name: values for name, values in tensors.items() if name not in TOP}
        mean = [255 * m for m in (0.48235, 0.45882, 0.40784)]
        preprocessing = ImagePreprocessing(mean, (1.0,), "rgb")
        broken_note = (
            f"its {', '.join(broken)} hold nothing but NaN: the file holds features only, such "
            "as torchvision's vgg16_features, for include_top=False"
        )
    notes = (note, names_note, broken_note)
    return Weights(tensors, source, preprocessing, "; ".join(filter(None, notes)))


def from_torch(state: Mapping[str, np.ndarray], source: str) -> Tensors:
    """Return the tensors of a VGG state dict by Keras layer name, in Keras' layout.

    Tensors of another head than VGG's keep their names and their layout.

    Raises:
        ValueError: names or shapes are not VGG's in either naming. The error lists them.
    """
    rest = {name: value for name, value in state.items() if not name.endswith(_COUNTER)}
    convolutions, has_norm = [], False
    for name, value in rest.items():
        match = re.fullmatch(r"features\.([0-9]{1,3})\.weight", name)
        if match and value.ndim == 4:
            convolutions.append(int(match[1]))
        has_norm = has_norm or bool(match and value.ndim != 4)
    if not convolutions:
        raise ValueError(
            f"{source} holds no VGG in torchvision's or timm's naming (features.0.weight ...): "
            f"its tensors are {listed(state)}"
        )
    empty = [name for name, value in rest.items() if value.size == 0]
    if empty:
        raise ValueError(f"{source} holds tensors without values: {listed(empty)}")
    tensors: Tensors = {}
    missing = []

    def take(name: str) -> np.ndarray:
        if name not in rest:
            missing.append(name)
            return np.zeros(0, "float32")
        return rest.pop(name)

    filters = 0
    for index, layer in _blocks(sorted(convolutions), has_norm, source):
        kernel = take(f"features.{index}.weight")
        filters = kernel.shape[0]
        tensors[layer] = [kernel.transpose(2, 3, 1, 0), take(f"features.{index}.bias")]
        if has_norm:
            tensors[f"{layer}_bn"] = [take(f"features.{index + 1}.{n}") for n in _BATCH_NORM]
    for naming in NAMINGS.values():
        for layer, name in zip(TOP, naming, strict=True):
            if _is_dense(rest, name, layer, filters):
                kernel, bias = take(f"{name}.weight"), take(f"{name}.bias")
                tensors[layer] = [_from_dense(kernel, layer, filters), bias]
    if missing or any(name.startswith("features.") for name in rest):
        raise ValueError(
            f"{source} is not a VGG in torchvision's or timm's naming: "
            f"missing {listed(missing) or 'nothing'}; left over {listed(rest) or 'nothing'}"
        )
    tensors |= {name: [value] for name, value in rest.items()}
    return tensors


def to_torch(tensors: Tensors, naming: str) -> dict[str, np.ndarray]:
    """Return a VGG state dict from tensors by Keras layer name; the inverse of `from_torch`.

    The counters of batch normalisation are 0: PyTorch uses them only without momentum.
    """
    if naming not in NAMINGS:
        raise ValueError(f"naming must be one of {', '.join(NAMINGS)}, not {naming!r}")
    state: dict[str, np.ndarray] = {}
    has_norm = any(name.endswith("_bn") for name in tensors)
    index, block, filters = 0, "1", 0
    for layer in sorted(n for n in tensors if re.fullmatch(r"block\d_conv\d", n)):
        if layer[5] != block:
            block, index = layer[5], index + 1  # the pool has a number too
        kernel, bias = tensors[layer]
        filters = kernel.shape[3]
        state[f"features.{index}.weight"] = kernel.transpose(3, 2, 0, 1)
        state[f"features.{index}.bias"] = bias
        if has_norm:
            values = dict(zip(_BATCH_NORM, tensors[f"{layer}_bn"], strict=True))
            state |= {f"features.{index + 1}.{n}": v for n, v in values.items()}
            state[f"features.{index + 1}.{_COUNTER}"] = np.zeros((), "int64")
        index += 3 if has_norm else 2
    for layer, name in zip(TOP, NAMINGS[naming], strict=True):
        if layer in tensors:
            kernel, bias = tensors[layer]
            units = kernel.shape[-1]
            if layer == "fc1" and kernel.ndim == 2:  # [h*w*c, units]
                kernel = kernel.reshape(-1, filters, units).transpose(2, 1, 0)
            else:
                kernel = np.moveaxis(kernel, -1, 0)
                kernel = np.moveaxis(kernel, -1, 1)
            kernel = kernel.reshape(units, -1)
            if naming == "timm" and layer == "fc1":
                shape = tensors[layer][0].shape
                side = _side(kernel.shape[1], filters, "fc1") if len(shape) == 2 else None
                height, width = shape[:2] if side is None else (side, side)
                kernel = kernel.reshape(units, filters, height, width)
            elif naming == "timm" and layer == "fc2":
                kernel = kernel.reshape(units, -1, 1, 1)
            state[f"{name}.weight"], state[f"{name}.bias"] = kernel, bias
    return {name: np.ascontiguousarray(value) for name, value in state.items()}


def _blocks(indices: list[int], has_norm: bool, source: str) -> Iterator[tuple[int, str]]:
    """Yield (number in `features`, Keras layer name) of each convolution."""
    step = 3 if has_norm else 2
    block, place, expected = 1, 1, 0
    for index in indices:
        if index == expected + 1 and place > 1:
            block, place = block + 1, 1
        elif index != expected:
            raise ValueError(
                f"{source} is not a VGG in torchvision's naming: a convolution at "
                f"features.{index}, where features.{expected} or a pool should be"
            )
        yield index, f"block{block}_conv{place}"
        place, expected = place + 1, index + step


def _is_dense(state: Mapping[str, np.ndarray], name: str, layer: str, filters: int) -> bool:
    """Return whether a kernel and a bias are those of a layer of VGG's classifier."""
    kernel = state.get(f"{name}.weight")
    if kernel is None or f"{name}.bias" not in state or kernel.ndim not in (2, 4):
        return False
    # fc1 sees a feature map of `filters` channels.
    return layer != "fc1" or kernel.ndim == 4 or kernel.shape[1] % filters == 0


def _from_dense(kernel: np.ndarray, layer: str, filters: int) -> np.ndarray:
    """Return a kernel of the classifier in Keras' layout."""
    if kernel.ndim == 4:
        return kernel.transpose(2, 3, 1, 0)
    if layer == "fc1":
        kernel = kernel.reshape(len(kernel), filters, -1).transpose(2, 1, 0)
        return kernel.reshape(-1, kernel.shape[2])
    return kernel.T


def _side(inputs: int, filters: int, layer: str) -> int:
    """Return the side of the square feature map that a dense layer sees."""
    side = math.isqrt(inputs // max(filters, 1))
    if side * side * filters != inputs:
        raise ValueError(
            f"{layer} has {inputs} inputs, which is no square map of {filters} channels: the order "
            "of rows and columns cannot be known"
        )
    return side

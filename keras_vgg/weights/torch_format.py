"""Read and write PyTorch's weight files: .safetensors and .pth, also wrapped checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
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
from keras_vgg.memory_errors import is_out_of_memory, unread_file
from keras_vgg.weights.tensors import TOP, Tensors, Weights, listed
from keras_vgg.weights.torch_naming import from_torch, to_torch

if TYPE_CHECKING:
    import torch

_PREPROCESSING_FIELDS = ("mean", "std", "channel_order")
_FIRST = "features.0.weight"
_WRAPPERS = ("module", "_orig_mod")  # of DataParallel and of torch.compile


def read_safetensors(path: Path) -> Weights:
    """Read a .safetensors file; its metadata may state the preprocessing and parts of the network.

    `write_safetensors` writes this metadata.
    """
    try:
        with safe_open(path, "np") as file:
            state = {name: _widened(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except MemoryError as error:
        raise unread_file(path, error) from error
    except Exception as error:  # an unknown type, a damaged header, names that are not UTF-8
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    weights = _weights(state, str(path), metadata.get("preprocessing"))
    side = metadata.get("side", "")
    return dataclasses.replace(
        weights,
        logits=metadata.get("activation") == "linear",
        several_labels=metadata.get("activation") == "sigmoid",
        lrn=metadata.get("lrn") == "true",
        grey=metadata.get("color") == "grey",
        side=int(side) if re.fullmatch("[1-9][0-9]{0,4}", side) else None,
    )


def _widened(value: np.ndarray) -> np.ndarray:
    """Return bfloat16 as the same numbers in float32, because NumPy lacks bfloat16."""
    return value.astype("float32") if value.dtype.name == "bfloat16" else value


def read_pth(path: Path) -> Weights:
    """Read a state dict that `torch.save` wrote, alone or within a checkpoint.

    The reader creates no objects other than tensors, Python's containers, numbers and texts,
    NumPy's numbers, and the argparse.Namespace in which scripts keep their options.
    """
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install torch, or use "
            "the same weights as .safetensors"
        )
    import torch

    known = [
        argparse.Namespace,
        (_NumberType, "numpy.dtype"),
        (_number, "numpy._core.multiarray.scalar"),
        (_number, "numpy.core.multiarray.scalar"),  # of NumPy 1
    ]
    if zipfile.is_zipfile(path):
        require_archive(path)
    try:
        with (
            # The warnings are about types that are refused below.
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals(known),
        ):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "it is damaged, or its pickle asks for objects that are not tensors, which"
        if named:
            reason = f"its pickle asks for {named[1]}, which is no tensor and"
        raise ValueError(
            f"{path} is refused: {reason} could run code. Save the state dict alone, or use the "
            "same weights as .safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise any type of error
        if is_out_of_memory(error):
            raise unread_file(path, error) from error
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript archive, which holds code: load it with torch.jit.load, "
                "and save its state_dict() as .safetensors"
            ) from error
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


class _NumberType:
    """What a pickle calls numpy.dtype; that itself would take any state from a file."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in ("b1", *(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8))):
            raise pickle.UnpicklingError(f"{code!r} is no type of a number")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass  # its byte order; a number beside the weights is not used


def _number(number_type: _NumberType, content: bytes) -> Any:
    """Return the number that a pickle of NumPy's holds, such as the best accuracy so far."""
    return np.frombuffer(content, number_type.code)[0]


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
    tensors: Tensors,
    path: Path,
    naming: str,
    preprocessing: ImagePreprocessing | None,
    stated: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file; its metadata states the preprocessing, and `stated`."""
    fields = {}
    if preprocessing is not None:
        config = preprocessing.get_config()
        fields = {name: config[name] for name in _PREPROCESSING_FIELDS}
    metadata = {"format": "pt", "preprocessing": json.dumps(fields), **(stated or {})}
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
    preprocessing = None
    # torchvision and timm publish networks for RGB; a network for other images has another input.
    assumed = not preprocessing_json and tensors["block1_conv1"][0].shape[2] == 3
    if assumed:
        preprocessing = ImagePreprocessing.torchvision()
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
    note = "; ".join(filter(None, notes))
    return Weights(tensors, source, preprocessing, note, assumed=assumed)

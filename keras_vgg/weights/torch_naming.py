"""A VGG's tensors by PyTorch's names and in PyTorch's layout, and by Keras' names in Keras' layout.

torchvision numbers the layers of `features`: convolution, (batch norm,) ReLU, and a pool after each
block. The numbers show where a block ends, so one reader takes every configuration. PyTorch's
kernels are OIHW, and fc1's columns are in the order channel, row, column. Keras' kernels are HWIO,
and fc1's rows are in the order row, column, channel.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from keras_vgg.weights.tensors import TOP, Tensors, listed

NAMINGS = {
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"  # PyTorch has this tensor in batch norm, Keras does not
_COUNTERS = (_COUNTER, "n_averaged")  # the second is of torch.optim.swa_utils.AveragedModel


def from_torch(state: Mapping[str, np.ndarray], source: str) -> Tensors:
    """Return the tensors of a VGG state dict by Keras layer name, in Keras' layout.

    Tensors of another head than VGG's keep their names and their layout.

    Raises:
        ValueError: names or shapes are not VGG's in either naming. The error lists them.
    """
    rest = {name: value for name, value in state.items() if not name.endswith(_COUNTERS)}
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

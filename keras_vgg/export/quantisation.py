"""Report by layer how much of the signal a quantised LiteRT file loses, and by what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_vgg.export.litert_tensors import CASTS, Network, Operation, operations

IMAGES = 8

# These only move or choose values, and add no error to those of the operation before.
_MOVES = {"MAX_POOL_2D", "PAD", "RESHAPE", "SQUEEZE", "TRANSPOSE"}


def layer_errors(
    quantised: bytes, full: bytes, images: np.ndarray, layer_names: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return a row for each operation of a quantised file that computes, in order.

    A row has these values. Those in decibels are signal-to-noise ratios: the squares of the float32
    values over the squares of the differences; None without a difference, or where the file has
    float32 values.

    - `layer`: the layer of the model, and `operation`, LiteRT's name for what it computes;
    - `range`: the least and the greatest value that the integers stand for;
    - `clipped`: the share of the float32 values that lie outside, by more than half a step;
    - `weights_db`: the weights alone;
    - `rounding_db`: the float32 file's answers of this layer, rounded to integers and clipped;
    - `total_db`: the answers of this layer in the quantised file, which has all earlier layers'
      errors too.

    Args:
        quantised: A LiteRT file of 8-bit or 16-bit integers.
        full: The float32 file of the same network.
        images: [n, size, size, 3] RGB in [0, 255].
        layer_names: Names of the model's layers. Other operations get the name of their tensor.
    """
    networks = Network(quantised), Network(full)
    pairs = _pairs(quantised, full, networks)
    power, total, rounding, clipped, count = (np.zeros(len(pairs)) for _ in range(5))
    for image in images:
        for network in networks:
            network.run(image)
        for row, (own, reference) in enumerate(pairs):
            detail = networks[0].details[own.outputs[0]]
            actual = networks[0].values(own.outputs[0])
            expected = networks[1].values(reference.outputs[0])
            low, high = _range(detail)
            power[row] += np.sum(expected**2)
            total[row] += np.sum((actual - expected) ** 2)
            rounding[row] += np.sum((_rounded(expected, detail) - expected) ** 2)
            half = _scale(detail) / 2
            clipped[row] += np.sum((expected < low - half) | (expected > high + half))
            count[row] += expected.size
    rows = []
    for row, (own, reference) in enumerate(pairs):
        detail = networks[0].details[own.outputs[0]]
        rows.append(
            {
                "layer": _layer(detail["name"], layer_names),
                "operation": own.name,
                "range": [round(float(limit), 6) for limit in _range(detail)],
                "clipped": float(clipped[row] / count[row]),
                "weights_db": _weights_db(networks, own, reference),
                "rounding_db": _decibels(power[row], rounding[row]),
                "total_db": _decibels(power[row], total[row]),
            }
        )
    return rows


def _pairs(
    quantised: bytes, full: bytes, networks: tuple[Network, Network]
) -> list[tuple[Operation, Operation]]:
    """Return the operations of both files with outputs of one name, if the first has integers."""
    originals = {networks[1].details[o.outputs[0]]["name"]: o for o in operations(full)}
    pairs = []
    for operation in operations(quantised):
        detail = networks[0].details[operation.outputs[0]]
        original = originals.get(detail["name"])
        if original is not None and operation.name not in CASTS | _MOVES and _scale(detail):
            pairs.append((operation, original))
    return pairs


def _scale(detail: dict[str, Any]) -> float:
    """Return the step between two integers of a tensor; 0 if it has no integers."""
    return float(detail["quantization"][0])


def _range(detail: dict[str, Any]) -> tuple[float, float]:
    limits = np.iinfo(detail["dtype"])
    scale, zero = detail["quantization"]
    return scale * (limits.min - zero), scale * (limits.max - zero)


def _rounded(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    return np.clip(_scale(detail) * np.rint(values / _scale(detail)), *_range(detail))


def _weights_db(
    networks: tuple[Network, Network], own: Operation, reference: Operation
) -> float | None:
    if own.name not in ("CONV_2D", "FULLY_CONNECTED", "DEPTHWISE_CONV_2D"):
        return None
    actual, expected = (
        network.values(operation.inputs[1])
        for network, operation in zip(networks, (own, reference), strict=True)
    )
    return _decibels(np.sum(expected**2), np.sum((actual - expected) ** 2))


def _decibels(signal: float, noise: float) -> float | None:
    return round(float(10 * np.log10(signal / noise)), 2) if signal > 0 and noise > 0 else None


def _layer(tensor: str, layer_names: Sequence[str]) -> str:
    """Return the shortest name of a layer among the parts of a tensor's name, else the first part.

    TensorFlow adds a number to a name that it has seen before.
    """
    parts = re.split(r"[/;]", tensor)
    candidates = {*parts, *(re.sub(r"_\d+$", "", part) for part in parts)}
    known = [name for name in layer_names if name in candidates]
    # "block1_conv1" has the weights, "block1_conv1_relu" is the activation that runs with it.
    return min(known, key=len) if known else parts[0]

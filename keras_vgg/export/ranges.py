"""Choose the range of values that the 8-bit integers of each tensor stand for.

The converter takes the least and the greatest value that calibration images give. A few extreme
values then make all steps large. The other methods cut extreme values off. With every method, the
integers of the input are the pixels themselves, also if no calibration image is white.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from keras_vgg.export.litert_tensors import operations, values_on

CalibrationMethod = Literal["minmax", "percentile", "mse"]
CALIBRATION_METHODS: tuple[CalibrationMethod, ...] = ("minmax", "percentile", "mse")

# These answer with some of their inputs' values, or with means of them, in the same integers.
_SAME_RANGE = {"AVERAGE_POOL_2D", "MAX_POOL_2D", "PAD", "RESHAPE", "SQUEEZE", "TRANSPOSE"}
_BINS = 2048
_SHARE = 0.99999  # of the values lie below the highest one that "percentile" keeps
_SHRINKS = np.linspace(1.0, 0.05, 96)  # shares of the range that "mse" tries
_SAMPLE = 1 << 16  # values of a tensor and an image


def percentile_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return a range that cuts off one value in 100,000 at either end.

    Args:
        counts: [bins], how many values lie in each of the equal parts of [low, high].
    """
    cumulated = np.cumsum(counts) / counts.sum()
    edges = np.linspace(low, high, len(counts) + 1)
    first = int(np.searchsorted(cumulated, 1 - _SHARE, side="right"))
    last = int(np.searchsorted(cumulated, _SHARE))
    return float(edges[first]), float(edges[last + 1])


def mse_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the range in which 256 integers stand for the values with the least squared error.

    Every range has the proportions of [low, high]. Arguments as of `percentile_range`.
    """
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    errors = []
    for shrink in _SHRINKS:
        bottom, top = min(low, 0) * shrink, max(high, 0) * shrink  # Zero is one of the integers.
        step = (top - bottom) / 255
        zero = np.rint(-bottom / step)
        integers = np.clip(np.rint(centres / step) + zero, 0, 255)
        errors.append(np.sum(counts * ((integers - zero) * step - centres) ** 2))
    shrink = _SHRINKS[int(np.argmin(errors))]
    return low * shrink, high * shrink


def choose_ranges(calibrated: bytes, images: np.ndarray, method: CalibrationMethod) -> bytes:
    """Return a calibrated LiteRT file with the ranges of a method, and [0, 255] for its input.

    Args:
        calibrated: A float32 file that states the least and the greatest value of each tensor.
        images: [n, size, size, 3] RGB in [0, 255], the images of the calibration.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(calibrated)
    # Any: as in `litert_tensors`.
    graph: Any = schema.Model.GetRootAs(content, 0)
    graph = graph.Subgraphs(0)
    inputs = graph.InputsAsNumpy().tolist()
    ends = {*inputs, *graph.OutputsAsNumpy().tolist()}
    limits = {}  # tensor -> [1] views of the file: its least value, its greatest
    for tensor in range(graph.TensorsLength()):
        quantisation = graph.Tensors(tensor).Quantization()
        if quantisation is not None and quantisation.MinLength() == 1:
            limits[tensor] = quantisation.MinAsNumpy(), quantisation.MaxAsNumpy()
    for tensor in limits.keys() & inputs:
        low, high = limits[tensor]
        low[0], high[0] = 0, 255
    listed = operations(content)
    computed = [
        operation.outputs[0]
        for operation in listed
        if operation.name not in _SAME_RANGE
        and operation.outputs[0] in limits
        and operation.outputs[0] not in ends
    ]
    if method != "minmax":
        histograms = _histograms(calibrated, images, computed, limits)
        choose = percentile_range if method == "percentile" else mse_range
        for tensor in computed:
            low, high = limits[tensor]
            if high[0] > low[0]:
                low[0], high[0] = choose(histograms[tensor], float(low[0]), float(high[0]))
    for operation in listed:
        source, target = operation.inputs[0], operation.outputs[0]
        if operation.name in _SAME_RANGE and source in limits and target in limits:
            for own, given in zip(limits[target], limits[source], strict=True):
                own[0] = given[0]
    return bytes(content)


def _histograms(
    calibrated: bytes,
    images: np.ndarray,
    tensors: list[int],
    limits: dict[int, tuple[np.ndarray, np.ndarray]],
) -> dict[int, np.ndarray]:
    """Return how often each tensor has values in each of the parts of its range."""
    counts = {tensor: np.zeros(_BINS) for tensor in tensors}
    for tensor, values in values_on(calibrated, images, tensors):
        # The channels are the last axis. A step that shares no factor with their number visits all
        # of them; pruned layers have odd numbers of channels, too.
        step = max(1, values.size // _SAMPLE)
        while math.gcd(step, values.shape[-1]) > 1:
            step += 1
        low, high = (float(limit[0]) for limit in limits[tensor])
        if high > low:
            sample = np.clip(values.reshape(-1)[::step], low, high)
            counts[tensor] += np.histogram(sample, _BINS, (low, high))[0]
    return counts

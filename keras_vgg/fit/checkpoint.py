"""Checkpoints: all numbers that decide a run's next step, in one file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vgg.backend import as_array
from keras_vgg.containers import require_archive
from keras_vgg.files import read_arrays
from keras_vgg.finite import is_finite


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        history: A row of metrics.csv for each finished epoch.
        step: Steps of the unfinished epoch.
        seconds: Seconds of these steps.
        metrics: The sums behind the loss and accuracies of the unfinished epoch; empty at step 0.
    """

    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    step: int = 0
    seconds: float = 0.0
    metrics: tuple[np.ndarray, ...] = ()

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.history)


def file_name(epoch: int, step: int) -> str:
    """Return a checkpoint's name. Names sort by progress: steps of an epoch before its end."""
    if step:
        return f"epoch-{epoch + 1:06d}-step-{step:08d}.npz"
    return f"epoch-{epoch:06d}.npz"


def is_within_epoch(path: Path) -> bool:
    """Return whether a checkpoint is of a step, by its name."""
    return "-step-" in path.name


def metric_values(model: keras.Model) -> tuple[np.ndarray, ...]:
    """Return the sums of a compiled model's metrics."""
    return tuple(as_array(variable).copy() for variable in model.metrics_variables)


def copied(model: keras.Model, progress: Progress) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint, which training does not change while they are written.

    They are every variable of a compiled model and its optimiser, dropout's seeds included, and the
    progress.
    """
    metrics = len(progress.metrics)
    described = json.dumps([progress.history, progress.step, progress.seconds, metrics])
    arrays = {"progress": np.array(described)}
    for i, variable in enumerate(_variables(model)):
        value = as_array(variable)
        # An array without data of its own may show the memory that the next step writes to.
        arrays[f"{i:04d} {variable.path}"] = value if value.flags.owndata else value.copy()
    return arrays | {f"metric {i:04d}": value for i, value in enumerate(progress.metrics)}


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays of a checkpoint.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        # The stub takes any name for `allow_pickle`.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def load(path: Path, model: keras.Model) -> Progress:
    """Set every variable of the model and its optimiser, but not the metrics, from a checkpoint.

    If there is an error, no variable changes.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, belongs to another model, or holds NaN.
    """
    require_archive(path)
    arrays = read_arrays(path)
    if "progress" not in arrays:
        raise ValueError(f"{path} is not complete")
    history, step, seconds, metrics_count = json.loads(str(arrays.pop("progress")))
    names = sorted(arrays)
    values = [arrays[name] for name in names if not name.startswith("metric ")]
    metrics = tuple(arrays[name] for name in names if name.startswith("metric "))
    variables = [*_variables(model)]
    if len(metrics) != metrics_count:
        raise ValueError(f"{path} is not complete")
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        raise ValueError(f"{path} is of another model")
    wrong = sorted({str(v.dtype) for v in arrays.values() if v.dtype.kind not in "biuf"})
    if wrong:
        raise ValueError(f"{path} is damaged: it holds {', '.join(wrong)} instead of real numbers")
    if not all(map(is_finite, values)):
        raise ValueError(f"{path} holds values that are not finite")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return Progress(history, step, seconds, metrics)


def holds_finite_values(model: keras.Model) -> bool:
    """Return whether every number of the model and its optimiser is finite."""
    return all(is_finite(variable.value) for variable in _variables(model))


def _variables(model: keras.Model) -> Iterator[Any]:
    yield from model.variables
    yield from model.optimizer.variables

"""Run an exported file, measure it, and compare its answers with the model's."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vgg.evaluation.multilabel import MultiLabelEvaluation
from keras_vgg.evaluation.result import Evaluation
from keras_vgg.export import run_artifact
from keras_vgg.export.litert_tensors import float_operations
from keras_vgg.files import sha256_of

THREADS = (1, 2)
TOLERANCE = 0.5  # percentage points

_TIE = 1e-5  # Two probabilities nearer than this are equal but for float32 rounding.
_FLOAT32_DIFFERENCE = 1e-3  # the largest difference of a probability that float32 may make


class ExportError(ValueError):
    """A file could not be made from the model, or does not answer like the model."""


@dataclass(frozen=True)
class Artifact:
    """One exported file or folder, and how it compares with its model.

    Attributes:
        format: One of FORMATS.
        path: The file or folder.
        bytes: The size of the file, or the sum of the folder's files.
        sha256: Hex digest of the file; for a folder, over the sorted relative paths, sizes and
            contents.
        images: How many images it was verified on.
        top1, top5: The accuracy on these images, in [0, 1]; of a map, on their pixels. Both are
            None without labels; top5 is None for five classes or fewer.
        agreement: Fraction of the images whose most probable class is the model's; with several
            labels an image, of the images whose labels are all the model's. Of a map, the fraction
            of the pixels.
        max_difference: Largest |difference| of any probability from the model's.
        latency_ms: threads -> (median, 95th percentile) of the milliseconds that one image takes.
        peak_bytes: The most memory of a process that loaded the file and answered one image.
            None where the system does not report it (Windows).
        float_operations: For litert_int8 and litert_int16, the operations that stayed in float32.
        mean_average_precision: With several labels an image, on these images; else None.
        precision: For openvino, "f32", "bf16" or "f16": in what its runtime computed, which it
            chooses by the processor.
    """

    format: str
    path: Path
    bytes: int
    sha256: str
    images: int
    top1: float | None
    top5: float | None
    agreement: float
    max_difference: float
    latency_ms: dict[int, tuple[float, float]]
    peak_bytes: int | None
    float_operations: tuple[str, ...] = ()
    mean_average_precision: float | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Answers:
    """What a file answered: `probabilities` as in Reference; the rest as in Artifact."""

    probabilities: np.ndarray
    latency_ms: dict[int, tuple[float, float]]
    peak_bytes: int | None
    precision: str | None = None


@dataclass(frozen=True)
class Reference:
    """What every file is compared with: the model's own answers.

    Attributes:
        probabilities: [n, classes]; of a map, [n, height, width, classes].
        labels: [n] or [n, height, width] integers, or None; with several labels an image or a
            pixel, of the probabilities' shape.
        class_names: One name for each output.
        images_file: A .npy of the images, float32 [n, size, size, 3] RGB in [0, 255].
        thresholds: With several labels an image, [classes]: a label is given from here on.
    """

    probabilities: np.ndarray
    labels: np.ndarray | None
    class_names: Sequence[str]
    images_file: Path
    thresholds: np.ndarray | None = None

    def accuracy(self, probabilities: np.ndarray) -> dict[str, float | None]:
        """Return top1 and top5 of some answers to the images; None without labels.

        With several labels an image, return mean_average_precision.
        """
        if self.thresholds is not None:
            precision = None
            if self.labels is not None:
                precision = mean_average_precision(_rows(self.labels), _rows(probabilities))
            return {"top1": None, "top5": None, "mean_average_precision": precision}
        if self.labels is None:
            return {"top1": None, "top5": None}
        labels = np.reshape(self.labels, -1)
        evaluation = Evaluation(labels, _rows(probabilities), tuple(self.class_names))
        return {"top1": evaluation.top1, "top5": evaluation.top5}


def _rows(values: np.ndarray) -> np.ndarray:
    """Return [n, classes], of a map one row for each pixel."""
    return np.reshape(values, (-1, np.shape(values)[-1]))


def mean_average_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean over the labels that an image has; [n, classes] twice."""
    names = tuple(map(str, range(probabilities.shape[1])))
    return float(np.nanmean(MultiLabelEvaluation(labels, probabilities, names).average_precision))


def verified_artifact(
    format: str, path: Path, scratch: Path, reference: Reference, allowed_loss: float | None
) -> Artifact:
    """Run a file on the images and compare its answers with the model's.

    Args:
        path: The file or folder.
        scratch: A folder for the answers.
        allowed_loss: As `tolerance` of `compare`.

    Raises:
        ExportError: the file does not run, or does not answer like the model.
    """
    answers = run(format, path, reference.images_file, scratch)
    probabilities = answers.probabilities
    agreement, difference = _compared(format, probabilities, reference, allowed_loss)
    size, digest = size_and_sha256(path)
    return Artifact(
        format=format,
        path=path,
        bytes=size,
        sha256=digest,
        images=len(reference.probabilities),
        **reference.accuracy(probabilities),
        agreement=agreement,
        max_difference=difference,
        latency_ms=answers.latency_ms,
        peak_bytes=answers.peak_bytes,
        precision=answers.precision,
        float_operations=float_operations(path.read_bytes()) if "int" in format else (),
    )


def run(format: str, path: Path, images: Path, scratch: Path) -> Answers:
    """Run a file on the CPU in fresh processes that load only its runtime, one for each of THREADS.

    Args:
        images: A .npy of float32 [n, size, size, 3] RGB in [0, 255].
        scratch: A folder for the answers.

    Raises:
        ExportError: the file does not run.
    """
    kind = next(kind for kind in run_artifact.RUNNERS if format.startswith(kind))
    environment = {"TF_ENABLE_ONEDNN_OPTS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    latency, probabilities, peak_bytes, precision = {}, np.empty(0), None, None
    for threads in THREADS:
        output = scratch / f"answers_{threads}.npz"
        arguments = (kind, path, threads, images, output)
        process = subprocess.run(
            [sys.executable, "-P", run_artifact.__file__, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if process.returncode < 0:
            raise ExportError(
                f"{format}: signal {-process.returncode} ended the process that ran the file;"
                " the memory may be too small"
            )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
            raise ExportError(f"{format}: the file that was written does not run: {lines[-1]}")
        with np.load(output, allow_pickle=False) as arrays:
            milliseconds = 1000 * arrays["seconds"]
            latency[threads] = (
                float(np.median(milliseconds)),
                float(np.percentile(milliseconds, 95)),
            )
            if "probabilities" in arrays:
                probabilities = arrays["probabilities"]
                peak_bytes = int(arrays["peak_bytes"]) if "peak_bytes" in arrays else None
                precision = str(arrays["precision"]) if "precision" in arrays else None
    return Answers(probabilities, latency, peak_bytes, precision)


def _compared(
    format: str, probabilities: np.ndarray, reference: Reference, allowed_loss: float | None
) -> tuple[float, float]:
    """Compare as `compare` or `compare_labels` does; the pixels of maps count like images."""
    expected, labels, thresholds = reference.probabilities, reference.labels, reference.thresholds
    unit = "images"
    if expected.ndim == 4:
        _require_answers(format, probabilities, expected)
        probabilities, expected, unit = _rows(probabilities), _rows(expected), "pixels"
        if labels is not None:
            labels = np.reshape(labels, -1) if thresholds is None else _rows(labels)
    if thresholds is None:
        return compare(format, probabilities, expected, labels, allowed_loss, unit)
    return compare_labels(format, probabilities, expected, labels, allowed_loss, thresholds, unit)


def compare(
    format: str,
    actual: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray | None,
    tolerance: float | None,
    unit: str = "images",
) -> tuple[float, float]:
    """Compare a file's probabilities with the model's; return (agreement, largest difference).

    Args:
        tolerance: How many percentage points of top-1 accuracy the file may lose; without labels,
            on how many of the images it may have another most probable class. None: the file must
            answer like the model: probabilities within 1e-3, and the same most probable class
            wherever the model's two probabilities are not tied (nearer than 1e-5).
        unit: What the rows are, for the error.

    Raises:
        ExportError: the file loses more.
    """
    _require_answers(format, actual, expected)
    difference = float(np.abs(actual - expected).max())
    model_classes, file_classes = expected.argmax(axis=1), actual.argmax(axis=1)
    agreement = float(np.mean(model_classes == file_classes))
    if tolerance is None:
        rows = np.arange(len(expected))
        margins = expected[rows, model_classes] - expected[rows, file_classes]
        wrong = int(np.sum(margins > _TIE))
        if difference > _FLOAT32_DIFFERENCE or wrong:
            raise ExportError(
                f"{format}: does not answer like the model on {len(expected)} {unit}:"
                f" probabilities differ by up to {difference:.3g} (tolerance"
                f" {_FLOAT32_DIFFERENCE:.3g}), and the most probable class differs on {wrong} that"
                f" are not ties (agreement {agreement:.2%})"
            )
        return agreement, difference
    if labels is None:
        loss, verb = 1 - agreement, "differs from the model"
    else:
        loss = float(np.mean(model_classes == labels) - np.mean(file_classes == labels))
        verb = "is less accurate"
    # Counted in whole images, so that float64's rounding does not decide at the tolerance.
    if round(loss * len(expected)) > tolerance / 100 * len(expected) + 1e-6:
        raise ExportError(
            f"{format}: {verb} by {100 * loss:.2f} percentage points on {len(expected)} {unit},"
            f" more than the tolerance of {tolerance:g}; nothing was kept. Raise the tolerance, or"
            " choose another format"
        )
    return agreement, difference


def _require_answers(format: str, actual: np.ndarray, expected: np.ndarray) -> None:
    if actual.shape != expected.shape:
        raise ExportError(f"{format}: gives {actual.shape} where the model gives {expected.shape}")
    if not np.isfinite(actual).all():
        raise ExportError(f"{format}: gives nan or infinite probabilities")


def compare_labels(
    format: str,
    actual: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray | None,
    tolerance: float | None,
    thresholds: np.ndarray,
    unit: str = "images",
) -> tuple[float, float]:
    """Compare as `compare`, for several labels an image.

    Args:
        labels: [n, classes], 1 where an image has a label; None: unknown.
        tolerance: How many percentage points of mean average precision the file may lose; without
            labels, on how many of the images it may give other labels. None: probabilities must be
            within 1e-3, and no label may differ unless the model's probability is within 1e-5 of
            the threshold.
        thresholds: [classes]: a label is given from here on.
        unit: What the rows are, for the error.

    Raises:
        ExportError: the file loses more.
    """
    _require_answers(format, actual, expected)
    difference = float(np.abs(actual - expected).max())
    differs = (actual >= thresholds) != (expected >= thresholds)
    agreement = float(1 - differs.any(axis=1).mean())
    if tolerance is None:
        wrong = int((differs & (np.abs(expected - thresholds) > _TIE)).sum())
        if difference > _FLOAT32_DIFFERENCE or wrong:
            raise ExportError(
                f"{format}: does not answer like the model on {len(expected)} {unit}:"
                f" probabilities differ by up to {difference:.3g} (tolerance"
                f" {_FLOAT32_DIFFERENCE:.3g}), and {wrong} labels differ that are not at their"
                f" threshold (the labels of {agreement:.2%} of the {unit} agree)"
            )
        return agreement, difference
    if labels is None:
        loss, verb = 1 - agreement, "gives other labels than the model"
    else:
        loss = mean_average_precision(labels, expected) - mean_average_precision(labels, actual)
        verb = "has a lower mean average precision"
    if loss > tolerance / 100 + 1e-9:
        raise ExportError(
            f"{format}: {verb}, by {100 * loss:.2f} percentage points on {len(expected)} {unit},"
            f" more than the tolerance of {tolerance:g}; nothing was kept. Raise the tolerance, or"
            " choose another format"
        )
    return agreement, difference


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Return the bytes and the hash of a file, or of all files below a folder (see Artifact)."""
    if path.is_file():
        return path.stat().st_size, sha256_of(path)
    digest = hashlib.sha256()
    total = 0
    for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*")):
        file = path / name
        if file.is_file():
            size, content = size_and_sha256(file)
            digest.update(f"{name}\0{size}\0{content}\n".encode())
            total += size
    return total, digest.hexdigest()

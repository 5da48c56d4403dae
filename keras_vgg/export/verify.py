"""What an exported file answers, how fast, and whether that is what its model answers."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vgg.export import run_artifact

THREADS = (1, 2)

_TIE = 1e-5  # two probabilities nearer than this are equal but for float32 rounding
_EXACT = 1e-3  # largest difference of a probability that float32 may make


class ExportError(ValueError):
    """A file could not be made from the model, or does not answer like it."""


@dataclass(frozen=True)
class Artifact:
    """One exported file or folder, and how it compares with the model it came from.

    Attributes:
        format: one of FORMATS.
        path: where it is.
        bytes: its size; of a folder, the sum of its files.
        sha256: hex digest; of a folder, over the sorted relative paths, sizes and contents.
        images: how many images it was verified on.
        top1, top5: its accuracy on them, in [0, 1]; None without labels, and top5 of no more than
            five classes.
        agreement: fraction of the images with the same most probable class as the model's.
        max_difference: largest |difference| of any probability from the model's.
        latency_ms: threads -> (median, 95th percentile) of the milliseconds that one image takes.
        peak_bytes: the most memory that a process had which loaded it and answered one image.
        float_operations: of a file in integers, the operations that stayed in float32.
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
    peak_bytes: int
    float_operations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a file gave when it was run: as of Artifact, and `probabilities` [n, classes]."""

    probabilities: np.ndarray
    latency_ms: dict[int, tuple[float, float]]
    peak_bytes: int


def run(format: str, path: Path, images: Path, scratch: Path) -> Answers:
    """Run a file in fresh processes that have nothing but its runtime, one for each of THREADS.

    On the CPU: threads and memory are what they are there.

    Args:
        images: A .npy of float32 [n, size, size, 3] RGB in [0, 255].
        scratch: A folder for the answers.

    Raises:
        ExportError: it does not run.
    """
    kind = next(kind for kind in run_artifact.RUNNERS if format.startswith(kind))
    environment = {"TF_ENABLE_ONEDNN_OPTS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    latency = {}
    for threads in THREADS:
        output = scratch / f"answers_{threads}.npz"
        arguments = (kind, path, threads, images, output)
        done = subprocess.run(
            [sys.executable, "-I", run_artifact.__file__, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise ExportError(f"{format}: the file that was written does not run: {said[-1]}")
        with np.load(output, allow_pickle=False) as found:
            milliseconds = 1000 * found["seconds"]
            latency[threads] = (
                float(np.median(milliseconds)),
                float(np.percentile(milliseconds, 95)),
            )
            if "probabilities" in found:
                answers = found["probabilities"], int(found["peak_bytes"])
    return Answers(answers[0], latency, answers[1])


def compare(
    format: str,
    actual: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray | None,
    tolerance: float | None,
) -> tuple[float, float]:
    """(agreement, largest difference) of a file's probabilities and its model's.

    Args:
        tolerance: How many percentage points of top-1 accuracy the file may lose; without labels,
            on how many of the images it may have another most probable class. None: it must answer
            like the model: probabilities within 1e-3, and the same most probable class wherever
            the model's two probabilities are not tied (nearer than 1e-5).

    Raises:
        ExportError: it does not.
    """
    if actual.shape != expected.shape:
        raise ExportError(f"{format}: gives {actual.shape} where the model gives {expected.shape}")
    if not np.isfinite(actual).all():
        raise ExportError(f"{format}: gives nan or infinite probabilities")
    difference = float(np.abs(actual - expected).max())
    ours, theirs = expected.argmax(axis=1), actual.argmax(axis=1)
    agreement = float(np.mean(ours == theirs))
    if tolerance is None:
        rows = np.arange(len(expected))
        wrong = int(np.sum(expected[rows, ours] - expected[rows, theirs] > _TIE))
        if difference > _EXACT or wrong:
            raise ExportError(
                f"{format}: does not answer like the model on {len(expected)} images:"
                f" probabilities differ by up to {difference:.3g} (tolerance {_EXACT:.3g}), and the"
                f" most probable class differs on {wrong} that are not ties (agreement"
                f" {agreement:.2%})"
            )
        return agreement, difference
    if labels is None:
        lost, what = 1 - agreement, "differs from the model"
    else:
        lost, what = float(np.mean(ours == labels) - np.mean(theirs == labels)), "is less accurate"
    # Counted in images, for 0.5 points of 200 images are one, whatever float64 makes of it.
    if round(lost * len(expected)) > tolerance / 100 * len(expected) + 1e-6:
        raise ExportError(
            f"{format}: {what} by {100 * lost:.2f} percentage points on {len(expected)} images,"
            f" more than the tolerance of {tolerance:g}; nothing was kept"
        )
    return agreement, difference


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Return the bytes and the hash of a file, or of all files below a folder (see Artifact)."""
    if path.is_file():
        with path.open("rb") as file:
            return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    total = 0
    for name in sorted(file.relative_to(path).as_posix() for file in path.rglob("*")):
        file = path / name
        if file.is_file():
            size, content = size_and_sha256(file)
            digest.update(f"{name}\0{size}\0{content}\n".encode())
            total += size
    return total, digest.hexdigest()

"""Compare image files in pairs: LPIPS and DISTS, and PSNR and SSIM beside them."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import tensorflow as tf

from keras_vgg.console import progress_bars
from keras_vgg.data.decode import EXTENSIONS, BitDepth, load_image
from keras_vgg.data.folders import find_images
from keras_vgg.data.left_out import LeftOut, printable
from keras_vgg.features import channel_axis
from keras_vgg.image_paths import expanded
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.perceptual import DISTS, LPIPS
from keras_vgg.perceptual.distance import trunk
from keras_vgg.runs.memory import memory_error_explained, require_memory

ImageMetric = Literal["lpips", "dists", "psnr", "ssim"]
METRICS: tuple[ImageMetric, ...] = ("lpips", "dists", "psnr", "ssim")

_SSIM_WINDOW = 11  # pixels
# A pair's peak, measured on TensorFlow on a CPU at 768x768; of PSNR and SSIM at 3000x3000.
_BYTES_PER_PIXEL = {"lpips": 1600, "dists": 2400, "psnr": 60, "ssim": 180}
_SMALLER = "make the images smaller"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two files and their distances.

    Attributes:
        first: Path of the reference.
        second: Path of the image that is compared with it.
        values: Name of a metric -> value; empty if the pair cannot be compared.
        reason: Why the pair cannot be compared.
    """

    first: str
    second: str
    values: dict[str, float]
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class FilePairs:
    """Pairs of files.

    Attributes:
        pairs: Paths of a reference and of the image that is compared with it.
        unmatched: Images of either folder that have no partner.
        left_out: What else is in the folders, by reason.
    """

    pairs: tuple[tuple[str, str], ...]
    unmatched: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def pair_files(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> FilePairs:
    """Return the pairs of two files, or of the images of two folders with the same name.

    The suffix does not count: cat/1.png and cat/1.jpg are a pair.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: one path is a folder and the other one a file; a folder has no image, or two of
            one name; no name is in both.
    """
    paths = [expanded(path) for path in (first, second)]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)}: no such image file or folder")
    if paths[0].is_dir() != paths[1].is_dir():
        folder, file = paths if paths[0].is_dir() else reversed(paths)
        raise ValueError(
            f"{printable(folder)} is a folder and {printable(file)} is a file: give two files or "
            "two folders"
        )
    if not paths[0].is_dir():
        return FilePairs(((str(paths[0]), str(paths[1])),))
    found = [find_images(str(path)) for path in paths]
    named = [_by_name(path, images) for path, (images, _) in zip(paths, found, strict=True)]
    both = [name for name in named[0] if name in named[1]]
    if not both:
        names = [printable(next(iter(images))) for images in named]
        raise ValueError(
            f"no image of {printable(paths[0])} has the name of one in {printable(paths[1])}: "
            f"{names[0]!r} is the first name in one, {names[1]!r} in the other"
        )
    unmatched = [
        path
        for images, others in (named, named[::-1])
        for name, path in images.items()
        if name not in others
    ]
    pairs = tuple((named[0][name], named[1][name]) for name in both)
    return FilePairs(pairs, tuple(unmatched), tuple(chain(*(others for _, others in found))))


def _by_name(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return path below the folder without suffix -> path."""
    images: dict[str, str] = {}
    for path in paths:
        name = os.path.relpath(path, folder)
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in EXTENSIONS:  # "scan 1.5 mm" has no suffix
            name = stem
        if name in images:
            raise ValueError(
                f"{printable(images[name])} and {printable(path)} have one name: remove one"
            )
        images[name] = path
    if not images:
        raise ValueError(f"folder {printable(folder)} has no image at any depth")
    return images


def compare_files(
    pairs: Iterable[tuple[str, str]],
    metrics: Sequence[ImageMetric] = METRICS,
    *,
    weights: str | Path = "torchvision",
    preprocessing: ImagePreprocessing | None = None,
    bit_depth: BitDepth = "16",
    verbose: bool = False,
) -> Iterator[Comparison]:
    """Yield the distances of pairs of image files, at the size that they have.

    LPIPS and DISTS are 0 for equal images. PSNR, in dB, and SSIM are TensorFlow's: PSNR is infinite
    and SSIM is 1 for equal images. A pair that cannot be compared has a reason, such as too many
    pixels for the memory that is left.

    Args:
        pairs: Paths of a reference and of the image that is compared with it.
        metrics: What to compute.
        weights: As `LPIPS` takes them.
        preprocessing: As `LPIPS` takes it.
        bit_depth: Which bits of a 16-bit PNG file carry the image, as `keras_vgg.data.decode`.
        verbose: Show a progress bar on stderr.

    Raises:
        ValueError, OSError: an unknown metric; the weights cannot be loaded.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be some of {', '.join(METRICS)}, not {list(metrics)}")
    learned: dict[str, Any] = {"lpips": LPIPS, "dists": DISTS}
    if learned.keys() & set(metrics):
        network = trunk(weights, preprocessing)
        learned = {name: learned[name](network) for name in learned if name in metrics}
    return _compared(list(pairs), metrics, learned, bit_depth, verbose)


def _compared(
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    learned: dict[str, Any],
    bit_depth: BitDepth,
    verbose: bool,
) -> Iterator[Comparison]:
    with progress_bars(verbose) as progress:
        for first, second in progress.track(pairs, description="compare"):
            try:
                with memory_error_explained(_SMALLER):
                    images = [load_image(path, bit_depth=bit_depth) for path in (first, second)]
                    _require_comparable(images[0], images[1], metrics)
                    values = {name: _value(name, images[0], images[1], learned) for name in metrics}
            except (OSError, ValueError, MemoryError) as error:
                yield Comparison(first, second, {}, " ".join(str(error).split()))
            else:
                yield Comparison(first, second, values)


def _require_comparable(first: np.ndarray, second: np.ndarray, metrics: Sequence[str]) -> None:
    """Raise a ValueError for two sizes, and a MemoryError for more than the memory that is left."""
    sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (first, second)]
    if first.shape != second.shape:
        raise ValueError(f"the images have different sizes, {sizes[0]} and {sizes[1]}")
    needed = first.shape[0] * first.shape[1] * max(_BYTES_PER_PIXEL[name] for name in metrics)
    require_memory(needed, f"a pair of {sizes[0]} pixels", _SMALLER)


def _value(name: str, first: np.ndarray, second: np.ndarray, learned: dict[str, Any]) -> float:
    if name in learned:
        pair = (np.moveaxis(x, -1, 0) if channel_axis() == 1 else x for x in (first, second))
        return float(learned[name](*pair))
    if name == "psnr":
        return float(tf.image.psnr(first, second, max_val=255))
    if min(first.shape[:2]) < _SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {_SSIM_WINDOW}x{_SSIM_WINDOW}")
    return float(tf.image.ssim(tf.constant(first), tf.constant(second), max_val=255))


def mean_values(comparisons: Iterable[Comparison]) -> dict[str, float]:
    """Return the mean of each metric over the pairs that could be compared."""
    rows = [comparison.values for comparison in comparisons if comparison.values]
    return {name: float(np.mean([row[name] for row in rows])) for name in (rows or [{}])[0]}


def write_comparisons(
    comparisons: Iterable[Comparison],
    file: TextIO,
    format: Literal["csv", "jsonl"],
    metrics: Sequence[str],
) -> list[Comparison]:
    """Write a row for each pair: first, second, the metrics, reason. Return the pairs.

    An infinite PSNR is inf in a CSV and null in JSON, which has no infinity.
    """
    written = []
    writer = csv.writer(file, lineterminator="\n")
    if format == "csv":
        writer.writerow(["first", "second", *metrics, "reason"])
    for comparison in comparisons:
        written.append(comparison)
        values = [comparison.values.get(name) for name in metrics]
        paths = [comparison.first, comparison.second]
        if format == "csv":
            cells = ["" if value is None else f"{value:.9g}" for value in values]
            writer.writerow([*paths, *cells, comparison.reason])
        else:
            finite = [None if v is None or math.isinf(v) else float(f"{v:.9g}") for v in values]
            row = dict(zip(["first", "second", *metrics], [*paths, *finite], strict=True))
            file.write(json.dumps({**row, "reason": comparison.reason or None}) + "\n")
    return written

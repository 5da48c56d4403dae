"""keras-vgg compare."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from keras_vgg.cli.rows import RowFormat, require_no_input, row_format, text_file
from keras_vgg.console import is_terminal, new_table, note, show
from keras_vgg.image_paths import expanded

if TYPE_CHECKING:
    from keras_vgg.runs.comparison import Comparison

SOME_BAD = 3  # the exit status if some pairs could not be compared


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare two images, or the images of two folders: LPIPS, DISTS, PSNR and SSIM.

    LPIPS and DISTS say how different two images look: 0 for equal images, larger is worse. PSNR (in
    dB) and SSIM (at most 1) compare pixels: larger is better. Images of two folders are matched by
    their names; the suffix does not count.

    The exit status is 3 if some pairs could not be compared: their rows have the reason. It is 2 if
    no pair could be compared.
    """

    first: tyro.conf.Positional[Path]
    """The reference: an image file (JPEG, PNG, BMP, GIF, WebP), or a folder."""
    second: tyro.conf.Positional[Path]
    """What is compared with it: a file of the same size in pixels, or a folder of such files."""
    metrics: tuple[Literal["lpips", "dists", "psnr", "ssim"], ...] = (
        "lpips",
        "dists",
        "psnr",
        "ssim",
    )
    """What to compute. psnr and ssim need no weights."""
    weights: str = "torchvision"
    """Weights of VGG-16: torchvision, on which LPIPS and DISTS were published; imagenet; a weight
    file, or hf://OWNER/NAME. Other weights than torchvision give other figures."""
    preprocessing: Literal["caffe", "torchvision"] | None = None
    """The preprocessing of the weights, if their file does not state it."""
    bit_depth: Literal["16", "14", "12", "10", "stretch"] = "16"
    """Which bits of a 16-bit PNG file carry the image: the lowest 16, 14, 12 or 10; stretch: from
    its smallest to its largest value."""
    format: RowFormat | None = None
    """table: for a person, with the means. csv, jsonl (JSON Lines): one row for each pair (default:
    as the name of --out ends, else table)."""
    out: Path | None = None
    """File to write csv or jsonl into; it appears complete or not at all (default: print)."""

    def check(self) -> None:
        """Check paths and options, without TensorFlow.

        Raises:
            FileNotFoundError: there is nothing at a path.
            ValueError: options contradict each other, or --out names an input.
        """
        row_format(self.format, self.out)
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"--metrics must be different names, not {' '.join(self.metrics)!r}")
        for path in (self.first, self.second):
            if not expanded(path).exists():
                raise FileNotFoundError(f"{path}: no such image file or folder")
        require_no_input("--out", self.out, (self.first, self.second))

    def __call__(self) -> int:
        format = row_format(self.format, self.out)
        from keras_vgg.data.left_out import printable
        from keras_vgg.layers import ImagePreprocessing
        from keras_vgg.runs.comparison import compare_files, pair_files, write_comparisons
        from keras_vgg.runs.few_levels import few_levels_line

        files = pair_files(self.first, self.second)
        paths = [path for pair in files.pairs for path in pair]
        require_no_input("--out", self.out, paths)
        for path in files.unmatched:
            note(f"not compared: {printable(path)} has no partner")
        for left_out in files.left_out:
            note(f"not read: {left_out}")
        if line := few_levels_line(paths, self.bit_depth):
            note(line)
        layer = (
            None if self.preprocessing is None else getattr(ImagePreprocessing, self.preprocessing)
        )
        comparisons = compare_files(
            files.pairs,
            self.metrics,
            weights=self.weights,
            preprocessing=layer and layer(),
            bit_depth=self.bit_depth,
            verbose=is_terminal(sys.stderr),
        )
        if format == "table":
            rows = list(comparisons)
            _require_one(rows)
            _show(rows, self.metrics)
        else:
            with text_file(self.out) as file:
                rows = write_comparisons(comparisons, file, format, self.metrics)
                _require_one(rows)
        bad = sum(bool(row.reason) for row in rows)
        if bad:
            note(f"{bad:,} of {len(rows):,} pairs cannot be compared; their rows have the reason")
        return SOME_BAD if bad else 0


def _require_one(rows: list[Comparison]) -> None:
    """Raise a ValueError if no pair could be compared."""
    if all(row.reason for row in rows):
        first = f"{rows[0].first} and {rows[0].second}: {rows[0].reason}"
        if len(rows) == 1:
            raise ValueError(first)
        raise ValueError(f"none of {len(rows):,} pairs can be compared; the first is {first}")


def _show(rows: list[Comparison], metrics: tuple[str, ...]) -> None:
    """Print a table of the pairs, and their means."""
    from keras_vgg.data.left_out import printable
    from keras_vgg.runs.comparison import mean_values

    has_reason = any(row.reason for row in rows)
    headers = [name.upper() for name in metrics]
    table = new_table("", "image", *headers, *(["reason"] if has_reason else []))
    if has_reason:
        table.columns[-1].no_wrap, table.columns[-1].justify = False, "left"
    lines = [(printable(row.second), row.values, row.reason) for row in rows]
    if len(rows) > 1:
        lines.append(("mean", mean_values(rows), ""))
    for number, (name, values, reason) in enumerate(lines):
        cells = [_digits(metric, values[metric]) if values else "" for metric in metrics]
        last = number == len(rows) - 1
        table.add_row(name, *cells, *([reason] if has_reason else []), end_section=last)
    show(table)


def _digits(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric == "psnr" else f"{value:.4f}"

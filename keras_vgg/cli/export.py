"""keras-vgg export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import tyro

from keras_vgg.cli.sources import DEFAULT, Opened
from keras_vgg.console import new_table, percent, show


@dataclasses.dataclass(frozen=True)
class Export:
    """Write deployable artifacts of a trained network, each proved on real images first.

    Of a run, on its validation images; of a weight file, on those of --source. The artifacts take
    RGB images in [0, 255]: the preprocessing is inside. Each is run in a process of its own;
    accuracy, agreement with the model, latency and memory go into export.json. Nothing is kept
    when one of them loses more than the tolerance.
    """

    run: tyro.conf.Positional[Path]
    """The run directory, or a weight file with its classifier."""
    format: str | None = None
    """Comma-separated: saved_model (TensorFlow Serving); litert, litert_float16, litert_dynamic,
    litert_int8 (LiteRT, formerly TFLite); onnx (default: saved_model,litert; with --compress
    litert_int8)."""
    output: Path | None = None
    """Where to (default: export/ in the run directory, or beside the weight file)."""
    tolerance: float = 0.5
    """Percentage points of top-1 accuracy that an artifact of less than float32 may lose; one of
    float32 must answer like the model."""
    images: int | None = None
    """How many validation images to verify with, evenly spaced (default: all of them)."""
    top: int = 5
    """How many classes the SavedModel's signature classify names."""
    compress: bool = False
    """Factorise fc1 and fc2 first, as far as accuracy allows: every other validation image chooses
    the ranks, which may cost half of the tolerance, and the rest verify. Draws compression.png."""
    fine_tune_steps: int = 0
    """With --compress: teach the factors the original's answers for so many batches of 32."""
    overwrite: bool = False
    """Replace an export that is there."""
    source: str | None = None
    """Images to verify a weight file on: digits, folder:PATH, records:PATH, idx:PATH or a TFDS
    name."""
    where: Opened = DEFAULT

    def __call__(self) -> None:
        from keras_vgg import runs
        from keras_vgg.run import Run

        format = self.format or ("litert_int8" if self.compress else "saved_model,litert")
        options = {
            "formats": tuple(f.strip() for f in format.split(",")),
            "images": self.images,
            "tolerance": self.tolerance,
            "top": self.top,
            "compress": self.compress,
            "fine_tune_steps": self.fine_tune_steps,
            "overwrite": self.overwrite,
            "verbose": True,
        }
        if self.source is None:
            if self.run.is_file():
                raise ValueError(f"{self.run} is no run: say with --source what to verify it on")
            artifacts = runs.export_run(Run.open(self.run), self.output, **options)
        else:
            source = self.where.open(self.source)
            output = self.output or self.run.with_name(f"{self.run.name}.export")
            artifacts = runs.export_weights(self.run, source, output, **options)
        self._show(artifacts)

    def _show(self, artifacts: Sequence) -> None:
        headers = ("MB", "top-1", "top-5", "agreement", "max |Δp|", "ms, 1 thread", "2 threads")
        directory = artifacts[0].path.parent
        record = json.loads((directory / "export.json").read_text())
        table = new_table(
            f"verified on {artifacts[0].images:,} validation images; ms: median (95th percentile)",
            *("format", *headers, "peak MB"),
        )
        model = record["model"]
        figures = [*map(percent, (model["top1"], model["top5"]))]
        table.add_row("the model, float32", f"{model['bytes'] / 1e6:.2f}", *figures)
        for a in artifacts:
            table.add_row(
                a.format,
                f"{a.bytes / 1e6:.2f}",
                *map(percent, (a.top1, a.top5, a.agreement)),
                f"{a.max_difference:.1e}",
                *(f"{median:.2f} ({p95:.2f})" for median, p95 in a.latency_ms.values()),
                "" if a.peak_bytes is None else f"{a.peak_bytes / 1e6:.0f}",
            )
        show(table)
        for a in artifacts:
            if a.float_operations:
                show(f"{a.format}: {', '.join(a.float_operations)} stayed in float32")
        pictures = [directory / "compression.png"] if self.compress else []
        show("\n".join(map(str, [*(a.path for a in artifacts), *pictures])))

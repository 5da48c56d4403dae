"""keras-vgg report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a run, or several beside each other, as one HTML page that opens anywhere.

    Recipe, curves, accuracy by class, confusions, calibration, exports, and the most confident
    mistakes and least confident hits with Grad-CAM; of several runs a comparison as well. The page
    needs no other file and no network. What a run does not have is left out, and the page says how
    to get it. Posteriors that evaluate has kept are used.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    split: Literal["validation", "test", "train"] | None = None
    """Which images (default: test if the runs have been evaluated on it, else validation)."""
    out: Path | None = None
    """The page (default: report.html in the run directory; of several runs in the current one)."""
    images: int = 12
    """How many mistakes, and how many hits, to show of each run."""

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import report_runs

        if not self.runs:
            raise ValueError("report needs at least one run directory")
        runs = [Run.open(path) for path in self.runs]
        options = {"split": self.split, "images": self.images, "verbose": True}
        show(str(report_runs(runs, self.out, **options)))

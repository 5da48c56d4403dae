"""keras-vgg report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a report on one run or several as one HTML page.

    The page shows recipe, curves, accuracy by class, confusion matrix, calibration and exports, and
    the most confident mistakes and least confident hits with Grad-CAM. Several runs are compared.
    The page needs no other file and no network. It says how to get what a run does not have.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """One or more run directories."""
    split: Literal["validation", "test", "train"] | None = None
    """Split to evaluate on (default: test if the runs have been evaluated on it, else
    validation)."""
    out: Path | None = None
    """HTML file to write (default: report.html in the run directory; for several runs, in the
    current directory)."""
    images: int = 12
    """Number of mistakes, and number of hits, to show for each run."""

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import report_runs

        if not self.runs:
            raise ValueError("report needs at least one run directory")
        runs = [Run.open(path) for path in self.runs]
        options = {"split": self.split, "images": self.images, "verbose": True}
        show(str(report_runs(runs, self.out, **options)))

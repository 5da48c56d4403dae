"""keras-vgg report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.cli.arguments import require_runs, require_suffix
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
    split: Literal["validation", "test", "train", "all"] | None = None
    """Split to evaluate on (default: test if the runs have been evaluated on it, else
    validation; for another set without splits of its own, all)."""
    source: str | None = None
    """Where the runs' images are now if they have moved, or another set to report on, such as
    folder:PATH. The classes of another set are matched by name."""
    columns: str | None = None
    """For another set, csv:FILE: its columns' names, such as path=scan,label=diagnosis; "" if they
    have common names (default: the names of the runs' own table)."""
    data_dir: str | None = None
    """TFDS: the folder of prepared data sets, if it has moved (default: the runs' own)."""
    unknown_classes: Literal["error", "skip"] = "error"
    """If another set has classes that a run does not know: stop with an error, or skip their
    images."""
    out: Path | None = None
    """HTML file to write (default: report.html in the run directory; for several runs, in the
    current directory)."""
    images: int = 12
    """Number of mistakes, and number of hits, to show for each run."""

    def check(self) -> None:
        """Check the runs and the name of the page, without TensorFlow.

        Raises:
            ValueError, FileNotFoundError: as `require_runs`; the page's name is not that of HTML.
        """
        require_runs("report", self.runs)
        if self.out is not None and not self.out.exists():  # a file that exists is looked at later
            require_suffix("--out", self.out, ".html", ".htm")

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import in_data_dir, report_runs, with_columns

        runs = [Run.open(path) for path in self.runs]
        runs = [in_data_dir(run, self.data_dir, self.source) for run in runs]
        runs = [with_columns(run, self.columns, self.source) for run in runs]
        page = report_runs(
            runs,
            self.out,
            split=self.split,
            images=self.images,
            verbose=True,
            source=self.source,
            unknown_classes=self.unknown_classes,
        )
        show(str(page))

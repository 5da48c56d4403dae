"""keras-vgg calibrate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Calibrate:
    """Fit a temperature on the validation images, so that probabilities say how sure a run may be.

    calibration.json in the run directory keeps it. `predict` then uses it, and `export
    --calibrated` puts it into the files. The most probable class of an image stays the same. Fewer
    than 100 validation images, or fewer than 10 of a class, are said to be few: hold out more.
    """

    run: tyro.conf.Positional[Path]
    """The run directory."""
    unknown: tuple[float, ...] = ()
    """More shares of the validation images that are to be known, such as 0.8; 0.9, 0.95 and 0.99,
    and those of an earlier call, are always kept. `predict --unknown SHARE` answers "unknown" below
    the share's threshold."""

    source: str | None = None
    """Where the run's images are now if they have moved, such as folder:PATH."""
    data_dir: str | None = None
    """TFDS: the folder of prepared data sets, if it has moved (default: the run's own)."""

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import in_data_dir
        from keras_vgg.runs.calibration import SHARES, calibrate_run, require_calibration

        run = in_data_dir(Run.open(self.run), self.data_dir, self.source)
        temperature = calibrate_run(
            run, shares=(*SHARES, *self.unknown), verbose=True, source=self.source
        )
        calibration = require_calibration(run, "calibrate")
        table = new_table(f"{run.directory}: validation images", "", "before", "after")
        table.add_row("negative log-likelihood", *(f"{nats:.4f}" for nats in temperature.nll))
        table.add_row("expected calibration error", *(f"{error:.2%}" for error in temperature.ece))
        for share, (after, before) in sorted(calibration.thresholds.items()):
            table.add_row(
                f"unknown below (keeps {share:g} of the images)", f"{before:.4f}", f"{after:.4f}"
            )
        show(table)
        show(f"temperature {temperature.value:.4f}")
        if temperature.note:
            show(temperature.note)
        if calibration.few_images:
            show(calibration.few_images)

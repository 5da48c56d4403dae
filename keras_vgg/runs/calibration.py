"""How sure a run may be: its temperature, and the thresholds below which it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_vgg.evaluation.temperature import (
    Temperature,
    apply_temperature,
    fit_temperature,
    threshold_that_keeps,
)
from keras_vgg.files import sha256_of
from keras_vgg.run import Run
from keras_vgg.runs.evaluate import evaluate_runs

FILE = "calibration.json"
SHARES = (0.9, 0.95, 0.99)
_SPLIT = "validation"


@dataclass(frozen=True)
class Calibration:
    """What calibration.json holds for the run's present model.

    Attributes:
        temperature: The number that the scores are divided by.
        thresholds: Share of the validation images -> (threshold of the calibrated probabilities,
            threshold of the network's own).
    """

    temperature: float
    thresholds: dict[float, tuple[float, float]]

    def threshold(self, share: float, calibrated: bool) -> float:
        """Return the probability below which an image is unknown.

        Raises:
            ValueError: calibration.json has no threshold for the share.
        """
        if share not in self.thresholds:
            listed = ", ".join(f"{known:g}" for known in sorted(self.thresholds))
            raise ValueError(
                f"{FILE} has thresholds that keep {listed} of the validation images, and none for"
                f" {share:g}; repeat `keras-vgg calibrate` with --unknown {share:g}"
            )
        return self.thresholds[share][0 if calibrated else 1]


def calibrate_run(
    run: Run, *, shares: Sequence[float] = SHARES, verbose: bool = False
) -> Temperature:
    """Fit a run's temperature on its validation images, and keep it in calibration.json.

    The file has the temperature; the negative log-likelihood and the expected calibration error
    before and after; the SHA-256 of the model; and for each share the threshold that this share of
    the validation images reach, with the temperature and without it.

    Args:
        run: A finished run with one label an image.
        shares: Shares of the validation images that are to be known.
        verbose: Show a progress bar on stderr.

    Raises:
        ValueError, OSError: as `evaluate_runs`; a share is not above 0 and at most 1.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"unknown must be above 0 and at most 1, not {share}")
    if run.several_labels:
        raise ValueError(
            f"{run.directory} gives an image several labels, and one temperature calibrates only"
            " classes of which an image has one"
        )
    (evaluation,) = evaluate_runs([run], _SPLIT, verbose)
    temperature = fit_temperature(evaluation)
    calibrated = apply_temperature(evaluation.probabilities, temperature.value)
    thresholds = {
        f"{share:g}": {
            "calibrated": threshold_that_keeps(share, calibrated),
            "uncalibrated": threshold_that_keeps(share, evaluation.probabilities),
        }
        for share in sorted({*SHARES, *shares})
    }
    content: dict[str, Any] = {
        "temperature": temperature.value,
        "split": _SPLIT,
        "images": evaluation.count,
        "nll": dict(zip(("before", "after"), temperature.nll, strict=True)),
        "ece": dict(zip(("before", "after"), temperature.ece, strict=True)),
        "thresholds": thresholds,
        "model_sha256": sha256_of(run.model_path),
        "note": temperature.note,
    }
    run.write_json(FILE, content)
    return temperature


def read_calibration(run: Run) -> Calibration | None:
    """Return a run's calibration; None if it has none.

    Raises:
        ValueError: calibration.json is damaged, or belongs to an earlier model of the run.
    """
    path = run.directory / FILE
    if not path.is_file():
        return None
    fields = run.read_json(FILE)
    if fields["model_sha256"] != sha256_of(run.model_path):
        raise ValueError(
            f"{path} belongs to an earlier model of the run; repeat `keras-vgg calibrate"
            f" {run.directory}`, or remove the file"
        )
    try:
        thresholds = {
            float(share): (float(pair["calibrated"]), float(pair["uncalibrated"]))
            for share, pair in fields["thresholds"].items()
        }
        temperature = float(fields["temperature"])
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not temperature > 0:
        raise ValueError(f"{path} cannot be read: its temperature is {temperature}")
    return Calibration(temperature, thresholds)


def require_calibration(run: Run, purpose: str) -> Calibration:
    """Return a run's calibration. ValueError: it has none, which `purpose` needs."""
    calibration = read_calibration(run)
    if calibration is None:
        raise ValueError(
            f"{purpose} needs {run.directory / FILE}: run `keras-vgg calibrate {run.directory}`"
        )
    return calibration

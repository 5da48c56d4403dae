"""How sure a run may be: its temperature, and the thresholds below which it does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_vgg.evaluation.temperature import (
    Temperature,
    apply_temperature,
    fit_temperature,
    threshold_that_keeps,
)
from keras_vgg.files import sha256_of
from keras_vgg.run import Run
from keras_vgg.runs.evaluator import Evaluator, plan_of
from keras_vgg.runs.few_images import few_images_text
from keras_vgg.runs.images import RunImages, open_split

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
        few_images: A line if the validation images are few; else empty.
        note: Why the temperature is not what the images would give; else empty.
    """

    temperature: float
    thresholds: dict[float, tuple[float, float]]
    few_images: str = ""
    note: str = ""

    def threshold(self, share: float, calibrated: bool) -> float:
        """Return the probability below which an image is unknown.

        Raises:
            ValueError: it is no share, or calibration.json has no threshold for it.
        """
        _check_share(share)
        share = float(f"{share:g}")  # as the file has it
        if share not in self.thresholds:
            listed = ", ".join(f"{known:g}" for known in sorted(self.thresholds))
            raise ValueError(
                f"{FILE} has thresholds that keep {listed} of the validation images, and none for"
                f" {share:g}; repeat `keras-vgg calibrate` with --unknown {share:g}"
            )
        return self.thresholds[share][0 if calibrated else 1]


def calibrate_run(
    run: Run,
    *,
    shares: Sequence[float] = SHARES,
    verbose: bool = False,
    source: str | None = None,
) -> Temperature:
    """Fit a run's temperature on its validation images, and keep it in calibration.json.

    The file has the temperature; the negative log-likelihood and the expected calibration error
    before and after; the SHA-256 of the model; for each share the threshold that this share of the
    validation images reach, with the temperature and without it; and a line if there are fewer than
    100 validation images, or fewer than 10 of a class. The shares of an earlier calibration of the
    same model stay.

    Args:
        run: A finished run with one label an image.
        shares: Shares of the validation images that are to be known.
        verbose: Show a progress bar on stderr.
        source: Where the run's images are now; None: where they were.

    Raises:
        ValueError, OSError: as `evaluate_runs`; the run has not finished; a share is not above 0
            and at most 1; `source` does not hold the run's own images.
    """
    for share in shares:
        _check_share(share)
    run.require_finished()
    run.require_model()
    if run.several_labels:
        raise ValueError(
            f"{run.directory} gives an image several labels, and one temperature calibrates only"
            " classes of which an image has one"
        )
    images = RunImages(open_split(run, _SPLIT, source), _SPLIT)
    evaluator = Evaluator(run, images, None, verbose)
    evaluation = evaluator.average_of(plan_of("center", [run.recipe.eval_scale_side]))
    temperature = fit_temperature(evaluation)
    calibrated = apply_temperature(evaluation.probabilities, temperature.value)
    thresholds = {
        f"{share:g}": {
            "calibrated": threshold_that_keeps(share, calibrated),
            "uncalibrated": threshold_that_keeps(share, evaluation.probabilities),
        }
        for share in sorted({*SHARES, *shares, *_known_shares(run)})
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
        "few_images": few_images_text(
            "the temperature and the thresholds",
            run.class_names,
            np.bincount(evaluation.labels, minlength=len(run.class_names)).tolist(),
        ),
    }
    run.write_json(FILE, content)
    return temperature


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(
            f"unknown must be a share above 0 and at most 1, such as 0.95, not {share:g}"
        )


def _known_shares(run: Run) -> tuple[float, ...]:
    """Return the shares of an earlier calibration of the run's model; none if it is damaged."""
    try:
        calibration = read_calibration(run)
    except ValueError:  # the file is about to be replaced
        return ()
    known = () if calibration is None else calibration.thresholds
    return tuple(share for share in known if 0 < share <= 1)


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
    # Files of earlier versions do not say how few their images were.
    few_images, note = (str(fields.get(name) or "") for name in ("few_images", "note"))
    return Calibration(temperature, thresholds, few_images, note)


def calibration_remarks(run: Run) -> list[str]:
    """Return what a reader of a report should know of a run's calibration.

    That of an earlier model of the run is not looked at.
    """
    if not (run.directory / FILE).is_file():
        return []
    fields = run.read_json(FILE)
    if not fields.get("few_images") or fields["model_sha256"] != sha256_of(run.model_path):
        return []
    return [f"{FILE}: {fields['few_images']}"]


def require_calibration(run: Run, purpose: str) -> Calibration:
    """Return a run's calibration. ValueError: it has none, which `purpose` needs."""
    calibration = read_calibration(run)
    if calibration is None:
        raise ValueError(
            f"{purpose} needs {run.directory / FILE}: run `keras-vgg calibrate {run.directory}`"
        )
    return calibration

"""A network that answers images, from a run or from one of the files that this package writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import augment, evaluation
from keras_vgg.builder_checks import DEFAULT_SIZE
from keras_vgg.data import BitDepth
from keras_vgg.evaluation.temperature import apply_temperature
from keras_vgg.export.model_files import Network, open_model_file
from keras_vgg.fit import evaluation_transform
from keras_vgg.image_paths import expanded
from keras_vgg.run import Run, directory_of_run, holds_folds
from keras_vgg.runs import calibration as calibrations
from keras_vgg.runs.network import open_network
from keras_vgg.runs.several_labels import thresholds_and_notes


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A network, and all that its answers depend on.

    Attributes:
        run: Images [n, size, size, channels] float32 in [0, 255] -> probabilities [n, classes].
        transform: A decoded image, [h, w, 3] in [0, 255], or a Picture -> one image for `run`.
        class_names: One name for each output.
        bit_depth: As `keras_vgg.data.decode`.
        size: The side of an image in pixels.
        threshold: The least probability of the best class of an image that is known; None: every
            image is known.
        notes: What a user must know about the answers.
        label_thresholds: With several labels an image, [classes]: an image has a label from here
            on. None: an image has one label.
    """

    run: Callable[[np.ndarray], np.ndarray]
    transform: Callable
    class_names: tuple[str, ...]
    bit_depth: BitDepth = "16"
    size: int = DEFAULT_SIZE
    threshold: float | None = None
    notes: tuple[str, ...] = ()
    label_thresholds: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Overrides:
    """What a file does not state, or states otherwise. None: as the file states.

    Attributes:
        class_names: One name for each output.
        eval_scale: The scale of the images, as in `Recipe`.
        resize: How an image comes to the scale, as in `Recipe`.
        bit_depth: What becomes of 16-bit files, as in `Recipe`.
    """

    class_names: Sequence[str] | None = None
    eval_scale: int | None = None
    resize: augment.Resize | None = None
    bit_depth: BitDepth | None = None


def run_of(path: str | Path) -> Run | None:
    """Return the run of a run directory, or of the model.keras in one; None: no run is there."""
    path = Path(path)
    directory = directory_of_run(path.parent if path.name == "model.keras" else path)
    is_run = (directory / "recipe.json").is_file() or holds_folds(directory)
    return Run.open(directory) if is_run else None


def open_classifier(
    model: Run | str | Path,
    overrides: Overrides = Overrides(),
    *,
    calibrated: bool | None = None,
    unknown: float | None = None,
) -> Classifier:
    """Open a run, a .keras file, an exported SavedModel, LiteRT or ONNX file.

    Args:
        model: The run or the path.
        overrides: For files: what they do not state.
        calibrated: Divide a run's scores by its temperature. None: if the run has one. A file's
            scores are divided inside the file, or not at all.
        unknown: The share of the validation images that are to be known.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: it is none of these, or damaged; no epoch of the run has ended; there is no
            temperature or threshold; `calibrated` is not as the file is; an override does not fit.
    """
    run = model if isinstance(model, Run) else run_of(model)
    if run is not None:
        if overrides != Overrides():
            raise ValueError(
                f"{run.directory} is a run, which knows its classes and how images come to their"
                " scale; leave out classes, eval_scale, resize and bit_depth"
            )
        return _of_run(run, calibrated, unknown)
    path = expanded(str(model))
    network, stated, notes = open_model_file(path)
    temperature = stated.get("temperature")
    if temperature is None and calibrated:
        raise ValueError(
            f"{path} cannot be calibrated; a temperature comes from a run, also into an export"
            " (keras-vgg export RUN --calibrated)"
        )
    if temperature is not None:
        if calibrated is False:
            raise ValueError(
                f"the temperature is inside {path}; predict with the run, or export without"
                " --calibrated"
            )
        notes = (*notes, _temperature_note(temperature, f"in {path}"))
    return _of_file(path, network, stated, notes, overrides, unknown)


def _temperature_note(temperature: float, place: str) -> str:
    if temperature == 1:
        return f"probabilities are as the network gives them: temperature 1, {place}"
    return f"probabilities are calibrated: temperature {temperature:.4g}, {place}"


def _of_run(run: Run, calibrated: bool | None, unknown: float | None) -> Classifier:
    calibration = None
    if run.several_labels:
        require_one_label_options(str(run.directory), calibrated, unknown)
    elif calibrated is not False or unknown is not None:
        calibration = calibrations.read_calibration(run)
    if calibration is None and (calibrated or unknown is not None):
        purpose = "calibrated=True" if calibrated else f"unknown={unknown:g}"
        calibration = calibrations.require_calibration(run, purpose)
    names = run.class_names
    network = evaluation.runner(open_network(run), evaluation.Protocol("center"), len(names))
    notes, threshold = (), None
    if calibration is not None and calibrated is not False:
        network = _with_temperature(network, calibration.temperature)
        file = run.directory / calibrations.FILE
        note = _temperature_note(calibration.temperature, f"from {file}")
        if calibration.temperature == 1 and calibration.note:
            note = f"probabilities are not calibrated: {calibration.note}"
        notes = (note,)
    if calibration is not None and unknown is not None:
        threshold = calibration.threshold(unknown, calibrated is not False)
    if calibration is not None and calibration.few_images:
        notes = (*notes, calibration.few_images)
    label_thresholds = None
    if run.several_labels:
        label_thresholds, notes = thresholds_and_notes(run)
    return Classifier(
        network,
        evaluation_transform(run.recipe),
        names,
        run.recipe.bit_depth,
        run.recipe.image_size,
        threshold,
        notes,
        label_thresholds,
    )


def require_one_label_options(name: str, calibrated: bool | None, unknown: float | None) -> None:
    """Raise ValueError for options that a network with several labels an image does not have."""
    for option, value in (("calibrated", calibrated), ("unknown", unknown)):
        if value:
            raise ValueError(
                f"{option}={value} needs one label an image, and {name} gives several; leave it out"
            )


def _with_temperature(network: Callable, temperature: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: apply_temperature(network(images), temperature)


def _of_file(
    path: Path,
    network: Network,
    stated: Mapping[str, Any],
    notes: Sequence[str],
    overrides: Overrides,
    unknown: float | None,
) -> Classifier:
    if len(network.shape) != 3 or network.shape[2] not in (1, 3):
        raise ValueError(
            f"{path} takes {network.shape}, not images of one or three channels, channels last"
        )
    if network.shape[0] != network.shape[1]:
        raise ValueError(
            f"{path} takes images of {network.shape[0]} x {network.shape[1]} pixels, and square "
            "ones are made here: classify with a program of your own"
        )
    label_thresholds = _stated_thresholds(path, network, stated, unknown)
    # A network for any size, whose file may not say what it was trained on.
    size = network.shape[0] or stated.get("size") or overrides.eval_scale or DEFAULT_SIZE
    missing = []
    names = overrides.class_names or stated.get("class_names")
    if not names:
        names = [str(number) for number in range(network.classes)]
        missing.append("its class names: the answers are numbers")
    if len(names) != network.classes:
        raise ValueError(
            f"{path} has {network.classes} classes, and there are {len(names)} class names"
        )
    scale = overrides.eval_scale or stated.get("scale")
    if scale is None and stated.get("resize") is None:
        scale = 256 if size == DEFAULT_SIZE else size
        missing.append(f"the scale of its images: they are rescaled to {scale} pixels")
    if scale is not None and scale < size:
        raise ValueError(f"eval_scale must be at least {size}, the image size, not {scale}")
    if missing:
        notes = [*(f"{path} does not state {what}" for what in missing), *notes]
    resize = overrides.resize or stated.get("resize") or "crop"
    transform = partial(augment.eval_image, size=size, scale=scale, resize=resize)
    if network.shape[2] == 1:
        transform = augment.in_grey(transform)
    threshold = None
    if unknown is not None:
        thresholds = stated.get("unknown_below") or {}
        threshold = thresholds.get(f"{unknown:g}")
        if threshold is None:
            listed = ", ".join(thresholds) or "no share"
            raise ValueError(
                f"{path} states a threshold for {listed}, not for {unknown:g}: run `keras-vgg"
                f" calibrate RUN --unknown {unknown:g}`, and export the run again"
            )
    return Classifier(
        network,
        transform,
        tuple(names),
        overrides.bit_depth or stated.get("bit_depth", "16"),
        size,
        threshold,
        tuple(notes),
        label_thresholds,
    )


def _stated_thresholds(
    path: Path, network: Network, stated: Mapping[str, Any], unknown: float | None
) -> np.ndarray | None:
    """Return the threshold of each label that a file states; None: an image has one label."""
    thresholds = (stated.get("output") or {}).get("thresholds")
    if thresholds is None:
        return None
    require_one_label_options(str(path), None, unknown)
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.shape != (network.classes,):
        raise ValueError(
            f"{path} is damaged: it states {thresholds.shape} thresholds for "
            f"{network.classes} classes"
        )
    return thresholds

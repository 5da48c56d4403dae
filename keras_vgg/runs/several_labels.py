"""Evaluate runs whose images have several labels: figures, and thresholds that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_vgg import data, evaluation
from keras_vgg.evaluation.multilabel import THRESHOLD
from keras_vgg.files import sha256_of
from keras_vgg.run import Run
from keras_vgg.runs.evaluate import check_options, evaluation_name
from keras_vgg.runs.evaluator import Evaluator, plan_of
from keras_vgg.runs.few_images import few_images_text
from keras_vgg.runs.images import RunImages, UnknownClasses, open_images

FILE = "thresholds.json"
_SPLIT = "validation"


@dataclass(frozen=True)
class RecordedLabels:
    """An evaluation of several labels an image, its key in results.json, and the images."""

    key: str
    evaluation: evaluation.MultiLabelEvaluation
    images: RunImages


def evaluate_labels(
    run: Run,
    split: str | None = None,
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
    *,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
) -> RecordedLabels:
    """Evaluate the best model of a run whose images have several labels.

    An image gets each label whose probability reaches the label's threshold: the one of the highest
    F1 on the validation images, by the same protocol and scales. thresholds.json keeps the
    thresholds with the run, and results.json the figures under the key that is returned.

    Args and what is kept: as `evaluate_run`. An image of another set is left out with
    `unknown_classes="skip"` if the run does not know one of its labels.

    Raises:
        ValueError, OSError: as `evaluate_run`; an image of the run, or of the other set, has one
            label; the run has no validation images at hand, and no thresholds yet.
    """
    check_options([run], protocol, scales, average)
    if not run.several_labels:
        raise ValueError(
            f"{run.directory} gives an image one label; use keras_vgg.runs.evaluate_run"
        )
    evaluator = Evaluator.open(run, split, average, verbose, source, unknown_classes)
    images = evaluator.images
    plan = plan_of(protocol, scales or [run.recipe.eval_scale_side])
    name = evaluation_name(_SPLIT, protocol, scales, average)
    evaluated = with_thresholds(evaluator, plan, name, source)
    key = images.key(evaluation_name(images.name, protocol, scales, average))
    if run.finished:
        run.add_results(**{key: images.record(evaluated.to_dict())})
    return RecordedLabels(key, evaluated, images)


def with_thresholds(
    evaluator: Evaluator, plan: Sequence[tuple[str, int | None]], name: str, source: str | None
) -> evaluation.MultiLabelEvaluation:
    """Evaluate a plan, with the run's thresholds; choose and keep them if there are none.

    Args:
        evaluator: The run on the tested images.
        plan: From `plan_of`.
        name: As for `read_thresholds`.
        source: Where the tested images are, as given.

    Raises:
        ValueError, OSError: as `evaluate_labels`.
    """
    run, images = evaluator.run, evaluator.images
    evaluated = evaluator.labels_of(plan)
    thresholds = read_thresholds(run, name)
    if thresholds is None:
        validation = evaluated
        if images.source is not None or images.name != _SPLIT:
            own = RunImages(_validation_images(run, source, images), _SPLIT)
            validation = evaluator.on(own).labels_of(plan)
        thresholds = evaluation.choose_thresholds(validation.labels, validation.probabilities)
        if run.finished:
            _keep_thresholds(run, name, thresholds)
    evaluator.close()
    return dataclasses.replace(evaluated, thresholds=thresholds)


def read_thresholds(run: Run, name: str = _SPLIT) -> np.ndarray | None:
    """Return the thresholds of a run's labels, [classes]; None if none are kept for its model.

    Args:
        name: What `evaluation_name` returns for the validation split; by default for the central
            crop at the recipe's scale.

    Raises:
        ValueError: thresholds.json is damaged.
    """
    kept = _read(run).get(name)
    if kept is None:
        return None
    thresholds = np.asarray(kept, np.float64)
    if thresholds.shape != (len(run.class_names),):
        raise ValueError(
            f"{run.directory / FILE} has {thresholds.shape} thresholds for {name}, and the run "
            f"{len(run.class_names)} classes; delete the file and evaluate the run again"
        )
    return thresholds


def thresholds_and_notes(run: Run) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the thresholds for central crops, [classes], and what a user must know of them.

    They are 0.5 if none are kept for the run's model.

    Raises:
        ValueError: thresholds.json is damaged.
    """
    thresholds = read_thresholds(run)
    if thresholds is None:
        # The demo shows this to everyone, so it does not say where the run is.
        note = (
            "an image gets a label from a probability of 0.5 on: `keras-vgg evaluate` of the run"
            " chooses a threshold for each label"
        )
        return np.full(len(run.class_names), THRESHOLD), (note,)
    few = few_images_of_thresholds(run)
    return thresholds, (few,) if few else ()


def few_images_of_thresholds(run: Run) -> str:
    """Return a line if a run's validation images are few for its thresholds; else nothing.

    Runs of earlier versions do not keep how many images their labels have.
    """
    described = run.read_json("data.json")
    counts = (described.get("inventory") or {}).get("class_counts", {}).get(_SPLIT)
    if not counts:
        return ""
    images = described["splits"][_SPLIT]["images"]
    return few_images_text("the thresholds", run.class_names, counts, images)


def _validation_images(run: Run, source: str | None, images: RunImages) -> data.Split:
    """Return the validation split, from where the tested images of the run itself are."""
    if images.source is None:
        return open_images(run, _SPLIT, source).split
    # The columns and the folder of data sets that `run` may have are those of another set.
    return open_images(Run.open(run.directory), _SPLIT).split


def _keep_thresholds(run: Run, name: str, thresholds: np.ndarray) -> None:
    content = {
        "model_sha256": sha256_of(run.model_path),
        "thresholds": {**_read(run), name: thresholds.tolist()},
    }
    run.write_json(FILE, content)


def _read(run: Run) -> dict[str, list[float]]:
    """Return name -> thresholds for the run's present model."""
    if not (run.directory / FILE).is_file():
        return {}
    content = run.read_json(FILE)
    if content["model_sha256"] != sha256_of(run.model_path):
        return {}
    return content["thresholds"]

"""Evaluate runs as the paper does: protocols, scales, fusion. Posteriors are kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_vgg import evaluation, report
from keras_vgg.files import sha256_of, write_atomically
from keras_vgg.run import Run, read_fields
from keras_vgg.runs.evaluator import Evaluator, plan_of
from keras_vgg.runs.images import RunImages, UnknownClasses

PROTOCOLS = (*evaluation.PROTOCOLS, "both")


@dataclass(frozen=True)
class Recorded:
    """An evaluation, its key in the run's results.json, and the images."""

    key: str
    evaluation: evaluation.Evaluation
    images: RunImages


def evaluate_run(
    run: Run,
    split: str | None = None,
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
    *,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
    specificity: float = evaluation.SPECIFICITY,
) -> evaluation.Evaluation:
    """Evaluate a run's best model on every image of a split.

    The figures go into the run's results.json under `evaluation_name`. The confusion matrix goes to
    confusion_NAME.csv (rows are true classes) and confusion_NAME.png. The posteriors of each
    protocol and scale are kept in posteriors/: an interrupted evaluation resumes, and only what
    other scales or protocols add is computed.

    A run that has not finished training is evaluated with its best model so far, and an
    `UnfinishedRun` warning. Nothing is written but posteriors then.

    Args:
        run: The run.
        split: "test", "validation" or "train"; "all" of another set that has no splits. None:
            "test", or "all" of such a set.
        verbose: Show a progress bar.
        protocol: "center", one crop an image; "dense", the classifier as convolutions over the
            whole image; "multi-crop", a 5 x 5 grid of crops; "both", the average of dense and
            multi-crop (section 3.2). All but center also see the mirror image if training did.
        scales: The image is rescaled to each of these smallest sides (bilinear, antialiased), and
            the posteriors are averaged. Empty: the recipe's eval_scale.
        average: As `evaluation.Protocol`.
        source: Where the run's images are now, or another set, as `keras_vgg.data.load_source`
            takes it. The classes of another set are matched by name, and its results have a key
            and posteriors of their own. None: the run's source.
        unknown_classes: If another set has classes that the run does not know: "error", or "skip"
            their images.
        specificity: For two classes: as `evaluation.figures`.

    Raises:
        ValueError: an unknown protocol or average; a scale below the image size; no epoch of
            the run has ended; its source has no such split, has changed since, or holds a damaged
            image; the run does not know a class of `source`; specificity is not in (0, 1).
        FileNotFoundError: the run's source is not where it was, or `source` does not exist.

    An image has one label: for several, see `evaluate_labels`.
    """
    return record_evaluation(
        run,
        split,
        verbose,
        protocol,
        scales,
        average,
        source=source,
        unknown_classes=unknown_classes,
        specificity=specificity,
    ).evaluation


def record_evaluation(
    run: Run,
    split: str | None = None,
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
    *,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
    specificity: float = evaluation.SPECIFICITY,
) -> Recorded:
    """Evaluate a run as `evaluate_run` does, and return also where the results are."""
    check_options([run], protocol, scales, average)
    require_one_label([run])
    evaluation.check_specificity(specificity)
    if specificity != evaluation.SPECIFICITY and len(run.class_names) != 2:
        raise ValueError(
            f"specificity={specificity:g} is for two classes, and {run.directory} has "
            f"{len(run.class_names)}; leave it out"
        )
    evaluator = Evaluator.open(run, split, average, verbose, source, unknown_classes)
    images = evaluator.images
    evaluated = evaluator.average_of(plan_of(protocol, scales or [run.recipe.eval_scale_side]))
    key = images.key(evaluation_name(images.name, protocol, scales, average))
    figures = evaluated.to_dict(specificity)
    del figures["confusion"]  # It has a million numbers for ImageNet.
    if not run.finished:
        return Recorded(key, evaluated, images)
    run.add_results(**{key: images.record(figures)})
    confusion, path = evaluated.confusion, run.directory / f"confusion_{key}.csv"
    write_atomically(path, lambda partial: np.savetxt(partial, confusion, "%d", ","))
    report.plot_confusion(confusion, run.class_names, path.with_suffix(".png"))
    return Recorded(key, evaluated, images)


def evaluate_runs(
    runs: Sequence[Run],
    split: str | None = None,
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
    *,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
) -> list[evaluation.Evaluation]:
    """Return each run's evaluation, for `evaluation.fuse` and `evaluation.compare`.

    Args and raises: as `evaluate_run`; ValueError also if the runs' images or classes differ.
    Only posteriors/ is written.
    """
    check_options(runs, protocol, scales, average)
    require_one_label(runs)
    evaluations = []
    for evaluator in open_evaluators(runs, split, average, verbose, source, unknown_classes):
        plan = plan_of(protocol, scales or [evaluator.run.recipe.eval_scale_side])
        evaluations.append(evaluator.average_of(plan))
        evaluator.close()
    return evaluations


def evaluation_name(
    split: str, protocol: str, scales: Sequence[int] = (), average: str | None = None
) -> str:
    """Return the key of an evaluation in results.json, such as test_dense_256_384_512."""
    parts = [split] if protocol == "center" else [split, protocol.replace("-", "_")]
    default = protocol != "both" and average == evaluation.Protocol(protocol).average
    return "_".join(
        [*parts, *map(str, sorted(scales)), *([average] if average and not default else [])]
    )


def is_evaluated(run: Run, split: str) -> bool:
    """Return whether this network has evaluated all central crops of a split, at any scale."""
    if split in run.results:
        return True
    images = run.read_json("data.json")["splits"].get(split, {}).get("images")
    # The last file of posteriors has the number of images in its name.
    folder = run.directory / "posteriors" / split
    last_files = [*folder.glob(f"center-*/*-{images or 0:09d}.npz")]
    if not last_files or not run.model_path.is_file():
        return False
    model = sha256_of(run.model_path)  # Posteriors of an earlier network stay until the next ones.
    keys = [path.with_name("key.json") for path in last_files]
    return any(key.is_file() and read_fields(key).get("model") == model for key in keys)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its directory's name, or its path if two names are equal."""
    names = [run.directory.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def open_evaluators(
    runs: Sequence[Run],
    split: str | None,
    average: str | None,
    verbose: bool,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
) -> list[Evaluator]:
    """Open all runs first, so that an error shows before hours of evaluation.

    Args and raises: as `evaluate_runs`.
    """
    if source is None:
        require_same_split(runs, split or "test")
    else:
        require_same_classes(runs)
    evaluators = [
        Evaluator.open(run, split, average, verbose, source, unknown_classes) for run in runs
    ]
    if source is not None:
        require_same_images(runs, [evaluator.images for evaluator in evaluators])
    return evaluators


def require_same_images(runs: Sequence[Run], opened: Sequence[RunImages]) -> None:
    """Raise ValueError if the images that runs are tested on differ.

    A run's own images, in a new place, are its own split, and another run may have drawn another.
    """
    found = [(images.source, images.name, images.split.fingerprint()) for images in opened]
    for run, images in zip(runs, found, strict=True):
        if images != found[0]:
            raise ValueError(
                f"{run.directory} and {runs[0].directory} cannot be compared: their images differ"
            )


def require_one_label(runs: Sequence[Run]) -> None:
    """Raise ValueError if an image of a run may have several labels."""
    for run in runs:
        if run.several_labels:
            raise ValueError(
                f"{run.directory} gives an image several labels, and this needs one for each "
                "image: use keras_vgg.runs.evaluate_labels, or keras-vgg evaluate with this run "
                "alone"
            )


def check_options(
    runs: Sequence[Run], protocol: str, scales: Sequence[int], average: str | None
) -> None:
    """Raise ValueError if there is no run, or an option does not fit the runs."""
    if not runs:
        raise ValueError("there is no run to evaluate; name at least one")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    evaluation.Protocol("center", average)
    size = max(run.recipe.image_size for run in runs)
    for scale in scales:
        if scale < size:
            raise ValueError(
                f"scale {scale} is below {size}, the size of the network's images: the network "
                "would see a frame of zeros, which no training image has; choose a larger scale"
            )
    if len(set(scales)) != len(scales):
        raise ValueError(f"scales must differ, not {', '.join(map(str, scales))}")


def require_same_split(runs: Sequence[Run], split: str) -> None:
    """Raise ValueError if the runs' classes, or their images of this split, differ."""
    descriptions = [run.read_json("data.json") for run in runs]
    first = descriptions[0]
    for run, description in zip(runs, descriptions, strict=True):
        same_classes = description["class_names"] == first["class_names"]
        same_images = description["splits"].get(split) == first["splits"].get(split)
        if not (same_classes and same_images):
            raise ValueError(
                f"{run.directory} and {runs[0].directory} cannot be compared: their {split} images "
                "or classes differ"
            )


def require_same_classes(runs: Sequence[Run]) -> None:
    """Raise ValueError if the runs' classes differ."""
    for run in runs:
        if run.class_names != runs[0].class_names:
            raise ValueError(
                f"{run.directory} and {runs[0].directory} cannot be compared: their classes differ"
            )

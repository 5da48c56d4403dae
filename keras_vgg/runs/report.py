"""Write a page about runs: gather the content that `keras_vgg.report` draws."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import __version__, data, evaluation, report
from keras_vgg.fit import best_row
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.evaluate import (
    evaluate_runs,
    is_evaluated,
    require_same_split,
    run_names,
)
from keras_vgg.runs.images import open_split
from keras_vgg.runs.telling_images import most_telling_images

_NAME = "report.html"


def report_runs(
    runs: Sequence[Run],
    path: str | Path | None = None,
    *,
    split: str | None = None,
    images: int = 12,
    verbose: bool = False,
) -> Path:
    """Write a report on runs as one HTML page that needs no other file and no network.

    The page shows recipe and environment, curves, accuracy by class, confusion matrix, the most
    confident mistakes and the least confident hits with Grad-CAM, calibration and exports. For
    several runs, it also compares them. What a run does not have is left out, and the page says how
    to get it. Posteriors in a run directory are used, and missing ones are added.

    Args:
        runs: The runs. Several runs must have the same classes and images.
        path: The page to write. None: report.html, in the directory of a single run, or in the
            current directory for several. An earlier report is replaced; a missing folder is made.
        split: "validation", "test" or "train". None: the test split if the central crops of every
            run have been evaluated on it, else the validation split. So a report alone never reads
            the test split.
        images: How many mistakes, and how many hits, to show for each run.
        verbose: Show progress bars.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run, or one twice; `images` is negative; the runs' classes or images differ;
            a file of a run cannot be read; with a `split`, also as `evaluate_runs`.
        FileExistsError: `path` exists and is not a report.
        OSError: the page cannot be written.
    """
    typed_directories = [shlex.quote(str(run.directory)) for run in runs]
    runs = [Run(run.directory.resolve(), run.recipe) for run in runs]
    _check(runs, images)
    if path is None:
        path = (runs[0].directory if len(runs) == 1 else Path()) / _NAME
    path = Path(path).expanduser()
    report.require_own(path)  # An error must come before hours of evaluation.
    tested = all(is_evaluated(run, "test") for run in runs)
    split_name = split or ("test" if tested else "validation")
    require_same_split(runs, split_name)
    evaluations = _evaluations(runs, split_name, split is not None, verbose)
    contents = []
    for number, (run, name) in enumerate(zip(runs, run_names(runs), strict=True), 1):
        evaluated, opened_split = evaluations[number - 1]
        content = _content(run, number, name, typed_directories[number - 1])
        if isinstance(evaluated, str):
            missing = {**content.missing, "evaluation": evaluated}
            contents.append(dataclasses.replace(content, missing=missing))
            continue
        assert opened_split is not None  # `_evaluations` returns the split with an evaluation.
        mistakes, hits, layer = most_telling_images(run, evaluated, opened_split, images, verbose)
        contents.append(
            dataclasses.replace(
                content,
                split=split_name,
                scores=_scores(evaluated),
                mistakes=mistakes,
                hits=hits,
                explained=layer,
            )
        )
    page = _page(runs, contents, [evaluated for evaluated, _ in evaluations])
    report.write_page(page, path)
    return path


def _check(runs: Sequence[Run], images: int) -> None:
    if not runs:
        raise ValueError("there is no run to report on; name at least one")
    directories = [run.directory for run in runs]
    for directory in directories:
        if directories.count(directory) > 1:
            raise ValueError(f"{directory} is given twice; name each run once")
    if images < 0:
        raise ValueError(f"the number of images to show must be 0 or more, not {images}")
    for run in runs:
        _read(run, "results.json", lambda run=run: _evaluated(run.results))
        _read(run, "metrics.csv", lambda run=run: run.history and best_row(run.history))
        _read(run, "data.json", lambda run=run: run.class_names)
        if (run.directory / "environment.json").is_file():
            run.read_json("environment.json")


def _evaluations(
    runs: Sequence[Run], split_name: str, required: bool, verbose: bool
) -> list[tuple[evaluation.Evaluation | str, data.Split | None]]:
    """Return each run's evaluation and split; without an evaluation, the reason and None.

    If `required`, a split that cannot be opened is an error.
    """
    evaluations: list[tuple[evaluation.Evaluation | str, data.Split | None]] = []
    for run in runs:
        if not run.finished:
            reason = "The run has not finished training. Repeat the train command to resume it."
            evaluations.append((reason, None))
            continue
        try:
            split = open_split(run, split_name)
        except (OSError, ValueError) as error:  # The images are missing, or have changed.
            if required:
                raise
            reason = f"The {split_name} images cannot be opened, so nothing is evaluated: {error}."
            evaluations.append((reason, None))
            continue
        evaluations.append((evaluate_runs([run], split_name, verbose)[0], split))
    return evaluations


# --- the content of a run directory ----------------------------------------------------------


def _content(run: Run, number: int, name: str, typed_directory: str) -> report.RunContent:
    """Return what a run directory holds; `typed_directory` is how a command names it."""
    recipe, history, results = run.recipe, run.history, run.results
    changes = recipe.differences(Recipe())
    missing = {}
    if not history:
        missing["metrics"] = "No epoch has ended yet, so there is no metrics.csv."
    evaluated = _evaluated(results)
    if not evaluated:
        missing["evaluations"] = (
            f"There is no evaluation yet: keras-vgg evaluate {typed_directory} evaluates the run "
            "on the test images. Do it once, at the end."
        )
    exports, images = _exports(run)
    if not exports:
        missing["export"] = (
            f"There is no export: keras-vgg export {typed_directory} writes and verifies "
            "SavedModel and LiteRT files."
        )
    path = run.directory / "environment.json"
    environment = _read(run, path.name, lambda: run.read_json(path.name)) if path.is_file() else {}
    classes = len(run.class_names)
    return report.RunContent(
        number=number,
        name=name,
        subtitle=(
            f"VGG {recipe.configuration}, {recipe.width_multiplier:g} of the paper's width, "
            f"{recipe.image_size}x{recipe.image_size}, on {recipe.source}, {classes} classes"
        ),
        changes=[(field, *values) for field, values in changes.items()],
        recipe=list(dataclasses.asdict(recipe).items()),
        environment=_flat(environment),
        history=history,
        best_epoch=int(best_row(history)["epoch"]) if history else None,
        parameters=results.get("parameters"),
        training_seconds=results.get("training_seconds"),
        evaluated=evaluated,
        exports=exports,
        export_images=images,
        missing=missing,
    )


def _evaluated(results: dict[str, Any]) -> list[report.Evaluated]:
    return [
        report.Evaluated(
            key,
            figures["count"],
            figures["top1"],
            figures.get("top1_interval"),
            figures["top5"],
            figures["loss"],
        )
        for key, figures in results.items()
        if isinstance(figures, dict) and "top1" in figures
    ]


def _exports(run: Run) -> tuple[list[report.Exported], int | None]:
    """Return the rows of export/export.json, the model first, and how many images verified them."""
    name = "export/export.json"
    if not (run.directory / name).is_file():
        return [], None

    def rows() -> list[report.Exported]:
        model = record["model"]
        first = report.Exported("the model, float32", model["bytes"], model["top1"], model["top5"])
        return [
            first,
            *(
                report.Exported(
                    artifact["format"],
                    artifact["bytes"],
                    artifact["top1"],
                    artifact["top5"],
                    artifact["agreement"],
                    artifact["max_difference"],
                    [(median, p95) for median, p95 in artifact["latency_ms"].values()],
                    artifact["peak_bytes"],
                )
                for artifact in record["artifacts"]
            ),
        ]

    record = _read(run, name, lambda: run.read_json(name))
    exported = _read(run, name, rows)
    return exported, record["artifacts"][0]["images"] if record["artifacts"] else None


def _read(run: Run, name: str, read: Callable[[], Any]) -> Any:
    """Return what `read` returns. ValueError names the file if its content is not a run's."""
    try:
        return read()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if str(error).startswith(str(run.directory / name)):
            raise
        raise ValueError(f"{run.directory / name} cannot be read: {error!r}") from error


def _flat(environment: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return environment.json as rows, with the command as one types it."""
    rows = []
    for name, value in environment.items():
        if isinstance(value, dict):
            rows += list(value.items())
        elif name == "command":
            rows.append((name, shlex.join(map(str, value))))
        else:
            rows.append((name, value))
    return rows


# --- the content of an evaluation ------------------------------------------------------------


def _scores(evaluated: evaluation.Evaluation) -> report.Scores:
    def none_for_nan(values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(value) else float(value) for value in values]

    calibrated = evaluation.calibration(evaluated)
    edges = calibrated.edges.tolist()
    scores = (evaluated.per_class, evaluated.precision, evaluated.f1)
    images = evaluated.confusion.sum(axis=1).tolist()
    return report.Scores(
        count=evaluated.count,
        top1=evaluated.top1,
        top1_interval=evaluated.interval(),
        top5=evaluated.top5,
        top5_interval=None if evaluated.top5 is None else evaluated.interval(5),
        loss=evaluated.loss,
        classes=[
            report.ClassScores(*row)
            for row in zip(evaluated.class_names, images, *map(none_for_nan, scores), strict=True)
        ],
        confusion=evaluated.confusion,
        bins=[
            report.Bin(*row)
            for row in zip(
                edges[:-1],
                edges[1:],
                calibrated.counts.tolist(),
                none_for_nan(calibrated.confidence),
                none_for_nan(calibrated.accuracy),
                strict=True,
            )
        ],
        calibration_error=calibrated.error,
    )


def _page(
    runs: Sequence[Run],
    contents: Sequence[report.RunContent],
    evaluations: Sequence[evaluation.Evaluation | str],
) -> report.Page:
    evaluated = [one for one in evaluations if not isinstance(one, str)]
    all_evaluated = len(evaluated) == len(runs)
    compared = evaluated[1:] if all_evaluated else []
    comparisons = [evaluation.compare(evaluated[0], other) for other in compared]
    recipes = [run.recipe for run in runs]
    fields = dict.fromkeys(f for other in recipes[1:] for f in recipes[0].differences(other))
    return report.Page(
        title=contents[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=contents,
        made=f"Made on {time.strftime('%Y-%m-%d')} by keras_vgg {__version__}.",
        comparisons=[
            report.Comparison(comparison.difference, comparison.interval, comparison.p_value)
            for comparison in comparisons
        ],
        differences=[(f, [getattr(recipe, f) for recipe in recipes]) for f in fields],
        not_compared=(
            None if all_evaluated else "Accuracies are compared once every run is evaluated."
        ),
    )

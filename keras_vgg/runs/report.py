"""A run, or several, as one HTML page: the facts and pictures that `keras_vgg.report` shows."""

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
    open_split,
    require_same_split,
    run_names,
)
from keras_vgg.runs.telling_images import telling_pictures

_NAME = "report.html"


def report_runs(
    runs: Sequence[Run],
    path: str | Path | None = None,
    *,
    split: str | None = None,
    images: int = 12,
    verbose: bool = False,
) -> Path:
    """Write what is known of runs as one HTML page that needs no other file and no network.

    Recipe and environment, curves, accuracy by class, confusion matrix, the most confident mistakes
    and the least confident hits with Grad-CAM, calibration, exports; of several runs also their
    comparison. What a run does not have is left out, and the page says how to get it. Posteriors
    that are in a run directory are used, and others are added to it.

    Args:
        runs: The runs. Several must all have the same classes and images.
        path: The page. Default: report.html, in the directory of a single run, else in the current
            one. A report that is there is replaced; a missing folder is made.
        split: "validation", "test" or "train". Default: test if every run has been evaluated on
            it, by central crops, else validation: a report alone never reads the test split.
        images: How many mistakes, and how many hits, to show of each run.
        verbose: Show progress bars.

    Returns:
        Where the page is.

    Raises:
        ValueError: no run, or one twice; `images` is negative; the runs' classes or images differ;
            a file of a run cannot be read; as `evaluate_runs`, of a `split` that is given.
        FileExistsError: there is something else at `path`.
        OSError: it cannot be written.
    """
    given = [shlex.quote(str(run.directory)) for run in runs]
    runs = [Run(run.directory.resolve(), run.recipe) for run in runs]
    _check(runs, images)
    if path is None:
        path = (runs[0].directory if len(runs) == 1 else Path()) / _NAME
    path = Path(path).expanduser()
    report.require_own(path)  # before hours of evaluation
    chosen = split or ("test" if all(is_evaluated(run, "test") for run in runs) else "validation")
    require_same_split(runs, chosen)
    found = _evaluations(runs, chosen, split is not None, verbose)
    facts = []
    for number, (run, name) in enumerate(zip(runs, run_names(runs), strict=True), 1):
        one, opened = found[number - 1]
        known = _facts(run, number, name, given[number - 1])
        if isinstance(one, str):
            facts.append(dataclasses.replace(known, missing={**known.missing, "evaluation": one}))
            continue
        assert opened is not None  # with an evaluation, as `_evaluations` says
        mistakes, hits, layer = telling_pictures(run, one, opened, images, verbose)
        pictures = {"mistakes": mistakes, "hits": hits, "explained": layer}
        known = dataclasses.replace(known, split=chosen, scores=_scores(one), **pictures)
        facts.append(known)
    report.write_page(_page(runs, facts, [one for one, _ in found]), path)
    return path


def _check(runs: Sequence[Run], images: int) -> None:
    if not runs:
        raise ValueError("there is no run to report on")
    directories = [run.directory for run in runs]
    for directory in directories:
        if directories.count(directory) > 1:
            raise ValueError(f"{directory} is given twice")
    if images < 0:
        raise ValueError(f"the number of images to show must be 0 or more, not {images}")
    for run in runs:
        _read(run, "results.json", lambda run=run: _evaluated(run.results))
        _read(run, "metrics.csv", lambda run=run: run.history and best_row(run.history))
        _read(run, "data.json", lambda run=run: run.class_names)
        if (run.directory / "environment.json").is_file():
            run.read_json("environment.json")


def _evaluations(
    runs: Sequence[Run], name: str, given: bool, verbose: bool
) -> list[tuple[evaluation.Evaluation | str, data.Split | None]]:
    """Return each run's evaluation, or why there is none, and the images."""
    found: list[tuple[evaluation.Evaluation | str, data.Split | None]] = []
    for run in runs:
        if not run.finished:
            why = "The run has not finished training: repeat its train command to go on."
            found.append((why, None))
            continue
        try:
            split = open_split(run, name)
        except (OSError, ValueError) as error:  # the data has gone, or is another
            if given:
                raise
            why = f"The {name} images cannot be had, so nothing is evaluated: {error}."
            found.append((why, None))
            continue
        found.append((evaluate_runs([run], name, verbose)[0], split))
    return found


# --- what is on disk -------------------------------------------------------------------------


def _facts(run: Run, number: int, name: str, typed: str) -> report.RunContent:
    """`typed`: the run directory in a command."""
    recipe, history, results = run.recipe, run.history, run.results
    changes = recipe.differences(Recipe())
    missing = {}
    if not history:
        missing["metrics"] = "No epoch has ended yet: there is no metrics.csv."
    evaluated = _evaluated(results)
    if not evaluated:
        missing["evaluations"] = (
            f"Nothing of the kind yet: keras-vgg evaluate {typed} tests the run, once, on the test "
            "images."
        )
    exports, images = _exports(run)
    if not exports:
        missing["export"] = (
            f"There is no export: keras-vgg export {typed} writes and verifies SavedModel and "
            "LiteRT files."
        )
    path = run.directory / "environment.json"
    found = _read(run, path.name, lambda: run.read_json(path.name)) if path.is_file() else {}
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
        environment=_flat(found),
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
            key, one["count"], one["top1"], one.get("top1_interval"), one["top5"], one["loss"]
        )
        for key, one in results.items()
        if isinstance(one, dict) and "top1" in one
    ]


def _exports(run: Run) -> tuple[list[report.Exported], int | None]:
    """The rows of export/export.json, the model's first, and how many images verified them."""
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
                    one["format"],
                    one["bytes"],
                    one["top1"],
                    one["top5"],
                    one["agreement"],
                    one["max_difference"],
                    [(low, high) for low, high in one["latency_ms"].values()],
                    one["peak_bytes"],
                )
                for one in record["artifacts"]
            ),
        ]

    record = _read(run, name, lambda: run.read_json(name))
    found = _read(run, name, rows)
    return found, record["artifacts"][0]["images"] if record["artifacts"] else None


def _read(run: Run, name: str, read: Callable[[], Any]) -> Any:
    """What `read` gives; ValueError names the file that is not as a run writes it."""
    try:
        return read()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if str(error).startswith(str(run.directory / name)):
            raise
        raise ValueError(f"{run.directory / name} cannot be read: {error!r}") from error


def _flat(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """environment.json as rows; the command as it would be typed."""
    rows = []
    for name, value in found.items():
        if isinstance(value, dict):
            rows += list(value.items())
        elif name == "command":
            rows.append((name, shlex.join(map(str, value))))
        else:
            rows.append((name, value))
    return rows


# --- what the evaluation says ----------------------------------------------------------------


def _scores(found: evaluation.Evaluation) -> report.Scores:
    def known(values: np.ndarray) -> list[float | None]:
        return [None if np.isnan(value) else float(value) for value in values]

    calibrated = evaluation.calibration(found)
    edges = calibrated.edges.tolist()
    columns = (known(one) for one in (found.per_class, found.precision, found.f1))
    images = found.confusion.sum(axis=1).tolist()
    return report.Scores(
        count=found.count,
        top1=found.top1,
        top1_interval=found.interval(),
        top5=found.top5,
        top5_interval=None if found.top5 is None else found.interval(5),
        loss=found.loss,
        classes=[
            report.ClassScores(*row)
            for row in zip(found.class_names, images, *columns, strict=True)
        ],
        confusion=found.confusion,
        bins=[
            report.Bin(*row)
            for row in zip(
                edges[:-1],
                edges[1:],
                calibrated.counts.tolist(),
                known(calibrated.confidence),
                known(calibrated.accuracy),
                strict=True,
            )
        ],
        calibration_error=calibrated.error,
    )


def _page(
    runs: Sequence[Run],
    facts: Sequence[report.RunContent],
    found: Sequence[evaluation.Evaluation | str],
) -> report.Page:
    evaluated = [one for one in found if not isinstance(one, str)]
    all_are = len(evaluated) == len(runs)
    recipes = [run.recipe for run in runs]
    fields = [f for r in recipes[1:] for f in recipes[0].differences(r)]
    return report.Page(
        title=facts[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=facts,
        made=f"Made on {time.strftime('%Y-%m-%d')} by keras_vgg {__version__}.",
        comparisons=[
            report.Comparison(one.difference, one.interval, one.p_value)
            for one in (evaluation.compare(evaluated[0], other) for other in evaluated[1:])
        ]
        if all_are
        else [],
        differences=[(f, [getattr(r, f) for r in recipes]) for f in dict.fromkeys(fields)],
        not_compared=None if all_are else "Accuracies are compared once every run is evaluated.",
    )

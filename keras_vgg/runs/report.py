"""Write a page about runs: gather the content that `keras_vgg.report` draws."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_vgg import __version__, evaluation, report
from keras_vgg.files import sha256_of
from keras_vgg.fit.schedule import best_row, selecting_column
from keras_vgg.image_paths import expanded
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.calibration import calibration_remarks
from keras_vgg.runs.evaluate import (
    is_evaluated,
    require_same_classes,
    require_same_images,
    require_same_split,
    run_names,
)
from keras_vgg.runs.evaluator import Evaluator, plan_of
from keras_vgg.runs.images import RunImages, UnknownClasses, open_images
from keras_vgg.runs.remarks import remarks_on
from keras_vgg.runs.report_scores import evaluated_labels_of, label_scores_of, scores_of
from keras_vgg.runs.several_labels import with_thresholds
from keras_vgg.runs.telling_images import most_telling_images
from keras_vgg.runs.telling_labels import most_telling_labels

_NAME = "report.html"


def report_runs(
    runs: Sequence[Run],
    path: str | Path | None = None,
    *,
    split: str | None = None,
    images: int = 12,
    verbose: bool = False,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
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
        split: "validation", "test" or "train"; "all" of another set that has no splits. None: the
            test split if the central crops of every run have been evaluated on it, else the
            validation split, or "all" of such a set. So a report alone never reads the test split.
        images: How many mistakes, and how many hits, to show for each run.
        verbose: Show progress bars.
        source, unknown_classes: As `evaluate_run`: where the runs' images are now, or another set.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run, or one twice; `images` is negative; the runs' classes or images differ;
            a file of a run cannot be read; with a `split` or a `source`, also as `evaluate_runs`.
        FileExistsError: `path` exists and is not a report.
        OSError: the page cannot be written.
    """
    typed_directories = [shlex.quote(str(run.directory)) for run in runs]
    runs = [Run(run.directory.resolve(), run.recipe) for run in runs]
    _check(runs, images)
    if path is None:
        path = (runs[0].directory if len(runs) == 1 else Path()) / _NAME
    path = expanded(path)
    report.require_own(path)  # An error must come before hours of evaluation.
    if source is None:
        require_same_split(runs, split or _default_split(runs))
    else:
        require_same_classes(runs)
    opened = [_opened(run, runs, split, source, unknown_classes) for run in runs]
    if source is not None:
        pairs = [(r, one) for r, one in zip(runs, opened, strict=True) if not isinstance(one, str)]
        require_same_images([r for r, _ in pairs], [one for _, one in pairs])
    evaluations = [
        one if isinstance(one, str) else _evaluation(run, one, verbose, source)
        for run, one in zip(runs, opened, strict=True)
    ]
    contents = []
    for number, (run, name) in enumerate(zip(runs, run_names(runs), strict=True), 1):
        evaluated, tested = evaluations[number - 1], opened[number - 1]
        content = _content(run, number, name, typed_directories[number - 1])
        if isinstance(evaluated, str) or isinstance(tested, str):
            missing = {**content.missing, "evaluation": evaluated}
            contents.append(dataclasses.replace(content, missing=missing))
            continue
        scores: dict[str, Any]
        if isinstance(evaluated, evaluation.MultiLabelEvaluation):
            own_thresholds = (tested.source, tested.name) == (None, "validation")
            scores = {"labels": label_scores_of(evaluated, own_thresholds)}
            shown = most_telling_labels(run, evaluated, tested.split, images, verbose)
        else:
            scores = {"scores": scores_of(evaluated)}
            shown = most_telling_images(run, evaluated, tested.split, images, verbose)
        mistakes, hits, layer = shown
        contents.append(
            dataclasses.replace(
                content,
                images_title=tested.title,
                mistakes=mistakes,
                hits=hits,
                explained=layer,
                **scores,
            )
        )
    page = _page(runs, contents, evaluations)
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
        _read(run, "metrics.csv", lambda run=run: run.history and best_row(run.history, run.recipe))
        _read(run, "data.json", lambda run=run: run.class_names)
        if (run.directory / "environment.json").is_file():
            run.read_json("environment.json")


def _default_split(runs: Sequence[Run]) -> str:
    return "test" if all(is_evaluated(run, "test") for run in runs) else "validation"


def _opened(
    run: Run,
    runs: Sequence[Run],
    split: str | None,
    source: str | None,
    unknown_classes: UnknownClasses,
) -> RunImages | str:
    """Return the images to test a run on, or why there are none.

    Images that were asked for, by a split or a source, must be there.
    """
    if not run.finished and not run.model_path.is_file():
        return "The run has not finished training. Repeat the train command to resume it."
    if not run.finished:
        run.require_model()  # for its notice
    own_split = split or _default_split(runs)
    if source is not None:
        return open_images(run, split, source, unknown_classes, default_split=own_split)
    try:
        return open_images(run, own_split)
    except (OSError, ValueError) as error:  # The images are missing, or have changed.
        if split is not None:
            raise
        return f"The {own_split} images cannot be opened, so nothing is evaluated: {error}."


def _evaluation(
    run: Run, images: RunImages, verbose: bool, source: str | None
) -> evaluation.Evaluation | evaluation.MultiLabelEvaluation:
    """Evaluate the central crops of a run's images, or read the posteriors of an earlier time."""
    evaluator = Evaluator(run, images, None, verbose)
    plan = plan_of("center", [run.recipe.eval_scale_side])
    if run.several_labels:
        return with_thresholds(evaluator, plan, "validation", source)
    return evaluator.average_of(plan)


# --- the content of a run directory ----------------------------------------------------------


def _content(run: Run, number: int, name: str, typed_directory: str) -> report.RunContent:
    """Return what a run directory holds; `typed_directory` is how a command names it."""
    run = Run.open(run.directory)  # `with_columns` states the columns of another set
    recipe, history, results = run.recipe, run.history, run.results
    changes = recipe.differences(Recipe())
    missing = {}
    if not history:
        missing["metrics"] = "No epoch has ended yet, so there is no metrics.csv."
    evaluated, evaluated_labels = _evaluated(results), evaluated_labels_of(results)
    if not evaluated and not evaluated_labels:
        missing["evaluations"] = (
            f"There is no evaluation yet: keras-vgg evaluate {typed_directory} evaluates the run "
            "on the test images. Do it once, at the end."
        )
    exports, verified_on, why_none = _exports(run, typed_directory)
    if why_none is not None:
        missing["export"] = why_none
    path = run.directory / "environment.json"
    environment = _read(run, path.name, lambda: run.read_json(path.name)) if path.is_file() else {}
    classes = len(run.class_names)
    return report.RunContent(
        number=number,
        name=name,
        subtitle=(
            f"VGG {recipe.configuration}, {_width(recipe)}, "
            f"{recipe.image_size}x{recipe.image_size}, on {recipe.source}, {classes} classes"
            f"{_state_note(run)}"
        ),
        changes=[(field, *values) for field, values in changes.items()],
        recipe=list(dataclasses.asdict(recipe).items()),
        environment=_flat(environment),
        history=history,
        best_epoch=int(best_row(history, recipe)["epoch"]) if history else None,
        selecting_column=selecting_column(recipe, history),
        parameters=results.get("parameters"),
        training_seconds=results.get("training_seconds"),
        evaluated=evaluated,
        evaluated_labels=evaluated_labels,
        several_labels=run.several_labels,
        exports=exports,
        verified_on=verified_on,
        remarks=[*_read(run, "data.json", lambda: remarks_on(run)), *calibration_remarks(run)],
        missing=missing,
    )


def _width(recipe: Recipe) -> str:
    if recipe.filters:
        return f"with {' '.join(map(str, recipe.filters))} filters"
    return f"{recipe.width_multiplier:g} of the paper's width"


def _state_note(run: Run) -> str:
    """Return in words that a run has not finished, or ended early; otherwise nothing."""
    planned = run.recipe.epochs
    if not run.finished:
        return (
            f"; training has not finished (epoch {len(run.history)} of {planned}): this is its "
            "best network so far"
        )
    early = run.results.get("finished_early_at_epoch")
    return "" if early is None else f"; finished early, after epoch {early} of {planned}"


def _evaluated(results: dict[str, Any]) -> list[report.Evaluated]:
    return [
        report.Evaluated(
            key,
            figures["count"],
            figures["top1"],
            figures.get("top1_interval"),
            figures["top5"],
            figures["loss"],
            figures.get("balanced_accuracy"),
            figures.get("source"),
        )
        for key, figures in results.items()
        if isinstance(figures, dict) and "top1" in figures
    ]


def _exports(
    run: Run, typed_directory: str
) -> tuple[list[report.Exported], str | None, str | None]:
    """Return the rows of export/export.json, the model first, and the images that verified them.

    Last comes why there are no rows, and what command makes some.
    """
    name = "export/export.json"
    if not (run.directory / name).is_file():
        return (
            [],
            None,
            f"There is no export: keras-vgg export {typed_directory} writes and verifies "
            "SavedModel and LiteRT files.",
        )

    def rows() -> list[report.Exported]:
        model = record["model"]
        figure = "mean_average_precision" if run.several_labels else "top1"
        first = report.Exported("the model, float32", model["bytes"], model[figure], model["top5"])
        return [
            first,
            *(
                report.Exported(
                    artifact["format"],
                    artifact["bytes"],
                    artifact[figure],
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
    weights = record.get("model_sha256")  # Files of earlier versions have none.
    if weights and run.model_path.is_file() and weights != sha256_of(run.model_path):
        return (
            [],
            None,
            f"{run.directory / 'export'} is of an earlier network of this run: keras-vgg export "
            f"{typed_directory} --overwrite writes and verifies files of this one.",
        )
    if not record["artifacts"]:
        return exported, None, None
    images = record.get("images", "validation images")
    return exported, f"{record['artifacts'][0]['images']:,} {images}", None


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


def _page(
    runs: Sequence[Run],
    contents: Sequence[report.RunContent],
    evaluations: Sequence[evaluation.Evaluation | evaluation.MultiLabelEvaluation | str],
) -> report.Page:
    evaluated = [one for one in evaluations if isinstance(one, evaluation.Evaluation)]
    all_evaluated = len(evaluated) == len(runs)
    compared = evaluated[1:] if all_evaluated else []
    comparisons = [evaluation.compare(evaluated[0], other) for other in compared]
    recipes = [Run.open(run.directory).recipe for run in runs]
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
        not_compared=None if all_evaluated else _not_compared(runs),
    )


def _not_compared(runs: Sequence[Run]) -> str:
    if any(run.several_labels for run in runs):
        return "Runs that give an image several labels are not compared."
    return "Accuracies are compared once every run is evaluated."

"""Fine-tune ImageNet's weights on a folder of photographs, test the network, write a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_vgg.console import notes_once
from keras_vgg.fit import train
from keras_vgg.fit.finetuning import plan_finetuning
from keras_vgg.image_paths import expanded
from keras_vgg.recipe import PATH_SOURCES
from keras_vgg.run import Run, directory_of_run
from keras_vgg.runs.evaluate import evaluate_run
from keras_vgg.runs.report import report_runs
from keras_vgg.weights.published import NAMES


@notes_once()
def finetune(
    source: str | Path,
    workdir: str | Path,
    *,
    init: str = "imagenet",
    head_only: bool = False,
    verbose: int | str = "auto",
    **fields: Any,
) -> Run:
    """Fine-tune a VGG on photographs, or resume that; test the network and write a report.

    First the base is frozen: its features are computed once, and a linear classifier is fitted to
    them. Then the last block and the classifier are trained, with data augmentation; not for fewer
    than 20 training images a class. Image size, scales, batch and class weights follow the images.
    The test split is read once, at the end.

    The result is an ordinary run. A repeated call resumes it, and does what is missing.

    Args:
        source: A folder with a folder for each class, or a source such as "records:packed".
        workdir: The run directory: new, empty, or of the same fine-tuning.
        init: "imagenet", "torchvision", a weight file, a run directory, or "hf://OWNER/NAME".
        head_only: Train only the classifier.
        verbose: As in `keras_vgg.train`.
        fields: Fields of the recipe, which win over what the images decide.

    Returns:
        The run. If the source has a test split, `results` has its figures.

    Raises:
        ValueError, OSError, MemoryError: as `keras_vgg.train`.
    """
    workdir = directory_of_run(workdir)
    plan = plan_finetuning(
        _source_name(source), init=_absolute(init), head_only=head_only, workdir=workdir, **fields
    )
    if verbose and not Run(workdir, plan.recipe).finished:
        print("\n".join(plan.lines), flush=True)
    run = train(plan.recipe, workdir, verbose)
    shows_bars = verbose not in (0, 2)
    has_test = "test" in run.read_json("data.json")["splits"]
    if has_test and "test" not in run.results:
        evaluate_run(run, "test", verbose=shows_bars)
    page, results = run.directory / "report.html", run.directory / "results.json"
    # A page may be of the run before it was finished, or extended.
    if not page.is_file() or page.stat().st_mtime_ns < results.stat().st_mtime_ns:
        report_runs([run], verbose=shows_bars)
    return run


def _source_name(source: str | Path) -> str:
    """Return a folder or a source as a source with an absolute path."""
    form, colon, path = str(source).partition(":")
    if not (colon and form in PATH_SOURCES):
        form, path = "folder", str(source)
    return f"{form}:{expanded(path).resolve()}"


def _absolute(init: str) -> str:
    path = expanded(init)
    return str(path.resolve()) if init not in NAMES and path.exists() else init

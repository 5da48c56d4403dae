"""More epochs for a run that has finished. The run keeps its earlier recipes and results."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from keras_vgg.fit import checkpoint
from keras_vgg.fit.preparation import require_unchanged
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, claim

FILE = "extensions.json"
DIVISOR = 10  # An extension begins with the recipe's learning rate divided by this.


def begin_extension(
    workdir: str | Path, epochs: int, learning_rate: float | None = None
) -> tuple[Recipe, list[str]]:
    """Let a finished run have more epochs: write its new recipe, and put its results aside.

    The new recipe has one restart more, and no planned restart to which the run did not come.
    extensions.json gets the earlier recipe and results. If the same extension has begun already,
    nothing changes: so a repeated command resumes it.

    Args:
        workdir: The run directory.
        epochs: How many epochs more.
        learning_rate: Where the schedule begins again. None: a tenth of the recipe's.

    Returns:
        The new recipe, and lines that say what was put aside.

    Raises:
        ValueError: `epochs` or `learning_rate` is not positive; the run has not finished, or has no
            checkpoints; its data, first weights or teachers have changed.
        FileNotFoundError: the directory holds no run, or its model is missing, or a teacher.
        RunInUse: another process is training in the directory.
    """
    if epochs < 1:
        raise ValueError(f"a run is extended by at least 1 epoch, not {epochs}")
    with claim(workdir, Run.open(workdir).recipe) as (run, _):
        if not run.finished:
            return _begun_extension(run, epochs, learning_rate), []
        run.require_model()
        if not run.checkpoints:
            raise ValueError(
                f"{run.directory} has no checkpoints, from which it would go on; train in another "
                "workdir, with more --epochs"
            )
        require_unchanged(run)  # else the run could neither go on nor be finished again
        _leave_out_steps(run)
        extensions = read_extensions(run)
        before, results = run.recipe, run.results
        if extensions and extensions[-1]["results"]["epochs"] == results["epochs"]:
            # The process ended here before results.json was removed, or the extension was finished
            # before its first epoch ended; the results of `evaluate` are in the entry alone then.
            entry = extensions.pop()
            before = Recipe().replace(**entry["recipe"])
            results = entry["results"] | results
        recipe = _extended(before, results["epochs"], epochs, learning_rate)
        entry = {"recipe": dataclasses.asdict(before), "results": results}
        run.write_json(FILE, {"extensions": [*extensions, entry]})
        Run(run.directory, recipe).write_recipe()
        return recipe, _put_aside(run, results)


def _leave_out_steps(run: Run) -> None:
    """Remove the checkpoints within the epoch that --finish has left out."""
    steps = list(filter(checkpoint.is_within_epoch, run.checkpoints))
    if len(steps) == len(run.checkpoints):
        raise ValueError(
            f"{run.directory} has no checkpoint of the end of an epoch (keep_checkpoints="
            f"{run.recipe.keep_checkpoints}), from which it would go on; train in another workdir"
        )
    for path in steps:
        path.unlink()


def read_extensions(run: Run) -> list[dict[str, Any]]:
    """Return the recipe and the results of a run before each of its extensions."""
    if not (run.directory / FILE).is_file():
        return []
    return run.read_json(FILE)["extensions"]


def _begun_extension(run: Run, epochs: int, learning_rate: float | None) -> Recipe:
    recipe = run.recipe
    if recipe.restart_epochs and read_extensions(run):
        same_epochs = recipe.epochs - recipe.restart_epochs[-1] == epochs
        if same_epochs and learning_rate in (None, recipe.restart_rates[-1]):
            return recipe
    raise ValueError(
        f"{run.directory} has not finished training ({recipe.epochs} epochs): resume it, or end it "
        "with --finish, before it is extended"
    )


def _extended(recipe: Recipe, done: int, epochs: int, learning_rate: float | None) -> Recipe:
    rate = recipe.learning_rate / DIVISOR if learning_rate is None else float(learning_rate)
    # A run that ended early did not come to its later restarts.
    restarts = sum(restart < done for restart in recipe.restart_epochs)
    return recipe.replace(
        epochs=done + epochs,
        warmup_epochs=min(recipe.warmup_epochs, float(done)),
        unmixed_epochs=min(recipe.unmixed_epochs, done + epochs),
        restart_epochs=(*recipe.restart_epochs[:restarts], done),
        restart_rates=(*recipe.restart_rates[:restarts], rate),
    )


def _put_aside(run: Run, results: dict[str, Any]) -> list[str]:
    """Remove the earlier results and what was drawn from them. Return what to do again."""
    for path in run.directory.glob("confusion_*"):
        path.unlink()
    (run.directory / "results.json").unlink()
    lines = []
    evaluated = [name for name, value in results.items() if isinstance(value, dict)]
    if evaluated:
        lines.append(
            f"{', '.join(evaluated)}: these results are of the network of {results['epochs']} "
            f"epochs; they are now in {run.directory / FILE}, so evaluate again"
        )
    if (run.directory / "export").is_dir():
        lines.append(
            f"{run.directory / 'export'} is of the network of {results['epochs']} epochs; export "
            "again"
        )
    return lines

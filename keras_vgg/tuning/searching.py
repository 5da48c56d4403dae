"""A search from beginning to end: its folder, its budget, its processes and its results."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras_tuner

from keras_vgg.files import write_json
from keras_vgg.recipe import Recipe
from keras_vgg.run import directory_of_run, read_fields
from keras_vgg.tuning.hypermodel import Limits, VGGHyperModel
from keras_vgg.tuning.live_table import LiveTable
from keras_vgg.tuning.oracle import make_oracle, quiet_keras_tuner
from keras_vgg.tuning.results import Attempt, attempts, best, write_results
from keras_vgg.tuning.space import Range, Space
from keras_vgg.tuning.tuner import Clock, RunTuner, process_role

_SEARCH = "search.json"
_SPENT = "spent.json"
_CHIEF_TIMEOUT = 600.0  # seconds that a worker waits for the chief to start


def search(
    recipe: Recipe,
    workdir: str | Path,
    *,
    tuner: str = "hyperband",
    space: Space | None = None,
    limits: Limits | None = None,
    max_trials: int | None = None,
    budget: float | None = None,
    seed: int = 0,
    prune: bool = True,
    worker_timeout: float = 60.0,
    verbose: bool = True,
) -> list[Attempt]:
    """Search for the recipe with the highest validation accuracy. The test split is not read.

    The folder gets search.json (the arguments), keras-tuner's files, a run directory for each trial
    with TensorBoard logs and HParams, trials.csv, plots, and best_recipe.py. `keras-vgg train` runs
    best_recipe.py as it is, and gets the validation accuracy of the best trial again. Repeat
    the same call to resume a search after a stop or a kill, and with a larger budget after the end
    of the budget.

    Several processes share a search if KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT and
    KERASTUNER_TUNER_ID are set. A process with "chief" in its id is the chief, the others are
    workers. All need the same arguments and a common folder. The chief trains nothing and writes
    the results.

    Args:
        recipe: The data, and the value of every field that is not searched.
        workdir: The search's folder: new, empty, or of the same search.
        tuner: random, bayesian, hyperband or grid.
        space: Field of a recipe -> values to try; default: `default_space(recipe)`.
        limits: Limits of a trial's network. A trial above a limit fails before it is built.
        max_trials: Most trials; a later call may raise this number. Default: hyperband and grid end
            by themselves; random and bayesian go on until the budget is spent.
        budget: Seconds of searching, all calls together. A later call may raise this number.
        seed: The tuner's seed. The recipe's own seed is the seed of every trial.
        prune: End a trial early if its accuracy is below the median of the others at the same
            epoch. Hyperband ends trials by its own rule instead.
        worker_timeout: Seconds without a sign of life after which the chief gives a worker's trial
            to another worker.
        verbose: Show the trials: a live table on a terminal, otherwise a line for each.

    Returns:
        The trials, in the order of their start. A worker returns an empty list.

    Raises:
        ValueError: the tuner or a field is unknown; a range is empty; hyperband is to search
            epochs; nothing ends the search; the folder holds something else; the budget ended
            before one trial; all trials failed; some of keras-tuner's variables are missing.
        RuntimeError: a trial ended with an error that is neither the data's nor the network's.
        TimeoutError: a worker's chief has not started.
    """
    # keras-tuner needs the folder's name, which "." lacks.
    workdir = directory_of_run(workdir).resolve()
    recipe = recipe.with_absolute_paths()  # a resume may begin in another folder
    hypermodel = VGGHyperModel(recipe, space, directory=workdir, limits=limits)
    hypermodel.base = hypermodel.base.with_absolute_paths()  # paths among the single values, too
    hyperparameters = keras_tuner.HyperParameters()
    hypermodel.declare_hyperparameters(hyperparameters)
    _require_end(tuner, max_trials, budget)
    if tuner == "hyperband" and "epochs" in hypermodel.space:
        raise ValueError("hyperband decides the epochs; leave epochs out of the space")
    is_worker = process_role() == "worker"
    oracle = make_oracle(
        tuner,
        hyperparameters,
        max_trials=max_trials,
        max_epochs=hypermodel.base.epochs,
        seed=seed,
    )
    _ = hypermodel.classes  # raises an error now if the data is missing
    if is_worker:
        _wait_for_chief(workdir / _SEARCH)
    _claim(workdir, _description(hypermodel, tuner, seed, prune))
    clock = Clock(workdir / _SPENT, budget)
    oracle.over = clock.over
    live_table = LiveTable(workdir, budget, verbose and not is_worker)
    with quiet_keras_tuner(), live_table:
        run_tuner = RunTuner(
            oracle, hypermodel, workdir, clock, live_table, prune=prune and tuner != "hyperband"
        )
        try:
            run_tuner.run(worker_timeout)
        finally:
            if not is_worker:
                clock.save()
    if is_worker:
        return []
    trials = attempts(workdir)
    _require_a_finished_trial(trials, clock, budget)
    write_results(workdir, trials, tuner)
    return trials


def _require_end(tuner: str, max_trials: int | None, budget: float | None) -> None:
    """Raise ValueError for a search that cannot begin or does not end."""
    if max_trials is not None and max_trials < 1:
        raise ValueError(f"max_trials must be 1 or more, not {max_trials}")
    if budget is not None and not budget > 0:
        raise ValueError(f"the budget must be more than 0 seconds, not {budget:g}")
    if tuner in ("random", "bayesian") and max_trials is None and budget is None:
        raise ValueError(f"a {tuner} search does not end by itself: give max_trials or a budget")


def _wait_for_chief(path: Path) -> None:
    # Only the chief makes the folder: two processes at a time would disturb each other.
    deadline = time.monotonic() + _CHIEF_TIMEOUT
    while not path.is_file():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"no chief has started in {_CHIEF_TIMEOUT:.0f} s: {path} is missing; start a "
                "process with 'chief' in KERASTUNER_TUNER_ID"
            )
        time.sleep(0.5)


def _description(hypermodel: VGGHyperModel, tuner: str, seed: int, prune: bool) -> dict[str, Any]:
    """Return the arguments that a search keeps in its folder and that a resume must repeat."""
    return {
        "tuner": tuner,
        "recipe": json.loads(hypermodel.base.to_json()),
        "space": {
            name: asdict(choices) if isinstance(choices, Range) else list(choices)
            for name, choices in hypermodel.space.items()
        },
        "limits": asdict(hypermodel.limits),
        "seed": seed,
        "prune": prune,
        "splits": hypermodel.splits,
    }


def _claim(workdir: Path, description: dict[str, Any]) -> None:
    """Make the search's folder, or require that the folder holds the same search."""
    path = workdir / _SEARCH
    if path.is_file():
        stored = dict(read_fields(path))
        if "recipe" in stored:  # an earlier version's recipe lacks newer fields
            earlier = Recipe.from_json(json.dumps(stored["recipe"]))
            stored["recipe"] = json.loads(earlier.with_absolute_paths().to_json())
        description = json.loads(json.dumps(description))
        splits = description.pop("splits")
        for name, value in description.items():
            if value != stored.get(name):
                raise ValueError(
                    f"{workdir} holds another search ({name} is {stored.get(name)!r} in its "
                    f"{_SEARCH}, not {value!r}); choose another workdir, or repeat the arguments "
                    "of that search to resume it"
                )
        if splits != stored.get("splits", splits):  # an earlier version does not keep them
            raise ValueError(
                f"the images of {description['recipe']['source']} have changed since the search in "
                f"{workdir} began, and its trials could not be compared; choose another workdir"
            )
        return
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ValueError(f"{workdir} exists and is not a search; choose another workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, description)


def _require_a_finished_trial(trials: list[Attempt], clock: Clock, budget: float | None) -> None:
    if best(trials) is not None:
        return
    reasons = [trial.reason for trial in trials if trial.reason]
    if clock.over() and reasons:
        raise ValueError(
            f"the budget of {budget:.0f} s was spent and no trial was finished; {len(reasons)} "
            f"failed, the last: {reasons[-1]}"
        )
    if clock.over():
        progress = f"{len(trials[-1].curve)} epochs are trained" if trials else "none has begun"
        raise ValueError(
            f"the budget of {budget:.0f} s was spent before one trial was finished ({progress}); "
            "repeat the search with a larger budget to resume it"
        )
    raise ValueError(f"all {len(trials)} trials failed, the last: {trials[-1].reason}")

"""A search from beginning to end: budget, resume, pruning, workers, and the recipe it ends in."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError, FatalError, FatalValueError

from keras_vgg.files import write_json
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, RunInUse, read_fields
from keras_vgg.tuning.hypermodel import Limits, VGGHyperModel, cost
from keras_vgg.tuning.live_table import LiveTable
from keras_vgg.tuning.oracle import DurableOracle, alive, make_oracle, quiet_keras_tuner, serve
from keras_vgg.tuning.results import PRUNED, Attempt, attempts, best, write_results
from keras_vgg.tuning.space import Range, Space, declare

_SEARCH = "search.json"
_SPENT = "spent.json"
_COMPARED_WITH = 3  # trials, before one is called hopeless
_CHIEF_APPEARS = 600.0  # seconds that a worker waits for the chief to begin


class _OutOfTime(FatalError):
    """Ends keras-tuner's loop; the trial goes on when the search does."""


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
    """Search for a recipe of the highest validation accuracy; the test split is never read.

    The folder gets search.json (what is searched), keras-tuner's own files, a run directory for
    each trial with its TensorBoard logs and HParams, trials.csv, plots, and best_recipe.py, which
    `keras-vgg train` runs as it is and which gives the best trial's validation accuracy again.
    Repeated, it goes on where it was stopped, killed or out of time, with what it was doing.

    Where KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT and KERASTUNER_TUNER_ID are set it is the
    chief (the id has "chief" in it) or a worker of a search by several processes, which need the
    same arguments and a common folder. The chief trains nothing and writes what was found.

    Args:
        recipe: What is not searched, and the data.
        workdir: New, empty, or that of the same search.
        tuner: random, bayesian, hyperband or grid.
        space: Field of a recipe -> what is tried; default: `default_space(recipe)`.
        limits: What a trial may cost; others fail before they are built.
        max_trials: At most so many; default: what hyperband or the grid has, for the others as many
            as the budget allows. A later call may raise it.
        budget: Seconds of searching, all calls together. A later call may raise it.
        seed: The tuner's seed; the recipe's own is that of every trial.
        prune: End trials that at some epoch are below the median of the others there. Hyperband
            has its own way.
        worker_timeout: Seconds without a sign of life after which the chief gives a worker's trial
            to another.
        verbose: Show a table of the trials, on a terminal a live one.

    Returns:
        The trials, in the order in which they began; of a worker none.

    Raises:
        ValueError: an unknown tuner or field; an empty range; nothing that ends the search; a
            folder that holds another search or something else; a budget in which no trial came to
            its end; no trial that did not fail; some of keras-tuner's variables without the rest.
        TimeoutError: a worker's chief has not begun.
    """
    workdir = Path(workdir)
    hypermodel = VGGHyperModel(recipe, space, directory=workdir, limits=limits)
    hyperparameters = keras_tuner.HyperParameters()
    declare(hyperparameters, hypermodel.base, hypermodel.space)
    _check(tuner, max_trials, budget)
    role = _role()
    oracle = make_oracle(
        tuner,
        hyperparameters,
        max_trials=max_trials,
        max_epochs=hypermodel.base.epochs,
        seed=seed,
    )
    _ = hypermodel.classes  # the data is there
    if role == "worker":
        _wait_for(workdir / _SEARCH)
    _claim(workdir, _description(hypermodel, tuner, seed, prune))
    clock = _Clock(workdir, budget)
    oracle.over = clock.over
    live_table = LiveTable(workdir, budget, verbose and role != "worker")
    with quiet_keras_tuner(), live_table:
        searcher = _Tuner(
            oracle, hypermodel, workdir, clock, live_table, prune=prune and tuner != "hyperband"
        )
        try:
            searcher.run(worker_timeout)
        finally:
            if role != "worker":
                clock.keep()
    if role == "worker":
        return []
    found = attempts(workdir)
    if best(found) is None:
        if clock.over():
            raise ValueError(
                f"{budget:.0f} s were over before one trial was finished ({_progress(found)}): "
                "nothing is lost, repeat it with a larger budget"
            )
        raise ValueError(f"all {len(found)} trials failed, the last: {found[-1].reason}")
    write_results(workdir, found, tuner)
    return found


def _description(hypermodel: VGGHyperModel, tuner: str, seed: int, prune: bool) -> dict[str, Any]:
    """Return what makes a search this one and no other, for its folder."""
    return {
        "tuner": tuner,
        "recipe": json.loads(hypermodel.base.to_json()),
        "space": {name: _described(choices) for name, choices in hypermodel.space.items()},
        "limits": asdict(hypermodel.limits),
        "seed": seed,
        "prune": prune,
    }


def _check(tuner: str, max_trials: int | None, budget: float | None) -> None:
    if max_trials is not None and max_trials < 1:
        raise ValueError(f"max_trials must be 1 or more, not {max_trials}")
    if budget is not None and not budget > 0:
        raise ValueError(f"the budget must be more than 0 seconds, not {budget:g}")
    if tuner in ("random", "bayesian") and max_trials is None and budget is None:
        raise ValueError(f"{tuner} ends by itself only when told: give max_trials or a budget")


def _role() -> str | None:
    """chief, worker, or None where one process does it all."""
    names = [f"KERASTUNER_{name}" for name in ("ORACLE_IP", "ORACLE_PORT", "TUNER_ID")]
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(f"a search by several processes needs {', '.join(missing)} too")
    return "chief" if "chief" in os.environ[names[-1]] else "worker"


def _wait_for(path: Path) -> None:
    """The chief makes the folder; two at a time would be in each other's way."""
    until = time.monotonic() + _CHIEF_APPEARS
    while not path.is_file():
        if time.monotonic() > until:
            raise TimeoutError(f"no chief has begun: there is no {path}")
        time.sleep(0.5)


def _claim(workdir: Path, described: dict[str, Any]) -> None:
    path = workdir / _SEARCH
    if path.is_file():
        there = read_fields(path)
        for name, value in json.loads(json.dumps(described)).items():
            if value != there.get(name):
                raise ValueError(
                    f"{workdir} holds another search ({name} {there.get(name)!r} there, {value!r} "
                    "here); choose another workdir, or repeat its arguments to go on with it"
                )
        return
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise ValueError(f"{workdir} exists and is not a search; choose another workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, described)


def _described(choices: Any) -> Any:
    return asdict(choices) if isinstance(choices, Range) else list(choices)


def _progress(found: list[Attempt]) -> str:
    return f"{len(found[-1].curve)} epochs of one" if found else "none had begun"


class _Clock:
    """The budget, over all calls: what was spent is kept in the search's folder."""

    def __init__(self, workdir: Path, budget: float | None) -> None:
        self._path = workdir / _SPENT
        self._budget = budget
        self._began = time.monotonic()
        try:
            self._before = float(read_fields(self._path)["seconds"])
        except FileNotFoundError:
            self._before = 0.0

    @property
    def spent(self) -> float:
        return self._before + time.monotonic() - self._began

    def over(self) -> bool:
        return self._budget is not None and self.spent >= self._budget

    def keep(self) -> None:
        write_json(self._path, {"seconds": round(self.spent, 1)})


class _Tuner(BaseTuner):
    """keras-tuner's loop over trials, each of which is a run directory."""

    def __init__(
        self,
        oracle: DurableOracle,
        hypermodel: VGGHyperModel,
        workdir: Path,
        clock: _Clock,
        live_table: LiveTable,
        prune: bool,
    ) -> None:
        self._chief_oracle = oracle
        self._model = hypermodel
        self._workdir = workdir
        self._clock = clock
        self._live_table = live_table
        self._prune = prune
        self._asked = False
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it reloads
            super().__init__(oracle, directory=workdir.parent, project_name=workdir.name)

    def _get_tuner_fname(self) -> str:
        """What there is to reload is the oracle's, from its first trial on."""
        return str(self._workdir / "oracle.json")

    def save(self) -> None:
        if not self._is_worker():
            self.oracle.save()

    def reload(self) -> None:
        if not self._is_worker():
            self.oracle.reload()

    def run(self, worker_timeout: float) -> None:
        workers = self._workdir / "workers"
        if _role() == "chief":
            address = ":".join(os.environ[f"KERASTUNER_ORACLE_{part}"] for part in ("IP", "PORT"))
            self.save()
            serve(
                self._chief_oracle,
                address,
                workers,
                worker_timeout=worker_timeout,
                tick=self._tick,
            )
            return
        is_worker = self._is_worker()
        watched = alive(workers, self.tuner_id) if is_worker else contextlib.nullcontext()
        with watched, contextlib.suppress(_OutOfTime):
            self.search(verbose=0)

    def pre_create_trial(self) -> None:
        if self._clock.over():
            raise _OutOfTime
        if self._asked:
            time.sleep(1)  # the oracle is waiting for others; keras-tuner asks again at once
        self._asked = True

    def on_trial_begin(self, trial: Trial) -> None:
        self._asked = False

    def run_trial(self, trial: Trial, **__: Any) -> dict[str, float]:
        recipe = self._model.recipe(trial.hyperparameters)
        folder = Path(self.get_trial_dir(trial.trial_id))
        outcome = folder / "outcome.json"
        parameters, _ = cost(recipe, self._model.classes)
        facts: dict[str, Any] = {"parameters": parameters, "epochs": recipe.epochs}
        write_json(folder / "facts.json", facts | {"values": _tried(trial, recipe)})
        began = time.monotonic()
        pruner = [_Pruner(self._workdir, folder, recipe)] if self._prune else []
        try:
            self._model.limits.require_small(recipe, self._model.classes)
            if self._model.limits.latency_ms is not None:
                self._model.limits.require_fast(self._model.build(trial.hyperparameters))
            callbacks = [
                _Deadline(self._clock, self._tick),
                _HParams(trial, recipe, folder / "run" / "tensorboard"),
                *pruner,
            ]
            found = self._train(recipe, folder / "run", callbacks)
        except FailedTrialError as error:
            # Not keras-tuner's FAILED: its Hyperband then waits for ever for a bracket to fill, and
            # its Gaussian process never learns to keep away.
            facts = {"reason": str(error), "seconds": time.monotonic() - began}
            write_json(outcome, facts | {"at": self._clock.spent})
            return {"val_accuracy": 0.0}
        except (ValueError, OSError) as error:
            # The data or the disk: the next trial would fare no better.
            raise FatalValueError(str(error)) from error
        seconds = sum(row["seconds"] for row in Run.open(folder / "run").history)
        facts = {"val_accuracy": found["val_accuracy"], "seconds": seconds}
        write_json(outcome, facts | {"at": self._clock.spent})
        return {name: found[name] for name in ("val_accuracy", "val_loss")}

    def _train(
        self, recipe: Recipe, folder: Path, callbacks: list[keras.callbacks.Callback]
    ) -> dict[str, float]:
        while True:
            try:
                return self._model.train(recipe, folder, callbacks)
            except RunInUse:
                # A worker that was given up is not dead yet. It trains for both.
                if self._clock.over():
                    raise _OutOfTime from None
                time.sleep(1)

    def on_trial_end(self, trial: Trial) -> None:
        super().on_trial_end(trial)
        keras.backend.clear_session()
        self._tick()

    def _tick(self) -> None:
        if not self._is_worker():
            self._clock.keep()
        self._live_table.look(self._clock.spent)


class _Deadline(keras.callbacks.Callback):
    """Stops at once; a later search begins the epoch again."""

    def __init__(self, clock: _Clock, tick: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._tick = tick

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._clock.over():
            raise _OutOfTime

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._tick()


class _Pruner(keras.callbacks.Callback):
    """The median rule: ends a trial whose best so far is below most others' at the same epoch.

    Golovin et al., Google Vizier (KDD 2017), section 3.2.1. It needs a third of the epochs and
    three finished trials of as many. Of a pruned one the best stands for the epochs it did not
    have: without it the later epochs would be a contest among the best few.
    """

    def __init__(self, workdir: Path, folder: Path, recipe: Recipe) -> None:
        super().__init__()
        self._workdir = workdir
        self._folder = folder
        self._epochs = recipe.epochs
        self._best = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        mine = [a for a in attempts(self._workdir) if a.folder == self._folder]
        self._best = max((max(a.curve, default=0.0) for a in mine), default=0.0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        done = epoch + 1
        self._best = max(self._best, (logs or {}).get("val_accuracy", 0.0))
        if not self._epochs / 3 <= done < self._epochs:
            return
        others = [
            max(a.curve[:done])
            for a in attempts(self._workdir)
            if a.folder != self._folder and a.finished and (a.pruned or len(a.curve) >= done)
        ]
        if len(others) >= _COMPARED_WITH and self._best < float(np.median(others)):
            (self._folder / PRUNED).touch()
            assert self.model is not None, "Keras gives a callback its model before it trains"
            self.model.stop_training = True


class _HParams(keras.callbacks.Callback):
    """TensorBoard's record of a trial's hyperparameters, beside the run's curves."""

    def __init__(self, trial: Trial, recipe: Recipe, folder: Path) -> None:
        super().__init__()
        self._values = _tried(trial, recipe)
        self._trial_id = trial.trial_id
        self._folder = folder

    def on_train_begin(self, logs: dict | None = None) -> None:
        # The generated module makes its classes when it is imported.
        from tensorboard.compat.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorboard.plugins.hparams import api
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Not api.KerasCallback: that makes the folder before it is a run.
        writer = EventFileWriter(str(self._folder))
        summary = api.hparams_pb(self._values, self._trial_id)
        writer.add_event(Event(wall_time=time.time(), summary=summary))
        writer.close()


def _tried(trial: Trial, recipe: Recipe) -> dict[str, Any]:
    """Searched field -> value, a pair as 32-40; and epochs, where hyperband decides them."""
    names = [*trial.hyperparameters.values]
    fields = [name for name in names if "/" not in name]
    fields += ["epochs"] if "tuner/epochs" in names else []
    values = {name: getattr(recipe, name) for name in fields}
    return {k: "-".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}

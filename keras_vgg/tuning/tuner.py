"""keras-tuner's loop over trials, with a budget, early ends and run directories."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError, FatalError, FatalRuntimeError, FatalValueError

from keras_vgg.files import write_json
from keras_vgg.fit.preparation import memory_error_explained
from keras_vgg.fit.schedule import compared_column
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, RunInUse, read_fields
from keras_vgg.tuning.hypermodel import VGGHyperModel, cost
from keras_vgg.tuning.live_table import LiveTable
from keras_vgg.tuning.oracle import DurableOracle, alive, serve
from keras_vgg.tuning.results import PRUNED, attempts
from keras_vgg.tuning.space import draw_values

_LEAST_TRIALS = 3  # finished trials that a comparison with their median needs


class OutOfTime(FatalError):
    """The budget is spent. The error ends keras-tuner's loop; a later call resumes the trial."""


class Clock:
    """The budget of a search. A file in the search's folder keeps the seconds of all calls."""

    def __init__(self, path: Path, budget: float | None) -> None:
        self._path = path
        self._budget = budget
        self._started = time.monotonic()
        try:
            self._earlier_seconds = float(read_fields(path)["seconds"])
        except FileNotFoundError:
            self._earlier_seconds = 0.0

    @property
    def spent(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._started

    def over(self) -> bool:
        return self._budget is not None and self.spent >= self._budget

    def save(self) -> None:
        write_json(self._path, {"seconds": round(self.spent, 1)})


def process_role() -> str | None:
    """Return "chief" or "worker"; None if one process does the whole search.

    Raises:
        ValueError: some of keras-tuner's environment variables are missing.
    """
    names = [f"KERASTUNER_{name}" for name in ("ORACLE_IP", "ORACLE_PORT", "TUNER_ID")]
    missing = [name for name in names if not os.environ.get(name)]
    if len(missing) == len(names):
        return None
    if missing:
        raise ValueError(f"a search by several processes needs {', '.join(missing)} too")
    return "chief" if "chief" in os.environ[names[-1]] else "worker"


class RunTuner(BaseTuner):
    """keras-tuner's loop over trials, each of which is a run directory."""

    def __init__(
        self,
        oracle: DurableOracle,
        hypermodel: VGGHyperModel,
        workdir: Path,
        clock: Clock,
        live_table: LiveTable,
        prune: bool,
    ) -> None:
        self._chief_oracle = oracle
        self._model = hypermodel
        self._workdir = workdir
        self._clock = clock
        self._live_table = live_table
        self._prune = prune
        self._waiting = False
        with contextlib.redirect_stdout(io.StringIO()):  # BaseTuner prints that it reloads
            super().__init__(oracle, directory=workdir.parent, project_name=workdir.name)

    def _get_tuner_fname(self) -> str:
        # BaseTuner reloads if this file exists. The oracle's file does from the first trial on.
        return str(self._workdir / "oracle.json")

    def save(self) -> None:
        if not self._is_worker():
            self.oracle.save()

    def reload(self) -> None:
        if not self._is_worker():
            self.oracle.reload()

    def run(self, worker_timeout: float) -> None:
        """Search until the trials or the budget end: as chief, as worker, or alone."""
        workers = self._workdir / "workers"
        if process_role() == "chief":
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
        signs = alive(workers, self.tuner_id) if is_worker else contextlib.nullcontext()
        with signs, contextlib.suppress(OutOfTime):
            self.search(verbose=0)

    def pre_create_trial(self) -> None:
        if self._clock.over():
            raise OutOfTime
        if self._waiting:
            time.sleep(1)  # the oracle waits for other trials; keras-tuner asks again at once
        self._waiting = True

    def on_trial_begin(self, trial: Trial) -> None:
        self._waiting = False

    def run_trial(self, trial: Trial, **__: Any) -> dict[str, float]:
        folder = Path(self.get_trial_dir(trial.trial_id))
        # An error may have ended this trial in an earlier call.
        for name in ("outcome.json", PRUNED):
            (folder / name).unlink(missing_ok=True)
        try:
            recipe = self._model.recipe(trial.hyperparameters)
        except ValueError as error:  # Each value is possible by itself.
            drawn = draw_values(trial.hyperparameters, self._model.base, self._model.space)
            values = {k: v for k, v in drawn.items() if k in trial.hyperparameters.values}
            plan = {"parameters": 0, "epochs": self._model.base.epochs, "values": _written(values)}
            write_json(folder / "facts.json", plan)
            self._write_outcome(folder, reason=f"refused: {error}", seconds=0.0)
            return {"val_accuracy": 0.0}
        parameters, _ = cost(recipe, self._model.classes)
        plan = {"parameters": parameters, "epochs": recipe.epochs}
        write_json(folder / "facts.json", plan | {"values": _searched_values(trial, recipe)})
        started = time.monotonic()
        try:
            self._model.limits.require_small(recipe, self._model.classes)
            if self._model.limits.latency_ms is not None:
                with memory_error_explained(recipe):
                    self._model.limits.require_fast(self._model.build(trial.hyperparameters))
            results = self._train(recipe, folder / "run", self._callbacks(trial, recipe, folder))
        except (FailedTrialError, MemoryError) as error:
            # Not keras-tuner's FAILED: its Hyperband then waits without end for a full bracket, and
            # its Gaussian process does not learn to avoid such values.
            seconds = time.monotonic() - started
            self._write_outcome(folder, reason=str(error), seconds=seconds)
            return {"val_accuracy": 0.0}
        except (ValueError, OSError) as error:
            # The data or the disk is at fault, so the next trial would fail too.
            raise FatalValueError(str(error)) from error
        except FatalError:
            raise
        except Exception as error:  # keras-tuner would go on, and the trial would never end.
            reason = f"{type(error).__name__}: {error}"
            self._write_outcome(folder, reason=reason, seconds=time.monotonic() - started)
            raise FatalRuntimeError(
                f"trial {trial.trial_id} ended with {reason}; correct the cause and repeat the "
                "search to resume it"
            ) from error
        seconds = sum(row["seconds"] for row in Run.open(folder / "run").history)
        self._write_outcome(folder, val_accuracy=results["val_accuracy"], seconds=seconds)
        return {name: results[name] for name in ("val_accuracy", "val_loss")}

    def _write_outcome(self, folder: Path, **outcome: Any) -> None:
        write_json(folder / "outcome.json", outcome | {"at": self._clock.spent})

    def _callbacks(
        self, trial: Trial, recipe: Recipe, folder: Path
    ) -> list[keras.callbacks.Callback]:
        values = _searched_values(trial, recipe)
        return [
            _Deadline(self._clock, self._tick),
            _HParams(values, trial.trial_id, folder / "run" / "tensorboard"),
            *([MedianPruner(self._workdir, folder, recipe)] if self._prune else []),
        ]

    def _train(
        self, recipe: Recipe, folder: Path, callbacks: list[keras.callbacks.Callback]
    ) -> dict[str, float]:
        while True:
            try:
                return self._model.train(recipe, folder, callbacks)
            except RunInUse:
                # The chief gave this trial away, but the first worker is alive and trains it. When
                # that worker is done, the run is finished for both.
                if self._clock.over():
                    raise OutOfTime from None
                time.sleep(1)

    def on_trial_end(self, trial: Trial) -> None:
        super().on_trial_end(trial)
        keras.backend.clear_session()
        self._tick()

    def _tick(self) -> None:
        if not self._is_worker():
            self._clock.save()
        self._live_table.update(self._clock.spent)


class _Deadline(keras.callbacks.Callback):
    """Stop at once when the budget is spent; a later search begins the epoch again."""

    def __init__(self, clock: Clock, tick: Callable[[], None]) -> None:
        super().__init__()
        self._clock = clock
        self._tick = tick

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._clock.over():
            raise OutOfTime

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._tick()


class MedianPruner(keras.callbacks.Callback):
    """End a trial whose best accuracy so far is below the median of the others at that epoch.

    This is the median stopping rule of Golovin et al., Google Vizier (KDD 2017), section 3.2.1. It
    acts after a third of the epochs, if three other trials can be compared. The best accuracy of a
    pruned trial also stands for the epochs that the trial did not train: otherwise the median of
    the later epochs would come from the best few trials alone.
    """

    def __init__(self, workdir: Path, folder: Path, recipe: Recipe) -> None:
        super().__init__()
        self._workdir = workdir
        self._folder = folder
        self._epochs = recipe.epochs
        self._best = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        earlier_epochs = [
            accuracy
            for trial in attempts(self._workdir)
            if trial.folder == self._folder
            for accuracy in trial.curve
        ]
        self._best = max(earlier_epochs, default=0.0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        epochs_done = epoch + 1
        logs = logs or {}
        self._best = max(self._best, logs.get(compared_column(logs), 0.0))
        if not self._epochs / 3 <= epochs_done < self._epochs:
            return
        others = [
            max(trial.curve[:epochs_done])
            for trial in attempts(self._workdir)
            if trial.folder != self._folder
            and trial.epochs == self._epochs  # another schedule is elsewhere at this epoch
            and trial.finished
            and (trial.pruned or len(trial.curve) >= epochs_done)
        ]
        if len(others) >= _LEAST_TRIALS and self._best < float(np.median(others)):
            (self._folder / PRUNED).touch()
            assert self.model is not None, "Keras gives a callback its model before it trains"
            self.model.stop_training = True


class _HParams(keras.callbacks.Callback):
    """Write a trial's hyperparameters for TensorBoard, beside the run's curves."""

    def __init__(self, values: dict[str, Any], trial_id: str, folder: Path) -> None:
        super().__init__()
        # TensorBoard takes texts, numbers and truth values.
        self._values = {k: "none" if v is None else v for k, v in values.items()}
        self._trial_id = trial_id
        self._folder = folder

    def on_train_begin(self, logs: dict | None = None) -> None:
        # The generated module makes its classes when it is imported.
        from tensorboard.compat.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorboard.plugins.hparams import api
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # Not api.KerasCallback: that makes the folder before the folder is a run.
        writer = EventFileWriter(str(self._folder))
        summary = api.hparams_pb(self._values, self._trial_id)
        writer.add_event(Event(wall_time=time.time(), summary=summary))
        writer.close()


def _searched_values(trial: Trial, recipe: Recipe) -> dict[str, Any]:
    """Return the values of the searched fields: a pair as 32-40, and epochs for Hyperband."""
    names = [*trial.hyperparameters.values]
    fields = [name for name in names if "/" not in name]
    fields += ["epochs"] if "tuner/epochs" in names else []
    return _written({name: getattr(recipe, name) for name in fields})


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields' values as files have them: a pair as 32-40."""
    return {k: "-".join(map(str, v)) if isinstance(v, tuple) else v for k, v in values.items()}

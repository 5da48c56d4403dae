"""keras-tuner's oracles, which survive a kill at any moment here, and their service for workers."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial

from keras_vgg.files import write_atomically, write_json

_SIGN_INTERVAL = 2.0  # seconds between two signs of life of a worker


class DurableOracle(keras_tuner.Oracle):
    """An oracle with atomic files and an end: a kill neither loses nor repeats a trial.

    keras-tuner overwrites its files in place, and writes a trial's file before the oracle's. So a
    kill can leave a file that cannot be read, or a trial that no process will run.
    """

    over: Callable[[], bool] = staticmethod(lambda: False)

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        path = Path(self._get_trial_dir(trial.trial_id), "trial.json")
        write_json(path, trial.get_state())

    def reload(self) -> None:
        path = Path(self._get_oracle_fname())
        started = set(json.loads(path.read_text(encoding="utf-8"))["start_order"])
        for file in path.parent.glob("trial_*/trial.json"):
            # The trial was drawn and never started: the oracle will draw the same trial again.
            if file.parent.name.removeprefix("trial_") not in started:
                file.unlink()
        super().reload()

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        if self.over():
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="", status="STOPPED")
        trial = super().create_trial(tuner_id)
        if trial.status == "STOPPED" and self.ongoing_trials:
            # Another worker may die. This worker then gets the trial of that one.
            self.tuner_ids.add(tuner_id)
            trial.status = "IDLE"
        return trial

    @keras_tuner.synchronized
    def forget(self, tuner_id: str) -> None:
        """Give the trial of a lost worker to the next worker that asks."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
        self.save()

    @keras_tuner.synchronized
    def idle(self) -> bool:
        return not self.ongoing_trials and not self.tuner_ids


class DurableGridOracle(DurableOracle, keras_tuner.oracles.GridSearchOracle):
    """A grid search that goes on after the combinations of an earlier process.

    keras-tuner keeps the order of the combinations, and those whose next one may be untried, in
    memory only.
    """

    def reload(self) -> None:
        super().reload()

        def compare(one: str, other: str) -> int:
            values = [self.trials[trial_id].hyperparameters.values for trial_id in (one, other)]
            return self._compare(*values)

        for trial_id in sorted(self.start_order, key=cmp_to_key(compare)):
            self._ordered_ids.insert(trial_id)
        self._populate_next = [*self.start_order]


class DurableHyperbandOracle(DurableOracle, keras_tuner.oracles.HyperbandOracle):
    """Hyperband that halves the trials it has if a small space has no more combinations.

    keras-tuner then ends the search, and no trial has trained all epochs.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._begun: dict[int, int] = {}  # bracket -> its trials, if the space has no more

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        size = super()._get_size(bracket_num, round_num)
        begun = self._begun.get(bracket_num)
        return size if begun is None else min(size, math.ceil(begun / self.factor**round_num))

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        response = super().populate_space(trial_id)
        for bracket in self._brackets if response["status"] == "STOPPED" else ():
            number, begun = bracket["bracket_num"], len(bracket["rounds"][0])
            if begun and number not in self._begun:
                self._begun[number] = begun
                return super().populate_space(trial_id)
        return response


class DurableBayesianOracle(DurableOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimization that trains no combination twice: a trial is exactly repeatable."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        response = super().populate_space(trial_id)
        if response["values"] is not None and self._duplicate(response["values"]):
            return self._random_populate_space()
        return response


class DurableRandomOracle(DurableOracle, keras_tuner.oracles.RandomSearchOracle):
    """A random search."""


TUNERS: dict[str, Callable[..., DurableOracle]] = {
    "random": DurableRandomOracle,
    "bayesian": DurableBayesianOracle,
    "hyperband": DurableHyperbandOracle,
    "grid": DurableGridOracle,
}


def make_oracle(
    tuner: str,
    hyperparameters: keras_tuner.HyperParameters,
    *,
    max_trials: int | None,
    max_epochs: int,
    seed: int,
) -> DurableOracle:
    """Return the oracle of a tuner, with the highest val_accuracy as the objective.

    Raises:
        ValueError: the tuner is unknown.
    """
    if tuner not in TUNERS:
        raise ValueError(f"unknown tuner {tuner!r}; the tuners are {', '.join(TUNERS)}")
    options: dict[str, Any] = {"max_epochs": max_epochs} if tuner == "hyperband" else {}
    if tuner != "hyperband":
        options["max_trials"] = max_trials or 1_000_000
    oracle = TUNERS[tuner](
        objective=keras_tuner.Objective("val_accuracy", "max"),
        hyperparameters=hyperparameters,
        allow_new_entries=False,
        seed=seed + 1,  # keras-tuner takes 0 for no seed
        # The search goes on after trials that fail.
        max_consecutive_failed_trials=1_000_000,
        **options,
    )
    oracle.max_trials = max_trials
    oracle.verbose = 0
    return oracle


@contextmanager
def alive(folder: Path, tuner_id: str) -> Iterator[None]:
    """Show the chief that this worker runs, and when it leaves, by a file in the common folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / tuner_id
    stop = threading.Event()

    def write_signs() -> None:
        while not stop.is_set():
            write_atomically(path, lambda file: file.write_text(str(time.time_ns())))
            stop.wait(_SIGN_INTERVAL)

    thread = threading.Thread(target=write_signs, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        write_atomically(path, lambda file: file.write_text("gone"))


def serve(
    oracle: DurableOracle,
    address: str,
    folder: Path,
    *,
    worker_timeout: float,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Be the chief: give out trials until all are done and every worker has left.

    Args:
        oracle: An oracle from `make_oracle`.
        address: HOST:PORT to listen on.
        folder: The folder of the workers' signs of life (`alive`).
        worker_timeout: Seconds without a new sign of life after which a worker's trial goes to
            another worker.
        tick: Called every second.

    Raises:
        OSError: the address cannot be listened on.
    """
    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

    # The messages, the servicer and the workers' client are keras-tuner's. This loop is not,
    # because start_server of keras-tuner 1.4.8 does not suffice: it waits without end for a worker
    # that died, gives the trial of that worker to nobody, and knows no budget.
    service = OracleServicer(oracle)
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        protos.get_service_grpc().add_OracleServicer_to_server(service, server)
        try:
            server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"the chief cannot listen on {address}: {error}") from error
        server.start()
        try:
            last_signs: dict[str, tuple[str, float]] = {}  # worker -> sign, time it was new
            while not ((service.stop_triggered or oracle.over()) and oracle.idle()):
                time.sleep(1)
                tick()
                for tuner_id in {*oracle.tuner_ids, *oracle.ongoing_trials}:
                    sign = _read(folder / tuner_id)
                    now = time.monotonic()
                    if tuner_id not in last_signs or last_signs[tuner_id][0] != sign:
                        last_signs[tuner_id] = sign, now
                    if sign == "gone" or now - last_signs[tuner_id][1] > worker_timeout:
                        oracle.forget(tuner_id)
                        last_signs.pop(tuner_id)
        finally:
            server.stop(grace=5).wait()


@contextmanager
def quiet_keras_tuner() -> Iterator[None]:
    """Silence what keras-tuner 1.4 prints and warns of.

    keras-tuner calls deprecated functions of threading, and prints every condition that a message
    to another process holds. Its Gaussian process says when few trials do not determine it.
    """
    conditions = sys.modules.get("keras_tuner.src.engine.conditions")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(currentThread|getName)\(\) is deprecated")
        warnings.filterwarnings("ignore", message=r"The optimal value found|lbfgs failed to conver")
        if conditions is not None:
            vars(conditions)["print"] = lambda *_: None
        try:
            yield
        finally:
            if conditions is not None:
                del vars(conditions)["print"]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""

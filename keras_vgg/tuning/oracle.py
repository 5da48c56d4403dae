"""keras-tuner's oracles, made to survive a kill at any moment, and their service for workers."""

from __future__ import annotations

import json
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial

from keras_vgg.files import write_atomically, write_json

TUNERS = {
    "random": keras_tuner.oracles.RandomSearchOracle,
    "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    "hyperband": keras_tuner.oracles.HyperbandOracle,
    "grid": keras_tuner.oracles.GridSearchOracle,
}

_BEAT = 2.0  # seconds between two signs of life of a worker


class DurableOracle(keras_tuner.Oracle):
    """What all oracles get: files that are whole, nothing lost or repeated after a kill, an end.

    keras-tuner writes its files in place, and a trial's before its own; a kill in between leaves a
    file that cannot be read, or a trial that nobody will ever run.
    """

    over: Callable[[], bool] = staticmethod(lambda: False)

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        path = Path(self._get_trial_dir(trial.trial_id), "trial.json")
        write_json(path, trial.get_state())

    def reload(self) -> None:
        path = Path(self._get_oracle_fname())
        known = set(json.loads(path.read_text(encoding="utf-8"))["start_order"])
        for file in path.parent.glob("trial_*/trial.json"):
            # Drawn and never begun: the same will be drawn again.
            if file.parent.name.removeprefix("trial_") not in known:
                file.unlink()
        super().reload()

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        if self.over():
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="", status="STOPPED")
        trial = super().create_trial(tuner_id)
        if trial.status == "STOPPED" and self.ongoing_trials:
            # Another worker may yet die, and its trial is then this one's.
            self.tuner_ids.add(tuner_id)
            trial.status = "IDLE"
        return trial

    @keras_tuner.synchronized
    def forget(self, tuner_id: str) -> None:
        """A worker is gone: its trial is the next to be given out."""
        self.tuner_ids.discard(tuner_id)
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
        self.save()

    @keras_tuner.synchronized
    def idle(self) -> bool:
        return not self.ongoing_trials and not self.tuner_ids


def make_oracle(
    tuner: str,
    hyperparameters: keras_tuner.HyperParameters,
    *,
    max_trials: int | None,
    max_epochs: int,
    seed: int,
) -> DurableOracle:
    """The oracle of a tuner, which looks for the highest val_accuracy.

    Raises:
        ValueError: there is no such tuner.
    """
    if tuner not in TUNERS:
        raise ValueError(f"unknown tuner {tuner!r}; the tuners are {', '.join(TUNERS)}")
    options: dict[str, Any] = {"max_epochs": max_epochs} if tuner == "hyperband" else {}
    if tuner != "hyperband":
        options["max_trials"] = max_trials or 1_000_000
    bases: tuple[type, ...] = (DurableOracle, TUNERS[tuner])
    durable: Callable[..., DurableOracle] = type(f"Durable{tuner.title()}", bases, {})
    oracle = durable(
        objective=keras_tuner.Objective("val_accuracy", "max"),
        hyperparameters=hyperparameters,
        allow_new_entries=False,
        seed=seed + 1,  # keras-tuner takes 0 for none
        # A trial that fails is no reason to stop.
        max_consecutive_failed_trials=1_000_000,
        **options,
    )
    oracle.max_trials = max_trials
    oracle.verbose = 0
    return oracle


@contextmanager
def alive(folder: Path, tuner_id: str) -> Iterator[None]:
    """Show the chief, through the search's folder, that this worker lives; and when it leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / tuner_id
    stop = threading.Event()

    def beat() -> None:
        while not stop.is_set():
            write_atomically(path, lambda file: file.write_text(str(time.time_ns())))
            stop.wait(_BEAT)

    thread = threading.Thread(target=beat, daemon=True)
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
    """keras-tuner's chief: give out trials until all are done and every worker has been told so.

    keras-tuner's own waits for ever for a worker that died. Here a worker's trial goes to another
    when no sign of life of it (`alive`) has been seen for `worker_timeout` seconds.

    Args:
        oracle: One of `make_oracle`.
        address: HOST:PORT to listen on.
        folder: Where workers show that they live.
        tick: Called every second.

    Raises:
        OSError: the address cannot be listened on.
    """
    import grpc
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer

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
            seen: dict[str, tuple[str, float]] = {}
            while not ((service.stop_triggered or oracle.over()) and oracle.idle()):
                time.sleep(1)
                tick()
                for tuner_id in {*oracle.tuner_ids, *oracle.ongoing_trials}:
                    sign = _read(folder / tuner_id)
                    now = time.monotonic()
                    if tuner_id not in seen or seen[tuner_id][0] != sign:
                        seen[tuner_id] = sign, now
                    if sign == "gone" or now - seen[tuner_id][1] > worker_timeout:
                        oracle.forget(tuner_id)
                        seen.pop(tuner_id)
        finally:
            server.stop(grace=5).wait()


@contextmanager
def quiet_keras_tuner() -> Iterator[None]:
    """Without the deprecation warnings of what keras-tuner 1.4 calls of threading.

    And without the values of the conditions that are sent to another process, which it prints.
    """
    conditions = sys.modules.get("keras_tuner.src.engine.conditions")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(currentThread|getName)\(\) is deprecated")
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

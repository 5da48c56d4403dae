"""Several processes search together, and one that dies is not missed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import grpc
import keras_tuner
import numpy as np
import pytest
from keras_tuner.src import protos

from keras_vgg.tuning import attempts
from keras_vgg.tuning.oracle import alive, make_oracle, quiet_keras_tuner, serve
from tests import processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_dead_workers_trial_goes_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the protocol: a worker takes a trial and is never heard of again."""
    monkeypatch.setattr("keras_vgg.tuning.oracle._SIGN_INTERVAL", 0.1)
    # The chief looks for signs ten times a second, instead of once.
    clock = SimpleNamespace(
        sleep=lambda seconds: time.sleep(seconds / 10),
        monotonic=time.monotonic,
        time_ns=time.time_ns,
    )
    monkeypatch.setattr("keras_vgg.tuning.oracle.time", clock)
    hp = keras_tuner.HyperParameters()
    hp.Float("learning_rate", 0.01, 0.1)
    hp.Choice("head", ["fc", "gap"])
    with hp.conditional_scope("head", ["fc"]):
        hp.Choice("hidden_units", [64, 128])
    with quiet_keras_tuner():
        oracle = make_oracle("random", hp, max_trials=1, max_epochs=1, seed=0)
        oracle._set_project_dir(str(tmp_path), "s")
        address = f"127.0.0.1:{free_port()}"
        folder = tmp_path / "workers"
        lost = {"worker_timeout": 1.5}
        chief = Thread(target=serve, args=(oracle, address, folder), kwargs=lost)
        chief.start()
        with grpc.insecure_channel(address) as channel:
            stub = protos.get_service_grpc().OracleStub(channel)
            messages = protos.get_service()
            status = protos.get_proto().TrialStatus

            def take(worker: str):
                request = messages.CreateTrialRequest(tuner_id=worker)
                return stub.CreateTrial(request, wait_for_ready=True, timeout=30).trial

            taken = take("dead")
            with alive(folder, "living"):
                # Not STOPPED, though no trial is left: the other has not ended.
                while (again := take("living")).status == status.IDLE:
                    time.sleep(0.05)
                assert again.trial_id == taken.trial_id
                assert again.hyperparameters == taken.hyperparameters
                update = {"trial_id": again.trial_id, "metrics": {"val_accuracy": 0.5}, "step": 0}
                stub.UpdateTrial(messages.UpdateTrialRequest(**update))
                again.status = status.COMPLETED
                stub.EndTrial(messages.EndTrialRequest(trial=again))
                assert take("living").status == status.STOPPED
        chief.join(timeout=60)
    assert not chief.is_alive()
    assert capsys.readouterr().out == ""  # keras-tuner prints the conditions that it sends
    assert [trial.score for trial in oracle.trials.values()] == [0.5]


RECIPE = """
from keras_vgg.recipe import Recipe
RECIPE = Recipe(
    width_multiplier=1 / 16, hidden_units=8, validation_fraction=0.1, test_fraction=0.8,
    batch_size=32, epochs=4, warmup_epochs=0.5,
)
"""


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    command = ["tune", str(tmp_path / "recipe.py"), "--tuner", "hyperband", "--max-trials", "5"]
    command += ["--only", "--space", "learning_rate=0.01:0.1:log", "--workdir"]
    output = tmp_path / "output.txt"
    process = processes.start(output, [*command, str(tmp_path / "whole")])
    process.join()
    assert process.exitcode == 0, output.read_text()
    whole = attempts(tmp_path / "whole")

    def progress() -> dict[Path, int]:
        files = (tmp_path / "killed").glob("**/[a-z]*.[cj]s*")  # .csv and .json, none half-written
        return {file: file.stat().st_mtime_ns for file in files}

    moments = np.random.default_rng(0)
    for kills in range(12):  # at random moments, each after something more was written
        before = progress()
        process = processes.start(output, [*command, str(tmp_path / "killed")])
        while process.is_alive() and progress() == before:
            time.sleep(0.1)
        if kills < 11:
            time.sleep(moments.uniform(0, 4))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
    assert process.exitcode == 0, output.read_text()
    assert kills > 1
    found = attempts(tmp_path / "killed")
    assert [(a.values, a.curve) for a in found] == [(a.values, a.curve) for a in whole]
    best = [(tmp_path / name / "best_recipe.py").read_text() for name in ("whole", "killed")]
    assert best[0].split("import")[1] == best[1].split("import")[1]


@pytest.mark.slow
def test_a_chief_and_two_workers_of_which_one_is_killed(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE)
    workdir = tmp_path / "search"
    command = [sys.executable, "-m", "keras_vgg.cli", "tune", str(tmp_path / "recipe.py")]
    command += ["--workdir", str(workdir), "--tuner", "random", "--max-trials", "4", "--only"]
    command += ["--space", "learning_rate=0.01:0.1:log", "--worker-timeout", "10"]
    port = free_port()

    def start(name: str) -> subprocess.Popen:
        environment = os.environ | {
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(port),
        }
        with (tmp_path / f"{name}.log").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    processes = {name: start(name) for name in ("chief", "worker0", "worker1")}
    try:
        while True:
            state = workdir / "oracle.json"
            ongoing = json.loads(state.read_text())["ongoing_trials"] if state.exists() else {}
            trial = ongoing.get("worker1")
            if trial and (workdir / f"trial_{trial}" / "run" / "metrics.csv").exists():
                break
            assert all(process.poll() is None for process in processes.values())
            time.sleep(0.2)
        processes["worker1"].send_signal(signal.SIGKILL)
        assert processes["worker0"].wait(timeout=300) == 0
        assert processes["chief"].wait(timeout=60) == 0
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    found = attempts(workdir)
    assert [a.state for a in found] == ["done"] * 4
    assert all(len(a.curve) == 4 for a in found)
    assert (workdir / "best_recipe.py").exists()
    assert "best of 4 trials" in (tmp_path / "chief.log").read_text()

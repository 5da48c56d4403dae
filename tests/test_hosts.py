"""Several processes train one network, through the whole path; one that dies does not cost it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import keras
import pytest

from keras_vgg.cli import main
from keras_vgg.fit import Run
from tests.other_backends import UNOPTIMISED

pytest.importorskip("jax", reason="several hosts train on JAX")

FLAGS = (
    "--width-multiplier 0.0625 --hidden-units 8 --validation-fraction 0.1 --test-fraction 0.8 "
    "--batch-size 32 --dropout 0 --learning-rate 0.01 --batch-norm False "
    "--brightness 0.1 --rgb-shift 0.1 --quiet --backend jax"
)


@pytest.fixture(autouse=True, scope="module")
def _quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """XLA optimizes nothing, and what one process compiled, the next ones load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", UNOPTIMISED)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


def start(
    count: int, folder: Path, *flags: str, last: tuple[str, ...] = ()
) -> list[subprocess.Popen]:
    """The processes of a job, or one that is alone; the last has more flags."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("KERAS_BACKEND", None)
    started = []
    for index in range(count):
        command = [sys.executable, "-m", "keras_vgg.cli", "train", "--workdir", str(folder)]
        command += [*FLAGS.split(), *flags]
        if count > 1:
            command += ["--coordinator", f"127.0.0.1:{port}"]
            command += ["--processes", str(count), "--process", str(index)]
        command += last if index == count - 1 else ()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    return started


def end(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def wait_for(folder: Path, pattern: str, processes: list[subprocess.Popen]) -> None:
    while not [*folder.glob(pattern)]:
        assert all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.05)


def assert_same_losses(folder: Path, other: Path) -> None:
    for a, b in zip(Run.open(folder).history, Run.open(other).history, strict=True):
        for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run of one process with these flags, which is trained once."""

    @cache
    def train(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("alone") / "run"
        for status, _, stderr in end(start(1, folder, *flags)):
            assert status == 0, stderr
        return folder

    return train


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_whole_path(
    alone: Callable[..., Path], tmp_path: Path, count: int, capsys: pytest.CaptureFixture
) -> None:
    folder, flags = tmp_path / "run", ("--epochs", "2")
    ended = end(start(count, folder, *flags))
    assert [status for status, *_ in ended] == [0] * count, ended
    # The first speaks for all.
    assert f"{count} cpus, float32, with XLA" in ended[0][1]
    lines = [line for _, stdout, _ in ended[1:] for line in stdout.splitlines()]
    assert [line for line in lines if "[Gloo]" not in line] == []  # which JAX's library says
    assert_same_losses(alone(*flags), folder)
    assert main(["evaluate", str(folder), "--split", "validation"]) == 0
    assert main(["export", str(folder), "--format", "litert", "--tolerance", "100"]) == 0
    assert "litert" in capsys.readouterr().out


@pytest.mark.slow
def test_one_told_to_stop_stops_all_and_they_go_on(
    alone: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    flags = ("--epochs", "2", "--checkpoint-steps", "1")
    # A signal that comes early enough, however slow the machine: the first step takes seconds.
    processes = start(2, folder, *flags)
    wait_for(folder, "recipe.json", processes)
    processes[1].send_signal(signal.SIGTERM)
    ended = end(processes)
    run = Run.open(folder)
    assert [status for status, *_ in ended] == [143, 143], ended
    assert "SIGTERM: kept step" in ended[0][2]
    assert not run.finished
    assert [status for status, *_ in end(start(2, folder, *flags))] == [0, 0]
    assert_same_losses(alone("--epochs", "2"), folder)


@pytest.mark.slow
def test_a_lost_one_ends_the_job_with_a_message_and_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ("--epochs", "200", "--schedule", "constant", "--keep-checkpoints", "200")
    processes = start(2, folder, *flags)
    wait_for(folder, "checkpoints/epoch-000001.npz", processes)
    processes[1].kill()
    (status, _, stderr), _ = end(processes)
    assert status == 2, stderr
    assert "one of the processes of this job is lost" in stderr.splitlines()[-1]
    before = len(Run.open(folder).history)
    processes = start(2, folder, *flags)
    wait_for(folder, f"checkpoints/epoch-{before + 1:06d}.npz", processes)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    ended = end(processes)
    assert "resumed after" in ended[0][1], ended
    assert len(Run.open(folder).history) > before


@pytest.mark.slow
def test_another_recipe_on_one_of_them_ends_all(tmp_path: Path) -> None:
    ended = end(start(2, tmp_path / "run", "--epochs", "2", last=("--epochs", "3")))
    assert [status for status, *_ in ended] == [2, 2], ended
    assert all("the recipe of process 1 is not that of the first" in text for *_, text in ended)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator", "here:1"], "needs the number of processes"),
        (["--coordinator", "here", "--processes", "2", "--process", "0"], "must be HOST:PORT"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "must be in"),
        (["--processes", "2"], "--processes and --process need --coordinator"),
    ],
    ids=str,
)
def test_what_cannot_be(
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")  # refused before JAX is asked
    assert main(["train", "--workdir", str(tmp_path / "run"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_hosts_train_on_jax_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--coordinator", "here:1", "--processes", "2", "--process", "0"]
    assert main(["train", "--workdir", str(tmp_path / "run"), *flags]) == 2
    assert "use --backend jax, or set KERAS_BACKEND=jax" in capsys.readouterr().err

"""A checkpoint is written while training goes on: what waits for it, and where errors go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from keras_vgg.fit import checkpoint
from keras_vgg.fit.background import BackgroundWriter
from keras_vgg.fit.keeping import Keeper
from keras_vgg.run import Run
from tests.test_fit import TINY, compiled


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a function waits for, so that a test decides when it ends."""
    event = threading.Event()
    yield event
    event.set()


def fail() -> None:
    raise OSError("the disk is full")


def test_one_function_at_a_time_and_the_end_waits(gate: threading.Event) -> None:
    ended: list[str] = []
    with BackgroundWriter() as writer:
        writer.start(lambda: (gate.wait(5), ended.append("first")))
        assert ended == []
        writer.require_success()  # it does not wait
        threading.Timer(0.05, gate.set).start()
        writer.start(lambda: ended.append("second"))
        assert ended[:1] == ["first"]
    assert ended == ["first", "second"]


@pytest.mark.parametrize("ask", ["wait", "start", "require_success", "the end"])
def test_an_error_is_raised_once_where_it_is_asked_for(ask: str) -> None:
    writer = BackgroundWriter()
    writer.start(fail)
    while not writer._running.done():
        pass
    question = {
        "wait": writer.wait,
        "start": lambda: writer.start(list),
        "require_success": writer.require_success,
        "the end": lambda: writer.__exit__(None, None, None),
    }[ask]
    with pytest.raises(OSError, match="the disk is full"):
        question()
    writer.wait()


def test_an_error_of_the_thread_does_not_hide_the_first_one() -> None:
    writer = BackgroundWriter()
    writer.start(fail)
    first = ValueError("first")
    with pytest.warns(UserWarning, match="the disk is full"):
        writer.__exit__(ValueError, first, None)  # without an error of its own


def test_a_checkpoint_holds_what_the_model_was_when_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    (tmp_path / "run").mkdir()
    keeper = Keeper(Run(tmp_path / "run", TINY.replace(keep_checkpoints=1)))
    model, save = compiled(TINY), checkpoint.save
    before = [np.array(v) for v in (*model.variables, *model.optimizer.variables)]
    monkeypatch.setattr(checkpoint, "save", lambda *a: (gate.wait(5), save(*a)))
    with keeper.writer:
        keeper.write_checkpoint(model, checkpoint.Progress([{"epoch": 1}]))
        for variable in (*model.variables, *model.optimizer.variables):
            variable.assign(np.array(variable) + 1)
        assert keeper.run.checkpoints == []
        gate.set()
        keeper.write_checkpoint(model, checkpoint.Progress([{"epoch": 1}, {"epoch": 2}]))
        # At most one is on its way, so the first is there.
        assert keeper.run.checkpoints[0].name == "epoch-000001.npz"
        first = keeper.run.checkpoints[0].read_bytes()
    assert [path.name for path in keeper.run.checkpoints] == ["epoch-000002.npz"]
    (tmp_path / "first.npz").write_bytes(first)
    checkpoint.load(tmp_path / "first.npz", model)
    for variable, value in zip((*model.variables, *model.optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_the_newest_checkpoint_of_a_whole_epoch_is_always_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    keeper = Keeper(Run(tmp_path / "run", TINY.replace(keep_checkpoints=1)))
    model, rows = compiled(TINY), [{"epoch": 1}]
    kept = []
    with keeper.writer:
        for progress in (
            checkpoint.Progress(rows),
            checkpoint.Progress(rows, step=1),
            checkpoint.Progress(rows, step=2),
            checkpoint.Progress([*rows, {"epoch": 2}]),
        ):
            keeper.write_checkpoint(model, progress)
            keeper.writer.wait()
            kept.append([path.name for path in keeper.run.checkpoints])
    ends = [checkpoint.file_name(epoch, 0) for epoch in (1, 2)]
    steps = [checkpoint.file_name(1, step) for step in (1, 2)]
    assert kept == [ends[:1], [ends[0], steps[0]], [ends[0], steps[1]], ends[1:]]


def test_a_disk_that_is_full_is_named_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    keeper = Keeper(Run(tmp_path / "run", TINY))

    def full(path: Path, arrays: dict) -> None:
        path.write_bytes(b"as much as there is room for")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoint, "save", full)
    keeper.write_checkpoint(compiled(TINY), checkpoint.Progress([{"epoch": 1}]))
    with pytest.raises(OSError, match=r"epoch-000001.npz cannot be written: .*No space"):
        keeper.write_model(compiled(TINY), 2)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert not keeper.run.model_path.exists()


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("checkpoint_is_written", [True, False])
def test_the_best_model_is_of_an_epoch_that_the_checkpoints_know(
    tmp_path: Path, checkpoint_is_written: bool
) -> None:
    (tmp_path / "run").mkdir()
    model = compiled(TINY)
    keeper = Keeper(Run(tmp_path / "run", TINY))
    with keeper.writer:
        keeper.write_model(model, 1)
        keeper.write_checkpoint(model, checkpoint.Progress([{"epoch": 1}]))
    first = keeper.run.model_path.read_bytes()
    # A kill beside the second epoch's checkpoint: its best model is still apart.
    model.layers[-1].bias.assign_add(np.ones(model.layers[-1].bias.shape))
    keeper.write_model(model, 2)
    assert keeper.run.model_path.read_bytes() == first
    if checkpoint_is_written:
        rows = checkpoint.Progress([{"epoch": 1}, {"epoch": 2}])
        checkpoint.save(
            tmp_path / "run" / "checkpoints" / "epoch-000002.npz", checkpoint.copied(model, rows)
        )
    Keeper(keeper.run).restore(compiled(TINY))
    assert (keeper.run.model_path.read_bytes() != first) == checkpoint_is_written
    assert not list((tmp_path / "run" / "checkpoints").glob("*.keras"))

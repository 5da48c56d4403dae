"""What interrupts a run costs it time and nothing else: kills, signals, a full disk."""

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
from filelock import FileLock

from keras_vgg.cli import main
from keras_vgg.fit import Run, RunInUse, TrainingDiverged, checkpoint, fit
from keras_vgg.fit.background import BackgroundWriter
from keras_vgg.fit.keeping import Keeper
from keras_vgg.fit.stopping import TERMINATED, StopRequest
from tests import processes, test_fit
from tests.test_fit import checkpoint_arrays, compiled

pytestmark = pytest.mark.usefixtures("blank_plots")

# 319 training images in 9 steps an epoch; batch norm and dropout have a state besides the weights.
TINY = test_fit.TINY.replace(batch_norm=True, rgb_shift=0.0, cutmix=1.0)
# For the fast tests: without what is slow to compile.
PLAIN = TINY.replace(batch_norm=False, brightness=0.0, cutmix=0.0)
STEPS = 9
TIMES = {"images_per_second", "seconds"}


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """As a terminal has it: pytest-xdist's workers, and jobs in the background, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(TINY, tmp_path_factory.mktemp("run") / "whole", verbose=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(PLAIN, tmp_path_factory.mktemp("run") / "plain", verbose=0)


def assert_same(run: Run, other: Run) -> None:
    """Bit for bit: weights, momentum, dropout's seeds, records, the selected model."""
    found, expected = checkpoint_arrays(run), checkpoint_arrays(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    for a, b in zip(run.history, other.history, strict=True):
        assert {k: a[k] for k in a.keys() - TIMES} == {k: b[k] for k in b.keys() - TIMES}
    for a, b in zip(run.model().weights, other.model().weights, strict=True):
        np.testing.assert_array_equal(a, b)


class Raises(keras.callbacks.Callback):
    """Sends a signal to this process at one place of one epoch."""

    def __init__(self, number: int, epoch: int, step: int) -> None:
        super().__init__()
        self.number, self.epoch, self.step = number, epoch, step
        self._now = -1

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._now = epoch

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if (self._now, batch + 1) == (self.epoch, self.step):
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("uninterrupted", "number", "epoch", "step"),
    [
        pytest.param("whole", signal.SIGTERM, 0, 1, marks=pytest.mark.slow),
        ("plain", signal.SIGTERM, 1, 4),
        pytest.param("plain", signal.SIGINT, 1, 4, marks=pytest.mark.slow),
        pytest.param("whole", signal.SIGTERM, 1, STEPS, marks=pytest.mark.slow),
    ],
    ids=[
        "the first step",
        "within an epoch",
        "within an epoch, Ctrl-C",
        "the last step, before validation",
    ],
)
def test_a_signal_is_obeyed_when_the_step_is_kept_and_the_run_goes_on_from_it(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    uninterrupted: str,
    number: int,
    epoch: int,
    step: int,
) -> None:
    whole: Run = request.getfixturevalue(uninterrupted)
    capsys.readouterr()
    expected = KeyboardInterrupt if number == signal.SIGINT else SystemExit
    with pytest.raises(expected) as raised:
        fit(whole.recipe, tmp_path / "run", verbose=0, callbacks=[Raises(number, epoch, step)])
    run = Run.open(tmp_path / "run")
    assert [path.name for path in run.checkpoints][-1] == checkpoint.file_name(epoch, step)
    assert len(run.history) == epoch
    assert not run.finished
    said = f"kept step {step} of epoch {epoch + 1} in {run.directory}"
    if number == signal.SIGTERM:
        assert raised.value.code == TERMINATED == 143
        assert capsys.readouterr().err == f"SIGTERM: {said}; repeat the command to resume\n"
    else:
        assert str(raised.value) == said
    assert_same(fit(whole.recipe, run.directory), whole)
    assert all(row["images_per_second"] > 0 for row in run.history)
    assert f"resumed after step {step} of epoch {epoch + 1}" in capsys.readouterr().out


@pytest.mark.slow
def test_within_an_epoch_checkpoints_are_written_by_steps_and_by_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the thread, every checkpoint is there before the next step.
    monkeypatch.setattr(BackgroundWriter, "start", lambda self, write: write())
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            seen.append([path.stem for path in Run.open(tmp_path / "run").checkpoints])

    often = TINY.replace(epochs=1, checkpoint_steps=3, keep_checkpoints=2, warmup_epochs=0)
    run = fit(often, tmp_path / "run", verbose=0, callbacks=[Look()])
    steps = ["epoch-000001-step-00000003", "epoch-000001-step-00000006"]
    assert seen == [[]] * 2 + [steps[:1]] * 3 + [steps] * 4
    # The ninth was kept before validation, and then the epoch.
    assert [path.stem for path in run.checkpoints] == [
        "epoch-000001-step-00000009",
        "epoch-000001",
    ]
    # What is kept of a run does not make it another.
    always = often.replace(checkpoint_steps=0, checkpoint_minutes=0.0, epochs=1)
    assert not always.differences(often)


@pytest.mark.slow
def test_a_damaged_checkpoint_within_an_epoch_falls_back_to_the_one_before(
    whole: Run, tmp_path: Path
) -> None:
    stop = Raises(signal.SIGINT, 1, 5)
    with pytest.raises(KeyboardInterrupt):
        fit(TINY, tmp_path / "run", verbose=0, callbacks=[stop])
    run = Run.open(tmp_path / "run")
    newest = run.checkpoints[-1]
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 255  # one byte, in a file that is as long as it was
    newest.write_bytes(damaged)
    with pytest.warns(UserWarning, match=f"{newest.name} cannot be read, trying an older"):
        fit(TINY, run.directory, verbose=0)
    assert_same(run, whole)


def test_a_checkpoint_that_cannot_be_opened_is_kept(
    plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk may pass; what is damaged stays so."""
    run = Run(tmp_path, PLAIN)
    shutil.copytree(plain.directory / "checkpoints", tmp_path / "checkpoints")
    (newest,) = run.checkpoints[-1:]
    shutil.copy(newest, newest.with_name("epoch-000001.npz"))
    require = checkpoint.require_archive

    def fails(path: Path) -> list[str]:
        if path == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return require(path)

    monkeypatch.setattr(checkpoint, "require_archive", fails)
    with pytest.raises(OSError, match="Input/output error"):
        Keeper(run).restore(compiled(PLAIN))
    assert newest.is_file()


def test_a_run_is_not_ended_without_the_epoch_of_its_best_network(
    plain: Run, tmp_path: Path
) -> None:
    """A run that goes on trains that epoch again."""
    run = Run(tmp_path, PLAIN)
    shutil.copytree(plain.directory / "checkpoints", tmp_path / "checkpoints")
    newest = run.checkpoints[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot be read, .* resume the run instead of ending it"):
        Keeper(run).restore(compiled(PLAIN), ends=True)
    assert newest.is_file()


def test_any_damaged_byte_is_noticed_or_changes_nothing(plain: Run, tmp_path: Path) -> None:
    """A flipped byte, here and there through the file: its directory, its headers, its numbers."""
    model = compiled(PLAIN)
    good = plain.checkpoints[-1].read_bytes()
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(good)
    progress = checkpoint.load(path, model)
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    chosen = np.random.default_rng(0)
    places = [*chosen.integers(len(good), size=20), *range(len(good) - 20, len(good))]
    noticed = 0
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << chosen.integers(8)
        path.write_bytes(damaged)
        try:
            assert checkpoint.load(path, model) == progress
        except ValueError:
            noticed += 1
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value)
    assert noticed > len(places) / 2


@pytest.mark.slow
def test_ruined_weights_are_not_kept_within_an_epoch(tmp_path: Path) -> None:
    class Ruin(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
            if batch == 3:  # the loss of this step is still a number
                self.model.optimizer.learning_rate = float("inf")

    recipe = TINY.replace(checkpoint_steps=1, keep_checkpoints=9)
    with pytest.raises(TrainingDiverged, match="after step 4 of epoch 1"):
        fit(recipe, tmp_path / "run", verbose=0, callbacks=[Ruin()])
    names = [path.name for path in Run.open(tmp_path / "run").checkpoints]
    assert names == [checkpoint.file_name(0, step) for step in (1, 2, 3)]


@pytest.mark.slow
def test_what_a_kill_at_the_very_start_leaves_can_be_begun_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".partial-xyrecipe.json").write_text("half")
    small = TINY.replace(epochs=1, warmup_epochs=0)
    with pytest.raises(OSError, match="nowhere"):
        fit(small.replace(source="folder:nowhere"), folder, verbose=0)
    Run(folder, TINY).write_recipe()  # and nothing else
    assert fit(small, folder, verbose=0).finished


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_the_checkpoints_before(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = checkpoint.save, []

    def full(path: Path, arrays: dict[str, np.ndarray]) -> None:
        if not saved:  # the first epoch
            save(path, arrays)
            saved.append(path)
            return
        path.write_bytes(b"as much as there is room for")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(
            OSError, match=r"epoch-000002.npz cannot be written: .*No space.*before"
        ):
            fit(TINY, tmp_path / "run", verbose=0)
    run = Run.open(tmp_path / "run")
    files = [path.name for path in (run.directory / "checkpoints").iterdir()]
    assert files == ["epoch-000001.npz"]
    assert_same(fit(TINY, run.directory, verbose=0), whole)


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_step(tmp_path: Path) -> None:
    """One step of 316 images: over more, rounding would grow."""
    plain = TINY.replace(
        batch_norm=False,
        dropout=0.0,
        batch_size=316,
        epochs=1,
        warmup_epochs=0.0,
        schedule="constant",
    )
    once = fit(plain, tmp_path / "once", verbose=0)
    parts = fit(plain.replace(gradient_accumulation=4), tmp_path / "parts", verbose=0)
    for a, b in zip(once.model().weights, parts.model().weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=a.path)
    assert once.history[0]["loss"] == pytest.approx(parts.history[0]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_batch_in_parts_is_not_cut_in_two(tmp_path: Path) -> None:
    parts = TINY.replace(gradient_accumulation=4, epochs=1, warmup_epochs=0.0)
    whole = fit(parts, tmp_path / "parts", verbose=0)
    stop = Raises(signal.SIGINT, 0, 18)  # the second part of step 5
    with pytest.raises(KeyboardInterrupt, match="kept step 5 of epoch 1"):
        fit(parts, tmp_path / "run", verbose=0, callbacks=[stop])
    assert_same(fit(parts, tmp_path / "run", verbose=0), whole)


def test_a_run_directory_is_one_processs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(RunInUse, match="is in use"):
        fit(TINY, tmp_path / "run", verbose=0)


@pytest.mark.slow
def test_a_file_without_a_lock_which_a_kill_leaves_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    small = TINY.replace(epochs=1, warmup_epochs=0)
    assert fit(small, tmp_path / "run", verbose=0).finished


def test_the_command_line_says_that_another_trains_there(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert main(["train", "--workdir", str(tmp_path / "run")]) == 2
    assert "is in use: another process is training there" in capsys.readouterr().err


def test_a_second_signal_does_not_wait() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_a_program_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with StopRequest() as stop:
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
            assert not stop.made
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


FLAGS = (
    "--width-multiplier 0.0625 --hidden-units 8 --validation-fraction 0.1 --test-fraction 0.8 "
    "--batch-size 32 --epochs 2 --brightness 0.1 --cutmix 1.0 --checkpoint-steps 2"
)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_ends_as_if_it_had_not_been(whole: Run, tmp_path: Path) -> None:
    """kill -9 through start, steps, checkpoints, epoch ends and export."""
    folder, output = tmp_path / "run", tmp_path / "output.txt"
    train = ["train", "--workdir", str(folder), *FLAGS.split()]
    export = ["export", str(folder), "--format", "saved_model", "--overwrite"]
    chosen = random.Random(0)
    found: list[str] = []
    while len(found) < 24:
        before = Run(folder, TINY)
        newest = [path.name for path in before.checkpoints][-1:]
        process = processes.start(output, train, export)
        # The first as soon as there is something new, for the few steps are soon over. Then a third
        # after a time, which is mostly the start's, and all that only export; the others as soon as
        # there is something new, and a moment.
        if before.finished or (len(found) >= 6 and len(found) % 3 == 0):
            time.sleep(chosen.uniform(0.1, 8))
        else:
            while process.is_alive():
                run = Run(folder, TINY)
                if run.finished or [path.name for path in run.checkpoints][-1:] != newest:
                    break
                time.sleep(0.002)
            if len(found) >= 6:
                time.sleep(chosen.uniform(0, 0.3 if len(found) % 3 == 1 else 4))
        process.kill()
        process.join()
        run = Run(folder, TINY)
        steps = run.checkpoints and "-step-" in run.checkpoints[-1].name
        found.append("finished" if run.finished else "within an epoch" if steps else "at an end")
        if (folder / "export" / "saved_model").exists():
            shutil.rmtree(folder)  # all of it was gone through: once more
    print({what: found.count(what) for what in set(found)})
    assert found.count("within an epoch") >= 3
    process = processes.start(output, train, export)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert_same(Run.open(folder), whole)
    assert (folder / "export" / "saved_model" / "saved_model.pb").is_file()
    assert not [*folder.rglob(".partial-*")]


@pytest.mark.slow
def test_memory_does_not_grow_over_two_thousand_steps(tmp_path: Path) -> None:
    """Of this process, by its steps: 1,277 training images, 8 a step, 159 steps an epoch."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("no /proc on this system")
    seen = []

    class Measure(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            seen.append(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)

    recipe = TINY.replace(batch_size=8, test_fraction=0.2, epochs=16, checkpoint_steps=50)
    fit(recipe, tmp_path / "run", verbose=0, callbacks=[Measure()])
    print([round(megabytes) for megabytes in seen])
    # Two epochs fill the buffers; over the 2,200 steps that follow a leak of a batch a step (98 kB
    # of float32 pixels) would be 216 MB.
    assert seen[-1] - seen[1] < 60


@pytest.mark.slow
def test_a_signal_after_the_last_step_is_obeyed_when_the_run_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    late = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: signal.raise_signal(signal.SIGTERM)
    )
    small = TINY.replace(epochs=1, warmup_epochs=0)
    with pytest.raises(SystemExit) as raised:
        fit(small, tmp_path / "run", verbose=0, callbacks=[late])
    assert raised.value.code == TERMINATED
    assert Run.open(tmp_path / "run").finished
    assert "is finished" in capsys.readouterr().err

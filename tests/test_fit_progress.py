"""What a user sees of training: a line an epoch, the bar, the time left."""

import io
import re
import sys
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from keras_vgg.console import duration
from keras_vgg.fit import TrainingDiverged, fit, learning_rate, progress
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.fit.progress import TrainingProgress
from keras_vgg.fit.timing import Timing, seconds_left
from keras_vgg.fit.verdict import Commonest
from keras_vgg.recipe import Recipe
from tests.test_console import WIDTHS
from tests.test_fit import TINY, fit_interrupted
from tests.test_fit_transfer import FIXED

pytestmark = pytest.mark.usefixtures("blank_plots")

TWO = TINY.replace(epochs=2, batch_norm=False)
LINE = re.compile(
    r"epoch (\d+)/(\d+)  loss (\S+)  accuracy (\S+) %  val_loss (\S+)  val_accuracy (\S+) %  "
    r"(\S+) images/s  lr (\S+)  (\S+) s(?:  (at most )?(\d+:\d+) left)?"
)
ROW = re.compile(
    r" *(\d+)/(\d+) +(\S+) +(\S+) % +(\S+) +(\S+) % +(\S+) +(\S+) +(\S+) *()(\d+:\d+)? *"
)
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def terminal(width):
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, _environ={})


@pytest.fixture(params=[80, pytest.param(120, marks=pytest.mark.slow)])
def screen(request, monkeypatch):
    """A terminal that fit writes to, every step of it."""
    console = terminal(request.param)
    monkeypatch.setattr(progress, "_console", lambda: console)
    monkeypatch.setattr(progress, "REDRAWN", 0.0)
    return console


def lines_on(console):
    """All that was ever written, without colours, line by line."""
    written = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", console.file.getvalue())
    return re.split(r"[\r\n]+", written)


def require_same(found, history, epochs):
    """The lines say of each epoch what its row of metrics.csv says."""
    assert [int(match[1]) for match in found] == [row["epoch"] for row in history]
    for match, row in zip(found, history, strict=True):
        assert int(match[2]) == epochs
        shown = [float(match[i].replace(",", "")) for i in range(3, 10)]
        assert shown[0] == pytest.approx(row["loss"], abs=6e-4)
        assert shown[1] == pytest.approx(100 * row["accuracy"], abs=6e-3)
        assert shown[2] == pytest.approx(row["val_loss"], abs=6e-4)
        assert shown[3] == pytest.approx(100 * row["val_accuracy"], abs=6e-3)
        assert shown[4] == pytest.approx(row["images_per_second"], abs=0.6)
        assert shown[5] == pytest.approx(row["learning_rate"], rel=6e-3)
        assert shown[6] == pytest.approx(row["seconds"], abs=0.6)


# The arithmetic.


def test_seconds_left():
    left = seconds_left(
        steps=30, step_seconds=2.0, epochs=4, steps_per_epoch=100, rest_seconds=10.0, rests=0.5
    )
    assert left == 30 * 2 + 0.5 * 10 + 4 * (100 * 2 + 10)


def take_steps(timing, now, seconds, steps):
    for step in steps:
        now += seconds
        timing.step_ends(now, step)
    return now


def validate(timing, now, seconds, first=None):
    """A validation whose batches take `seconds`, the first `first`."""
    for step in range(timing.validation_steps):
        timing.validation_step_begins(now, step)
        now += first if first and step == 0 else seconds
    timing.validation_ends(now)
    return now


def test_the_first_steps_do_not_count_and_nothing_is_said_of_them():
    timing = Timing(epochs=10, steps=100, validation_steps=20)
    timing.epoch_begins(1000.0, 0)
    now = take_steps(timing, 1000.0, 60.0, [1, 2])
    assert timing.left() is timing.step_seconds is None
    now = take_steps(timing, now, 0.5, [3, 4])
    assert timing.left() is None
    take_steps(timing, now, 0.5, [5])
    assert timing.step_seconds == pytest.approx(0.5)
    # No validation has been measured: its batches are taken for steps.
    assert timing.left() == pytest.approx(95 * 0.5 + 10 + 9 * (100 * 0.5 + 10))


def test_a_resumed_run_has_the_epochs_that_are_to_come():
    timing = Timing(epochs=10, steps=100, validation_steps=20)
    timing.epoch_begins(0.0, 7)
    take_steps(timing, 0.0, 0.5, range(1, 51))
    assert timing.left() == pytest.approx(50 * 0.5 + 10 + 2 * (100 * 0.5 + 10))


def test_validation_and_files_count_but_not_what_only_the_first_validation_costs():
    timing = Timing(epochs=3, steps=10, validation_steps=4)
    timing.epoch_begins(0.0, 0)
    now = take_steps(timing, 0.0, 1.0, range(1, 11))
    now = validate(timing, now, 0.25, first=30.0)
    timing.epoch_ends(now + 2)
    assert timing.left() == pytest.approx(2 * (10 * 1 + 4 * 0.25 + 2))
    timing.epoch_begins(now := now + 2, 1)
    assert timing.left() == pytest.approx(2 * (10 * 1 + 4 * 0.25 + 2))
    now = take_steps(timing, now, 1.0, range(1, 11))
    timing.validation_step_begins(now, 0)
    timing.validation_step_begins(now + 0.25, 1)
    assert timing.left() == pytest.approx(0.75 * 3 + 13)
    # From the second on, what was measured last holds, whole.
    now = validate(timing, now, 0.25, first=5.0)
    timing.epoch_ends(now)
    assert timing.left() == pytest.approx(10 + 5.75)
    timing.epoch_begins(now, 2)
    now = take_steps(timing, now, 1.0, range(1, 11))
    timing.epoch_ends(validate(timing, now, 0.25))
    assert timing.left() == 0


def test_a_step_costs_what_it_did_in_this_epoch_and_the_one_before():
    timing = Timing(epochs=4, steps=10, validation_steps=1)
    now = 0.0
    for epoch, seconds in enumerate([9.0, 1.0, 3.0]):
        timing.epoch_begins(now, epoch)
        now = take_steps(timing, now, seconds, range(1, 11))
        now = validate(timing, now, 1.0)
        timing.epoch_ends(now)
    assert timing.step_seconds == pytest.approx(2.0)
    assert timing.left() == pytest.approx(10 * 2 + 1)


def test_a_validation_of_one_batch_costs_a_step_while_it_is_new():
    timing = Timing(epochs=2, steps=10, validation_steps=1)
    timing.epoch_begins(0.0, 0)
    now = take_steps(timing, 0.0, 1.0, range(1, 11))
    timing.epoch_ends(validate(timing, now, 40.0))
    assert timing.left() == pytest.approx(10 + 1)


def test_epochs_of_one_step_are_measured_from_the_third_on():
    timing = Timing(epochs=5, steps=1, validation_steps=1)
    left = []
    for epoch in range(5):
        timing.epoch_begins(2.0 * epoch, epoch)
        timing.step_ends(2.0 * epoch + 1, 1)
        timing.epoch_ends(validate(timing, 2.0 * epoch + 1, 1.0))
        left.append(timing.left())
    assert left == [None, None, 4.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0:00"), (41.6, "0:42"), (59.9, "1:00"), (600, "10:00"), (3599.7, "1:00:00")),
        *((7985, "2:13:05"), (3 * 86400 + 4 * 3600 + 5, "3 d 4 h")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("changes", "early"),
    [({}, False), ({"early_stopping": 3}, True), ({"schedule": "plateau"}, True)],
    ids=str,
)
def test_at_most_where_training_may_end_early(changes, early):
    assert progress.may_end_early(Recipe(**changes)) is early


# The bar, driven by hand: no network, no clock.


class Drawn:
    """In a Recorder's place; counts how often its learning rate is read."""

    steps_per_epoch = 5004
    first_step = 0

    def __init__(self, recipe):
        self.run = SimpleNamespace(recipe=recipe)
        self.history = []
        self.reads = 0

    @property
    def learning_rate(self):
        self.reads += 1
        return 0.01


def shown_by_hand(monkeypatch, width, **changes):
    """(progress, its clock as a list of one, its recorder) on a terminal of some width."""
    console, now = terminal(width), [0.0]
    monkeypatch.setattr(progress, "_console", lambda: console)
    recorder = Drawn(Recipe(epochs=74, batch_size=256, **changes))
    shown = TrainingProgress(recorder, validation_steps=196, clock=lambda: now[0])
    shown.set_model(SimpleNamespace(stop_training=False))
    return shown, now, recorder


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_says_all_and_fits(width, monkeypatch):
    shown, now, _ = shown_by_hand(monkeypatch, width, schedule="plateau")
    with shown:
        shown.on_epoch_begin(2)
        for step in range(120):
            now[0] += 0.625
            shown.on_train_batch_end(step, {"loss": 2.31, "accuracy": 0.412})
        left = duration(0.625 * (5004 - 120 + 71 * 5004 + 72 * 196))
        lines = lines_on(shown._console)
    assert max(map(cell_len, lines)) <= width
    picture = lines[-1:] if width == 120 else lines[-2:]
    assert picture[0].startswith("epoch 3/74")
    text = " ".join(picture)
    assert "…" not in text
    for part in (
        *("epoch 3/74", "step 120/5004", "410 images/s", "lr 0.01", "loss 2.310"),
        *("accuracy 41.20 %", f"at most {left} left", "━━━"),
    ):
        assert part in text


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_said_of_a_useless_run_is_not_cut(width, monkeypatch):
    shown, _, recorder = shown_by_hand(monkeypatch, width)
    recorder.commonest = Commonest("3", 15 / 145, 145)
    figures = dict.fromkeys(("loss", "accuracy", "val_loss", "images_per_second", "seconds"), 1.0)
    recorder.history = [figures | {"epoch": 1, "val_accuracy": 15 / 145, "learning_rate": 0.01}]
    with shown:
        shown.on_epoch_begin(0)
        shown.on_epoch_end(0)
    lines = lines_on(shown._console)
    assert max(map(cell_len, lines)) <= width
    assert recorder.commonest.line(15 / 145, 1) in " ".join(map(str.strip, lines))


def test_the_bar_says_nothing_of_what_is_not_known_yet(monkeypatch):
    shown, _, recorder = shown_by_hand(monkeypatch, 120)
    with shown:
        shown.on_epoch_begin(0)
        (line,) = [line for line in lines_on(shown._console) if "epoch" in line]
    assert re.fullmatch(r"epoch 1/74  step 0/5004 *━+ *", line)
    assert recorder.reads == 0


def test_the_bar_is_drawn_ten_times_a_second_at_most(monkeypatch):
    shown, now, recorder = shown_by_hand(monkeypatch, 80)
    with shown:
        shown.on_epoch_begin(0)
        for step in range(2000):
            now[0] += 0.001
            shown.on_train_batch_end(step, {"loss": 1.0})
        assert 18 <= recorder.reads <= 21
        assert sum("step" in line for line in lines_on(shown._console)) <= 22


def test_a_resumed_epoch_and_a_batch_in_parts(monkeypatch):
    """Steps 1,000 to 1,120 of an epoch, each of four parts."""
    shown, now, recorder = shown_by_hand(monkeypatch, 120, gradient_accumulation=4)
    recorder.first_step = 1000
    with shown:
        shown.on_epoch_begin(2)
        for part in range(4 * 120):
            now[0] += 0.625 / 4
            shown.on_train_batch_end(part, {"loss": 2.31})
        left = duration(0.625 * (5004 - 1120 + 71 * 5004 + 72 * 196))
        line = lines_on(shown._console)[-1]
    for part in ("epoch 3/74", "step 1120/5004", "410 images/s", f"{left} left"):
        assert part in line


def test_validation_moves_the_bar(monkeypatch):
    shown, now, _ = shown_by_hand(monkeypatch, 80)
    with shown:
        shown.on_epoch_begin(0)
        shown.on_train_batch_end(5003, {"loss": 1.0})
        for step in range(50):
            now[0] += 0.2
            shown.on_test_batch_begin(step)
        assert any("validation 49/196" in line for line in lines_on(shown._console))


# Whole runs.


@pytest.mark.slow
def test_lines_of_a_run(tmp_path, capsys):
    run = fit(TWO, tmp_path / "run", verbose=2)
    printed = capsys.readouterr()
    assert printed.err == ""
    intro = (
        "digits: 319 training, 40 validation images, 10 classes; training images of 8x8 pixels\n"
    )
    assert printed.out.startswith(intro)
    lines = printed.out.splitlines()[2:]
    found = [match for match in map(LINE.fullmatch, lines) if match]
    require_same(found, run.history, epochs=2)
    assert found[0][11] is not None
    assert found[0][10] is None  # nothing ends this run early
    assert found[1][11] is None  # nothing is left


@pytest.mark.slow
def test_stderr_is_no_terminal_then_auto_is_lines_at_once(tmp_path, capsys, monkeypatch):
    """FORCE_COLOR notwithstanding; and a log has the first line while the second epoch runs."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    on_epoch_begin, before = Recorder.on_epoch_begin, []

    class Log(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    def listen(self, epoch, logs=None):
        before.append(log.flushed.count("\nepoch "))
        on_epoch_begin(self, epoch, logs)

    log = Log()
    monkeypatch.setattr(sys, "stdout", log)
    monkeypatch.setattr(Recorder, "on_epoch_begin", listen)
    fit(TWO.replace(early_stopping=5), tmp_path / "run")
    assert before == [0, 1]
    assert "at most" in log.getvalue()
    assert "\x1b" not in log.getvalue()
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_resumed_run_begins_with_the_right_epoch(tmp_path, monkeypatch, capsys):
    fit_interrupted(TINY, tmp_path / "run", 1, monkeypatch)
    capsys.readouterr()
    run = fit(TINY, tmp_path / "run", verbose=2)
    out = capsys.readouterr().out
    require_same([*LINE.finditer(out)], run.history[1:], epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("screen", [80], indirect=True)
def test_verbose_0_prints_nothing(tmp_path, capsys, screen):
    fit(TWO, tmp_path / "run", verbose=0)
    assert capsys.readouterr() == ("", "")
    assert screen.file.getvalue() == ""


def test_a_run_on_a_terminal(tmp_path, capsys, screen):
    run = fit(TWO, tmp_path / "run")
    lines = lines_on(screen)
    assert max(map(cell_len, lines)) <= screen.width
    found = [match for match in map(ROW.fullmatch, lines) if match]
    require_same(found, run.history, epochs=2)
    (headings,) = {line for line in lines if "val_loss" in line}
    assert headings.split() == [
        *("epoch", "loss", "accuracy", "val_loss", "val_accuracy"),
        *("images/s", "lr", "seconds", "left"),
    ]
    # Each step is shown with the learning rate that it had.
    text = " ".join(lines)
    shown = re.findall(r"epoch (\d)/2  step (\d+)/9\b.*?lr (\S+)", text)
    steps = {(int(epoch) - 1) * 9 + int(step) - 1: rate for epoch, step, rate in shown}
    assert len(steps) > 15
    for step, rate in steps.items():
        if (step + 1) % 9:  # after the last, the bar is validation's
            assert float(rate) == pytest.approx(learning_rate(TWO, step, 9), rel=6e-3), step
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("digits: 319 training")
    assert out[1].startswith("vgg11: ")
    assert out[2].startswith("this network is of no use")  # after two epochs
    assert out[2 : 2 + len(run.results["remarks"])] == run.results["remarks"]


@pytest.mark.slow
@pytest.mark.parametrize("screen", [80], indirect=True)
def test_a_head_on_computed_features(tmp_path, screen, capsys):
    base = fit(FIXED.replace(epochs=1), tmp_path / "base", verbose=0)
    recipe = FIXED.replace(init=str(base.directory), freeze_until="all")
    run = fit(recipe, tmp_path / "run")
    assert "features" in capsys.readouterr().out
    found = [match for match in map(ROW.fullmatch, lines_on(screen)) if match]
    require_same(found, run.history, epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize("screen", [80], indirect=True)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, TrainingDiverged])
def test_a_run_that_is_cut_off_leaves_no_live_display(tmp_path, screen, monkeypatch, kind):
    stderr, on_train_batch_end = sys.stderr, Recorder.on_train_batch_end

    def cut(self, batch, logs=None):
        if batch == 5:
            assert screen._live_stack
            assert not screen.file.getvalue().endswith(SHOW_CURSOR)
            raise kind
        on_train_batch_end(self, batch, logs)

    monkeypatch.setattr(Recorder, "on_train_batch_end", cut)
    with pytest.raises(kind):
        fit(TWO, tmp_path / "run")
    assert not screen._live_stack
    assert sys.stderr is stderr
    written = screen.file.getvalue()
    assert written.rindex(SHOW_CURSOR) > written.rindex(HIDE_CURSOR)
    # The last picture stays, and what is written next begins a line.
    assert "step 5/9" in " ".join(lines_on(screen)[-4:])
    assert written.removesuffix(SHOW_CURSOR).endswith("\n")

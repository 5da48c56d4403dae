"""The engine of a long training is the fastest that was timed; nothing is timed for a short one."""

import dataclasses
import io
import json
import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from keras_vgg import hardware
from keras_vgg.fit import distillation, distribution, engine_timing, fit, preparation
from keras_vgg.fit.engine_timing import Speed, measured_engine
from keras_vgg.hardware import Machine, choose_engine
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from tests.test_fit import TINY

RECIPE = Recipe(configuration="D", width_multiplier=0.5, batch_size=128)
AVX2 = Machine("cpu", ("cpu:0",), None)
AMX = Machine("cpu", ("cpu:0",), "bfloat16")
CPUS = Machine("cpu", ("cpu:0", "cpu:1"), "bfloat16")
HOPPER = Machine("gpu", ("gpu:0",), "bfloat16")
LONG = 3_000_000  # images
SPEEDS = [
    Speed("mixed_bfloat16", False, 420.0),
    Speed("float32", False, 235.5),
    Speed("mixed_bfloat16", True, None),
]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """Pretended measurements, and what was asked of each: (batch size, candidates)."""
    asked = []

    def measure(recipe: Recipe, classes: int, candidates: list, images: int) -> list[Speed]:
        asked.append((recipe.batch_size, candidates))
        return SPEEDS

    monkeypatch.setattr(engine_timing, "measure", measure)
    monkeypatch.setenv("KERAS_VGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "own_cores", lambda: 2)
    return asked


def chosen(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, machine: Machine, images: int = LONG
) -> hardware.Engine:
    monkeypatch.setattr(hardware, "find_machine", lambda devices="auto": machine)
    return measured_engine(recipe, choose_engine(recipe, machine), 10, images)


def test_the_fastest_is_chosen_and_its_speed_said(jobs, monkeypatch) -> None:
    engine = chosen(monkeypatch, RECIPE, AMX)
    assert str(engine) == (
        "cpu, mixed_bfloat16, without XLA (measured, images/s: mixed_bfloat16 without XLA 420, "
        "float32 without XLA 236, mixed_bfloat16 with XLA below a third of the best)"
    )
    with_xla = [SPEEDS[0], Speed("float32", True, 9e9)]
    monkeypatch.setattr(engine_timing, "measure", lambda *_: with_xla)
    slower = chosen(monkeypatch, RECIPE.replace(batch_size=64), AMX)
    assert (slower.precision, slower.jit_compile) == ("float32", True)


def test_the_rules_choice_is_timed_first_and_nothing_replaces_it_untimed(
    monkeypatch, tmp_path, capsys
) -> None:
    """As where the limit ends the timing of a large network on a slow processor."""
    monkeypatch.setenv("KERAS_VGG_CACHE", str(tmp_path / "cache"))
    large = Recipe(configuration="D", width_multiplier=1.0, image_size=224, batch_size=32)
    machine = dataclasses.replace(AVX2, xla_is_fast=True)
    monkeypatch.setattr(hardware, "find_machine", lambda devices="auto": machine)
    rule = choose_engine(large, machine)
    assert rule.jit_compile
    asked, found = [], [Speed("float32", False, 0.7)]

    def measure(recipe: Recipe, classes: int, candidates: list, images: int) -> list[Speed]:
        asked.append(candidates)
        return found

    monkeypatch.setattr(engine_timing, "measure", measure)
    for _ in range(2):  # that the timing failed is kept, too
        assert measured_engine(large, rule, 10, LONG, announce=True) == rule
        out = capsys.readouterr().out
        assert "the timing failed, so the rule of docs/devices.md decides" in out
        assert "engines.json" in out
    assert asked == [[("float32", True), ("float32", False)]]
    found = [Speed("float32", True, 0.9)]
    engine = measured_engine(large.replace(batch_size=16), rule, 10, LONG)
    assert str(engine) == "cpu, float32, with XLA (measured, images/s: float32 with XLA 0.9)"


class Clock:
    """A network whose `fit` takes a time of its own, on a clock that stands still otherwise."""

    input_shape = (None, 32, 32, 3)
    optimizer = SimpleNamespace(variables=[])
    variables = (np.zeros(1000, np.float32),)

    def __init__(self, step: float, start: float = 0.0) -> None:
        self.step, self.start, self.now, self.fitted = step, start, 0.0, []

    def fit(self, batches: object, steps_per_epoch: int, **options: object) -> None:
        self.fitted.append(steps_per_epoch)
        self.now += self.start + self.step * steps_per_epoch


def trial_of(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> engine_timing._Trial:
    monkeypatch.setattr(engine_timing, "_network", lambda *_: clock)
    monkeypatch.setattr(engine_timing.time, "perf_counter", lambda: clock.now)
    return engine_timing._Trial(RECIPE.replace(batch_size=64), 10, "float32", jit_compile=False)


def test_a_step_that_takes_long_is_not_repeated(monkeypatch) -> None:
    clock = Clock(step=40.0)
    trial = trial_of(monkeypatch, clock)
    assert trial.first_speed(best=900.0) == 64 / 40
    assert clock.fitted == [1, 1]
    assert trial.speed() == 64 / 40


def test_what_fit_does_before_its_steps_makes_no_candidate_hopeless(monkeypatch) -> None:
    """64 images in 7 ms are 9,143 a second; with 15 ms before one step, 2,909."""
    trial = trial_of(monkeypatch, Clock(step=0.007, start=0.015))
    speed = trial.first_speed(best=9000.0)
    assert speed == pytest.approx(9143, rel=0.02)
    assert trial.speed() == pytest.approx(speed)
    clock = Clock(step=0.007, start=0.015)
    assert trial_of(monkeypatch, clock).first_speed(best=30_000.0) is None
    assert clock.fitted == [1, 1, 3]


def timed(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, list], **job: object) -> list[tuple]:
    """Return what the process yields for candidates whose turns have these speeds."""

    class Trial:
        bytes = 4000

        def __init__(self, recipe: Recipe, classes: int, precision: str, jit_compile: bool) -> None:
            self.precision, self.jit_compile = precision, jit_compile
            self.turns = iter(speeds[precision])

        def first_speed(self, best: float) -> float | None:
            return next(self.turns)

        def speed(self) -> float:
            return next(self.turns)

    monkeypatch.setattr(engine_timing, "_Trial", Trial)
    candidates = [(precision, False) for precision in speeds]
    whole = {"recipe": RECIPE.to_json(), "classes": 10, "candidates": candidates, "images": None}
    rows = engine_timing._timed(whole | job)
    return [(row.precision, row.images_per_second) for row in rows]


def test_the_best_of_two_turns_counts(monkeypatch) -> None:
    """Other work halved the first speed of float32, and the second of bfloat16."""
    speeds = {"float32": [337, 796], "mixed_bfloat16": [600, 300], "a": [None], "float16": [120]}
    rows = timed(monkeypatch, speeds)
    assert rows == [
        ("float32", 337), ("mixed_bfloat16", 600), ("a", None), ("float16", 120),
        ("float32", 796), ("mixed_bfloat16", 300),
    ]  # fmt: skip
    best = engine_timing._fastest([Speed(name, False, speed) for name, speed in rows])
    assert [(speed.precision, speed.images_per_second) for speed in best] == [
        ("float32", 796), ("mixed_bfloat16", 600), ("a", None), ("float16", 120),
    ]  # fmt: skip


def test_networks_that_wait_leave_memory_to_the_others(monkeypatch) -> None:
    speeds = {"float32": [500, 510], "mixed_bfloat16": [600, 610]}
    monkeypatch.setattr(hardware, "available_memory", lambda: 20_000)
    rows = timed(monkeypatch, speeds)
    assert rows == [("float32", 500), ("mixed_bfloat16", 600), ("mixed_bfloat16", 610)]
    monkeypatch.setattr(hardware, "available_memory", lambda: None)
    assert len(timed(monkeypatch, speeds)) == 4


def test_the_others_are_not_timed_if_the_rules_choice_is_fast_enough(monkeypatch, tmp_path) -> None:
    speeds = {"float32": [10, 11], "mixed_bfloat16": [20, 21]}
    assert timed(monkeypatch, speeds, images=11_999) == [("float32", 10)]
    assert len(timed(monkeypatch, speeds, images=12_000)) == 4
    monkeypatch.setenv("KERAS_VGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "own_cores", lambda: 2)
    asked = []

    def measure(recipe: Recipe, classes: int, candidates: list, images: int) -> list[Speed]:
        asked.append(images)
        speeds = [Speed("mixed_bfloat16", False, 1000.0), Speed("float32", False, 2000.0)]
        return speeds[:1] if images < 1_200_000 else speeds

    monkeypatch.setattr(engine_timing, "measure", measure)
    engines = [chosen(monkeypatch, RECIPE, AMX, n) for n in (1_100_000, 1_000_000, LONG, 1_100_000)]
    # A short training does not decide for a long one, but a long one does for short ones.
    assert asked == [1_100_000, LONG]
    assert [engine.precision for engine in engines] == 2 * ["mixed_bfloat16"] + 2 * ["float32"]


@pytest.mark.usefixtures("blank_plots")
def test_a_training_runs_on_the_engine_that_was_measured(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("KERAS_VGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_timing, "_WORTH_SECONDS", 0)
    measured = [Speed("float32", False, 1.0), Speed("mixed_bfloat16", True, 2.0)]
    monkeypatch.setattr(engine_timing, "measure", lambda *_: measured)
    compiled = []
    compile_model = preparation.compile_model

    def compile_without_xla(model: Any, recipe: Recipe, engine: hardware.Engine, *rest: Any) -> Any:
        """XLA itself takes ten times as long as the rest of this test."""
        compiled.append((model.get_layer("block1_conv1").dtype_policy.name, engine.jit_compile))
        return compile_model(model, recipe, dataclasses.replace(engine, jit_compile=False), *rest)

    monkeypatch.setattr(preparation, "compile_model", compile_without_xla)
    recipe = TINY.replace(devices="cpu", epochs=1, batch_norm=False, brightness=0.0, rgb_shift=0.0)
    run = fit(recipe, tmp_path / "run", verbose=0)
    environment = run.read_json("environment.json")
    assert (environment["precision"], environment["jit_compile"]) == ("mixed_bfloat16", True)
    assert environment["engine"].endswith(
        "(measured, images/s: mixed_bfloat16 with XLA 2, float32 without XLA 1)"
    )
    assert compiled == [("mixed_bfloat16", True)]


def test_a_job_with_fewer_cores_than_the_machine_counts_its_own(monkeypatch) -> None:
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert hardware.own_cores() == 1
    monkeypatch.delattr(hardware.os, "sched_getaffinity")
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 64)
    assert hardware.own_cores() == 64


def test_frozen_blocks_and_teachers_cost_a_forward_pass(tiny_run: Run) -> None:
    own = {row.name: row.macs for row in RECIPE.layers(10)}
    base = sum(macs for name, macs in own.items() if name.startswith("block"))
    block5 = sum(macs for name, macs in own.items() if name.startswith("block5"))
    head = sum(own.values()) - base
    assert engine_timing._macs(RECIPE, 10) == 3 * (base + head)
    frozen = RECIPE.replace(init="imagenet", freeze_until="block5")
    assert engine_timing._macs(frozen, 10) == base - block5 + 3 * (block5 + head)
    frozen = frozen.replace(freeze_until="all")
    assert engine_timing._macs(frozen, 10) == base + 3 * head
    taught = RECIPE.replace(teachers=(str(tiny_run.directory),) * 2)
    teacher = sum(row.macs for row in tiny_run.recipe.layers(10))
    assert engine_timing._macs(taught, 10) == 3 * (base + head) + 2 * teacher


def test_one_machine_network_and_batch_is_timed_once(
    jobs, monkeypatch, tmp_path, tiny_run: Run
) -> None:
    first = chosen(monkeypatch, RECIPE, AMX)
    assert chosen(monkeypatch, RECIPE.replace(epochs=7, learning_rate=0.3), AMX) == first
    assert len(jobs) == 1
    others = [
        RECIPE.replace(batch_size=64),
        RECIPE.replace(gradient_accumulation=2),
        RECIPE.replace(width_multiplier=0.75),
        RECIPE.replace(head="gap"),
        RECIPE.replace(freeze_until="block2", init="imagenet"),
        RECIPE.replace(freeze_until="all", init="imagenet"),  # with random crops
        RECIPE.replace(optimizer="muon", learning_rate=0.001),
        RECIPE.replace(ema_momentum=0.9),
        RECIPE.replace(teachers=(str(tiny_run.directory),)),
        RECIPE.replace(teachers=(str(tiny_run.directory),) * 2),
    ]
    for recipe in others:
        chosen(monkeypatch, recipe, AMX)
    assert len(jobs) == 1 + len(others)
    for name in ("another processor", "a third one"):
        monkeypatch.setattr(hardware, "processor_name", lambda name=name: name)
        chosen(monkeypatch, RECIPE, AMX)
    assert len(jobs) == 3 + len(others)
    monkeypatch.setattr(engine_timing, "package_versions", lambda names: {"keras": "9.9"})
    chosen(monkeypatch, RECIPE, AMX)
    assert len(jobs) == 4 + len(others)
    for variable, value in (("TF_ENABLE_ONEDNN_OPTS", "no"), ("ONEDNN_MAX_CPU_ISA", "AVX2")):
        monkeypatch.setenv(variable, value)  # oneDNN computes otherwise, or not at all
        chosen(monkeypatch, RECIPE, AMX)
    assert len(jobs) == 6 + len(others)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"KEY": 3}', '{"KEY": [{"precision": "float32"}]}']
)
def test_a_cache_that_cannot_be_read_is_written_anew(jobs, monkeypatch, tmp_path, content) -> None:
    file = tmp_path / "cache" / "engines.json"
    file.parent.mkdir()
    candidates = [("mixed_bfloat16", False), ("float32", False)]
    candidates += [("mixed_bfloat16", True), ("float32", True)]
    key = engine_timing._key(RECIPE, 10, candidates)
    file.write_text(content.replace("KEY", key))
    assert chosen(monkeypatch, RECIPE, AMX).precision == "mixed_bfloat16"
    assert json.loads(file.read_text())[key] == [dataclasses.asdict(speed) for speed in SPEEDS]


@pytest.mark.parametrize(
    ("recipe", "machine", "images"),
    [
        (RECIPE, AMX, 40_000),  # a minute of training
        (RECIPE.replace(precision="float32", jit="off"), AMX, LONG),
        (RECIPE.replace(precision="float32", jit="on"), AVX2, LONG),
        (
            RECIPE.replace(
                freeze_until="all", init="imagenet", train_scale=(32, 32), eval_scale=32
            ),
            AMX,
            LONG,
        ),
        (RECIPE.replace(devices="2"), CPUS, LONG),
        (RECIPE, HOPPER, LONG),
    ],
    ids=["short", "pinned", "pinned on", "kept features", "several devices", "gpu"],
)
def test_nothing_is_timed(jobs, monkeypatch, recipe, machine, images) -> None:
    assert chosen(monkeypatch, recipe, machine, images) == choose_engine(recipe, machine)
    assert jobs == []


def test_what_a_recipe_states_is_not_chosen(jobs, monkeypatch) -> None:
    chosen(monkeypatch, RECIPE.replace(precision="float32"), AMX)
    chosen(monkeypatch, RECIPE.replace(jit="off"), AMX)
    chosen(monkeypatch, RECIPE.replace(batch_size=64), AVX2)
    assert [candidates for _, candidates in jobs] == [
        [("float32", False), ("float32", True)],
        [("mixed_bfloat16", False), ("float32", False)],
        [("float32", False), ("float32", True)],
    ]


def test_a_measurement_that_fails_leaves_the_rule_and_says_so(jobs, monkeypatch, capsys) -> None:
    monkeypatch.setattr(engine_timing, "measure", lambda *_: [])
    monkeypatch.setattr(hardware, "find_machine", lambda devices="auto": AMX)
    rule = choose_engine(RECIPE, AMX)
    assert measured_engine(RECIPE, rule, 10, LONG, announce=True) == rule
    assert "the timing failed" in capsys.readouterr().out


def test_lines_of_a_process_that_was_ended_count(monkeypatch) -> None:
    rows = [json.dumps(dataclasses.asdict(speed)) for speed in SPEEDS[:2]]
    ended = []

    class Process:
        def __init__(self, command: list, stdout, **options: object) -> None:
            stdout.write("\n".join([*rows, '{"precision": "flo']))
            self.stdin = io.StringIO()

        def __enter__(self) -> "Process":
            return self

        def __exit__(self, *error: object) -> None:
            self.kill()

        def wait(self, timeout: float) -> None:
            assert not self.stdin.closed  # The process ends when the pipe is closed.
            assert json.loads(self.stdin.getvalue())["images"] == LONG
            raise subprocess.TimeoutExpired([], timeout)

        def kill(self) -> None:
            ended.append(self)

    monkeypatch.setattr(engine_timing.subprocess, "Popen", Process)
    assert engine_timing.measure(RECIPE, 10, [("float32", False)], LONG) == SPEEDS[:2]
    assert ended


def test_the_process_ends_with_the_one_that_started_it(monkeypatch) -> None:
    statuses = []
    monkeypatch.setattr(engine_timing.os, "_exit", statuses.append)
    pipe, parents_end = os.pipe()
    watch = threading.Thread(target=engine_timing._end_with, args=[pipe])
    watch.start()
    assert statuses == []
    os.close(parents_end)  # as the system does when the parent ends, for whatever reason
    watch.join(60)
    os.close(pipe)
    assert statuses == [1]


@pytest.mark.slow
def test_a_partly_frozen_network_with_a_teacher_is_timed_on_its_devices(
    tiny_run: Run, monkeypatch
) -> None:
    tiny = Recipe(
        width_multiplier=1 / 16,
        head="gap",
        batch_size=2,
        init="imagenet",
        freeze_until="block5",
        teachers=(str(tiny_run.directory),),
        devices="cpu",
    )
    taught, scopes = [], []
    teach, scope = distillation.teach, distribution.scope
    monkeypatch.setattr(
        distillation, "teach", lambda *arguments: (taught.append(arguments[1]), teach(*arguments))
    )
    monkeypatch.setattr(
        distribution, "scope", lambda engine: (scopes.append(engine.devices), scope(engine))[1]
    )
    speed = engine_timing._Trial(tiny, 10, "float32", jit_compile=False).first_speed(best=0.0)
    assert speed
    assert [[t.run.directory for t in teachers] for teachers in taught] == [[tiny_run.directory]]
    assert set(scopes) == {("cpu:0",)}


@pytest.mark.slow
def test_this_machine_is_timed() -> None:
    tiny = Recipe(width_multiplier=1 / 16, hidden_units=8, batch_size=16)
    speeds = engine_timing.measure(tiny, 10, [("float32", False), ("float32", True)])
    assert [(speed.precision, speed.jit_compile) for speed in speeds] == [
        ("float32", False),
        ("float32", True),
    ]
    assert max(speed.images_per_second or 0 for speed in speeds) > 0

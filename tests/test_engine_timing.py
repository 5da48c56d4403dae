"""The engine of a long training is the fastest that was timed; nothing is timed for a short one."""

import dataclasses
import json
from pathlib import Path

import pytest

from keras_vgg import hardware
from keras_vgg.fit import engine_timing
from keras_vgg.fit.engine_timing import Speed, measured_engine
from keras_vgg.hardware import Machine, choose_engine
from keras_vgg.recipe import Recipe

RECIPE = Recipe(configuration="D", width_multiplier=0.5, batch_size=128)
AVX2 = Machine("cpu", ("cpu:0",), None)
AMX = Machine("cpu", ("cpu:0",), "bfloat16")
CPUS = Machine("cpu", ("cpu:0", "cpu:1"), "bfloat16")
HOPPER = Machine("gpu", ("gpu:0",), "bfloat16")
LONG = 3_000_000  # images
SPEEDS = [
    Speed("mixed_bfloat16", False, 420.0),
    Speed("float32", False, 235.5),
    Speed("mixed_bfloat16", True, 113.0),
]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """Pretended measurements, and what was asked of each: (batch size, candidates)."""
    asked = []

    def measure(recipe: Recipe, classes: int, candidates: list) -> list[Speed]:
        asked.append((recipe.batch_size, candidates))
        return SPEEDS

    monkeypatch.setattr(engine_timing, "measure", measure)
    monkeypatch.setenv("KERAS_VGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_timing.os, "cpu_count", lambda: 2)
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
        "float32 without XLA 236, mixed_bfloat16 with XLA 113)"
    )
    monkeypatch.setattr(engine_timing, "measure", lambda *_: [SPEEDS[0], Speed("float32", 1, 9e9)])
    slower = chosen(monkeypatch, RECIPE.replace(batch_size=64), AMX)
    assert (slower.precision, slower.jit_compile) == ("float32", True)


def test_one_machine_network_and_batch_is_timed_once(jobs, monkeypatch, tmp_path) -> None:
    first = chosen(monkeypatch, RECIPE, AMX)
    assert chosen(monkeypatch, RECIPE.replace(epochs=7, learning_rate=0.3), AMX) == first
    assert len(jobs) == 1
    others = [
        RECIPE.replace(batch_size=64),
        RECIPE.replace(gradient_accumulation=2),
        RECIPE.replace(width_multiplier=0.75),
        RECIPE.replace(head="gap"),
        RECIPE.replace(freeze_until="block2", init="imagenet"),
    ]
    for recipe in others:
        chosen(monkeypatch, recipe, AMX)
    assert len(jobs) == 1 + len(others)
    monkeypatch.setattr(hardware, "processor_name", lambda: "another processor")
    chosen(monkeypatch, RECIPE, AMX)
    assert len(jobs) == 2 + len(others)


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
        (RECIPE.replace(freeze_until="all", init="imagenet"), AMX, LONG),
        (RECIPE.replace(devices="2"), CPUS, LONG),
        (RECIPE, HOPPER, LONG),
    ],
    ids=["short", "pinned", "pinned on", "frozen", "several devices", "gpu"],
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
    def run(command: list, stdout, **options: object) -> None:
        stdout.write(json.dumps(dataclasses.asdict(SPEEDS[0])) + '\n{"precision": "flo')
        raise engine_timing.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(engine_timing.subprocess, "run", run)
    assert engine_timing.measure(RECIPE, 10, [("float32", False)]) == SPEEDS[:1]


def test_a_partly_frozen_network_is_timed() -> None:
    tiny = Recipe(
        width_multiplier=1 / 16, head="gap", batch_size=2, init="imagenet", freeze_until="block5"
    )
    speed = engine_timing._speed(tiny, 2, "float32", jit_compile=False, best=1e9)
    assert speed > 0


@pytest.mark.slow
def test_this_machine_is_timed() -> None:
    tiny = Recipe(width_multiplier=1 / 16, hidden_units=8, batch_size=16)
    speeds = engine_timing.measure(tiny, 10, [("float32", False), ("float32", True)])
    assert [(speed.precision, speed.jit_compile) for speed in speeds] == [
        ("float32", False),
        ("float32", True),
    ]
    assert min(speed.images_per_second for speed in speeds) > 0

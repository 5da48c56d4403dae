"""The engine of a long training is the fastest that was timed; nothing is timed for a short one."""

import dataclasses
import json
from pathlib import Path

import pytest

from keras_vgg import hardware
from keras_vgg.fit import distillation, distribution, engine_timing
from keras_vgg.fit.engine_timing import Speed, measured_engine
from keras_vgg.hardware import Machine, choose_engine
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run

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
    monkeypatch.setattr(engine_timing, "_cores", lambda: 2)
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

    def measure(recipe: Recipe, classes: int, candidates: list) -> list[Speed]:
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


def test_a_step_that_takes_long_is_not_repeated(monkeypatch) -> None:
    class Slow:
        input_shape = (None, 32, 32, 3)
        now, fitted = 0.0, 0

        def fit(self, batches: object, steps_per_epoch: int, **options: object) -> None:
            self.fitted += steps_per_epoch
            self.now += 40.0 * steps_per_epoch

    model = Slow()
    monkeypatch.setattr(engine_timing.time, "perf_counter", lambda: model.now)
    assert engine_timing._speed_of(model, 32, 10, best=0.0) == 32 / 40  # pyright: ignore
    assert model.fitted == 2


def test_a_job_with_fewer_cores_than_the_machine_counts_its_own(monkeypatch) -> None:
    monkeypatch.setattr(engine_timing.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert engine_timing._cores() == 1
    monkeypatch.delattr(engine_timing.os, "sched_getaffinity")
    monkeypatch.setattr(engine_timing.os, "cpu_count", lambda: 64)
    assert engine_timing._cores() == 64


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
    def run(command: list, stdout, **options: object) -> None:
        stdout.write(json.dumps(dataclasses.asdict(SPEEDS[0])) + '\n{"precision": "flo')
        raise engine_timing.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(engine_timing.subprocess, "run", run)
    assert engine_timing.measure(RECIPE, 10, [("float32", False)]) == SPEEDS[:1]


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
    speed = engine_timing._speed(tiny, 10, "float32", jit_compile=False, best=1e9)
    assert speed > 0
    assert [[t.run.directory for t in teachers] for teachers in taught] == [[tiny_run.directory]]
    assert scopes == [("cpu:0",)]


@pytest.mark.slow
def test_this_machine_is_timed() -> None:
    tiny = Recipe(width_multiplier=1 / 16, hidden_units=8, batch_size=16)
    speeds = engine_timing.measure(tiny, 10, [("float32", False), ("float32", True)])
    assert [(speed.precision, speed.jit_compile) for speed in speeds] == [
        ("float32", False),
        ("float32", True),
    ]
    assert min(speed.images_per_second for speed in speeds) > 0

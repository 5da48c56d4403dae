"""Choose precision and XLA on a CPU by timing them, for a training that is long enough.

Which is the fastest depends on the processor, the network and the batch: on one processor with
bfloat16, VGG-16 trains 1.7 times as fast in it as in float32; on another, 0.6 times as fast. So the
candidates train this network on random images for some seconds each, in a process of their own, the
rule's choice first. The user's cache keeps the speeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import architecture, data, hardware, transfer
from keras_vgg.backend import backend_name, is_jax
from keras_vgg.files import cache_folder, sha256_of, write_json
from keras_vgg.fit import distillation, distribution, frozen
from keras_vgg.fit.model import build_model, compile_model
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.versions import package_versions

# A measurement takes one to four minutes. To make a shorter training faster is not worth that.
_WORTH_SECONDS = 1200.0
_OPERATIONS_A_SECOND = 5e10  # of one core, for the estimate of a training's time
_LIMIT_SECONDS = 240.0  # for all candidates
_TIMED_SECONDS = 2.0  # for the steps of one candidate, but for one step that takes longer
_HOPELESS = 0.5  # share of the best speed below which a candidate is timed no further
_FIELDS = ("precision", "jit_compile", "images_per_second")


@dataclasses.dataclass(frozen=True)
class Speed:
    """What one precision and compiler reached: training images a second."""

    precision: str
    jit_compile: bool
    images_per_second: float

    def __str__(self) -> str:
        xla = "with XLA" if self.jit_compile else "without XLA"
        return f"{self.precision} {xla} {self.images_per_second:.3g}"


def measured_engine(
    recipe: Recipe, engine: hardware.Engine, classes: int, images: int, announce: bool = False
) -> hardware.Engine:
    """Return the engine with the precision and the compiler that train this recipe fastest.

    The engine stays as it is if there is nothing to choose, if the training is expected to take
    less than 20 minutes, on accelerators and on several devices or hosts, and if the measurement
    ends without the speed of this engine. The expectation counts 50 billion operations a second for
    each core.

    Args:
        recipe: The recipe. Fields other than "auto" are not chosen. Its teachers are finished runs.
        engine: The choice of `hardware.choose_engine`.
        classes: The number of classes.
        images: The number of images that the training sees, over all epochs.
        announce: Print a line before a measurement begins.
    """
    if not engine.devices[0].startswith("cpu") or len(engine.devices) > 1:
        return engine
    machine = hardware.find_machine(recipe.devices)
    candidates = candidates_of(recipe, machine)
    if machine.hosts > 1 or len(candidates) < 2 or not _is_worth(recipe, classes, images):
        return engine
    rule = (engine.precision, engine.jit_compile)
    candidates.sort(key=lambda candidate: candidate != rule)
    key, file = _key(recipe, classes, candidates), cache_folder() / "engines.json"
    known = _read(file)
    speeds = _speeds(known.get(key))
    if speeds is None:
        if announce:
            print(
                "timing the precisions for this network and batch, once on this machine", flush=True
            )
        speeds = measure(recipe, classes, candidates)
        if rule not in [(speed.precision, speed.jit_compile) for speed in speeds]:
            speeds = []  # Nothing shows that the others are faster than the rule's choice.
        with contextlib.suppress(OSError):  # the cache is a convenience
            write_json(file, known | {key: [dataclasses.asdict(speed) for speed in speeds]})
    if not speeds:
        if announce:
            print(
                "the timing failed, so the rule of docs/devices.md decides; to time again, delete "
                f"{file}",
                flush=True,
            )
        return engine
    ranked = sorted(speeds, key=lambda speed: -speed.images_per_second)
    why = f"measured, images/s: {', '.join(map(str, ranked))}"
    best = ranked[0]
    return hardware.Engine(engine.devices, best.precision, best.jit_compile, (why,))


def candidates_of(recipe: Recipe, machine: hardware.Machine) -> list[tuple[str, bool]]:
    """Return the pairs (precision, XLA) that the recipe leaves open, the likely best one first."""
    halves = [f"mixed_{machine.half}"] if machine.half else []
    precisions = [*halves, "float32"] if machine.half_is_fast else ["float32", *halves]
    if recipe.precision != "auto":
        precisions = [recipe.precision]
    compiled = {"on": [True], "off": [False], "auto": [False, True]}[recipe.jit]
    if is_jax():
        # Without XLA, Keras on JAX runs operation by operation.
        compiled = [recipe.jit != "off"]
    return [(precision, jit) for jit in compiled for precision in precisions]


def _is_worth(recipe: Recipe, classes: int, images: int) -> bool:
    if frozen.keeps_features(recipe):  # the frozen part is computed once
        return False
    operations = 2 * _macs(recipe, classes) * images  # a multiplication and an addition
    return operations >= _WORTH_SECONDS * _OPERATIONS_A_SECOND * _cores()


def _macs(recipe: Recipe, classes: int) -> int:
    """Return the multiply-accumulates that training takes for one image.

    The backward pass takes twice as many as the forward pass. Frozen blocks and teachers have no
    backward pass.
    """
    trained_from = {"none": "block1", "all": "block6"}.get(recipe.freeze_until, recipe.freeze_until)
    own = sum((1 if row.name < trained_from else 3) * row.macs for row in recipe.layers(classes))
    teachers = (Run.open(directory).recipe for directory in recipe.teachers)
    return own + sum(architecture.totals(teacher.layers(classes)).macs for teacher in teachers)


def _cores() -> int:
    """Return how many cores this process may use: a job may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _key(recipe: Recipe, classes: int, candidates: Sequence[tuple[str, bool]]) -> str:
    """Return a digest of what the speeds depend on: machine, network, step, batch and versions."""
    teachers = [Run.open(directory).model_path for directory in recipe.teachers]
    facts = {
        "processor": [platform.machine(), hardware.processor_name(), _cores()],
        "network": [recipe.configuration, recipe.network_options(), classes, recipe.freeze_until],
        "step": [recipe.optimizer, bool(recipe.ema_momentum), *map(sha256_of, teachers)],
        "batch": [recipe.batch_size, recipe.gradient_accumulation],
        "candidates": list(candidates),
        "versions": package_versions([*{"keras", "tensorflow", backend_name()}]),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _read(file: Any) -> dict[str, Any]:
    """Return the cache's content; an empty dictionary if there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _speeds(rows: Any) -> list[Speed] | None:
    """Return the speeds that the cache or the process states; None if they are not whole."""
    try:
        return [Speed(*(row[name] for name in _FIELDS)) for row in rows]
    except (TypeError, LookupError):
        return None


def measure(recipe: Recipe, classes: int, candidates: Sequence[tuple[str, bool]]) -> list[Speed]:
    """Time the candidates in a new process; those that end within the limit count."""
    job = {"recipe": recipe.to_json(), "classes": classes, "candidates": list(candidates)}
    environment = os.environ | {"KERAS_BACKEND": backend_name()}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(
                [sys.executable, "-m", __name__],
                input=json.dumps(job),
                stdout=output,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
                timeout=_LIMIT_SECONDS,
                check=False,
            )
        output.seek(0)
        lines = output.read().splitlines()
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that was cut off
            rows.append(json.loads(line))
    return _speeds(rows) or []


def _timed(job: dict[str, Any]) -> Iterator[Speed]:
    """Yield each candidate's speed; the process that times them runs this."""
    recipe, best = Recipe.from_json(job["recipe"]), 0.0
    for precision, jit_compile in job["candidates"]:
        speed = _speed(recipe, job["classes"], precision, jit_compile, best)
        best = max(best, speed)
        yield Speed(precision, jit_compile, speed)


def _speed(recipe: Recipe, classes: int, precision: str, jit_compile: bool, best: float) -> float:
    """Return training images a second, of random images."""
    engine = dataclasses.replace(
        hardware.choose_engine(recipe), precision=precision, jit_compile=jit_compile
    )
    with distribution.scope(engine):
        return _speed_of(_network(recipe, classes, engine), recipe.part_size, classes, best)


def _network(recipe: Recipe, classes: int, engine: hardware.Engine) -> keras.Model:
    """Return the recipe's network with random weights, compiled, with its teachers."""
    first = recipe.replace(
        init=None, init_head="none", initialization="he_normal", freeze_until="none"
    )
    runs = [Run.open(directory) for directory in recipe.teachers]
    several = any(run.several_labels for run in runs)
    statistics = data.ChannelStatistics.unknown()
    model = build_model(first, classes, statistics, engine.precision, several_labels=several)
    transfer.freeze(model, recipe.freeze_until)
    compile_model(model, recipe, engine, several)
    if runs:
        names = runs[0].class_names
        teachers = distillation.load_teachers(recipe.teachers, names, several)
        distillation.teach(model, teachers, recipe, several)
    return model


def _speed_of(model: keras.Model, size: int, classes: int, best: float) -> float:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (size, *model.input_shape[1:]), np.uint8)
    targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, size)]
    batches = data.untuned(tf.data.Dataset.from_tensors((pixels, targets)).repeat())

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)  # pyright: ignore[reportArgumentType]
        return (time.perf_counter() - begin) / steps

    seconds(1)  # traces and compiles
    step = seconds(1)
    if step < _TIMED_SECONDS and size / step > _HOPELESS * best:
        step = seconds(min(max(round(_TIMED_SECONDS / step), 2), 200))
    return size / step


if __name__ == "__main__":
    hardware.prepare_environment()
    for each in _timed(json.load(sys.stdin)):
        print(json.dumps(dataclasses.asdict(each)), flush=True)

"""Choose precision and XLA on a CPU by timing them, for a training that is long enough.

Which is the fastest depends on the processor, the network and the batch: on one processor with
bfloat16, VGG-16 trains 1.7 times as fast in it as in float32; on another, 0.6 times as fast. So the
candidates train this network on random images for some seconds each, in a process of their own, the
rule's choice first, and a second time in a second turn. The user's cache keeps the speeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
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
_TIMED_SECONDS = 2.0  # for the steps of one candidate in a turn, but for one step that takes longer
# Share of the best speed below which a candidate is timed no further. Other work on the machine can
# halve the speed of a few steps.
_HOPELESS = 1 / 3
_WAITING_SHARE = 0.25  # of the free memory, for networks that wait for the second turn
# They decide what oneDNN and XLA compute, and with how many threads.
_SWITCHES = (
    "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "TF_NUM_INTRAOP_THREADS", "XLA_FLAGS",
)  # fmt: skip
_FIELDS = ("precision", "jit_compile", "images_per_second")


@dataclasses.dataclass(frozen=True)
class Speed:
    """What one precision and compiler reached.

    Attributes:
        precision: A Keras dtype policy.
        jit_compile: Whether XLA compiled the training step.
        images_per_second: Training images a second. None: less than a third of the best.
    """

    precision: str
    jit_compile: bool
    images_per_second: float | None

    @property
    def candidate(self) -> tuple[str, bool]:
        return self.precision, self.jit_compile

    def __str__(self) -> str:
        xla = "with XLA" if self.jit_compile else "without XLA"
        speed = self.images_per_second
        reached = "below a third of the best" if speed is None else f"{speed:.3g}"
        return f"{self.precision} {xla} {reached}"


def measured_engine(
    recipe: Recipe, engine: hardware.Engine, classes: int, images: int, announce: bool = False
) -> hardware.Engine:
    """Return the engine with the precision and the compiler that train this recipe fastest.

    The engine stays as it is if there is nothing to choose, if the training is expected to take
    less than 20 minutes, on accelerators and on several devices or hosts, and if the measurement
    ends without the speed of this engine. The expectation counts 50 billion operations a second for
    each core. If this engine, which is timed first, then needs less than 20 minutes, the others are
    not timed.

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
    known, alone = _read(file), f"{key} first"  # the key of what a short training timed
    speeds = _speeds(known.get(key))
    if speeds is None and _is_short(timed_first := _speeds(known.get(alone)), images):
        speeds = timed_first
    if speeds is None:
        if announce:
            print(
                "timing the precisions for this network and batch, once on this machine", flush=True
            )
        speeds = measure(recipe, classes, candidates, images)
        if rule not in [speed.candidate for speed in speeds]:
            speeds = []  # Nothing shows that the others are faster than the rule's choice.
        rows = [dataclasses.asdict(speed) for speed in speeds]
        with contextlib.suppress(OSError):  # the cache is a convenience
            write_json(file, known | {alone if _is_short(speeds, images) else key: rows})
    if not speeds:
        if announce:
            print(
                "the timing failed, so the rule of docs/devices.md decides; to time again, delete "
                f"{file}",
                flush=True,
            )
        return engine
    ranked = sorted(speeds, key=lambda speed: -(speed.images_per_second or 0))
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
    return operations >= _WORTH_SECONDS * _OPERATIONS_A_SECOND * hardware.own_cores()


def _is_short(speeds: Sequence[Speed] | None, images: int | None) -> bool:
    """Return whether the rule's choice alone was timed, and needs little time for the images."""
    if images is None or not speeds or len(speeds) > 1:
        return False
    return images < _WORTH_SECONDS * (speeds[0].images_per_second or 0.0)


def _macs(recipe: Recipe, classes: int) -> int:
    """Return the multiply-accumulates that training takes for one image.

    The backward pass takes twice as many as the forward pass. Frozen blocks and teachers have no
    backward pass.
    """
    trained_from = {"none": "block1", "all": "block6"}.get(recipe.freeze_until, recipe.freeze_until)
    own = sum((1 if row.name < trained_from else 3) * row.macs for row in recipe.layers(classes))
    teachers = (Run.open(directory).recipe for directory in recipe.teachers)
    return own + sum(architecture.totals(teacher.layers(classes)).macs for teacher in teachers)


def _key(recipe: Recipe, classes: int, candidates: Sequence[tuple[str, bool]]) -> str:
    """Return a digest of what the speeds depend on: machine, network, step, batch and versions."""
    teachers = [Run.open(directory).model_path for directory in recipe.teachers]
    facts = {
        "processor": [platform.machine(), hardware.processor_name(), hardware.own_cores()],
        "switches": [os.environ.get(name) for name in _SWITCHES],
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


def measure(
    recipe: Recipe, classes: int, candidates: Sequence[tuple[str, bool]], images: int | None = None
) -> list[Speed]:
    """Time the candidates in a new process; those that end within the limit count.

    Args:
        recipe: The recipe.
        classes: The number of classes.
        candidates: Pairs (precision, XLA).
        images: The number of images that the training sees. The others are not timed if the first
            candidate needs less than 20 minutes for these. None: all are timed.

    Returns:
        The speeds, in the order of the candidates.
    """
    job = {"recipe": recipe.to_json(), "classes": classes, "candidates": list(candidates)}
    job |= {"images": images}
    environment = os.environ | {"KERAS_BACKEND": backend_name()}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        with (
            contextlib.suppress(subprocess.TimeoutExpired, OSError),
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            ) as process,
        ):
            try:
                assert process.stdin is not None
                # The pipe stays open until the end: see `_end_with`.
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                process.wait(_LIMIT_SECONDS)
            finally:
                process.kill()
        output.seek(0)
        lines = output.read().splitlines()
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that was cut off
            rows.append(json.loads(line))
    return _fastest(_speeds(rows) or [])


def _fastest(speeds: Sequence[Speed]) -> list[Speed]:
    """Return each candidate's best speed of all turns; other work can only make one smaller."""
    best: dict[tuple[str, bool], Speed] = {}
    for speed in speeds:
        before = best.setdefault(speed.candidate, speed)
        if (speed.images_per_second or 0) > (before.images_per_second or 0):
            best[speed.candidate] = speed
    return list(best.values())


def _end_with(pipe: int) -> None:
    """End this process when the parent's end closes the pipe, also if the parent was killed."""
    os.read(pipe, 1)  # not from sys.stdin, whose lock would stop the end of the interpreter
    os._exit(1)


def _timed(job: dict[str, Any]) -> Iterator[Speed]:
    """Yield the speeds of both turns; the process that times the candidates runs this.

    Networks that can still be the fastest wait for the second turn, if the memory has room.
    """
    recipe, best = Recipe.from_json(job["recipe"]), 0.0
    waiting: list[tuple[_Trial, float]] = []
    for number, (precision, jit_compile) in enumerate(job["candidates"]):
        trial = _Trial(recipe, job["classes"], precision, jit_compile)
        speed = Speed(precision, jit_compile, trial.first_speed(best))
        yield speed
        if number == 0 and _is_short([speed], job["images"]):
            return
        reached = speed.images_per_second or 0.0
        best = max(best, reached)
        waiting = [row for row in [*waiting, (trial, reached)] if row[1] > _HOPELESS * best]
        room = _WAITING_SHARE * (hardware.available_memory() or math.inf)
        while waiting and sum(waits.bytes for waits, _ in waiting) > room:
            waiting.remove(min(waiting, key=lambda row: row[1]))
        del trial  # one that does not wait leaves the memory
    for trial, _ in waiting:
        yield Speed(trial.precision, trial.jit_compile, trial.speed())


class _Trial:
    """A recipe's network in one precision and compiler, and a batch of random images."""

    def __init__(self, recipe: Recipe, classes: int, precision: str, jit_compile: bool) -> None:
        self.precision, self.jit_compile = precision, jit_compile
        engine = hardware.choose_engine(recipe)
        self._engine = dataclasses.replace(engine, precision=precision, jit_compile=jit_compile)
        self._size, self._steps = recipe.part_size, 1
        with distribution.scope(self._engine):
            self._model = _network(recipe, classes, self._engine)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (self._size, *self._model.input_shape[1:]), np.uint8)
        targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, self._size)]
        self._batches = data.untuned(tf.data.Dataset.from_tensors((pixels, targets)).repeat())

    @property
    def bytes(self) -> int:
        """The memory of the weights and of the optimizer's state."""
        variables = [*self._model.variables, *self._model.optimizer.variables]
        return 4 * sum(math.prod(variable.shape) for variable in variables)

    def first_speed(self, best: float) -> float | None:
        """Return training images a second; None: less than a third of `best`."""
        self._seconds(1)  # traces and compiles
        first = self._seconds(1)
        if first >= _TIMED_SECONDS:
            return self._size / first
        three = self._seconds(3)
        # The difference leaves out what `fit` does before the first step. It may be 0 by chance.
        step = max((three - first) / 2, 1e-9)
        if self._size / step < _HOPELESS * best:
            return None
        self._steps = min(max(round(_TIMED_SECONDS / max(step, three / 3)), 2), 200)
        return self.speed()

    def speed(self) -> float:
        """Return training images a second, once more."""
        return self._size * self._steps / self._seconds(self._steps)

    def _seconds(self, steps: int) -> float:
        begin = time.perf_counter()
        with distribution.scope(self._engine):
            self._model.fit(self._batches, steps_per_epoch=steps, verbose=0, shuffle=False)  # pyright: ignore[reportArgumentType]
        return time.perf_counter() - begin


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


if __name__ == "__main__":
    job_line = sys.stdin.readline()
    threading.Thread(target=_end_with, args=[sys.stdin.fileno()], daemon=True).start()
    # Nothing sets variables of oneDNN here: they are those of the process that trains.
    for each in _timed(json.loads(job_line)):
        print(json.dumps(dataclasses.asdict(each)), flush=True)

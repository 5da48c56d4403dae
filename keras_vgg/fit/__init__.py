"""Training: from a recipe to data and a compiled model, to model.fit, to a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import keras

from keras_vgg import hardware
from keras_vgg.backend import backend_name
from keras_vgg.fit import distribution, hosts
from keras_vgg.fit.callbacks import TrainingDiverged
from keras_vgg.fit.defaults import describe_defaults, recipe_for
from keras_vgg.fit.extension import begin_extension
from keras_vgg.fit.inputs import (
    describe,
    evaluation_transform,
    file_sizes,
    load_source,
    require_same_data,
    training_transform,
)
from keras_vgg.fit.model import build_model, compile_model
from keras_vgg.fit.preparation import memory_error_explained, require_backend
from keras_vgg.fit.rate_finder import find_learning_rate
from keras_vgg.fit.schedule import best_row, learning_rate, plateau_drops
from keras_vgg.fit.training import run_training
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, RunInUse, claim, directory_of_run

__all__ = [
    "Run",
    "RunInUse",
    "TrainingDiverged",
    "best_row",
    "build_model",
    "compile_model",
    "describe",
    "describe_defaults",
    "evaluation_transform",
    "extend",
    "file_sizes",
    "find_learning_rate",
    "finish",
    "fit",
    "learning_rate",
    "load_source",
    "plateau_drops",
    "recipe_for",
    "require_same_data",
    "train",
    "training_transform",
]


def train(
    recipe: Recipe,
    workdir: str | Path,
    verbose: int | str = "auto",
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    """Train a recipe in a run directory, or resume the run in that directory.

    The directory gets recipe.json, environment.json, data.json, metrics.csv, model.keras (the
    best epoch by validation accuracy), checkpoints/, tensorboard/ and at the end results.json.

    A resumed run ends as an uninterrupted one, bit for bit on one CPU. The steps after the last
    checkpoint are trained again. On SIGTERM and Ctrl-C in the main thread, training ends its step
    and writes a checkpoint first; a second signal ends it at once.

    Args:
        recipe: The recipe to train. The run keeps its paths as absolute paths.
        workdir: The run directory: new, empty, or an earlier run of the same recipe.
        verbose: 0: print nothing. 2: print a line an epoch on stdout. "auto" or 1: if stderr is a
            terminal, show a progress bar there and a row an epoch above the bar; otherwise as 2.
        callbacks: Called after the run's own callbacks, so an epoch's model.keras and metrics.csv
            are written when these callbacks see its end; its checkpoint may still be on its way. A
            resume does not restore the state of these callbacks. The recipe decides the learning
            rate of each step, so callbacks of Keras that set it are refused.

    Returns:
        The finished run.

    Raises:
        ValueError, OSError: the recipe, its data or the directory cannot be used. A run that had
            not begun leaves no files; a run that fails in its first epoch can begin again.
        RunInUse: another process is training in the directory (an OSError).
        SystemExit: after SIGTERM, with status 143.
        TrainingDiverged: the loss or a weight became NaN.
        MemoryError: the device has too little memory for the network and its batches.
    """
    return _train(recipe.with_absolute_paths(), workdir, verbose, callbacks)


fit = train
"""The earlier name of `train`."""


def extend(
    workdir: str | Path,
    epochs: int,
    *,
    learning_rate: float | None = None,
    verbose: int | str = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    """Train a finished run for more epochs, and keep the best epoch of all.

    The recipe's schedule begins again from `learning_rate`, without warm-up, and ends with the last
    new epoch (a warm restart). Weights and momentum are those at the end of the run, so the result
    is that of one training with a recipe that has this restart (`Recipe.restart_epochs`), bit for
    bit on one CPU. recipe.json gets the new epochs and the restart, and metrics.csv goes on. The
    recipe and the results so far go to extensions.json; confusion matrices are removed.

    Call it again to resume an extension that was interrupted.

    Args:
        workdir: The directory of a finished run.
        epochs: How many epochs more.
        learning_rate: Where the schedule begins again. None: a tenth of the recipe's.
        verbose, callbacks: As `train`.

    Raises:
        ValueError, OSError: as `train`; the run has not finished, or has no checkpoints.
    """
    _require_callbacks_with_effect(callbacks)  # before the results are put aside
    with hosts.ended_together():
        recipe, lines = _on_first_host(partial(begin_extension, workdir, epochs, learning_rate))
    if verbose and not hosts.index():
        first, rate = recipe.restart_epochs[-1], recipe.restart_rates[-1]
        print(
            f"epochs {first + 1} to {recipe.epochs}: schedule {recipe.schedule} from a learning "
            f"rate of {rate:g}"
        )
        print(*lines, sep="\n", end="\n" if lines else "")
    return _train(recipe, workdir, verbose, callbacks)


def finish(workdir: str | Path, verbose: int | str = "auto") -> Run:
    """End an interrupted run with the epochs that it has: its best epoch becomes the result.

    results.json then has finished_early_at_epoch. Steps of an unfinished epoch do not count. The
    teachers of a distillation are not needed.

    Raises:
        ValueError, OSError: as `train`; no epoch has ended.
    """
    return _train(Run.open(workdir).recipe, workdir, verbose, (), finish_early=True)


def _on_first_host(begin: Callable[[], tuple[Recipe, list[str]]]) -> tuple[Recipe, list[str]]:
    """Begin an extension on the first host, and return what it returns on all hosts."""
    if hosts.index():
        shared = hosts.share()
        if "error" in shared:
            raise ValueError(shared["error"])
        return Recipe.from_json(shared["recipe"]), []
    try:
        recipe, lines = begin()
    except (ValueError, OSError) as error:
        hosts.share({"error": str(error)})
        raise
    hosts.share({"recipe": recipe.to_json()})
    return recipe, lines


_SETS_LEARNING_RATE = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)


def _require_callbacks_with_effect(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    for callback in callbacks:
        if isinstance(callback, _SETS_LEARNING_RATE):
            raise ValueError(
                f"{type(callback).__name__} would have no effect, because the recipe decides the "
                "learning rate of each step: use its fields schedule, step_epochs, decay_factor "
                "and plateau_patience"
            )


def _train(
    recipe: Recipe,
    workdir: str | Path,
    verbose: int | str,
    callbacks: Sequence[keras.callbacks.Callback],
    finish_early: bool = False,
) -> Run:
    require_backend()
    _require_callbacks_with_effect(callbacks)
    with (
        hosts.ended_together(),
        _claimed(workdir, recipe) as (run, is_new),
        memory_error_explained(recipe),
    ):
        if run.finished:
            run.require_model()
            if verbose:
                print(f"{run.directory} is finished; nothing to do")
            return run
        if finish_early and is_new:
            raise ValueError(
                f"no epoch of {run.directory} has ended, so there is no network to keep; resume "
                "the run"
            )
        engine = _engine(run, is_new)
        with distribution.scope(engine):
            return run_training(run, engine, is_new, verbose, callbacks, finish_early)


@contextlib.contextmanager
def _claimed(workdir: str | Path, recipe: Recipe) -> Iterator[tuple[Run, bool]]:
    """Claim the run directory; if there are several hosts, the first claims it for all."""
    if hosts.index():
        claim_result = hosts.share()
        if "error" in claim_result:
            raise ValueError(claim_result["error"])
        hosts.require_same("recipe", recipe.to_json())
        yield Run(directory_of_run(workdir), recipe), claim_result["is_new"]
        return
    with contextlib.ExitStack() as stack:
        try:
            run, is_new = stack.enter_context(claim(workdir, recipe))
        except (ValueError, OSError) as error:
            hosts.share({"error": str(error)})
            raise
        hosts.share({"is_new": is_new})
        hosts.require_same("recipe", recipe.to_json())
        yield run, is_new


def _engine(run: Run, is_new: bool) -> hardware.Engine:
    if is_new:
        return hardware.choose_engine(run.recipe)
    # A resume continues with the precision and compiler of the first steps.
    environment = run.read_json("environment.json")
    precision, compiled = environment.get("precision"), environment.get("jit_compile")
    if precision is None:
        raise ValueError(
            f"{run.directory} has checkpoints of an earlier version, which cannot be read; "
            "choose another workdir"
        )
    engine = hardware.choose_engine(run.recipe.replace(precision=precision))
    why = [*engine.why]
    kind = engine.devices[0].partition(":")[0]
    first_devices = environment.get("engine", kind).partition(",")[0]  # such as "2 gpus"
    same_kind = kind in first_devices
    if not same_kind:
        own = hardware.choose_engine(run.recipe).precision
        if precision != own:
            why.append(f"the run began on {first_devices}; a new one takes {own} here")
    # Another backend or device compiles in another way, and TensorFlow for one device only.
    same = same_kind and environment.get("backend", backend_name()) == backend_name()
    if same and compiled is not None and len(engine.devices) == 1:
        engine = dataclasses.replace(engine, jit_compile=compiled)
    elif compiled is not None and compiled != engine.jit_compile:
        why.append(f"the run began {'with' if compiled else 'without'} XLA")
    return dataclasses.replace(engine, why=tuple(why))

"""recipe -> data and a compiled model -> model.fit -> run directory; resumes what was cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_vgg import hardware
from keras_vgg.backend import backend_name
from keras_vgg.fit import distribution, hosts
from keras_vgg.fit.callbacks import TrainingDiverged
from keras_vgg.fit.inputs import (
    describe,
    evaluation_transform,
    load_source,
    require_same_data,
    training_transform,
)
from keras_vgg.fit.model import build_model, compile_model
from keras_vgg.fit.schedule import best_row, learning_rate, plateau_drops
from keras_vgg.fit.training import run_training
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, RunInUse, claim

__all__ = [
    "Run",
    "RunInUse",
    "TrainingDiverged",
    "best_row",
    "build_model",
    "compile_model",
    "describe",
    "evaluation_transform",
    "fit",
    "learning_rate",
    "load_source",
    "plateau_drops",
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
    """Train a recipe in a run directory, or go on with the run that is there.

    The directory gets recipe.json, environment.json, data.json, metrics.csv, model.keras (the
    best epoch by validation accuracy), checkpoints/, tensorboard/ and at the end results.json.

    However it was interrupted, a run that goes on ends as an uninterrupted one, bit for bit on one
    CPU; what was trained since its last checkpoint is trained again. On SIGTERM and Ctrl-C in the
    main thread it first ends its step and writes a checkpoint; a second signal does not wait.

    Args:
        recipe: What to train.
        workdir: The run directory: new, empty, or an earlier run of the same recipe.
        verbose: 0: print nothing. 2: a line an epoch, on stdout. "auto" or 1: where stderr is a
            terminal a progress bar there, and a row an epoch above it; elsewhere as 2.
        callbacks: Called after the run's own, so that an epoch is kept when they see its end. What
            they keep themselves does not survive a resume.

    Returns:
        The finished run.

    Raises:
        ValueError, OSError: the recipe, its data or the directory will not do. Nothing is left of
            a run that had not begun; one that fails in its first epoch can be begun again.
        RunInUse: another process is training in the directory (an OSError).
        SystemExit: after SIGTERM, with status 143.
        TrainingDiverged: the loss or a weight became NaN.
        MemoryError: the network and its batches do not fit the device.
    """
    if backend_name() not in ("tensorflow", "jax"):
        raise ValueError(
            f"training runs on Keras' tensorflow or jax backend, not on {backend_name()}"
        )
    with (
        hosts.ended_together(),
        _claimed(workdir, recipe) as (run, is_new),
        _exhaustion_named(recipe),
    ):
        if run.finished:
            run.require_model()
            if verbose:
                print(f"{run.directory} is finished; nothing to do")
            return run
        engine = _engine(run, is_new)
        with distribution.scope(engine):
            return run_training(run, engine, is_new, verbose, callbacks)


fit = train
"""`train`, under the name that it had first."""


@contextlib.contextmanager
def _claimed(workdir: str | Path, recipe: Recipe) -> Iterator[tuple[Run, bool]]:
    """As `claim`, by the first of several hosts, for all of them."""
    if hosts.index():
        told = hosts.share()
        if "error" in told:
            raise ValueError(told["error"])
        hosts.require_same("recipe", recipe.to_json())
        yield Run(Path(workdir), recipe), told["is_new"]
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


@contextlib.contextmanager
def _exhaustion_named(recipe: Recipe) -> Iterator[None]:
    """TensorFlow's error has pages about its allocator; JAX has no error for it."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            f"the memory is not enough for batches of {recipe.part_size}; try a smaller "
            "--batch-size or --width-multiplier, or a larger --gradient-accumulation "
            f"({getattr(error, 'message', str(error)).splitlines()[0]})"
        ) from error


def _engine(run: Run, is_new: bool) -> hardware.Engine:
    recipe = run.recipe
    if not is_new:  # its weights are what this precision made of them
        precision = run.read_json("environment.json").get("precision")
        if precision is None:
            raise ValueError(
                f"{run.directory} was begun by an earlier version, whose checkpoints are not read"
            )
        recipe = recipe.replace(precision=precision)
    return hardware.choose_engine(recipe)

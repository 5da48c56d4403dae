"""recipe -> data and a compiled model -> model.fit -> run directory; resumes what was cut off."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import __version__, data, hardware, report, transfer
from keras_vgg import weights as weight_files
from keras_vgg.fit import distribution, frozen, hosts
from keras_vgg.fit.callbacks import Recorder, TrainingDiverged
from keras_vgg.fit.checkpoint import Progress
from keras_vgg.fit.inputs import (
    channel_statistics,
    describe,
    evaluation_transform,
    in_parts,
    load_source,
    one_hot,
    require_same_data,
    training_data,
    training_transform,
    validation_data,
)
from keras_vgg.fit.model import build_model, compile_model, initial_weights
from keras_vgg.fit.progress import TrainingProgress
from keras_vgg.fit.schedule import best_row, is_over, learning_rate, plateau_drops
from keras_vgg.fit.stopping import StopRequest
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, RunInUse, claim
from keras_vgg.versions import package_versions

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
    "training_transform",
]


def fit(
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
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise ValueError(
            f"training runs on Keras' tensorflow or jax backend, not on {keras.backend.backend()}"
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
            return _train(run, engine, is_new, verbose, callbacks)


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


def _train(
    run: Run,
    engine: hardware.Engine,
    is_new: bool,
    verbose: int | str,
    callbacks: Sequence[keras.callbacks.Callback],
) -> Run:
    recipe = run.recipe
    first = hosts.index() == 0  # of several hosts, the one that writes and speaks
    verbose = verbose if first else 0
    keras.utils.set_random_seed(recipe.seed)
    source = load_source(recipe)
    if source.validation is None:
        raise ValueError(
            f"{recipe.source} leaves no validation images to select a model on; "
            "give validation_fraction more than 0"
        )
    described = describe(source)
    if not is_new:
        require_same_data(run, described)
    with data.bad_images_named(source.train):
        statistics = channel_statistics(recipe, source.train)
    initial = initial_weights(recipe)
    if initial is not None and not is_new:
        _require_same_weights(run, initial)
    model = build_model(recipe, len(source.class_names), statistics, engine.precision, initial)
    distribution.synchronize(model, engine)
    transfer.freeze(model, recipe.freeze_until)
    base, trained = None, model
    if recipe.freeze_until == "all" and not frozen.varies(recipe) and _is_tensorflow():
        base, trained = frozen.split_model(model)
    compile_model(trained, recipe, engine)
    trained.optimizer.build(trained.trainable_variables)
    steps = data.steps_per_epoch(source.train, recipe.batch_size // hosts.count(), hosts.count())
    stop = StopRequest()
    recorder = Recorder(run, steps, whole=model, stop=stop)
    begun = recorder.restore(trained)
    # Before the first writes what the others read.
    hosts.require_same("checkpoint", [begun.epoch, begun.step])
    if is_new and first:
        environment = _environment(engine)
        # First: a directory with anything else is refused. Without checkpoints it stays a new run.
        run.write_recipe()
        run.write_json("data.json", described)
        run.write_json("environment.json", environment)
        if initial is not None:
            run.write_json("init.json", {"source": initial.source, "sha256": initial.sha256()})
    if verbose:
        print(
            f"{source.name}: {source.train.size} training, {source.validation.size} validation "
            f"images, {len(source.class_names)} classes\n{model.name}: {model.count_params():,} "
            f"parameters; {engine}{_where(begun)}"
        )
        if recipe.freeze_until == "all" and _is_tensorflow():
            print(_how_frozen(recipe))
    with data.bad_images_named(source.train, source.validation):
        if base is None:
            training = partial(training_data, recipe, source, statistics)
            validation = validation_data(recipe, source)
        else:
            training, validation = _feature_datasets(run, source, base, verbose)
    batches = -(-source.validation.size // recipe.part_size)
    progress = TrainingProgress(recorder, batches, verbose)
    called = [recorder, progress, *callbacks]
    if first:
        board = keras.callbacks.TensorBoard(run.directory / "tensorboard", write_graph=False)
        called.insert(1, board)
    epoch = begun.epoch
    with data.bad_images_named(source.train, source.validation), progress, stop:
        if begun.step:
            # Keras' fit begins with whole epochs: what is left of this one is a fit of its own.
            _end_epoch(trained, training, validation, recorder, begun, called)
            epoch += 1
        over = trained.stop_training or is_over(recipe, recorder.history)
        if epoch < recipe.epochs and not over:
            parts = steps * recipe.gradient_accumulation
            _fit(trained, training(epoch), validation, called, epoch, recipe.epochs, parts)
    if first:
        report.plot_history(recorder.history, run.directory / "training_curve.png")
        best = best_row(recorder.history)
        run.add_results(
            epochs=len(recorder.history),
            best_epoch=best["epoch"],
            validation_accuracy=best["val_accuracy"],
            validation_loss=best["val_loss"],
            parameters=model.count_params(),
            training_seconds=round(sum(row["seconds"] for row in recorder.history), 1),
            peak_memory=hardware.peak_memory(engine),
        )
    hosts.wait("finished")
    return run


def _fit(
    model: keras.Model,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    callbacks: list[keras.callbacks.Callback],
    first: int,
    last: int,
    steps: int,
) -> None:
    model.fit(
        training,
        epochs=last,
        initial_epoch=first,
        steps_per_epoch=steps,
        validation_data=validation,
        callbacks=callbacks,
        shuffle=False,  # the data set shuffles, and Keras warns of the default
        verbose=0,
    )


def _end_epoch(
    model: keras.Model,
    training: Callable[[int, int], tf.data.Dataset],
    validation: tf.data.Dataset,
    recorder: Recorder,
    begun: Progress,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """The steps that are left of a begun epoch, and its validation."""
    recipe = recorder.run.recipe
    # Metrics have variables, to restore, when they have seen a batch.
    shape = (recipe.part_size // hosts.count(), *model.input_shape[1:])
    targets = np.zeros((shape[0], model.output_shape[-1]), "float32")
    model.test_on_batch(np.zeros(shape, "float32"), targets)
    epoch, left = begun.epoch, recorder.steps_per_epoch - begun.step
    if left:
        rest, parts = training(epoch, begun.step), left * recipe.gradient_accumulation
        _fit(model, rest, validation, callbacks, epoch, epoch + 1, parts)
        return
    called = keras.callbacks.CallbackList(callbacks, model=model)
    called.on_train_begin()
    called.on_epoch_begin(epoch)
    logs = {name: float(value) for name, value in model.get_metrics_result().items()}
    found = model.evaluate(validation, callbacks=called, return_dict=True, verbose=0)
    logs |= {f"val_{name}": value for name, value in found.items()}
    called.on_epoch_end(epoch, logs)
    called.on_train_end(logs)


def _where(begun: Progress) -> str:
    if begun.step:
        return f"; resumed after step {begun.step} of epoch {begun.epoch + 1}"
    return f"; resumed after epoch {begun.epoch}" if begun.epoch else ""


def _feature_datasets(
    run: Run, source: data.Source, base: keras.Model, verbose: int | str
) -> tuple[Callable[..., tf.data.Dataset], tf.data.Dataset]:
    """As `training_data`, for an epoch and a step, and `validation_data`; of features."""
    recipe = run.recipe
    found = [
        frozen.Features(
            base,
            split,
            evaluation_transform(recipe),
            mirrored=mirrored,
            folder=run.directory / "features" / split.name,
            verbose=verbose not in (0, 2),
        )
        for split, mirrored in ((source.train, recipe.horizontal_flip), (source.validation, False))
    ]
    seconds = sum(features.seconds for features in found)
    if verbose and seconds:
        print(f"features of {sum(f.size for f in found):,} images computed in {seconds:.0f} s")
    training, validation = found
    targets = partial(one_hot, classes=len(source.class_names))

    def from_step(epoch: int, step: int = 0) -> tf.data.Dataset:
        batches = training.training(recipe.batch_size, recipe.seed, epoch, step)
        return in_parts(recipe, batches).map(targets)

    return from_step, validation.evaluation(recipe.part_size).map(targets)


def _is_tensorflow() -> bool:
    """On JAX the features of a frozen base are not kept; it runs every epoch."""
    return keras.backend.backend() == "tensorflow"


def _how_frozen(recipe: Recipe) -> str:
    varying = frozen.varies(recipe)
    if varying:
        return (
            f"the frozen base runs every epoch, because {', '.join(varying)} give it new images; "
            "with train_scale and eval_scale at image_size, and no other augmentation than "
            "horizontal_flip, its features are computed once"
        )
    return "the frozen base's features are computed once"


def _require_same_weights(run: Run, initial: weight_files.Weights) -> None:
    before = run.read_json("init.json")
    if initial.sha256() != before["sha256"]:
        raise ValueError(
            f"the weights of {initial.source} have changed since {run.directory} began from "
            f"{before['source']}; choose another workdir"
        )


def _environment(engine: hardware.Engine) -> dict[str, Any]:
    packages = ["keras", "tensorflow", "tensorflow-datasets", "numpy"]
    if not _is_tensorflow():
        packages.append(keras.backend.backend())
    return {
        "keras_vgg": __version__,
        "packages": package_versions(packages),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "engine": str(engine),
        "precision": engine.precision,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }

"""The steps of `keras_vgg.train`: from a recipe and a claimed run directory to a trained run."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import __version__, data, hardware
from keras_vgg.backend import backend_name, is_jax, is_tensorflow
from keras_vgg.data.left_out import printable
from keras_vgg.data.sides import Sizes
from keras_vgg.fit import distillation, frozen, hosts, verdict
from keras_vgg.fit.averages import Averages
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.fit.checkpoint import Progress
from keras_vgg.fit.class_weights import describe_weights, weighted
from keras_vgg.fit.inputs import (
    evaluation_transform,
    file_sizes,
    full_batches,
    in_parts,
    one_hot,
    training_data,
    validation_data,
)
from keras_vgg.fit.outcome import write_results
from keras_vgg.fit.preparation import Prepared, prepare
from keras_vgg.fit.probe import fit_classifier
from keras_vgg.fit.progress import TrainingProgress, may_end_early
from keras_vgg.fit.schedule import is_over
from keras_vgg.fit.step_state import leaves_steps_alone
from keras_vgg.fit.stopping import StopRequest
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.versions import package_versions

_MOST_FRAME = 0.5  # share of the input that may be black around an image without a word


def run_training(
    run: Run,
    engine: hardware.Engine,
    is_new: bool,
    verbose: int | str,
    callbacks: Sequence[keras.callbacks.Callback],
    finish_early: bool = False,
) -> Run:
    """Train a claimed run to its end. `finish_early`: end it with the epochs that it has."""
    recipe = run.recipe
    first = hosts.index() == 0  # the host that writes and prints
    verbose = verbose if first else 0
    keras.utils.set_random_seed(recipe.seed)
    prepared = prepare(run, engine, is_new, announce=bool(verbose), taught=not finish_early)
    engine = prepared.engine
    # The directory keeps the recipe as it is; a small set has smaller batches.
    original, recipe = run, prepared.recipe
    run = dataclasses.replace(run, recipe=recipe)
    source, trained = prepared.source, prepared.trained
    steps = data.steps_per_epoch(source.train, recipe.batch_size // hosts.count(), hosts.count())
    stop = StopRequest()
    commonest = _commonest(prepared)
    recorder = Recorder(run, steps, full_model=prepared.full_model, stop=stop, commonest=commonest)
    start = recorder.restore(trained, ends=finish_early)
    # Compare first: then the first host writes files that the others read.
    hosts.require_same("checkpoint", [start.epoch, start.step])
    if finish_early:
        if first:
            write_results(run, recorder, prepared, engine, verbose, finished_early=True)
        hosts.wait("finished")
        return original
    if is_new and first:
        _write_first_files(original, engine, prepared)
    if verbose:
        announce(prepared, original.recipe, engine, start)
    if is_new and recipe.init_head == "probe":  # a resume has the classifier in its checkpoint
        _begin_with_probe(run, prepared, verbose)
    training, validation = datasets(run, prepared, verbose)
    one_label = not source.several_labels and hosts.count() == 1
    if is_new and verbose and prepared.teachers and one_label:
        plain = recipe.replace(mixup=0.0, cutmix=0.0)
        batches = training_data(plain, source, prepared.statistics)
        with data.bad_images_named(source.train):
            lines = distillation.accuracy_lines(prepared.teachers, batches, recipe)
        print(*lines, sep="\n", flush=True)
    # The estimates may read on beyond a short epoch, whatever comes after it.
    steady = partial(training, switches=False)
    recorder.averages = Averages(steady if hosts.count() == 1 else None)
    batches = -(-prepared.validation.size // recipe.part_size)
    progress = TrainingProgress(recorder, batches, verbose)
    all_callbacks = [recorder, progress, *callbacks]
    if first:
        board = keras.callbacks.TensorBoard(str(run.directory / "tensorboard"), write_graph=False)
        leaves_steps_alone(board)
        all_callbacks.insert(1, board)
    epoch = start.epoch
    bad_images_named = data.bad_images_named(source.train, prepared.validation)
    with bad_images_named, progress, stop, recorder.writer:
        if start.step:
            # Keras' fit starts with a full epoch. The rest of this epoch is a fit of its own.
            _end_epoch(trained, training, validation, recorder, start, all_callbacks)
            epoch += 1
        over = trained.stop_training or is_over(recipe, recorder.history)
        if epoch < recipe.epochs and not over:
            parts = steps * recipe.gradient_accumulation
            _fit(trained, training(epoch), validation, all_callbacks, epoch, recipe.epochs, parts)
    if first:
        write_results(run, recorder, prepared, engine, verbose)
    hosts.wait("finished")
    if stop.made:  # after the last step, while the network and the checkpoint were written
        stop.obey(f"{run.directory} is finished")
    return original


def _commonest(prepared: Prepared) -> verdict.Baseline:
    """Return what answers without looking at an image would have right."""
    names = prepared.source.class_names
    labels = prepared.validation.labels
    if labels is not None and prepared.source.several_labels:
        return verdict.random_answers(labels)
    counts = prepared.source.class_counts().get("validation")
    if counts is None:  # of TFRecord files; no class is less common than this
        return verdict.Commonest(None, 1 / len(names), prepared.validation.size)
    return verdict.baseline(names, counts, prepared.recipe.select_by)


def _write_first_files(run: Run, engine: hardware.Engine, prepared: Prepared) -> None:
    """Write recipe, data and environment. A run without checkpoints still counts as new."""
    environment = describe_environment(engine) | {"keeps_features": prepared.base is not None}
    run.write_recipe()  # first: a directory with other files is refused
    for name in ("init.json", "teachers.json", "probe.json"):  # of a recipe that began here before
        (run.directory / name).unlink(missing_ok=True)
    more = {"file_sizes": file_sizes(prepared.source), "inventory": prepared.inventory.as_json()}
    run.write_json("data.json", prepared.described | more)
    run.write_json("environment.json", environment)
    initial = prepared.initial
    if initial is not None:
        run.write_json("init.json", {"source": initial.source, "sha256": initial.sha256()})
    if prepared.teachers:
        teachers = [teacher.run for teacher in prepared.teachers]
        run.write_json(distillation.FILE, distillation.describe(teachers))


def announce(
    prepared: Prepared, original: Recipe, engine: hardware.Engine, start: Progress
) -> None:
    """Print what is trained on what, and what was left out or changed."""
    recipe = prepared.recipe
    source, model = prepared.source, prepared.full_model
    sizes, some = prepared.inventory.sizes.get("train"), ""
    if sizes and sizes.images < source.train.size:
        some = f" ({sizes.images} looked at)"
    print(
        f"{printable(source.name)}: {source.train.size} training, {prepared.validation.size} "
        f"validation images, {len(source.class_names)} classes"
        f"{f'; training {sizes}{some}' if sizes else ''}\n"
        f"{model.name}: {model.count_params():,} parameters; {engine}{_start_note(start)}"
    )
    if prepared.initial is not None and prepared.initial.note:
        print(f"{prepared.initial.source}: {prepared.initial.note}")
    if recipe.batch_size != original.batch_size:
        print(
            f"batches of {recipe.batch_size}: there are {source.train.size} training images, "
            f"fewer than batch_size ({original.batch_size})"
        )
    if source.several_labels and source.train.labels is not None:
        print(_labels_note(source.train.labels))
    for line in prepared.inventory.lines():
        print(line)
    if recipe.train_scale_range is None and sizes and recipe.crop_area is None:
        _note_frames(recipe.image_size, sizes)
    for teacher in prepared.teachers:
        print(*teacher.lines(prepared.described), sep="\n")
    if prepared.class_weights is not None:
        print(describe_weights(prepared.class_weights, source.class_names))
    if recipe.unmixed_epochs and (recipe.mixup or recipe.cutmix) and may_end_early(recipe):
        print(
            f"the last {recipe.unmixed_epochs} of {recipe.epochs} epochs are without mixup and "
            "cutmix; a training that ends early (early_stopping, plateau) does not come to them"
        )
    if recipe.schedule == "step" and min(recipe.step_epochs) >= recipe.epochs:
        print(f"the rate never falls: no step_epochs is below epochs ({recipe.epochs})")
    if recipe.step_epochs and recipe.schedule != "step":
        print(f"step_epochs has no effect: the schedule is {recipe.schedule}, not step")
    if recipe.freeze_until == "all":
        print(_frozen_base_note(recipe, prepared.base is not None))


def _note_frames(image_size: int, sizes: Sizes) -> None:
    """Say so if images that are not rescaled leave most of the network's input black."""
    height, width = (min(side[1], image_size) for side in (sizes.height, sizes.width))
    share = 1 - height * width / image_size**2
    if share > _MOST_FRAME:
        print(
            f"{share:.0%} of the network's input is a black frame around the median image "
            f"({sizes.height[1]} x {sizes.width[1]} pixels): choose an image_size as small as the "
            f"images, or a train_scale and an eval_scale of at least {image_size}"
        )


def _labels_note(labels: np.ndarray) -> str:
    counts = labels.sum(axis=1)
    return (
        f"several labels an image: {counts.mean():.2f} on average, at most {counts.max()}; "
        f"{int((counts == 0).sum()):,} training images have none"
    )


def _begin_with_probe(run: Run, prepared: Prepared, verbose: int | str) -> None:
    """Give the network the best linear classifier on its features, and write probe.json."""
    with data.bad_images_named(prepared.source.train, prepared.validation):
        figures = fit_classifier(
            prepared.full_model,
            run.recipe,
            prepared.source.train,
            prepared.validation,
            evaluation_transform(run.recipe),
            run.directory / "features",
            verbose not in (0, 2),
            prepared.class_weights,
        )
    if hosts.index() == 0:
        run.write_json("probe.json", figures)
    if verbose:
        print(
            f"linear classifier on the features: validation accuracy "
            f"{figures['validation_accuracy']:.2%} (C={figures['C']:g})",
            flush=True,
        )


def datasets(
    run: Run, prepared: Prepared, verbose: int | str
) -> tuple[Callable[..., tf.data.Dataset], tf.data.Dataset]:
    """Return a function from (epoch, step) to training batches, and validation batches.

    The function has the argument `switches` of `training_data`.
    """
    recipe, source = run.recipe, prepared.source
    with data.bad_images_named(source.train, prepared.validation):
        if prepared.base is not None:
            return _feature_datasets(run, prepared, prepared.base, verbose)

        def training(epoch: int, step: int = 0, switches: bool = True) -> tf.data.Dataset:
            batches = training_data(
                recipe, source, prepared.statistics, epoch, step, prepared.color_apart, switches
            )
            return weighted(batches, prepared.class_weights)

        return training, validation_data(recipe, source)


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
        shuffle=False,  # the data set shuffles already, and Keras warns if both do
        verbose=0,  # pyright: ignore[reportArgumentType]  # Keras annotates str alone
    )


def _end_epoch(
    model: keras.Model,
    training: Callable[[int, int], tf.data.Dataset],
    validation: tf.data.Dataset,
    recorder: Recorder,
    start: Progress,
    callbacks: list[keras.callbacks.Callback],
) -> None:
    """Train the remaining steps of an unfinished epoch, and validate."""
    recipe = recorder.run.recipe
    # A metric has variables, which can be restored, after a first batch.
    shape = (recipe.part_size // hosts.count(), *model.input_shape[1:])
    targets = np.zeros((shape[0], model.output_shape[-1]), "float32")
    model.test_on_batch(np.zeros(shape, "float32"), targets)
    epoch, steps = start.epoch, recorder.steps_per_epoch - start.step
    if steps:
        batches, parts = training(epoch, start.step), steps * recipe.gradient_accumulation
        _fit(model, batches, validation, callbacks, epoch, epoch + 1, parts)
        return
    callback_list = keras.callbacks.CallbackList(callbacks, model=model)
    callback_list.on_train_begin()
    callback_list.on_epoch_begin(epoch)
    logs = {name: float(value) for name, value in model.get_metrics_result().items()}
    evaluation = model.evaluate(
        validation,
        callbacks=callback_list,
        return_dict=True,
        verbose=0,  # pyright: ignore[reportArgumentType]  # Keras annotates str alone
    )
    logs |= {f"val_{name}": value for name, value in evaluation.items()}
    callback_list.on_epoch_end(epoch, logs)
    callback_list.on_train_end(logs)


def _start_note(start: Progress) -> str:
    if start.step:
        return f"; resumed after step {start.step} of epoch {start.epoch + 1}"
    return f"; resumed after epoch {start.epoch}" if start.epoch else ""


def _feature_datasets(
    run: Run, prepared: Prepared, base: keras.Model, verbose: int | str
) -> tuple[Callable[..., tf.data.Dataset], tf.data.Dataset]:
    """Return the same as `datasets`, with the frozen base's features in place of images."""
    recipe, source = run.recipe, prepared.source
    splits = [
        frozen.Features(
            base,
            split,
            evaluation_transform(recipe),
            mirrored=mirrored,
            folder=run.directory / "features" / split.name,
            batch_size=frozen.batch_size_of(recipe),
            verbose=verbose not in (0, 2),
        )
        for split, mirrored in (
            (source.train, recipe.horizontal_flip),
            (prepared.validation, False),
        )
    ]
    seconds = sum(features.seconds for features in splits)
    if verbose and seconds:
        print(f"features of {sum(f.size for f in splits):,} images computed in {seconds:.0f} s")
    training, validation = splits
    classes = len(source.class_names)
    targets = partial(one_hot, classes=classes)

    def from_step(epoch: int, step: int = 0, switches: bool = True) -> tf.data.Dataset:
        del switches  # features are not mixed
        balanced = recipe.sampling == "balanced"
        batches = training.training(recipe.batch_size, recipe.seed, epoch, step, balanced=balanced)
        return weighted(in_parts(recipe, batches).map(targets), prepared.class_weights)

    if is_jax():
        examples = validation.evaluation(None)
        return from_step, full_batches(recipe, examples, validation.size, classes)
    return from_step, validation.evaluation(recipe.part_size).map(targets)


def _frozen_base_note(recipe: Recipe, keeps_features: bool) -> str:
    if keeps_features:
        return "the frozen base's features are computed once"
    varying = frozen.varies(recipe)
    if varying:
        return (
            f"the frozen base runs every epoch, because {', '.join(varying)} give it new images; "
            "to compute the features once, set train_scale and eval_scale to image_size, and use "
            "no augmentation but horizontal_flip"
        )
    return "the frozen base runs every epoch, because several hosts share the images"


def describe_environment(engine: hardware.Engine) -> dict[str, Any]:
    packages = ["keras", "tensorflow", "tensorflow-datasets", "numpy"]
    if not is_tensorflow():
        packages.append(backend_name())
    return {
        "keras_vgg": __version__,
        "packages": package_versions(packages),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "backend": backend_name(),
        "engine": str(engine),
        "precision": engine.precision,
        "jit_compile": engine.jit_compile,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }

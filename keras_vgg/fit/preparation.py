"""What a training needs before its first step: data, statistics, weights and networks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_vgg import data, hardware, recipe_checks, transfer
from keras_vgg import weights as weight_files
from keras_vgg.backend import backend_name, is_tensorflow
from keras_vgg.console import notes_dropped
from keras_vgg.data.left_out import listed
from keras_vgg.data.pipeline import require_any_order
from keras_vgg.fit import color_step, distillation, distribution, frozen, hosts
from keras_vgg.fit.class_weights import class_weights
from keras_vgg.fit.distillation import Teacher
from keras_vgg.fit.engine_timing import measured_engine
from keras_vgg.fit.inputs import channel_statistics, describe, load_source, require_same_data
from keras_vgg.fit.model import build_model, compile_model, initial_weights
from keras_vgg.image_paths import expanded
from keras_vgg.memory_errors import first_line, is_exhausted, is_of_disk
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run's data and networks, before the first step.

    Attributes:
        recipe: The run's, with batches that the training split fills.
        engine: Devices, precision and compiler.
        source: The splits.
        described: Class names, and size and fingerprint of each split.
        inventory: What the source holds and what it leaves out.
        statistics: The training images' channel statistics.
        class_weights: The weight of each class in the loss; None: the classes have no weights.
        initial: Pretrained weights; None: the recipe names none.
        full_model: The recipe's network.
        base: The frozen base, whose features are computed once; None: nothing is computed once.
        trained: The network that model.fit trains: the head, or the full network.
        color_apart: Whether its training steps colour their images: see `color_step`.
        teachers: The networks whose answers it learns besides the labels.
    """

    recipe: Recipe
    engine: hardware.Engine
    source: data.Source
    described: dict[str, Any]
    inventory: data.Inventory
    statistics: data.ChannelStatistics
    class_weights: np.ndarray | None
    initial: weight_files.Weights | None
    full_model: keras.Model
    base: keras.Model | None
    trained: keras.Model
    color_apart: bool
    teachers: list[Teacher]

    @property
    def validation(self) -> data.Split:
        assert self.source.validation is not None  # `prepare` raises an error otherwise
        return self.source.validation


def prepare(
    run: Run, engine: hardware.Engine, is_new: bool, announce: bool, taught: bool = True
) -> Prepared:
    """Open the data, choose precision and compiler, and build and compile the network.

    `taught`: open the teachers, which the network needs to take a step.
    """
    if is_new:  # an earlier version began runs of any scales
        require_startable(run.recipe)
    if run.recipe.init_head == "probe" and hosts.count() > 1:
        raise ValueError(
            "init_head='probe' works on one host: train there with freeze_until='all', and give "
            "that run as init, with init_head='all'"
        )
    _require_possible(run.recipe, engine)
    source = _opened_source(run.recipe)
    several = source.several_labels
    directories = run.recipe.teachers if taught else ()
    teacher_runs = distillation.open_teachers(directories, source.class_names, several)
    recipe = _with_fitting_batches(run.recipe, source.train.size, len(engine.devices))
    described = describe(source)
    if not is_new:
        require_same_data(run, described)
    keeps_features = frozen.keeps_features(recipe) if is_new else frozen.has_kept_features(run)
    if recipe.sampling == "balanced" and not keeps_features:
        require_any_order(source.train)
    if teacher_runs and not is_new:
        distillation.require_same_teachers(run, teacher_runs)
    with data.bad_images_named(source.train):
        statistics = channel_statistics(recipe, source.train)
        weights = class_weights(recipe, source.train, source.class_names)
    if is_new:
        images = recipe.epochs * source.train.size
        engine = measured_engine(recipe, engine, len(source.class_names), images, announce)
    if is_new and recipe.init is not None:
        _check_init(recipe, source)
    initial = initial_weights(recipe)
    if initial is not None and not is_new:
        _require_same_weights(run, initial)
    classes = len(source.class_names)
    model = build_model(recipe, classes, statistics, engine.precision, initial, several)
    distribution.synchronize(model, engine)
    transfer.freeze(model, recipe.freeze_until)
    base, trained = None, model
    if keeps_features:
        base, trained = frozen.split_model(model)
    compile_model(trained, recipe, engine, several)
    teachers = distillation.load_teachers(directories, source.class_names, several)
    if teachers:
        distillation.teach(trained, teachers, recipe, several)
    trained.optimizer.build(trained.trainable_variables)
    color_apart = base is None and color_step.is_possible(recipe)
    if color_apart:
        color_step.color_first(trained)
    inventory = data.take_inventory(source)
    return Prepared(
        recipe=recipe,
        engine=engine,
        source=source,
        described=described,
        inventory=inventory,
        statistics=statistics,
        class_weights=weights,
        initial=initial,
        full_model=model,
        base=base,
        trained=trained,
        color_apart=color_apart,
        teachers=teachers,
    )


def require_startable(recipe: Recipe) -> None:
    """Require what a new training needs, whatever its data.

    Raises:
        ValueError: the scales leave mostly frame, or no weights of the network are published under
            the name in `init`.
    """
    recipe_checks.require_no_frames(
        recipe.image_size, recipe.train_scale_range, recipe.eval_scale_side
    )
    if recipe.init in weight_files.NAMES:
        with_top = recipe.init_head not in ("none", "probe")
        weight_files.find(recipe.init, recipe.configuration, recipe.batch_norm, with_top)


def require_unchanged(run: Run) -> None:
    """Require that the data, the first weights and the teachers did not change since a run began.

    Raises:
        ValueError, OSError: one of them has changed, or is missing.
    """
    distribution.leave_gpus_to_jax()
    with notes_dropped():  # the training prints them
        source = load_source(run.recipe)
    require_same_data(run, describe(source))
    require_same_networks(run)


def require_same_networks(run: Run) -> None:
    """Require that the first weights and the teachers did not change since a run began.

    Raises:
        ValueError, OSError: one of them has changed, or is missing.
    """
    initial = initial_weights(run.recipe)
    if initial is not None:
        _require_same_weights(run, initial)
    if run.recipe.teachers:
        teachers = distillation.open_teachers(
            run.recipe.teachers, run.class_names, run.several_labels
        )
        distillation.require_same_teachers(run, teachers)


def _opened_source(recipe: Recipe) -> data.Source:
    """Open the source. ValueError: the recipe cannot be trained on what the source holds."""
    source = load_source(recipe)
    if source.several_labels:
        _require_for_several_labels(recipe)
    elif len(source.class_names) < 2:
        raise ValueError(
            f"{recipe.source} has one class, {''.join(source.class_names)}, and classification "
            "needs at least 2: a soft-max over one class is always 1"
        )
    if source.validation is None:
        advice = "set validation_fraction above 0"
        if recipe.source.startswith("records:"):
            advice = "pack it again, with validation_fraction above 0"
        elif recipe.validation_fraction:
            advice = (
                f"validation_fraction={recipe.validation_fraction:g} holds none out, because a "
                "class needs two training images for that, or two groups; add images"
            )
        raise ValueError(
            f"{recipe.source} has no validation images to select the best epoch; {advice}"
        )
    return source


def _require_possible(recipe: Recipe, engine: hardware.Engine) -> None:
    """Raise ValueError for what Keras computes otherwise on several devices or hosts."""
    if recipe.clip_norm and len(engine.devices) > 1 and is_tensorflow():
        raise ValueError(
            f"clip_norm={recipe.clip_norm:g} works on one device: Keras on TensorFlow clips the "
            "gradient of each device before they are summed; use devices='1', or Keras on JAX"
        )
    if recipe.ema_momentum and recipe.batch_norm and hosts.count() > 1:
        raise ValueError(
            f"ema_momentum={recipe.ema_momentum:g} with batch_norm works on one host, which "
            "estimates batch norm's statistics for the averaged weights; use ema_momentum=0 or "
            "batch_norm=False"
        )


def _require_for_several_labels(recipe: Recipe) -> None:
    """Raise ValueError for what needs one label an image."""
    alternatives = {
        "class_weights": "loss='focal' lets rare labels count more",
        "sampling": "loss='focal' lets rare labels count more",
        "select_by": "the area under the precision-recall curve selects, as the mean over labels",
        "init_head": "begin with init_head='none'",
    }
    needs_one = (
        recipe.class_weights != "none",
        recipe.sampling != "uniform",
        recipe.select_by != "accuracy",
        recipe.init_head == "probe",
    )
    for (name, alternative), wrong in zip(alternatives.items(), needs_one, strict=True):
        if wrong:
            raise ValueError(
                f"{name}={getattr(recipe, name)!r} needs one label an image, and {recipe.source} "
                f"has several; {alternative}"
            )


@contextlib.contextmanager
def memory_error_explained(recipe: Recipe) -> Iterator[None]:
    """Turn out-of-memory errors of both backends into MemoryError, a full disk into OSError."""
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        if is_of_disk(error):
            raise OSError(first_line(error)) from error
        raise MemoryError(
            f"the memory is too small for batches of {recipe.part_size}; try a smaller "
            "--batch-size or --width-multiplier, or a larger --gradient-accumulation "
            f"({first_line(error)})"
        ) from error


def require_backend() -> None:
    """Raise ValueError unless Keras' backend is one that trains here."""
    if backend_name() not in ("tensorflow", "jax"):
        raise ValueError(
            f"training runs on Keras' tensorflow or jax backend, not on {backend_name()}"
        )


def _with_fitting_batches(recipe: Recipe, images: int, devices: int) -> Recipe:
    """Return a recipe whose batches are no larger than the training split, in as many parts.

    Several hosts share the batches, so they must be given a batch size that fits.
    """
    if images >= recipe.batch_size or hosts.count() > 1:
        return recipe
    batch_size = images - images % devices if images > devices else images
    accumulation = recipe.gradient_accumulation
    part = devices * accumulation
    if batch_size % part and images >= part:
        batch_size = images - images % part
    elif batch_size % part:
        accumulation = 1
    return recipe.replace(batch_size=batch_size, gradient_accumulation=accumulation)


def _check_init(recipe: Recipe, source: data.Source) -> None:
    """Look at the run that gives the first weights, if it is one.

    Warns:
        UnfinishedRun: its training has not finished.

    Raises:
        ValueError: it has no network yet; its whole classifier is taken, and is of other classes.
    """
    directory = expanded(str(recipe.init))
    if not (directory / "recipe.json").is_file():
        return
    run = Run.open(directory)
    run.require_model()
    if recipe.init_head == "all" and tuple(run.class_names) != tuple(source.class_names):
        raise ValueError(
            f"init_head='all' takes the whole classifier of {recipe.init}, whose classes are "
            f"{_named(run.class_names)}, and {recipe.source} has {_named(source.class_names)}: "
            "take init_head='hidden' or 'none'"
        )


def _named(class_names: Sequence[str]) -> str:
    return listed(class_names[:5], len(class_names))


def _require_same_weights(run: Run, initial: weight_files.Weights) -> None:
    before = run.read_json("init.json")
    if initial.sha256() != before["sha256"]:
        raise ValueError(
            f"the weights of {initial.source} have changed since {run.directory} began with "
            f"{before['source']}; choose another workdir"
        )

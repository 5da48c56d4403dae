"""recipe -> data and a compiled model -> model.fit -> run directory; resumes what was cut off."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import __version__, augment, data, hardware, report, transfer
from keras_vgg import weights as weight_files
from keras_vgg.fit import frozen
from keras_vgg.fit.callbacks import Recorder, TrainingDiverged
from keras_vgg.fit.model import build_model, compile_model, initial_weights
from keras_vgg.fit.progress import TrainingProgress
from keras_vgg.fit.run import Run, claim
from keras_vgg.fit.schedule import best_row, is_over, learning_rate, plateau_drops
from keras_vgg.recipe import BATCH_AUGMENTATIONS, Recipe

__all__ = [
    "Run",
    "TrainingDiverged",
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


_CACHE_BYTES = 2**30  # validation images that fit are prepared once, not every epoch


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
        TrainingDiverged: the loss became NaN.
        MemoryError: the network and its batches do not fit the device.
    """
    existed = Path(workdir).exists()
    run, is_new = claim(workdir, recipe)
    if run.finished:
        if verbose:
            print(f"{run.directory} is finished; nothing to do")
        return run
    try:
        with _exhaustion_named(recipe):
            return _train(run, is_new, verbose, callbacks)
    except BaseException:
        if not existed and not any(run.directory.iterdir()):
            run.directory.rmdir()
        raise


@contextlib.contextmanager
def _exhaustion_named(recipe: Recipe) -> Iterator[None]:
    """TensorFlow's error has pages about its allocator."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(
            f"the memory is not enough for batches of {recipe.batch_size}; try a smaller "
            f"--batch-size or --width-multiplier ({error.message.splitlines()[0]})"
        ) from error


def _train(
    run: Run, is_new: bool, verbose: int | str, callbacks: Sequence[keras.callbacks.Callback]
) -> Run:
    recipe = run.recipe
    engine = hardware.choose_engine(recipe)
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
        statistics = _statistics(recipe, source.train)
    initial = initial_weights(recipe)
    if initial is not None and not is_new:
        _require_same_weights(run, initial)
    model = build_model(recipe, len(source.class_names), statistics, engine.precision, initial)
    transfer.freeze(model, recipe.freeze_until)
    base, trained = None, model
    if recipe.freeze_until == "all" and not frozen.varies(recipe):
        base, trained = frozen.split_model(model)
    compile_model(trained, recipe, engine)
    trained.optimizer.build(trained.trainable_variables)
    steps = data.steps_per_epoch(source.train, recipe.batch_size)
    recorder = Recorder(run, steps, whole=model)
    done = recorder.restore(trained)
    if is_new:
        environment = _environment(engine)
        run.write_json("data.json", described)
        run.write_json("environment.json", environment)
        if initial is not None:
            run.write_json("init.json", {"source": initial.source, "sha256": initial.sha256()})
        # recipe.json makes it a run, so it comes last.
        run.write_recipe()
    if verbose:
        print(
            f"{source.name}: {source.train.size} training, {source.validation.size} validation "
            f"images, {len(source.class_names)} classes\n{model.name}: {model.count_params():,} "
            f"parameters; {engine}" + (f"; resumed after epoch {done}" if done else "")
        )
        if recipe.freeze_until == "all":
            print(_how_frozen(recipe))
    with data.bad_images_named(source.train, source.validation):
        if base is None:
            training, validation = _datasets(recipe, source, statistics, done)
        else:
            training, validation = _feature_datasets(run, source, base, done, verbose)
    if done < recipe.epochs and not is_over(recipe, recorder.history):
        batches = -(-source.validation.size // recipe.batch_size)
        progress = TrainingProgress(recorder, batches, verbose)
        with data.bad_images_named(source.train, source.validation), progress:
            trained.fit(
                training,
                epochs=recipe.epochs,
                initial_epoch=done,
                steps_per_epoch=steps,
                validation_data=validation,
                callbacks=[
                    recorder,
                    keras.callbacks.TensorBoard(run.directory / "tensorboard", write_graph=False),
                    progress,
                    *callbacks,
                ],
                shuffle=False,  # the data set shuffles, and Keras warns of the default
                verbose=0,
            )
    report.plot_history(recorder.history, run.directory / "training_curve.png")
    best = best_row(recorder.history)
    run.add_results(
        epochs=len(recorder.history),
        best_epoch=best["epoch"],
        validation_accuracy=best["val_accuracy"],
        validation_loss=best["val_loss"],
        parameters=model.count_params(),
        training_seconds=round(sum(row["seconds"] for row in recorder.history), 1),
    )
    return run


def _datasets(
    recipe: Recipe, source: data.Source, statistics: data.ChannelStatistics, done: int
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    training = data.training_dataset(
        source.train,
        recipe.batch_size,
        training_transform(recipe, statistics),
        seed=recipe.seed,
        start_epoch=done,
        deterministic=recipe.deterministic,
        batch_transform=_batch_transform(recipe, len(source.class_names)),
    )
    validation = data.evaluation_dataset(
        source.validation, recipe.batch_size, evaluation_transform(recipe)
    )
    pixels = source.validation.size * recipe.image_size**2 * 3
    if 4 * pixels <= _CACHE_BYTES:
        validation = validation.cache()
    return training, validation.map(partial(_one_hot, classes=len(source.class_names)))


def _feature_datasets(
    run: Run, source: data.Source, base: keras.Model, done: int, verbose: int | str
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
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
    one_hot = partial(_one_hot, classes=len(source.class_names))
    return (
        training.training(recipe.batch_size, recipe.seed, done).map(one_hot),
        validation.evaluation(recipe.batch_size).map(one_hot),
    )


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


def describe(source: data.Source) -> dict[str, Any]:
    """What a run remembers of its data: class names, and size and fingerprint of each split."""
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    return {
        "class_names": list(source.class_names),
        "splits": {
            name: {"images": split.size, "fingerprint": split.fingerprint()}
            for name, split in splits.items()
            if split is not None
        },
    }


def require_same_data(run: Run, described: dict[str, Any]) -> None:
    """Refuse data that changed since the run began: its test images may have been trained on.

    Args:
        run: A run that has begun.
        described: The source as it is now, from `describe`.

    Raises:
        ValueError: says what is different.
    """
    before = run.read_json("data.json")
    was = {"class_names": before["class_names"], **before["splits"]}
    found = {"class_names": described["class_names"], **described["splits"]}
    for name, value in was.items():
        if value != found.get(name):
            raise ValueError(
                f"source {run.recipe.source} has changed since {run.directory} began, so that its "
                f"splits are not the same images: {name} was {value}, is {found.get(name)}"
            )


def _statistics(recipe: Recipe, split: data.Split) -> data.ChannelStatistics:
    known = recipe.init is not None or None not in (recipe.mean_rgb, recipe.std_rgb)
    if known and not recipe.rgb_shift:  # nothing would be asked of them
        return data.ChannelStatistics(np.zeros(3), np.ones(3), np.zeros(3), np.eye(3), images=0)
    return data.statistics(split)


def load_source(recipe: Recipe) -> data.Source:
    """The recipe's data, as `keras_vgg.data.load_source`."""
    return data.load_source(
        recipe.source,
        validation_fraction=recipe.validation_fraction,
        test_fraction=recipe.test_fraction,
        seed=recipe.seed,
        data_dir=recipe.data_dir,
        manual_dir=recipe.manual_dir,
        download=recipe.download,
        train_split=recipe.train_split,
        validation_split=recipe.validation_split,
        test_split=recipe.test_split,
        on_bad_image=recipe.on_bad_image,
    )


def training_transform(recipe: Recipe, statistics: data.ChannelStatistics | None) -> partial:
    """The recipe's ([h, w, 3], seed) -> uint8 [size, size, 3] for training.

    `statistics`, of the training split, are for rgb_shift alone.
    """
    return partial(
        augment.train_image,
        size=recipe.image_size,
        scale=recipe.train_scale,
        crop_padding=recipe.crop_padding,
        flip=recipe.horizontal_flip,
        brightness=recipe.brightness,
        contrast=recipe.contrast,
        saturation=recipe.saturation,
        hue=recipe.hue,
        shift=recipe.rgb_shift,
        eigenvalues=statistics and statistics.eigenvalues,
        eigenvectors=statistics and statistics.eigenvectors,
    )


def evaluation_transform(recipe: Recipe) -> partial:
    """The recipe's [h, w, 3] -> [size, size, 3] for validation, test and prediction."""
    return partial(augment.eval_image, size=recipe.image_size, scale=recipe.eval_scale)


def _batch_transform(
    recipe: Recipe, classes: int
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    strengths = {name: getattr(recipe, name) for name in BATCH_AUGMENTATIONS}
    mix = augment.batch_augmentation(**strengths)

    def transform(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images, one_hot = _one_hot(images, labels, classes)
        return (images, one_hot) if mix is None else mix(images, one_hot, seed)

    return transform


def _one_hot(images: tf.Tensor, labels: tf.Tensor, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    return images, tf.one_hot(labels, classes)


def _environment(engine: hardware.Engine) -> dict[str, Any]:
    packages = ("keras", "tensorflow", "tensorflow-datasets", "numpy")
    return {
        "keras_vgg": __version__,
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "engine": str(engine),
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }

"""The data of a recipe: source, batches, and a check that a resume has the same images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg import augment, data
from keras_vgg.backend import is_jax
from keras_vgg.fit import hosts
from keras_vgg.fit.schedule import part_end
from keras_vgg.recipe import BATCH_AUGMENTATIONS, Recipe
from keras_vgg.run import Run

_CACHE_BYTES = 2**30  # smaller validation splits are prepared once, not every epoch


def load_source(recipe: Recipe, on_bad_image: str | None = None) -> data.Source:
    """Open the recipe's data; errors as in `keras_vgg.data.load_source`.

    `on_bad_image` takes the place of the recipe's.
    """
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
        on_bad_image=on_bad_image or recipe.on_bad_image,
        bit_depth=recipe.bit_depth,
        columns=recipe.columns,
        group_pattern=recipe.group_pattern,
        folds=recipe.folds,
        fold=recipe.fold,
    )


def channel_statistics(recipe: Recipe, split: data.Split) -> data.ChannelStatistics:
    """Return the training split's statistics; zeros and ones if the recipe does not use them."""
    known = recipe.init is not None or None not in (recipe.mean_rgb, recipe.std_rgb)
    if known and not recipe.rgb_shift:
        return data.ChannelStatistics.unknown()
    if hosts.count() == 1:
        return data.statistics(split)
    statistics = None if hosts.index() else data.statistics(split)
    values = hosts.share(
        statistics and {k: np.asarray(v).tolist() for k, v in vars(statistics).items()}
    )
    images = values.pop("images")
    return data.ChannelStatistics(**{k: np.array(v) for k, v in values.items()}, images=images)


def describe(source: data.Source) -> dict[str, Any]:
    """Return what data.json holds: class names, and size and fingerprint of each split.

    With several labels an image, it also holds `several_labels`, which is true.
    """
    return {
        **({"several_labels": True} if source.several_labels else {}),
        "class_names": list(source.class_names),
        "splits": {
            name: {"images": split.size, "fingerprint": split.fingerprint()}
            for name, split in source.splits().items()
        },
    }


def file_sizes(source: data.Source) -> dict[str, str]:
    """Return what data.json holds as `file_sizes`: split -> a digest; nothing without files.

    A fingerprint reads no files: a copy in which each has another content has the same one.
    """
    sizes = {name: split.stamp(times=False) for name, split in source.splits().items()}
    return {name: size for name, size in sizes.items() if size is not None}


def require_same_data(
    run: Run, described: dict[str, Any], advice: str = "choose another workdir"
) -> None:
    """Require that the data did not change since the run began.

    If it did, images of the new test split may be among the images that the run trained on.

    Args:
        run: A run that has begun.
        described: The present data, from `describe`.
        advice: What to do if the data changed, for the error.

    Raises:
        ValueError: the data changed. The error names the first difference.
    """
    stored = run.read_json("data.json")
    before = {"class_names": stored["class_names"], **stored["splits"]}
    now = {"class_names": described["class_names"], **described["splits"]}
    for name, value in before.items():
        if value != now.get(name):
            raise ValueError(
                f"source {run.recipe.source} has changed since {run.directory / 'data.json'} was "
                f"written, so its splits hold other images: {str(name)[:40]} was "
                f"{str(value)[:200]}, is {str(now.get(name))[:200]}; {advice}"
            )


def training_transform(
    recipe: Recipe, statistics: data.ChannelStatistics | None, color_apart: bool = False
) -> partial:
    """Return the recipe's data augmentation: ([h, w, 3], seed) -> uint8 [size, size, channels].

    Only rgb_shift needs `statistics`, those of the training split. With `color_apart`, images come
    before their colours and with the amounts of these: `augment.train_image_uncolored`.
    """
    covered = {} if color_apart else {"cutout": recipe.cutout}
    return _in_color(
        recipe,
        augment.train_image_uncolored if color_apart else augment.train_image,
        **crop_options(recipe),
        brightness=recipe.brightness,
        contrast=recipe.contrast,
        saturation=recipe.saturation,
        hue=recipe.hue,
        shift=recipe.rgb_shift,
        eigenvalues=statistics and statistics.eigenvalues,
        eigenvectors=statistics and statistics.eigenvectors,
        **covered,
    )


def crop_options(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `augment.train_window`, which `augment.train_image` takes too."""
    policies = {
        "none": None,
        "trivial": augment.trivial_augment(),
        "rand": augment.rand_augment(recipe.rand_operations, recipe.rand_magnitude),
    }
    return {
        "size": recipe.image_size,
        "scale": recipe.train_scale_range,
        "resize": recipe.resize,
        "crop_padding": recipe.crop_padding,
        "crop_area": recipe.crop_area,
        "crop_ratio": recipe.crop_ratio,
        "rotation": recipe.rotation,
        "shear": recipe.shear,
        "translation": recipe.translation,
        "flip": recipe.horizontal_flip,
        "vertical_flip": recipe.vertical_flip,
        "policy": policies[recipe.auto_augment],
    }


def describe_crops(recipe: Recipe) -> str:
    """Return the field that decides the size of training crops, and its value."""
    if recipe.crop_area is not None:
        return f"crop_area {recipe.crop_area}"
    return f"train_scale {recipe.train_scale_range}"


def evaluation_transform(recipe: Recipe) -> partial:
    """Return [h, w, 3] -> [size, size, 3] for validation, test and prediction.

    Grey recipes have one channel instead of three.
    """
    return _in_color(
        recipe,
        augment.eval_image,
        size=recipe.image_size,
        scale=recipe.eval_scale_side,
        resize=recipe.resize,
    )


def _in_color(recipe: Recipe, transform: Callable, **options: Any) -> partial:
    """Return a transform with options, whose images have the recipe's channels."""
    with_options = partial(transform, **options)
    return augment.in_grey(with_options) if recipe.color == "grey" else with_options


def training_data(
    recipe: Recipe,
    source: data.Source,
    statistics: data.ChannelStatistics,
    epoch: int = 0,
    step: int = 0,
    color_apart: bool = False,
    switches: bool = True,
) -> tf.data.Dataset:
    """Return endless batches (images, one-hot labels) from `step` of `epoch` on.

    With gradient accumulation, a batch comes as several parts. Without mixup and cutmix in the last
    epochs (`unmixed_epochs`), there is one data set after the other; without `switches`, all
    batches are mixed as those of `epoch`. With `color_apart`, which
    excludes mixing, images are pairs for `augment.color_batch`.
    """
    switch = next_mixing_switch(recipe, epoch) if switches else None
    batches = _batches(recipe, source, statistics, epoch, step, color_apart)
    if switch is not None:
        host_batch = recipe.batch_size // hosts.count()
        steps = data.steps_per_epoch(source.train, host_batch, hosts.count())
        batches = batches.take((switch - epoch) * steps - step)
        rest = training_data(recipe.replace(gradient_accumulation=1), source, statistics, switch)
        endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        batches = batches.concatenate(rest).apply(endless)
    return in_parts(recipe, batches)


def is_mixed(recipe: Recipe, epoch: int) -> bool:
    """Return whether the batches of an epoch, from 0, have mixup and cutmix."""
    return not recipe.unmixed_epochs or part_end(recipe, epoch) - epoch > recipe.unmixed_epochs


def next_mixing_switch(recipe: Recipe, epoch: int) -> int | None:
    """Return the next epoch in which mixing is switched on or off; None: there is none."""
    if not (recipe.mixup or recipe.cutmix) or not recipe.unmixed_epochs:
        return None
    later = range(epoch + 1, recipe.epochs)
    return next((e for e in later if is_mixed(recipe, e) != is_mixed(recipe, epoch)), None)


def _batches(
    recipe: Recipe,
    source: data.Source,
    statistics: data.ChannelStatistics,
    epoch: int,
    step: int,
    color_apart: bool,
) -> tf.data.Dataset:
    """Return endless batches, all of them mixed as those of `epoch`."""
    if not is_mixed(recipe, epoch):
        recipe = recipe.replace(mixup=0.0, cutmix=0.0)
    return data.training_dataset(
        source.train,
        recipe.batch_size // hosts.count(),
        training_transform(recipe, statistics, color_apart),
        seed=recipe.seed,
        start_epoch=epoch,
        start_step=step,
        host=hosts.index(),
        hosts=hosts.count(),
        deterministic=recipe.deterministic,
        balanced=recipe.sampling == "balanced",
        batch_transform=_batch_transform(recipe, len(source.class_names)),
    )


def in_parts(recipe: Recipe, batches: tf.data.Dataset) -> tf.data.Dataset:
    """Divide each batch into `gradient_accumulation` batches."""
    if recipe.gradient_accumulation == 1:
        return batches
    return batches.rebatch(recipe.part_size // hosts.count())


def validation_data(recipe: Recipe, source: data.Source) -> tf.data.Dataset:
    """Return every validation image once, in order: batches (images, one-hot labels).

    On JAX, devices and hosts share a batch, so all batches are full: see `full_batches`.
    """
    classes, split = len(source.class_names), source.validation
    assert split is not None, "training looks for a validation split first"
    if is_jax():
        examples = data.evaluation_dataset(
            split, None, evaluation_transform(recipe), host=hosts.index(), hosts=hosts.count()
        )
        validation = full_batches(recipe, examples, split.size, classes)
    else:
        validation = data.evaluation_dataset(split, recipe.part_size, evaluation_transform(recipe))
    pixels = split.size * recipe.image_size**2 * 3
    if 4 * pixels <= _CACHE_BYTES * hosts.count():
        validation = validation.cache()
    if is_jax():
        return validation
    return validation.map(partial(one_hot, classes=classes))


def full_batches(
    recipe: Recipe, examples: tf.data.Dataset, images: int, classes: int
) -> tf.data.Dataset:
    """Return batches (images, one-hot labels, weights) of this host's pairs (image, label).

    `images` counts the pairs of all hosts. Features may take the place of images.
    Black images of weight 0 fill the last batch. Keras divides a loss by all images of a batch, so
    the weight of the other images is more than 1: the mean is then that of the split's images.
    """
    batch, count = recipe.part_size // hosts.count(), hosts.count()
    batches = -(-images // recipe.part_size)
    weight = batches * recipe.part_size / images
    own_images = len(range(hosts.index(), images, count))

    def add_weight(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        _, target = one_hot(image, label, classes)
        return image, target, tf.constant(weight, tf.float32)

    weighted = examples.map(add_weight)
    specs: Any = weighted.element_spec  # a tuple, as `add_weight` returns
    zeros = tuple(tf.zeros(spec.shape, spec.dtype) for spec in specs)
    filling = tf.data.Dataset.from_tensors(zeros).repeat(batches * batch - own_images)
    full_batches = weighted.concatenate(filling).batch(batch, drop_remainder=True)
    cardinality = tf.data.experimental.assert_cardinality(batches)
    return full_batches.prefetch(tf.data.AUTOTUNE).apply(cardinality)


def _batch_transform(
    recipe: Recipe, classes: int
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    strengths = {name: getattr(recipe, name) for name in BATCH_AUGMENTATIONS}
    mix = augment.batch_augmentation(**strengths)

    def transform(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images, targets = one_hot(images, labels, classes)
        return (images, targets) if mix is None else mix(images, targets, seed)

    return transform


def one_hot(images: tf.Tensor, labels: tf.Tensor, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return (images, float32 [n, classes]) for (images, int [n] or uint8 [n, classes]).

    The same for a single image and its label, int [] or uint8 [classes].
    """
    if labels.dtype == tf.uint8:  # several labels an image: it is in this form already
        return images, tf.cast(labels, tf.float32)
    return images, tf.one_hot(labels, classes)

"""From a split to batches: training in a repeatable random order, evaluation of every image once.

Determinism is exact. The order of epoch e is a function of (seed, e), an image's augmentation seed
of (seed, e, its position in that order), and nothing else: a run that starts at step 7 of epoch 5
sees what a run from the beginning sees there, however many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import tensorflow as tf

from keras_vgg.augment import channels_for, may_take_pictures
from keras_vgg.data.balance import balanced_order
from keras_vgg.data.decode import decode, transform_encoded
from keras_vgg.data.options import untuned
from keras_vgg.data.split import Records, Split, labels_of, pictures_of

# Records are mixed across so many shards at a time, in a buffer of so many records: encoded, about
# 200 MB of photographs. It is filled anew for every group of shards; the trainer waits for that.
MIXED_SHARDS = 16
MIXED_RECORDS = 2048

_random = tf.random.experimental  # pyright: ignore[reportAttributeAccessIssue]  # the stub lacks it


def steps_per_epoch(split: Split, batch_size: int, hosts: int = 1) -> int:
    """Return the number of whole batches in an epoch, each of `batch_size` images on each host.

    Raises:
        ValueError: there is no whole batch.
    """
    smallest = split.size // hosts
    if split.records is not None and hosts > 1:
        shares = [split.records.share(host, hosts).size for host in range(hosts)]
        smallest = min(shares)
    if not 1 <= batch_size <= smallest:
        each = "" if hosts == 1 else f" on each of {hosts} hosts"
        raise ValueError(
            f"batch_size={batch_size} must be from 1 to {smallest}, "
            f"the number of images of split {split.name!r}{each}"
        )
    return smallest // batch_size


def training_dataset(
    split: Split,
    batch_size: int,
    transform: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    seed: int,
    start_epoch: int = 0,
    start_step: int = 0,
    host: int = 0,
    hosts: int = 1,
    deterministic: bool = True,
    balanced: bool = False,
    batch_transform: Callable[..., tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> tf.data.Dataset:
    """Return endless batches (transform's dtype [batch, size, size, 3], int32 [batch]).

    They begin with batch `start_step` of epoch `start_epoch`: nothing before it is decoded, nor are
    files before it read, or groups of 16 shards. `transform(image, seed)` maps uint8 [h, w, 3] and
    a seed [2] to [size, size, 3]; one marked by `augment.takes_pictures` may be given a Picture
    instead. An epoch is `steps_per_epoch` batches; what remains is dropped, other images each time.

    Images in memory and files are shuffled as a whole, by index, before anything is decoded.
    Records are shuffled within 16 shards, drawn anew each epoch, through a buffer of 2,048.
    With several `hosts`, each makes `batch_size` images of every batch: of images in memory and
    files, together exactly what one host would (before `batch_transform`); of records, each from
    every hosts-th shard.
    Without `deterministic`, images that are ready overtake others, and nothing above is exact.
    `balanced`: each batch has every class equally often, see `balanced_order`; not for records.
    `batch_transform(images, labels, seed)` -> (images, labels) is applied to every whole batch.

    Example:
        ```python
        from functools import partial

        from keras_vgg import augment, data

        split = data.load_source("digits").train
        crops = partial(augment.train_image, size=32, scale=(32, 40), flip=False)
        images, labels = next(iter(data.training_dataset(split, 64, crops, seed=0)))
        print(images.shape, images.dtype)  # (64, 32, 32, 3) uint8
        ```
    """
    steps = steps_per_epoch(split, batch_size, hosts)
    _require_batches(split, start_step, steps, host, hosts, balanced)
    load = _loader(split, transform)

    def order_of(epoch: tf.Tensor, order_seed: tf.Tensor) -> tf.Tensor:
        if not balanced:
            return _random.stateless_shuffle(tf.range(split.size), order_seed)
        return _balanced(split, steps, hosts * batch_size, seed, epoch)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order_seed, image_seed = tf.unstack(tf.random.split(tf.stack([seed, epoch]), 2))
        first = tf.where(epoch == start_epoch, start_step, 0)
        positions = _positions(first, steps, host, hosts, batch_size)
        seeds = tf.gather(tf.random.split(image_seed, steps * hosts * batch_size), positions)
        image_seeds = tf.data.Dataset.from_tensor_slices(seeds)
        if split.records is not None:
            share = split.records.share(host, hosts)
            records = _mixed(share, order_seed, tf.cast(first, tf.int64) * batch_size)
            return tf.data.Dataset.zip(records, image_seeds)
        order = tf.gather(order_of(epoch, order_seed), positions)
        order = tf.data.Dataset.from_tensor_slices(order)
        return tf.data.Dataset.zip(order, image_seeds)

    def example(item: tf.Tensor | tuple, image_seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return *load(item, lambda image: transform(image, image_seed)), image_seed

    def finish(
        images: tf.Tensor, labels: tf.Tensor, image_seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if batch_transform is None:
            return images, labels
        # Nothing else draws from this one.
        return batch_transform(images, labels, tf.random.fold_in(image_seeds[0], 2))

    # Indices flow across the end of an epoch, so the workers are never drained; as an epoch has
    # whole batches only, the batches do not mix epochs.
    epochs = tf.data.Dataset.range(start_epoch, tf.int64.max)
    examples = epochs.flat_map(epoch_of).map(
        example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic
    )
    batches = examples.batch(batch_size, drop_remainder=True).map(
        finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=deterministic
    )
    batches = batches.prefetch(tf.data.AUTOTUNE)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return untuned(batches.apply(endless))


def _require_batches(
    split: Split, start_step: int, steps: int, host: int, hosts: int, balanced: bool
) -> None:
    """Raise ValueError if a split has no such batches, or no balanced ones."""
    if not 0 <= start_step < steps or not 0 <= host < hosts:
        raise ValueError(
            f"start_step={start_step} must be in [0, {steps}) and host={host} in [0, {hosts})"
        )
    if balanced:
        require_any_order(split)


def require_any_order(split: Split) -> None:
    """Raise ValueError if a split's images cannot be sampled class by class."""
    if split.records is not None:
        raise ValueError(
            f"balanced sampling needs images in any order, and split {split.name!r} is read from "
            "TFRecord files; use class weights instead, or a folder of images"
        )
    if split.several_labels:
        raise ValueError(
            f"balanced sampling needs one label an image, and split {split.name!r} gives several"
        )


def _balanced(split: Split, steps: int, batch_size: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Return the indices of an epoch, int32 [steps * batch_size]: see `balanced_order`."""
    draw = partial(balanced_order, labels_of(split), steps, batch_size, seed)
    order = tf.numpy_function(draw, [epoch], tf.int32)
    return tf.ensure_shape(order, [steps * batch_size])


def _positions(first: tf.Tensor, steps: int, host: int, hosts: int, batch_size: int) -> tf.Tensor:
    """Return a host's positions in an epoch's order, as one host would go through the order."""
    positions = tf.reshape(tf.range(steps * hosts * batch_size), [steps, hosts, batch_size])
    return tf.reshape(positions[first:, host], [-1])


def evaluation_dataset(
    split: Split,
    batch_size: int | None,
    transform: Callable[[tf.Tensor], tf.Tensor],
    *,
    host: int = 0,
    hosts: int = 1,
) -> tf.data.Dataset:
    """Return all images in order: batches (transform's dtype [<=batch, ...], int32 [<=batch]).

    The last batch is smaller where the size of the split is no multiple of `batch_size`. None:
    single (image, label) pairs, whose images may differ in size. Of several `hosts` each gets
    every hosts-th image, from its own number on.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    if not 0 <= host < hosts:
        raise ValueError(f"host={host} must be in [0, {hosts})")

    chosen = np.arange(host, split.size, hosts)
    if split.records is not None and hosts > 1:
        examples = _decoded(split, split.records.dataset().shard(hosts, host), transform)
    else:
        examples = in_order(split, chosen, transform)
    if batch_size is None:
        return untuned(examples.prefetch(tf.data.AUTOTUNE))
    batches = examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    exactly = tf.data.experimental.assert_cardinality(-(-len(chosen) // batch_size))
    return untuned(batches.apply(exactly))


def _loader(split: Split, transform: Callable) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Return what turns an index, or an (encoded, label) record, into (of_image(image), label).

    The label is int32 [], or uint8 [classes] where an image may have several. `of_image` is
    `transform`, or calls it: it is given a Picture, or one channel, if `transform` takes that.
    """
    lazy, channels = may_take_pictures(transform), channels_for(transform)

    def transformed(encoded: tf.Tensor, of_image: Callable) -> tf.Tensor:
        if lazy:
            return transform_encoded(
                encoded, of_image, bit_depth=split.bit_depth, channels=channels
            )
        return of_image(decode(encoded, bit_depth=split.bit_depth))

    if split.records is not None:
        return lambda record, of_image: (
            transformed(record[0], of_image),
            tf.cast(record[1], tf.int32),
        )
    # On the CPU, where tf.data runs: a GPU would be given a copy it does not need.
    with tf.device("CPU"):
        labels = tf.constant(labels_of(split), tf.uint8 if split.several_labels else tf.int32)
        pictures = tf.constant(_kept_channels(pictures_of(split), channels))

    def load(index: tf.Tensor, of_image: Callable) -> tuple[tf.Tensor, tf.Tensor]:
        picture = tf.gather(pictures, index)
        if split.images is None:
            image = transformed(tf.io.read_file(picture), of_image)
        else:
            image = of_image(picture)
        return image, tf.gather(labels, index)

    return load


def _kept_channels(pictures: np.ndarray, channels: int) -> np.ndarray:
    """Return images of one channel for [n, h, w, 3] that are grey, and any others as they are."""
    if channels == 3 or pictures.ndim != 4:
        return pictures
    red, *others = np.moveaxis(pictures, -1, 0)
    is_grey = all(np.array_equal(red, other) for other in others)
    return red[..., np.newaxis] if is_grey else pictures


def in_order(split: Split, indices: np.ndarray, transform: Callable) -> tf.data.Dataset:
    """Return (transform(image), label) at ascending `indices`; from records, the first ones."""
    if split.records is not None:
        return _decoded(split, split.records.dataset().take(len(indices)), transform)
    load = _loader(split, transform)
    return tf.data.Dataset.from_tensor_slices(indices).map(
        lambda index: load(index, transform),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _decoded(split: Split, records: tf.data.Dataset, transform: Callable) -> tf.data.Dataset:
    """Return (transform(image), label) of each record."""
    load = _loader(split, transform)
    return records.map(
        lambda *record: load(record, transform),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _mixed(records: Records, seed: tf.Tensor, skip: tf.Tensor) -> tf.data.Dataset:
    """Return (encoded image, label) of the records after the first `skip`, in the order of `seed`.

    Shards are drawn without replacement, MIXED_SHARDS at a time; such a group is read in turns and
    shuffled by itself, so that whole groups can be skipped without reading them.
    """
    paths, starts, stops = records.columns()
    sizes = stops - starts
    count = tf.size(paths)  # len() would need AutoGraph, which source code must be at hand for
    order = _random.stateless_shuffle(tf.range(count), seed)
    groups = -(-count // MIXED_SHARDS)
    group_of = tf.range(count) // MIXED_SHARDS
    ends = tf.cumsum(tf.math.segment_sum(tf.gather(sizes, order), group_of))
    first = tf.searchsorted(ends, skip[tf.newaxis], side="right")[0]
    passed = tf.where(first > 0, ends[tf.maximum(first - 1, 0)], 0)

    def group(number: tf.Tensor) -> tf.data.Dataset:
        start = tf.cast(number, tf.int32) * MIXED_SHARDS
        members = order[start : start + MIXED_SHARDS]
        columns = tuple(tf.gather(column, members) for column in (paths, starts, stops))
        group_records = tf.data.Dataset.from_tensor_slices(columns).interleave(
            records.read,  # pyright: ignore[reportArgumentType]  # the stub has one column
            cycle_length=MIXED_SHARDS,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        # The stub has ints for tensors.
        group_seed = tf.random.fold_in(seed, number)  # pyright: ignore[reportArgumentType]
        return _shuffled(group_records, group_seed)  # pyright: ignore[reportArgumentType]

    numbers = tf.data.Dataset.range(tf.cast(first, tf.int64), tf.cast(groups, tf.int64))
    return numbers.flat_map(group).skip(skip - passed)


def _shuffled(records: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
    """Return what Dataset.shuffle does with a tensor of two seeds.

    The method itself mixes the global seed in, and fails on a tensor where that is 0.
    """
    specs = tf.nest.flatten(records.element_spec)
    shuffled = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(records),
        buffer_size=MIXED_RECORDS,
        seed=tf.cast(seed[0], tf.int64),
        seed2=tf.cast(seed[1], tf.int64),
        reshuffle_each_iteration=False,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
    )
    return tf.data.experimental.from_variant(shuffled, records.element_spec)

"""From a split to batches: training in a repeatable random order, evaluation of every image once.

Determinism is exact. The order of epoch e is a function of (seed, e), an image's augmentation seed
of (seed, e, its position in that order), and nothing else, so a run that starts at epoch 5 sees
what a run from epoch 0 sees there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from keras_vgg.data.decode import decode
from keras_vgg.data.split import Split

# Encoded, so about 1 GB of photographs.
STREAM_SHUFFLE_BUFFER = 10_000


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """RGB over the pixels of `images` images.

    `mean`, `std`: float64 [3] in [0, 255] units. `eigenvalues` [3], descending, and `eigenvectors`
    [3, 3], in columns, of the covariance of RGB in [0, 1] units, for `augment.rgb_shift`.
    """

    mean: np.ndarray
    std: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    images: int


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Whole batches in an epoch of training. ValueError if there is none."""
    if not 1 <= batch_size <= split.size:
        raise ValueError(
            f"batch_size={batch_size} must be from 1 to {split.size}, "
            f"the number of images of split {split.name!r}"
        )
    return split.size // batch_size


def training_dataset(
    split: Split,
    batch_size: int,
    transform: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    *,
    seed: int,
    start_epoch: int = 0,
) -> tf.data.Dataset:
    """Endless batches (float32 [batch, size, size, 3], int32 [batch]), from epoch `start_epoch` on.

    `transform(image, seed)` maps uint8 [h, w, 3] and a seed [2] to [size, size, 3]. An epoch is
    `steps_per_epoch` batches; its remainder is dropped, another one each epoch.
    Images in memory and files are shuffled as a whole, by index, before anything is decoded. A
    stream is shuffled within a buffer of 10,000 records: as repeatable, but mixed less well.
    """
    used = steps_per_epoch(split, batch_size) * batch_size
    load = _loader(split)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        order_seed, image_seed = tf.unstack(tf.random.split(tf.stack([seed, epoch]), 2))
        image_seeds = tf.data.Dataset.from_tensor_slices(tf.random.split(image_seed, split.size))
        if split.records is not None:
            records = _shuffled(split.records, order_seed)
            return tf.data.Dataset.zip(records, image_seeds).take(used)
        order = tf.random.experimental.stateless_shuffle(tf.range(split.size), order_seed)
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensor_slices(order[:used]), image_seeds)

    def example(item: tf.Tensor | tuple, image_seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = load(item)
        return tf.cast(transform(image, image_seed), tf.float32), label

    # Indices flow across the end of an epoch, so the workers are never drained; as an epoch has
    # whole batches only, the batches do not mix epochs.
    epochs = tf.data.Dataset.range(start_epoch, tf.int64.max)
    examples = epochs.flat_map(epoch_of).map(
        example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    batches = examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return batches.apply(endless).with_options(_parallel_over_images())


def evaluation_dataset(
    split: Split, batch_size: int, transform: Callable[[tf.Tensor], tf.Tensor]
) -> tf.data.Dataset:
    """Every image once, in order: batches (float32 [<=batch, ...], int32 [<=batch]).

    The last batch is smaller where the size of the split is no multiple of `batch_size`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")

    def transformed(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.cast(transform(image), tf.float32), label

    examples = _in_order(split, np.arange(split.size)).map(
        transformed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    batches = examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    exactly = tf.data.experimental.assert_cardinality(-(-split.size // batch_size))
    return batches.apply(exactly).with_options(_parallel_over_images())


def statistics(
    split: Split,
    transform: Callable[[tf.Tensor], tf.Tensor] | None = None,
    limit: int = 10_000,
) -> ChannelStatistics:
    """Mean, deviation and principal components of RGB over at most `limit` images of the split.

    Those images are evenly spaced through it (of a stream: the first ones). Every pixel counts the
    same, so that, without a `transform(image)` to one size, a larger image weighs more; what a
    transform pads, counts too. ValueError if limit < 1.
    """
    if limit < 1:
        raise ValueError(f"limit={limit}: statistics need at least 1 image")
    count = min(limit, split.size)
    chosen = np.arange(count) * split.size // count

    def moments(image: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        image = image if transform is None else transform(image)
        pixels = tf.reshape(tf.cast(image, tf.float64), [-1, 3]) / 255.0
        # With a column of ones, one product has the count, the sums and the sums of products.
        pixels = tf.pad(pixels, [[0, 0], [0, 1]], constant_values=1.0)
        return tf.matmul(pixels, pixels, transpose_a=True)

    sums = _in_order(split, chosen).map(
        moments, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    sums = sums.with_options(_parallel_over_images())
    total = sums.reduce(tf.zeros([4, 4], tf.float64), tf.add).numpy()
    mean = total[:3, 3] / total[3, 3]
    covariance = total[:3, :3] / total[3, 3] - np.outer(mean, mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    return ChannelStatistics(
        mean=255.0 * mean,
        # Rounding can take the variance of a constant channel a hair below 0.
        std=255.0 * np.sqrt(np.maximum(np.diag(covariance), 0.0)),
        eigenvalues=np.maximum(eigenvalues[::-1], 0.0),
        eigenvectors=eigenvectors[:, ::-1],
        images=count,
    )


def _loader(split: Split) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """What turns an index, or a record of a stream, into (uint8 [h, w, 3], int32 label)."""
    if split.records is not None:
        return _decode_record
    # On the CPU, where tf.data runs: a GPU would be given a copy it does not need.
    with tf.device("CPU"):
        labels = tf.constant(split.labels, tf.int32)
        pixels = tf.constant(split.paths if split.images is None else split.images)

    def load(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.gather(pixels, index)
        if split.images is None:
            image = decode(tf.io.read_file(image))
        return image, tf.gather(labels, index)

    return load


def _in_order(split: Split, indices: np.ndarray) -> tf.data.Dataset:
    if split.records is not None:
        items = split.records.take(len(indices))
    else:
        items = tf.data.Dataset.from_tensor_slices(indices)
    load = _loader(split)
    return items.map(
        lambda *item: load(item if split.records is not None else item[0]),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _shuffled(records: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
    """Dataset.shuffle with a tensor of two seeds.

    The method itself mixes the global seed in, and fails on a tensor where that is 0.
    """
    specs = tf.nest.flatten(records.element_spec)
    shuffled = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(records),
        buffer_size=STREAM_SHUFFLE_BUFFER,
        seed=seed[0],
        seed2=seed[1],
        reshuffle_each_iteration=False,
        output_types=[spec.dtype for spec in specs],
        output_shapes=[spec.shape for spec in specs],
    )
    return tf.data.experimental.from_variant(shuffled, records.element_spec)


def _decode_record(record: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    encoded, label = record
    return decode(encoded), tf.cast(label, tf.int32)


def _parallel_over_images() -> tf.data.Options:
    options = tf.data.Options()
    # Many images at once use the cores better than many threads on one image.
    options.threading.max_intra_op_parallelism = 1
    return options

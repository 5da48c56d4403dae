"""Keras' own stronger augmentations, made a function of a seed like everything else here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def batch_augmentation(
    *,
    rand_augment: float = 0.0,
    random_erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None:
    """What changes whole batches: f(images, one_hot, seed) -> (images, one_hot); None for nothing.

    Images are [batch, size, size, 3] in [0, 255], and uint8 when they come out; labels float32
    [batch, classes]. In turn, with layers of keras.layers:
    `rand_augment`, the magnitude of RandAugment's two operations, drawn once a batch, in [0, 1];
    `random_erasing`, the probability of an erased rectangle of noise, per image;
    `mixup`, the alpha of MixUp's beta distribution, and `cutmix`, the factor of CutMix (whose
    labels, in Keras, go by the rectangle's area before the image's edge cuts it): with both, each
    batch is given one of the two, at random.
    """
    dtype = "float32"  # whatever the policy of the model
    first: list[keras.Layer] = []
    if rand_augment:
        first.append(keras.layers.RandAugment((0, 255), factor=rand_augment, dtype=dtype))
    if random_erasing:
        both: Any = (random_erasing, random_erasing)  # Keras' default, 1.0, hides that it takes two
        first.append(keras.layers.RandomErasing(both, dtype=dtype))
    blends: list[keras.Layer] = []
    if mixup:
        blends.append(keras.layers.MixUp(mixup, dtype=dtype))
    if cutmix:
        blends.append(keras.layers.CutMix(cutmix, dtype=dtype))
    if not first and not blends:
        return None
    # Keras draws from a variable, which would make a batch depend on how many came before it.
    stream = _SeedStream()
    for layer in first + blends:
        _draw_from(layer, stream)

    def augment(
        images: tf.Tensor, one_hot: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        stream.restart(seed)
        images = tf.cast(images, tf.float32)
        for layer in first:
            images = layer(images, training=True)

        def blended(number: int) -> tuple[tf.Tensor, tf.Tensor]:
            # With a seed of its own: a graph traces both branches, and eagerly only one is run.
            stream.restart(_folded(seed, number))
            found = blends[number]({"images": images, "labels": one_hot}, training=True)
            return found["images"], found["labels"]

        if len(blends) == 2:
            heads = tf.random.stateless_uniform([], seed) < 0.5
            images, one_hot = tf.cond(heads, lambda: blended(0), lambda: blended(1))
        elif blends:
            images, one_hot = blended(0)
        return tf.cast(tf.clip_by_value(images, 0.0, 255.0) + 0.5, tf.uint8), one_hot

    return augment


class _SeedStream(keras.random.SeedGenerator):
    """Seeds number 0, 1, ... of a given seed, in the order in which a graph is traced."""

    def __init__(self) -> None:
        super().__init__(0)

    def restart(self, seed: tf.Tensor) -> None:
        self.start, self.count = tf.cast(seed, tf.int32), 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        self.count += 1
        return _folded(self.start, self.count)


def _folded(seed: tf.Tensor, number: int) -> tf.Tensor:
    return tf.random.fold_in(seed, number)  # pyright: ignore[reportReturnType]  # the stub: int


def _draw_from(layer: keras.Layer, stream: _SeedStream) -> None:
    # Not its attribute `generator`, which is passed over when Keras' backend is not TensorFlow.
    layer._get_seed_generator = lambda backend=None: stream
    for part in list(vars(layer).values()):
        if isinstance(part, keras.Layer):
            _draw_from(part, stream)

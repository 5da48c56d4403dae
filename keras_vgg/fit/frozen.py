"""A fully frozen base: its features are computed once, kept on disk, and only the head is trained.

Every training image is then seen as evaluation sees it (of one that is not square, the centre), and
its mirror image where the recipe flips; so the epochs that follow cost the head alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import data
from keras_vgg.array_cache import ArrayCache
from keras_vgg.console import progress_bars
from keras_vgg.recipe import BATCH_AUGMENTATIONS, Recipe

SHARD = 2048  # images a file: an interrupted computation loses less than one


def varies(recipe: Recipe) -> list[str]:
    """The fields by which training images would differ every epoch, a mirror image apart."""
    fields = ("crop_padding", "brightness", "contrast", "saturation", "hue", "rgb_shift")
    found = [name for name in fields + BATCH_AUGMENTATIONS if getattr(recipe, name)]
    # At another scale than the crop's size, the crop is drawn at random.
    fixed = recipe.eval_scale is None and recipe.train_scale is None
    size = recipe.image_size
    fixed = fixed or (recipe.eval_scale == size and recipe.train_scale == (size, size))
    return ([] if fixed else ["train_scale"]) + found


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(images -> features, features -> probabilities); both share the model's layers."""
    names = [layer.name for layer in model.layers]
    last = "block5_pool" if "fc1" in names else "avg_pool"
    base = keras.Model(model.inputs[0], model.get_layer(last).output, name=f"{model.name}_base")
    features = keras.Input(base.output_shape[1:], name="features")
    x = features
    for layer in model.layers[names.index(last) + 1 :]:
        x = layer(x)
    return base, keras.Model(features, x, name=f"{model.name}_head")


class Features:
    """The features of a split's images, float32 [images, views, ...] in memory, and their labels.

    Args:
        base: images -> features.
        split: Whose images.
        transform: As `data.evaluation_dataset`.
        mirrored: Compute the mirror images' too: a second view.
        folder: Where the files lie; those of other images, weights or transform are replaced.
        batch_size: Images at a time, a divisor of `SHARD`.
        verbose: Show a progress bar.

    Raises:
        ValueError: another batch size.
    """

    def __init__(
        self,
        base: keras.Model,
        split: data.Split,
        transform: partial,
        *,
        mirrored: bool,
        folder: Path,
        batch_size: int = 64,
        verbose: bool = False,
    ) -> None:
        if SHARD % batch_size:
            raise ValueError(f"batch_size must divide {SHARD}, not {batch_size}")
        self.size = split.size
        self.views = 2 if mirrored else 1
        self.seconds = 0.0
        key = {
            "split": split.fingerprint(),
            "files": split.stamp(),
            "network": hashlib.sha256(base.to_json().encode()).hexdigest(),
            "weights": _digest(base),
            "transform": {name: str(value) for name, value in transform.keywords.items()},
            "input": list(base.input_shape),
            "features": list(base.output_shape),
            "views": self.views,
        }
        cache = ArrayCache(folder, key)
        if cache.done < split.size:
            started = time.perf_counter()
            self._compute(base, split, transform, cache, batch_size, verbose)
            self.seconds = time.perf_counter() - started
        found = cache.load()
        self.features, self.labels = found["features"], found["labels"]

    def _compute(
        self,
        base: keras.Model,
        split: data.Split,
        transform: partial,
        cache: ArrayCache,
        batch_size: int,
        verbose: bool,
    ) -> None:
        @tf.function
        def run(images: tf.Tensor) -> tf.Tensor:
            views = [images, tf.reverse(images, [2])][: self.views]
            features = tf.stack([base(view, training=False) for view in views], axis=1)
            return tf.cast(features, tf.float32)

        rest = split.between(cache.done, split.size)
        features, labels = [], []
        seen = cache.done
        with progress_bars(verbose) as progress:
            task = progress.add_task("features", total=split.size, completed=seen)
            for images, classes in data.evaluation_dataset(rest, batch_size, transform):
                features.append(run(images).numpy())
                labels.append(classes.numpy())
                seen += len(classes)
                progress.update(task, completed=seen)
                if seen % SHARD == 0 or seen == split.size:
                    cache.add(features=np.concatenate(features), labels=np.concatenate(labels))
                    features, labels = [], []
        if seen != split.size:
            raise ValueError(f"computed the features of {seen} of {split.size} images")

    def training(
        self, batch_size: int, seed: int, start_epoch: int, start_step: int = 0
    ) -> tf.data.Dataset:
        """Endless batches, as `data.training_dataset`: a function of (seed, epoch, place)."""
        steps = self.size // batch_size

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            epoch, first = start_epoch, start_step
            while True:
                random = np.random.default_rng([seed, epoch])
                order = random.permutation(self.size)
                views = random.integers(self.views, size=self.size)
                for step in range(first, steps):
                    chosen = slice(step * batch_size, (step + 1) * batch_size)
                    index = order[chosen]
                    yield self.features[index, views[chosen]], self.labels[index]
                epoch, first = epoch + 1, 0

        shape = self.features.shape[2:]
        signature = (
            tf.TensorSpec((batch_size, *shape), tf.float32),
            tf.TensorSpec((batch_size,), tf.int32),
        )
        endless = tf.data.Dataset.from_generator(batches, output_signature=signature)
        return data.untuned(endless.prefetch(2))

    def evaluation(self, batch_size: int) -> tf.data.Dataset:
        """Every image once, unmirrored, in order."""
        images = tf.data.Dataset.from_tensor_slices((self.features[:, 0], self.labels))
        return data.untuned(images.batch(batch_size))


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return digest.hexdigest()

"""Training on a frozen base: compute its features once, store them, and train only the head.

Training then uses the evaluation's crop of each image (the centre, if the image is not square), and
the mirror image too if the recipe flips. Each epoch costs only the head.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import data
from keras_vgg.array_cache import ArrayCache
from keras_vgg.backend import is_tensorflow
from keras_vgg.console import progress_bars
from keras_vgg.fit import hosts
from keras_vgg.recipe import BATCH_AUGMENTATIONS, Recipe
from keras_vgg.run import Run

SHARD = 2048  # images in a file: an interrupted computation loses less than one file


def varies(recipe: Recipe) -> list[str]:
    """Return the fields because of which training needs images every epoch.

    horizontal_flip is not among them: the features of mirror images are computed too.
    """
    fields = ("crop_padding", "crop_area", "vertical_flip", "rotation", "shear", "translation")
    fields += ("brightness", "contrast", "saturation", "hue", "rgb_shift", "cutout")
    # Teachers see the images, so the network has to begin with images too.
    fields += (*BATCH_AUGMENTATIONS, "teachers")
    varying = [name for name in fields if getattr(recipe, name)]
    varying += ["auto_augment"] if recipe.auto_augment != "none" else []
    # If the scale is not the crop's size, the place of the crop is random.
    size = recipe.image_size
    fixed = recipe.eval_scale_side == size and recipe.train_scale_range == (size, size)
    fixed = fixed or recipe.crop_area is not None  # which takes the place of train_scale
    return ([] if fixed else ["train_scale"]) + varying


def keeps_features(recipe: Recipe) -> bool:
    """Return whether a training computes the features of its frozen base once.

    Several hosts share each batch of images, so their base runs every epoch.
    """
    return recipe.freeze_until == "all" and not varies(recipe) and hosts.count() == 1


def has_kept_features(run: Run) -> bool:
    """Return whether a run that has begun keeps features.

    An earlier version kept them also where it rescaled no image, and did not state it.
    """
    recipe, stated = run.recipe, run.read_json("environment.json").get("keeps_features")
    if stated is None and recipe.train_scale_range is None and recipe.eval_scale_side is None:
        size = recipe.image_size
        recipe = recipe.replace(train_scale=(size, size), eval_scale=size)
    return keeps_features(recipe)


def batch_size_of(recipe: Recipe) -> int:
    """Return how many images a base takes at a time: no more than a training step, at most 64.

    A power of 2, which divides `SHARD`.
    """
    return 1 << (min(64, recipe.part_size).bit_length() - 1)


def split_model(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Return (images -> features, features -> probabilities), which share the model's layers."""
    names = [layer.name for layer in model.layers]
    last = "block5_pool" if "fc1" in names else "avg_pool"
    base = keras.Model(model.inputs[0], model.get_layer(last).output, name=f"{model.name}_base")
    features = keras.Input(base.output_shape[1:], name="features")
    x = features
    for layer in model.layers[names.index(last) + 1 :]:
        x = layer(x)
    head = keras.Model(features, x, name=f"{model.name}_head")
    head.dtype_policy = model.dtype_policy  # by which Keras decides about loss scaling
    return base, head


class Features:
    """The features of a split's images, float32 [images, views, ...] in memory, and their labels.

    Args:
        base: The network from images to features.
        split: The split of the images.
        transform: As in `data.evaluation_dataset`.
        mirrored: Whether to compute a second view: the mirror images.
        folder: The folder of the files. Files of other images, weights or transforms are replaced.
        batch_size: Images at a time, a divisor of `SHARD`.
        verbose: Whether to show a progress bar.

    Raises:
        ValueError: the batch size does not divide `SHARD`.
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
        # Keras numbers the inputs of a process, and a resumed run may not have the first one.
        network = base.to_json().replace(f'"{base.layers[0].name}"', '"input_layer"')
        key = {
            "split": split.fingerprint(),
            "files": split.stamp(),
            "network": hashlib.sha256(network.encode()).hexdigest(),
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
        arrays = cache.load()
        self.features, self.labels = arrays["features"], arrays["labels"]

    def _compute(
        self,
        base: keras.Model,
        split: data.Split,
        transform: partial,
        cache: ArrayCache,
        batch_size: int,
        verbose: bool,
    ) -> None:
        run = _compiled(base, self.views, batch_size)
        rest = split.between(cache.done, split.size)
        features, labels = [], []
        images_done = cache.done
        with progress_bars(verbose) as progress:
            task = progress.add_task("features", total=split.size, completed=images_done)
            for images, classes in data.evaluation_dataset(rest, batch_size, transform):
                features.append(run(images))
                labels.append(classes.numpy())
                images_done += len(classes)
                progress.update(task, completed=images_done)
                if images_done % SHARD == 0 or images_done == split.size:
                    cache.add(features=np.concatenate(features), labels=np.concatenate(labels))
                    features, labels = [], []
        if images_done != split.size:
            raise ValueError(f"computed the features of {images_done} of {split.size} images")

    def training(
        self,
        batch_size: int,
        seed: int,
        start_epoch: int,
        start_step: int = 0,
        *,
        balanced: bool = False,
    ) -> tf.data.Dataset:
        """Return endless batches, decided by (seed, epoch, place) as in `data.training_dataset`."""
        steps = self.size // batch_size

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            epoch, first = start_epoch, start_step
            while True:
                random = np.random.default_rng([seed, epoch])
                order = random.permutation(self.size)
                views = random.integers(self.views, size=self.size)
                if balanced:
                    order = data.balanced_order(self.labels, steps, batch_size, seed, epoch)
                for step in range(first, steps):
                    chosen = slice(step * batch_size, (step + 1) * batch_size)
                    index = order[chosen]
                    yield self.features[index, views[chosen]], self.labels[index]
                epoch, first = epoch + 1, 0

        shape, several = self.features.shape[2:], self.labels.ndim == 2
        signature = (
            tf.TensorSpec((batch_size, *shape), tf.float32),
            tf.TensorSpec((batch_size, *self.labels.shape[1:]), tf.uint8 if several else tf.int32),
        )
        endless = tf.data.Dataset.from_generator(batches, output_signature=signature)
        return data.untuned(endless.prefetch(2))

    def evaluation(self, batch_size: int | None) -> tf.data.Dataset:
        """Return batches of every image once, in order, without mirror images; None: no batches."""
        images = tf.data.Dataset.from_tensor_slices((self.features[:, 0], self.labels))
        return data.untuned(images if batch_size is None else images.batch(batch_size))


def _compiled(base: keras.Model, views: int, batch_size: int) -> Callable[[tf.Tensor], np.ndarray]:
    """Return the function from at most `batch_size` images to float32 [images, views, ...]."""
    if is_tensorflow():

        @tf.function
        def run(images: tf.Tensor) -> tf.Tensor:
            both = [images, tf.reverse(images, [2])][:views]
            features = tf.stack([base(view, training=False) for view in both], axis=1)
            return tf.cast(features, tf.float32)

        return lambda images: run(images).numpy()
    # JAX compiles the base for each size of a batch, and its devices share a batch equally: so
    # black images fill the last batch.
    distribution: Any = keras.distribution.distribution()
    devices = 1 if distribution is None else distribution.device_mesh.devices.size
    size = -(-batch_size // devices) * devices

    def predicted(images: np.ndarray) -> np.ndarray:
        batch: Any = images
        if distribution is not None:
            layout = distribution.get_data_layout(images.shape)
            batch = keras.distribution.distribute_tensor(images, layout)
        return np.asarray(base.predict_on_batch(batch))

    def predict(images: tf.Tensor) -> np.ndarray:
        array: np.ndarray = images.numpy()
        count = len(array)
        filled = np.zeros((size, *array.shape[1:]), np.float32)
        filled[:count] = array
        both = [filled, filled[:, :, ::-1]][:views]
        features = [predicted(view)[:count] for view in both]
        return np.stack(features, axis=1).astype(np.float32)

    return predict


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return digest.hexdigest()

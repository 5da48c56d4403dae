"""A fully frozen base: its features are computed once, kept on disk, and only the head is trained.

Every training image is then seen as evaluation sees it (of one that is not square, the centre), and
its mirror image where the recipe flips; so the epochs that follow cost the head alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_vgg import data
from keras_vgg.atomic import write_atomically
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
            "files": _stamp(split),
            "network": hashlib.sha256(base.to_json().encode()).hexdigest(),
            "weights": _digest(base),
            "transform": {name: str(value) for name, value in transform.keywords.items()},
            "input": list(base.input_shape),
            "features": list(base.output_shape),
            "views": self.views,
        }
        _claim(folder, key)
        paths = [folder / f"features-{i:05d}.npz" for i in range(-(-split.size // SHARD))]
        done = 0
        while done < len(paths) and _readable(paths[done]):
            done += 1
        if done < len(paths):
            started = time.perf_counter()
            self._compute(base, split, transform, paths, done, batch_size, verbose)
            self.seconds = time.perf_counter() - started
        self.features, self.labels = [], []
        for path in paths:
            with np.load(path, allow_pickle=False) as file:
                self.features.append(file["features"])
                self.labels.append(file["labels"])
        self.features = np.concatenate(self.features)
        self.labels = np.concatenate(self.labels)

    def _compute(
        self,
        base: keras.Model,
        split: data.Split,
        transform: partial,
        paths: list[Path],
        done: int,
        batch_size: int,
        verbose: bool,
    ) -> None:
        @tf.function
        def run(images: tf.Tensor) -> tf.Tensor:
            views = [images, tf.reverse(images, [2])][: self.views]
            features = tf.stack([base(view, training=False) for view in views], axis=1)
            return tf.cast(features, tf.float32)

        bar = keras.utils.Progbar(split.size, verbose=int(verbose), unit_name="image")
        dataset = data.evaluation_dataset(split, batch_size, transform).unbatch()
        dataset = dataset.skip(done * SHARD).batch(batch_size).prefetch(2)
        features, labels = [], []
        seen = done * SHARD
        for images, classes in dataset:
            features.append(run(images).numpy())
            labels.append(classes.numpy())
            seen += len(classes)
            bar.update(seen)
            if seen % SHARD == 0 or seen == split.size:
                arrays = {"features": np.concatenate(features), "labels": np.concatenate(labels)}
                write_atomically(paths[done], partial(_save, arrays=arrays))
                done, features, labels = done + 1, [], []
        if seen != split.size:
            raise ValueError(f"computed the features of {seen} of {split.size} images")

    def training(self, batch_size: int, seed: int, start_epoch: int) -> tf.data.Dataset:
        """Endless batches, as `data.training_dataset`: a function of (seed, epoch, place)."""
        steps = self.size // batch_size

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            epoch = start_epoch
            while True:
                random = np.random.default_rng([seed, epoch])
                order = random.permutation(self.size)
                views = random.integers(self.views, size=self.size)
                for step in range(steps):
                    chosen = slice(step * batch_size, (step + 1) * batch_size)
                    index = order[chosen]
                    yield self.features[index, views[chosen]], self.labels[index]
                epoch += 1

        shape = self.features.shape[2:]
        signature = (
            tf.TensorSpec((batch_size, *shape), tf.float32),
            tf.TensorSpec((batch_size,), tf.int32),
        )
        return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)

    def evaluation(self, batch_size: int) -> tf.data.Dataset:
        """Every image once, unmirrored, in order."""
        return tf.data.Dataset.from_tensor_slices((self.features[:, 0], self.labels)).batch(
            batch_size
        )


def _claim(folder: Path, key: dict) -> None:
    path = folder / "key.json"
    if path.is_file() and json.loads(path.read_text()) == key:
        return
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_atomically(path, lambda target: target.write_text(json.dumps(key, indent=2) + "\n"))


def _readable(path: Path) -> bool:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {"features", "labels"} <= set(file.files)
    except (OSError, ValueError, zipfile.BadZipFile):  # not there, or cut off
        return False


def _stamp(split: data.Split) -> str | None:
    """Changes when an image file is written anew under its name."""
    if split.paths is None:
        return None
    digest = hashlib.sha256()
    for path in split.paths:
        found = os.stat(path)
        digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
    return digest.hexdigest()


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).data)
    return digest.hexdigest()


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)

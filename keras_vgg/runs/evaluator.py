"""Run a run's network on images by a protocol at a scale. Posteriors are kept on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from keras_vgg import augment, data, evaluation
from keras_vgg.array_cache import ArrayCache
from keras_vgg.console import progress_bars
from keras_vgg.files import sha256_of
from keras_vgg.fit import evaluation_transform
from keras_vgg.native_stderr import without_tensorflow_message
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.images import RunImages, UnknownClasses, open_images
from keras_vgg.runs.memory import memory_error_explained
from keras_vgg.runs.network import open_network

_ARITHMETIC = 2  # Increase it when the same images and weights get other posteriors.
_PIXELS = 2**21  # in a batch at most: 42 images of 224x224

Scale = int | None


class Evaluator:
    """A run on some images. The model is opened when it is needed."""

    def __init__(self, run: Run, images: RunImages, average: str | None, verbose: bool) -> None:
        self.run, self.images = run, images
        self._average, self._verbose = average, verbose
        split = images.split
        self._images: dict[str, Any] = {"split": split.fingerprint(), "files": split.stamp()}
        if images.source is not None:  # The fingerprint of records does not have the labels.
            self._images["classes"] = images.classes
        self._weights = sha256_of(self.run.model_path)
        self._model = None
        self._runners: dict[evaluation.Protocol, Callable] = {}

    @classmethod
    def open(
        cls,
        run: Run,
        split: str | None,
        average: str | None,
        verbose: bool,
        source: str | None,
        unknown_classes: UnknownClasses,
    ) -> Evaluator:
        """Open a run and its images; args and raises as `keras_vgg.runs.evaluate_run`."""
        run.require_model()
        return cls(run, open_images(run, split, source, unknown_classes), average, verbose)

    def posteriors(self, name: str, scale: Scale) -> evaluation.Evaluation:
        """Return every image's posteriors by one protocol at one scale; reuse those on disk."""
        return evaluation.Evaluation(
            *self._arrays(name, scale), self.run.class_names, self.images.split.groups
        )

    def _arrays(self, name: str, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and posteriors by one protocol at one scale."""
        recipe, split = self.run.recipe, self.images.split
        protocol = evaluation.Protocol(name, self._average, mirror=recipe.horizontal_flip)
        transform = _transform(recipe, protocol.name, scale)
        key = {
            **self._images,
            "model": self._weights,
            "arithmetic": _ARITHMETIC,
            "protocol": dataclasses.asdict(protocol),
            "transform": transform.keywords,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        # Other weights or images have another digest, and so a folder of their own.
        folder = "-".join(map(str, (protocol.name, protocol.average, scale or "native", digest)))
        cache = ArrayCache(self.run.directory / "posteriors" / self.images.folder / folder, key)
        if cache.done < split.size:
            self._run(protocol, transform, cache, f"{self.run.directory.name} {folder}")
        arrays = cache.load()
        return arrays["labels"], arrays["posteriors"]

    def average_of(self, plan: Sequence[tuple[str, Scale]]) -> evaluation.Evaluation:
        """Return the average of the posteriors of several protocols and scales."""
        return evaluation.fuse([self.posteriors(protocol, scale) for protocol, scale in plan])

    def on(self, images: RunImages) -> Evaluator:
        """Return an evaluator of the same run, model and options for other images."""
        return Evaluator(self.run, images, self._average, self._verbose)

    def labels_of(self, plan: Sequence[tuple[str, Scale]]) -> evaluation.MultiLabelEvaluation:
        """Return the same for several labels an image; all thresholds are 0.5."""
        names, groups = self.run.class_names, self.images.split.groups
        return evaluation.fuse(
            [
                evaluation.MultiLabelEvaluation(*self._arrays(*one), names, groups=groups)
                for one in plan
            ]
        )

    def close(self) -> None:
        """Free the network's memory. It is loaded again if it is needed."""
        self._model = None
        self._runners = {}

    @memory_error_explained(
        "end what else holds the device's memory, or evaluate at smaller --scales"
    )
    def _run(
        self, protocol: evaluation.Protocol, transform: partial, cache: ArrayCache, label: str
    ) -> None:
        recipe, split, classes = self.run.recipe, self.images.split, len(self.run.class_names)
        if self._model is None:
            model = open_network(self.run)
            if sha256_of(self.run.model_path) != self._weights:  # the run is being trained
                raise ValueError(
                    f"{self.run.model_path} was replaced by the training in the meantime; repeat "
                    "the command"
                )
            self._model = model
        if protocol not in self._runners:  # All scales share one: each new one is traced anew.
            self._runners[protocol] = evaluation.runner(self._model, protocol, classes)
        remaining = split.between(cache.done, split.size)
        images = data.evaluation_dataset(remaining, None, transform).as_numpy_iterator()
        blocks = evaluation.posteriors(
            self._runners[protocol],
            images,  # pyright: ignore[reportArgumentType]  # The stub has one column.
            classes=classes,
            pixels=min(recipe.batch_size * recipe.image_size**2, _PIXELS),
        )
        with (
            data.bad_images_named(split),
            progress_bars(self._verbose) as progress,
            # Each run and protocol has a network of its own, so retracing is expected.
            without_tensorflow_message("triggered tf.function retracing"),
        ):
            task = progress.add_task(label, total=split.size, completed=cache.done)
            for labels, probabilities in blocks:
                cache.add(labels=labels, posteriors=probabilities)
                progress.update(task, completed=cache.done)
        if cache.done != split.size:
            raise ValueError(f"evaluated {cache.done} of {split.size} images")


def _transform(recipe: Recipe, protocol: str, scale: Scale) -> partial:
    if protocol == "center":
        return partial(evaluation_transform(recipe), scale=scale)
    transform = partial(
        augment.whole_image, size=recipe.image_size, scale=scale, resize=recipe.resize
    )
    if protocol == "multi-crop":
        transform = partial(
            augment.grid_crops,
            **transform.keywords,
            padding=recipe.crop_padding,
            flip=recipe.horizontal_flip,
        )
    return augment.in_grey(transform) if recipe.color == "grey" else transform


def plan_of(protocol: str, scales: Sequence[Scale]) -> list[tuple[str, Scale]]:
    names = ("dense", "multi-crop") if protocol == "both" else (protocol,)
    return [(name, scale) for name in names for scale in scales]

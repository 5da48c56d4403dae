"""Distillation: a network learns the probabilities of finished runs besides the labels.

Hinton, Vinyals & Dean, arXiv:1503.02531. The teachers see the very images that the network sees,
after augmentation (as in Beyer et al., arXiv:2106.05237).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.augment.color import LUMA
from keras_vgg.backend import as_array
from keras_vgg.files import sha256_of
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run

FILE = "teachers.json"
_IMAGES = 256  # of the training, which tell whether a teacher knows such images
_WORSE = 0.05  # by which a teacher's share of right answers on these is below its validation's
# What changes the content of a training image, besides its crop.
_AUGMENTATION = (
    *("crop_area", "rotation", "shear", "translation", "vertical_flip"),
    *("auto_augment", "rand_augment", "random_erasing", "cutout"),
    *("brightness", "contrast", "saturation", "hue"),
)
_SMALLEST = 1e-7  # a probability whose logarithm is taken; Keras' losses have the same bound


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A finished run whose network teaches.

    Attributes:
        run: The run.
        model: The run's network, with its own preprocessing as the first layer.
        order: Which of the teacher's classes is each class of the network that learns.
    """

    run: Run
    model: keras.Model
    order: np.ndarray

    def lines(self, described: dict[str, Any]) -> list[str]:
        """Return what to print of a teacher; `described` is the content of data.json."""
        lines = [f"teacher {self.run.directory}: {self.model.count_params():,} parameters"]
        if self.run.read_json("data.json")["splits"] != described["splits"]:
            lines.append(
                f"teacher {self.run.directory} was trained on another split: if it has seen "
                "validation or test images of this run, their figures are too good"
            )
        return lines


def load_teachers(
    directories: Sequence[str], class_names: Sequence[str], several_labels: bool = False
) -> list[Teacher]:
    """Open the teachers of a recipe.

    Args:
        directories: Run directories.
        class_names: The classes of the network that learns.
        several_labels: Whether an image of its data may have several labels.

    Raises:
        FileNotFoundError: a directory is not a run.
        ValueError: a run is not finished, or has other classes or another kind of labels.
    """
    runs = open_teachers(directories, class_names, several_labels)
    return [_load(run, class_names) for run in runs]


def open_teachers(
    directories: Sequence[str], class_names: Sequence[str], several_labels: bool = False
) -> list[Run]:
    """Return the runs of the teachers, without their networks.

    Args and errors as `load_teachers`; FileNotFoundError also if the file of a network is missing.
    """
    return [_opened(directory, class_names, several_labels) for directory in directories]


def _opened(directory: str, class_names: Sequence[str], several_labels: bool) -> Run:
    run = Run.open(directory)
    run.require_finished()
    run.require_model()
    missing = sorted(set(class_names) - set(run.class_names))
    additional = sorted(set(run.class_names) - set(class_names))
    if missing or additional:
        differences = [
            f"{what} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for what, names in (("lacks", missing), ("has also", additional))
            if names
        ]
        raise ValueError(
            f"teacher {directory} must have the classes of the data, but "
            f"{' and '.join(differences)}"
        )
    repeats = any(len(set(names)) < len(names) for names in (class_names, run.class_names))
    if repeats and tuple(run.class_names) != tuple(class_names):
        raise ValueError(
            f"teacher {directory} has its classes in another order than the data, and a name is "
            "that of two classes, so they cannot be matched by name"
        )
    if run.several_labels != several_labels:
        kinds = ("one label", "several labels")
        raise ValueError(
            f"teacher {directory} was trained on images with {kinds[run.several_labels]}, but an "
            f"image of this data has {kinds[several_labels]}"
        )
    return run


def _load(run: Run, class_names: Sequence[str]) -> Teacher:
    model = run.model()
    # TensorFlow would keep every activation of a network whose weights can be trained.
    model.trainable = False
    if tuple(run.class_names) == tuple(class_names):  # names may repeat, as ImageNet's cranes
        return Teacher(run, model, np.arange(len(class_names)))
    return Teacher(run, model, np.array([run.class_names.index(name) for name in class_names]))


def describe(teachers: Sequence[Run]) -> dict[str, Any]:
    """Return what teachers.json holds: the directory and the digest of each network."""
    rows = [
        {"source": str(teacher.directory), "sha256": sha256_of(teacher.model_path)}
        for teacher in teachers
    ]
    return {"teachers": rows}


def require_same_teachers(run: Run, teachers: Sequence[Run]) -> None:
    """Raise ValueError if a teacher's network has changed since the run began."""
    before = run.read_json(FILE)["teachers"]
    for earlier, now in zip(before, describe(teachers)["teachers"], strict=True):
        if earlier["sha256"] != now["sha256"]:
            raise ValueError(
                f"the network of teacher {now['source']} has changed since {run.directory} began; "
                "choose another workdir"
            )


def teach(
    model: keras.Model, teachers: Sequence[Teacher], recipe: Recipe, several_labels: bool = False
) -> None:
    """Let a compiled model learn from teachers. Only the loss of this model object changes.

    The loss of training is (1 - weight) x loss + weight x temperature^2 x divergence of the
    teachers' softened probabilities from the model's; the validation loss stays as it is. With
    several labels an image, the divergence is a binary cross-entropy.
    """
    weight, temperature = recipe.distillation_weight, recipe.distillation_temperature
    divergence = (
        keras.losses.BinaryCrossentropy() if several_labels else keras.losses.KLDivergence()
    )
    soften = partial(softened, temperature=temperature, several_labels=several_labels)
    plain_loss: Callable[..., Any] = model.compute_loss

    def compute_loss(
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        total = plain_loss(x, y, y_pred, sample_weight, training=training)
        if not training:
            return total
        answers = [ops.take(_answer(t.model, x), t.order, axis=-1) for t in teachers]
        # The mean of the probabilities, as of an ensemble.
        target = ops.stop_gradient(sum(map(soften, answers)) / len(answers))
        soft: Any = divergence(target, soften(y_pred), sample_weight)
        labels_loss: Any = model.loss
        # The total also has the regularization, whose weight stays 1.
        return total + weight * (temperature**2 * soft - labels_loss(y, y_pred, sample_weight))

    model.compute_loss = compute_loss


def accuracy_lines(
    teachers: Sequence[Teacher], batches: Iterable[tuple[Any, Any]], recipe: Recipe
) -> list[str]:
    """Return how many augmented training images each teacher classifies correctly.

    A teacher that never saw such images, for example with black edges, teaches its wrong answers.

    Args:
        teachers: The teachers.
        batches: Training batches (images, one-hot labels), without mixing.
        recipe: The recipe of the network that learns.
    """
    right, count = np.zeros(len(teachers), np.int64), 0
    for images, labels in batches:
        wanted = np.argmax(labels, axis=-1)
        for number, teacher in enumerate(teachers):
            answers = as_array(_answer(teacher.model, as_array(images)))[:, teacher.order]
            right[number] += np.sum(answers.argmax(axis=-1) == wanted)
        count += len(wanted)
        if count >= _IMAGES:
            break
    lines = []
    for teacher, share in zip(teachers, right / max(count, 1), strict=True):
        own = teacher.run.results["validation_accuracy"]
        lines.append(
            f"teacher {teacher.run.directory}: {share:.0%} of {count} augmented training images "
            f"are right, and {own:.0%} of its own validation images"
        )
        if share < own - _WORSE and not _augments_alike(recipe, teacher.run.recipe):
            lines.append(
                "this augmentation makes images that the teacher does not know, and its wrong "
                "answers are learned: augment as the teacher's recipe does (crop_padding, cutout, "
                "train_scale in proportion to image_size)"
            )
    return lines


def _augments_alike(one: Recipe, other: Recipe) -> bool:
    """Return whether two recipes change training images alike, in proportion to their size."""
    if any(getattr(one, name) != getattr(other, name) for name in _AUGMENTATION):
        return False
    sizes = [
        (*(recipe.train_scale_range or (0, 0)), recipe.crop_padding, recipe.image_size)
        for recipe in (one, other)
    ]
    (first, second) = ([side / size for side in sides] for *sides, size in sizes)
    return np.allclose(first, second, atol=0.05)


def softened(probabilities: Any, temperature: float, several_labels: bool = False) -> Any:
    """Return the probabilities of scores divided by a temperature, from those at temperature 1.

    Args:
        probabilities: Soft-max probabilities [n, classes], or sigmoids with `several_labels`.
        temperature: The temperature.
        several_labels: Whether each class has a probability of its own.
    """
    probabilities = ops.cast(probabilities, "float32")
    scores: Any = ops.log(ops.maximum(probabilities, _SMALLEST))
    if not several_labels:
        return ops.softmax(scores / temperature)
    scores -= ops.log(ops.maximum(1.0 - probabilities, _SMALLEST))
    return ops.sigmoid(scores / temperature)


def _answer(teacher: keras.Model, images: Any) -> Any:
    """Return a teacher's probabilities for images [n, size, size, channels] in [0, 255]."""
    images = ops.cast(images, "float32")
    size, channels = teacher.input_shape[1], teacher.input_shape[-1]
    if images.shape[-1] == 3 and channels == 1:
        images = ops.sum(images * np.asarray(LUMA, "float32"), axis=-1, keepdims=True)
    elif images.shape[-1] != channels:
        images = ops.repeat(images, channels, axis=-1)
    if images.shape[1] != size:
        matrix = resampling(images.shape[1], size)
        images = ops.einsum("ih,nhwc,jw->nijc", matrix, images, matrix)
    return teacher(images, training=False)


def resampling(before: int, after: int) -> np.ndarray:
    """Return float32 [after, before]: bilinear interpolation, antialiased where it shrinks.

    It is tf.image.resize with antialias as a matrix: XLA has no such operation.
    """
    ratio = before / after
    centers = (np.arange(after) + 0.5) * ratio - 0.5
    distances = np.abs(np.arange(before) - centers[:, None]) / max(ratio, 1.0)
    weights = np.maximum(1.0 - distances, 0.0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)

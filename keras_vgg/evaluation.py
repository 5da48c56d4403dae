"""How good a model is: every image counted once, every figure from one pass.

Images are RGB in [0, 255]; a model ends in soft-max probabilities. Accuracies are fractions in
[0, 1], never per cent; losses are mean cross-entropies in nats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.progress import progress_bars

if TYPE_CHECKING:
    import keras

_CLIP = 1e-7  # keras.config.epsilon(), as Keras' cross-entropy clips


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The predictions of one model on one data set, and what follows from them.

    Attributes:
        labels: [n] integers in [0, classes), the true class of each image.
        probabilities: [n, classes] float32, row i being the prediction for labels[i].
        class_names: one name for each class, in the order of the model's outputs.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many images were evaluated."""
        return len(self.labels)

    @cached_property
    def top1(self) -> float:
        """Fraction of images whose most probable class is the true one."""
        return float(np.mean(self.probabilities.argmax(axis=1) == self.labels))

    @cached_property
    def top5(self) -> float | None:
        """Fraction with the true class among the five most probable; None for <= 5 classes."""
        classes = len(self.class_names)
        if classes <= 5:
            return None
        from sklearn.metrics import top_k_accuracy_score

        return float(
            top_k_accuracy_score(self.labels, self.probabilities, k=5, labels=range(classes))
        )

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy in nats, probabilities clipped to [1e-7, 1 - 1e-7] as in Keras."""
        true = self.probabilities[np.arange(self.count), self.labels].astype(np.float64)
        return float(-np.log(np.clip(true, _CLIP, 1 - _CLIP)).mean())

    @cached_property
    def confusion(self) -> np.ndarray:
        """[classes, classes] int64 counts: rows are true classes, columns predicted ones."""
        from sklearn.metrics import confusion_matrix

        return confusion_matrix(
            self.labels, self.probabilities.argmax(axis=1), labels=range(len(self.class_names))
        )

    @cached_property
    def per_class(self) -> np.ndarray:
        """[classes] float64: accuracy on the images of each class, nan where there are none."""
        images = self.confusion.sum(axis=1)
        return np.divide(
            self.confusion.diagonal(),
            images,
            out=np.full(len(images), np.nan),
            where=images > 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain Python values for JSON; per_class is None where it is nan."""
        return {
            "count": self.count,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            # Lists in class order: names may repeat (ImageNet has two cranes), so no dict.
            "class_names": list(self.class_names),
            "per_class": [None if np.isnan(a) else float(a) for a in self.per_class],
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    model: keras.Model,
    dataset: Iterable[tuple[Any, Any]],
    *,
    expected: int,
    class_names: Sequence[str],
    verbose: bool = False,
) -> Evaluation:
    """Run a model over a data set once and count every image.

    Args:
        model: maps [n, size, size, 3] float32 RGB in [0, 255] to [n, classes] probabilities.
        dataset: yields batches of (images, integer labels [n]), tensors or arrays. Images may be
            [n, views, size, size, 3]: the probabilities of an image's views are averaged.
        expected: how many images the data set has; more or fewer is an error, so that a dropped
            last batch or a repeated epoch cannot pass for a result.
        class_names: one for each of the model's outputs.
        verbose: show a progress bar on stderr.

    Raises:
        ValueError: the count differs from `expected` or is zero; labels are not [n] integers in
            [0, classes); the model's output is not [n, classes] or not finite.
    """
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    seen = 0
    with progress_bars(verbose) as progress:
        task = progress.add_task("evaluating", total=expected)
        for batch_images, batch_labels in dataset:
            batch_labels = np.asarray(batch_labels)
            _check_labels(batch_labels, len(batch_images), len(class_names))
            seen += len(batch_labels)
            if seen > expected:  # at once, because a repeated data set never ends
                break
            # predict() would build a data pipeline for each batch; this is one compiled call.
            views = np.shape(batch_images)[1] if len(np.shape(batch_images)) == 5 else 1
            if views > 1:
                batch_images = np.reshape(batch_images, (-1, *np.shape(batch_images)[2:]))
            output = np.asarray(model.predict_on_batch(batch_images), dtype=np.float32)
            _check_output(output, views * len(batch_labels), len(class_names))
            output = output.reshape(-1, views, output.shape[1]).mean(axis=1)
            labels.append(batch_labels)
            probabilities.append(output)
            progress.advance(task, len(batch_labels))
    if seen != expected:
        raise ValueError(f"evaluated {seen} of {expected} images")
    if seen == 0:
        raise ValueError("the data set has no images to evaluate")
    return Evaluation(np.concatenate(labels), np.concatenate(probabilities), tuple(class_names))


def predict(
    model: keras.Model, images: np.ndarray, class_names: Sequence[str], top: int = 5
) -> list[list[tuple[str, float]]]:
    """The most probable classes of each image.

    Args:
        model: maps [n, size, size, 3] float32 RGB in [0, 255] to [n, classes] probabilities.
        images: [n, size, size, 3], RGB in [0, 255], n >= 1.
        class_names: one for each of the model's outputs.
        top: how many classes to give, at most all of them.

    Returns:
        For each image, (class name, probability) pairs, the most probable first.

    Raises:
        ValueError: images has another rank or is empty; top < 1; the model's output is not
            [n, classes] or not finite.
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be [n, size, size, 3] with n >= 1, not {images.shape}")
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    output = np.asarray(model.predict(images, verbose=0), dtype=np.float32)
    _check_output(output, len(images), len(class_names))
    order = np.argsort(-output, axis=1, kind="stable")[:, :top]
    return [
        [(class_names[index], float(row[index])) for index in best]
        for row, best in zip(output, order, strict=True)
    ]


def _check_labels(labels: np.ndarray, images: int, classes: int) -> None:
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {images} integers, one for each image of the batch,"
            f" not {labels.dtype} {labels.shape}"
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not in [0, {classes}), the classes that have names")


def _check_output(output: np.ndarray, images: int, classes: int) -> None:
    if output.ndim != 2 or output.shape[1] != classes:
        raise ValueError(
            f"the model's output is {output.shape}; {classes} class names"
            f" call for ({images}, {classes})"
        )
    if not np.isfinite(output).all():
        raise ValueError("the model's output is not finite: it has nan or inf in it")

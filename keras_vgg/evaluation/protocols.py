"""Run a model on images: one crop, the whole image, or a grid of crops (section 3.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.console import progress_bars
from keras_vgg.evaluation.dense import dense_network
from keras_vgg.evaluation.result import Evaluation
from keras_vgg.finite import (
    check_range,
    of_this_backend,
    require_finite_images,
    require_finite_weights,
    require_probabilities,
)

if TYPE_CHECKING:
    import keras

PROTOCOLS = ("center", "dense", "multi-crop")
AVERAGES = ("scores", "posteriors")

# Pixels in memory that wait for more images of their size: 400 MB of float32.
_WAITING = 2**25


@dataclass(frozen=True)
class Protocol:
    """How a model classifies one rescaled image.

    Attributes:
        name: "center": the central crop. "dense": the whole image, with the classifier as
            convolutions. "multi-crop": a grid of crops.
        average: What to average over the cells of the score map or the crops: "scores", before the
            soft-max or sigmoid, or "posteriors", after it. Default, as in the paper: "scores" for
            dense, "posteriors" for crops. The posteriors of an image and its mirror image are
            always averaged.
        mirror: Whether dense and multi-crop see the mirror image too, as in the paper. Set it to
            False for a network that was trained without mirrored images, such as one that tells
            left from right.

    Raises:
        ValueError: an unknown protocol or average.
    """

    name: str = "center"
    average: str | None = None
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {self.name!r}")
        if self.average is None:
            default = "scores" if self.name == "dense" else "posteriors"
            object.__setattr__(self, "average", default)
        if self.average not in AVERAGES:
            raise ValueError(f"average must be one of {', '.join(AVERAGES)}, not {self.average!r}")


def posteriors(
    run: Callable[[np.ndarray], np.ndarray],
    images: Iterable[tuple[np.ndarray, Any]],
    *,
    classes: int,
    pixels: int = 2**21,
    seconds: float = 30.0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the posteriors of images in their order, in blocks that the caller can store.

    Images of one size run together. No image is padded to another size: padding would change the
    scores, because zeros around an image are no longer zeros after a convolution's bias.

    Args:
        run: From `runner`.
        images: (image, label) pairs, the images as `run` takes them. A label is an integer, or
            uint8 [classes] for several labels an image.
        classes: Number of classes of the model.
        pixels: Most pixels in one batch, to limit the memory. A larger image runs alone.
        seconds: Yield a block after this time.

    Yields:
        (labels [n] or [n, classes], posteriors [n, classes] float32) of the next n images.

    Raises:
        ValueError: an image or a label does not fit the model.
    """
    block = _Block(run, pixels)
    started = time.perf_counter()
    for image, label in images:
        label = np.asarray(label)
        _check_labels(label[np.newaxis], 1, classes)
        block.add(np.asarray(image), label)
        if time.perf_counter() - started > seconds:
            yield block.finish()
            started = time.perf_counter()
    if block.labels:
        yield block.finish()


class _Block:
    """Images in their order, which run in batches of one size."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], pixels: int) -> None:
        self._run, self._pixels = run, pixels
        self._clear()

    def _clear(self) -> None:
        self.labels: list[np.ndarray] = []
        self._posteriors: dict[int, np.ndarray] = {}
        self._waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        self._waiting_pixels = 0

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        waiting = self._waiting.setdefault(image.shape, [])
        waiting.append((len(self.labels), image))
        self.labels.append(label)
        self._waiting_pixels += image.size // 3
        if (len(waiting) + 1) * image.size // 3 > self._pixels:
            self._flush(image.shape)
        while self._waiting_pixels > _WAITING:
            self._flush(max(self._waiting, key=lambda shape: len(self._waiting[shape])))

    def _flush(self, shape: tuple[int, ...]) -> None:
        positions, images = zip(*self._waiting.pop(shape), strict=True)
        self._waiting_pixels -= sum(image.size // 3 for image in images)
        self._posteriors.update(zip(positions, self._run(np.stack(images)), strict=True))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        for shape in list(self._waiting):
            self._flush(shape)
        labels = np.array(self.labels)
        in_order = np.stack([self._posteriors[position] for position in range(len(labels))])
        self._clear()
        return labels, in_order


def runner(
    model: keras.Model, protocol: Protocol, classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from n images of one shape to their posteriors [n, classes] float32.

    The function takes RGB images in [0, 255], float32. For "center": [n, size, size, 3], of the
    model's size. For "dense": [n, height, width, 3], at least of the model's size. For
    "multi-crop": the crops [n, m, size, size, 3]; with `mirror`, m counts the mirror images too,
    which come last.

    Args:
        model: A VGG from such images to probabilities; it ends in a soft-max or in sigmoids.
        protocol: How to run the images.
        classes: Number of classes of the model.

    Raises:
        ValueError: as for `dense_network`; the weights are not finite. The returned function
            raises it if images are smaller than the model's or not finite, or if the output is not
            finite, not of probabilities, or has another number of classes.
    """
    from scipy.special import expit

    require_finite_weights(model)
    has_sigmoids = ends_in_sigmoids(model)
    probabilities_of: Callable[[np.ndarray], np.ndarray] = expit if has_sigmoids else softmax
    if protocol.name == "dense":
        network = dense_network(model)
        network.jit_compile = False  # XLA would compile anew for every size
        smallest = tuple(side or 0 for side in model.inputs[0].shape[1:3])

        def dense(images: np.ndarray) -> np.ndarray:
            if any(side < least for side, least in zip(images.shape[1:3], smallest, strict=True)):
                raise ValueError(
                    f"dense evaluation needs images of at least {smallest}, the size that the "
                    f"network was trained on, not {images.shape[1:3]}"
                )
            require_finite_images(images)
            views = []
            for view in (images, images[:, :, ::-1])[: 1 + protocol.mirror]:
                scores = np.asarray(network.predict_on_batch(view), np.float32)
                _check_scores(scores.reshape(-1, scores.shape[-1]), None, classes)
                scores = scores.reshape(len(images), -1, classes)
                if protocol.average == "scores":
                    views.append(probabilities_of(scores.mean(axis=1)))
                else:
                    views.append(probabilities_of(scores).mean(axis=1))
            return np.stack(views).mean(axis=0, dtype=np.float32)

        return dense

    def crops(images: np.ndarray) -> np.ndarray:
        many = protocol.name == "multi-crop"
        count = images.shape[1] if many else 1
        flat = images.reshape(-1, *images.shape[-3:])
        require_finite_images(flat)
        output = np.asarray(model.predict_on_batch(flat), np.float32)
        _check_output(output, len(flat), classes)
        mirrors = 2 if many and protocol.mirror else 1
        output = output.reshape(len(images), mirrors, count // mirrors, classes)
        if protocol.average == "scores":
            # The logarithms of posteriors are scores plus a number that cancels in the soft-max.
            tiny = np.finfo(np.float32).tiny
            scores = np.log(np.maximum(output, tiny))
            if has_sigmoids:
                scores -= np.log(np.maximum(1 - output, tiny))
            return probabilities_of(scores.mean(axis=2)).mean(axis=1)
        return output.mean(axis=(1, 2))

    return crops


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the posteriors for scores [..., classes], with the same shape and dtype."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def ends_in_sigmoids(model: keras.Model) -> bool:
    """Return whether a network gives an image several labels."""
    import keras

    return getattr(model.layers[-1], "activation", None) is keras.activations.sigmoid


def evaluate(
    model: keras.Model,
    dataset: Iterable[tuple[Any, Any]],
    *,
    expected: int,
    class_names: Sequence[str],
    verbose: bool = False,
) -> Evaluation:
    """Run a model on a data set once and count every image.

    Args:
        model: A model from [n, size, size, 3] float32 RGB in [0, 255] to probabilities
            [n, classes].
        dataset: Batches of (images, integer labels [n]), tensors or arrays.
        expected: Number of images in the data set. Another number is an error, so that a dropped
            last batch or a repeated epoch cannot pass for a result.
        class_names: One for each of the model's outputs.
        verbose: Show a progress bar on stderr.

    Raises:
        ValueError: the number of images differs from `expected` or is zero; labels are not [n]
            integers in [0, classes); images, weights or outputs are not finite; images are not in
            [0, 255]; the output is not of probabilities [n, classes].

    Warns:
        UserWarning: the first batch seems to be in [0, 1].

    Example:
        ```python
        import numpy as np
        from keras_vgg import evaluate, vgg

        model = vgg("A", weights=None, input_shape=(32, 32, 3), classes=2, width_multiplier=1 / 16)
        batches = [(np.zeros((3, 32, 32, 3), "float32"), np.array([0, 1, 1]))]
        evaluation = evaluate(model, batches, expected=3, class_names=("cat", "dog"))
        print(evaluation.top1, evaluation.confusion)
        ```
    """
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    seen = 0
    require_finite_weights(model)
    with progress_bars(verbose) as progress:
        task = progress.add_task("evaluating", total=expected)
        for batch_images, batch_labels in dataset:
            batch_labels = np.asarray(batch_labels)
            if batch_labels.ndim == 2:
                raise ValueError(
                    f"labels {batch_labels.shape} are several an image; `evaluate` takes one for "
                    "each image. Give probabilities and labels to MultiLabelEvaluation"
                )
            _check_labels(batch_labels, len(batch_images), len(class_names))
            seen += len(batch_labels)
            if seen > expected:  # stop now: a repeated data set never ends
                break
            batch_images = of_this_backend(batch_images)
            require_finite_images(batch_images)
            check_range(batch_images, warn=seen == len(batch_labels))  # warns of the first batch
            # predict() would build a data pipeline for each batch.
            output = np.asarray(model.predict_on_batch(batch_images), dtype=np.float32)
            _check_output(output, len(batch_labels), len(class_names))
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
    """Return the most probable classes of each image.

    Args:
        model: A model from [n, size, size, 3] float32 RGB in [0, 255] to probabilities
            [n, classes].
        images: [n, size, size, 3], RGB in [0, 255], n >= 1.
        class_names: One for each of the model's outputs.
        top: Number of classes to return; fewer if the model has fewer.

    Returns:
        For each image, (class name, probability) pairs, the most probable first.

    Raises:
        ValueError: images has another rank or is empty; top < 1; images, weights or outputs are
            not finite; images are not in [0, 255]; the output is not of probabilities [n, classes].
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be [n, size, size, 3] with n >= 1, not {images.shape}")
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    require_finite_weights(model)
    require_finite_images(images)
    check_range(images)
    # Keras documents numbers for verbose, but annotates it as str.
    output = model.predict(images, verbose=0)  # pyright: ignore[reportArgumentType]
    output = np.asarray(output, dtype=np.float32)
    _check_output(output, len(images), len(class_names))
    order = np.argsort(-output, axis=1, kind="stable")[:, :top]
    return [
        [(class_names[int(index)], float(row[index])) for index in best]
        for row, best in zip(output, order, strict=True)
    ]


def _check_labels(labels: np.ndarray, images: int, classes: int) -> None:
    if labels.ndim == 2 and labels.shape == (images, classes) and labels.dtype == np.uint8:
        return
    if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be {images} integers, one for each image of the batch,"
            f" not {labels.dtype} {labels.shape}"
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise ValueError(f"label {wrong[0]} is not in [0, {classes}), one for each class name")


def _check_output(output: np.ndarray, images: int, classes: int) -> None:
    _check_scores(output, images, classes)
    require_probabilities(output)


def _check_scores(output: np.ndarray, images: int | None, classes: int) -> None:
    if output.ndim != 2 or output.shape[1] != classes:
        raise ValueError(
            f"the model's output is {output.shape}; {classes} class names"
            f" call for ({images or 'n'}, {classes})"
        )
    if not np.isfinite(output).all():
        raise ValueError("the model's output is not finite: it holds nan or inf")

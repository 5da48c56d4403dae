"""Running a model over images: one crop, the whole image, or a grid of crops (section 3.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.console import progress_bars
from keras_vgg.evaluation.dense import dense_network
from keras_vgg.evaluation.result import Evaluation
from keras_vgg.finite import require_finite_images, require_finite_weights

if TYPE_CHECKING:
    import keras

PROTOCOLS = ("center", "dense", "multi-crop")
AVERAGES = ("scores", "posteriors")

# Pixels that wait for others of their size, in memory: 400 MB of float32.
_WAITING = 2**25


@dataclass(frozen=True)
class Protocol:
    """How the classes of one rescaled image are found.

    Attributes:
        name: "center", the central crop; "dense", the whole image, the classifier run as
            convolutions; "multi-crop", a grid of crops.
        average: What is averaged over the places of an image, which are the cells of the score
            map or the crops: "scores", before the soft-max, or "posteriors", after it. The
            posteriors of an image and its mirror image are averaged in any case. The paper
            averages the score map of dense evaluation and the posteriors of crops; these are the
            defaults.
        mirror: Whether dense and multi-crop see the mirror image too, as in the paper: right for a
            network that was trained on mirrored images, wrong for one that tells left from right.

    Raises:
        ValueError: there is no such protocol or average.
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
    """The posteriors of images, in their order, in blocks that can be kept as they come.

    Images of one size are run together. None is padded to another's size: zeros around an image
    are not zeros any more after a convolution's bias, so padding would change its scores.

    Args:
        run: From `runner`.
        images: (image, integer label) pairs, the images as `run` takes them.
        classes: Classes of the model.
        pixels: Run at most so many at a time, or one image: what bounds the memory.
        seconds: Give what is done after so long.

    Yields:
        (labels [n], posteriors [n, classes] float32) of the next n images.

    Raises:
        ValueError: an image or label that does not fit.
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
    """Images in order, run in batches of one size."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray], pixels: int) -> None:
        self._run, self._pixels = run, pixels
        self._clear()

    def _clear(self) -> None:
        self.labels: list[np.ndarray] = []
        self._found: dict[int, np.ndarray] = {}
        self._waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        self._held = 0

    def add(self, image: np.ndarray, label: np.ndarray) -> None:
        waiting = self._waiting.setdefault(image.shape, [])
        waiting.append((len(self.labels), image))
        self.labels.append(label)
        self._held += image.size // 3
        if (len(waiting) + 1) * image.size // 3 > self._pixels:
            self._flush(image.shape)
        while self._held > _WAITING:
            self._flush(max(self._waiting, key=lambda shape: len(self._waiting[shape])))

    def _flush(self, shape: tuple[int, ...]) -> None:
        positions, images = zip(*self._waiting.pop(shape), strict=True)
        self._held -= sum(image.size // 3 for image in images)
        self._found.update(zip(positions, self._run(np.stack(images)), strict=True))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        for shape in list(self._waiting):
            self._flush(shape)
        labels = np.array(self.labels)
        found = np.stack([self._found[position] for position in range(len(labels))])
        self._clear()
        return labels, found


def runner(
    model: keras.Model, protocol: Protocol, classes: int
) -> Callable[[np.ndarray], np.ndarray]:
    """What finds the posteriors [n, classes], float32, of n images of one shape by a protocol.

    It takes RGB images in [0, 255], float32: for "center" [n, size, size, 3], of the model's size;
    for "dense" [n, height, width, 3], of any size from the model's up; for "multi-crop" their crops
    [n, m, size, size, 3], with `mirror` twice as many, the mirror images last.

    Args:
        model: A VGG from such images to probabilities.
        protocol: How to run them.
        classes: Classes of the model.

    Raises:
        ValueError: as `dense_network`; weights that are not finite; from what is returned, images
            that are smaller than the model's or not finite, an output of other classes or not
            finite.
    """
    require_finite_weights(model)
    if protocol.name == "dense":
        network = dense_network(model)
        network.jit_compile = False  # XLA would compile anew for every size
        smallest = tuple(side or 0 for side in model.inputs[0].shape[1:3])

        def dense(images: np.ndarray) -> np.ndarray:
            if any(side < least for side, least in zip(images.shape[1:3], smallest, strict=True)):
                raise ValueError(
                    f"dense evaluation needs images of at least {smallest}, what the network was "
                    f"trained on, not {images.shape[1:3]}"
                )
            require_finite_images(images)
            views = []
            for view in (images, images[:, :, ::-1])[: 1 + protocol.mirror]:
                scores = np.asarray(network.predict_on_batch(view), np.float32)
                _check_output(scores.reshape(-1, scores.shape[-1]), None, classes)
                scores = scores.reshape(len(images), -1, classes)
                if protocol.average == "scores":
                    views.append(softmax(scores.mean(axis=1)))
                else:
                    views.append(softmax(scores).mean(axis=1))
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
            # Scores are the logarithms of posteriors but for a number that the soft-max takes out.
            logarithms = np.log(np.maximum(output, np.finfo(np.float32).tiny))
            return softmax(logarithms.mean(axis=2)).mean(axis=1)
        return output.mean(axis=(1, 2))

    return crops


def softmax(scores: np.ndarray) -> np.ndarray:
    """[..., classes] scores -> posteriors, of the same dtype."""
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


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
        dataset: yields batches of (images, integer labels [n]), tensors or arrays.
        expected: how many images the data set has; more or fewer is an error, so that a dropped
            last batch or a repeated epoch cannot pass for a result.
        class_names: one for each of the model's outputs.
        verbose: show a progress bar on stderr.

    Raises:
        ValueError: the count differs from `expected` or is zero; labels are not [n] integers in
            [0, classes); images, weights or outputs that are not finite; an output that is not
            [n, classes].

    Example:
        ```python
        import numpy as np
        from keras_vgg import evaluate, vgg

        model = vgg("A", weights=None, input_shape=(32, 32, 3), classes=2, width_multiplier=1 / 16)
        batches = [(np.zeros((3, 32, 32, 3), "float32"), np.array([0, 1, 1]))]
        found = evaluate(model, batches, expected=3, class_names=("cat", "dog"))
        print(found.top1, found.confusion)
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
            _check_labels(batch_labels, len(batch_images), len(class_names))
            seen += len(batch_labels)
            if seen > expected:  # at once, because a repeated data set never ends
                break
            require_finite_images(batch_images)
            # predict() would build a data pipeline for each batch; this is one compiled call.
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
    """The most probable classes of each image.

    Args:
        model: maps [n, size, size, 3] float32 RGB in [0, 255] to [n, classes] probabilities.
        images: [n, size, size, 3], RGB in [0, 255], n >= 1.
        class_names: one for each of the model's outputs.
        top: how many classes to give, at most all of them.

    Returns:
        For each image, (class name, probability) pairs, the most probable first.

    Raises:
        ValueError: images has another rank or is empty; top < 1; images, weights or outputs that
            are not finite; an output that is not [n, classes].
    """
    images = np.asarray(images, dtype=np.float32)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be [n, size, size, 3] with n >= 1, not {images.shape}")
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    require_finite_weights(model)
    require_finite_images(images)
    # Keras' annotation, str, forgets the numbers of its documentation.
    output = model.predict(images, verbose=0)  # pyright: ignore[reportArgumentType]
    output = np.asarray(output, dtype=np.float32)
    _check_output(output, len(images), len(class_names))
    order = np.argsort(-output, axis=1, kind="stable")[:, :top]
    return [
        [(class_names[int(index)], float(row[index])) for index in best]
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


def _check_output(output: np.ndarray, images: int | None, classes: int) -> None:
    if output.ndim != 2 or output.shape[1] != classes:
        raise ValueError(
            f"the model's output is {output.shape}; {classes} class names"
            f" call for ({images or 'n'}, {classes})"
        )
    if not np.isfinite(output).all():
        raise ValueError("the model's output is not finite: it has nan or inf in it")

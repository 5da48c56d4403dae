"""Boxes in whole images: the outputs at all places, and their merging (appendix A)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_vgg.backend import as_array
from keras_vgg.console import progress_bars
from keras_vgg.evaluation import dense_network, softmax
from keras_vgg.evaluation.protocols import ends_in_sigmoids
from keras_vgg.finite import require_finite_images, require_finite_weights
from keras_vgg.gradient import answer_of
from keras_vgg.localization.boxes import MATCH, merge_boxes, to_corners
from keras_vgg.localization.network import STRIDE, has_layer, window_of


class Guess(NamedTuple):
    """A predicted object.

    Attributes:
        label: The number of its class.
        probability: The posterior of this class for the whole image.
        box: [4] float64, corners in pixels of the image.
        rating: The sum of this class's posteriors at the places whose boxes were merged.
    """

    label: int
    probability: float
    box: np.ndarray
    rating: float


@dataclass(frozen=True, eq=False)
class Localization:
    """The outputs at the places of one image. Place (i, j) begins 32 * i pixels down, 32 * j right.

    Attributes:
        boxes: [rows, columns, classes or 1, 4] float64, corners in pixels of the whole image.
        scores: [rows, columns, classes] float32: class scores before the soft-max or sigmoids.
        several_labels: Whether the classifier ends in sigmoids.
    """

    boxes: np.ndarray
    scores: np.ndarray
    several_labels: bool = False

    @property
    def probabilities(self) -> np.ndarray:
        """[classes] posteriors of the image: the soft-max of the mean scores (section 3.2).

        Of a classifier that ends in sigmoids, their sigmoids.
        """
        return self._posteriors(self.scores.mean(axis=(0, 1)))

    def _posteriors(self, scores: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        return expit(scores) if self.several_labels else softmax(scores)

    def merged(self, label: int, match: float = MATCH) -> tuple[np.ndarray, np.ndarray]:
        """Merge one class's boxes of all places: [m, 4] and ratings [m], the highest first.

        Raises:
            ValueError: the class is unknown; as for `merge_boxes`.
        """
        classes = self.scores.shape[-1]
        if not 0 <= label < classes:
            raise ValueError(f"label {label} is not in [0, {classes})")
        box_index = label if self.boxes.shape[2] > 1 else 0
        posteriors = self._posteriors(self.scores)[..., label]
        return merge_boxes(self.boxes[:, :, box_index].reshape(-1, 4), posteriors.ravel(), match)

    def guesses(self, top: int = 5, count: int = 1, match: float = MATCH) -> list[Guess]:
        """Return the best boxes of the most probable classes, the most probable class first.

        Args:
            top: Number of classes; fewer if there are fewer.
            count: Number of boxes for each class, the highest rating first; fewer if fewer remain
                after merging.
            match: As for `merge_boxes`.

        Raises:
            ValueError: top or count is below 1; as for `merge_boxes`.
        """
        if top < 1 or count < 1:
            raise ValueError(f"top and count must be at least 1, not {top} and {count}")
        probabilities = self.probabilities
        guesses = []
        for label in np.argsort(-probabilities, kind="stable")[:top].tolist():
            boxes, ratings = self.merged(label, match)
            for box, rating in zip(boxes[:count], ratings, strict=False):
                guesses.append(Guess(label, float(probabilities[label]), box, float(rating)))
        return guesses


def predict_boxes(
    model: keras.Model,
    classifier: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    window: int | tuple[int, int] | None = None,
    dense: bool = True,
    batch_size: int = 32,
    verbose: bool = False,
) -> list[Localization]:
    """Run a localiser and a classifier on whole images.

    "The output of the last fully-connected layer is a set of bounding box predictions", one for
    each place. The classifier gives the class scores of each place. `Localization.guesses` makes
    boxes of them. No mirror images are used here; the paper does not say whether it uses them.

    Args:
        model: A `localizer` with one box, or one for each of the classifier's classes.
        classifier: A VGG with the same window: the one that became the localiser, or a better one.
        images: [n, height, width, 3], or n images of any sizes, at least as large as the window, as
            both models take them: RGB in [0, 255] if preprocessing is inside. Boxes are in pixels
            of these images; if you enlarged an image, divide its boxes by the scale.
        window: Side, or (height, width), of the images that the models were trained on. Needed
            only with `head="gap"` and an input without a fixed size.
        dense: True, as in the paper: run both as convolutions over the whole image. False: cut out
            every place and run it alone. The border of a cut-out window is padded with zeros, as in
            training; in a whole image, its neighbours are there instead. They affect small windows
            most: with windows of 64 pixels, 5 % of boxes were wrong when cut out, and 26 % when
            dense (training/README.md, "Localisation").
        batch_size: Images of one size, or windows, at a time.
        verbose: Show a progress bar on stderr.

    Returns:
        A Localization for each image, in order.

    Raises:
        ValueError: the models do not fit each other; `window` is missing or wrong; there is no
            image; an image is smaller than the window, has another rank or is not finite; weights
            are not finite.
    """
    height, width = own_window = window_of(model, window)
    if own_window != window_of(classifier, window):
        raise ValueError(f"{model.name!r} and {classifier.name!r} have different windows")
    if height is None or width is None:
        raise ValueError(f"{model.name!r} takes any size: give the window that it was trained on")
    sides = height, width
    box_network, score_network = dense_network(model), dense_network(classifier)
    outputs, classes = box_network.output_shape[-1], score_network.output_shape[-1]
    if outputs not in (4, 4 * classes):
        raise ValueError(
            f"{model.name!r} has {outputs} outputs; {classes} classes need 4 or {4 * classes}"
        )
    if len(images) == 0:
        raise ValueError("there are no images to find boxes in")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    for network in (model, classifier):
        require_finite_weights(network)
    localizations = []
    at_a_time = None if dense else batch_size
    several_labels = ends_in_sigmoids(classifier)
    with progress_bars(verbose) as progress:
        task = progress.add_task("finding boxes", total=len(images))
        for batch in _batches(images, sides, batch_size):
            boxes = _at_places(model, box_network, sides, batch, at_a_time)
            boxes = boxes.reshape(*boxes.shape[:3], -1, 4)
            top, left = np.indices(boxes.shape[1:3])[..., np.newaxis] * STRIDE
            corners = to_corners(boxes, sides, (top, left))
            scores = _at_places(classifier, score_network, sides, batch, at_a_time)
            localizations += [
                Localization(*pair, several_labels) for pair in zip(corners, scores, strict=True)
            ]
            progress.advance(task, len(batch))
    return localizations


def _batches(
    images: np.ndarray | Sequence[np.ndarray], least: tuple[int, int], batch_size: int
) -> Iterator[np.ndarray]:
    """Yield float32 batches of consecutive images with the same shape."""
    for i, image in enumerate(images):
        shape = np.shape(image)
        if len(shape) != 3 or shape[0] < least[0] or shape[1] < least[1]:
            raise ValueError(
                f"image {i} must be [height, width, channels] of at least {least}, not {shape}"
            )
        require_finite_images(np.asarray(image), f"image {i} holds")
    start = 0
    for _, same in itertools.groupby(images, np.shape):
        stop = start + len(list(same))
        for first in range(start, stop, batch_size):
            batch = [images[i] for i in range(first, min(first + batch_size, stop))]
            yield np.stack(batch).astype(np.float32)
        start = stop


def _run(network: keras.Model, batch: np.ndarray) -> np.ndarray:
    # On JAX, predict_on_batch would remove the variables that `network` shares.
    return as_array(answer_of(network, ops.convert_to_tensor(batch)))


def _at_places(
    model: keras.Model,
    network: keras.Model,
    sides: tuple[int, int],
    batch: np.ndarray,
    at_a_time: int | None,
) -> np.ndarray:
    """Return a model's outputs [n, rows, columns, c] at all places of a batch.

    Args:
        at_a_time: None: run on whole images. A number: cut out so many windows at a time.
    """
    if at_a_time is None:
        maps = _by_window(model, sides, _run(network, batch))
        # Windows that are no multiple of the stride have places that end beyond the image.
        size = zip(batch.shape[1:3], sides, strict=True)
        rows, columns = ((whole - side) // STRIDE + 1 for whole, side in size)
        return maps[:, :rows, :columns]
    views = np.lib.stride_tricks.sliding_window_view(batch, sides, axis=(1, 2))
    views = np.moveaxis(views[:, ::STRIDE, ::STRIDE], 3, -1)
    places = list(np.ndindex(views.shape[:3]))
    outputs = [
        _by_window(model, sides, _run(network, np.stack([views[place] for place in part])))
        for part in (places[i : i + at_a_time] for i in range(0, len(places), at_a_time))
    ]
    return np.concatenate(outputs).reshape(*views.shape[:3], -1)


def _by_window(model: keras.Model, sides: tuple[int, int], maps: np.ndarray) -> np.ndarray:
    """Return a dense network's maps [n, rows, columns, c] with one cell for each window."""
    if has_layer(model, "fc1"):
        return maps
    # With a gap head, a window has several cells, and its output is their mean.
    cells = tuple(side // STRIDE for side in sides)
    windows = np.lib.stride_tricks.sliding_window_view(maps, cells, axis=(1, 2))
    return windows.mean(axis=(-2, -1))

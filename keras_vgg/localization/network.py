"""A classifier made into a predictor of boxes, its loss, and both on whole images (appendix A)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_vgg.console import progress_bars
from keras_vgg.evaluation import dense_network, softmax
from keras_vgg.finite import require_finite_images, require_finite_weights
from keras_vgg.localization.boxes import MATCH, merge_boxes, to_corners
from keras_vgg.transfer import freeze
from keras_vgg.weights import copy_weights

_STRIDE = 32  # pixels from one place to the next: five 2x2 pools
_BLOCKS_FROZEN = {"all": "none", "fc": "all"}  # in the words of `freeze`


def localizer(
    model: keras.Model,
    classes: int | None = None,
    trainable: str = "all",
    name: str | None = None,
) -> keras.Model:
    """A trained classifier with a box where its classes were, to be trained with `EuclideanLoss`.

    "The last fully connected layer predicts the bounding box location instead of the class scores";
    it "was initialised randomly and trained from scratch", by the initialiser that it has in
    `model`. Every other layer begins with the classifier's weights; they are copies. Dropout and
    weight decay stay as they are, for training "is similar to that of the classification ConvNets".

    Args:
        model: A VGG that `evaluation.dense_network` takes: any head, width and number of classes.
            With `head="conv"` its images are of fc1's window (`train_size`), or of no known size;
            it is then to be trained on images of that window.
        classes: None: one box whatever the class, "single-class regression (SCR)"; a number: a box
            for each class, "per-class regression (PCR)". For `predict_boxes` it is the number of
            the classifier's classes.
        trainable: "all" layers, or "fc", those after the last pool ("fine-tuning only the first two
            fully-connected layers", and the new one; with `head="gap"` the new one alone). A frozen
            batch normalisation keeps its statistics.
        name: The model's name; by default the classifier's with "_boxes".

    Returns:
        A model, not compiled, from images as `model` takes them to boxes relative to the image
        (see `localization.boxes`): [n, 4], or [n, 4 * classes], where class c has the outputs from
        4 * c on. Its last layer with weights is called "predictions" and is linear, as what
        follows it is, so `evaluation.dense_network` takes it as it takes the classifier.

    Raises:
        ValueError: the model is no VGG or has no classifier; classes is not a whole number above 0;
            trainable is something else; a conv head on images of another size than its window.
    """
    if classes is not None and (not isinstance(classes, int | np.integer) or classes < 1):
        raise ValueError(f"classes must be None or a whole number above 0, not {classes!r}")
    if trainable not in _BLOCKS_FROZEN:
        raise ValueError(f"trainable must be one of {', '.join(_BLOCKS_FROZEN)}, not {trainable!r}")
    _require_vgg(model)
    _window(model)
    outputs = 4 * int(classes or 1)

    def copy(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer.name == "predictions":
            config["filters" if "filters" in config else "units"] = outputs
        if layer.name in ("predictions", "probabilities"):
            config["activation"] = "linear"
        return type(layer).from_config(config)

    # A model of its own, for a clone of one that is compiled has its losses and metrics.
    plain = keras.Model(model.inputs[0], model.outputs[0])
    result = keras.models.clone_model(plain, clone_function=copy)
    result.name = name or f"{model.name}_boxes"
    copy_weights(model, result, drop=("predictions",))
    freeze(result, _BLOCKS_FROZEN[trainable])
    return result


@keras.saving.register_keras_serializable("keras_vgg")
class EuclideanLoss(keras.losses.Loss):
    """Half the squared distance between the true box and the predicted one.

    "A Euclidean loss, which penalises the deviation of the predicted bounding box parameters from
    the ground-truth" (appendix A). The paper gives no formula; this is Caffe's layer of that name,
    1/2 * sum of the squared differences of the four numbers, averaged over the images. The four
    count alike, as shares of the window.

    y_true is [n, 5]: class, then the relative box. y_pred is [n, 4], where the class does not
    matter, or [n, 4 * classes], of which only the true class's four count; a class outside
    [0, classes) would have all of them count for nothing, and is not found out.

    Raises:
        ValueError: labels or outputs of another shape.
    """

    def __init__(
        self,
        reduction: str = "sum_over_batch_size",
        name: str = "euclidean_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        difference = boxes_of(y_true, y_pred) - y_true[:, 1:]
        return ops.divide(ops.sum(ops.square(difference), axis=-1), 2)


def boxes_of(labels: Any, outputs: Any) -> Any:
    """Return the true class's part [n, 4] of a localiser's outputs [n, 4] or [n, 4 * classes].

    Args:
        labels: [n, 5], class and box, as for `EuclideanLoss`.
        outputs: The localiser's outputs for the same images.

    Raises:
        ValueError: another shape.
    """
    if len(labels.shape) != 2 or labels.shape[1] != 5:
        raise ValueError(f"labels must be [n, 5], class and box, not {tuple(labels.shape)}")
    if len(outputs.shape) != 2 or outputs.shape[1] % 4:
        raise ValueError(f"outputs must be [n, 4 * boxes], not {tuple(outputs.shape)}")
    count = outputs.shape[1] // 4
    if count == 1:
        return ops.convert_to_tensor(outputs)
    boxes: Any = ops.reshape(outputs, (-1, count, 4))
    chosen = ops.one_hot(ops.cast(labels[:, 0], "int32"), count, dtype=boxes.dtype)
    return ops.sum(boxes * ops.expand_dims(chosen, -1), axis=1)


class Guess(NamedTuple):
    """An object that an image may hold.

    Attributes:
        label: The label of its class.
        probability: The class's posterior, of the whole image.
        box: [4] float64, corners in pixels of the image.
        rating: The sum of the class's posteriors at the places that the box was merged from.
    """

    label: int
    probability: float
    box: np.ndarray
    rating: float


@dataclass(frozen=True, eq=False)
class Localization:
    """What the places of one image say. Place (i, j) begins 32 * i pixels down, 32 * j right.

    Attributes:
        boxes: [rows, columns, classes or 1, 4] float64, corners in pixels of the whole image.
        scores: [rows, columns, classes] float32, of the classes, before the soft-max.
    """

    boxes: np.ndarray
    scores: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """[classes] posteriors of the image: the soft-max of its mean scores (section 3.2)."""
        return softmax(self.scores.mean(axis=(0, 1)))

    def merged(self, label: int, match: float = MATCH) -> tuple[np.ndarray, np.ndarray]:
        """One class's boxes of all places, merged: [m, 4] and ratings [m], the best rated first.

        Raises:
            ValueError: there is no such class; as `merge_boxes`.
        """
        classes = self.scores.shape[-1]
        if not 0 <= label < classes:
            raise ValueError(f"label {label} is not in [0, {classes})")
        own = label if self.boxes.shape[2] > 1 else 0
        posteriors = softmax(self.scores)[..., label]
        return merge_boxes(self.boxes[:, :, own].reshape(-1, 4), posteriors.ravel(), match)

    def guesses(self, top: int = 5, count: int = 1, match: float = MATCH) -> list[Guess]:
        """The best boxes of the most probable classes.

        Args:
            top: How many classes, at most all of them, the most probable first.
            count: How many boxes of each, at most those that are left after merging, the best
                rated first.
            match: As `merge_boxes`.

        Raises:
            ValueError: top or count is below 1; as `merge_boxes`.
        """
        if top < 1 or count < 1:
            raise ValueError(f"top and count must be at least 1, not {top} and {count}")
        probabilities = self.probabilities
        found = []
        for label in np.argsort(-probabilities, kind="stable")[:top].tolist():
            boxes, ratings = self.merged(label, match)
            for box, rating in zip(boxes[:count], ratings, strict=False):
                found.append(Guess(label, float(probabilities[label]), box, float(rating)))
        return found


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
    """A localiser and a classifier, run over whole images.

    "The output of the last fully-connected layer is a set of bounding box predictions", one for
    each place, and the class scores of the places are the classifier's; what they come to, see
    `Localization.guesses`. The paper does not say whether mirror images are used here, as for
    classes: they are not.

    Args:
        model: A `localizer`, of one box or of one for each of the classifier's classes.
        classifier: A VGG of the same window; the one it began as, or a better one.
        images: [n, height, width, 3] or n images of any sizes from the window's up, as both models
            take them: RGB in [0, 255] where preprocessing is inside. Boxes are in their pixels: to
            have them in those of an image that was enlarged, divide by how much.
        window: Side, or (height, width), of the images that the models were trained on. Needed
            only with `head="gap"` and an input of no known size.
        dense: True, as in the paper: both as convolutions over the whole image. False: every place
            is cut out and seen alone, for as many passes as there are places. A window has zeros
            beyond its edges, in training too, and a place in a whole image has its neighbours
            there; the smaller the window, the more of it they reach. With windows of 64 pixels
            that decides everything: 5 % of boxes were wrong when cut out, 26 % when dense
            (training/README.md, "Localisation").
        batch_size: So many images of one size at a time, or so many windows.
        verbose: Show a progress bar on stderr.

    Returns:
        One for each image, in order.

    Raises:
        ValueError: the models do not fit each other; a window that is needed, or another than
            theirs; there is no image; an image that is smaller than the window, has another rank or
            holds NaN; weights that are not finite.
    """
    height, width = seen = _window(model, window)
    if seen != _window(classifier, window):
        raise ValueError(f"{model.name!r} and {classifier.name!r} are of different windows")
    if height is None or width is None:
        raise ValueError(f"{model.name!r} takes any size: say the window that it was trained on")
    sides = height, width
    boxes, scores = dense_network(model), dense_network(classifier)
    outputs, classes = boxes.output_shape[-1], scores.output_shape[-1]
    if outputs not in (4, 4 * classes):
        raise ValueError(
            f"{model.name!r} has {outputs} outputs; {classes} classes need 4 or {4 * classes}"
        )
    if len(images) == 0:
        raise ValueError("there are no images to find boxes in")
    for network in (model, classifier):
        require_finite_weights(network)
    found = []
    with progress_bars(verbose) as progress:
        task = progress.add_task("finding boxes", total=len(images))
        for batch in _batches(images, sides, batch_size):
            raw = _at_places(model, boxes, sides, batch, None if dense else batch_size)
            starts = np.indices(raw.shape[1:3])[..., np.newaxis] * _STRIDE
            corners = to_corners(raw.reshape(*raw.shape[:3], -1, 4), sides, (starts[0], starts[1]))
            given = _at_places(classifier, scores, sides, batch, None if dense else batch_size)
            found += [Localization(*pair) for pair in zip(corners, given, strict=True)]
            progress.advance(task, len(batch))
    return found


def _batches(
    images: np.ndarray | Sequence[np.ndarray], least: tuple[int, int], batch_size: int
) -> Iterator[np.ndarray]:
    """Neighbouring images of one shape together, as float32."""
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
    # Not predict_on_batch, after which on JAX the variables are gone that `network` shares.
    outputs = network(ops.convert_to_tensor(batch), training=False)
    return np.asarray(ops.convert_to_numpy(outputs))


def _at_places(
    model: keras.Model,
    network: keras.Model,
    sides: tuple[int, int],
    batch: np.ndarray,
    at_a_time: int | None,
) -> np.ndarray:
    """A model's outputs [n, rows, columns, c]; with a number, of windows that are cut out."""
    if at_a_time is None:
        return _by_window(model, sides, _run(network, batch))
    views = np.lib.stride_tricks.sliding_window_view(batch, sides, axis=(1, 2))
    views = np.moveaxis(views[:, ::_STRIDE, ::_STRIDE], 3, -1)
    places = list(np.ndindex(views.shape[:3]))
    outputs = [
        _by_window(model, sides, _run(network, np.stack([views[place] for place in part])))
        for part in (places[i : i + at_a_time] for i in range(0, len(places), at_a_time))
    ]
    return np.concatenate(outputs).reshape(*views.shape[:3], -1)


def _by_window(model: keras.Model, sides: tuple[int, int], maps: np.ndarray) -> np.ndarray:
    """A dense network's [n, rows, columns, c], with one place for each window."""
    if _has_layer(model, "fc1"):
        return maps
    # A gap head's cell is one feature, and a window's output is the mean of its features'.
    cells = tuple(side // _STRIDE for side in sides)
    windows = np.lib.stride_tricks.sliding_window_view(maps, cells, axis=(1, 2))
    return windows.mean(axis=(-2, -1))


def _has_layer(model: keras.Model, name: str) -> bool:
    return any(layer.name == name for layer in model.layers)


def _require_vgg(model: keras.Model) -> None:
    for name in ("block5_pool", "predictions"):
        if not _has_layer(model, name):
            raise ValueError(
                f"a localiser is made of a VGG with its classifier; {model.name!r} has no layer "
                f"{name!r}"
            )


def _window(
    model: keras.Model, given: int | tuple[int, int] | None = None
) -> tuple[int | None, ...]:
    """(height, width) of what one prediction sees; None where only the training images say."""
    _require_vgg(model)
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("localisation needs images with channels last")
    sides = tuple(model.inputs[0].shape[1:3])
    kernel = model.get_layer("fc1").kernel.shape if _has_layer(model, "fc1") else ()
    if len(kernel) == 4:
        seen = tuple(_STRIDE * cells for cells in kernel[:2])
        sides = tuple(side or own for side, own in zip(sides, seen, strict=True))
        if tuple(side // _STRIDE for side in sides) != tuple(kernel[:2]):
            raise ValueError(
                f"{model.name!r} takes images of {sides} and its fc1 sees {seen} of them: a box "
                "is relative to the window of fc1, so make the VGG for images of that size"
            )
    if given is not None:
        wanted = tuple(np.broadcast_to(given, 2).tolist())
        if any(own not in (None, side) for own, side in zip(sides, wanted, strict=True)):
            raise ValueError(f"window={wanted}, and {model.name!r} was made for {sides}")
        sides = wanted
    return sides

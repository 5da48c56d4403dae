"""The network that predicts boxes, and its loss (appendix A)."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.graph import require_unquantised
from keras_vgg.transfer import freeze
from keras_vgg.weights import copy_weights

STRIDE = 32  # pixels from one place to the next: five 2x2 pools
_BLOCKS_FROZEN = {"all": "none", "fc": "all"}  # trainable -> the argument of `freeze`


def localizer(
    model: keras.Model,
    classes: int | None = None,
    trainable: str = "all",
    name: str | None = None,
) -> keras.Model:
    """Return a copy of a trained classifier that predicts a box; train it with `EuclideanLoss`.

    "The last fully connected layer predicts the bounding box location instead of the class scores";
    it "was initialised randomly and trained from scratch", here by its initialiser in `model`. All
    other layers begin with copies of the classifier's weights. Dropout and weight decay stay, as
    training "is similar to that of the classification ConvNets".

    Args:
        model: A VGG that `evaluation.dense_network` takes: any head, width and number of classes.
            With `head="conv"`, its images have the size of fc1's window (`train_size`), or no
            fixed size; then train on images of the window's size.
        classes: None: one box for all classes, "single-class regression (SCR)". A number: a box
            for each class, "per-class regression (PCR)"; `predict_boxes` needs the number of the
            classifier's classes.
        trainable: "all": all layers. "fc": the layers after the last pool ("fine-tuning only the
            first two fully-connected layers", and the new one; with `head="gap"` only the new one).
            A frozen batch normalisation keeps its statistics.
        name: The model's name. None: the classifier's name with "_boxes".

    Returns:
        A model, not compiled, from images as `model` takes them to boxes relative to the image
        (see `localization.boxes`): [n, 4], or [n, 4 * classes], where class c has the four outputs
        from 4 * c on. It ends in a linear layer "predictions" (and "probabilities" if `model` has
        it), so `evaluation.dense_network` takes it.

    Raises:
        ValueError: the model is not a VGG, or has no classifier; classes is not a whole number
            above 0; trainable is unknown; a conv head's images do not have the size of its window;
            the model is quantised.
    """
    if classes is not None and (not isinstance(classes, int | np.integer) or classes < 1):
        raise ValueError(f"classes must be None or a whole number above 0, not {classes!r}")
    if trainable not in _BLOCKS_FROZEN:
        raise ValueError(f"trainable must be one of {', '.join(_BLOCKS_FROZEN)}, not {trainable!r}")
    _require_vgg(model)
    require_unquantised(model)
    window_of(model)
    outputs = 4 * int(classes or 1)

    def copy(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer.name == "predictions":
            config["filters" if "filters" in config else "units"] = outputs
        if layer.name in ("predictions", "probabilities"):
            config["activation"] = "linear"
        return type(layer).from_config(config)

    # The clone of a compiled model would have its losses and metrics. A new model has none.
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
    the ground-truth" (appendix A). The paper gives no formula; this is Caffe's layer of that name:
    half the sum of the squared differences of the four numbers, averaged over the images. The four
    numbers are shares of the window and have the same weight.

    y_true is [n, 5]: class, then the relative box. y_pred is [n, 4], where the class does not
    matter, or [n, 4 * classes], where only the true class's four outputs count. A class outside
    [0, classes) is not detected: it selects a box of zeros.

    Raises:
        ValueError: labels or outputs have a wrong shape.
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
        ValueError: a wrong shape.
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


def has_layer(model: keras.Model, name: str) -> bool:
    """Return whether a model has a layer with this name."""
    return any(layer.name == name for layer in model.layers)


def _require_vgg(model: keras.Model) -> None:
    for name in ("block5_pool", "predictions"):
        if not has_layer(model, name):
            raise ValueError(
                f"a localiser needs a VGG with its classifier; {model.name!r} has no layer {name!r}"
            )


def window_of(
    model: keras.Model, window: int | tuple[int, int] | None = None
) -> tuple[int | None, ...]:
    """Return (height, width) of a model's window; None for a side that is not known.

    Args:
        window: The user's, which must fit the model.
    """
    _require_vgg(model)
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("localisation needs images with channels last")
    sides = tuple(model.inputs[0].shape[1:3])
    kernel = model.get_layer("fc1").kernel.shape if has_layer(model, "fc1") else ()
    if len(kernel) == 4:
        fc1_window = tuple(STRIDE * cells for cells in kernel[:2])
        sides = tuple(side or own for side, own in zip(sides, fc1_window, strict=True))
        if tuple(side // STRIDE for side in sides) != tuple(kernel[:2]):
            raise ValueError(
                f"{model.name!r} takes images of {sides}, but the window of its fc1 is "
                f"{fc1_window}, and a box is relative to that window: make the VGG for images of "
                "the window's size"
            )
    if window is not None:
        user_sides = tuple(np.broadcast_to(window, 2).tolist())
        if any(own not in (None, side) for own, side in zip(sides, user_sides, strict=True)):
            raise ValueError(f"window is {user_sides}, but {model.name!r} was made for {sides}")
        sides = user_sides
    return sides

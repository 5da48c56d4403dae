"""Checks of a model, its class names and the images, before an export begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_vgg.export.ranges import CALIBRATION_METHODS
from keras_vgg.finite import check_range, require_finite_images, require_finite_weights

if TYPE_CHECKING:
    import keras


def check_model(model: keras.Model, class_names: Sequence[str]) -> None:
    """Raise ValueError for other inputs or outputs than an export has, or NaN in the weights."""
    if not getattr(model, "built", False) or not getattr(model, "inputs", None):
        raise ValueError(
            f"a model must be a functional or Sequential one that is built, with keras.Input, to be"
            f" exported; {getattr(model, 'name', model)!r} is not"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"a model must have one input and one output to be exported; {model.name!r} has"
            f" {len(model.inputs)} and {len(model.outputs)}"
        )
    classes, shape = len(class_names), model.output_shape
    fits = shape[1:] == (classes,) or (len(shape) == 4 and shape[-1] == classes)
    if len(model.input_shape) != 4 or not fits:
        raise ValueError(
            f"model {model.name!r} maps {model.input_shape} to {shape};"
            f" {classes} class names call for (None, size, size, 3) to (None, {classes}), or to a"
            f" map (None, height, width, {classes})"
        )
    if None in shape[1:]:
        raise ValueError(
            f"model {model.name!r} gives maps of any size, {shape}; a file needs one size: build "
            "the model with input_shape=(height, width, 3)"
        )
    for name in class_names:
        if name.splitlines() != [name]:
            raise ValueError(f"class name {name!r} is empty or has a line break in it")
    require_finite_weights(model)


def activation_name(model: keras.Model) -> str | None:
    """Return "softmax" or "sigmoid", by which a model's last layer ends; None for any other."""
    from keras_vgg.graph import final_activation

    name = getattr(final_activation(model), "__name__", None)
    return name if name in ("softmax", "sigmoid") else None


def check_thresholds(
    model: keras.Model, thresholds: Sequence[float] | None, classes: int
) -> np.ndarray | None:
    """Return the threshold of each label; None for a model that gives an image one label.

    Raises:
        ValueError: the model gives one label an image; there is not one threshold for each class.
    """
    if activation_name(model) != "sigmoid":
        if thresholds is not None:
            raise ValueError(
                f"thresholds are for a model that ends in sigmoids; {model.name!r} gives an image "
                "one label"
            )
        return None
    chosen = np.full(classes, 0.5) if thresholds is None else np.asarray(thresholds, np.float64)
    if chosen.shape != (classes,) or not ((chosen >= 0) & (chosen <= 1)).all():
        raise ValueError(f"thresholds must be {classes} numbers in [0, 1], not {thresholds}")
    return chosen


def check_images(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    calibration: np.ndarray | None,
    needs_calibration: str | None,
) -> None:
    """Raise ValueError for images or labels on which nothing can be verified or calibrated.

    `needs_calibration` is the format that needs calibration images.
    """
    _check_batch(images, model.input_shape, "to verify the export on")
    several = activation_name(model) == "sigmoid"
    shape = (len(images), *model.output_shape[1 : None if several else -1])
    if labels is not None and np.shape(labels) != shape:
        raise ValueError(
            f"labels are {np.shape(labels)} for {len(images)} images; they must be {shape}"
        )
    if needs_calibration:
        if calibration is None:
            raise ValueError(f"{needs_calibration} needs calibration images, of the training set")
        _check_batch(calibration, model.input_shape, "to calibrate on")


def check_calibration_method(method: str) -> None:
    """Raise ValueError for an unknown method."""
    if method not in CALIBRATION_METHODS:
        known = ", ".join(CALIBRATION_METHODS)
        raise ValueError(f"calibration_method must be one of {known}, not {method!r}")


def _check_batch(images: np.ndarray, input_shape: tuple[int | None, ...], purpose: str) -> None:
    fits = images.ndim == 4 and all(
        expected is None or actual == expected
        for actual, expected in zip(images.shape[1:], input_shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(f"images are {images.shape}; the model takes {input_shape}")
    if len(images) == 0:
        raise ValueError(f"there are no images {purpose}")
    require_finite_images(images, f"the images {purpose} hold")
    check_range(images, subject=f"the images {purpose}")


def check_tolerance(tolerance: float) -> None:
    """Raise ValueError for a negative tolerance or NaN."""
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more percentage points, not {tolerance}")


def check_top(top: int) -> None:
    """Raise ValueError if `classify` would name no class."""
    if top < 1:
        raise ValueError(f"top must be at least 1 class, not {top}")


def square_side(model: keras.Model) -> int:
    """Return the side of a model's square input. ValueError: the input has no fixed square size."""
    height, width = model.input_shape[1:3]
    if height is None or height != width:
        raise ValueError(
            f"model {model.name!r} takes {model.input_shape}, which is not one square size; pass a"
            " transform that makes images of a size that the model takes"
        )
    return height

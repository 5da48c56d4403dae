"""Class weights: how much the images of each class count in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from keras_vgg import data
from keras_vgg.recipe import Recipe
from keras_vgg.recipe_checks import parse_class_weights
from keras_vgg.recipe_faults import did_you_mean

_SHOWN = 10  # class names in a message


def class_weights(
    recipe: Recipe, split: data.Split, class_names: Sequence[str]
) -> np.ndarray | None:
    """Return the weight of each class, float32 [classes]; None if the recipe has no weights.

    "balanced" is scikit-learn's: n / (classes * images of the class). The mean over the images of
    the split is then 1, so the learning rate keeps its meaning. A class without images has weight
    0. For records, the labels are read from the files. Weights by name are taken as they are; a
    class without a weight has weight 1.

    Raises:
        ValueError: the recipe names a class that the source does not have, or gives no class with
            training images a weight above 0.
    """
    if recipe.class_weights == "none":
        return None
    if recipe.class_weights == "balanced":
        from sklearn.utils.class_weight import compute_class_weight

        labels = _labels(split)
        present = np.unique(labels)
        weights = np.zeros(len(class_names), np.float32)
        weights[present] = compute_class_weight("balanced", classes=present, y=labels)
        return weights
    by_name = parse_class_weights(recipe.class_weights)
    for name in by_name:
        if name not in class_names:
            shown = ", ".join(class_names[:_SHOWN]) + (", ..." if class_names[_SHOWN:] else "")
            hint = did_you_mean(name, class_names) or f"; the classes are {shown}"
            raise ValueError(f"class_weights={recipe.class_weights!r}: no class is {name!r}{hint}")
    weights = np.array([by_name.get(name, 1.0) for name in class_names], np.float32)
    if not weights.any():
        raise ValueError(
            f"class_weights={recipe.class_weights!r} gives every class weight 0; give at least one "
            "class a weight above 0"
        )
    return weights


def _labels(split: data.Split) -> np.ndarray:
    if split.labels is not None:
        return split.labels
    assert split.records is not None, "a split without labels has records"
    only_labels = split.records.dataset().map(lambda _, label: label)
    return np.fromiter(only_labels.as_numpy_iterator(), np.int64)


def weighted(batches: tf.data.Dataset, weights: np.ndarray | None) -> tf.data.Dataset:
    """Add to each batch (images, targets) the weight of each image, float32 [n].

    A target that mixes classes has the mixed weight. None: the batches stay as they are.
    """
    if weights is None:
        return batches
    return batches.map(partial(_add_weights, weights=weights))


def _add_weights(
    images: tf.Tensor, targets: tf.Tensor, weights: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return images, targets, tf.linalg.matvec(targets, tf.constant(weights))


def describe_weights(weights: np.ndarray, class_names: tuple[str, ...]) -> str:
    """Return a line on the smallest and the largest weight."""
    least, most = int(weights.argmin()), int(weights.argmax())
    return (
        f"class weights in the loss: from {weights[least]:.2f} ({class_names[least]}) to "
        f"{weights[most]:.2f} ({class_names[most]})"
    )

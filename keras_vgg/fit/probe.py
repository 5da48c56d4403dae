"""The first classifier of a network on pretrained features: scikit-learn's, not a random one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vgg import data, transfer
from keras_vgg.fit import frozen, hosts
from keras_vgg.recipe import Recipe

# Inverse strengths of the regularisation. More of them find nothing better.
STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
MOST_IMAGES = 20_000  # to fit on
# Where scikit-learn's solver stops. At its own 1e-4, features that differ only by a backend's
# rounding give probabilities that differ by 1e-3; here, by 3e-6.
TOLERANCE = 1e-8


def fit_classifier(
    model: keras.Model,
    recipe: Recipe,
    train: data.Split,
    validation: data.Split,
    transform: partial,
    folder: Path,
    verbose: bool = False,
    class_weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Give a network the linear classifier that is best on its own features.

    The features are the pooled feature map of each image, and of its mirror image if training uses
    mirror images. Each gets mean 0 and deviation 1. Logistic regression is fitted for each strength
    of the regularisation; the validation images choose one. The layer `predictions` then holds the
    classifier for the features as they are.

    Args:
        model: A network with head="gap".
        recipe: Its recipe.
        train: The images to fit on; at most 20,000 of them are used.
        validation: The images that choose.
        transform: As in `data.evaluation_dataset`.
        folder: Where to keep the features.
        verbose: Whether to show progress bars.
        class_weights: The weight of each class; None: the recipe has no weights by name.

    Returns:
        For results.json: `C` and the validation accuracy of the classifier.
    """
    base, _ = frozen.split_model(model)
    pairs = []
    for split, most, mirrored in (
        (train, MOST_IMAGES, recipe.horizontal_flip),
        (validation, validation.size, False),
    ):
        part = split.spread(most)
        # A part does not replace the features of the whole split, which training may keep.
        name = split.name if part.size == split.size else f"{split.name}-probe"
        batch_size = frozen.batch_size_of(recipe)
        pairs.append(_features(base, part, transform, mirrored, folder / name, batch_size, verbose))
    (features, labels), (validation_features, validation_labels) = pairs
    views = features.shape[1]
    probe = transfer.linear_probe(
        features.reshape(-1, features.shape[-1]).astype(np.float64),
        np.repeat(labels, views),
        validation_features[:, 0],
        validation_labels,
        C=STRENGTHS,
        max_iter=1000,
        tol=TOLERANCE,
        class_weight=_weights_for_scikit_learn(recipe, class_weights, labels),
    )
    kernel, bias = _folded(probe, model.output_shape[-1])
    layer: Any = model.get_layer("predictions")
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    return {"C": probe.C, "validation_accuracy": probe.validation_accuracy}


def _weights_for_scikit_learn(
    recipe: Recipe, class_weights: np.ndarray | None, labels: np.ndarray
) -> str | dict[int, float] | None:
    if recipe.class_weights == "balanced":
        return "balanced"
    if recipe.sampling != "balanced":
        return None if class_weights is None else dict(enumerate(class_weights.tolist()))
    if class_weights is None:
        return "balanced"
    from sklearn.utils.class_weight import compute_class_weight

    present = np.unique(labels)
    even = compute_class_weight("balanced", classes=present, y=labels)
    return dict(zip(present.tolist(), (even * class_weights[present]).tolist(), strict=True))


def _features(
    base: keras.Model,
    split: data.Split,
    transform: partial,
    mirrored: bool,
    folder: Path,
    batch_size: int,
    verbose: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [images, views, d] and int [images]."""
    if hosts.count() == 1:
        cached = frozen.Features(
            base,
            split,
            transform,
            mirrored=mirrored,
            folder=folder,
            batch_size=batch_size,
            verbose=verbose,
        )
        return cached.features, cached.labels
    features, labels = [], []
    for images, classes in data.evaluation_dataset(split, 32, transform).as_numpy_iterator():
        views = [images, images[:, :, ::-1]][: 1 + mirrored]
        # Not predict_on_batch: several devices cannot share the last batch equally.
        arrays: list[Any] = [base(view.astype("float32"), training=False) for view in views]
        arrays = [keras.ops.convert_to_numpy(array) for array in arrays]
        features.append(np.stack(arrays, axis=1).astype("float32"))
        labels.append(classes)
    return np.concatenate(features), np.concatenate(labels)


def _folded(probe: transfer.LinearProbe, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel [d, classes] and bias [classes] of a soft-max on features as they are.

    A class without training images gets a bias that makes it improbable.
    """
    scaler, regression = (step for _, step in probe.classifier.steps)
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one row: the second class's log odds
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    coefficients = coefficients / scaler.scale_
    intercepts = intercepts - coefficients @ scaler.mean_
    kernel = np.zeros((coefficients.shape[1], classes), np.float32)
    bias = np.full(classes, intercepts.min() - 10, np.float32)
    kernel[:, regression.classes_] = coefficients.T
    bias[regression.classes_] = intercepts
    return kernel, bias

"""The loss and the metrics of a recipe."""

from __future__ import annotations

from typing import Any

import keras

from keras_vgg.recipe import Recipe


def loss_for(recipe: Recipe, several_labels: bool = False) -> keras.losses.Loss:
    """Return the recipe's loss for one-hot targets, or for targets with several labels an image."""
    smoothing = recipe.label_smoothing
    if several_labels and recipe.loss == "focal":
        return keras.losses.BinaryFocalCrossentropy(
            gamma=recipe.focal_gamma, label_smoothing=smoothing
        )
    if several_labels:
        return keras.losses.BinaryCrossentropy(label_smoothing=smoothing)
    if recipe.loss == "focal":
        return keras.losses.CategoricalFocalCrossentropy(
            alpha=1.0,  # so gamma 0 is cross-entropy; classes are weighed by class_weights
            gamma=recipe.focal_gamma,
            label_smoothing=smoothing,
        )
    return keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)


def metrics_for(
    recipe: Recipe, classes: int, several_labels: bool = False
) -> list[keras.metrics.Metric]:
    """Return top-1, top-5 (over five classes) and the figure of `select_by`.

    With several labels an image, return the mean over the labels of the area under the
    precision-recall curve, `pr_auc`: Keras', which approximates it by 200 thresholds. A blended
    label of mixup or cutmix counts as a label.

    Given a metric's name alone, Keras makes the variables in the first step. TensorFlow then traces
    that step a second time, and keeps both graphs.
    """
    if several_labels:
        return [keras.metrics.AUC(curve="PR", multi_label=True, num_labels=classes, name="pr_auc")]
    metrics: list[keras.metrics.Metric] = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    if classes > 5:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(5, name="top5_accuracy"))
    if recipe.select_by == "balanced_accuracy":
        metrics.append(BalancedAccuracy(classes))
    return metrics


@keras.saving.register_keras_serializable("keras_vgg")
class BalancedAccuracy(keras.metrics.Metric):
    """Mean of the accuracies of the classes that have images, over all images of an epoch.

    Every image counts once, whatever its weight. Images of weight 0, which fill a batch, and those
    of a class of weight 0 do not count. A target that mixes classes counts as the larger one.

    Args:
        classes: The number of classes.
    """

    def __init__(self, classes: int, name: str = "balanced_accuracy", dtype: Any = None) -> None:
        super().__init__(dtype=dtype, name=name)
        # float32 counts exactly up to 2**24, on every device.
        self.right = self.add_variable((classes,), "zeros", dtype="float32", name="right")
        self.images = self.add_variable((classes,), "zeros", dtype="float32", name="images")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": self.images.shape[0]}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        ops: Any = keras.ops
        labels = ops.argmax(y_true, axis=-1)
        classes = ops.one_hot(labels, self.images.shape[0], dtype="float32")
        if sample_weight is not None:
            classes *= ops.cast(ops.reshape(sample_weight, (-1, 1)) > 0, "float32")
        is_right = ops.cast(labels == ops.argmax(y_pred, axis=-1), "float32")
        self.images.assign_add(ops.sum(classes, axis=0))
        self.right.assign_add(ops.sum(classes * ops.reshape(is_right, (-1, 1)), axis=0))

    def result(self) -> Any:
        ops: Any = keras.ops
        shares = self.right / ops.maximum(self.images, 1.0)
        present = ops.sum(ops.cast(self.images > 0, "float32"))
        return ops.sum(shares) / ops.maximum(present, 1.0)

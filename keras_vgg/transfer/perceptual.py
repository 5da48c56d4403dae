"""The perceptual loss: the distance of two images in the features of a trained VGG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_vgg.finite import check_range
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.transfer.features import channel_axis, feature_extractor


@keras.saving.register_keras_serializable("keras_vgg")
class PerceptualLoss(keras.losses.Loss):
    """The weighted distance of two images in the features of a VGG.

    Use it to train a model that makes images: `model.compile(loss=PerceptualLoss(vgg,
    {"block2_conv2": 1.0}))` (Johnson et al., arXiv:1603.08155, equation 2). Images are
    [n, h, w, 1 or 3], RGB in `value_range`. The loss is [n] before Keras' reduction: the sum over
    layers of weight x mean over the map of the squared (or absolute) difference. It is NaN for an
    image that holds NaN or infinity. A grey image is repeated for a VGG with three channels.

    The loss holds a network, which is not saved with a model. To load a model that was compiled
    with the loss, call `keras.saving.load_model(path, compile=False)` and compile it again.

    Args:
        model: A VGG for images of this size. It runs in inference and is never trained.
        layers: Names, or {name: weight}.
        distance: "l2" (squared) or "l1" (absolute).
        preprocessing: The preprocessing that the VGG was trained with, such as
            `ImagePreprocessing.caffe()`, if it is not inside the model. False: the images are
            already preprocessed.
        value_range: Range of the images' values, such as (0, 1). It is mapped to [0, 255].
        normalize: Whether to divide each pixel's features by their length first.

    Raises:
        ValueError: bad layers, weights or distance; the preprocessing is not known; images of
            different sizes, or too small for the layers; eager `y_true` far outside `value_range`,
            or in [-1, 1] where the range is [0, 255]. The loss warns of [0, 1].
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Mapping[str, float] | Sequence[str],
        *,
        distance: str = "l2",
        preprocessing: ImagePreprocessing | Literal[False] | None = None,
        value_range: tuple[float, float] = (0.0, 255.0),
        normalize: bool = False,
        name: str = "perceptual_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        # Call this before the names become keys, which would hide a repeated name.
        self._extractor = feature_extractor(model, layers)
        if not isinstance(layers, Mapping):
            layers = dict.fromkeys(self._extractor.output, 1.0)
        if any(not np.isfinite(w) or w <= 0 for w in layers.values()):
            raise ValueError(f"layers need positive weights, not {dict(layers)}")
        if distance not in ("l2", "l1"):
            raise ValueError(f"distance must be 'l2' or 'l1', not {distance!r}")
        low, high = value_range
        if not low < high:
            raise ValueError(f"value_range must rise, not {value_range}")
        inside = any(isinstance(layer, ImagePreprocessing) for layer in model.layers)
        # True does not say which preprocessing.
        outside = preprocessing not in (None, True, False)
        if inside == outside and preprocessing is not False:
            raise ValueError(
                "the model has its preprocessing inside: pass none"
                if inside
                else "the model has no preprocessing inside: pass that of its training, such as "
                "ImagePreprocessing.caffe(), or False if the images come preprocessed"
            )
        self._layers = dict(layers)
        self._distance = distance
        self._preprocessing = preprocessing if outside else None
        self._range = value_range
        self._checks_range = preprocessing is not False
        self._least_side = _least_side(self._extractor)
        self._normalize = normalize

    def call(self, y_true, y_pred):
        shapes = tuple(y_true.shape), tuple(y_pred.shape)
        sides = [shape[2:] if channel_axis() == 1 else shape[1:-1] for shape in shapes]
        # Maps of 1 x 1 would broadcast without an error.
        if {len(shape) for shape in shapes} != {4} or any(
            a != b and None not in (a, b) for a, b in zip(*sides, strict=True)
        ):
            raise ValueError(f"images must be [n, h, w, channels] of one size, not {shapes}")
        least = self._least_side
        for height, width in sides:
            if min(least if side is None else side for side in (height, width)) < least:
                raise ValueError(
                    f"images must be at least {least}x{least} for the layers "
                    f"{', '.join(self._layers)}, not {height}x{width}"
                )
        if self._checks_range:
            # y_pred may be anything, early in a training. The preprocessing warns of [0, 1].
            subject, advice = "the images y_true", "scale them, or pass value_range=(-1, 1)"
            check_range(y_true, self._range, subject=subject, advice=advice, warn=False)
        true_features, features = self._features(y_true), self._features(y_pred)
        measure = ops.square if self._distance == "l2" else ops.abs
        total = 0.0
        for name, weight in self._layers.items():
            difference: Any = measure(features[name] - ops.stop_gradient(true_features[name]))
            axes = tuple(range(1, len(difference.shape)))
            mean: Any = ops.mean(difference, axis=axes)
            total = total + weight * mean
        # The network's ReLUs can return 0 for NaN, which would hide NaN in the images.
        axes = tuple(range(1, len(shapes[0])))
        finite = [ops.all(ops.isfinite(images), axis=axes) for images in (y_true, y_pred)]
        return ops.where(ops.logical_and(*finite), total, float("nan"))

    def _features(self, images: Any) -> dict[str, Any]:
        images = ops.cast(images, "float32")
        axis = channel_axis()
        if images.shape[axis] == 1 and self._extractor.inputs[0].shape[axis] == 3:
            images = ops.repeat(images, 3, axis=axis)
        low, high = self._range
        if self._range != (0.0, 255.0):
            images = (images - low) * (255.0 / (high - low))
        if self._preprocessing is not None:
            images = self._preprocessing(images)
        features = self._extractor(images, training=False)
        # Features of a half-precision network fit its type, but their squares may not.
        features: dict[str, Any] = {n: ops.cast(f, "float32") for n, f in features.items()}
        if self._normalize:
            axes = {name: axis if len(f.shape) == 4 else -1 for name, f in features.items()}
            features = {name: ops.normalize(f, axes[name]) for name, f in features.items()}
        return features

    def get_config(self) -> dict[str, Any]:
        """Return what Keras saves with a compiled model. The network is not in it."""
        return {**super().get_config(), "layers": self._layers, "distance": self._distance}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerceptualLoss:
        raise ValueError(
            "a PerceptualLoss holds a network that is not saved with a model: load the model with "
            "compile=False, and compile it again"
        )


def _least_side(extractor: keras.Model) -> int:
    """Return the least side of images of which the pooling layers leave a pixel."""
    kinds = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
    strides = (max(layer.strides) for layer in extractor.layers if isinstance(layer, kinds))
    return math.prod(strides)

"""A loss between images: how differently a trained VGG sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_vgg.layers import ImagePreprocessing
from keras_vgg.transfer.features import channel_axis, feature_extractor


@keras.saving.register_keras_serializable("keras_vgg")
class PerceptualLoss(keras.losses.Loss):
    """How differently a VGG sees two images: weighted distances of its features.

    For `model.compile(loss=PerceptualLoss(vgg, {"block2_conv2": 1.0}))`, where the model makes
    images (Johnson et al., arXiv:1603.08155, equation 2). Images are [n, h, w, 1 or 3], RGB in
    `value_range`. Gives [n], before Keras' reduction: the sum over layers of weight x mean over
    the map of the squared (or absolute) difference; NaN for an image that holds NaN or infinity.
    One channel becomes three for a VGG of three.

    It holds a network that is not saved: load a model that was compiled with it by
    `keras.saving.load_model(path, compile=False)`, and compile it again.

    Args:
        model: A VGG for images of that size; it is used as in inference, and never trained.
        layers: Names, or {name: weight}.
        distance: "l2" (squared) or "l1" (absolute).
        preprocessing: What the network was trained on, such as `ImagePreprocessing.caffe()`, where
            the model has none inside. False: the images come preprocessed.
        value_range: What the images' values lie in, such as (0, 1); mapped to [0, 255].
        normalize: Divide each pixel's features by their length first.

    Raises:
        ValueError: layers, weights or a distance that do not fit; no preprocessing anywhere; images
            of different sizes.
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
        # Before the names become keys, which would hide one that is there twice.
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
        # True would say that there is one, not which.
        given = preprocessing not in (None, True, False)
        if inside == given and preprocessing is not False:
            raise ValueError(
                "the model has its preprocessing inside: pass none"
                if inside
                else "the model has no preprocessing inside: pass what it was trained on, such as "
                "ImagePreprocessing.caffe(), or False if the images come preprocessed"
            )
        self._layers = dict(layers)
        self._distance = distance
        self._preprocessing = preprocessing if given else None
        self._range = value_range
        self._normalize = normalize

    def call(self, y_true, y_pred):
        shapes = tuple(y_true.shape), tuple(y_pred.shape)
        sides = [shape[2:] if channel_axis() == 1 else shape[1:-1] for shape in shapes]
        # Maps of 1 x 1 would broadcast without a word.
        if {len(shape) for shape in shapes} != {4} or any(
            a != b and None not in (a, b) for a, b in zip(*sides, strict=True)
        ):
            raise ValueError(f"images must be [n, h, w, channels] of one size, not {shapes}")
        wanted, found = self._features(y_true), self._features(y_pred)
        measure = ops.square if self._distance == "l2" else ops.abs
        total = 0.0
        for name, weight in self._layers.items():
            difference: Any = measure(found[name] - ops.stop_gradient(wanted[name]))
            axes = tuple(range(1, len(difference.shape)))
            mean: Any = ops.mean(difference, axis=axes)
            total = total + weight * mean
        # The network's ReLUs may give 0 for NaN, and so hide that the images hold one.
        axes = tuple(range(1, len(shapes[0])))
        finite = [ops.all(ops.isfinite(images), axis=axes) for images in (y_true, y_pred)]
        return ops.where(ops.logical_and(*finite), total, float("nan"))

    def _features(self, given) -> dict[str, Any]:
        images: Any = ops.cast(given, "float32")
        axis = channel_axis()
        if images.shape[axis] == 1 and self._extractor.inputs[0].shape[axis] == 3:
            images = ops.repeat(images, 3, axis=axis)
        low, high = self._range
        if self._range != (0.0, 255.0):
            images = (images - low) * (255.0 / (high - low))
        if self._preprocessing is not None:
            images = self._preprocessing(images)
        features = self._extractor(images, training=False)
        # A half-precision network's features fit its type; their squares need not.
        features: dict[str, Any] = {n: ops.cast(f, "float32") for n, f in features.items()}
        if self._normalize:
            axes = {name: axis if len(f.shape) == 4 else -1 for name, f in features.items()}
            features = {name: ops.normalize(f, axes[name]) for name, f in features.items()}
        return features

    def get_config(self) -> dict[str, Any]:
        """What a model that was compiled with it is saved with: not the network."""
        return {**super().get_config(), "layers": self._layers, "distance": self._distance}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerceptualLoss:
        raise ValueError(
            "a PerceptualLoss holds a network that is not saved with a model: load the model with "
            "compile=False, and compile it again"
        )

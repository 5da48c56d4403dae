"""The perceptual loss: the distance of two images in the features of a trained VGG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_vgg.features import channel_axis, feature_extractor
from keras_vgg.finite import check_range
from keras_vgg.gradient import answer_of, answer_of_fixed
from keras_vgg.graph import all_layers
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.perceptual.gram import gram_matrix
from keras_vgg.perceptual.images import (
    checked_range,
    for_network,
    has_preprocessing,
    least_side,
    nan_unless_finite,
    require_one_size,
)
from keras_vgg.perceptual.settings import SETTINGS, Setting


@keras.saving.register_keras_serializable("keras_vgg")
class PerceptualLoss(keras.losses.Loss):
    """The weighted distance of two images in the features of a VGG.

    Use it to train a model that makes images: `model.compile(loss=PerceptualLoss(vgg,
    {"block2_conv2": 1.0}))` (Johnson et al., arXiv:1603.08155, equation 2), or
    `PerceptualLoss(vgg19, "esrgan")` for a published loss. Images are [n, h, w, 1 or 3], RGB in
    `value_range`. The loss is [n] before Keras' reduction: the sum over layers of weight x mean
    over the map of the squared (or absolute) difference, and over style layers of weight x sum over
    the Gram matrix. It is NaN for an image that holds NaN or infinity. A grey image is repeated for
    a VGG with three channels.

    The file of a model that was compiled with the loss holds the weights of the loss' network, but
    does not say how to build the network. To load such a file, call
    `keras.saving.load_model(path, compile=False)` and compile the model again. To leave the weights
    out of the file, call `keras.Model(model.inputs, model.outputs).save(path)`.

    Args:
        model: A VGG for images of this size, or a model that holds one. It runs in inference and is
            never trained.
        layers: Names as `feature_extractor` takes them, such as "block3_conv3:pre"; {name: weight};
            or the name of a published loss: "srgan", "srgan_pre", "esrgan", "pix2pixhd", "johnson",
            "johnson_style" (`keras_vgg.perceptual.SETTINGS` has each with its source).
        distance: "l2" (squared) or "l1" (absolute). Default: the published loss', else "l2".
        preprocessing: The preprocessing that the VGG was trained with, such as
            `ImagePreprocessing.caffe()`, if it is not inside the model. False: the images are
            already preprocessed.
        value_range: Range of the images' values, such as (0, 1). It is mapped to [0, 255].
        normalize: Whether to divide each pixel's features by their length first.
        style_layers: Names, or {name: weight}, of which the Gram matrices are compared.
        pooling_layers: "avg": average pooling in place of max pooling.
        name, reduction: As in `keras.losses.Loss`.

    Raises:
        ValueError: bad layers, weights or distance; the published loss is of another VGG; the
            preprocessing is not known; images of different sizes, or too small for the layers;
            eager `y_true` far outside `value_range`, or in [-1, 1] where the range is [0, 255]. The
            loss warns of [0, 1].
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Mapping[str, float] | Sequence[str] = (),
        *,
        distance: Literal["l2", "l1"] | None = None,
        preprocessing: ImagePreprocessing | Literal[False] | None = None,
        value_range: tuple[float, float] = (0.0, 255.0),
        normalize: bool = False,
        style_layers: Mapping[str, float] | Sequence[str] = (),
        pooling_layers: Literal["avg"] | None = None,
        name: str = "perceptual_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if isinstance(layers, str) and layers in SETTINGS:
            setting = SETTINGS[layers]
            _require_network(model, layers, setting)
            if style_layers:
                raise ValueError(f"{layers!r} states its layers: pass no style_layers")
            layers, style_layers = setting.layers, setting.style_layers
            distance = distance or setting.distance
        self._distance = distance or "l2"
        self._layers, self._style_layers = _weighted(layers), _weighted(style_layers)
        both = list(dict.fromkeys([*self._layers, *self._style_layers]))
        self._extractor = feature_extractor(model, both, pooling_layers=pooling_layers)
        if self._distance not in ("l2", "l1"):
            raise ValueError(f"distance must be 'l2' or 'l1', not {distance!r}")
        inside = has_preprocessing(model)
        # True does not say which preprocessing.
        outside = preprocessing not in (None, True, False)
        if inside == outside and preprocessing is not False:
            raise ValueError(
                "the model has its preprocessing inside: pass none"
                if inside
                else "the model has no preprocessing inside: pass that of its training, such as "
                "ImagePreprocessing.caffe(), or False if the images come preprocessed"
            )
        self._preprocessing = preprocessing if outside else None
        self._range = checked_range(value_range)
        self._checks_range = preprocessing is not False
        self._least_side = least_side(self._extractor)
        self._normalize = normalize

    def call(self, y_true, y_pred):
        layers = ", ".join(self._extractor.output)
        require_one_size(y_true, y_pred, self._least_side, f"the layers {layers}")
        if self._checks_range:
            # y_pred may be anything, early in a training. The preprocessing warns of [0, 1].
            subject, advice = "the images y_true", "scale them, or pass value_range=(-1, 1)"
            check_range(y_true, self._range, subject=subject, advice=advice, warn=False)
        true_features = self._features(y_true, answer_of)
        features = self._features(y_pred, answer_of_fixed)
        measure = ops.square if self._distance == "l2" else ops.abs
        total: Any = 0.0
        for name, weight in self._layers.items():
            difference: Any = measure(features[name] - ops.stop_gradient(true_features[name]))
            mean: Any = ops.mean(difference, axis=tuple(range(1, len(difference.shape))))
            total = total + weight * mean
        for name, weight in self._style_layers.items():
            true_gram = ops.stop_gradient(gram_matrix(true_features[name]))
            difference = measure(gram_matrix(features[name]) - true_gram)
            sum_of_matrix: Any = ops.sum(difference, axis=(1, 2))
            total = total + weight * sum_of_matrix
        return nan_unless_finite(total, (y_true, y_pred))

    def _features(self, images: Any, answer: Callable[..., Any]) -> dict[str, Any]:
        axis = channel_axis()
        images = for_network(images, self._range, self._extractor.inputs[0].shape[axis])
        if self._preprocessing is not None:
            images = self._preprocessing(images)
        features = answer(self._extractor, images)
        # Features of a half-precision network fit its type, but their squares may not.
        features: dict[str, Any] = {n: ops.cast(f, "float32") for n, f in features.items()}
        if self._normalize:
            axes = {name: axis if len(f.shape) == 4 else -1 for name, f in features.items()}
            features = {name: ops.normalize(f, axes[name]) for name, f in features.items()}
        return features

    def get_config(self) -> dict[str, Any]:
        """Return how the file of a compiled model describes the loss. It leaves the network out."""
        layers = {"layers": self._layers, "style_layers": self._style_layers}
        return {**super().get_config(), **layers, "distance": self._distance}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerceptualLoss:
        raise ValueError(
            "a PerceptualLoss holds a network, and the file of a model does not say how to build "
            "it: load the model with compile=False, and compile it again"
        )


def _weighted(layers: Mapping[str, float] | Sequence[str]) -> dict[str, float]:
    """Return {name: weight}. ValueError: a name is repeated, a weight is not positive."""
    if not isinstance(layers, Mapping):
        names = [layers] if isinstance(layers, str) else list(layers)
        if len(set(names)) != len(names):
            raise ValueError(f"layers must be one or more different names, not {names}")
        return dict.fromkeys(names, 1.0)
    if any(not np.isfinite(w) or w <= 0 for w in layers.values()):
        raise ValueError(f"layers need positive weights, not {dict(layers)}")
    return dict(layers)


def _require_network(model: keras.Model, name: str, setting: Setting) -> None:
    """Raise a ValueError if a published loss is for another VGG; A to E differ in block 3 to 5."""
    network = "VGG19" if setting.network == "E" else "VGG16"
    names = {layer.name: layer for layer in all_layers(model)}
    has = None
    if ("block5_conv4" in names) != (setting.network == "E"):
        has = f"{'a' if 'block5_conv4' in names else 'no'} layer block5_conv4"
    elif getattr(names.get("block3_conv3"), "kernel_size", None) != (3, 3):
        has = "no 3x3 convolution block3_conv3"
    if has is not None:
        raise ValueError(
            f"{name!r} is a loss on {network}; {model.name} has {has}. Pass "
            f"layers={dict(setting.layers) or dict(setting.style_layers)} for the same layers of "
            "another VGG"
        )

"""What LPIPS and DISTS share: the network, the checks, the uses as loss, metric and function."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from safetensors.numpy import load_file

from keras_vgg.backend import as_array
from keras_vgg.features import channel_axis, feature_extractor
from keras_vgg.finite import check_range
from keras_vgg.gradient import answer_of_fixed
from keras_vgg.graph import all_layers
from keras_vgg.layers import ImagePreprocessing, is_reading_file
from keras_vgg.models import VGG16
from keras_vgg.perceptual.images import (
    checked_range,
    for_network,
    has_preprocessing,
    nan_unless_finite,
    require_one_size,
)

# Four 2x2 pools are before the last features.
LEAST_SIDE = 16
LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")
_ADVICE = "scale them, or pass value_range=(0, 1) or (-1, 1)"


class ImageDistance:
    """A distance of pairs of images, in the features of VGG-16. `LPIPS` and `DISTS` are its kinds.

    Attributes:
        name: The name of the loss or the metric.
    """

    def __init__(
        self,
        weights: str | Path | keras.Model,
        preprocessing: ImagePreprocessing | None,
        value_range: tuple[float, float],
        name: str,
        pooling_layers: Any = None,
    ) -> None:
        self.name = name
        self._weights, self._preprocessing = weights, preprocessing
        self._range = checked_range(value_range)
        network = trunk(weights, preprocessing)
        _require_vgg16(network, name)
        self._extractor = feature_extractor(network, LAYERS, pooling_layers=pooling_layers)
        maps: Any = self._extractor.output
        self._widths: list[int] = [maps[layer].shape[channel_axis()] for layer in LAYERS]
        self._compiled = _Compiled(self)

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        """Return the distance of each pair; of NumPy arrays as an array, without gradients.

        Args:
            y_true: [n, h, w, 1 or 3] RGB in `value_range`; or one image, [h, w, 1 or 3].
            y_pred: Images of the same shape. Tensors may be outside the range, as early in a
                training.

        Returns:
            [n] float32; [n, h, w] with `spatial`. NaN for an image that holds NaN or infinity.

        Raises:
            ValueError: images of different sizes, or smaller than 16x16; values far outside
                `value_range`. The call warns of values in [0, 1] where the range is [0, 255].
        """
        y_true, y_pred = (x if ops.is_tensor(x) else np.asarray(x) for x in (y_true, y_pred))
        one = len(y_true.shape) == len(y_pred.shape) == 3
        if one:
            y_true, y_pred = y_true[None], y_pred[None]
        arrays = isinstance(y_true, np.ndarray) and isinstance(y_pred, np.ndarray)
        require_one_size(y_true, y_pred, LEAST_SIDE, self.name)
        # The preprocessing warns of tensors in [0, 1].
        for subject, images in (("the images y_true", y_true), ("the images y_pred", y_pred)):
            refuse = arrays or images is y_true
            options = {"subject": subject, "advice": _ADVICE, "refuse": refuse, "warn": arrays}
            check_range(images, self._range, **options)
        if arrays:
            pair = np.asarray(y_true, "float32"), np.asarray(y_pred, "float32")
            distances = self._compiled.predict_on_batch(pair)
        else:
            distances = self._differentiable(y_true, y_pred)
        return distances[0] if one else distances

    def metric(self, name: str | None = None) -> keras.metrics.Metric:
        """Return a Keras metric: the mean over all pairs that `update_state` gets."""
        return keras.metrics.MeanMetricWrapper(self, name=name or self.name)

    def evaluate(self, pairs: Iterable[tuple[Any, Any]], verbose: int = 0) -> np.ndarray:
        """Return the distances of all pairs of a data set, [n] float32.

        Args:
            pairs: Batches (y_true, y_pred): a tf.data.Dataset, a PyTorch loader, a list.
            verbose: 1 shows a progress bar.
        """
        progress = keras.utils.Progbar(None, verbose=verbose, unit_name="batch")
        distances = []
        for batch in pairs:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(f"pairs must give batches (y_true, y_pred), not {type(batch)}")
            y_true, y_pred = (as_array(images) for images in batch)
            distances.append(np.asarray(self(y_true, y_pred)))
            progress.add(1)
        if not distances:
            raise ValueError("there are no pairs of images")
        return np.concatenate(distances)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras saves with a model that was compiled with the distance.

        A network that was given as `weights` is not saved.
        """
        return {
            "weights": None if isinstance(self._weights, keras.Model) else str(self._weights),
            "preprocessing": keras.saving.serialize_keras_object(self._preprocessing),
            "value_range": list(self._range),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        if is_reading_file():
            raise ValueError(
                f"{config.get('name')} is no part of a network, and would read other weights"
            )
        if config["weights"] is None:
            raise ValueError(
                f"{config['name']} held a network that was not saved with the model: load the "
                "model with compile=False, and compile it again"
            )
        preprocessing = keras.saving.deserialize_keras_object(config.pop("preprocessing"))
        value_range = tuple(config.pop("value_range"))
        return cls(preprocessing=preprocessing, value_range=value_range, **config)

    def _differentiable(self, y_true: Any, y_pred: Any) -> Any:
        channels = self._extractor.inputs[0].shape[channel_axis()]
        pair = [for_network(images, self._range, channels) for images in (y_true, y_pred)]
        maps = [answer_of_fixed(self._extractor, images) for images in pair]
        first, second = (
            [ops.cast(features[name], "float32") for name in LAYERS] for features in maps
        )
        distance = self._distance(pair[0], pair[1], first, second)
        return nan_unless_finite(distance, pair)

    def _distance(self, first: Any, second: Any, first_maps: Any, second_maps: Any) -> Any:
        """Return the distances of images in [0, 255] with these feature maps."""
        raise NotImplementedError


class _Compiled(keras.Model):
    """A distance as one compiled function of two batches of arrays."""

    def __init__(self, distance: ImageDistance) -> None:
        # The global policy may be a mixed one, which would round the images.
        super().__init__(name=distance.name, dtype="float32")
        self._function = distance._differentiable
        self.trunk = distance._extractor  # its weights are this model's
        self.built = True
        # XLA would compile for every size of the images. Keras types its default "auto" alone.
        self.compile(jit_compile=False)  # pyright: ignore[reportArgumentType]

    def call(self, inputs):
        return self._function(*inputs)


def learned(file: str) -> dict[str, np.ndarray]:
    """Return the published weights of a file in `learned`; ORIGIN.md there says whose they are."""
    return load_file(Path(__file__).with_name("learned") / file)


def _require_vgg16(network: keras.Model, name: str) -> None:
    """Raise a ValueError for batch norm, and for a VGG whose layers alone have VGG-16's names."""
    layers = list(all_layers(network))
    names = {layer.name: layer for layer in layers}
    other = None
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers):
        other = "has batch norm"
    elif "block5_conv4" in names:
        other = "is VGG-19"
    elif getattr(names.get("block3_conv3"), "kernel_size", None) == (1, 1):
        other = "is the paper's network C"
    if other is not None:
        raise ValueError(
            f"{name} is defined for VGG-16 without batch norm, and {network.name} {other}: pass "
            "such a VGG16, or weights by name"
        )


def trunk(
    weights: str | Path | keras.Model, preprocessing: ImagePreprocessing | None
) -> keras.Model:
    """Return a VGG-16 without the top that takes RGB in [0, 255], of any size."""
    if not isinstance(weights, keras.Model):
        return VGG16(
            include_top=False, weights=weights, include_preprocessing=preprocessing or True
        )
    if not has_preprocessing(weights):
        raise ValueError(
            f"the model {weights.name} has no preprocessing inside: build it with "
            "include_preprocessing=True"
        )
    if preprocessing is not None:
        raise ValueError(f"the model {weights.name} has its preprocessing inside: pass none")
    return weights

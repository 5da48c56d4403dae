"""A network that gives every photograph one style in a single pass, and the loss that trains it.

Johnson, Alahi and Fei-Fei (arXiv:1603.08155) train a network on the loss of style transfer, so that
a photograph takes one pass in place of hundreds of steps. The layers are those of the paper's
supplementary material, with three changes that later papers found to give better pictures:

- instance normalisation in place of batch normalisation (Ulyanov et al., arXiv:1607.08022);
- enlargement by repeated pixels and a convolution in place of a transposed convolution, which draws
  chequered patterns (Odena et al., Distill 2016, doi:10.23915/distill.00003);
- reflection padding at each convolution in place of 40 pixels at the beginning, so that the
  residual blocks crop nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import layers, ops

from keras_vgg.backend import as_array
from keras_vgg.features import channel_axis, feature_extractor
from keras_vgg.finite import check_range, require_finite_weights
from keras_vgg.gradient import answer_of, answer_of_fixed
from keras_vgg.perceptual.distance import LEAST_SIDE
from keras_vgg.perceptual.gram import gram_matrix
from keras_vgg.perceptual.images import require_one_size
from keras_vgg.perceptual.style import (
    CONTENT_LAYER,
    STYLE_LAYERS,
    after_relu,
    as_input,
    checked_picture,
    content_loss,
    rgb_extractor,
    style_loss,
)


def style_network(
    width: int = 32, residual_blocks: int = 5, *, name: str = "style_network"
) -> keras.Model:
    """Build the network of Johnson et al.: images [n, h, w, 3] RGB in [0, 255] to the same.

    A 9x9 convolution, two 3x3 ones with stride 2, residual blocks, two enlargements to twice the
    sides, each with a 3x3 convolution, and a 9x9 convolution with a scaled tanh. The sides may be
    of any length from 16 pixels on. It has no weights of its own to load: train it with
    `StyleTransferLoss`.

    Args:
        width: Filters of the first convolution; the next two have 2 and 4 times as many. The paper
            has 32.
        residual_blocks: The paper has 5.
        name: The model's name.

    Raises:
        ValueError: a number is below 1; Keras' data format is "channels_first".

    Example:
        ```python
        from keras_vgg.perceptual import style_network

        model = style_network(width=4, residual_blocks=1)
        print(model.output_shape)  # (None, None, None, 3)
        ```
    """
    for label, number in (("width", width), ("residual_blocks", residual_blocks)):
        if type(number) is not int or number < 1:
            raise ValueError(f"{label} must be a whole number of at least 1, not {number!r}")
    if channel_axis() == 1:
        raise ValueError(
            "the style network takes images with channels last; call "
            "keras.config.set_image_data_format('channels_last') before you build one"
        )
    image = keras.Input((None, None, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")(image)
    x = _convolution(x, width, 9, "conv1")
    x = _convolution(x, 2 * width, 3, "conv2", strides=2)
    x = _convolution(x, 4 * width, 3, "conv3", strides=2)
    for number in range(1, residual_blocks + 1):
        y = _convolution(x, 4 * width, 3, f"residual{number}_conv1")
        y = _convolution(y, 4 * width, 3, f"residual{number}_conv2", activation=False)
        x = layers.Add(name=f"residual{number}")([x, y])
    for number, filters in ((4, 2 * width), (5, width)):
        x = layers.UpSampling2D(2, interpolation="nearest", name=f"conv{number}_up")(x)
        x = _convolution(x, filters, 3, f"conv{number}")
    x = ReflectionPadding(4, name="conv6_pad")(x)
    x = layers.Conv2D(3, 9, name="conv6")(x)
    return keras.Model(image, AsImage(dtype="float32", name="stylized")([x, image]), name=name)


def _convolution(
    x: Any, filters: int, kernel: int, name: str, strides: int = 1, activation: bool = True
) -> Any:
    """Return a convolution of a padded map, normalised for each image and channel."""
    x = ReflectionPadding(kernel // 2, name=f"{name}_pad")(x)
    # The normalisation has the bias.
    x = layers.Conv2D(filters, kernel, strides=strides, use_bias=False, name=name)(x)
    # One group for each channel is instance normalisation.
    x = layers.GroupNormalization(groups=-1, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if activation else x


@keras.saving.register_keras_serializable("keras_vgg")
class ReflectionPadding(layers.Layer):
    """Pad maps [n, h, w, c] by the pixels that a mirror on the border shows."""

    def __init__(self, padding: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.padding = padding

    def call(self, inputs):
        sides = (self.padding, self.padding)
        return ops.pad(inputs, [(0, 0), sides, sides, (0, 0)], mode="reflect")

    def compute_output_shape(self, input_shape):
        count, height, width, channels = input_shape
        sides = [None if side is None else side + 2 * self.padding for side in (height, width)]
        return (count, *sides, channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable("keras_vgg")
class AsImage(layers.Layer):
    """Map scores to [0, 255] by a scaled tanh, in the image's sides: [map, image] -> image."""

    def call(self, inputs):
        x, image = inputs
        shape: Any = ops.shape(image)
        x = x[:, : shape[1], : shape[2]]
        unit: Any = ops.tanh(x)
        return 127.5 * (unit + 1)

    def compute_output_shape(self, input_shape):
        x, image = input_shape
        return (x[0], *image[1:3], x[3])


@keras.saving.register_keras_serializable("keras_vgg")
class StyleTransferLoss(keras.losses.Loss):
    """The loss of style transfer for the training of a network: `loss(contents, results)`, [n].

    It is that of `StyleObjective`: `style_weight` x the mean over the layers of the loss of style +
    the loss of content. Each layer's map is divided by its mean over the style, where
    `StyleObjective` takes the mean over both pictures: a training has many contents.

    The file of a model that was compiled with the loss holds the weights of the loss' network, but
    does not say how to build the network: load it with
    `keras.saving.load_model(path, compile=False)`.

    Args:
        model: A VGG without the top that takes RGB in [0, 255], with its preprocessing inside. Its
            weights do not change.
        style: [h, w, 3] RGB in [0, 255]: the picture whose style the network learns.
        style_layers: As for `StyleObjective`.
        content_layer: As for `StyleObjective`.
        pooling_layers: "avg": average pooling in place of max pooling. None: the network's own.
        style_weight: The weight of the loss of style; that of the content is 1.

    Raises:
        ValueError: the style is no RGB image in [0, 255], or smaller than 32 pixels; a layer is no
            convolution of the VGG; the VGG does not take RGB; a bad weight. When called: contents
            and results of different sizes, or below 16 pixels.
    """

    def __init__(
        self,
        model: keras.Model,
        style: np.ndarray,
        *,
        style_layers: str | Sequence[str] = STYLE_LAYERS,
        content_layer: str = CONTENT_LAYER,
        pooling_layers: Literal["avg"] | None = "avg",
        style_weight: float = 5.0,
        name: str = "style_transfer_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if not 0 < style_weight < float("inf"):
            raise ValueError(f"style_weight must be a positive number, not {style_weight}")
        style_layers, content_layer = after_relu(model, style_layers, content_layer)
        names = tuple(dict.fromkeys((*style_layers, content_layer)))
        picture = checked_picture(style, "style")
        require_finite_weights(model)
        self._extractor = rgb_extractor(model, names, pooling_layers)
        self._content = feature_extractor(model, content_layer, pooling_layers=pooling_layers)
        self._style_layers, self._content_layer = style_layers, content_layer
        self._style_weight = style_weight
        image: Any = ops.convert_to_tensor(as_input(picture))
        maps: Any = answer_of(self._extractor, image)
        maps = {n: ops.cast(maps[n], "float32") for n in names}  # of mixed precision
        means = {n: float(as_array(ops.mean(maps[n]))) for n in names}
        self._scales = {n: 1 / mean if mean > 0 else 1.0 for n, mean in means.items()}
        self._grams = {
            n: ops.convert_to_numpy(gram_matrix(maps[n] * self._scales[n])) for n in style_layers
        }

    def call(self, y_true, y_pred):
        check_range(y_true, subject="the contents", advice="pass values in [0, 255]", warn=False)
        require_one_size(y_true, y_pred, LEAST_SIDE, self.name)
        layer = self._content_layer
        wanted: Any = answer_of(self._content, y_true)[layer]
        maps: Any = answer_of_fixed(self._extractor, y_pred)
        maps = {n: ops.multiply(ops.cast(x, "float32"), self._scales[n]) for n, x in maps.items()}
        wanted = ops.multiply(ops.cast(wanted, "float32"), self._scales[layer])
        wanted = ops.stop_gradient(wanted)
        style: Any = sum(style_loss(maps[n], self._grams[n]) for n in self._style_layers)
        weight = self._style_weight / len(self._style_layers)
        return weight * style + content_loss(maps[layer], wanted)

    def get_config(self) -> dict[str, Any]:
        """Return how the file of a compiled model describes the loss. It leaves the network out."""
        return {**super().get_config(), "style_weight": self._style_weight}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StyleTransferLoss:
        raise ValueError(
            "a StyleTransferLoss holds a network, and the file of a model does not say how to "
            "build it: load the model with compile=False, and compile it again"
        )

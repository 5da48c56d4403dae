"""What detectors and DeepLab put behind the convolutions: reduced fc layers, SSD300's maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_vgg import weights as weight_files
from keras_vgg.dense.encoder import CEIL_MODE, encoder, require_channels_last
from keras_vgg.dense.pyramids import stride_of
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.weights.tensors import listed

_STEP = 3  # fc6 keeps the rows and columns 0, 3 and 6 of fc1's 7
_SSD_POOLS = {
    "block3_pool": CEIL_MODE,
    "block5_pool": {"pool_size": 3, "strides": 1, "padding": "same"},
}
_SSD_EXTRAS = (  # name, filters of its 1x1 and 3x3 convolutions, stride
    ("conv8", 256, 512, 2),
    ("conv9", 128, 256, 2),
    ("conv10", 128, 256, 1),
    ("conv11", 128, 256, 1),
)
_SSD_SMALLEST = 268  # pixels; a smaller image leaves nothing for conv11_2
_SSD_NORM = "block4_conv3_norm"
_TORCH_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)  # of torchvision's VGG-16
_SSD_BLOCKS = ((1, 2), (2, 2), (3, 3), (4, 3))


@keras.saving.register_keras_serializable("keras_vgg")
class L2Normalization(keras.layers.Layer):
    """Divide each cell by its length over the channels, and multiply by a scale for each channel.

    This is ParseNet's layer (arXiv:1506.04579), as SSD uses it. The arithmetic is in float32.
    """

    def __init__(self, initial_scale: float = 20.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_scale = initial_scale

    def build(self, input_shape) -> None:
        initializer = keras.initializers.Constant(self.initial_scale)
        self.scale = self.add_weight(
            shape=(input_shape[-1],), initializer=initializer, name="scale"
        )

    def call(self, inputs):
        x: Any = ops.cast(inputs, "float32")
        length = ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))
        y = x / ops.maximum(length, 1e-12) * ops.cast(self.scale, "float32")
        return ops.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initial_scale": self.initial_scale}


def reduced_fc(
    model: keras.Model,
    classifier: keras.Model | None = None,
    *,
    filters: int = 1024,
    dropout: float = 0.0,
    name: str | None = None,
) -> keras.Model:
    """Return a model from images to fc7's map: DeepLab's reduced, dilated fc6 and fc7.

    fc6 is the classifier's fc1 with three of seven rows and columns and a part of its units. It is
    a 3x3 convolution whose taps lie as far apart as in fc1, 96 pixels: its dilation is 3 on a map
    of stride 32, 6 on stride 16 (SSD's), 12 on stride 8 (DeepLab-LargeFOV's, arXiv:1412.7062). fc7
    is a 1x1 convolution.

    Args:
        model: A VGG without the top, of any `output_stride`. The result shares its weights.
        classifier: A VGG with fc1, for 7x7 cells, and fc2: its decimated weights are copied. None:
            fc6 and fc7 begin at random.
        filters: Width of fc6 and fc7; the classifier's width must be a multiple.
        dropout: Dropout rate after fc6 and fc7; DeepLab trains with 0.5.
        name: The result's name. None: the model's name with "_fc7".

    Returns:
        A model to [n, h, w, filters], where h and w are those of the model's own map.

    Raises:
        ValueError: the model is no VGG, or has a classifier; the classifier's layers do not fit.

    Example:
        ```python
        from keras_vgg import dense, vgg

        options = {"weights": None, "width_multiplier": 1 / 16}
        backbone = vgg("D", include_top=False, output_stride=8, **options)
        classifier = vgg("D", hidden_units=64, **options)
        model = dense.reduced_fc(backbone, classifier, filters=16)
        print(model.output_shape)  # (None, None, None, 16)
        ```
    """
    require_channels_last()
    stride = stride_of(model)
    if len(model.output_shape) != 4 or model.output is not model.get_layer("block5_pool").output:
        raise ValueError(f"{model.name} must end in block5_pool: pass a VGG with include_top=False")
    _check_filters(filters)
    result = keras.Model(
        model.inputs[0],
        _fc_layers(model.output, filters, 32 * _STEP // stride, dropout),
        name=name or f"{model.name}_fc7",
    )
    if classifier is not None:
        tensors = decimated(weight_files.tensors_of(classifier), filters)
        _assign(result, tensors, classifier.name)
    return result


def decimated(tensors: Mapping[str, Any], filters: int = 1024) -> dict[str, list[np.ndarray]]:
    """Return fc6 and fc7 from a classifier's fc1 (for 7x7 cells) and fc2.

    Args:
        tensors: Layer -> [kernel, bias], such as `keras_vgg.read_weights(path).tensors`; dense or
            convolutional.
        filters: How many units to keep: 1024 of 4096 are every fourth.

    Returns:
        fc6: kernel [3, 3, channels, filters] and bias; fc7: kernel [1, 1, filters, filters], bias.

    Raises:
        ValueError: fc1 or fc2 is missing, is not for 7x7 cells, or is no multiple of `filters`.
    """
    _check_filters(filters)
    missing = [name for name in ("fc1", "fc2") if name not in tensors]
    if missing:
        raise ValueError(f"there is no {' and no '.join(missing)}: a VGG with head='fc' has both")
    (kernel1, bias1), (kernel2, bias2) = (map(np.asarray, tensors[n]) for n in ("fc1", "fc2"))
    units = kernel1.shape[-1]
    if kernel1[..., 0].size % 49 or (kernel1.ndim == 4 and kernel1.shape[:2] != (7, 7)):
        raise ValueError(f"fc1 must be for 7x7 cells (images of 224x224); it is {kernel1.shape}")
    if kernel2.shape[-2:] != (units, units) or units % filters:
        raise ValueError(
            f"the widths of fc1 and fc2 must be equal, and a multiple of filters={filters}; the "
            f"kernels are {kernel1.shape} and {kernel2.shape}"
        )
    part = slice(None, None, units // filters)
    fc6 = kernel1.reshape(7, 7, -1, units)[::_STEP, ::_STEP, :, part]
    fc7 = kernel2.reshape(1, 1, units, units)[:, :, part, part]
    return {"fc6": [fc6, bias1[part]], "fc7": [fc7, bias2[part]]}


def ssd300(
    weights: str | Path | None = "imagenet",
    *,
    classifier: keras.Model | None = None,
    input_shape: tuple[int | None, ...] | None = (300, 300, 3),
    include_preprocessing: bool | ImagePreprocessing = True,
    width_multiplier: float = 1.0,
    name: str = "ssd300",
) -> keras.Model:
    """Build the backbone of SSD300 (Liu et al., arXiv:1512.02325): six feature maps.

    From 300x300 pixels: block4_conv3, normalised (38x38 cells), fc7 (19x19), conv8_2 (10x10),
    conv9_2 (5x5), conv10_2 (3x3) and conv11_2 (1x1). block3_pool rounds up, block5_pool is 3x3 at
    stride 1, and fc6 is dilated by 6: see `reduced_fc`. The maps are those of torchvision's
    `ssd300_vgg16`; `ssd300_tensors` converts its weights.

    Args:
        weights: As `keras_vgg.vgg`, for the convolutions of the five blocks.
        classifier: As `reduced_fc`. None: fc6 and fc7 begin at random, as do the extra layers.
        input_shape: (height, width, channels); sides of at least 268, or None. None: RGB of any
            size.
        include_preprocessing: As `keras_vgg.vgg`, but True by default: images are RGB in [0, 255].
        width_multiplier, name: As `keras_vgg.vgg`; the multiplier scales the extra layers too.

    Returns:
        An uncompiled model from images to {name: map}.

    Raises:
        ValueError: an argument is wrong, or weights do not fit.
        OSError: there is no weight file at the path, or a download failed.

    Example:
        ```python
        from keras_vgg import dense

        model = dense.ssd300(weights=None, width_multiplier=1 / 16)
        print(model.output["conv9_2"].shape)  # (None, 5, 5, 16)
        ```
    """
    sides = () if input_shape is None else input_shape[:2]
    if any(side is not None and side < _SSD_SMALLEST for side in sides):
        raise ValueError(
            f"SSD300 needs images of at least {_SSD_SMALLEST}x{_SSD_SMALLEST} pixels, not "
            f"input_shape={input_shape}"
        )
    base = encoder(
        "D",
        weights,
        input_shape,
        _SSD_POOLS,
        width_multiplier=width_multiplier,
        include_preprocessing=include_preprocessing,
    )

    def scaled(filters: int) -> int:
        return max(1, round(filters * width_multiplier))

    norm: Any = L2Normalization(name=_SSD_NORM)(base.get_layer("block4_conv3").output)
    x = _fc_layers(base.output, scaled(1024), 2 * _STEP, dropout=0.0)
    maps = {"block4_conv3": norm, "fc7": x}
    for extra, narrow, wide, stride in _SSD_EXTRAS:
        x = layers.Conv2D(scaled(narrow), 1, activation="relu", name=f"{extra}_1")(x)
        if stride == 2:  # symmetric, unlike padding="same" at stride 2
            x = layers.ZeroPadding2D(1, name=f"{extra}_pad")(x)
        conv = layers.Conv2D(scaled(wide), 3, strides=stride, activation="relu", name=f"{extra}_2")
        x = maps[conv.name] = conv(x)
    model = keras.Model(base.inputs[0], maps, name=name)
    if classifier is not None:
        tensors = decimated(weight_files.tensors_of(classifier), scaled(1024))
        _assign(model, tensors, classifier.name)
    return model


def ssd300_tensors(state: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
    """Return the weights of `ssd300` from those of torchvision's `ssd300_vgg16`.

    `keras_vgg.weights.assign(model, Weights(tensors, "torchvision"))` loads them. That network
    expects RGB minus (123, 117, 104): `ImagePreprocessing((123, 117, 104))`.

    Args:
        state: Name -> array or CPU tensor, as the `state_dict()` of the whole detector or of its
            backbone. The detector's heads are not part of the backbone, and are left out.

    Raises:
        ValueError: a weight of the backbone is missing, or one is left over.
    """
    arrays = {
        name.removeprefix("backbone."): np.asarray(value, np.float32)
        for name, value in state.items()
        if not name.startswith("head.")
    }
    names = [f"block{block}_conv{i}" for block, depth in _SSD_BLOCKS for i in range(1, depth + 1)]
    places = {f"features.{n}": name for n, name in zip(_TORCH_CONVOLUTIONS, names, strict=True)}
    places |= {f"extra.0.{n}": f"block5_conv{i}" for i, n in enumerate((1, 3, 5), 1)}
    places |= {"extra.0.7.1": "fc6", "extra.0.7.3": "fc7"}
    for number, (extra, *_) in enumerate(_SSD_EXTRAS, 1):
        places |= {f"extra.{number}.0": f"{extra}_1", f"extra.{number}.2": f"{extra}_2"}
    wanted = {f"{place}.{kind}" for place in places for kind in ("weight", "bias")}
    wanted.add("scale_weight")
    if set(arrays) != wanted:
        problems = [f"missing {name}" for name in sorted(wanted - set(arrays))]
        problems += [f"left over {name}" for name in sorted(set(arrays) - wanted)]
        raise ValueError(f"these are no weights of ssd300_vgg16: {listed(problems)}")
    tensors = {
        name: [arrays[f"{place}.weight"].transpose(2, 3, 1, 0), arrays[f"{place}.bias"]]
        for place, name in places.items()
    }
    return {**tensors, _SSD_NORM: [arrays["scale_weight"]]}


def _fc_layers(x: Any, filters: int, dilation: int, dropout: float) -> Any:
    options: dict[str, Any] = {"padding": "same", "activation": "relu"}
    x = layers.Conv2D(filters, 3, dilation_rate=dilation, name="fc6", **options)(x)
    if dropout:
        x = layers.Dropout(dropout, name="fc6_dropout")(x)
    x = layers.Conv2D(filters, 1, name="fc7", **options)(x)
    return layers.Dropout(dropout, name="fc7_dropout")(x) if dropout else x


def _check_filters(filters: int) -> None:
    if type(filters) is not int or filters < 1:
        raise ValueError(f"filters must be a whole number above 0, not {filters!r}")


def _assign(model: keras.Model, tensors: dict[str, list[np.ndarray]], source: str) -> None:
    """Set the weights of some layers, and leave the others as they are."""
    others = [layer.name for layer in model.layers if layer.weights and layer.name not in tensors]
    weight_files.assign(model, weight_files.Weights(tensors, source), drop=others)

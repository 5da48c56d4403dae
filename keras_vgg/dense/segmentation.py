"""Networks that name the class of every pixel: FCN and U-Net."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
from keras import layers

from keras_vgg import weights as weight_files
from keras_vgg.architecture import check_options
from keras_vgg.builder_checks import warn_of_preprocessing
from keras_vgg.dense.encoder import CEIL_MODE, encoder
from keras_vgg.dense.pyramids import maps_of
from keras_vgg.dense.resampling import BilinearInitializer, Enlarge, cropped
from keras_vgg.layers import ImagePreprocessing

_ACTIVATIONS = ("softmax", "sigmoid", None)
_SKIPS = {32: (), 16: ("block4_pool",), 8: ("block4_pool", "block3_pool")}
# Of block4_pool and block3_pool.
_FOR_HUNDREDS, _UNSCALED = (1e-2, 1e-4), (1.0, 1.0)
_FC = ("fc1", "fc2")
_POOLS = {f"block{b}_pool": CEIL_MODE for b in range(1, 6)}


def fcn(
    configuration: str = "D",
    classes: int = 21,
    *,
    stride: int = 8,
    weights: str | Path | None = "imagenet",
    input_shape: tuple[int | None, ...] | None = None,
    hidden_units: int | None = 4096,
    fc_weights: bool = True,
    skip_scales: Sequence[float] | None = None,
    dropout: float = 0.5,
    classifier_activation: str | None = "softmax",
    batch_norm: bool = False,
    width_multiplier: float = 1.0,
    include_preprocessing: bool | ImagePreprocessing = True,
    name: str | None = None,
) -> keras.Model:
    """Build FCN-32s, 16s or 8s (Long, Shelhamer, Darrell, arXiv:1411.4038) on a VGG.

    The classifier becomes convolutions, and a 1x1 convolution scores each cell. FCN-16s and FCN-8s
    enlarge the scores twofold and add the scores of block4_pool, and of block3_pool. These
    enlargements are transposed convolutions that begin as bilinear interpolation and are trained;
    the last enlargement stays bilinear. All score layers begin with zeros, as in the paper.

    The input is [n, height, width, channels] of any size; the output [n, height, width, classes]
    float32. Unlike the authors' files, which pad the image by 100 pixels, fc1 pads its map by 3
    cells; the pools round odd sides up, so that no pixel is left out.

    Train it on integer masks [n, height, width] with "sparse_categorical_crossentropy". On PyTorch,
    Keras 3.15 has no gradient of that loss for maps: use masks [n, height, width, classes] of 0 and
    1, with "categorical_crossentropy".

    Args:
        configuration: As `keras_vgg.vgg`.
        classes: Number of classes, the background among them.
        stride: 32, 16 or 8: the pixels between neighbouring scores before the last enlargement.
        weights: As `keras_vgg.vgg`, for the convolutions and, with `fc_weights`, for fc1 and fc2.
        input_shape: (height, width, channels). None: RGB of any size.
        hidden_units: Width of fc1 (7x7) and fc2 (1x1). None: without them, so that the network is
            a linear classifier of each cell of block5_pool, and of the added pools.
        fc_weights: Whether `weights` must hold fc1 and fc2. False: they begin at random.
        skip_scales: block4_pool and block3_pool are multiplied by these before they are scored.
            None: ones with `batch_norm`, and for images that are divided by a deviation, as for
            torchvision's weights; otherwise (1e-2, 1e-4), as the authors' "at-once" networks, for
            activations of some hundreds, as Oxford's weights give.
        dropout: Dropout rate after fc1 and fc2.
        classifier_activation: "softmax"; "sigmoid" for classes that overlap, or for a single one;
            None for scores.
        include_preprocessing: As `keras_vgg.vgg`, but True by default: images are RGB in [0, 255].
        batch_norm, width_multiplier, name: As `keras_vgg.vgg`.

    Returns:
        An uncompiled `keras.Model`. `keras_vgg.transfer.freeze` freezes its blocks.

    Raises:
        ValueError: an argument is wrong, or the weights do not fit or lack fc1 and fc2.
        OSError: there is no weight file at the path, or a download failed.

    Example:
        ```python
        from keras_vgg import dense

        model = dense.fcn("A", 21, weights=None, width_multiplier=1 / 16, hidden_units=64)
        print(model.output_shape)  # (None, None, None, 21)
        ```
    """
    _check(classes, classifier_activation, dropout)
    if stride not in _SKIPS:
        raise ValueError(f"stride must be 32, 16 or 8, not {stride!r}")
    if hidden_units is not None:
        check_options(classes, "fc", None, width_multiplier, hidden_units)
    if skip_scales is not None and len(skip_scales) != 2:
        raise ValueError(f"skip_scales must be two numbers, not {tuple(skip_scales)}")
    named, fc_source = weights, weights if fc_weights and hidden_units is not None else None
    if fc_source in weight_files.NAMES:  # One file holds all.
        from keras_vgg.weights.download import fetch  # loads network clients

        weights = fc_source = fetch(
            weight_files.find(str(fc_source), configuration, batch_norm, include_top=True)
        )
    base = encoder(
        configuration,
        weights,
        input_shape,
        _POOLS,
        batch_norm=batch_norm,
        width_multiplier=width_multiplier,
        include_preprocessing=include_preprocessing,
    )
    if (
        named in weight_files.NAMES
        and fc_source
        and isinstance(include_preprocessing, ImagePreprocessing)
    ):
        published = weight_files.read_weights(fc_source, include_top=False)
        published = dataclasses.replace(published, assumed=False)
        weight_files.check_preprocessing(include_preprocessing, published, 3)
    if fc_source is not None and not include_preprocessing:
        warn_of_preprocessing(named, configuration, batch_norm)
    if skip_scales is None:
        skip_scales = _skip_scales(base, named, configuration, batch_norm)
    x = base.output
    if hidden_units is not None:
        for fc, kernel in zip(_FC, (7, 1), strict=True):
            x = layers.Conv2D(hidden_units, kernel, padding="same", activation="relu", name=fc)(x)
            x = layers.Dropout(dropout, name=f"{fc}_dropout")(x)
    x = _score(classes, "score")(x)
    for pool, scale in zip(_SKIPS[stride], skip_scales, strict=False):
        x = _with_scores_of(pool, base, x, classes, scale)
    x = Enlarge(stride, name="upscore")(x)
    x = cropped(x, base.inputs[0], "crop")
    model = _classifier(base, x, classifier_activation, name or f"fcn{stride}s_{base.name}")
    if fc_source is not None:
        _load_fc(model, fc_source, configuration, batch_norm)
    return model


def _skip_scales(
    base: keras.Model, weights: str | Path | None, configuration: str, batch_norm: bool
) -> Sequence[float]:
    """Return what brings the scores of earlier pools to the scale of the last one's."""
    if batch_norm:
        return _UNSCALED
    inside = [layer for layer in base.layers if isinstance(layer, ImagePreprocessing)]
    if inside:
        is_divided = max(inside[0].std) > 1
    elif weights in weight_files.NAMES:
        checkpoint = weight_files.find(str(weights), configuration, batch_norm, include_top=False)
        is_divided = checkpoint.preprocessing != "caffe"
    elif weights is not None:
        stated = weight_files.read_weights(weights, include_top=False).preprocessing
        is_divided = stated is not None and max(stated.std) > 1
    else:
        is_divided = False
    return _UNSCALED if is_divided else _FOR_HUNDREDS


def _with_scores_of(pool: str, base: keras.Model, scores: Any, classes: int, scale: float) -> Any:
    """Return scores enlarged twofold, with those of an earlier pool added."""
    label = pool.removeprefix("block").replace("_pool", "")
    bilinear: Any = BilinearInitializer()
    scores = layers.Conv2DTranspose(
        classes,
        4,
        strides=2,
        padding="same",
        use_bias=False,
        kernel_initializer=bilinear,
        name=f"upscore{label}",
    )(scores)
    skip = layers.Rescaling(scale, name=f"scale{label}")(base.get_layer(pool).output)
    skip = _score(classes, f"score{label}")(skip)
    return layers.Add(name=f"sum{label}")([cropped(scores, skip, f"crop{label}"), skip])


def unet(
    configuration: str = "D",
    classes: int = 21,
    *,
    weights: str | Path | None = "imagenet",
    input_shape: tuple[int | None, ...] | None = None,
    decoder_filters: Sequence[int] = (256, 128, 64, 32, 16),
    decoder_batch_norm: bool = True,
    classifier_activation: str | None = "softmax",
    batch_norm: bool = False,
    width_multiplier: float = 1.0,
    include_preprocessing: bool | ImagePreprocessing = True,
    name: str | None = None,
) -> keras.Model:
    """Build a U-Net (Ronneberger, Fischer, Brox, arXiv:1505.04597) whose encoder is a VGG.

    From block5_pool, five stages each double the map by a 2x2 transposed convolution, put the last
    map of the encoder at that stride beside it, and apply two 3x3 convolutions with ReLUs.

    The input is [n, height, width, channels] of any size; the output [n, height, width, classes]
    float32. All convolutions pad, so that the output has the image's size, unlike in the paper.

    Args:
        decoder_filters: Filters of the five stages, from stride 16 to stride 1.
        decoder_batch_norm: Whether to normalise the encoder's maps, and after the 3x3 convolutions.
            Oxford's weights give activations of some hundreds, which would drown what comes from
            below.
        configuration, classes, weights, input_shape: As `fcn`; all weights are the encoder's.
        classifier_activation, batch_norm, width_multiplier: As `fcn`.
        include_preprocessing, name: As `fcn`.

    Returns:
        An uncompiled `keras.Model`. `keras_vgg.transfer.freeze` freezes its encoder.

    Raises:
        ValueError: an argument is wrong, or the weights do not fit.
        OSError: there is no weight file at the path, or a download failed.

    Example:
        ```python
        from keras_vgg import dense

        model = dense.unet("A", 2, weights=None, width_multiplier=1 / 16)
        print(model.output_shape)  # (None, None, None, 2)
        ```
    """
    _check(classes, classifier_activation)
    filters = list(decoder_filters)
    if len(filters) != 5 or any(type(n) is not int or n < 1 for n in filters):
        raise ValueError(f"decoder_filters must be five whole numbers above 0, not {filters}")
    base = encoder(
        configuration,
        weights,
        input_shape,
        _POOLS,
        batch_norm=batch_norm,
        width_multiplier=width_multiplier,
        include_preprocessing=include_preprocessing,
    )
    skips: Any = list(maps_of(base).values())[-2::-1]
    x = _normalised(base.output, "decoder5", decoder_batch_norm)
    for number, (skip, width) in enumerate(zip(skips, filters, strict=True)):
        stage = f"decoder{4 - number}"
        x = layers.Conv2DTranspose(width, 2, strides=2, name=f"{stage}_up")(x)
        x = cropped(x, skip, f"{stage}_crop")
        skip = _normalised(skip, stage, decoder_batch_norm)
        x = layers.Concatenate(name=f"{stage}_concatenate")([x, skip])
        for i in (1, 2):
            conv, use_bias = f"{stage}_conv{i}", not decoder_batch_norm
            x = layers.Conv2D(width, 3, padding="same", use_bias=use_bias, name=conv)(x)
            if decoder_batch_norm:
                x = layers.BatchNormalization(name=f"{conv}_bn")(x)
            x = layers.Activation("relu", name=f"{conv}_relu")(x)
    x = layers.Conv2D(classes, 1, name="score")(x)
    return _classifier(base, x, classifier_activation, name or f"unet_{base.name}")


def _normalised(x: Any, stage: str, is_on: bool) -> Any:
    return layers.BatchNormalization(name=f"{stage}_skip_bn")(x) if is_on else x


def _score(classes: int, name: str) -> keras.layers.Layer:
    return layers.Conv2D(classes, 1, kernel_initializer="zeros", name=name)


def _classifier(base: keras.Model, x: Any, activation: str | None, name: str) -> keras.Model:
    # Probabilities stay float32 in mixed precision.
    x = layers.Activation(activation or "linear", dtype="float32", name="probabilities")(x)
    return keras.Model(base.inputs[0], x, name=name)


def _load_fc(model: keras.Model, weights: str | Path, configuration: str, batch_norm: bool) -> None:
    """Load fc1 and fc2 of a classifier into their convolutional forms."""
    loaded = weight_files.obtain(weights, configuration, batch_norm=batch_norm, include_top=True)
    missing = [fc for fc in _FC if fc not in loaded.tensors]
    if missing:
        raise ValueError(
            f"{loaded.source} has no {' and no '.join(missing)}: pass fc_weights=False, so that "
            "they begin at random, or hidden_units=None, to build without them"
        )
    found = weight_files.Weights({fc: loaded.tensors[fc] for fc in _FC}, loaded.source)
    others = [layer.name for layer in model.layers if layer.weights and layer.name not in _FC]
    weight_files.assign(model, found, drop=others)


def _check(classes: int, classifier_activation: str | None, dropout: float = 0) -> None:
    check_options(classes, "fc", None, 1, 1)
    if classifier_activation not in _ACTIVATIONS:
        raise ValueError(
            "classifier_activation must be 'softmax', 'sigmoid' or None, not "
            f"{classifier_activation!r}"
        )
    if classes == 1 and classifier_activation == "softmax":
        raise ValueError(
            "a soft-max over a single class is always 1: pass classifier_activation='sigmoid', or "
            "classes=2"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}")

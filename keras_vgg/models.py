"""The VGG networks as Keras functional models, drop-in for keras.applications."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import keras
from keras import layers

from keras_vgg import weights as weight_files
from keras_vgg.architecture import (
    BATCH_NORM_EPSILON,
    MINIMUM_SIZE,
    Configuration,
    get_configuration,
    with_widths,
)
from keras_vgg.builder_checks import (
    DEFAULT_SIZE,
    check_activation,
    check_arguments,
    check_filters,
    check_labels,
    check_output_stride,
    checked_input_shape,
    known_sides,
    warn_of_preprocessing,
)
from keras_vgg.layers import (
    DilatedMaxPooling2D,
    ImagePreprocessing,
    LocalResponseNormalization,
)

_Options = ParamSpec("_Options")


def vgg(
    configuration: str,
    include_top: bool = True,
    weights: str | Path | None = "imagenet",
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | Callable | None = "softmax",
    name: str | None = None,
    *,
    batch_norm: bool = False,
    width_multiplier: float = 1.0,
    filters: Sequence[int] = (),
    head: str = "fc",
    hidden_units: int = 4096,
    dropout: float = 0.5,
    kernel_initializer: Any = "glorot_uniform",
    kernel_regularizer: Any = None,
    include_preprocessing: bool | ImagePreprocessing = False,
    train_size: int | tuple[int, int] | None = None,
    output_stride: int = 32,
) -> keras.Model:
    """Build a VGG network (arXiv:1409.1556, Table 1).

    The input is images, [n, height, width, channels]. The output is probabilities, [n, classes]
    float32; without the top, it is the last block's feature map, [n, height // 32, width // 32,
    512].

    Args:
        configuration: "A", "A-LRN", "B", "C", "D", "E", or a builder's name such as "VGG16".
        include_top: Whether to add the classifier after the convolutions.
        weights: None for random weights; "imagenet" for the best-known published checkpoint of the
            configuration; "torchvision" for torchvision's; or the path of a weight file, or
            "hf://OWNER/NAME", as `keras_vgg.weights.read_weights` takes them. Without the top, a
            file's head is left out, whatever it is; the `note` of `read_weights` names it.
            "imagenet" means Oxford's weights for D and E without batch norm, and torchvision's for
            A, B and batch norm; each wants its own preprocessing (see `include_preprocessing`). For
            other than three channels, see `input_shape`.
        input_tensor: A Keras tensor to use as the input.
        input_shape: (height, width, channels), or (channels, height, width) if that is Keras'
            data format; at least 32x32. With the top and `head="fc"`, height and width must be
            known; otherwise they may be None. Default: 224x224x3; without the top, any size.
            Weights for three channels fit any number of channels. One channel gives exactly what
            R = G = B gives. With more, the first kernel is repeated, cut to the number of channels
            n and multiplied by 3 / n (`keras_vgg.weights.for_channels`).
        pooling: Without the top, "avg" or "max" pools the feature map to [n, 512]; None keeps it.
        classes: Number of classes.
        classifier_activation: "softmax", or "sigmoid" for several labels an image, or None for
            logits.
        name: The model's name; by default the configuration's, such as "vgg16".
        batch_norm: Normalise after every convolution (momentum 0.9, epsilon 1e-5).
        width_multiplier: Scales the filters of every convolution.
        filters: Number of filters of each convolution, from block1_conv1 on, in place of the
            paper's; as a pruned network has them.
        head: "fc" is the paper's classifier; "conv" is the same classifier as convolutions, for
            images of any size, and averages its score map over the image (section 3.2); "gap" is
            global average pooling and one dense layer.
        hidden_units: Width of fc1 and fc2.
        dropout: Dropout rate after fc1 and fc2; with `head="gap"`, before the classifier.
        kernel_initializer: Initializer of every convolution and dense layer.
        kernel_regularizer: Regularizer of the same kernels. The paper's weight decay w is
            `keras.regularizers.L2(w / 2)`.
        include_preprocessing: True adds a first layer that takes RGB images in [0, 255] and
            preprocesses them as the checkpoint expects (without weights: BGR minus the ImageNet
            mean, as `keras.applications.vgg16.preprocess_input`). An `ImagePreprocessing` becomes
            the first layer; it must be the one that the checkpoint states, if it states one. False:
            the caller preprocesses the images: with `preprocess_input(x)` for Oxford's weights, and
            `preprocess_input(x, mode="torchvision")` for torchvision's. `weights="imagenet"` warns
            if these are torchvision's.
        train_size: With `head="conv"`, the side, or (height, width), of the images that the
            classifier is trained on; fc1's kernel is a 32nd of it. Default: the input's size, or
            224 if that is unknown or the weights are a published checkpoint's.
        output_stride: Without the top, the pixels between neighbouring cells of the feature map:
            32 is the paper's network. With 16, the last pool has stride 1. With 8, the last two
            pools have stride 1, and the layers behind the first of them are dilated (à trous), so
            that every weight sees the same pixels. With the same weights, every second (16) or
            fourth (8) cell equals the ordinary network's cell, up to the border if the sides are
            multiples of 32.

    Returns:
        An uncompiled `keras.Model`.

    Raises:
        ValueError: an argument is wrong, the weights are of another architecture or state another
            preprocessing, or no checkpoint of the network is published.
        OSError: there is no weight file at the path, or a download failed.

    Example:
        ```python
        from keras_vgg import vgg

        model = vgg("C", weights=None, classes=10, head="gap", width_multiplier=0.25)
        features = vgg("D", include_top=False, weights=None, pooling="avg", width_multiplier=0.25)
        print(model.output_shape, features.output_shape)  # (None, 10) (None, 128)
        ```
    """
    check_arguments(
        weights, include_top, classes, head, pooling, width_multiplier, hidden_units, dropout
    )
    check_filters(weights, width_multiplier, filters)
    classes, hidden_units = int(classes), int(hidden_units)  # Keras refuses NumPy's integers
    architecture = with_widths(configuration, width_multiplier, filters)
    check_output_stride(output_stride, include_top)
    if input_tensor is not None and not keras.utils.is_keras_tensor(input_tensor):
        raise ValueError(
            f"input_tensor must be a Keras tensor, such as keras.Input(...), not {input_tensor!r}"
        )
    shape = checked_input_shape(
        input_shape, input_tensor, weights, flatten=include_top and head == "fc"
    )
    if include_top and weights is not None:
        check_activation(classifier_activation, weights in weight_files.NAMES)
    loaded = None
    if weights is not None:
        loaded = weight_files.obtain(
            weights, configuration, batch_norm=batch_norm, include_top=include_top
        )
        if include_top and loaded.several_labels:
            check_labels(classifier_activation, loaded.source)

    def options() -> dict[str, Any]:
        initializer = _unshared(kernel_initializer)
        return {"kernel_initializer": initializer, "kernel_regularizer": kernel_regularizer}

    x: Any = layers.Input(shape=shape) if input_tensor is None else input_tensor
    image = x
    channel_axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    if include_preprocessing is True:
        include_preprocessing = _preprocessing(loaded, x.shape[channel_axis])
    if include_preprocessing:
        x = include_preprocessing(x)
        if loaded is not None:
            weight_files.check_preprocessing(include_preprocessing, loaded, x.shape[channel_axis])
    if loaded is not None:
        loaded = weight_files.for_channels(loaded, x.shape[channel_axis])
    x = _convolutions(x, architecture, batch_norm, output_stride, options)
    if include_top:
        if train_size is None:
            published = weights in weight_files.NAMES
            train_size = DEFAULT_SIZE if published else known_sides(shape)
        # Probabilities stay float32 in mixed precision.
        is_half = keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16")
        classifier = {"activation": classifier_activation, "dtype": "float32" if is_half else None}
        x = _HEADS[head](x, train_size, hidden_units, dropout, classes, options, classifier)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)

    inputs = image if input_tensor is None else keras.utils.get_source_inputs(image)
    model = keras.Model(inputs, x, name=name or architecture.builder.lower())
    if loaded is not None:
        weight_files.assign(model, loaded)
        if not include_preprocessing:
            warn_of_preprocessing(weights, configuration, batch_norm)
    return model


def _unshared(initializer: Any) -> Any:
    """Return an initializer for one layer: an unseeded instance repeats its numbers when shared."""
    is_instance = isinstance(initializer, keras.initializers.Initializer)
    is_unseeded = is_instance and initializer.get_config().get("seed", 0) is None
    return initializer.clone() if is_unseeded else initializer


def _preprocessing(loaded: weight_files.Weights | None, channels: int) -> ImagePreprocessing:
    if loaded is None:
        return ImagePreprocessing.caffe(name="preprocessing")
    if loaded.preprocessing is None:
        raise ValueError(
            f"{loaded.source} does not say which input its network was trained on; instead of "
            "include_preprocessing=True, pass ImagePreprocessing.caffe(), "
            "ImagePreprocessing.torchvision() or another ImagePreprocessing"
        )
    config = weight_files.preprocessing_for(loaded.preprocessing, channels).get_config()
    del config["data_format"]
    return ImagePreprocessing.from_config(config | {"name": "preprocessing"})


def _convolutions(
    x: Any,
    architecture: Configuration,
    batch_norm: bool,
    output_stride: int,
    options: Callable[[], dict],
) -> Any:
    channel_axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    dilation = 1
    for b, block in enumerate(architecture.blocks, 1):
        for i, (kernel, filters) in enumerate(block, 1):
            name = f"block{b}_conv{i}"
            x = layers.Conv2D(
                filters,
                kernel,
                padding="same",
                dilation_rate=dilation,
                activation=None if batch_norm else "relu",
                name=name,
                **options(),
            )(x)
            if batch_norm:
                x = layers.BatchNormalization(
                    axis=channel_axis, momentum=0.9, epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn"
                )(x)
                x = layers.Activation("relu", name=f"{name}_relu")(x)
            if architecture.lrn and (b, i) == (1, 1):
                x = LocalResponseNormalization(name="block1_lrn")(x)
        keeps_cells = 2**b > output_stride
        x = _pool(f"block{b}_pool", keeps_cells, dilation)(x)
        dilation = 2 * dilation if keeps_cells else dilation
    return x


def _pool(name: str, keeps_cells: bool, dilation: int) -> keras.layers.Layer:
    """Return the pool that ends a block; with `keeps_cells`, its stride is 1 (à trous)."""
    if not keeps_cells:
        return layers.MaxPooling2D(2, name=name)
    if dilation == 1:
        return layers.MaxPooling2D(2, strides=1, padding="same", name=name)
    return DilatedMaxPooling2D(dilation, name=name)


def _fc_head(x, train_size, hidden_units, dropout, classes, options, classifier) -> Any:
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(hidden_units, activation="relu", name=name, **options())(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    return layers.Dense(classes, name="predictions", **options(), **classifier)(x)


def _conv_head(x, train_size, hidden_units, dropout, classes, options, classifier) -> Any:
    is_square = isinstance(train_size, numbers.Integral)
    height, width = (int(side) for side in ((train_size,) * 2 if is_square else train_size))
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(f"train_size must be at least {MINIMUM_SIZE}, not {train_size}")
    for name, kernel in (("fc1", (height // 32, width // 32)), ("fc2", 1)):
        x = layers.Conv2D(hidden_units, kernel, activation="relu", name=name, **options())(x)
        x = layers.Dropout(dropout, name=f"{name}_dropout")(x)
    dtype = classifier["dtype"]
    x = layers.Conv2D(classes, 1, name="predictions", dtype=dtype, **options())(x)
    x = layers.GlobalAveragePooling2D(name="score_average", dtype=dtype)(x)
    return layers.Activation(name="probabilities", **classifier)(x)


def _gap_head(x, train_size, hidden_units, dropout, classes, options, classifier) -> Any:
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    return layers.Dense(classes, name="predictions", **options(), **classifier)(x)


_HEADS = {"fc": _fc_head, "conv": _conv_head, "gap": _gap_head}


def _builder(
    build: Callable[Concatenate[str, _Options], keras.Model], configuration: str
) -> Callable[_Options, keras.Model]:
    """Return `vgg` for one configuration, with a signature and a docstring of its own."""
    architecture = get_configuration(configuration)

    def builder(*args: _Options.args, **kwargs: _Options.kwargs) -> keras.Model:
        return build(configuration, *args, **kwargs)

    signature = inspect.signature(build, eval_str=True)
    parameters = list(signature.parameters.values())[1:]
    name = architecture.builder.lower()
    parameters = [p.replace(default=name) if p.name == "name" else p for p in parameters]
    arguments = inspect.cleandoc(build.__doc__ or "").split("Args:\n", 1)[1]
    arguments = arguments.split("\n", 1)[1]  # without `configuration`
    arguments = arguments.split("Example:\n")[0].rstrip()
    attributes: dict[str, Any] = {
        "__signature__": signature.replace(parameters=parameters),
        "__name__": architecture.builder,
        "__qualname__": architecture.builder,
        "__doc__": f"Configuration {architecture.name} of the paper: {architecture.weight_layers} "
        f"weight layers.\n\nA drop-in replacement for keras.applications.\n\nArgs:\n{arguments}\n",
    }
    for attribute, value in attributes.items():
        setattr(builder, attribute, value)
    return builder


VGG11 = _builder(vgg, "A")
VGG11LRN = _builder(vgg, "A-LRN")
VGG13 = _builder(vgg, "B")
VGG16C = _builder(vgg, "C")
VGG16 = _builder(vgg, "D")
VGG19 = _builder(vgg, "E")

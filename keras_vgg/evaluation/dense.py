"""Dense evaluation (section 3.2): a trained classifier as convolutions over a whole image."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_vgg.graph import require_unquantised

_LAST_POOL = "block5_pool"
_CLASSIFIER = ("fc1", "fc2", "predictions")


def dense_network(model: keras.Model) -> keras.Model:
    """Return a trained VGG as a network of convolutions, for images of any size.

    "The fully-connected layers are first converted to convolutional layers (the first FC layer to a
    7x7 conv. layer, the last two FC layers to 1x1 conv. layers)." Nothing is trained. The new
    network shares its convolutional part with `model`; its classifier has copies of the weights. It
    has no dropout and no activation at its end: its output is class scores.

    Args:
        model: A VGG with its classifier: any configuration, width and number of classes, with or
            without batch norm and preprocessing, `head="fc"`, `"conv"` or `"gap"`, also with `fc1`
            and `fc2` factorised; or a VGG of keras.applications. Channels last. It ends in a
            soft-max, in sigmoids or in scores.

    Returns:
        A model from [n, height, width, channels] to the score map [n, rows, columns, classes]. The
        last block's feature map has floor(side / 32) cells a side (each pool leaves out an odd row
        or column). The classifier slides over it as a window of the size that it was trained on;
        each place gives one cell of the score map, and neighbours are 32 pixels apart. So an image
        of the training size gives one cell. With "gap" the window is a single cell.

    Raises:
        ValueError: the model is not a VGG, has no classifier, ends in another activation, or is
            quantised.
    """
    layers = {layer.name: layer for layer in model.layers}
    if _LAST_POOL not in layers or "predictions" not in layers:
        missing = _LAST_POOL if _LAST_POOL not in layers else "predictions"
        raise ValueError(
            f"dense evaluation needs a VGG with its classifier; {model.name!r} has no layer "
            f"{missing!r}"
        )
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("dense evaluation needs images with channels last")
    require_unquantised(model)
    final = getattr(model.layers[-1], "activation", None)
    known = (keras.activations.softmax, keras.activations.sigmoid, keras.activations.linear)
    if final not in known:
        raise ValueError(
            "dense evaluation needs a model that ends in a soft-max, in sigmoids or in its scores; "
            f"the last layer of {model.name!r} is {model.layers[-1].name!r}"
        )
    channels = model.inputs[0].shape[-1]
    convolutions = keras.Model(model.inputs[0], layers[_LAST_POOL].output)
    image = keras.Input((None, None, channels), name="image")
    # Call the same layers, not copies of them, on an input of any size.
    features: Any = keras.models.clone_model(
        convolutions, input_tensors=image, clone_function=lambda layer: layer
    ).output
    x = features
    flatten = layers.get("flatten")
    for name in _CLASSIFIER:
        for part in (f"{name}_factor", name):  # `keras_vgg.export.compress` makes two of one
            if part in layers:
                x = _as_convolution(layers[part], x, flatten)
                flatten = None
    return keras.Model(image, x, name=f"{model.name}_dense")


def _as_convolution(layer: Any, x: Any, flatten: keras.Layer | None):
    """Return a layer's answers at all places; `flatten` is the layer before the first one."""
    kernel = layer.kernel
    if len(kernel.shape) == 4:
        window = tuple(kernel.shape[:2])
    elif flatten is not None:
        flattened: Any = flatten.input
        window = tuple(flattened.shape[1:3])
    else:
        window = (1, 1)
    convolution: Any = keras.layers.Conv2D(
        kernel.shape[-1],
        window,
        activation=None if layer.name == "predictions" else layer.activation,
        use_bias=layer.use_bias,
        name=layer.name,
        dtype=layer.dtype_policy,
    )
    y = convolution(x)
    shape = tuple(convolution.kernel.shape)
    if math.prod(shape) != math.prod(kernel.shape):
        raise ValueError(f"layer {layer.name!r} has a kernel {tuple(kernel.shape)}, not {shape}")
    # The rows of a Dense kernel are in the order of Flatten: row, column, channel.
    convolution.kernel.assign(keras.ops.reshape(kernel, shape))
    if layer.use_bias:
        convolution.bias.assign(layer.bias)
    return y

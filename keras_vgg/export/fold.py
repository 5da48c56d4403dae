"""Rewrite a network for inference: the same function in float32 with fewer operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_vgg.layers import ImagePreprocessing, bgr_order


def in_float32(model: keras.Model) -> keras.Model:
    """Return the model itself if it computes in float32, else a copy that does."""
    if all(layer.compute_dtype == "float32" for layer in flat_layers(model)):
        return model
    return with_dtypes(model, lambda layer: "float32")


def with_dtypes(
    model: keras.Model, dtype_of: Callable[[keras.Layer], str | keras.DTypePolicy]
) -> keras.Model:
    """Return a copy whose layers have the data types that a function gives them.

    The copy is for inference: its layers do not know the initializers of their kernels.
    """

    def cloned_layer(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # an operation, as of a + b, has no type
            config["dtype"] = dtype_of(layer)
        if "kernel_initializer" in config:
            # The weights are replaced; drawing random ones would take seconds.
            config["kernel_initializer"] = "zeros"
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=cloned_layer, recursive=True)
    for original, copied in zip(model.weights, copy.weights, strict=True):
        copied.assign(original)
    return copy


def folded(model: keras.Model, *, preprocessing: bool = True) -> keras.Model:
    """Return a copy with batch normalisation and most of the preprocessing inside the kernels.

    A batch normalisation right after a convolution becomes part of the convolution's kernel and
    bias. The preprocessing is (x - mean) / std, in RGB or BGR order: the division and the order
    move into the next kernel. The subtraction stays, because the convolution pads with zeros after
    it, and no bias can replace that at the border of the image. Outputs are equal but for float32
    rounding.

    A layer that is used twice, or inside a nested model, stays as it is. The model itself is
    returned if there is nothing to fold.

    Args:
        preprocessing: Fold the preprocessing too, not only batch normalisations.
    """
    norms = dict(_pairs(model, keras.layers.Conv2D, keras.layers.BatchNormalization))
    norms = {conv: norm for conv, norm in norms.items() if _can_fold(conv, norm)}
    preprocessings = {
        conv: layer
        for layer, conv in _pairs(model, ImagePreprocessing, keras.layers.Conv2D)
        if preprocessing and (layer.std != (1.0,) or _reverses(layer))
    }
    if not norms and not preprocessings:
        return model

    removed_names = {norm.name for norm in norms.values()}

    def cloned_layer(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if layer in preprocessings.values():
            config |= {"std": (1.0,), "channel_order": "rgb"}
        if layer in norms:
            config |= {"use_bias": True}
        return type(layer).from_config(config)

    def called_layer(layer: keras.Layer, *args, **kwargs):
        return args[0] if layer.name in removed_names else layer(*args, **kwargs)

    copy = keras.models.clone_model(model, clone_function=cloned_layer, call_function=called_layer)
    for layer in model.layers:
        if layer in norms or layer in preprocessings:
            weights = _folded_weights(layer, norms.get(layer), preprocessings.get(layer))
            copy.get_layer(layer.name).set_weights(weights)
        elif layer.weights and layer.name not in removed_names:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def with_temperature(model: keras.Model, temperature: float) -> keras.Model:
    """Return a copy of a VGG whose scores are divided by a temperature before the soft-max.

    The kernel and the bias of the layer that gives the scores are divided, so the copy has no more
    operations than the model.

    Raises:
        ValueError: the model does not end in a soft-max of the scores of a layer "predictions".
    """
    names = [layer.name for layer in model.layers]
    final = getattr(model.layers[-1], "activation", None)
    if "predictions" not in names or final is not keras.activations.softmax:
        raise ValueError(
            "a temperature needs a network that ends in the soft-max of the layer 'predictions';"
            f" the last layer of {model.name!r} is {names[-1]!r}"
        )
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    scores = copy.get_layer("predictions")
    scores.set_weights(
        [np.asarray(value, np.float32) / temperature for value in scores.get_weights()]
    )
    return copy


def _folded_weights(
    conv: keras.layers.Conv2D,
    norm: keras.layers.BatchNormalization | None,
    preprocessing: ImagePreprocessing | None,
) -> list[np.ndarray]:
    """Return [kernel, bias] of a convolution merged with its neighbours; kernel [h, w, in, out].

    The arithmetic is float64, so that rounding happens once.
    """
    kernel, *bias = (np.asarray(value, np.float64) for value in conv.get_weights())
    if norm is not None:
        mean, variance = (np.asarray(v) for v in (norm.moving_mean, norm.moving_variance))
        scale = (np.asarray(norm.gamma) if norm.scale else 1.0) / np.sqrt(
            variance.astype(np.float64) + norm.epsilon
        )
        offset = np.asarray(norm.beta) if norm.center else 0.0
        kernel = kernel * scale
        bias = [((bias[0] if bias else 0.0) - mean) * scale + offset]
    if preprocessing is not None:
        if _reverses(preprocessing):
            kernel = kernel[:, :, bgr_order(kernel.shape[2])]
        kernel = kernel / np.reshape(preprocessing.std, (-1, 1))
    return [kernel, *bias]


def _reverses(preprocessing: ImagePreprocessing) -> bool:
    return preprocessing.channel_order == "bgr"


def _can_fold(conv: keras.layers.Conv2D, norm: keras.layers.BatchNormalization) -> bool:
    channel_axis = 1 if conv.data_format == "channels_first" else 3
    linear = conv.activation is keras.activations.linear
    return linear and norm.axis in (channel_axis, channel_axis - 4)


def _pairs(model: keras.Model, first: type, second: type) -> Iterator[tuple]:
    """Yield pairs of layers of two types, each called once; only the second reads the first."""
    config = model.get_config()
    if "output_layers" not in config:  # a Sequential
        return
    calls = {layer["name"]: layer["inbound_nodes"] for layer in config["layers"]}
    readers: dict[str, list[str]] = {}
    for name, nodes in calls.items():
        for source in _sources(nodes):
            readers.setdefault(source, []).append(name)
    for name in _sources(config["output_layers"]):
        readers.setdefault(name, []).append("")
    layers = {layer.name: layer for layer in model.layers}
    for name, (reader, *more_readers) in readers.items():
        if not {name, reader} <= layers.keys():  # the output, or an operation, as of a + b
            continue
        if not more_readers and len(calls[name]) == len(calls[reader]) == 1:
            pair = layers[name], layers[reader]
            if (type(pair[0]), type(pair[1])) == (first, second):
                yield pair


def _sources(config: Any) -> Iterator[str]:
    """Yield the names of the layers whose outputs a serialised call, or list of outputs, reads."""
    if isinstance(config, dict):
        if "keras_history" in config:
            yield config["keras_history"][0]
        else:
            for value in config.values():
                yield from _sources(value)
    elif isinstance(config, list | tuple):
        if len(config) == 3 and isinstance(config[0], str) and isinstance(config[1], int):
            yield config[0]  # an output: layer, call, tensor
        else:
            for value in config:
                yield from _sources(value)


def flat_layers(model: keras.Model) -> Iterator[keras.Layer]:
    for layer in model.layers:
        yield layer
        yield from flat_layers(layer) if hasattr(layer, "layers") else ()

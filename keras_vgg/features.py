"""The outputs of several layers in one pass: before or after the ReLU, from nested models."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
from keras import ops

from keras_vgg.graph import (
    Place,
    all_layers,
    before_activation,
    borrowed,
    holds_layers,
    is_plain,
    rebuild,
)

_ACTIVATIONS = (keras.layers.Activation, keras.layers.ReLU)
_SIDES = ("pre", "post")


def feature_extractor(
    model: keras.Model,
    layers: str | Iterable[str],
    pooling: str | int | None = None,
    *,
    pooling_layers: Literal["avg", "l2"] | None = None,
    normalize: bool = False,
) -> keras.Model:
    """Return a model from images to {name: output}, for several layers in one pass.

    A name is a layer's name, such as "block4_pool", which gives the layer's output. With ":pre" or
    ":post", it gives the values before or after the ReLU: "block3_conv3:pre". Batch norm is before
    the ReLU, so that in such a network "block3_conv3" is the convolution alone, and
    "block3_conv3:pre" is normalised too. Layers of models inside the model are found by their name,
    or by their path, such as "vgg16/block3_conv3".

    Args:
        model: A functional or Sequential model, such as a VGG, or a model that holds one. The
            extractor shares its weights and layers. In a model that you train, call it with
            `training=False`, or freeze it: batch normalisation changes its statistics otherwise.
        layers: Names.
        pooling: None: feature maps stay as they are, [n, h, w, c]. "avg" or "max": pool over the
            map, [n, c]. A number g: average over a grid of g x g parts, [n, g*g*c] in the order
            row, column, channel. Outputs that are not maps stay as they are.
        pooling_layers: What takes the place of every max pooling. "avg": average pooling, as in
            Gatys et al. (arXiv:1508.06576). "l2": `L2Pooling`, as in DISTS. None: nothing does.
        normalize: Whether to divide the features of each pixel by their length.

    Raises:
        ValueError: there is no layer; a layer is unknown, in several places, or named twice; a name
            with ":pre" or ":post" has no activation; an unknown pooling; a map is smaller than the
            grid, not divisible by it, or of unknown size.

    Example:
        ```python
        from keras_vgg import VGG19, feature_extractor

        base = VGG19(include_top=False, weights=None)
        names = ["block1_conv2", "block5_conv4:pre"]
        extractor = feature_extractor(base, names, pooling_layers="avg")
        print(list(extractor.output))
        ```
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"layers must be one or more different names, not {names}")
    if not (pooling in (None, "avg", "max") or (type(pooling) is int and pooling > 0)):
        raise ValueError(f"pooling must be None, 'avg', 'max' or a number, not {pooling!r}")
    if pooling_layers not in (None, "avg", "l2"):
        raise ValueError(f"pooling_layers must be 'avg', 'l2' or None, not {pooling_layers!r}")
    if not isinstance(model, keras.Model) or len(getattr(model, "inputs", None) or ()) != 1:
        raise ValueError(
            "features need a built functional or Sequential model with one input, not "
            f"{getattr(model, 'name', model)!r}; call it once first"
        )
    # Layers whose output is without doubt that of their only call, in this model.
    plain = {
        layer.name
        for layer in model.layers
        if not holds_layers(layer) and len(layer._inbound_nodes) == 1
    }
    if pooling_layers is None and plain.issuperset(names):
        image, tensors = model.inputs[0], [model.get_layer(name).output for name in names]
    else:
        image, tensors = _rebuilt(model, names, pooling_layers)
    outputs, data_format = {}, _data_format(model)
    for name, tensor in zip(names, tensors, strict=True):
        layer_name = re.sub("[:/]", "_", name)
        is_map = len(tensor.shape) == 4
        if normalize:
            axis = 1 if is_map and data_format == "channels_first" else -1
            # In float16, the sum of squares overflows.
            unit = keras.layers.UnitNormalization(axis, dtype="float32", name=f"{layer_name}_unit")
            tensor = unit(tensor)
        outputs[name] = _pooled(tensor, pooling, layer_name, data_format) if is_map else tensor
    return keras.Model(image, outputs, name=f"{model.name}_features")


def channel_axis() -> int:
    """Return the axis of the channels in a batch of images or maps."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def _data_format(model: keras.Model) -> str:
    """Return "channels_first" or "channels_last", by the model's layers; else Keras' setting."""
    formats = (getattr(borrowed(layer), "data_format", None) for layer in all_layers(model))
    return next(filter(None, formats), keras.config.image_data_format())


@keras.saving.register_keras_serializable("keras_vgg")
class L2Pooling(keras.layers.Layer):
    """The root of a weighted mean of squares, over 3x3 places with stride 2 (Hénaff & Simoncelli).

    The weights are a Hann window, (1, 2, 1) / 4 in each direction; places outside the map count as
    0. The output of [n, h, w, c] is [n, ceil(h / 2), ceil(w / 2), c].
    """

    def __init__(self, data_format: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_format = data_format or keras.config.image_data_format()

    def call(self, inputs):
        first = 2 if self.data_format == "channels_first" else 1
        x: Any = ops.square(ops.cast(inputs, "float32"))
        for axis in (first, first + 1):
            padding = [(0, 0)] * 4
            padding[axis] = (1, 1)
            x = ops.pad(x, padding)
            shape: Any = ops.shape(x)
            parts = [[slice(None)] * 4 for _ in range(3)]
            for start, part in enumerate(parts):
                part[axis] = slice(start, shape[axis] - 2 + start, 2)
            a, b, c = (x[tuple(part)] for part in parts)
            x = 0.25 * (a + c) + 0.5 * b
        # The gradient of the root has no value at 0.
        return ops.cast(ops.sqrt(x + 1e-12), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        first = 2 if self.data_format == "channels_first" else 1
        for axis in (first, first + 1):
            shape[axis] = None if shape[axis] is None else (shape[axis] + 1) // 2
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": self.data_format}


def _rebuilt(
    model: keras.Model, names: Sequence[str], pooling_layers: str | None
) -> tuple[Any, list[Any]]:
    """Return a new input, and the tensors of the names, in a graph around the same weights."""
    own = model.inputs[0]
    image = keras.Input(batch_shape=own.shape, dtype=own.dtype)
    divided = [name.rpartition(":")[0] for name in names if _side(name)]
    before: dict[str, Any] = {}

    def replace(layer: Any, path: str, inputs: Any) -> Any:
        graph_name = path.replace("/", ".")
        if pooling_layers and "MaxPool" in type(layer).__name__ and len(inputs.shape) == 4:
            return _instead_of_max(layer, pooling_layers, graph_name)(inputs)
        is_divided = any(f"/{path}".endswith(f"/{name}") for name in divided)
        if is_divided and _has_activation(layer) and path not in before:
            # The activation gets the same values, so that a convolution is computed once.
            place = Place(path, layer, inputs, None)
            before[path] = before_activation(place, f"{graph_name}.before_activation")
            options = {"dtype": layer.dtype_policy, "name": f"{graph_name}.activation"}
            return keras.layers.Activation(layer.activation, **options)(before[path])
        return None

    _output, places = rebuild(model, image, replace=replace)
    return image, [_tensor(model, places, before, name) for name in names]


def _instead_of_max(layer: Any, pooling_layers: str, name: str) -> keras.layers.Layer:
    """Return the layer to use in place of a max pooling."""
    if isinstance(layer, keras.layers.MaxPooling2D) and pooling_layers == "avg":
        options = layer.pool_size, layer.strides, layer.padding, layer.data_format
        policy = layer.dtype_policy
        return keras.layers.AveragePooling2D(*options, dtype=policy, name=f"{name}.average")
    if isinstance(layer, keras.layers.MaxPooling2D) and layer.strides == (2, 2):
        return L2Pooling(layer.data_format, dtype=layer.dtype_policy, name=f"{name}.l2")
    if isinstance(layer, keras.layers.GlobalMaxPooling2D):
        return layer
    raise ValueError(f"pooling_layers={pooling_layers!r} cannot replace layer {layer.name!r}")


def _side(name: str) -> str | None:
    """Return "pre" or "post" if a name ends so, else None."""
    side = name.rpartition(":")[2]
    return side if ":" in name and side in _SIDES else None


def _has_activation(layer: Any) -> bool:
    """Return whether a layer's values before its own activation can be computed."""
    return is_plain(layer) and layer.activation is not keras.activations.linear


def _tensor(model: keras.Model, places: Sequence[Place], before: dict[str, Any], name: str) -> Any:
    side = _side(name)
    place = _place(model, places, name.rpartition(":")[0] if side else name)
    if side is None:
        return place.output
    if place.path in before:
        return before[place.path] if side == "pre" else place.output
    while not isinstance(place.layer, _ACTIVATIONS):
        kinds = (*_ACTIVATIONS, keras.layers.BatchNormalization)
        followers = [p for p in places if p.inputs is place.output and isinstance(p.layer, kinds)]
        if len(followers) != 1:
            raise ValueError(
                f"{name!r} of {model.name!r} needs a layer with an activation, or one that batch "
                "norm and an activation follow"
            )
        place = followers[0]
    return place.inputs if side == "pre" else place.output


def _place(model: keras.Model, places: Sequence[Place], name: str) -> Place:
    matches = [p for p in places if p.path == name]
    matches = matches or [p for p in places if p.path.endswith(f"/{name}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        paths = sorted({p.path for p in matches})
        if len(paths) == 1:
            raise ValueError(
                f"{model.name!r} calls layer {name!r} {len(matches)} times, which have no names"
            )
        raise ValueError(
            f"layer {name!r} is in {len(matches)} places of {model.name!r}: {', '.join(paths)}; "
            "give a path"
        )
    raise ValueError(f"{model.name} has no layer {name!r}{_hint(name, places)}")


def _hint(name: str, places: Sequence[Place]) -> str:
    """Return a name to try: that of relu3_2 or conv3_2 as papers write it, or a similar one."""
    known = {p.path.rpartition("/")[2] for p in places}
    paper = re.fullmatch(r"(relu|conv)(\d)_(\d)", name.lower())
    close = difflib.get_close_matches(name.removesuffix(":"), known, 1)
    if paper and f"block{paper[2]}_conv{paper[3]}" in known:
        side = "post" if paper[1] == "relu" else "pre"
        close = [f"block{paper[2]}_conv{paper[3]}:{side}"]
    return f"; did you mean {close[0]!r}?" if close else ""


def _pooled(feature_map: Any, pooling: str | int | None, name: str, data_format: str) -> Any:
    if pooling is None:
        return feature_map
    # The global policy may be a mixed one, which would round the features.
    options: Any = {"dtype": "float32", "data_format": data_format}
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name=f"{name}_avg", **options)(feature_map)
    if pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name=f"{name}_max", **options)(feature_map)
    assert isinstance(pooling, int), "feature_extractor checks it"
    first = data_format == "channels_first"
    height, width = feature_map.shape[2:] if first else feature_map.shape[1:3]
    if None in (height, width) or min(height, width) < pooling:
        raise ValueError(
            f"a grid of {pooling} x {pooling} needs a map of known size, at least as large as the "
            f"grid; {name} gives {height} x {width}"
        )
    if height % pooling or width % pooling:  # the pool would leave out the rest
        raise ValueError(
            f"{name} gives {height} x {width}, which {pooling} x {pooling} parts do not divide"
        )
    window = (height // pooling, width // pooling)
    x = keras.layers.AveragePooling2D(window, name=f"{name}_grid", **options)(feature_map)
    if first:
        x = keras.layers.Permute((2, 3, 1), dtype="float32", name=f"{name}_rows")(x)
    x = keras.layers.Reshape((-1, x.shape[-1]), dtype="float32", name=f"{name}_parts")(x)
    return keras.layers.Flatten("channels_last", dtype="float32", name=f"{name}_flat")(x)

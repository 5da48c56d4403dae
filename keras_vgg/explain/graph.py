"""A model rebuilt layer by layer around the same weights; the model itself stays as it was.

Models inside of it are taken apart, at any depth: a layer of theirs is as near as any other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops


class Place(NamedTuple):
    """A layer where it is called. `path`: "block5_conv3", or "vgg16/block5_conv3" in a model."""

    path: str
    layer: Any
    inputs: Any
    output: Any


@keras.saving.register_keras_serializable("keras_vgg")
class _Borrowed(keras.layers.Layer):
    """A layer of another model, which does not notice: it gets no node of a graph, and no name."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.layer = layer

    def call(self, *args, **kwargs):
        return self.layer(*args, **kwargs)


@keras.saving.register_keras_serializable("keras_vgg")
class _BeforeActivation(keras.layers.Layer):
    """What a dense layer or convolution gives before its activation, float32."""

    def __init__(self, layer: keras.layers.Dense | keras.layers.Conv2D, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.layer = layer

    def call(self, inputs):
        rank = len(inputs.shape)
        inputs, kernel = ops.cast(inputs, "float32"), ops.cast(self.layer.kernel, "float32")
        if isinstance(self.layer, keras.layers.Dense):
            found = ops.matmul(inputs, kernel)
        else:
            found = self.layer.convolution_op(inputs, kernel)
        if self.layer.bias is None:
            return found
        shape = [1] * rank
        last = isinstance(self.layer, keras.layers.Dense)
        last = last or self.layer.data_format == "channels_last"
        shape[-1 if last else 1] = -1
        return ops.add(found, ops.reshape(ops.cast(self.layer.bias, "float32"), shape))


def holds_layers(layer: Any) -> bool:
    return isinstance(layer, keras.Model) and bool(getattr(layer, "inputs", None))


def taken_apart(model: keras.Model, image: Any, instead: dict[str, Any]) -> tuple[Any, list[Place]]:
    """(the output of a model on `image`, its places); `instead` has tensors for layers' outputs."""
    places: list[Place] = []
    names: dict[str, int] = {}

    def call(layer: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("training", None)  # a dropout that was meant to go on does not, either
        given = next(iter((*args, *kwargs.values())), None)  # also of layer(inputs=x)
        if isinstance(layer, keras.Sequential):
            output = given
            for inner in layer.layers:
                output = call(inner, f"{path}/{inner.name}", output)
        elif holds_layers(layer):
            output = inside(layer, f"{path}/", given)
        else:
            names[path] = names.get(path, 0) + 1
            name = f"{path.replace('/', '.')}.{names[path]}"
            output = _Borrowed(layer, name=name)(*args, **kwargs)
        places.append(Place(path, layer, given, output))
        return instead.get(path, output)

    def inside(model: keras.Model, prefix: str, inputs: Any) -> Any:
        """The public way along a graph is clone_model, which makes a model of what it finds.

        That one goes from stand-ins for the inputs to themselves and is thrown away; the tensors
        that `call` gave are caught at marks behind the outputs.
        """
        flat = keras.tree.flatten(model.output)
        marks = [keras.layers.Identity(name=f"explained_output_{i}") for i in range(len(flat))]
        caught: dict[int, Any] = {}
        stand_ins = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype), inputs
        )
        first, *_ = pairs = keras.tree.flatten(stand_ins)
        real = {id(x): y for x, y in zip(pairs, keras.tree.flatten(inputs), strict=True)}

        def step(layer: Any, *args: Any, **kwargs: Any) -> Any:
            given = args, kwargs
            replaced: Any = keras.tree.map_structure(lambda x: real.get(id(x), x), given)
            args, kwargs = replaced
            for i, mark in enumerate(marks):
                if layer is mark:
                    caught[i] = args[0]
                    return first
            return call(layer, prefix + layer.name, *args, **kwargs)

        # A model of its own, for a compiled one would be compiled again.
        view = keras.Model(model.input, [mark(x) for mark, x in zip(marks, flat, strict=True)])
        keras.models.clone_model(
            view, input_tensors=stand_ins, clone_function=lambda layer: layer, call_function=step
        )
        return keras.tree.pack_sequence_as(model.output, [caught[i] for i in range(len(flat))])

    if isinstance(model, keras.Sequential):
        output = image
        for layer in model.layers:
            output = call(layer, layer.name, output)
    else:
        output = inside(model, "", image)
    return output, places


def before_activation(place: Place) -> Any:
    """The tensor that a layer's activation is given; its output where it has none, or another's."""
    if isinstance(place.layer, keras.layers.Activation | keras.layers.ReLU | keras.layers.Softmax):
        return place.inputs
    # Not its subclasses, which compute something else.
    if type(place.layer) in (keras.layers.Dense, keras.layers.Conv2D):
        return _BeforeActivation(place.layer, name="before_activation")(place.inputs)
    return place.output

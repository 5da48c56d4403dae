"""Rebuild a model layer by layer around the same weights, without a change to the model.

A model inside the model is rebuilt the same way, at any depth, so all layers can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops

_NAMES = ("Relu", "Sigmoid", "Softmax")  # operations, which have no public classes


class Place(NamedTuple):
    """A call of a layer. `path`: "block5_conv3"; in an inner model "vgg16/block5_conv3"."""

    path: str
    layer: Any
    inputs: Any
    output: Any


class _AroundLayer(keras.layers.Layer):
    """A layer around one of another model, whose weights it shares. A saved copy has its own."""

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.layer = layer

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer=layer, **config)

    def build(self, input_shape) -> None:
        if not self.layer.built:  # after loading
            self.layer.build(input_shape)


@keras.saving.register_keras_serializable("keras_vgg")
class _Borrowed(_AroundLayer):
    """Call a layer of another model, without a new node in the layer's graph."""

    def call(self, *args, **kwargs):
        return self.layer(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


@keras.saving.register_keras_serializable("keras_vgg")
class _BeforeActivation(_AroundLayer):
    """The output of a dense layer or convolution before its activation, float32."""

    def call(self, inputs):
        rank = len(inputs.shape)
        inputs, kernel = ops.cast(inputs, "float32"), ops.cast(self.layer.kernel, "float32")
        if isinstance(self.layer, keras.layers.Dense):
            output = ops.matmul(inputs, kernel)
        else:
            output = self.layer.convolution_op(inputs, kernel)
        if self.layer.bias is None:
            return output
        shape = [1] * rank
        last = isinstance(self.layer, keras.layers.Dense)
        last = last or self.layer.data_format == "channels_last"
        shape[-1 if last else 1] = -1
        return ops.add(output, ops.reshape(ops.cast(self.layer.bias, "float32"), shape))


def holds_layers(layer: Any) -> bool:
    """Return whether a layer is a model, which is rebuilt too."""
    return isinstance(layer, keras.Model) and bool(getattr(layer, "inputs", None))


def all_layers(model: keras.Model) -> Iterator[Any]:
    """Yield the layers of a model, and of the models inside it."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def require_unquantised(model: keras.Model) -> None:
    """Raise ValueError if a layer is quantised: it cannot be copied or trained."""
    for layer in all_layers(model):
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"layer {layer.name!r} of {model.name!r} is quantised ({mode}): pass the network "
                "from before `quantize`"
            )


def borrowed(layer: Any) -> Any:
    """Return the layer of the model that a rebuilt model's layer stands for."""
    return layer.layer if isinstance(layer, _AroundLayer) else layer


def _again(layer: Any, name: str) -> Any:
    """Return what computes the same as a layer or an operation, such as the one of a + b."""
    if isinstance(layer, keras.layers.Layer):
        return _Borrowed(layer, name=name)
    return type(layer).from_config({**layer.get_config(), "name": name})


def rebuild(
    model: keras.Model,
    image: Any,
    instead: Mapping[str, Any] | None = None,
    replace: Callable[[Any, str, Any], Any] | None = None,
) -> tuple[Any, list[Place]]:
    """Return the output of a model on `image`, and all calls of its layers in order.

    Args:
        model: A functional or Sequential model.
        image: The tensor to use in place of the model's input.
        instead: Path -> a tensor to use in place of that layer's output.
        replace: A function from a layer, its path and its inputs to a tensor to use as the layer's
            output; None: call the layer.
    """
    instead = instead or {}
    places: list[Place] = []
    names: dict[str, int] = {}

    def call(layer: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("training", None)  # all layers run in inference, even a dropout with True
        inputs = next(iter((*args, *kwargs.values())), None)  # also for layer(inputs=x)
        if isinstance(layer, keras.Sequential):
            output = inputs
            for inner in layer.layers:
                output = call(inner, f"{path}/{inner.name}", output)
        elif holds_layers(layer):
            output = inside(layer, f"{path}/", inputs)
        else:
            names[path] = names.get(path, 0) + 1
            name = f"{path.replace('/', '.')}.{names[path]}"
            output = None if replace is None else replace(layer, path, inputs)
            if output is None:
                output = _again(layer, name)(*args, **kwargs)
        places.append(Place(path, layer, inputs, output))
        return instead.get(path, output)

    def inside(model: keras.Model, prefix: str, inputs: Any) -> Any:
        def call_inner(layer: Any, *args: Any, **kwargs: Any) -> Any:
            return call(layer, prefix + layer.name, *args, **kwargs)

        return _along_graph(model, inputs, call_inner)

    if isinstance(model, keras.Sequential):
        output = image
        for layer in model.layers:
            output = call(layer, layer.name, output)
    else:
        output = inside(model, "", image)
    return output, places


def _along_graph(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """Return the outputs of a functional model on new inputs; `call` calls each layer.

    The public way along a graph is clone_model, which must end in a new model. That model leads
    from stand-ins for the inputs to the stand-ins, and is thrown away. Layers that are appended as
    marks catch the tensors that `call` returns.
    """
    flat = keras.tree.flatten(model.output)
    # The model may be made of lists or dictionaries.
    inputs = keras.tree.pack_sequence_as(model.input, keras.tree.flatten(inputs))
    marks = [keras.layers.Identity(name=f"explained_output_{i}") for i in range(len(flat))]
    caught: dict[int, Any] = {}
    stand_ins = keras.tree.map_structure(
        lambda own, x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=own.name),
        *(model.input, inputs),
    )
    first, *_ = pairs = keras.tree.flatten(stand_ins)
    real = {id(x): y for x, y in zip(pairs, keras.tree.flatten(inputs), strict=True)}

    def step(layer: Any, *args: Any, **kwargs: Any) -> Any:
        replaced: Any = keras.tree.map_structure(lambda x: real.get(id(x), x), (args, kwargs))
        args, kwargs = replaced
        for i, mark in enumerate(marks):
            if layer is mark:
                caught[i] = args[0]
                return first
        return call(layer, *args, **kwargs)

    # clone_model would compile the clone of a compiled model. A new model is not compiled.
    view = keras.Model(model.input, [mark(x) for mark, x in zip(marks, flat, strict=True)])
    keras.models.clone_model(
        view, input_tensors=stand_ins, clone_function=lambda layer: layer, call_function=step
    )
    return keras.tree.pack_sequence_as(model.output, [caught[i] for i in range(len(flat))])


def before_activation(place: Place, name: str = "before_activation") -> Any:
    """Return the input of a layer's activation, or the layer's output if that is not known."""
    kinds = (keras.layers.Activation, keras.layers.ReLU, keras.layers.Softmax)
    is_operation = not isinstance(place.layer, keras.layers.Layer)
    if isinstance(place.layer, kinds) or (is_operation and type(place.layer).__name__ in _NAMES):
        return place.inputs
    if is_plain(place.layer):
        return _BeforeActivation(place.layer, name=name)(place.inputs)
    return place.output


def is_plain(layer: Any) -> bool:
    """Return whether a layer is a Dense or Conv2D whose kernel holds what it multiplies with.

    A subclass computes something else, and a quantised kernel has scales.
    """
    kinds = (keras.layers.Dense, keras.layers.Conv2D)
    return type(layer) in kinds and getattr(layer, "quantization_mode", None) is None


def final_activation(model: keras.Model) -> Any:
    """Return the activation that makes a model's one output; None: it is not known.

    The layer that was made last need not be the one that ends the model.
    """
    last: Any = model
    while isinstance(last, keras.Sequential) or holds_layers(last):
        is_sequential = isinstance(last, keras.Sequential)
        last = last.layers[-1] if is_sequential else last.outputs[0]._keras_history.operation
    return activation_of(last)


def activation_of(layer: Any) -> Any:
    """Return the activation that a layer or an operation ends with; None: there is none."""
    softmax, sigmoid = keras.activations.softmax, keras.activations.sigmoid
    if isinstance(layer, keras.layers.Softmax):
        return softmax
    if not isinstance(layer, keras.layers.Layer):
        return {"Softmax": softmax, "Sigmoid": sigmoid}.get(type(layer).__name__)
    return getattr(layer, "activation", None)

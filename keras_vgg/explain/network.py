"""A trained model for explanations: its layers by name, its feature maps, its class scores."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.backend import as_array
from keras_vgg.finite import check_range, require_finite_images, require_finite_weights
from keras_vgg.gradient import Gradient, answer_of, gradient_of
from keras_vgg.graph import (
    Place,
    activation_of,
    all_layers,
    before_activation,
    holds_layers,
    rebuild,
)
from keras_vgg.layers import ImagePreprocessing

# The convolutions of VGG's classifier with head="conv". Their maps are class scores.
_CLASSIFIER = ("fc1", "fc2", "predictions")
_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)
# In inference these return their inputs if those are [n, classes] or [n, 1, 1, classes].
_PASSING = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.Reshape,
)
_BEST = -1  # in place of a class: the most probable class


class Network:
    """A model that is ready for explanations. Use `opened`, which keeps it with the model.

    Attributes:
        places: Every call of a layer, in the graph's order.
        output: The model's output tensor.
        scores: A model from images to scores [n, classes], before a soft-max or sigmoid.
        activation: The function from scores to probabilities. None: the model ends in scores.
    """

    def __init__(self, model: keras.Model) -> None:
        if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
            raise ValueError(
                "explanations need a built functional or Sequential model, not "
                f"{getattr(model, 'name', model)!r}; call it once first"
            )
        if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
            raise ValueError(
                f"explanations need a model from images to classes; {model.name!r} has "
                f"inputs {[x.shape for x in model.inputs]}, outputs "
                f"{[x.shape for x in model.outputs]}"
            )
        self.name = model.name
        self.state = _state(model)
        self._model = weakref.ref(model)
        self.image = self._new_image()
        output, self.places = rebuild(model, self.image)
        self.output = _only(output)
        self._score_tensor, self.activation = _class_scores(self.output, self.places)
        self.scores = keras.Model([self.image], self._score_tensor)
        self._functions: dict[Any, Any] = {}

    def _new_image(self) -> Any:
        model = self._model()
        assert model is not None, "only its model holds a network"
        image = model.inputs[0]
        return keras.Input(batch_shape=(None, *image.shape[1:]), dtype="float32", name="image")

    def place(self, name: str | None) -> Place:
        """Return the layer with this name or path, which must have a feature map.

        None stands for the last convolution, with the batch norm and activation that follow it, or
        for the last layer with a feature map if there is no convolution.

        Raises:
            ValueError: the layer is unknown, is in several places, or has no feature map.
        """
        if name is None:
            return self._last_convolution()
        place = self.find(name)
        if not _is_map(place.output):
            raise ValueError(
                f"layer {name!r} of {self.name!r} gives no map [n, h, w, c] but "
                f"{getattr(place.output, 'shape', 'several outputs')}; those with maps are "
                f"{self._maps()}"
            )
        return place

    def find(self, name: str) -> Place:
        """Return the layer with this name, or this path from any model down.

        Raises:
            ValueError: the layer is unknown, or is in several places.
        """
        matches = [p for p in self.places if p.path == name]
        matches = matches or [p for p in self.places if p.path.endswith(f"/{name}")]
        if len(matches) == 1:
            return matches[0]
        if matches:
            paths = sorted({p.path for p in matches})
            advice = f"give its path: {', '.join(paths)}" if len(paths) > 1 else "choose another"
            raise ValueError(
                f"layer {name!r} is in {len(matches)} places of {self.name!r}; {advice}"
            )
        close = difflib.get_close_matches(str(name), [p.path for p in self.places], 1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"{self.name!r} has no layer {name!r}{hint} Those with maps are {self._maps()}"
        )

    def _maps(self) -> str:
        paths = dict.fromkeys(p.path for p in self.places if _is_map(p.output))
        return ", ".join(paths)

    def _last_convolution(self) -> Place:
        maps = [p for p in self.places if _is_map(p.output)]
        if not maps:
            raise ValueError(f"{self.name!r} has no layer that gives a map [n, h, w, c]")
        last = maps[-1]
        for place in reversed(maps):
            own_name = place.path.rsplit("/", 1)[-1]
            if hasattr(place.layer, "kernel_size") and own_name not in _CLASSIFIER:
                last = place
                break
        followers = (keras.layers.BatchNormalization, keras.layers.Activation, keras.layers.ReLU)
        for place in maps:
            if isinstance(place.layer, followers) and place.inputs is last.output:
                last = place
        return last

    def maps(self, place: Place) -> keras.Model:
        """Return a model from images to the layer's output."""
        key = ("maps", place.path)
        if key not in self._functions:
            self._functions[key] = keras.Model([self.image], place.output)
        return self._functions[key]

    def score_gradient(self, place: Place | None) -> Gradient:
        """Return `gradient_of` for class scores, by the layer's maps, or by the images if None.

        Its inputs are [images, maps] or [images]; maps replace the layer's output. A class of -1
        stands for the most probable class.
        """
        key = ("gradient", place and place.path)
        if key not in self._functions:
            network = self.scores
            if place is not None:
                model = self._model()
                image = self._new_image()
                maps = keras.Input(
                    batch_shape=(None, *place.output.shape[1:]), dtype=place.output.dtype
                )
                output, places = rebuild(model, image, {place.path: maps})
                network = keras.Model([image, maps], _class_scores(_only(output), places)[0])
            self._functions[key] = gradient_of(network, _score)
        return self._functions[key]

    def batch(self, images: Any, batch_size: int = 1) -> np.ndarray:
        """Return images as float32.

        Raises:
            ValueError: `batch_size` is below 1, there are no images, they do not fit the model,
                images or weights are not finite, or the model has its preprocessing inside and
                images are not in [0, 255].
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        images = np.asarray(images, "float32")
        own_shape = self.image.shape[1:]
        fits = images.ndim == 4 and all(
            own in (None, side) for own, side in zip(own_shape, images.shape[1:], strict=True)
        )
        if not fits or not len(images):
            shape = ", ".join("any" if side is None else str(side) for side in own_shape)
            raise ValueError(f"{self.name!r} takes images [n, {shape}], not {images.shape}")
        require_finite_images(images)
        if any(isinstance(place.layer, ImagePreprocessing) for place in self.places):
            check_range(images)
        require_finite_weights(self._model())
        return images

    def classes(self, classes: int | Sequence[int] | None, count: int) -> np.ndarray:
        """Return int32 [count]: a class for each image, or -1 for the most probable class.

        Raises:
            ValueError: a class is unknown, or there is not one for each image.
        """
        class_count = self._score_tensor.shape[-1]
        if classes is None:
            return np.full(count, _BEST, "int32")
        chosen = np.asarray(classes)
        if chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != count):
            raise ValueError(f"classes must be one number, or one for each of {count} images")
        if chosen.dtype.kind not in "iu" or (chosen < 0).any() or (chosen >= class_count).any():
            raise ValueError(
                f"classes must be whole numbers from 0 to {class_count - 1}, not {classes}"
            )
        return np.broadcast_to(chosen, count).astype("int32")

    def chosen(self, images: np.ndarray, classes: Any, batch_size: int) -> np.ndarray:
        """Return `classes` with the most probable class in place of -1."""
        labels = self.classes(classes, len(images))
        if (labels == _BEST).any():
            labels = self.probabilities(images, batch_size).argmax(-1).astype("int32")
        return labels

    def probabilities(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Return float32 [n, classes]; for a model that ends in scores, their soft-max.

        One score is that of the second of two classes: its sigmoid.
        """
        activation = self.activation
        if activation is None:
            activation = ops.sigmoid if self._score_tensor.shape[-1] == 1 else ops.softmax
        batches = []
        for start in range(0, len(images), batch_size):
            batch = ops.convert_to_tensor(images[start : start + batch_size])
            scores = ops.cast(answer_of(self.scores, [batch]), "float32")
            batches.append(ops.convert_to_numpy(activation(scores)))
        return np.concatenate(batches)

    def output_before_activation(self, place: Place) -> Any:
        """Return `before_activation` of a layer; for the model's last layer, the class scores."""
        return self._score_tensor if place.output is self.output else before_activation(place)

    def block_ends(self) -> list[Place]:
        """Return the inputs of the pooling layers: the last map at each resolution."""
        pools = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
        pooled = [p.inputs for p in self.places if isinstance(p.layer, pools)]
        ends = [p for p in self.places if any(p.output is x for x in pooled)]
        return [p for p in ends if not holds_layers(p.layer)] or [self.place(None)]


_NETWORKS: weakref.WeakKeyDictionary[keras.Model, Network] = weakref.WeakKeyDictionary()


def opened(model: keras.Model) -> Network:
    """Return the `Network` of a model, which is made once and kept as long as the model.

    Raises:
        ValueError: the model is not a built functional or Sequential model from images to classes.
    """
    network = _NETWORKS.get(model) if isinstance(model, keras.Model) else None
    if network is None or network.state != _state(model):
        network = Network(model)
        _NETWORKS[model] = network
    return network


def _state(model: keras.Model) -> list[tuple[Any, ...]]:
    """Return what a `Network` depends on and can change: the layers, and what they compute."""
    names = ("activation", "quantization_mode")
    return [(layer, *(getattr(layer, name, None) for name in names)) for layer in all_layers(model)]


def _only(output: Any) -> Any:
    """Return the one tensor of a structure, such as {"classes": tensor}."""
    (tensor,) = keras.tree.flatten(output)
    return tensor


def channels_first() -> bool:
    """Return whether Keras' image format is channels first."""
    return keras.config.image_data_format() == "channels_first"


def channels_last(maps: Any) -> np.ndarray:
    """Return a tensor of images or maps in Keras' format as float32 [n, h, w, c]."""
    maps = ops.convert_to_numpy(ops.cast(maps, "float32"))
    return np.moveaxis(maps, 1, -1) if channels_first() else maps


def _is_map(output: Any) -> bool:
    return len(getattr(output, "shape", ())) == 4


def _score(scores: Any, chosen: Any) -> Any:
    """Return the scores of the chosen classes: [n, classes], [n] -> [n]."""
    scores = ops.cast(scores, "float32")
    best = ops.cast(ops.argmax(scores, axis=-1), "int32")
    chosen = ops.where(chosen < 0, best, chosen)
    return ops.sum(ops.one_hot(chosen, scores.shape[-1], dtype="float32") * scores, axis=-1)


def _class_scores(output: Any, places: Sequence[Place]) -> tuple[Any, Callable | None]:
    """Return the tensor of class scores, and the function that makes probabilities of it."""
    if len(output.shape) != 2 or output.shape[-1] is None:
        raise ValueError(f"explanations need class scores [n, classes], not {tuple(output.shape)}")
    last = None
    while last is None or _passes_on(last):
        end = output if last is None else last.inputs
        makers = [p for p in places if p.output is end and not holds_layers(p.layer)]
        if not makers:  # maps replace the output of the last layer
            return output, None
        last = makers[-1]
    activation = _probability_function(last)
    if activation is None:
        return output, None
    scores = before_activation(last)
    if scores is last.output:
        raise ValueError(
            f"the scores before the {activation.__name__} of layer {last.path!r} are not known: "
            "the layer is not a Dense, a convolution or an Activation, or it is quantised"
        )
    if len(scores.shape) != 2:
        scores = keras.layers.Reshape((output.shape[-1],), dtype=scores.dtype)(scores)
    return scores, activation


def _probability_function(place: Place) -> Callable | None:
    """Return the soft-max or sigmoid that a layer ends with; None: it ends with neither.

    A backend's own function, or a user's, is known by what it computes.
    """
    activation = activation_of(place.layer)
    if not callable(activation):
        return None
    if activation in _PROBABILITIES:
        return activation
    *places, classes = place.output.shape[1:]
    scores = np.linspace(-2, 3, classes, dtype="float32").reshape(1, *(1 for _ in places), -1)
    scores = ops.convert_to_tensor(scores)
    answer = as_array(activation(scores))
    for known in _PROBABILITIES[classes == 1 :]:  # the soft-max of one score is always 1
        if np.allclose(answer, as_array(known(scores))):
            return known
    return None


def _passes_on(place: Place) -> bool:
    """Return whether a layer only passes on class scores or probabilities in inference."""
    layer = place.layer
    linear = (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    )
    if not (linear or isinstance(layer, _PASSING)):
        return False
    *places, classes = place.inputs.shape[1:]
    return set(places) <= {1} and classes == place.output.shape[-1]

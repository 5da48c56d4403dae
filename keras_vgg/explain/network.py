"""A trained model, opened for explanation: its layers by name, its maps, its class scores."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.explain.gradient import Gradient, answer_of, gradient_of
from keras_vgg.explain.graph import Place, before_activation, holds_layers, taken_apart
from keras_vgg.finite import require_finite_images, require_finite_weights

# Convolutions that are VGG's classifier with head="conv": their maps are class scores.
_CLASSIFIER = ("fc1", "fc2", "predictions")
_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid, ops.softmax, ops.sigmoid)
# In inference they give what they are given, if it is [n, classes] or [n, 1, 1, classes].
_PASSING = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Identity,
    keras.layers.Reshape,
)
_BEST = -1  # in place of a class: the one that the network finds


class Network:
    """A model, opened. Use `opened`, which keeps it with the model.

    Attributes:
        places: Every layer where it is called, in the graph's order.
        output: The tensor that the model gives.
        scores: Images -> [n, classes], before a soft-max or sigmoid.
        activation: From scores to probabilities, a function, or None where the model has none.
    """

    def __init__(self, model: keras.Model) -> None:
        if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
            raise ValueError(
                "explanations need a functional or Sequential model that is built (call it once); "
                f"{getattr(model, 'name', model)!r} is none"
            )
        if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
            raise ValueError(
                f"explanations need a model from images to classes; {model.name!r} has "
                f"inputs {[x.shape for x in model.inputs]}, outputs "
                f"{[x.shape for x in model.outputs]}"
            )
        self.name = model.name
        self.layers = list(model.layers)
        self._model = weakref.ref(model)
        self.image = self._new_image()
        self.output, self.places = taken_apart(model, self.image, {})
        self._score_tensor, self.activation = _class_scores(self.output, self.places)
        self.scores = keras.Model([self.image], self._score_tensor)
        self._functions: dict[Any, Any] = {}

    def _new_image(self) -> Any:
        model = self._model()
        assert model is not None, "only its model holds a network"
        image = model.inputs[0]
        return keras.Input(batch_shape=(None, *image.shape[1:]), dtype="float32", name="image")

    def place(self, name: str | None) -> Place:
        """The one layer of that name whose output is a map; None: the last convolution.

        To it belong a batch norm and an activation that follow; where there is no convolution, it
        is the last layer that gives a map.

        Raises:
            ValueError: there is none, it is in several places, or gives no map.
        """
        if name is None:
            return self._last_convolution()
        found = self.find(name)
        if len(getattr(found.output, "shape", ())) != 4:
            raise ValueError(
                f"layer {name!r} of {self.name!r} gives no map [n, h, w, c] but "
                f"{getattr(found.output, 'shape', 'several outputs')}; those with maps are "
                f"{self._maps()}"
            )
        return found

    def find(self, name: str) -> Place:
        """The one layer of that name, or path from any model down."""
        found = [p for p in self.places if p.path == name]
        found = found or [p for p in self.places if p.path.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            paths = sorted({p.path for p in found})
            which = f"give its path: {', '.join(paths)}" if len(paths) > 1 else "choose another"
            raise ValueError(f"layer {name!r} is in {len(found)} places of {self.name!r}; {which}")
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
        found = maps[-1]
        for place in reversed(maps):
            own_name = place.path.rsplit("/", 1)[-1]
            if hasattr(place.layer, "kernel_size") and own_name not in _CLASSIFIER:
                found = place
                break
        after = (keras.layers.BatchNormalization, keras.layers.Activation, keras.layers.ReLU)
        for place in maps:
            if isinstance(place.layer, after) and place.inputs is found.output:
                found = place
        return found

    def maps(self, place: Place) -> keras.Model:
        """Images -> the layer's output."""
        key = ("maps", place.path)
        if key not in self._functions:
            self._functions[key] = keras.Model([self.image], place.output)
        return self._functions[key]

    def score_gradient(self, place: Place | None) -> Gradient:
        """`gradient_of` the chosen classes' scores: by ([images, maps], classes), or images alone.

        The maps take the place of the layer's output. A class of -1 is the network's best.
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
                output, places = taken_apart(model, image, {place.path: maps})
                network = keras.Model([image, maps], _class_scores(output, places)[0])
            self._functions[key] = gradient_of(network, _score)
        return self._functions[key]

    def batch(self, images: Any) -> np.ndarray:
        """Images as float32 that fit the model.

        Raises:
            ValueError: they do not, there are none, or they or the weights are not finite.
        """
        images = np.asarray(images, "float32")
        wanted = self.image.shape[1:]
        fits = images.ndim == 4 and all(
            w in (None, g) for w, g in zip(wanted, images.shape[1:], strict=True)
        )
        if not fits or not len(images):
            shape = ", ".join("any" if side is None else str(side) for side in wanted)
            raise ValueError(f"{self.name!r} takes images [n, {shape}], not {images.shape}")
        require_finite_images(images)
        require_finite_weights(self._model())
        return images

    def classes(self, classes: int | Sequence[int] | None, count: int) -> np.ndarray:
        """int32 [count], -1 where the network chooses.

        Raises:
            ValueError: no such class, or not one for each image.
        """
        known = self._score_tensor.shape[-1]
        if classes is None:
            return np.full(count, _BEST, "int32")
        chosen = np.asarray(classes)
        if chosen.ndim > 1 or (chosen.ndim == 1 and len(chosen) != count):
            raise ValueError(f"classes must be one number, or one for each of {count} images")
        if chosen.dtype.kind not in "iu" or (chosen < 0).any() or (chosen >= known).any():
            raise ValueError(f"classes must be whole numbers from 0 to {known - 1}, not {classes}")
        return np.broadcast_to(chosen, count).astype("int32")

    def chosen(self, images: np.ndarray, classes: Any, batch_size: int) -> np.ndarray:
        """As `classes`, with the network's best where it chooses."""
        wanted = self.classes(classes, len(images))
        if (wanted == _BEST).any():
            wanted = self.probabilities(images, batch_size).argmax(-1).astype("int32")
        return wanted

    def probabilities(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """float32 [n, classes]; of a model that ends in scores, their soft-max."""
        found = []
        for start in range(0, len(images), batch_size):
            batch = ops.convert_to_tensor(images[start : start + batch_size])
            scores = ops.cast(answer_of(self.scores, [batch]), "float32")
            found.append(ops.convert_to_numpy((self.activation or ops.softmax)(scores)))
        return np.concatenate(found)

    def output_before_activation(self, place: Place) -> Any:
        """`before_activation` of a layer; of the last one the class scores."""
        return self._score_tensor if place.output is self.output else before_activation(place)

    def block_ends(self) -> list[Place]:
        """What goes into each pooling layer: the last maps at each resolution."""
        pools = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
        pooled = [p.inputs for p in self.places if isinstance(p.layer, pools)]
        ends = [p for p in self.places if any(p.output is x for x in pooled)]
        return [p for p in ends if not holds_layers(p.layer)] or [self.place(None)]


_KEPT: weakref.WeakKeyDictionary[keras.Model, Network] = weakref.WeakKeyDictionary()


def opened(model: keras.Model) -> Network:
    """The model, opened once and kept as long as it lives, with all that was compiled for it.

    Raises:
        ValueError: it is no built functional or Sequential model from images to classes.
    """
    kept = _KEPT.get(model) if isinstance(model, keras.Model) else None
    if kept is None or kept.layers != model.layers:  # a Sequential may have got other layers
        kept = Network(model)
        _KEPT[model] = kept
    return kept


def channels_first() -> bool:
    return keras.config.image_data_format() == "channels_first"


def channels_last(maps: Any) -> np.ndarray:
    """A tensor of images or maps, in Keras' format -> float32 [n, h, w, c]."""
    maps = ops.convert_to_numpy(ops.cast(maps, "float32"))
    return np.moveaxis(maps, 1, -1) if channels_first() else maps


def _is_map(output: Any) -> bool:
    return len(getattr(output, "shape", ())) == 4


def _score(scores: Any, chosen: Any) -> Any:
    """[n, classes], [n] -> [n]."""
    scores = ops.cast(scores, "float32")
    best = ops.cast(ops.argmax(scores, axis=-1), "int32")
    chosen = ops.where(chosen < 0, best, chosen)
    return ops.sum(ops.one_hot(chosen, scores.shape[-1], dtype="float32") * scores, axis=-1)


def _class_scores(output: Any, places: Sequence[Place]) -> tuple[Any, Callable | None]:
    """The tensor of class scores, and what the model makes of it."""
    if len(output.shape) != 2 or output.shape[-1] is None:
        raise ValueError(f"explanations need class scores [n, classes], not {tuple(output.shape)}")
    last = None
    while last is None or _passes_on(last):
        end = output if last is None else last.inputs
        found = [p for p in places if p.output is end and not holds_layers(p.layer)]
        if not found:  # maps that are given in the place of a layer's output
            return output, None
        last = found[-1]
    activation = getattr(last.layer, "activation", last.layer)
    if isinstance(activation, keras.layers.Softmax):
        activation = keras.activations.softmax
    if activation not in _PROBABILITIES:
        return output, None
    scores = before_activation(last)
    if scores is last.output:
        raise ValueError(
            f"the scores before the {activation.__name__} of layer {last.path!r} are not known: "
            "it is no Dense, convolution or Activation"
        )
    if len(scores.shape) != 2:
        scores = keras.layers.Reshape((output.shape[-1],), dtype=scores.dtype)(scores)
    return scores, activation


def _passes_on(place: Place) -> bool:
    """Whether a layer gives, in inference, the class scores or probabilities that it is given."""
    layer = place.layer
    linear = (
        isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.linear
    )
    if not (linear or isinstance(layer, _PASSING)):
        return False
    *places, classes = place.inputs.shape[1:]
    return set(places) <= {1} and classes == place.output.shape[-1]

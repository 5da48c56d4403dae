"""Feature maps of an image, and images that filters respond to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.explain.network import Network, Place, channels_first, channels_last, opened
from keras_vgg.gradient import answer_of, gradient_of

_SIDE = 128  # pixels: the largest default side of an image for a filter of a map
_BLUR_EVERY = 4  # steps


def feature_maps(
    model: keras.Model, image: np.ndarray, layers: str | Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Return the feature maps of one image: name -> float32 [h, w, c].

    Args:
        model: As for `grad_cam`.
        image: [h, w, c], as the model takes it.
        layers: Names or paths, as for `grad_cam`. None: the last map before each pooling layer; in
            VGG, the last map of each block.

    Raises:
        ValueError: as for `grad_cam`.
    """
    network = opened(model)
    images = network.batch(np.asarray(image)[np.newaxis])
    layers = [layers] if isinstance(layers, str) else layers
    if layers is None:
        places = {place.path: place for place in network.block_ends()}
    else:
        places = {name: network.place(name) for name in layers}
    tensors = {name: place.output for name, place in places.items()}
    if not tensors:
        raise ValueError("feature_maps needs at least one layer")
    maps = answer_of(keras.Model([network.image], tensors), [ops.convert_to_tensor(images)])
    return {name: channels_last(maps[name])[0] for name in places}


def activation_maximization(
    model: keras.Model,
    layer: str | None,
    filters: Sequence[int],
    *,
    steps: int = 100,
    seed: int = 0,
    size: int | None = None,
    rate: float = 0.02,
    value_range: tuple[float, float] = (0.0, 255.0),
) -> np.ndarray:
    """Return images that maximize filters: float32 [len(filters), h, w, c] in [0, 255].

    Gradient ascent on a filter's mean output before its activation, from grey with a little noise
    (Erhan et al., Visualizing Higher-Layer Features of a Deep Network, 2009; for classes Simonyan
    et al., arXiv:1312.6034, section 2). Two measures suppress high-frequency noise: a small random
    shift before each step (Mordvintsev et al., Inceptionism, 2015), and a blur after every fourth
    step (Yosinski et al., arXiv:1506.06579).

    Args:
        model: As for `grad_cam`. With the preprocessing inside, it takes RGB in [0, 255].
        layer: The layer; for the model's last layer, the class scores. None: the last convolution.
        filters: Channels of the layer's feature map, or its units.
        steps: Number of steps.
        seed: Seed of the noise and the shifts.
        size: Side of the images, if the model or, for a feature map, the layer allows it. Default:
            the model's own side; for a feature map, at most 128 if the layer takes it.
        rate: Root mean square of a step, as a share of the value range.
        value_range: The least and the largest value that the model takes, if the preprocessing is
            not inside. They become 0 and 255.

    Raises:
        ValueError: an unknown layer or filter, a size that the layer does not take, a bad option.
    """
    network = opened(model)
    place = network.place(None) if layer is None else network.find(layer)
    low, high = value_range
    if steps < 1 or not rate > 0 or not low < high:
        raise ValueError(
            f"steps must be 1 or more, rate positive and value_range ascending, not {steps}, "
            f"{rate}, {value_range}"
        )
    answers = network.output_before_activation(place)
    shape = tuple(getattr(answers, "shape", ()))
    if len(shape) not in (2, 4):
        raise ValueError(
            f"layer {place.path!r} has no filters: it gives neither a map [n, h, w, c] nor units "
            f"[n, units] but {shape or 'several outputs'}"
        )
    is_map = len(shape) == 4
    channel = 1 if is_map and channels_first() else -1
    count = shape[channel]
    numbers = _filter_numbers(filters, count, place.path)
    front, shape = _front(network, answers, place, size)

    def answer(output: Any, chosen: Any) -> Any:
        one_hot = ops.one_hot(chosen, count, dtype="float32")
        mean = ops.cast(output, "float32")
        if is_map:
            mean = ops.mean(mean, axis=(2, 3) if channels_first() else (1, 2))
        return ops.sum(ops.multiply(one_hot, mean), axis=-1)

    climb = gradient_of(front, answer)
    random = np.random.default_rng(seed)
    rows, columns = (2, 3) if channels_first() else (1, 2)
    images = random.normal(0, 0.05, (1, *shape)).repeat(len(numbers), 0)  # the range is [-1/2, 1/2]
    chosen = ops.convert_to_tensor(numbers.astype("int32"))
    shift = max(1, min(shape[rows - 1], shape[columns - 1]) // 16)
    for step in range(steps):
        offset = random.integers(-shift, shift + 1, 2)
        images = np.roll(images, offset, (rows, columns))
        inputs = ((images + 0.5) * (high - low) + low).astype("float32")
        slope = climb([ops.convert_to_tensor(inputs)], chosen)[1]
        gradient = np.asarray(ops.convert_to_numpy(slope), "float64")
        length = np.sqrt(np.mean(gradient**2, axis=(1, 2, 3), keepdims=True))
        images = images + rate * np.divide(gradient, length, where=length > 0, out=0 * gradient)
        images = np.roll(images, -offset, (rows, columns))
        if step % _BLUR_EVERY == 0 and step < steps - 1:
            for axis in (rows, columns):
                images = _blurred(images, axis)
        images = np.clip(images, -0.5, 0.5)
    images = (255 * (images + 0.5)).astype("float32")
    return np.moveaxis(images, 1, -1) if channels_first() else images


def _filter_numbers(filters: Any, count: int, layer: str) -> np.ndarray:
    """Return filters as an array. ValueError: the layer has no such filters."""
    numbers = np.asarray(filters)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iu":
        raise ValueError(f"filters must be a list of whole numbers, not {numbers.tolist()}")
    if numbers.min() < 0 or numbers.max() >= count:
        raise ValueError(f"layer {layer!r} has filters 0 to {count - 1}, not {numbers.tolist()}")
    return numbers


def _front(
    network: Network, answers: Any, place: Place, size: int | None
) -> tuple[keras.Model, tuple[int, ...]]:
    """Return the model up to a layer, and the shape of an image for it."""
    front = keras.Model([network.image], answers)
    shape = list(network.image.shape[1:])
    sides = (1, 2) if channels_first() else (0, 1)
    own = [shape[side] for side in sides]
    if size is not None and size < 1:
        raise ValueError(f"size must be 1 or more, not {size}")
    is_default = size is None
    if size is None:
        size = min([_SIDE, *(side for side in own if side)]) if len(answers.shape) == 4 else None
    if size is None and None in own:
        raise ValueError(f"{network.name!r} takes images of any size: give size")
    if size is None or own == [size, size]:
        return front, tuple(shape)
    for side in sides:
        shape[side] = size
    image = keras.Input(shape)
    try:
        # Convolutions also take images that are not of the model's size.
        other = keras.models.clone_model(front, input_tensors=[image], clone_function=lambda x: x)
        cause, output_shape = None, other.outputs[0].shape[1:]
    except (ValueError, RuntimeError, TypeError) as error:  # TensorFlow's, PyTorch's, JAX's
        cause, output_shape = error, (0,)
    if any(side is not None and side < 1 for side in output_shape):
        if is_default and None not in own:  # such as fc1 of a convolutional head
            return front, tuple(network.image.shape[1:])
        or_own = "" if None in own else f", or the model's own, {own[0]} x {own[1]}"
        raise ValueError(
            f"layer {place.path!r} takes no image of size {size}: give a larger size{or_own}"
        ) from cause
    return other, tuple(shape)


def _blurred(images: np.ndarray, axis: int) -> np.ndarray:
    """Blur with 1/4, 1/2, 1/4 along an axis; the border's values continue beyond the border."""
    widths = [(0, 0)] * images.ndim
    widths[axis] = (1, 1)
    padded = np.pad(images, widths, mode="edge")
    side = images.shape[axis]
    before, here, after = (np.take(padded, range(i, i + side), axis) for i in range(3))
    return before / 4 + here / 2 + after / 4

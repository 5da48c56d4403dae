"""What a validation, and the kept model, have in place of the state of training.

These are the averages of the weights, if the recipe asks for them (`ema_momentum`), and batch
norm's moving averages, estimated anew where training has been too short for them, or where they
belong to other weights than the averaged ones.

A moving average begins at 0 or 1, and keeps momentum ** steps of that. After 20 steps with momentum
0.9 that is 12 %, and the averages also lag behind weights that change quickly: a network can be
right about every image in training and wrong about a third of the same images in evaluation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import keras
import numpy as np

from keras_vgg.backend import as_array, is_jax, is_tensorflow
from keras_vgg.fit.batch_norm import batch_norms
from keras_vgg.fit.color_step import colored
from keras_vgg.fit.optimizer import averaged_weights

_RESIDUE = 1e-3  # of the first value, from which on an average has settled
_BATCHES = 32  # that an estimate is the mean of


class Averages:
    """Averaged weights for a validation, and estimates in place of averages that do not fit.

    Training goes on with its own weights and averages: `leave` puts them back, bit for bit, so that
    a checkpoint holds them, and a run that is resumed goes on exactly. (Keras' SwapEMAWeights swaps
    by adding and subtracting, which rounds the weights on TensorFlow.)

    Args:
        batches: An epoch's number, from 0 -> training batches, (images, targets). None: nothing is
            estimated.
    """

    def __init__(self, batches: Callable[[int], Iterable[tuple[Any, Any]]] | None) -> None:
        self._batches = batches
        self._own: list[tuple[Any, np.ndarray]] = []
        self._rows: list[tuple[int, float]] = []
        self._statistics: Callable | None = None  # compiled for these rows

    def enter(self, model: keras.Model, epoch: int, batches_taken: int) -> None:
        """Put averaged weights, and estimates from this epoch's batches, into the model.

        Args:
            batches_taken: Training batches that batch norm's averages have seen.
        """
        if self._own:
            return
        # Copies: on JAX, a variable would share the array of its average, which a step deletes.
        averaged = [(v, _copied(average)) for v, average in averaged_weights(model)]
        self._replace(averaged)
        layers = unsettled(model, 0 if averaged else batches_taken)
        if layers and self._batches is not None:
            self._replace(self._estimates(model, layers, self._batches(epoch)))

    def _replace(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        """Assign values to variables, and keep what the variables held."""
        for variable, value in pairs:
            self._own.append((variable, _copied(variable)))
            variable.assign(value)

    def _estimates(
        self,
        model: keras.Model,
        layers: list[keras.layers.BatchNormalization],
        batches: Iterable[tuple[Any, Any]],
    ) -> list[tuple[Any, np.ndarray]]:
        """Return the moving averages of these layers, each with its estimate."""
        variables: list[Any] = [
            v for layer in layers for v in (layer.moving_mean, layer.moving_variance)
        ]
        places = {id(v): place for place, v in enumerate(model.non_trainable_variables)}
        # Where each average is among the other variables, and a batch's share in it.
        shares = [1.0 - layer.momentum for layer in layers for _ in ("mean", "variance")]
        rows = [(places[id(v)], share) for v, share in zip(variables, shares, strict=True)]
        if self._statistics is None or rows != self._rows:
            self._rows, self._statistics = rows, _compiled(partial(_batch_statistics, model, rows))
        batches = itertools.islice(batches, _BATCHES)
        values = _estimate(model, rows, self._statistics, batches)
        return [*zip(variables, values, strict=True)]

    def leave(self) -> None:
        """Put the weights and the averages of training back."""
        for variable, value in self._own:
            variable.assign(value)
        self._own = []


def _copied(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def unsettled(model: keras.Model, batches_taken: int) -> list[keras.layers.BatchNormalization]:
    """Return the batch norm layers whose averages still hold a part of their first values."""
    return [
        layer
        for layer in batch_norms(model)
        if layer.trainable and layer.momentum**batches_taken > _RESIDUE
    ]


def _batch_statistics(
    model: keras.Model, rows: list[tuple[int, float]], trainable: list, state: list, images: Any
) -> list:
    """Return the averages after a batch, which begin with `state`."""
    result: Any = model.stateless_call(trainable, state, images, training=True)
    return [result[1][place] for place, _ in rows]


def _estimate(
    model: keras.Model,
    rows: list[tuple[int, float]],
    statistics: Callable,
    batches: Iterable[tuple[Any, Any]],
) -> list[np.ndarray]:
    """Return mean and variance of each layer: the mean over the batches, with today's weights."""
    trainable = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.non_trainable_variables]
    for place, _ in rows:  # an average from 0 on is (1 - momentum) of its batch
        state[place] = keras.ops.zeros_like(state[place])
    sums = [np.zeros(model.non_trainable_variables[place].shape) for place, _ in rows]
    count = 0
    for images, *_ in batches:  # with class weights, a batch also has weights
        values = statistics(trainable, state, colored(_tensor(images)))
        for total, value in zip(sums, values, strict=True):
            total += as_array(value)
        count += 1
    return [total / share / count for total, (_, share) in zip(sums, rows, strict=True)]


def _compiled(function: Callable) -> Callable:
    if is_tensorflow():
        import tensorflow as tf

        return tf.function(function)
    if is_jax():
        import jax

        return jax.jit(function)
    return function


def _tensor(images: Any) -> Any:
    """Return a batch's images, or the pair of `color_step`, as tensors of the backend."""
    if is_tensorflow():
        return images
    if isinstance(images, tuple):
        return tuple(map(_tensor, images))
    return keras.ops.convert_to_tensor(np.asarray(images))

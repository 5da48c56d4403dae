"""The gradient of a network's output: the one thing of explanations that each backend says itself.

Keras has no function for it. What its public API has is one step of SGD on weights of zeros that
are added to the map. It gives the same numbers, from a model that must be compiled and traced for
every batch size; and on PyTorch it computes the gradient of all other weights too, which takes
three times as long, and leaves it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_vgg.backend import backend_name, is_torch

Gradient = Callable[[Sequence[Any], Any], tuple[Any, Any]]


def gradient_of(network: keras.Model, objective: Callable[[Any, Any], Any]) -> Gradient:
    """(inputs, chosen) -> the network's output, and how its objective changes with its last input.

    `objective` maps (output, chosen) to one number an image, [n]. No image influences another's, so
    the gradient of their sum is each one's own. The network is in inference, no weight or state of
    it changes, and it is compiled once where the backend compiles.

    Raises:
        NotImplementedError: Keras runs on a backend that is not TensorFlow, JAX or PyTorch.
    """
    backend = backend_name()
    if backend not in _BACKENDS:
        raise NotImplementedError(f"gradients are not known of Keras' backend {backend!r}")
    return _BACKENDS[backend](network, objective)


def answer_of(network: keras.Model, inputs: Sequence[Any]) -> Any:
    """The network's output, in inference; PyTorch keeps nothing of the way there."""
    if not is_torch():
        return network(inputs, training=False)
    import torch

    with torch.no_grad():
        return network(inputs, training=False)


def _on_tensorflow(network: keras.Model, objective: Callable) -> Gradient:
    import tensorflow as tf

    specs = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in network.inputs]

    @tf.function(input_signature=[specs, tf.TensorSpec([None], tf.int32)])
    def gradient(inputs, chosen):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs[-1])
            output = network(inputs, training=False)
            value = objective(output, chosen)
        return output, tape.gradient(
            value, inputs[-1], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )

    # Traced once, here: of functions made anew for each network TensorFlow warns as of retracing.
    traced = gradient.get_concrete_function()
    return lambda inputs, chosen: traced(list(inputs), chosen)


def _on_jax(network: keras.Model, objective: Callable) -> Gradient:
    import jax

    @jax.jit
    def gradient(weights, state, inputs, chosen):
        def value(last):
            given = [*inputs[:-1], last]
            # Weights are arguments: as constants they would be compiled in.
            output = network.stateless_call(weights, state, given, training=False)[0]
            return objective(output, chosen).sum(), output

        return jax.grad(value, has_aux=True)(inputs[-1])

    def call(inputs, chosen):
        weights = [v.value for v in network.trainable_variables]
        state = [v.value for v in network.non_trainable_variables]
        slope, output = gradient(weights, state, list(inputs), chosen)
        return output, slope

    return call


def _on_torch(network: keras.Model, objective: Callable) -> Gradient:
    import torch

    def gradient(inputs, chosen):
        last = inputs[-1].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            output = network([*inputs[:-1], last], training=False)
            # The sum over no elements adds 0, and a gradient of 0 where the score does not depend
            # on this layer.
            value = objective(output, chosen).sum() + last[:0].sum()
        # Unlike backward(), it leaves no gradient at the weights.
        return output.detach(), torch.autograd.grad(value, last)[0]

    return gradient


_BACKENDS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}

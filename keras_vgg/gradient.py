"""The gradient of a network's output, in the way of each backend.

Keras has no public function for a gradient. One step of SGD on zero weights that are added to the
map would give the same numbers. But that model must be compiled and traced for every batch size;
and PyTorch would also compute the gradients of all other weights, three times as slowly, and keep
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_vgg.backend import backend_name, is_torch

Gradient = Callable[[Sequence[Any], Any], tuple[Any, Any]]


def gradient_of(network: keras.Model, objective: Callable[[Any, Any], Any]) -> Gradient:
    """Return a function (inputs, chosen) -> (output, gradient by the last input).

    `objective` maps (output, chosen) to one number an image, [n]. No image influences the number of
    another, so the gradient of the sum holds each image's own gradient. The network runs in
    inference: no weight or state changes. It is compiled once if the backend compiles.

    Raises:
        NotImplementedError: Keras runs on a backend that is not TensorFlow, JAX or PyTorch.
    """
    backend = backend_name()
    if backend not in _BACKENDS:
        raise NotImplementedError(f"gradients need TensorFlow, JAX or PyTorch, not {backend!r}")
    return _BACKENDS[backend](network, objective)


def answer_of(network: keras.Model, inputs: Any) -> Any:
    """Return the network's output in inference, without PyTorch's record for gradients."""
    if not is_torch():
        return network(inputs, training=False)
    import torch

    with torch.no_grad():
        return network(inputs, training=False)


def answer_of_fixed(network: keras.Model, inputs: Any) -> Any:
    """Return the network's output in inference, which has gradients by the inputs.

    PyTorch would compute the gradients by the weights too, and keep them.
    """
    if not is_torch():
        return network(inputs, training=False)
    fixed = [(v, v.value.detach()) for v in network.variables]
    with keras.StatelessScope(state_mapping=fixed):
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

    # Trace now: TensorFlow would warn about retracing, as each network has a new function.
    traced = gradient.get_concrete_function()
    return lambda inputs, chosen: traced(list(inputs), chosen)


def _on_jax(network: keras.Model, objective: Callable) -> Gradient:
    import jax

    @jax.jit
    def gradient(weights, state, inputs, chosen):
        def value(last):
            # Weights are arguments: as constants they would be compiled in.
            all_inputs = [*inputs[:-1], last]
            output = network.stateless_call(weights, state, all_inputs, training=False)[0]
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
            # The sum of no elements adds 0. It gives a gradient of 0 if the score does not depend
            # on the last input, where PyTorch would raise an error.
            value = objective(output, chosen).sum() + last[:0].sum()
        # Unlike backward(), grad() stores no gradients at the weights.
        return output.detach(), torch.autograd.grad(value, last)[0]

    return gradient


_BACKENDS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}

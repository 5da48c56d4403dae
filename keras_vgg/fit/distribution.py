"""Training on several devices, with the same results as on one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from keras_vgg.backend import is_tensorflow
from keras_vgg.fit import hosts
from keras_vgg.fit.batch_norm import batch_norms
from keras_vgg.hardware import Engine


def scope(engine: Engine) -> contextlib.AbstractContextManager:
    """Return the context in which a model must be built and trained on the engine's devices.

    Each device computes an equal part of a batch, gradients are summed, and every device has all
    weights: `tf.distribute.MirroredStrategy`, or on JAX `keras.distribution.DataParallel`.
    """
    leave_gpus_to_jax()
    if not is_tensorflow():
        if engine.devices == (_default_device(),) and hosts.count() == 1:
            # A mesh of one device changes the type of every array in the first step, and JAX
            # compiles the step a second time.
            return contextlib.nullcontext()
        # Each host reads its own part of a batch.
        return keras.distribution.DataParallel(
            devices=list(engine.devices), auto_shard_dataset=False
        ).scope()
    first, *others = engine.devices
    if others:
        # Not the default, collective ops: those of batch norm and of the gradients get mixed up.
        on_gpus = first.startswith("gpu")
        reduction = tf.distribute.NcclAllReduce if on_gpus else tf.distribute.ReductionToOneDevice
        return tf.distribute.MirroredStrategy(list(engine.devices), reduction()).scope()
    if first == _default_device():
        return contextlib.nullcontext()
    return tf.distribute.OneDeviceStrategy(first).scope()


def leave_gpus_to_jax() -> None:
    """If Keras runs on JAX, keep TensorFlow, which reads the images, off the GPUs' memory."""
    if not is_tensorflow():
        with contextlib.suppress(RuntimeError):  # TensorFlow has started its devices already
            tf.config.set_visible_devices([], "GPU")


def _default_device() -> str:
    kinds = ("tpu", "gpu", "cpu")
    return min(keras.distribution.list_devices(), key=lambda name: kinds.index(name[:3]))


@contextlib.contextmanager
def on_this_host_alone() -> Iterator[None]:
    """Let one host use a model of its own: on JAX, a shared model needs all hosts."""
    if is_tensorflow():
        yield
        return
    shared = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(shared)


def synchronize(model: keras.Model, engine: Engine) -> None:
    """Let batch normalisation compute the statistics over the images of all devices.

    On JAX, a batch is one array, so there is nothing to do.
    """
    if len(engine.devices) > 1 and is_tensorflow():
        for layer in batch_norms(model):
            layer.synchronized = True


@contextlib.contextmanager
def portable(model: keras.Model) -> Iterator[None]:
    """Remove the devices of the training from a model's configuration, for the time of a save."""
    changed = [layer for layer in batch_norms(model) if layer.synchronized]
    for layer in changed:
        layer.synchronized = False
    try:
        yield
    finally:
        for layer in changed:
            layer.synchronized = True

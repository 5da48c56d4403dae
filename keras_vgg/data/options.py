"""The options of every tf.data pipeline of this package."""

from __future__ import annotations

import tensorflow as tf


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return the data set without tf.data's autotuner: AUTOTUNE is then one call for each core.

    The tuner's thread sleeps for 10 ms, then twice as long each time, up to a minute, and in
    TensorFlow 2.21 the end of an iterator often waits until it wakes: an evaluation of 0.8 s took
    1.3 s, and a training of 41 s returned after 82 s. On the pipelines of this package it gained
    nothing (training/README.md).
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)

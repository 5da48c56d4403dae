"""Colour augmentation as the first operation of a training step, on the device that trains.

An input pipeline spends a quarter of its time on the colours of an image of 224x224.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_vgg import augment
from keras_vgg.backend import is_tensorflow
from keras_vgg.recipe import BATCH_AUGMENTATIONS, Recipe

# XLA goes over the images once: a CPU takes a ninth of the time of the operations one by one.
_color = augment.color_batch
if is_tensorflow():
    _color = tf.function(_color, jit_compile=True, autograph=False)

_COLORS = ("brightness", "contrast", "saturation", "hue", "rgb_shift")


def is_possible(recipe: Recipe) -> bool:
    """Return whether the recipe changes colours, nothing after them, and allows XLA."""
    later = any(getattr(recipe, name) for name in ("cutout", *BATCH_AUGMENTATIONS))
    changes = any(getattr(recipe, name) for name in _COLORS)
    return changes and not later and recipe.jit != "off"


def colored(images: Any) -> Any:
    """Return (images, amounts) as `augment.color_batch` colours them, and images as they are."""
    return _color(*images) if isinstance(images, tuple | list) else images


def color_first(model: keras.Model) -> None:
    """Let a compiled model train on images that come with the amounts of their colours.

    Its training steps take `augment.train_image_uncolored`'s pairs in place of images.
    Only this model object changes. Validation and prediction take images, as before.
    """
    plain_step = model.train_step

    def train_step(*arguments: Any) -> Any:
        *state, (images, *rest) = arguments  # only Keras on JAX hands on a state
        return plain_step(*state, (colored(images), *rest))

    model.train_step = train_step
    # Keras would build the metrics from the first batch, whose images are a pair.
    images = keras.KerasTensor((2, *model.input_shape[1:]))
    targets = keras.KerasTensor((2, model.output_shape[-1]))
    model._symbolic_build(data_batch=(images, targets))

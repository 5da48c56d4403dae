"""From a recipe to a compiled network with initial weights and preprocessing."""

from __future__ import annotations

import math
from pathlib import Path

import keras
import numpy as np

from keras_vgg import data, hardware
from keras_vgg import weights as weight_files
from keras_vgg.architecture import convolutions
from keras_vgg.augment.color import LUMA
from keras_vgg.fit.batch_norm import fuse
from keras_vgg.fit.metrics import loss_for, metrics_for
from keras_vgg.fit.optimizer import optimizer_for
from keras_vgg.fit.single_pass import shorten_weight_decay
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.models import vgg
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run

# Section 3.1: deeper nets take "the first four convolutional layers" of A (block1_conv1,
# block2_conv1, block3_conv1 and block3_conv2), and its three fully connected layers.
_FROM_A = tuple(name for name, *_ in convolutions("A"))[:4]
_PAPERS_DEVIATION = 0.1  # variance 1e-2


def initial_weights(recipe: Recipe) -> weight_files.Weights | None:
    """Return the weights of `recipe.init`, or of the run that `recipe.initialization` names.

    Returns:
        The weights; None: the recipe names neither.

    Raises:
        ValueError, OSError: as `keras_vgg.weights.obtain`; the recipe names both; `initialization`
            is neither an initializer nor a run.
    """
    name = recipe.initialization
    if initializer_of(name) is not None:
        if recipe.init is None:
            return None
        return weight_files.obtain(
            recipe.init,
            recipe.configuration,
            batch_norm=recipe.batch_norm,
            include_top=_keeps_head(recipe),
        )
    if recipe.init is not None:
        raise ValueError(
            f"init={recipe.init!r} gives the weights of every layer; initialization={name!r} would "
            "replace some of them: choose one"
        )
    if not (Path(name) / "recipe.json").is_file():
        raise ValueError(
            "initialization must be normal, normal:SD, glorot, a Keras initializer such as "
            f"he_normal, or a run directory, not {name!r}"
        )
    run = Run.open(name)
    if not run.finished:
        raise ValueError(f"initialization={name!r} has not finished training; resume it first")
    if run.recipe.head != recipe.head:
        raise ValueError(
            f"initialization={name!r} has head={run.recipe.head!r}, this recipe {recipe.head!r}: "
            "the classifier's weights do not fit; use the same head"
        )
    weights = weight_files.read_weights(name)
    used_layers = {layer for conv in _FROM_A for layer in (conv, f"{conv}_bn")}
    return weights.without(tuple(weights.tensors.keys() - used_layers - {*weight_files.TOP}))


def _keeps_head(recipe: Recipe) -> bool:
    """Return whether layers of the classifier of `recipe.init` are loaded."""
    return recipe.init_head not in ("none", "probe")


def initializer_of(name: str) -> str | dict | None:
    """Return an initializer's name or configuration for Keras; None: `name` is no initializer."""
    if name == "glorot":
        return "glorot_uniform"
    if name == "normal" or name.startswith("normal:"):
        # A configuration, because an instance draws the same numbers for all layers of a shape.
        deviation = _deviation(name)
        return {"class_name": "RandomNormal", "config": {"mean": 0.0, "stddev": deviation}}
    # Not keras.initializers.get: making an initializer draws from the global seed.
    candidate = getattr(keras.initializers, name, None)
    base = keras.initializers.Initializer
    known = isinstance(candidate, type) and issubclass(candidate, base) and candidate is not base
    return name if known else None


def _deviation(name: str) -> float:
    _, colon, written = name.partition(":")
    if not colon:
        return _PAPERS_DEVIATION
    try:
        deviation = float(written)
    except ValueError:
        deviation = math.nan
    if not 0 < deviation < math.inf:
        raise ValueError(
            f"initialization={name!r} needs a positive standard deviation after the colon, such as "
            "normal:0.01"
        )
    return deviation


def _first_initializer(recipe: Recipe) -> str | dict:
    """Return the initializer that `recipe.initialization`, or the run of that name, states."""
    name = recipe.initialization
    while (initializer := initializer_of(name)) is None:
        name = Run.open(name).recipe.initialization
    return initializer


def build_model(
    recipe: Recipe,
    classes: int,
    statistics: data.ChannelStatistics,
    precision: str = "float32",
    initial: weight_files.Weights | None = None,
    several_labels: bool = False,
) -> keras.Model:
    """Build the recipe's network, which takes RGB images in [0, 255], float32 [n, size, size, 3].

    With color="grey", the images have one channel. A network with pretrained weights repeats the
    channel after its input, and a network without has a first convolution for one channel.

    Args:
        recipe: The recipe.
        classes: The number of classes.
        statistics: The training split's statistics, for the preprocessing.
        precision: A Keras dtype policy.
        initial: The weights from `initial_weights`; their preprocessing replaces the statistics.
        several_labels: Whether an image may have several labels: the network then ends in a
            sigmoid for each class in place of a soft-max.
    """
    # Keras adds l * sum(w^2), whose gradient is 2 l w; the paper's decay adds wd * w. The decay of
    # the other optimizers is decoupled from the gradient: `optimizer_for`.
    coupled_decay = recipe.weight_decay if recipe.optimizer == "sgd" else 0.0
    decay = keras.regularizers.L2(coupled_decay / 2) if coupled_decay else None
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = vgg(
            recipe.configuration,
            weights=None,
            classes=classes,
            **recipe.network_options(),
            dropout=recipe.dropout,
            classifier_activation="sigmoid" if several_labels else "softmax",
            kernel_initializer=_first_initializer(recipe),
            kernel_regularizer=decay,
            include_preprocessing=_preprocessing(recipe, statistics, initial),
        )
    finally:
        keras.config.set_dtype_policy(policy)
    if initial is not None:
        first = model.get_layer("block1_conv1")
        channels_axis = 1 if keras.config.image_data_format() == "channels_first" else -1
        initial = weight_files.for_channels(initial, first.input.shape[channels_axis])
        weighted = [layer.name for layer in model.layers if layer.weights]
        if recipe.init is None:
            new = [name for name in weighted if name not in initial.tensors]
        else:
            new = {"hidden": ("predictions",), "all": ()}.get(recipe.init_head, weight_files.TOP)
        weight_files.assign(model, initial, drop=[name for name in weighted if name in new])
    return model


def _preprocessing(
    recipe: Recipe, statistics: data.ChannelStatistics, initial: weight_files.Weights | None
) -> ImagePreprocessing:
    order = "rgb"
    # A constant channel must not lead to a division by zero.
    mean, std = statistics.mean, np.maximum(statistics.std, 1.0)
    if initial is not None:
        stated = initial.preprocessing
        if stated is not None:
            order, mean, std = stated.channel_order, stated.mean, stated.std
        elif recipe.mean_rgb is None:
            advice = initial.input_advice(include_top=_keeps_head(recipe))
            raise ValueError(f"{advice}; or, if it takes RGB or luma, give mean_rgb and std_rgb")
    mean = mean if recipe.mean_rgb is None else recipe.mean_rgb
    std = std if recipe.std_rgb is None else recipe.std_rgb
    if recipe.color == "grey" and _takes_one_channel(initial):
        # The luma of the means is the mean of the lumas; the deviations of the channels bound that
        # of the luma, and equal it for grey images.
        mean, std = (np.dot(LUMA, v) if len(v) == 3 else v for v in (mean, std))
    mean, std = (np.ravel(values).astype(float).tolist() for values in (mean, std))
    return ImagePreprocessing(mean, std, order, name="preprocessing")


def _takes_one_channel(initial: weight_files.Weights | None) -> bool:
    """Return whether the first convolution of a network for grey images takes one channel.

    It does without weights, and with weights of such a network.
    """
    kernels = initial.tensors.get("block1_conv1", []) if initial is not None else []
    return not kernels or (kernels[0].ndim == 4 and kernels[0].shape[2] == 1)


def compile_model(
    model: keras.Model, recipe: Recipe, engine: hardware.Engine, several_labels: bool = False
) -> None:
    """Compile for targets [n, classes]: optimizer, loss and metrics of the recipe.

    Loss and metrics use the weights of validation images.
    """
    optimizer = optimizer_for(recipe)
    fuse(model)
    shorten_weight_decay(model, optimizer)
    model.compile(
        optimizer=optimizer,
        loss=loss_for(recipe, several_labels),
        weighted_metrics=metrics_for(recipe, model.output_shape[-1], several_labels),
        # Keras annotates its default, "auto", and documents True and False.
        jit_compile=engine.jit_compile,  # pyright: ignore[reportArgumentType]
    )

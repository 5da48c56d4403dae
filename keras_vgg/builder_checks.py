"""Checks of the builders' arguments, before a layer is made or a file read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_vgg import weights as weight_files
from keras_vgg.architecture import MINIMUM_SIZE, check_options
from keras_vgg.image_paths import expanded

DEFAULT_SIZE = 224  # sides of the paper's input, in pixels
OUTPUT_STRIDES = (8, 16, 32)


def check_arguments(
    weights: Any,
    include_top: bool,
    classes: int,
    head: str,
    pooling: str | None,
    width_multiplier: float,
    hidden_units: int,
    dropout: float,
) -> None:
    """Raise a ValueError if the arguments contradict each other or the checkpoint."""
    if isinstance(weights, weight_files.Weights):
        raise ValueError(
            "`weights` must name the weights, such as a file: build the network with weights=None, "
            "and pass what read_weights returns to keras_vgg.weights.assign(model, weights)"
        )
    published = weights in weight_files.NAMES
    if weights is not None and not published and weight_files.hub_repository(weights) is None:
        _require_file(weights)
    if published and include_top and classes != 1000:
        raise ValueError(
            f"with `weights={weights!r}` and `include_top=True`, `classes` must be 1000, "
            f"not {classes}"
        )
    if published and width_multiplier != 1:
        raise ValueError(
            f"`weights={weights!r}` needs `width_multiplier=1`, not {width_multiplier}"
        )
    if published and include_top and (head == "gap" or hidden_units != 4096):
        raise ValueError(
            f"`weights={weights!r}` with its classifier needs head='fc' or 'conv' and "
            f"hidden_units=4096, not {head!r} and {hidden_units}; use include_top=False"
        )
    check_options(classes, head, pooling, width_multiplier, hidden_units)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout}")


def check_filters(weights: Any, width_multiplier: float, filters: Sequence[int]) -> None:
    if len(filters) and weights in weight_files.NAMES:
        raise ValueError(f"`weights={weights!r}` has the paper's widths; leave out `filters`")
    if len(filters) and width_multiplier != 1:
        raise ValueError(
            f"pass filters={tuple(filters)} or width_multiplier={width_multiplier}, not both"
        )


def check_output_stride(output_stride: int, include_top: bool) -> None:
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, not {output_stride!r}")
    if include_top and output_stride != 32:
        raise ValueError(
            f"output_stride={output_stride} is for a feature map: pass include_top=False. The "
            "classifier sees cells that are 32 pixels apart; `keras_vgg.dense.reduced_fc` puts it "
            "behind a denser map"
        )


def _require_file(weights: str | Path) -> None:
    if not expanded(weights).exists():
        error = FileNotFoundError if Path(weights).suffix else ValueError
        raise error(
            "`weights` must be None (random), 'imagenet', 'torchvision', hf://OWNER/NAME, or the "
            f"path of a weight file; there is no file {str(weights)!r}"
        )


def check_activation(classifier_activation: Any, published: bool) -> None:
    """Check the activation of a classifier whose weights are loaded.

    Weights of your own may give an image several labels, and not every format states it.
    """
    names = ("softmax",) if published else ("softmax", "sigmoid")
    allowed = {keras.activations.get(name) for name in (*names, None)}
    if keras.activations.get(classifier_activation) not in allowed:
        raise ValueError(
            "with pretrained weights and `include_top=True`, `classifier_activation` must be "
            f"{', '.join(map(repr, names))} or None, not {classifier_activation}"
        )


def check_labels(classifier_activation: Any, source: str) -> None:
    """Refuse a soft-max over weights that give an image several labels."""
    if keras.activations.get(classifier_activation) is keras.activations.get("softmax"):
        raise ValueError(
            f"{source} gives an image several labels, each with a sigmoid; pass "
            "classifier_activation='sigmoid', or None for logits"
        )


def warn_of_preprocessing(weights: Any, configuration: str, batch_norm: bool) -> None:
    """Warn if "imagenet" means weights that `preprocess_input` does not suit by default."""
    if weights != "imagenet":
        return
    checkpoint = weight_files.find(weights, configuration, batch_norm, include_top=False)
    if checkpoint.preprocessing != "caffe":
        mode = checkpoint.preprocessing
        warnings.warn(
            f"weights='imagenet' of {checkpoint.network} are {checkpoint.source}'s: preprocess "
            f"with mode={mode!r}, or pass include_preprocessing=True (weights={mode!r} names "
            "the same file without this warning)",
            stacklevel=3,
        )


def _sides(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    return shape[1:] if keras.config.image_data_format() == "channels_first" else shape[:2]


def known_sides(shape: tuple[int | None, ...]) -> tuple[int, int]:
    """Return an image's height and width; an unknown one is 224."""
    height, width = _sides(shape)
    return height or DEFAULT_SIZE, width or DEFAULT_SIZE


def checked_input_shape(
    shape: tuple[int | None, ...] | None, input_tensor: Any, weights: Any, flatten: bool
) -> tuple[int | None, ...]:
    """Check `input_shape` as keras.applications does, and return it or its default."""
    channels_first = keras.config.image_data_format() == "channels_first"
    if shape is None and input_tensor is not None:
        shape = tuple(input_tensor.shape[1:])
    if shape is None:
        side = DEFAULT_SIZE if flatten else None
        return (3, side, side) if channels_first else (side, side, 3)
    if len(shape) != 3:
        raise ValueError(f"`input_shape` must be a tuple of three integers, not {shape}")
    channels = shape[0] if channels_first else shape[2]
    if channels is None:
        raise ValueError(f"`input_shape` must state the channels, not {shape}")
    published = weights in weight_files.NAMES
    if published and flatten and _sides(shape) != (DEFAULT_SIZE, DEFAULT_SIZE):
        raise ValueError(
            f"with `include_top=True` and `weights={weights!r}`, `input_shape` must be "
            f"{(channels, 224, 224) if channels_first else (224, 224, channels)}, not {shape}"
        )
    if channels not in (1, 3, 4):
        warnings.warn(
            f"images usually have 1, 3 or 4 channels; input_shape={shape} has {channels}",
            stacklevel=3,
        )
    if any(side is not None and side < MINIMUM_SIZE for side in _sides(shape)):
        raise ValueError(
            f"input must be at least {MINIMUM_SIZE}x{MINIMUM_SIZE}, not `input_shape={shape}`: "
            "five 2x2 pools leave nothing of a smaller one. Pad small images, as "
            "keras_vgg.augment.eval_image does"
        )
    if flatten and None in _sides(shape):
        raise ValueError(
            f"with `include_top=True` and head='fc', `input_shape` must be known, not {shape}; "
            "head='conv' and head='gap' take any size"
        )
    return tuple(shape)

"""Frozen blocks, and the outputs of several layers in one pass."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import keras

BLOCKS = ("block1", "block2", "block3", "block4", "block5")


def freeze(model: keras.Model, until: str) -> tuple[str, ...]:
    """Freeze the blocks before `until`, so that training does not change them.

    Call this before `compile`. A frozen batch normalisation uses its statistics and does not change
    them.

    Args:
        model: A VGG.
        until: "none" or "block1": freeze nothing. "block2" to "block5": freeze the blocks before
            this one. "all": freeze all blocks and train only the classifier.

    Returns:
        The names of the frozen layers that have weights.

    Raises:
        ValueError: an unknown `until`; the model's own layers are not those of a VGG.
    """
    frozen_blocks = {"none": 0, "all": len(BLOCKS)} | {b: i for i, b in enumerate(BLOCKS)}
    if until not in frozen_blocks:
        raise ValueError(f"until must be one of {', '.join(frozen_blocks)}, not {until!r}")
    blocks = {layer: re.match(r"block(\d)_", layer.name) for layer in model.layers}
    if frozen_blocks[until] and not any(blocks.values()):
        raise ValueError(f"{model.name} has no layers block1_...: freeze the VGG that it holds")
    model.trainable = True  # if this is False, Keras trains none of the layers
    for layer, block in blocks.items():
        layer.trainable = not (block and int(block[1]) <= frozen_blocks[until])
    return tuple(layer.name for layer in model.layers if layer.weights and not layer.trainable)


def feature_extractor(
    model: keras.Model, layers: str | Iterable[str], pooling: str | int | None = None
) -> keras.Model:
    """Return a model from images to {layer name: output}, for several layers in one pass.

    Args:
        model: A VGG. The extractor shares its weights.
        layers: Names, such as "block4_pool".
        pooling: None: feature maps stay as they are, [n, h, w, c]. "avg" or "max": pool over the
            map, [n, c]. A number g: average over a grid of g x g parts, [n, g*g*c] in the order
            row, column, channel. Outputs that are not maps stay as they are.

    Raises:
        ValueError: there is no layer, a layer is unknown or named twice; an unknown pooling; a map
            is smaller than the grid, not divisible by it, or of unknown size.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"layers must be one or more different names, not {names}")
    if not (pooling in (None, "avg", "max") or (type(pooling) is int and pooling > 0)):
        raise ValueError(f"pooling must be None, 'avg', 'max' or a number, not {pooling!r}")
    outputs = {}
    for name in names:
        output: Any = _layer(model, name).output
        if len(output.shape) == 4:
            output = _pooled(output, pooling, name)
        outputs[name] = output
    return keras.Model(model.inputs[0], outputs, name=f"{model.name}_features")


def channel_axis() -> int:
    """Return the axis of the channels in a batch of images or maps."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def _layer(model: keras.Model, name: str) -> keras.layers.Layer:
    known = [layer.name for layer in model.layers]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{model.name} has no layer {name!r}{hint}")
    return model.get_layer(name)


def _pooled(feature_map: Any, pooling: str | int | None, name: str) -> Any:
    if pooling is None:
        return feature_map
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name=f"{name}_avg")(feature_map)
    if pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name=f"{name}_max")(feature_map)
    assert isinstance(pooling, int), "feature_extractor checks it"
    first = channel_axis() == 1
    height, width = feature_map.shape[2:] if first else feature_map.shape[1:3]
    if None in (height, width) or min(height, width) < pooling:
        raise ValueError(
            f"a grid of {pooling} x {pooling} needs a map of known size, at least as large as the "
            f"grid; {name} gives {height} x {width}"
        )
    window = (height // pooling, width // pooling)
    x = keras.layers.AveragePooling2D(window, name=f"{name}_grid")(feature_map)
    if first:
        x = keras.layers.Permute((2, 3, 1), name=f"{name}_rows")(x)
    x = keras.layers.Reshape((-1, x.shape[-1]), name=f"{name}_parts")(x)
    # A map that is not a multiple of the grid gives more parts.
    if x.shape[1] != pooling**2:
        raise ValueError(
            f"{name} gives {height} x {width}, which {pooling} x {pooling} parts do not divide"
        )
    return keras.layers.Flatten(name=f"{name}_flat")(x)

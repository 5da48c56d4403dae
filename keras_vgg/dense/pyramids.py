"""The feature maps of a VGG at several strides, by the names that detection libraries use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from keras_vgg.architecture import block_of


@keras.saving.register_keras_serializable("keras_vgg")
class FeaturePyramid(keras.Model):
    """A model from images to {"P2": feature map, ...}; see `pyramid`."""

    @property
    def pyramid_outputs(self) -> dict[str, Any]:
        """The Keras tensor of each level, as the backbones of KerasHub have it."""
        return dict(self.output)


def pyramid(
    model: keras.Model, levels: str | Iterable[str] | None = None, name: str | None = None
) -> FeaturePyramid:
    """Return a model from images to {level: feature map}, such as {"P3": ..., "P4": ...}.

    Level Pn is the last feature map whose cells are 2**n pixels apart: what the last layer before a
    pool gives, after its ReLU, as in Feature Pyramid Networks (arXiv:1612.03144). So P2 of VGG-16
    is block3_conv3, P4 is block5_conv3, and P5 is block5_pool. With `output_stride=8`, P3 is
    block5_pool.

    The result has the attribute `pyramid_outputs`, so KerasHub's detectors take it as
    `image_encoder`.

    Args:
        model: A VGG, with or without the top. The result shares its weights.
        levels: One or more names from "P0" to "P5". None: all levels of the model.
        name: The result's name. None: the model's name with "_pyramid".

    Raises:
        ValueError: the model is no VGG, or does not have a level; no level, or one twice.
    """
    maps = maps_of(model)
    names = [levels] if isinstance(levels, str) else list(maps if levels is None else levels)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"levels must be one or more different names, not {names}")
    unknown = [str(level) for level in names if level not in maps]
    if unknown:
        raise ValueError(f"{model.name} has the levels {', '.join(maps)}, not {unknown[0]}")
    outputs = {level: maps[level] for level in names}
    return FeaturePyramid(model.inputs[0], outputs, name=name or f"{model.name}_pyramid")


def maps_of(model: keras.Model) -> dict[str, Any]:
    """Return {"P0": Keras tensor, ...}: the last map of a VGG at each stride, the finest first.

    Raises:
        ValueError: the model's own layers are not those of a VGG.
    """
    stride, maps = 1, {}
    for layer in trunk_of(model):
        stride *= max(getattr(layer, "strides", (1,)))
        maps[f"P{stride.bit_length() - 1}"] = layer.output
    return maps


def stride_of(model: keras.Model) -> int:
    """Return the pixels between neighbouring cells of a VGG's last feature map."""
    return 2 ** int(list(maps_of(model))[-1][1:])


def trunk_of(model: keras.Model) -> list[keras.Layer]:
    """Return a VGG's layers from block1 to block5, in order. Raise ValueError for other models."""
    layers = [layer for layer in getattr(model, "layers", ()) if block_of(layer.name)]
    if not layers:
        raise ValueError(
            f"{getattr(model, 'name', model)!r} has no layers block1_...: pass the VGG itself, "
            "such as vgg(..., include_top=False)"
        )
    return layers

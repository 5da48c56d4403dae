"""The convolutions of a VGG under a dense network: pools that suit maps of any size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_vgg.models import vgg

# Caffe's pools keep the last row and column of an odd map. Keras' pools do so if they pad.
CEIL_MODE = {"padding": "same"}


def encoder(
    configuration: str,
    weights: str | Path | None,
    input_shape: tuple[int | None, ...] | None,
    pools: Mapping[str, Mapping[str, Any]],
    **options: Any,
) -> keras.Model:
    """Return `vgg(..., include_top=False)` with other pools.

    Args:
        configuration, weights, input_shape: As `keras_vgg.vgg`.
        pools: Name of a pool -> the options of the layer that differ, such as CEIL_MODE.
        options: More arguments of `keras_vgg.vgg`.

    Raises:
        ValueError: as `keras_vgg.vgg`; or Keras' data format is "channels_first".
    """
    require_channels_last()
    model = vgg(
        configuration, include_top=False, weights=weights, input_shape=input_shape, **options
    )

    def copy(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), **pools.get(layer.name, {})})

    result = keras.models.clone_model(model, clone_function=copy)
    result.set_weights(model.get_weights())
    return result


def require_channels_last() -> None:
    """Raise ValueError if Keras' images have their channels first."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "networks of keras_vgg.dense take images with channels last; call "
            "keras.config.set_image_data_format('channels_last') before you build one"
        )

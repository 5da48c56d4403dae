"""Gram matrices: which features occur together, wherever they are in an image."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_vgg.features import channel_axis


def gram_matrix(feature_map: Any) -> Any:
    """Return the Gram matrices [n, c, c] float32 of feature maps [n, h, w, c].

    An entry is the sum over the map of the product of two channels, divided by h x w x c (Johnson
    et al., arXiv:1603.08155, equation 3).
    """
    if len(feature_map.shape) != 4:
        raise ValueError(f"a Gram matrix needs a map [n, h, w, c], not {tuple(feature_map.shape)}")
    features: Any = ops.cast(feature_map, "float32")
    if channel_axis() == 1:
        features = ops.moveaxis(features, 1, -1)
    shape: Any = ops.shape(features)
    count, height, width, channels = shape
    rows: Any = ops.reshape(features, (count, height * width, channels))
    # Divided first: the sum over a large map would lose digits, and may overflow.
    root: Any = ops.sqrt(ops.cast(height * width * channels, "float32"))
    rows = rows / root
    return ops.matmul(ops.transpose(rows, (0, 2, 1)), rows)

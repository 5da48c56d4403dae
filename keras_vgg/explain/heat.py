"""Heat: one number a pixel; brought to a size, to [0, 1], and over a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] -> float32 [height, width], bilinear; the outer pixels' centres keep their values."""
    if heat.shape == tuple(size):
        return np.asarray(heat, "float32")
    picture = Image.fromarray(np.asarray(heat, "float32"))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def scaled(heat: np.ndarray) -> np.ndarray:
    """[h, w], 0 or more -> float32 in [0, 1]: divided by its maximum, if that is not 0."""
    most = heat.max()
    return (heat / most if most > 0 else np.zeros_like(heat)).astype("float32")


_PIXELS = 2**18  # that are floats at a time: about 100 bytes each
_ROUNDING = 0.01  # by which resampling as float32 may leave [0, 255]


def overlay(image: np.ndarray, heat: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Heat over a picture, at the picture's size: uint8 [h, w, 3].

    Colours are matplotlib's inferno, whose lightness grows with the heat: cold is dark, hot bright,
    also in grey and to the colour-blind.

    Args:
        image: [h, w, 3] RGB, or grey [h, w, 1] or [h, w], in [0, 255].
        heat: [h', w'] in [0, 1], brought to the picture's size bilinearly. NaN: a place that the
            model did not see; the picture is shown there dimmed and grey.
        alpha: How much of the colour is the heat's, in [0, 1].

    Raises:
        ValueError: another shape, range or `alpha`.
    """
    import matplotlib

    image, heat = np.asarray(image), np.asarray(heat, "float32")
    if image.ndim == 2:
        image = image[..., np.newaxis]
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or heat.ndim != 2:
        raise ValueError(
            f"overlay needs an image [h, w, 3 or 1] and heat [h, w], not {image.shape} and "
            f"{heat.shape}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], not {alpha}")
    if not (image.min() >= -_ROUNDING and image.max() <= 255 + _ROUNDING):
        raise ValueError("overlay needs an image in [0, 255]")
    if np.fmin.reduce(heat, None) < 0 or np.fmax.reduce(heat, None) > 1:  # of those that are no NaN
        raise ValueError("overlay needs heat in [0, 1]")
    size = image.shape[:2]
    if heat.shape != size:
        unseen = resized(np.isnan(heat), size) > 0.5
        heat = np.where(unseen, np.float32(np.nan), resized(np.nan_to_num(heat), size))
    image, heat = image.reshape(-1, image.shape[-1]), heat.reshape(-1)
    inferno = matplotlib.colormaps["inferno"]
    drawn = np.empty((len(image), 3), "uint8")
    for start in range(0, len(image), _PIXELS):
        part = slice(start, start + _PIXELS)
        picture = np.repeat(image[part].astype("float32"), 3 // image.shape[-1], axis=-1)
        mixed = (1 - alpha) * picture + alpha * 255 * inferno(np.nan_to_num(heat[part]))[:, :3]
        grey = (1 - alpha) * picture.mean(-1, keepdims=True)
        mixed = np.where(np.isnan(heat[part])[:, np.newaxis], grey, mixed)
        drawn[part] = np.clip(mixed + 0.5, 0, 255).astype("uint8")
    return drawn.reshape(*size, 3)

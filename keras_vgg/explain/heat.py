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
    unseen = np.isnan(heat)
    if (heat[~unseen] < 0).any() or (heat[~unseen] > 1).any():
        raise ValueError("overlay needs heat in [0, 1]")
    size = image.shape[:2]
    picture = np.repeat(image.astype("float32"), 3 // image.shape[-1], axis=-1)
    colours = matplotlib.colormaps["inferno"](resized(np.nan_to_num(heat), size))[..., :3] * 255
    mixed = (1 - alpha) * picture + alpha * colours
    if unseen.any():
        grey = (1 - alpha) * picture.mean(-1, keepdims=True)
        mixed = np.where(resized(unseen, size)[..., np.newaxis] > 0.5, grey, mixed)
    return np.clip(mixed + 0.5, 0, 255).astype("uint8")

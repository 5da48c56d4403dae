"""Heat, which is one number a pixel: resize it, scale it to [0, 1], draw it over a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize heat [h, w] bilinearly to `size`, float32."""
    if heat.shape == tuple(size):
        return np.asarray(heat, "float32")
    picture = Image.fromarray(np.asarray(heat, "float32"))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def scaled(heat: np.ndarray) -> np.ndarray:
    """Divide heat [h, w], 0 or more, by its maximum: float32 in [0, 1]. Zeros stay zeros."""
    largest = heat.max()
    return (heat / largest if largest > 0 else np.zeros_like(heat)).astype("float32")


_PIXELS = 2**18  # pixels drawn at a time, in about 100 bytes each
_ROUNDING = 0.01  # resampling as float32 can exceed [0, 255] by this


def overlay(image: np.ndarray, heat: np.ndarray, alpha: float = 0.5) -> np.ndarray:
    """Return a picture with heat over it: uint8 [h, w, 3], the picture's size.

    The colours are Matplotlib's inferno: hotter is lighter, also in grey and for the colour-blind.

    Args:
        image: [h, w, 3] RGB, or grey [h, w, 1] or [h, w], in [0, 255].
        heat: [h', w'] in [0, 1], which is resized to the picture bilinearly. NaN: a place that the
            model did not see; the picture is dimmed and grey there.
        alpha: The heat's share of the colour, in [0, 1].

    Raises:
        ValueError: a wrong shape, range or `alpha`.
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
    if np.fmin.reduce(heat, None) < 0 or np.fmax.reduce(heat, None) > 1:  # ignores NaN
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

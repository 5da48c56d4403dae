"""Compose scenes, photographs with articles of clothing on them, for the scripts beside this."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes

from keras_vgg import data


def photographs(folder: Path, seed: int) -> list[Path]:
    """Return the photographs of a folder in a random order. ValueError: fewer than 10."""
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(paths) < 10:
        raise ValueError(f"{folder} has {len(paths)} photographs; 10 or more are needed")
    return [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]


def photo(path: Path, side: int) -> Image.Image:
    """Open a photograph, and bring its smallest side to `side` pixels."""
    image = Image.fromarray(data.load_image(path))
    scale = side / min(image.size)
    width, height = (max(side, round(s * scale)) for s in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def background(photos: list[Image.Image], side: int, random: np.random.Generator) -> np.ndarray:
    """Return a random square part of a random photograph, uint8 [side, side, 3]."""
    image = photos[random.integers(len(photos))]
    extent = random.uniform(0.5, 1) * min(image.size)
    left, top = (random.uniform(0, whole - extent) for whole in image.size)
    part = (left, top, left + extent, top + extent)
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR, box=part))


def cut_out(
    grey: np.ndarray, shares: tuple[float, float], side: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return an article in a random size, grey, and the share of each pixel that it covers.

    Args:
        grey: [h, w] uint8, the article on black.
        shares: The least and the greatest longest side, as shares of a scene's.
        side: Pixels of a scene's side.
    """
    outline = np.asarray(binary_fill_holes(grey > 10))
    if not outline.any():
        outline[:] = True
    rows, columns = (np.flatnonzero(outline.any(axis)) for axis in (1, 0))
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    longest = random.uniform(*shares) * side
    height, width = (
        max(2, round(longest * pixels / max(grey[part].shape))) for pixels in grey[part].shape
    )
    article, alpha = (
        np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BILINEAR), float)
        for x in (grey[part], outline[part].astype(np.uint8) * 255)
    )
    step = -1 if random.random() < 0.5 else 1
    return article[:, ::step], alpha[:, ::step] / 255


def paste(
    article: np.ndarray, alpha: np.ndarray, place: np.ndarray, random: np.random.Generator
) -> None:
    """Paint an article [h, w] in a random tint on the pixels of its place, [h, w, 3] uint8."""
    tinted = article[..., np.newaxis] * random.uniform(0.4, 1, 3)
    share = alpha[..., np.newaxis]
    place[:] = np.rint(share * tinted + (1 - share) * place)

"""Explanations as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.explain.heat import overlay
from keras_vgg.plotting import DPI, INK, drawable, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_GAP, _MARGIN, _LINE = 0.12, 0.16, 0.22  # each a whole number of dots
_CELL = 0.85  # side of a cell of a grid
_SHOWN = 16  # channels of a layer


def draw_heats(
    path: Path,
    image: np.ndarray,
    heats: Mapping[str, np.ndarray],
    *,
    title: str,
    seen: tuple[float, float, float, float] | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Draw a picture and, beside it, each heat over the picture, one dot a pixel.

    Args:
        path: The PNG, which is written whole or not at all.
        image: uint8 [h, w, 3].
        heats: Name -> heat, as `overlay` takes it.
        title: The line above.
        seen: (top, left, height, width) of a frame around what the model saw, in pixels of the
            picture.
        texts: The PNG's metadata, as for `save_png`.
    """
    height, width = (side / DPI for side in image.shape[:2])
    panels = [("", image)] + [(name, overlay(image, heat)) for name, heat in heats.items()]
    # A column is at least as wide as its name.
    lefts = [_MARGIN]
    for name, _ in panels:
        lefts.append(lefts[-1] + max(width, 0.08 * len(name)) + _GAP)
    top = _MARGIN + 2 * _LINE
    wide = max(lefts.pop() - _GAP, _MARGIN + 0.09 * len(title)) + _MARGIN
    figure = _figure(wide, top + height + _MARGIN)
    _write(figure, _MARGIN, _MARGIN, title, fontsize=11)
    for i, (left, (name, picture)) in enumerate(zip(lefts, panels, strict=True)):
        axes = _place(figure, left, top, width, height)
        axes.imshow(picture, aspect="auto", interpolation="nearest")
        if seen is not None and i > 0:
            _frame(axes, seen)
        _write(figure, left, _MARGIN + _LINE, name, fontsize=9)
    save_png(figure, path, texts)


def draw_maps(
    path: Path,
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    *,
    title: str,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Draw a row for each layer: its strongest feature maps, from dark (0) to the largest value.

    Args:
        path, texts: As for `draw_heats`.
        image: [h, w, 3 or 1] in [0, 255], as the model saw it.
        maps: Name -> [h, w, c].
    """
    rows = [_strongest(layer_maps) for layer_maps in maps.values()]
    columns = max(len(row) for row in rows)
    step = _CELL + 0.04
    name_width = 1.15
    head = _MARGIN + 1.5 * _LINE + 1.5 * _CELL + _GAP
    figure = _figure(
        2 * _MARGIN + name_width + columns * step, head + len(rows) * (step + _LINE) + _MARGIN
    )
    _write(figure, _MARGIN, _MARGIN, title, fontsize=11)
    aspect = image.shape[1] / image.shape[0]
    axes = _place(figure, _MARGIN, _MARGIN + 1.5 * _LINE, 1.5 * _CELL * aspect, 1.5 * _CELL)
    axes.imshow(_picture(image), aspect="auto")
    for r, (name, row) in enumerate(zip(maps, rows, strict=True)):
        top = head + r * (step + _LINE)
        height, width, channels = maps[name].shape
        _write(figure, _MARGIN, top + 0.1, name.rsplit("/", 1)[-1], fontsize=7)
        _write(figure, _MARGIN, top + 0.1 + _LINE, f"{height} × {width}", fontsize=7)
        _write(figure, _MARGIN, top + 0.1 + 2 * _LINE, f"{channels} maps", fontsize=7)
        for c, (channel, feature_map) in enumerate(row):
            left = _MARGIN + name_width + c * step
            axes = _place(figure, left, top, _CELL, _CELL)
            low = min(0.0, float(feature_map.min()))
            style: dict[str, Any] = {"cmap": "inferno", "interpolation": "nearest"}
            axes.imshow(feature_map, vmin=low, aspect="auto", **style)
            _write(figure, left, top + _CELL + 0.03, f"{channel}", fontsize=6)
    save_png(figure, path, texts)


def draw_filters(
    path: Path,
    images: np.ndarray,
    names: Sequence[str],
    *,
    title: str,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Draw images [n, h, w, 3 or 1] in [0, 255] in rows of four, each below its name."""
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    cell = 1.7
    figure = _figure(
        max(2 * _MARGIN + columns * (cell + _GAP) - _GAP, 2 * _MARGIN + 0.09 * len(title)),
        _MARGIN + 1.3 * _LINE + rows * (cell + _LINE + _GAP) + _MARGIN - _GAP,
    )
    _write(figure, _MARGIN, _MARGIN, title, fontsize=11)
    for i, (image, name) in enumerate(zip(images, names, strict=True)):
        left = _MARGIN + (i % columns) * (cell + _GAP)
        top = _MARGIN + 1.3 * _LINE + (i // columns) * (cell + _LINE + _GAP)
        axes = _place(figure, left, top + _LINE, cell, cell)
        axes.imshow(_picture(image), aspect="auto")
        _write(figure, left, top + 0.03, name, fontsize=8)
    save_png(figure, path, texts)


def _strongest(maps: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return (channel, map [h, w]) of the channels with the largest means, the largest first."""
    order = np.argsort(-maps.mean((0, 1)), kind="stable")[:_SHOWN]
    return [(int(channel), maps[..., channel]) for channel in order]


def _picture(image: np.ndarray) -> np.ndarray:
    image = np.clip(np.asarray(image, "float32") + 0.5, 0, 255).astype("uint8")
    return np.repeat(image, 3 // image.shape[-1], axis=-1)


def _frame(axes, seen: tuple[float, float, float, float]) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = seen
    for colour, line in (("black", 1.6), ("white", 0.8)):  # visible on any picture
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec=colour, lw=line)
        )


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    # savefig cuts off parts of a dot, so that 479.999 dots would become 479.
    wide, high = ((round(side * DPI) + 0.01) / DPI for side in (width, height))
    return Figure(figsize=(wide, high), dpi=DPI, facecolor="white")


def _place(figure: Figure, left: float, top: float, width: float, height: float):
    """Return axes without ticks at a place in inches from the upper left."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    axes.set_axis_off()
    return axes


def _write(figure: Figure, left: float, top: float, text: str, fontsize: float) -> None:
    w, h = figure.get_size_inches()
    # parse_math: a class called "$x_1$" is a name, not a formula.
    style = {"fontsize": fontsize, "color": INK, "va": "top", "parse_math": False}
    figure.text(left / w, 1 - top / h, drawable(text), **style)

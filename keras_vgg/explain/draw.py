"""Explanations as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vgg.explain.heat import overlay
from keras_vgg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150
_INK = "#333333"
# Inches.
_GAP, _MARGIN, _LINE = 0.12, 0.16, 0.22  # of whole dots
_CELL = 0.85  # of a grid
_SHOWN = 16  # of a layer's channels


def draw_heats(
    path: Path,
    image: np.ndarray,
    heats: Mapping[str, np.ndarray],
    *,
    title: str,
    seen: tuple[float, float, float, float] | None = None,
) -> None:
    """A picture, and beside it each heat over it, one dot a pixel.

    Args:
        path: The PNG to write, whole or not at all.
        image: uint8 [h, w, 3].
        heats: What it is called -> as `overlay` takes it.
        seen: (top, left, height, width) of a frame to draw, in pixels of the picture.
    """
    height, width = (side / _DPI for side in image.shape[:2])
    panels = [("", image)] + [(name, overlay(image, heat)) for name, heat in heats.items()]
    # A column is as wide as what is written over it.
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
    _save(figure, path)


def draw_maps(path: Path, image: np.ndarray, maps: Mapping[str, np.ndarray], *, title: str) -> None:
    """A row for each layer: its strongest maps of an image, each from dark, 0, to its largest.

    Args:
        path: As `draw_heats`.
        image: [h, w, 3 or 1] in [0, 255], what the model saw.
        maps: Name -> [h, w, c].
    """
    rows = [_strongest(found) for found in maps.values()]
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
        for c, (channel, found) in enumerate(row):
            left = _MARGIN + name_width + c * step
            axes = _place(figure, left, top, _CELL, _CELL)
            least = min(0.0, float(found.min()))
            axes.imshow(found, cmap="inferno", vmin=least, aspect="auto", interpolation="nearest")
            _write(figure, left, top + _CELL + 0.03, f"{channel}", fontsize=6)
    _save(figure, path)


def draw_filters(path: Path, images: np.ndarray, names: Sequence[str], *, title: str) -> None:
    """Images [n, h, w, 3 or 1] in [0, 255] in rows of four, each with its name. As `draw_heats`."""
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
    _save(figure, path)


def _strongest(maps: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """[h, w, c] -> (channel, [h, w]) of those that answer most on average, strongest first."""
    order = np.argsort(-maps.mean((0, 1)), kind="stable")[:_SHOWN]
    return [(int(channel), maps[..., channel]) for channel in order]


def _picture(image: np.ndarray) -> np.ndarray:
    image = np.clip(np.asarray(image, "float32") + 0.5, 0, 255).astype("uint8")
    return np.repeat(image, 3 // image.shape[-1], axis=-1)


def _frame(axes, seen: tuple[float, float, float, float]) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = seen
    for colour, line in (("black", 1.6), ("white", 0.8)):  # seen on any picture
        axes.add_patch(
            Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec=colour, lw=line)
        )


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # What is written cuts off parts of a dot, and 479.999 dots are meant to be 480.
    wide, high = ((round(side * _DPI) + 0.01) / _DPI for side in (width, height))
    figure = Figure(figsize=(wide, high), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _place(figure: Figure, left: float, top: float, width: float, height: float):
    """Axes without ticks; inches from the upper left."""
    w, h = figure.get_size_inches()
    axes = figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
    axes.set_axis_off()
    return axes


def _write(figure: Figure, left: float, top: float, text: str, fontsize: float) -> None:
    w, h = figure.get_size_inches()
    # A class may be called $x_1$, which is no formula.
    figure.text(
        left / w,
        1 - top / h,
        text,
        fontsize=fontsize,
        color=_INK,
        va="top",
        parse_math=False,
    )


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda partial: figure.savefig(partial, format="png"))

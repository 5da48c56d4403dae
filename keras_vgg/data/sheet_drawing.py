"""The drawing of a contact sheet, in inches and dots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_vgg.plotting import drawable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any kind of colour vision; with the colour of the number
# on them. After the last they begin again, in other strokes.
_COLOURS = (
    ("#0072B2", "white"),
    ("#E69F00", "black"),
    ("#009E73", "white"),
    ("#CC79A7", "black"),
    ("#D55E00", "white"),
    ("#56B4E9", "black"),
    ("#F0E442", "black"),
    ("#000000", "white"),
)
_STROKES = ("solid", "dashed", "dotted")
_INK, _EVALUATION = "#333333", "#999999"

_DPI = 150
_MOST_DOTS = 30_000  # of a side of the sheet; matplotlib's own limit is 65,536
# Inches.
_CELL = 1.6
_GAP = 0.08
_MARGIN = 0.12
_LINE = 0.24  # of text, with the space around it
_WIDEST, _TALLEST = 1.8 * _CELL, 1.8 * _CELL  # what a long original may take
_THINNEST = 0.08  # and at least takes, so that something is seen of it


class Outline(NamedTuple):
    """Where a view lies in its image: float64 [4, 2], (row, column) of its corners in turn.

    An upright one ends with the image. A turned one may go beyond it.
    """

    corners: np.ndarray
    is_turned: bool


class Row(NamedTuple):
    """One image on the sheet. All pixels are uint8; `drawn` is (width, height) in inches."""

    caption: str
    original: np.ndarray
    sides: tuple[int, int]
    drawn: tuple[float, float]
    evaluated: np.ndarray
    views: list[np.ndarray]
    outlines: list[Outline]


def drawn_size(height: int, width: int) -> tuple[float, float]:
    """Return width and height in inches: a cell high, but a long image as long as it may be.

    The image keeps its ratio, unless it would be too thin to be seen.
    """
    tallest = _TALLEST if height > 2 * width else _CELL
    scale = min(_WIDEST / width, tallest / height)
    return max(width * scale, _THINNEST), max(height * scale, _THINNEST)


def shrunk(image: np.ndarray, drawn: tuple[float, float]) -> np.ndarray:
    """Return the image in no more pixels than it has dots on the sheet."""
    sides = [
        min(side, max(1, round(inches * _DPI)))
        for side, inches in zip(image.shape[:2], reversed(drawn), strict=True)
    ]
    if sides == list(image.shape[:2]):
        return image
    small = tf.image.resize(image, sides, antialias=True)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def draw(rows: Sequence[Row]) -> Figure:
    """Return the sheet as a figure: a row for each image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = len(rows[0].views)
    # From the left: the originals, then cells; from the top: heads, then for each row a caption
    # above its pictures.
    first = max(row.drawn[0] for row in rows)
    lefts = [_MARGIN + first + 2 * _GAP + i * (_CELL + _GAP) for i in range(1 + views)]
    width = lefts[-1] + _CELL + _MARGIN
    heights = [_LINE + max(_CELL, row.drawn[1]) + _GAP for row in rows]
    height = _LINE + sum(heights) + _MARGIN
    dpi = min(_DPI, _MOST_DOTS / max(width, height))
    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)

    def place(left: float, top: float, size: tuple[float, float]) -> Axes:
        share = (left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height)
        axis = figure.add_axes(share)
        axis.set_xticks([])
        axis.set_yticks([])
        return axis

    def write(left: float, bottom: float, text: str, **style: Any) -> None:
        # parse_math: a class called "$5" is a name, not the start of a formula.
        at = left / width, 1 - bottom / height
        style = {"va": "bottom", "color": _INK, "fontsize": 9, "parse_math": False, **style}
        figure.text(*at, drawable(text), **style)

    for left, head in zip(lefts, ["evaluation", *range(1, 1 + views)], strict=True):
        write(left + _CELL / 2, _MARGIN + _LINE - 0.05, f"{head}", ha="center", weight="bold")
    top = _MARGIN
    for row, row_height in zip(rows, heights, strict=True):
        pictures = top + _LINE
        write(_MARGIN, pictures - 0.05, row.caption)
        _draw_original(place(_MARGIN, pictures, row.drawn), row, dpi)
        cells = [(row.evaluated, _EVALUATION, "solid")]
        cells += [(view, _look(i)[0], _look(i)[2]) for i, view in enumerate(row.views)]
        for left, (pixels, colour, stroke) in zip(lefts, cells, strict=True):
            axis = place(left, pictures, (_CELL, _CELL))
            _show(axis, pixels, pixels.shape[:2], _CELL * dpi)
            axis.spines[:].set(color=colour, linewidth=2.5, linestyle=stroke)
        top += row_height
    return figure


def _look(view: int) -> tuple[str, str, str]:
    """Return a view's colour, the colour of its number on that, and its stroke."""
    turn, index = divmod(view, len(_COLOURS))
    return (*_COLOURS[index], _STROKES[turn % len(_STROKES)])


def _show(axis: Axes, pixels: np.ndarray, sides: tuple[int, int], dots: float) -> None:
    """Draw pixels on the whole axis, whose coordinates are those of an image of `sides`."""
    small = 2 * max(pixels.shape[:2]) <= dots
    axis.imshow(
        pixels,
        extent=(0, sides[1], sides[0], 0),
        aspect="auto",
        interpolation="nearest" if small else "antialiased",
    )


def _draw_original(axis: Axes, row: Row, dpi: float) -> None:
    from matplotlib.patches import Polygon

    _show(axis, row.original, row.sides, max(row.drawn) * dpi)
    axis.spines[:].set_visible(False)
    for view, outline in enumerate(row.outlines):
        colour, ink, stroke = _look(view)
        for halo in (True, False):
            axis.add_patch(
                Polygon(
                    outline.corners[:, ::-1],
                    closed=True,
                    fill=False,
                    clip_on=outline.is_turned,
                    edgecolor="white" if halo else colour,
                    linewidth=3.6 if halo else 1.8,
                    linestyle="solid" if halo else stroke,
                )
            )
        # Each number at its own share of its rectangle's longer edge, so that two rectangles in
        # the same place do not hide each other's.
        share = (view + 0.5) / len(row.outlines)
        first, across, _, down = outline.corners
        inches = np.array(row.drawn[::-1]) / row.sides
        edges = [np.linalg.norm((end - first) * inches) for end in (across, down)]
        end = across if edges[0] >= edges[1] else down
        place = np.clip(first + share * (end - first), 0, row.sides)
        axis.text(
            place[1],
            place[0],
            f"{view + 1}",
            ha="center",
            va="center",
            fontsize=6,
            color=ink,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "white"},
        )

"""Plots as SVG for a page that has the colours: each is a CSS variable, text stays text.

matplotlib draws with stand-in colours, and the finished SVG says `var(--ink)` and the like in
their place, so that one drawing serves a light and a dark page. The page must define --ink,
--muted, --line, --best and --series-0 to --series-5.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from keras_vgg.report.plots import column, scale_learning_rate, whole_number_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vgg.report.content import Bin

SERIES = 6
DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2", "3 1", "7 2 1.5 2 1.5 2")
_NAMES = ("ink", "muted", "line", "best", *(f"series-{i}" for i in range(SERIES)))
_STAND_IN = {name: f"#00fe{i:02x}" for i, name in enumerate(_NAMES)}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# Inches. As wide as a phone, where a point of text is then about a pixel.
_WIDTH, _HEIGHT = 4.8, 2.9
_CLOSEST = 0.075  # of an axis' height, between two labels
_CELL = (0.16, 0.44, 0.82)  # of a confusion map; its strength is the cell's alpha

Lines = Sequence[tuple[Sequence[Mapping[str, float]], str, int, str]]


def curve(lines: Lines, best: Sequence[int | None], *, label: str, salt: str) -> str | None:
    """One panel: something over epochs, as SVG; None where no line has a point.

    Args:
        lines: (rows of metrics.csv, key, number of colour and dashes, text at the line's end)
            each. Keys that end in "accuracy" are drawn in per cent.
        best: each line's best epoch or None. It gets a ring on validation metrics, and a vertical
            line if all are the same.
        label: says to who does not see it what is drawn.
        salt: a name that no other drawing of the page has.
    """
    drawn = [(line, epoch) for line, epoch in zip(lines, best, strict=True) if _points(line)]
    if not drawn:
        return None
    figure = _figure(_WIDTH, _HEIGHT)
    axis = figure.subplots()
    _style(axis)
    ends = []
    for (rows, key, number, end), epoch in drawn:
        epochs, values = column(rows, key)
        values = 100 * values if key.endswith("accuracy") else values
        colour = _STAND_IN[f"series-{number % SERIES}"]
        axis.plot(
            epochs,
            values,
            color=colour,
            linewidth=1.8,
            linestyle=_dashes(number),
            marker="o" if len(epochs) == 1 else None,  # it draws no line
            markersize=4,
            drawstyle="steps-mid" if key == "learning_rate" else "default",
        )
        # Validation decides what is best.
        if epoch is not None and epoch in epochs and key.startswith("val_"):
            value = values[list(epochs).index(epoch)]
            axis.plot(epoch, value, "o", mfc="none", mec=_STAND_IN["best"], mew=1.8, ms=8, zorder=5)
        ends.append((epochs[-1], values[-1], end, colour))
    marked = {epoch for _, epoch in drawn if epoch is not None}
    if len(marked) == 1:
        axis.axvline(*marked, color=_STAND_IN["best"], linewidth=1, linestyle=":", zorder=0)
    if lines[0][1] == "learning_rate":
        scale_learning_rate(
            axis, np.concatenate([column(line[0], line[1])[1] for line, _ in drawn])
        )
    elif lines[0][1] == "images_per_second":
        axis.set_ylim(bottom=0)
    axis.set_xlabel("epoch", color=_STAND_IN["muted"])
    whole_number_ticks(axis)
    every = np.concatenate([column(line[0], line[1])[0] for line, _ in drawn])
    axis.set_xlim(every.min() - 0.5, every.max() + 0.5)
    _label_ends(axis, ends)
    return _svg(figure, label, salt)


def reliability(bins: Sequence[Bin], *, label: str, salt: str) -> str:
    """Accuracy against confidence, with the diagonal of a model that is as sure as it is right.

    Below, how many images each bin has. The rest as `curve`.
    """
    figure = _figure(_WIDTH, 4.6)
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for axis in (top, bottom):
        _style(axis)
    low = np.array([b.low for b in bins])
    width = np.array([b.high for b in bins]) - low
    full = np.array([b.count > 0 for b in bins])
    accuracy = np.array([100 * (b.accuracy or 0) for b in bins])
    confidence = np.array([100 * (b.confidence or 0) for b in bins])
    blue, red, ink = (_STAND_IN[name] for name in ("series-0", "best", "ink"))
    bars = {"align": "edge", "linewidth": 0, "alpha": 0.6}
    top.bar(100 * low, accuracy, 100 * width * 0.92, color=blue, **bars)
    # From where the bar ends to where it should: the distance that ECE averages.
    top.vlines(confidence[full], accuracy[full], confidence[full], color=red, linewidth=2)
    top.plot(confidence[full], accuracy[full], "o", color=red, markersize=4)
    top.plot([0, 100], [0, 100], color=ink, linewidth=1, linestyle="--")
    top.set_ylabel("accuracy (%)", color=_STAND_IN["muted"])
    top.set_ylim(0, 102)
    bottom.bar(100 * low, [b.count for b in bins], 100 * width * 0.92, color=blue, **bars)
    bottom.set_ylabel("images", color=_STAND_IN["muted"])
    bottom.set_xlabel("confidence: the answer's probability (%)", color=_STAND_IN["muted"])
    bottom.set_xlim(0, 100)
    return _svg(figure, label, salt)


def confusion_map(confusion: np.ndarray, *, label: str, salt: str) -> str:
    """A confusion matrix of many classes, by class number; a cell is as strong as the square root
    of its share of its row. The rest as `curve`."""
    figure = _figure(6, 5.6)
    axis = figure.subplots()
    images = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, images, out=np.zeros(confusion.shape), where=images > 0)
    cells = np.empty((*confusion.shape, 4))
    cells[..., :3], cells[..., 3] = _CELL, np.sqrt(shares)
    axis.imshow(cells, interpolation="none")
    axis.set_xlabel("predicted class", color=_STAND_IN["muted"])
    axis.set_ylabel("true class", color=_STAND_IN["muted"])
    axis.spines[:].set_color(_STAND_IN["line"])
    axis.tick_params(colors=_STAND_IN["muted"])
    return _svg(figure, label, salt)


def _points(line: tuple) -> bool:
    return bool(column(line[0], line[1])[1].size)


def _dashes(number: int) -> str | tuple[int, tuple[float, ...]]:
    pattern = DASHES[number % len(DASHES)]
    return (0, tuple(map(float, pattern.split()))) if pattern else "solid"


def _label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Texts beside their lines' ends, (x, y, text, colour), none over another at the same x."""
    axis.get_ylim()  # settles the scale
    transform = axis.transData + axis.transAxes.inverted()
    lowest: dict[float, float] = {}
    placed = [(*transform.transform((x, y)), text, colour) for x, y, text, colour in ends if text]
    for x, y, text, colour in sorted(placed, key=lambda one: one[1]):
        lowest[x] = max(y, lowest.get(x, -1.0) + _CLOSEST)
        axis.text(
            *(x + 0.02, lowest[x], text),
            transform=axis.transAxes,
            color=colour,
            weight="bold",
            va="center",
            parse_math=False,
        )


def _style(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_STAND_IN["line"])
    axis.grid(axis="y", color=_STAND_IN["line"], linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", color=_STAND_IN["line"], labelcolor=_STAND_IN["muted"])


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _svg(figure: Figure, label: str, salt: str) -> str:
    """The drawing as an element of a page: no size of its own, no identifier that another has."""
    import matplotlib

    file = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(file.getvalue())
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label}
    _drop(root, f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
    for element in root.iter():
        if element.tag == f"{{{_SVG}}}g":
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, f"{salt}-{value}")
            elif name == f"{{{_XLINK}}}href" and value.startswith("#"):
                element.set(name, f"#{salt}-{value[1:]}")
            elif value.startswith("url(#"):
                element.set(name, f"url(#{salt}-{value[5:]}")
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    text = ET.tostring(root, encoding="unicode")
    for name, colour in _STAND_IN.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def _drop(element: ET.Element, *tags: str) -> None:
    for child in list(element):
        if child.tag in tags:
            element.remove(child)
        else:
            _drop(child, *tags)

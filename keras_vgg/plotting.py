"""The one style of every figure, and how a figure becomes a PNG or an SVG.

A room draws on the axes of `new_figure` with the colours of this module. `save_png` and `to_svg`
then take the same figure. Matplotlib is imported when something is drawn, and pyplot never: it has
global state, and may need a display.
"""

from __future__ import annotations

import functools
import io
import itertools
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keras_vgg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

# report.css has the same colours for a light page, and others for a dark one.
INK, MUTED, LINE, BEST = "#1b2230", "#55606f", "#d5dbe3", "#b4232f"
SERIES = ("#1f5fb4", "#a35200", "#0f7b5a", "#a1357c", "#5b49b5", "#6b6200")
# Dashes and gaps, in line widths: not everybody can tell lines apart by colour alone.
DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2", "3 1", "7 2 1.5 2 1.5 2")
DPI = 150
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BEST: "best"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def new_figure(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    *,
    grid: Literal["x", "y", "both"] | None = "y",
    **subplots: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many inches, and its axes row by row.

    Args:
        grid: The ticks that have grid lines. None: the axes have no grid and no frame.
        subplots: As for `matplotlib.figure.Figure.subplots`.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)  # inches
    figure = Figure(figsize=(width, height), dpi=DPI, layout=engine)
    all_axes = list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)
    for axes in all_axes:
        axes.spines[:].set_color(LINE)
        axes.spines[["top", "right"] if grid else [*axes.spines]].set_visible(False)
        axes.tick_params(which="both", color=LINE, labelcolor=MUTED)
        axes.xaxis.label.set_color(MUTED)
        axes.yaxis.label.set_color(MUTED)
        axes.title.set_color(INK)
        if grid:
            axes.set_axisbelow(True)
            axes.grid(axis=grid, color=LINE, linewidth=0.6)
    return figure, all_axes


def colour(series: int) -> str:
    """Return the colour of a line by its number, from 0."""
    return SERIES[series % len(SERIES)]


def line_style(series: int) -> dict[str, Any]:
    """Return colour, dashes and width of a line by its number, as arguments of `Axes.plot`."""
    pattern = DASHES[series % len(DASHES)]
    dashes = (0, tuple(map(float, pattern.split()))) if pattern else "solid"
    return {"color": colour(series), "linestyle": dashes, "linewidth": 1.8}


def show_legend(axes: Axes) -> None:
    """Draw a legend where it hides least."""
    axes.legend(frameon=False, loc="best", labelcolor=INK)


def colour_bar(picture: ScalarMappable, axes: Axes, label: str, **options: Any) -> Colorbar:
    """Draw the scale of a picture's colours beside its axes.

    Args:
        options: As for `matplotlib.figure.Figure.colorbar`.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes of `new_figure` have one
    bar = figure.colorbar(picture, ax=axes, pad=0.02, **options)
    bar.ax.tick_params(color=LINE, labelcolor=MUTED)
    bar.set_label(label, color=MUTED)
    bar.outline.set_visible(False)
    return bar


def whole_number_ticks(axes: Axes) -> None:
    """Keep the ticks of a linear x axis to whole numbers, also if there is one value."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def log_ticks(axes: Axes) -> None:
    """Make the x axis logarithmic, with ticks at 1, 2 and 5 in plain numbers.

    Matplotlib itself puts no tick on a logarithmic axis of less than a decade.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save_png(figure: Figure, path: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Write a figure as a PNG, whole or not at all; the folder must exist.

    `texts` go into the file's metadata, by PNG keyword.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(
        Path(path), lambda partial: figure.savefig(partial, format="png", metadata=texts)
    )


def to_svg(figure: Figure, label: str, name: str) -> str:
    """Return a figure as an <svg> element for a page: as wide as its place, with text as text.

    The colours of this module become the CSS variables --ink, --muted, --line, --best and
    --series-0 to --series-5, which the page must define.

    Args:
        label: What the figure shows, for readers who do not see it.
        name: A name that no other figure on the page has.
    """
    import matplotlib

    for axes in figure.axes:
        for image in axes.images:
            image.set_interpolation("none")  # a pixel a cell: the page scales it
    file = io.BytesIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # The salt makes the identifiers unique on the page, and the same each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    root = ET.fromstring(file.getvalue())
    for attribute in ("width", "height", "version"):
        del root.attrib[attribute]
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label}
    for element in list(root.iter()):
        if element.tag == f"{{{_SVG}}}g":
            element.attrib.pop("id", None)  # such as axes_1: every figure has it
        for child in list(element):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                element.remove(child)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    svg = ET.tostring(root, encoding="unicode")
    for value, variable in _VARIABLES.items():
        svg = svg.replace(value, f"var(--{variable})")
    return svg


def drawable(text: str) -> str:
    """Return a text with a ? for characters that the fonts of figures do not have, as in Chinese.

    Matplotlib itself draws a box for each, and warns.
    """
    if text.isascii():
        return text
    runs = itertools.groupby(text, _drawable_characters().__contains__)
    return "".join("".join(run) if is_drawable else "?" for is_drawable, run in runs)


def drawable_class(name: str, number: int) -> str:
    """Return a class's name, or its number if the fonts of figures cannot write the name."""
    return name if _drawable_characters().issuperset(name) else str(number)


def _drawable_characters() -> frozenset[str]:
    """Return the characters that matplotlib can draw with the fonts that it has now."""
    from matplotlib.font_manager import FontProperties, findfont

    families = FontProperties().get_family()
    return _characters_of(tuple(findfont(FontProperties(family=[name])) for name in families))


@functools.cache
def _characters_of(fonts: Sequence[str]) -> frozenset[str]:
    """Return the characters of font files, and the line break, which no font has."""
    from matplotlib.font_manager import get_font

    characters = (chr(code) for font in fonts for code in get_font(font).get_charmap())
    return frozenset((*characters, "\n"))

"""Pictures and tables of a run: training curves, a confusion matrix, columns for a terminal.

Figures are drawn with matplotlib's object interface, so nothing here touches pyplot's global state
or needs a display. A PNG appears whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_vgg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from keras_vgg.architecture import Layer

_TRAIN, _VALIDATION, _BEST, _INK = "#8aa4c8", "#1f4e9c", "#d1495b", "#333333"
_DPI = 150
_MOST_COUNTS = 20  # classes up to which a cell has room for its count
_MOST_LABELS = 50  # classes up to which every class name is legible
_LONGEST_LABEL = 24  # characters; a longer name would squeeze the matrix


def plot_history(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draw a run's training curves as a PNG.

    Loss, accuracy in per cent, and the learning rate on a log scale, one above the other over the
    same epochs; the best epoch by validation is marked. A panel without data is left out.

    Args:
        rows: one an epoch, with any of the keys epoch, loss, accuracy, val_loss, val_accuracy
            (accuracies are fractions in [0, 1]) and learning_rate. Without `epoch` the rows are
            numbered from 1. A value that is absent, None or nan is a gap.
        path: the PNG to write, 8 inches wide at 150 dots an inch. Its folder must exist.

    Raises:
        ValueError: no row has a loss or an accuracy.
        OSError: the file cannot be written.
    """
    panels = [
        (title, [key for key in keys if column(rows, key)[1].size])
        for title, keys in (
            ("loss", ("loss", "val_loss")),
            ("accuracy (%)", ("accuracy", "val_accuracy")),
            ("learning rate", ("learning_rate",)),
        )
    ]
    panels = [(title, keys) for title, keys in panels if keys]
    if all(title == "learning rate" for title, _ in panels):
        raise ValueError("there is no loss and no accuracy to plot in the metrics' rows")

    heights = [1.0 if title == "learning rate" else 2.6 for title, _ in panels]
    figure = _figure(8, 1 + sum(heights))
    grid = figure.subplots(
        len(panels), sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    axes: list[Axes] = grid[:, 0].tolist()
    for axis, (title, keys) in zip(axes, panels, strict=True):
        _style(axis)
        axis.set_ylabel(title, color=_INK)
        for key in keys:
            _draw_column(axis, rows, key)
        if title == "learning rate":
            scale_learning_rate(axis, column(rows, "learning_rate")[1])
        else:
            axis.legend(frameon=False, loc="best")
    _mark_best(axes, panels, rows)
    axes[-1].set_xlabel("epoch", color=_INK)
    whole_number_ticks(axes[-1])
    drawn = np.concatenate([column(rows, key)[0] for _, keys in panels for key in keys])
    axes[-1].set_xlim(
        drawn.min() - 0.5, drawn.max() + 0.5
    )  # room for whole-number ticks at 1 epoch
    _save(figure, Path(path))


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix as a PNG.

    A cell's colour is its share of the images of its true class (its row), on a square-root scale
    so that rare confusions show; the row of a class without images is grey. Counts are written for
    up to 20 classes and names for up to 50; beyond that the axes have class numbers.

    Args:
        confusion: [classes, classes] counts >= 0, rows true and columns predicted.
        class_names: one for each class.
        path: the PNG to write. Its folder must exist.

    Raises:
        ValueError: confusion is not [classes, classes] for these names, or has no images.
        OSError: the file cannot be written.
    """
    from matplotlib.colors import PowerNorm

    confusion = np.asarray(confusion)
    classes = len(class_names)
    if confusion.shape != (classes, classes) or classes == 0:
        raise ValueError(f"a confusion matrix {confusion.shape} does not fit {classes} class names")
    total = int(confusion.sum())
    if total == 0:
        raise ValueError("the confusion matrix has no images")
    images = confusion.sum(axis=1, keepdims=True)
    shares = np.ma.masked_invalid(
        np.divide(confusion, images, out=np.full(confusion.shape, np.nan), where=images > 0)
    )

    # Inches: room for the text of small matrices, and two dots a cell for large ones.
    side = max(4.5, min(0.5 * classes, 12), 2 * classes / _DPI)
    figure = _figure(side + 2.2, side + 1.5)
    axis = figure.subplots()
    axis.set_facecolor("#dddddd")
    picture = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
    bar = figure.colorbar(picture, ax=axis, ticks=ticks, shrink=0.8, pad=0.02)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in ticks])
    bar.ax.minorticks_off()
    bar.set_label("share of the true class", color=_INK)
    bar.outline.set_visible(False)

    if classes <= _MOST_LABELS:
        _label_classes(axis, class_names)
    if classes <= _MOST_COUNTS:
        _write_counts(axis, confusion, np.ma.filled(picture.norm(shares), 0))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0 if classes <= _MOST_LABELS else 3, colors=_INK)
    axis.set_xlabel("predicted class", color=_INK)
    axis.set_ylabel("true class", color=_INK)
    correct = int(confusion.trace())
    axis.set_title(
        f"{correct:,} of {total:,} images correct ({correct / total:.1%})", color=_INK, pad=12
    )
    _save(figure, Path(path))


def plot_sizes(
    points: Sequence[tuple[int, float, str]],
    chosen: int,
    path: str | Path,
    *,
    original: tuple[int, float],
    allowed: float,
) -> None:
    """Draw the accuracy of compressed networks against their size as a PNG.

    Args:
        points: (parameters, top-1 accuracy in [0, 1], label) of each.
        chosen: the index of the one that is marked.
        path: the PNG to write, 8 inches wide. Its folder must exist.
        original: parameters and accuracy of the network that they come from.
        allowed: the accuracy below which none was allowed to fall, in [0, 1].

    Raises:
        OSError: the file cannot be written.
    """
    figure = _figure(8, 4.5)
    axis = figure.subplots()
    counts, accuracies, labels = zip(*points, strict=True)
    sizes = [count / 1e6 for count in counts]
    whole = original[0] / 1e6
    axis.axhline(100 * allowed, color=_BEST, linestyle="--", linewidth=1, label="least allowed")
    axis.plot(sizes, 100 * np.array(accuracies), "o-", color=_VALIDATION, label="factorised")
    label = f"original: {4 * whole:.4g} MB as float32"
    axis.plot(whole, 100 * original[1], "s", color=_INK, markersize=8, label=label)
    best = sizes[chosen], 100 * accuracies[chosen]
    axis.plot(*best, "o", color=_BEST, markersize=10, label=f"chosen: {labels[chosen]}")
    axis.annotate(
        f"{best[0]:.3g} MB, {best[1]:.2f} %",
        best,
        xytext=(0, 12),
        textcoords="offset points",
        ha="center",
        color=_INK,
    )
    axis.set_xscale("log")
    _ticks_in_plain_numbers(axis, [*sizes, whole])
    axis.set_xlabel("million parameters: MB as 8-bit integers", color=_INK)
    axis.set_ylabel("top-1 accuracy (%)", color=_INK)
    axis.margins(0.08, 0.12)
    axis.legend(frameon=False, loc="best")
    _style(axis)
    _save(figure, Path(path))


def plot_layers(rows: Sequence[Layer], path: str | Path, batch: int = 1) -> None:
    """Draw where a network's memory and where its parameters are, layer by layer, as a PNG.

    Memory is that of a layer's output as float32, in units of 10^6 bytes. The title says which
    block has most of it, and which layer most parameters.

    Args:
        rows: a layer table, of `keras_vgg.architecture.layers`.
        path: the PNG to write, 9 inches wide. Its folder must exist.
        batch: images that the memory is for.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [row for row in rows if row.kind != "flatten"]
    memory = [4 * batch * row.activations / 1e6 for row in rows]
    counts = [row.parameters / 1e6 for row in rows]
    figure = _figure(9, 1.6 + 0.24 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    for axis, values, color in ((left, memory, _VALIDATION), (right, counts, _BEST)):
        axis.barh(places, values, color=color, height=0.7)
        for place, value in zip(places, values, strict=True):
            if value:
                axis.annotate(
                    f"{value:.3g}",
                    (value, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=_INK,
                )
        axis.margins(x=0.12)
        _style(axis)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    left.set_yticks(places, [row.name for row in rows], fontsize=9)
    left.invert_yaxis()
    blocks: dict[str, float] = {}
    for row, value in zip(rows, memory, strict=True):
        block = row.name.split("_")[0]
        blocks[block] = blocks.get(block, 0.0) + value
    block = max(blocks, key=blocks.__getitem__)
    images = "1 image" if batch == 1 else f"{batch:,} images"
    left.set_title(f"{block}: {blocks[block] / sum(memory):.0%} of the memory", color=_VALIDATION)
    left.set_xlabel(f"output, {images}, MB (float32)", color=_INK)
    most = counts.index(max(counts))
    share = counts[most] / sum(counts)
    right.set_title(f"{rows[most].name}: {share:.0%} of the parameters", color=_BEST)
    right.set_xlabel("parameters, millions", color=_INK)
    _save(figure, Path(path))


def _ticks_in_plain_numbers(axis: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic axis of less than a decade has no tick of matplotlib's own."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)


def table(
    rows: Sequence[Sequence[object]], headers: Sequence[str], title: str | None = None
) -> Table:
    """A table for the terminal: text to the left, numbers to the right, None as a dash.

    Args:
        rows: the cells; whole numbers get thousands' separators, floats four significant digits.
        headers: one for each column.

    Raises:
        ValueError: a row is not as long as the headers.
    """
    from rich.table import Table
    from rich.text import Text

    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"row {number} has {len(row)} cells, not {len(headers)}")
    result = Table(title=title)
    for index, header in enumerate(headers):
        textual = any(isinstance(row[index], str) for row in rows)
        result.add_column(header, justify="left" if textual else "right")
    for row in rows:
        result.add_row(*(Text(_cell(value)) for value in row))
    return result


def column(rows: Sequence[Mapping[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs that have a value for key, and the values."""
    points = [
        (row.get("epoch", number), row[key])
        for number, row in enumerate(rows, start=1)
        if row.get(key) is not None and not math.isnan(row[key])
    ]
    epochs, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(epochs, dtype=float), np.asarray(values, dtype=float)


def _draw_column(axis: Axes, rows: Sequence[Mapping[str, float]], key: str) -> None:
    epochs, values = column(rows, key)
    axis.plot(
        epochs,
        100 * values if key.endswith("accuracy") else values,
        color=_VALIDATION if key.startswith("val_") else _TRAIN,
        label="validation" if key.startswith("val_") else "training",
        linewidth=1.8,
        marker="o" if len(epochs) <= 30 else None,  # one epoch alone draws no line
        markersize=3.5,
        drawstyle="steps-mid" if key == "learning_rate" else "default",
    )


def scale_learning_rate(axis: Axes, rates: np.ndarray) -> None:
    if (rates > 0).any():  # a schedule may end in 0, which a log scale leaves out
        axis.set_yscale("log")
        positive = rates[rates > 0]
        axis.set_ylim(positive.min() / 2, positive.max() * 2)


def whole_number_ticks(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    locator = axis.xaxis.get_major_locator()
    assert isinstance(locator, MaxNLocator)  # a linear axis's
    locator.set_params(integer=True, min_n_ticks=1)


def _mark_best(
    axes: Sequence[Axes],
    panels: Sequence[tuple[str, list[str]]],
    rows: Sequence[Mapping[str, float]],
) -> None:
    """A line at the epoch of the best validation accuracy (else loss), and the value there."""
    for key, best, title, text in (
        ("val_accuracy", np.argmax, "accuracy (%)", "best: {:.2%} at epoch {:g}"),
        ("val_loss", np.argmin, "loss", "best: {:.4g} at epoch {:g}"),
    ):
        epochs, values = column(rows, key)
        if not values.size:
            continue
        index = best(values)
        for axis, (panel, _) in zip(axes, panels, strict=True):
            axis.axvline(epochs[index], color=_BEST, linewidth=1, linestyle=":", zorder=0)
            if panel == title:
                height = 100 * values[index] if title == "accuracy (%)" else values[index]
                axis.plot(epochs[index], height, "o", color=_BEST, markersize=6, zorder=5)
                axis.set_title(
                    text.format(values[index], epochs[index]),
                    loc="right",
                    color=_BEST,
                    fontsize="medium",
                )
        return


def _label_classes(axis: Axes, class_names: Sequence[str]) -> None:
    names = [
        name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"
        for name in class_names
    ]
    size = 10 if len(names) <= _MOST_COUNTS else 7
    rotation = 0 if max(map(len, names)) <= 3 else 90
    # parse_math: a class called "$5" is a name, not the start of a formula.
    axis.set_xticks(range(len(names)), names, fontsize=size, rotation=rotation, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)


def _write_counts(axis: Axes, confusion: np.ndarray, darkness: np.ndarray) -> None:
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axis.text(
                column,
                row,
                f"{count}",
                ha="center",
                va="center",
                fontsize=9 if count < 10_000 else 6,
                color="white" if darkness[row, column] > 0.55 else _INK,
            )


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _style(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", colors=_INK)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=engine)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda partial: figure.savefig(partial, format="png"))

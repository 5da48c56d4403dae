"""Pictures of an evaluation, a compression and a network.

A function named plot_... writes a PNG, which appears whole or not at all. A function named
..._figure returns a figure, which `keras_vgg.report.page` shows as SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import plotting
from keras_vgg.plotting import BEST, INK, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from keras_vgg.architecture import Layer
    from keras_vgg.report.content import Bin, ClassCurves

MOST_COUNTS = 20  # classes up to which a cell of a confusion matrix has room for its count
_MOST_LABELS = 50  # classes up to which every class name is legible
_LONGEST_LABEL = 24  # characters; a longer name would squeeze the matrix
_CELL = (
    0.13,
    0.40,
    0.77,
)  # of a confusion matrix; its alpha is the share, for light and dark pages
_NO_IMAGES = (0.5, 0.5, 0.5, 0.25)


def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix as a PNG.

    A cell's colour is its share of the images of its true class (its row), on a square-root scale
    so that rare confusions show; the row of a class without images is grey. Counts are written for
    up to 20 classes and names for up to 50; beyond that the axes have class numbers. So has a class
    whose name the font cannot write, such as one in Chinese.

    Args:
        confusion: [classes, classes] counts >= 0, rows true and columns predicted.
        class_names: One for each class.
        path: The PNG. Its folder must exist.

    Raises:
        ValueError: confusion is not [classes, classes] for these names, or has no images.
        OSError: the file cannot be written.
    """
    confusion = np.asarray(confusion)
    classes = len(class_names)
    if confusion.shape != (classes, classes) or classes == 0:
        raise ValueError(f"a confusion matrix {confusion.shape} does not fit {classes} class names")
    if not confusion.any():
        raise ValueError("the confusion matrix has no images")
    # Inches: room for the text of small matrices, and two dots a cell for large ones.
    side = max(4.5, min(0.5 * classes, 12), 2 * classes / plotting.DPI)
    figure = confusion_figure(confusion, side)
    axes = figure.axes[0]
    if classes <= _MOST_LABELS:
        _label_classes(axes, class_names)
    if classes <= MOST_COUNTS:
        _write_counts(axes, confusion)
    plotting.save_png(figure, path)


def confusion_figure(confusion: np.ndarray, side: float) -> Figure:
    """Return a confusion matrix by class number, about `side` inches wide, as `plot_confusion`."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    images = confusion.sum(axis=1, keepdims=True)
    shares = np.where(images > 0, confusion / np.maximum(images, 1), np.nan)
    figure, (axes,) = plotting.new_figure(side + 2.2, side + 1.5, grid=None)
    colours = LinearSegmentedColormap.from_list("shares", [(*_CELL, 0), (*_CELL, 1)])
    colours = colours.with_extremes(bad=_NO_IMAGES)
    picture = axes.imshow(
        np.ma.masked_invalid(shares), cmap=colours, norm=PowerNorm(0.5, vmin=0, vmax=1)
    )
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
    bar = plotting.colour_bar(picture, axes, "share of the true class", ticks=ticks, shrink=0.8)
    bar.ax.set_yticklabels([f"{share:.0%}" for share in ticks])
    bar.ax.minorticks_off()
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    correct, total = int(confusion.trace()), int(confusion.sum())
    axes.set_title(f"{correct:,} of {total:,} images correct ({correct / total:.1%})", pad=12)
    return figure


def _label_classes(axes: Axes, class_names: Sequence[str]) -> None:
    names = [
        _shortened(plotting.drawable_class(name, number)) for number, name in enumerate(class_names)
    ]
    size = 10 if len(names) <= MOST_COUNTS else 7
    rotation = 0 if max(map(len, names)) <= 3 else 90
    # parse_math: a class called "$5" is a name, not the start of a formula.
    axes.set_xticks(range(len(names)), names, fontsize=size, rotation=rotation, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.tick_params(length=0)


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def _write_counts(axes: Axes, confusion: np.ndarray) -> None:
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if shares[row, column] > 0.64 else INK
            style = {"fontsize": 9 if count < 10_000 else 6, "ha": "center", "va": "center"}
            axes.text(column, row, str(count), color=colour, **style)


def reliability_figure(bins: Sequence[Bin]) -> Figure:
    """Return accuracy against confidence, with the diagonal of a perfectly calibrated model.

    A second panel shows how many images each bin has.
    """
    figure, (top, bottom) = plotting.new_figure(4.8, 4.6, 2, sharex=True, height_ratios=(3, 1))
    low = np.array([100 * b.low for b in bins])
    width = np.array([100 * b.high for b in bins]) - low
    full = np.array([b.count > 0 for b in bins])
    accuracy = np.array([100 * (b.accuracy or 0) for b in bins])
    confidence = np.array([100 * (b.confidence or 0) for b in bins])
    for axes, heights in ((top, accuracy), (bottom, [b.count for b in bins])):
        axes.bar(low, heights, 0.92 * width, align="edge", alpha=0.6, color=SERIES[0])
    # From the end of the bar to the diagonal: the distance that ECE averages.
    top.vlines(confidence[full], accuracy[full], confidence[full], color=BEST, linewidth=2)
    top.plot(confidence[full], accuracy[full], "o", color=BEST, markersize=4)
    top.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--")
    top.set_ylabel("accuracy (%)")
    top.set_ylim(0, 102)
    bottom.set_ylabel("images")
    bottom.set_xlabel("confidence: the answer's probability (%)")
    bottom.set_xlim(0, 100)
    return figure


def roc_figure(curves: ClassCurves) -> Figure:
    """Return the ROC curve of a class, with the diagonal of answers by chance."""
    figure, axes = _unit_square("1 − specificity (%)", "sensitivity (%)")
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--")
    axes.plot(*(100 * curves.roc), **plotting.line_style(0))
    return figure


def precision_recall_figure(curves: ClassCurves) -> Figure:
    """Return the precision-recall curve of a class, with the share of its images as a line."""
    figure, axes = _unit_square("recall, or sensitivity (%)", "precision (%)")
    axes.plot([0, 100], [100 * curves.share] * 2, color=INK, linewidth=1, linestyle="--")
    axes.plot(*(100 * curves.precision_recall), **plotting.line_style(0))
    return figure


def _unit_square(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, (axes,) = plotting.new_figure(4.8, 4.4, grid="both")
    axes.set_aspect("equal")
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


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
        chosen: Index of the network that is marked.
        path: The PNG, 8 inches wide. Its folder must exist.
        original: Parameters and accuracy of the network before compression.
        allowed: The least accuracy allowed, in [0, 1].

    Raises:
        OSError: the file cannot be written.
    """
    figure, (axes,) = plotting.new_figure(8, 4.5)
    counts, accuracies, labels = zip(*points, strict=True)
    sizes = [count / 1e6 for count in counts]
    original_size = original[0] / 1e6
    axes.axhline(100 * allowed, color=BEST, linestyle="--", linewidth=1, label="least allowed")
    axes.plot(sizes, 100 * np.array(accuracies), "o-", color=SERIES[0], label="factorised")
    label = f"original: {4 * original_size:.4g} MB as float32"
    axes.plot(original_size, 100 * original[1], "s", color=INK, markersize=8, label=label)
    best = sizes[chosen], 100 * accuracies[chosen]
    axes.plot(*best, "o", color=BEST, markersize=10, label=f"chosen: {labels[chosen]}")
    _annotate(axes, f"{best[0]:.3g} MB, {best[1]:.2f} %", best, (0, 12), ha="center")
    plotting.log_ticks(axes)
    axes.set_xlim(min(*sizes, original_size) / 1.5, max(*sizes, original_size) * 1.5)
    axes.set_xlabel("million parameters: MB as 8-bit integers")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.margins(y=0.12)
    plotting.show_legend(axes)
    plotting.save_png(figure, path)


def plot_layers(rows: Sequence[Layer], path: str | Path, batch: int = 1) -> None:
    """Draw the memory and the parameters of a network, layer by layer, as a PNG.

    Memory is that of a layer's output as float32, in units of 10^6 bytes. The titles name the
    block with most of the memory and the layer with most parameters.

    Args:
        rows: A layer table from `keras_vgg.architecture.layers`.
        path: The PNG, 9 inches wide. Its folder must exist.
        batch: Number of images that the memory is for.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [row for row in rows if row.kind != "flatten"]
    memory = [4 * batch * row.activations / 1e6 for row in rows]
    counts = [row.parameters / 1e6 for row in rows]
    figure, (left, right) = plotting.new_figure(
        9, 1.6 + 0.24 * len(rows), columns=2, grid="x", sharey=True
    )
    places = range(len(rows))
    for axes, values, colour in ((left, memory, SERIES[0]), (right, counts, SERIES[1])):
        axes.barh(places, values, color=colour, height=0.7)
        for place, value in zip(places, values, strict=True):
            if value:
                _annotate(axes, f"{value:.3g}", (value, place), (4, 0), va="center", fontsize=8)
        axes.margins(x=0.12)
    left.set_yticks(places, [row.name for row in rows], fontsize=9)
    left.invert_yaxis()
    blocks: dict[str, float] = {}
    for row, value in zip(rows, memory, strict=True):
        block = row.name.split("_")[0]
        blocks[block] = blocks.get(block, 0.0) + value
    block = max(blocks, key=blocks.__getitem__)
    images = "1 image" if batch == 1 else f"{batch:,} images"
    left.set_title(f"{block}: {blocks[block] / sum(memory):.0%} of the memory", color=SERIES[0])
    left.set_xlabel(f"output, {images}, MB (float32)")
    largest = counts.index(max(counts))
    share = counts[largest] / sum(counts)
    right.set_title(f"{rows[largest].name}: {share:.0%} of the parameters", color=SERIES[1])
    right.set_xlabel("parameters, millions")
    plotting.save_png(figure, path)


def _annotate(
    axes: Axes, text: str, point: tuple[float, float], offset: tuple[int, int], **style: Any
) -> None:
    """Write a text at an offset in points from a point of the data."""
    axes.annotate(text, point, xytext=offset, textcoords="offset points", color=INK, **style)

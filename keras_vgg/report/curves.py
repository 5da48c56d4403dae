"""Training curves: a run's as a PNG, and panels of one run or several for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_vgg import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Panel(NamedTuple):
    """A plot of the training: the training's column, the validation's or "", and a title."""

    training: str
    validation: str
    title: str


PANELS = (
    Panel("loss", "val_loss", "Loss"),
    Panel("accuracy", "val_accuracy", "Accuracy (%)"),
    Panel("pr_auc", "val_pr_auc", "Precision-recall area"),
    Panel("learning_rate", "", "Learning rate"),
    Panel("images_per_second", "", "Training images per second"),
)
_LABEL_DISTANCE = 0.075  # of the height of the axes, at least


def absent_panels(rows: Sequence[Mapping[str, float]]) -> list[Panel]:
    """Return the panels of which metrics.csv has no value.

    Accuracy is for one label an image, pr_auc for several: a run has one of the two.
    """
    absent = [panel for panel in PANELS if not run_curves(panel, rows, None)]
    either = [panel for panel in PANELS if panel.training in ("accuracy", "pr_auc")]
    if any(panel not in absent for panel in either):
        return [panel for panel in absent if panel not in either]
    return [panel for panel in absent if panel.training != "pr_auc"]


class Curve(NamedTuple):
    """One metric of one run over the epochs.

    Attributes:
        rows: Rows of metrics.csv. Rows without `epoch` are numbered from 1. A value that is absent,
            None or nan is a gap.
        key: The column. A column that ends in "accuracy" is drawn in per cent.
        series: Number of the colour and the dashes.
        label: The text in a legend or at the end of the line.
        best_epoch: It gets a vertical line if all curves share it, and a ring on a validation
            metric, because validation decides what is best.
    """

    rows: Sequence[Mapping[str, float]]
    key: str
    series: int = 0
    label: str = ""
    best_epoch: float | None = None

    @property
    def points(self) -> np.ndarray:
        """The epochs that have a value, and the values: [2, points]."""
        points = [
            (row.get("epoch", number), row[self.key])
            for number, row in enumerate(self.rows, start=1)
            if row.get(self.key) is not None and not math.isnan(row[self.key])
        ]
        scale = 100 if self.key.endswith("accuracy") else 1
        return np.array(points, dtype=float).reshape(-1, 2).T * [[1], [scale]]


def run_curves(
    panel: Panel, rows: Sequence[Mapping[str, float]], best_epoch: float | None
) -> list[Curve]:
    """Return the curves of one run that a panel shows: those that have a point."""
    curves = [
        Curve(rows, panel.training, 1 if panel.validation else 0, "training", best_epoch),
        Curve(rows, panel.validation, 0, "validation", best_epoch),
    ]
    return [curve for curve in curves if curve.points.size]


def curves_figure(curves: Sequence[Curve], *, labelled: bool = False) -> Figure:
    """Return one panel: curves over the same epochs, each with at least one point.

    Args:
        labelled: Write the label of each curve at the end of its line.
    """
    # As wide as a phone, where a point of text is then about a pixel.
    figure, (axes,) = plotting.new_figure(4.8, 2.9)
    _draw_curves(axes, curves)
    axes.set_xlabel("epoch")
    if labelled:
        _label_ends(axes, curves)
    return figure


def plot_history(
    rows: Sequence[Mapping[str, float]], path: str | Path, *, best_epoch: float | None = None
) -> None:
    """Draw a run's training curves as a PNG.

    Loss, accuracy in per cent (with several labels an image, pr_auc), and the learning rate on a
    log scale, one above the other over the same epochs. The best epoch is marked. A panel without
    data is left out.

    Args:
        rows: One an epoch, with any of the keys epoch, loss, accuracy, pr_auc, val_loss,
            val_accuracy, val_pr_auc (fractions in [0, 1]) and learning_rate. Without `epoch` the
            rows are numbered from 1. A value that is absent, None or nan is a gap.
        path: The PNG, 8 inches wide at 150 dots an inch. Its folder must exist.
        best_epoch: The epoch to mark. None: the best by validation accuracy or pr_auc, else by
            validation loss; the first one of several. An epoch that is not the best by that column
            is called kept.

    Raises:
        ValueError: no row has a loss or an accuracy.
        OSError: the file cannot be written.
    """
    best_key, best_epoch, best_text = _best(rows, best_epoch)
    panels = [(panel, run_curves(panel, rows, best_epoch)) for panel in PANELS[:4]]
    panels = [(panel, curves) for panel, curves in panels if curves]
    if all(panel.validation == "" for panel, _ in panels):
        raise ValueError("the metrics have no loss and no accuracy to plot")
    heights = [2.6 if panel.validation else 1.0 for panel, _ in panels]
    figure, all_axes = plotting.new_figure(
        8, 1 + sum(heights), len(panels), sharex=True, height_ratios=heights
    )
    for axes, (panel, curves) in zip(all_axes, panels, strict=True):
        _draw_curves(axes, curves)
        axes.set_ylabel(panel.title.lower())
        if panel.validation:
            plotting.show_legend(axes)
        if panel.validation == best_key:
            axes.set_title(best_text, loc="right", color=plotting.BEST, fontsize="medium")
    all_axes[-1].set_xlabel("epoch")
    plotting.save_png(figure, path)


def _best(rows: Sequence[Mapping[str, float]], kept: float | None) -> tuple[str, float | None, str]:
    """Return the column to mark, the epoch, and a text about the epoch."""
    for key, choose, text in (
        ("val_accuracy", np.argmax, "{}: {:.2f}% at epoch {:g}"),
        ("val_pr_auc", np.argmax, "{}: {:.4f} at epoch {:g}"),
        ("val_loss", np.argmin, "{}: {:.4g} at epoch {:g}"),
    ):
        epochs, values = Curve(rows, key).points
        if values.size:
            places = np.flatnonzero(epochs == kept)  # none if it is None
            best_index = int(choose(values))
            index = int(places[0]) if places.size else best_index
            # Another figure may have selected the epoch that was kept.
            word = "best" if values[index] == values[best_index] else "kept"
            return key, epochs[index], text.format(word, values[index], epochs[index])
    return "no column", None, ""


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve in curves:
        epochs, values = curve.points
        axes.plot(
            epochs,
            values,
            label=curve.label,
            **plotting.line_style(curve.series),
            marker="o" if len(epochs) <= 30 else None,  # one epoch alone draws no line
            markersize=3.5,
            drawstyle="steps-mid" if curve.key == "learning_rate" else "default",
        )
        if curve.key.startswith("val_"):
            best = epochs == curve.best_epoch
            ring = {"mfc": "none", "mec": plotting.BEST, "mew": 1.8, "ms": 8, "zorder": 5}
            axes.plot(epochs[best], values[best], "o", **ring)
    best_epochs = {curve.best_epoch for curve in curves if curve.best_epoch is not None}
    if len(best_epochs) == 1:
        axes.axvline(*best_epochs, color=plotting.BEST, linewidth=1, linestyle=":", zorder=0)
    if curves[0].key == "images_per_second":
        axes.set_ylim(bottom=0)
    elif curves[0].key == "learning_rate":
        rates = np.concatenate([curve.points[1] for curve in curves])
        if rates.any():
            axes.set_yscale("log")  # which leaves out the 0 in which a schedule may end
            axes.set_ylim(rates[rates > 0].min() / 2, rates.max() * 2)
    axes.margins(x=0.01)
    plotting.whole_number_ticks(axes)


def _label_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write each label at the end of its line, none over another at the same x."""
    axes.get_ylim()  # settles the scale
    transform = axes.transData + axes.transAxes.inverted()
    ends = np.array([transform.transform(curve.points[:, -1]) for curve in curves])
    heights: dict[float, float] = {}  # of the last label at an x
    for i in np.argsort(ends[:, 1]):
        x, y = ends[i]
        heights[x] = max(y, heights.get(x, -1.0) + _LABEL_DISTANCE)
        style: dict[str, Any] = {"color": plotting.colour(curves[i].series), "va": "center"}
        axes.text(
            x + 0.02, heights[x], curves[i].label, transform=axes.transAxes, weight="bold", **style
        )

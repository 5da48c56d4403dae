"""Pictures of a search: scores over time, importances, the Pareto front, parallel coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import plotting
from keras_vgg.plotting import BEST, INK, LINE, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_vgg.tuning.results import Attempt


def plot_search(
    trials: Sequence[Attempt],
    front: Sequence[Attempt],
    importances: Mapping[str, float],
    path: Path,
) -> None:
    """Draw four pictures as one PNG, 12 x 8 inches.

    Args:
        trials: All trials.
        front: The trials on the Pareto front, from the smallest network on.
        importances: Field -> share, the largest first; may be empty.
        path: The PNG. Its folder must exist.
    """
    figure, (by_trial, by_time, shares, sizes) = plotting.new_figure(12, 8, 2, 2, grid="both")
    finished = sorted((a for a in trials if a.finished), key=lambda a: a.at or 0)
    _draw_scores(by_trial, [a.number for a in finished], finished)
    by_trial.set_xlabel("trial, in the order of their ends")
    plotting.whole_number_ticks(by_trial)
    failed = [a.number for a in trials if a.reason]
    if failed:
        low = by_trial.get_ylim()[0]
        label = "failed or refused"
        by_trial.plot(failed, [low] * len(failed), "x", color=INK, label=label, clip_on=False)
    _draw_scores(by_time, [(a.at or 0) / 60 for a in finished], finished)
    by_time.set_xlabel("minutes of searching")
    _draw_importances(shares, importances)
    _draw_sizes(sizes, finished, front)
    for axes in (by_trial, by_time, sizes):
        axes.set_ylabel("validation accuracy (%)")
    for axes in (by_trial, sizes):
        plotting.show_legend(axes)
    plotting.save_png(figure, path)


def _draw_scores(axes: Axes, places: Sequence[float], finished: Sequence[Attempt]) -> None:
    scores = np.array([100 * a.final_accuracy for a in finished])
    axes.plot(places, scores, "o", color=SERIES[0], alpha=0.5, label="trial")
    order = np.argsort(places)
    axes.step(
        np.asarray(places)[order],
        np.maximum.accumulate(scores[order]),
        where="post",
        color=BEST,
        label="best so far",
    )


def _draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    axes.set_title("share of the differences in accuracy", fontsize=10)
    if not importances:
        axes.text(0.5, 0.5, "too few finished trials to say", ha="center", color=INK)
        axes.set_axis_off()
        return
    names = [*importances][:12][::-1]
    axes.barh(names, [importances[name] for name in names], color=SERIES[0])
    axes.set_xlim(0, 1)


def _draw_sizes(axes: Axes, finished: Sequence[Attempt], front: Sequence[Attempt]) -> None:
    for pruned, marker, label in ((False, "o", None), (True, "v", "pruned")):
        group = [a for a in finished if a.pruned == pruned]
        millions, scores = (
            [a.parameters / 1e6 for a in group],
            [100 * a.final_accuracy for a in group],
        )
        axes.plot(millions, scores, marker, color=SERIES[0], alpha=0.5, label=label)
    axes.step(
        [a.parameters / 1e6 for a in front],
        [100 * a.final_accuracy for a in front],
        "o-",
        where="post",
        color=BEST,
        label="no smaller network is as good",
    )
    plotting.log_ticks(axes)
    axes.set_xlabel("million parameters")


def plot_parallel(names: Sequence[str], finished: Sequence[Attempt], path: Path) -> None:
    """Draw parallel coordinates as a PNG: an axis a field, a line a trial, coloured by accuracy.

    Numbers are placed by rank among the values that were tried, so logarithmic ranges need no axis
    of their own. If a trial lacks a field, its line passes below that axis.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, (axes,) = plotting.new_figure(max(8, 1.3 * len(names) + 2), 5, grid=None)
    scores = [100 * a.final_accuracy for a in finished]
    # The colours leave out the worst tenth: one bad trial would make all the others look alike.
    low, high = np.quantile(scores, 0.1), max(scores)
    scale = Normalize(low, max(high, low + 1e-6), clip=True)
    colours = colormaps["viridis"]
    places: dict[str, dict[Any, float]] = {}
    for column, name in enumerate(names):
        tried = {a.values[name] for a in finished if name in a.values}
        # None and texts such as "auto" have no order among numbers.
        values: list[Any] = sorted(tried, key=lambda v: (v is not None, isinstance(v, str), v))
        places[name] = {v: i / max(len(values) - 1, 1) for i, v in enumerate(values)}
        axes.axvline(column, color=LINE, zorder=0)
        for value in values if len(values) <= 6 else (values[0], values[-1]):
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
            axes.text(column + 0.05, places[name][value], text, fontsize=8, color=INK, bbox=box)
    for trial in sorted(finished, key=lambda a: a.final_accuracy):
        heights = [places[name].get(trial.values.get(name), -0.08) for name in names]
        colour = colours(scale(100 * trial.final_accuracy))
        axes.plot(range(len(names)), heights, color=colour, alpha=0.8, linewidth=1.5)
    axes.set_xticks(range(len(names)), names, rotation=30)
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(names) - 0.4)
    plotting.colour_bar(ScalarMappable(scale, colours), axes, "validation accuracy (%)")
    plotting.save_png(figure, path)

"""A search, drawn: scores against trials and time, importances, the Pareto front, parallel axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from keras_vgg.tuning.results import Attempt

_INK, _FAINT, _DOT, _BEST = "#1a1a1a", "#cccccc", "#4477aa", "#cc3311"


def plot_search(
    found: Sequence[Attempt],
    front: Sequence[Attempt],
    importances: Mapping[str, float],
    path: Path,
) -> None:
    """Four pictures in one PNG, 12 x 8 inches.

    Args:
        found: The trials.
        front: Those of them on the Pareto front, from the smallest on.
        importances: Field -> share, the largest first; may be empty.
        path: The PNG. Its folder must exist.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(12, 8), dpi=120, layout="constrained")
    (trials, times), (shares, sizes) = figure.subplots(2, 2)
    finished = sorted((a for a in found if a.finished), key=lambda a: a.at or 0)
    _scores(trials, [a.number for a in finished], finished)
    trials.set_xlabel("trial, in the order of their ends")
    failed = [a.number for a in found if a.reason]
    if failed:
        low = trials.get_ylim()[0]
        label = "failed or refused"
        trials.plot(failed, [low] * len(failed), "x", color=_INK, label=label, clip_on=False)
    trials.legend(frameon=False, loc="lower right")
    _scores(times, [(a.at or 0) / 60 for a in finished], finished)
    times.set_xlabel("minutes of searching")
    _bars(shares, importances)
    pruned = [a for a in finished if a.pruned]
    whole = [a for a in finished if not a.pruned]
    for some, style in ((whole, "o"), (pruned, "v")):
        xs, ys = [a.parameters / 1e6 for a in some], [100 * a.final_accuracy for a in some]
        sizes.plot(xs, ys, style, color=_DOT, alpha=0.5, label="pruned" if style == "v" else None)
    sizes.step(
        [a.parameters / 1e6 for a in front],
        [100 * a.final_accuracy for a in front],
        "o-",
        where="post",
        color=_BEST,
        label="none smaller is as good",
    )
    sizes.set_xscale("log")
    # A logarithmic axis of less than a decade has no tick of matplotlib's own.
    sizes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    sizes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    sizes.xaxis.set_minor_formatter(NullFormatter())
    sizes.set_xlabel("million parameters")
    sizes.legend(frameon=False, loc="lower right")
    for axis in (trials, times, sizes):
        axis.set_ylabel("validation accuracy (%)")
        axis.grid(color="#eeeeee")
    for axis in (trials, times, shares, sizes):
        axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda target: figure.savefig(target, format="png"))


def plot_parallel(names: Sequence[str], finished: Sequence[Attempt], path: Path) -> None:
    """Parallel coordinates: an axis a field, a line a trial, coloured by validation accuracy.

    Numbers are placed by rank among the values that were tried, so that logarithmic ranges need no
    axis of their own; what a trial does not have is below the axis.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8, 1.3 * len(names) + 2), 5), dpi=120, layout="constrained")
    axis = figure.subplots()
    scores = [100 * a.final_accuracy for a in finished]
    # Colours by rank, too: one bad trial would make all the others look alike.
    low, high = np.quantile(scores, 0.1), max(scores)
    scale = Normalize(low, max(high, low + 1e-6), clip=True)
    colours = colormaps["viridis"]
    places: dict[str, dict[Any, float]] = {}
    for column, name in enumerate(names):
        values = sorted({a.values[name] for a in finished if name in a.values})
        places[name] = {v: i / max(len(values) - 1, 1) for i, v in enumerate(values)}
        axis.axvline(column, color=_FAINT, zorder=0)
        few = len(values) <= 6
        for value in values if few else (values[0], values[-1]):
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
            axis.text(column + 0.05, places[name][value], text, fontsize=8, color=_INK, bbox=box)
    for attempt in sorted(finished, key=lambda a: a.final_accuracy):
        heights = [places[name].get(attempt.values.get(name), -0.08) for name in names]
        colour = colours(scale(100 * attempt.final_accuracy))
        axis.plot(range(len(names)), heights, color=colour, alpha=0.8, linewidth=1.5)
    axis.set_xticks(range(len(names)), names, rotation=30)
    axis.set_yticks([])
    axis.set_xlim(-0.2, len(names) - 0.4)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axis, pad=0.01)
    bar.set_label("validation accuracy (%)")
    write_atomically(path, lambda target: figure.savefig(target, format="png"))


def _scores(axis: Axes, places: Sequence[float], finished: Sequence[Attempt]) -> None:
    scores = np.array([100 * a.final_accuracy for a in finished])
    axis.plot(places, scores, "o", color=_DOT, alpha=0.5, label="trial")
    order = np.argsort(places)
    axis.step(
        np.asarray(places)[order],
        np.maximum.accumulate(scores[order]),
        where="post",
        color=_BEST,
        label="best so far",
    )


def _bars(axis: Axes, importances: Mapping[str, float]) -> None:
    axis.set_title("share of the differences in accuracy", fontsize=10)
    if not importances:
        axis.text(0.5, 0.5, "too few finished trials to say", ha="center", color=_INK)
        axis.set_axis_off()
        return
    names = [*importances][:12][::-1]
    shares = [*importances.values()][:12][::-1]
    axis.barh(names, shares, color=_DOT)
    axis.set_xlim(0, 1)

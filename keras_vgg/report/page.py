"""One HTML page about a run or several, which needs no other file and no network.

`keras_vgg.runs.report_runs` gathers the content. Every text in it may be hostile (class names,
paths, a recipe's values): the template escapes it. The page has no script, and its policy forbids
scripts and any file from elsewhere.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg.console import duration_in_words
from keras_vgg.files import write_atomically
from keras_vgg.plotting import DASHES, to_svg
from keras_vgg.report.content import ClassCurves, Page, Picture, RunContent, Scores
from keras_vgg.report.curves import PANELS, Curve, absent_panels, curves_figure, run_curves
from keras_vgg.report.plots import (
    MOST_COUNTS,
    confusion_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
)

_MARK = '<meta name="generator" content="keras_vgg report">'  # every report has it
_HEAD = 2048  # bytes: the mark is among the first
_MOST_CLASSES = 30  # classes that the table shows before the reader opens the rest
_LOSSLESS = 64  # pixels: a picture with longer sides is a JPEG, any other a PNG
_LARGEST = 256  # pixels: a picture with longer sides is reduced to this
_COMMON_CONFUSIONS = 10


def require_own(path: Path) -> None:
    """Refuse to replace a file that is not a report.

    Raises:
        FileExistsError: `path` is a folder, or a file that is not a report of this package.
    """
    if not path.exists():
        return
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; name a file for the report")
    with path.open("rb") as file:
        if _MARK.encode() not in file.read(_HEAD):
            raise FileExistsError(
                f"{path} exists and is not a report of keras-vgg, so it is not overwritten; "
                "choose another file"
            )


def write_page(page: Page, path: str | Path) -> None:
    """Write a page whole or not at all, and make its folder if need be.

    Raises:
        FileExistsError: as for `require_own`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    require_own(path)
    # A path that is not UTF-8 is shown as \xe9 and the like.
    html = render(page).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: partial.write_text(html, encoding="utf-8"))


def render(page: Page) -> str:
    """Return the page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_vgg.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": lambda share: f"{100 * share:+.2f}",
        "number": _number,
        "value": _value,
        "picture": _data_uri,
        "duration": duration_in_words,
    }
    template = environment.get_template("report.html")
    html = template.render(
        page=page,
        mark=_MARK,
        parts=[_RunPart(run) for run in page.runs],
        curves=_common_curves(page.runs) if len(page.runs) > 1 else [],
        dashes=DASHES,
    )
    return html.lstrip()


class _RunPart:
    """A run with its plots and sorted tables, for the template."""

    def __init__(self, run: RunContent) -> None:
        self.run = run
        self.curves = _own_curves(run)
        self.absent = [panel.title for panel in absent_panels(run.history)]
        scores = run.scores
        if scores is None:
            return
        self.reliability = to_svg(
            reliability_figure(scores.bins),
            "Reliability diagram: accuracy against confidence, and how many images each of "
            f"{len(scores.bins)} bins has. The table below it has the numbers.",
            f"run{run.number}-reliability",
        )
        self.as_table = len(scores.classes) <= MOST_COUNTS
        if self.as_table:
            self.confusion = _cells(scores)
        else:
            self.confusion_map = to_svg(
                confusion_figure(scores.confusion, side=4),
                f"Confusion matrix of {len(scores.classes)} classes by number, in the order of the "
                "network's outputs. The table below it names the most frequent confusions.",
                f"run{run.number}-confusion",
            )
        self.confusions = _common_confusions(scores)
        self.large_curves, self.small_curves = [], []
        if len(scores.classes) == 2:
            self.large_curves = [
                plot for one in scores.curves for plot in _large_curves(one, run.number)
            ]
        else:  # paths, because matplotlib takes seconds for so many plots
            self.small_curves = [
                (one, _path(one.roc), _path(one.precision_recall)) for one in scores.curves
            ]
        ranked = sorted(scores.classes, key=lambda one: (one.recall is None, one.recall, one.name))
        self.classes = ranked[:_MOST_CLASSES]
        self.more_classes = ranked[_MOST_CLASSES:]


def _cells(scores: Scores) -> list[list[tuple[int, int]]]:
    """Return rows of (count, strength): the root of the share of the row, in per cent."""
    confusion = scores.confusion
    images = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    strength = np.rint(100 * np.sqrt(confusion / images)).astype(int)
    return [
        list(zip(counts, row, strict=True))
        for counts, row in zip(confusion.tolist(), strength.tolist(), strict=True)
    ]


def _large_curves(curves: ClassCurves, number: int) -> list[tuple[str, str]]:
    """Return (title, SVG) of the ROC curve and the precision-recall curve of a class."""
    roc, precision_recall = (
        f"ROC curve of {curves.name}: AUC {curves.auc:.4f}",
        f"Precision-recall curve of {curves.name}: average precision "
        f"{curves.average_precision:.4f}",
    )
    return [
        (roc, to_svg(roc_figure(curves), roc, f"run{number}-roc")),
        (
            precision_recall,
            to_svg(precision_recall_figure(curves), precision_recall, f"run{number}-pr"),
        ),
    ]


def _path(points: np.ndarray) -> str:
    """Return points [2, n] in [0, 1] as an SVG path in a square of 100, whose y goes down."""
    xs, ys = 100 * points[0], 100 * (1 - points[1])
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def _own_curves(run: RunContent) -> list[tuple[str, str]]:
    """Return (title, SVG) of each panel that has data."""
    best = "" if run.best_epoch is None else f"; the best epoch is {run.best_epoch}"
    label = f"{{}} by epoch{best}. The table below the curves has the numbers."
    return [
        (
            panel.title,
            to_svg(
                curves_figure(curves),
                label.format(panel.title),
                f"run{run.number}-{panel.training}",
            ),
        )
        for panel in PANELS
        if (curves := run_curves(panel, run.history, run.best_epoch))
    ]


def _common_curves(runs: Sequence[RunContent]) -> list[tuple[str, str]]:
    """Return (title, SVG) of each panel with the curves of all runs."""
    panels = []
    for panel in PANELS:
        title = f"Validation {panel.title.lower()}" if panel.validation else panel.title
        key = panel.validation or panel.training
        curves = [Curve(r.history, key, r.number - 1, str(r.number), r.best_epoch) for r in runs]
        curves = [curve for curve in curves if curve.points.size]
        if curves:
            label = f"{title} by epoch, a line for each run, numbered as in the table of runs"
            svg = to_svg(curves_figure(curves, labelled=True), label, f"all-{key}")
            panels.append((title, svg))
    return panels


def _common_confusions(scores: Scores) -> list[tuple[str, str, int, float]]:
    """Return (true class, answer, images, share of the true class), the most frequent first."""
    counts = scores.confusion.copy()
    images = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_COMMON_CONFUSIONS]
    confusions = []
    for true, answer in zip(*np.unravel_index(order, counts.shape), strict=True):
        count = int(counts[true, answer])
        if count:
            names = scores.classes[true].name, scores.classes[answer].name
            confusions.append((*names, count, count / int(images[true])))
    return confusions


def _data_uri(picture: Picture) -> str:
    from PIL import Image

    image = Image.fromarray(picture.pixels)
    image.thumbnail((_LARGEST, _LARGEST))
    kind = "PNG" if max(image.size) <= _LOSSLESS else "JPEG"
    file = io.BytesIO()
    save = partial(image.save, file, kind)
    save(optimize=True) if kind == "PNG" else save(quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _percent(share: float | None, places: int = 2) -> str:
    return "–" if share is None else f"{100 * share:.{places}f}\N{NO-BREAK SPACE}%"


def _number(value: float | None, places: int | None = None) -> str:
    if value is None:
        return "–"
    if places is not None:
        return f"{value:,.{places}f}"
    if isinstance(value, int | np.integer) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


def _value(value: Any) -> str:
    """Return a value of a recipe or an environment as one types it."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)

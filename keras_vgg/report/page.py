"""Runs as one HTML page that needs nothing else: what is on it, and how it is made.

The facts are `keras_vgg.runs.report_runs`'s; here they are only shown. Every text in them is
somebody's (class names, paths, a recipe's values) and is escaped by the template; the page has
no script, and its policy forbids any, as well as anything from elsewhere.
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
from keras_vgg.report import svg_plots
from keras_vgg.report.content import Page, Picture, RunContent, Scores

_MARK = '<meta name="generator" content="keras_vgg report">'  # by which a report is known
_HEAD = 2048  # bytes in which it is
_MOST_COUNTS = 20  # classes up to which a confusion matrix is a table
_MOST_CLASSES = 30  # classes up to which all are in the open
_LOSSLESS = 64  # pixels of a side up to which a picture is a PNG
_LARGEST = 256  # pixels of a side that a picture has at most
_COMMON_CONFUSIONS = 10


def require_own(path: Path) -> None:
    """Refuse to replace what is no report.

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
    """Write a page whole or not at all; a missing folder is made.

    Raises:
        FileExistsError: as `require_own`.
        OSError: the file cannot be written.
    """
    path = Path(path)
    require_own(path)
    text = render(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def render(page: Page) -> str:
    """The page as HTML."""
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
    text = template.render(
        page=page,
        mark=_MARK,
        parts=[_Drawn(facts) for facts in page.runs],
        curves=_curves(page.runs) if len(page.runs) > 1 else [],
        dashes=svg_plots.DASHES,
        colours=svg_plots.SERIES,
    )
    return text.lstrip()


_PANELS = (
    ("loss", "loss", "val_loss", "Loss"),
    ("accuracy", "accuracy", "val_accuracy", "Accuracy (%)"),
    ("rate", "learning_rate", None, "Learning rate"),
    ("speed", "images_per_second", None, "Training images per second"),
)


class _Drawn:
    """A run's facts with its plots and sorted tables, for the template."""

    def __init__(self, facts: RunContent) -> None:
        self.facts = facts
        self.curves = _own_curves(facts)
        drawn = {title for title, _, _ in self.curves}
        self.absent = [title for *_, title in _PANELS if title not in drawn]
        scores = facts.scores
        if scores is None:
            return
        salt = f"run{facts.number}"
        self.reliability = svg_plots.reliability(
            scores.bins,
            label="Reliability diagram: accuracy against confidence, and how many images each of "
            f"{len(scores.bins)} bins has. The table below it has the numbers.",
            salt=f"{salt}-reliability",
        )
        self.as_table = len(scores.classes) <= _MOST_COUNTS
        self.confusion = _cells(scores) if self.as_table else None
        self.confusion_map = None if self.as_table else _map(scores, f"{salt}-confusion")
        self.confusions = _common_confusions(scores)
        ranked = sorted(scores.classes, key=lambda one: (one.recall is None, one.recall, one.name))
        self.classes = ranked[:_MOST_CLASSES]
        self.more_classes = ranked[_MOST_CLASSES:]


def _cells(scores: Scores) -> list[list[tuple[int, int]]]:
    """Rows of (count, strength in per cent): the square root of the share of the row."""
    confusion = scores.confusion
    images = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    strength = np.rint(100 * np.sqrt(confusion / images)).astype(int)
    return [
        list(zip(counts, row, strict=True))
        for counts, row in zip(confusion.tolist(), strength.tolist(), strict=True)
    ]


def _map(scores: Scores, salt: str) -> str:
    label = (
        f"Confusion matrix of {len(scores.classes)} classes by number, in the order "
        "of the network's outputs. The table below it names the most frequent confusions."
    )
    return svg_plots.confusion_map(scores.confusion, label=label, salt=salt)


def _own_curves(facts: RunContent) -> list[tuple[str, str, bool]]:
    """(title, SVG, whether there are two lines) of each panel that has something to show."""
    found = []
    for name, training, validation, title in _PANELS:
        keys = [(training, 1 if validation else 0)] + ([(validation, 0)] if validation else [])
        lines = [(facts.history, key, number, "") for key, number in keys]
        where = "" if facts.best_epoch is None else f"; the best epoch is {facts.best_epoch}"
        svg = svg_plots.curve(
            lines,
            [None if key == training and validation else facts.best_epoch for key, _ in keys],
            label=f"{title} by epoch{where}. The table below the curves has the numbers.",
            salt=f"run{facts.number}-{name}",
        )
        if svg:
            found.append((title, svg, validation is not None))
    return found


def _curves(runs: Sequence[RunContent]) -> list[tuple[str, str]]:
    """(title, SVG) of the runs' curves over each other."""
    found = []
    for name, training, validation, title in _PANELS:
        shown = f"Validation {title[0].lower()}{title[1:]}" if validation else title
        lines = [
            (facts.history, validation or training, facts.number - 1, str(facts.number))
            for facts in runs
        ]
        svg = svg_plots.curve(
            lines,
            [facts.best_epoch for facts in runs],
            label=f"{shown} by epoch, a line for each run, numbered as in the table of runs",
            salt=f"all-{name}",
        )
        if svg:
            found.append((shown, svg))
    return found


def _common_confusions(scores: Scores) -> list[tuple[str, str, int, float]]:
    """(true class, answer, images, share of the true class), the most frequent first."""
    counts = scores.confusion.copy()
    images = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_COMMON_CONFUSIONS]
    found = []
    for true, answer in zip(*np.unravel_index(order, counts.shape), strict=True):
        count = int(counts[true, answer])
        if count:
            names = scores.classes[true].name, scores.classes[answer].name
            found.append((*names, count, count / int(images[true])))
    return found


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
    """A recipe's or an environment's, as it is typed."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)

"""Show what a `PhotoSearch` found: as CSV or JSON Lines, or as a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import numpy as np
from PIL import Image

from keras_vgg.data.left_out import printable
from keras_vgg.plotting import BEST, INK, drawable, new_figure, save_png
from keras_vgg.retrieval import NO_STRUCTURE
from keras_vgg.runs.similar import SearchAnswer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = ("query", "rank", "path", "similarity", "near_duplicate", "bits", "reason")
_INCHES = 1.5  # of a photograph in a picture
_PIXELS = 225  # of the longer side of a photograph in a picture
# More rows or columns would take gigabytes, and a picture has at most 2^16 pixels a side.
_MOST_DRAWN = 50


def write_search_answers(
    answers: Iterable[SearchAnswer], file: TextIO, format: Literal["csv", "jsonl"]
) -> tuple[int, list[SearchAnswer]]:
    """Write what was found, as the answers come.

    A CSV has one row for each match, with the columns query, rank, path, similarity,
    near_duplicate (yes or no), bits (in which the perceptual hashes differ; empty without
    structure) and reason. A query that cannot be read has one row with its reason. A line of JSON
    is a query, with the same fields in a list of matches.

    Args:
        answers: The answers.
        file: An open text file; a CSV needs newline="".
        format: "csv" or "jsonl".

    Returns:
        The number of answers, and the answers with a reason.
    """
    count, bad = 0, []
    writer = csv.writer(file, lineterminator="\n")
    if format == "csv":
        writer.writerow(_COLUMNS)
    for answer in answers:
        count += 1
        if answer.reason:
            bad.append(answer)
        matches = [
            {
                "rank": rank,
                "path": match.path,
                "similarity": float(f"{match.similarity:.7g}"),
                "near_duplicate": match.near_duplicate,
                "bits": None if match.bits == NO_STRUCTURE else match.bits,
            }
            for rank, match in enumerate(answer.matches, 1)
        ]
        if format == "jsonl":
            fields = {"query": answer.query, "reason": answer.reason or None, "matches": matches}
            file.write(json.dumps(fields) + "\n")
            continue
        if answer.reason:
            writer.writerow([answer.query, "", "", "", "", "", answer.reason])
        for fields in matches:
            fields["near_duplicate"] = "yes" if fields["near_duplicate"] else "no"
            writer.writerow([answer.query, *fields.values(), ""])
    return count, bad


def draw_search(
    answers: Sequence[SearchAnswer],
    load: Callable[[str], np.ndarray],
    path: str | Path,
    *,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Draw each query, and beside it what was found with its similarity; near-duplicates are red.

    At most the first 50 queries are drawn, and the first 50 photographs of each.

    Args:
        answers: The answers; those with a reason are left out.
        load: Reads an image file as uint8 [h, w, 3].
        path: The PNG, which is written whole or not at all.
        on_line: Is called with a line if not all is drawn.

    Raises:
        ValueError: no answer has a match.
        OSError: the file cannot be written.
    """
    shown = [answer for answer in answers if answer.matches]
    if not shown:
        raise ValueError("there is nothing to draw: no query has a match")
    most = max(len(answer.matches) for answer in shown)
    for name, count in (("queries", len(shown)), ("photographs of a query", most)):
        if count > _MOST_DRAWN:
            on_line(f"{path} shows the first {_MOST_DRAWN} of {count:,} {name}")
    shown = shown[:_MOST_DRAWN]
    columns = 1 + min(most, _MOST_DRAWN)
    figure, axes = new_figure(
        _INCHES * columns, (_INCHES + 0.3) * len(shown), len(shown), columns, grid=None
    )
    for one in axes:
        one.set_axis_off()
    for row, answer in enumerate(shown):
        first = axes[row * columns]
        first.imshow(_small(load(answer.query)))
        _write_title(first, _short(answer.query), color=INK, fontweight="bold")
        for place, match in enumerate(answer.matches[:_MOST_DRAWN], row * columns + 1):
            axes[place].imshow(_small(load(match.path)))
            title = f"{_short(match.path)}\n{match.similarity:.3f}"
            _write_title(axes[place], title, color=BEST if match.near_duplicate else INK)
    save_png(figure, path)


def _write_title(axes: Axes, title: str, **style: Any) -> None:
    # parse_math: a file called "$5_1$.png" has a name, not a formula.
    axes.set_title(drawable(title), fontsize=6, parse_math=False, **style)


def _small(image: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [h, w, 3], with no more pixels than a picture shows."""
    picture = Image.fromarray(image)
    picture.thumbnail((_PIXELS, _PIXELS))
    return np.asarray(picture)


def _short(path: str) -> str:
    name = printable(Path(path).name)
    return name if len(name) <= 24 else f"{name[:10]}...{name[-11:]}"

"""A contact sheet: some images of a split beside what evaluation and training make of them."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_vgg.augment import Picture, Window, corners
from keras_vgg.data.decode import TENSORFLOW_ERRORS, BitDepth, decode, reason, transform_encoded
from keras_vgg.data.inspection import bad_images_named
from keras_vgg.data.split import Records, Shard, Split, labels_of, pictures_of
from keras_vgg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[float, float, float, float]  # top, left, height, width in source pixels

# Okabe and Ito's colours, told apart with any kind of colour vision; with the colour of the number
# on them. After the last they begin again, in other strokes.
_COLOURS = (
    ("#0072B2", "white"),
    ("#E69F00", "black"),
    ("#009E73", "white"),
    ("#CC79A7", "black"),
    ("#D55E00", "white"),
    ("#56B4E9", "black"),
    ("#F0E442", "black"),
    ("#000000", "white"),
)
_STROKES = ("solid", "dashed", "dotted")
_INK, _EVALUATION = "#333333", "#999999"

_DPI = 150
_MOST_DOTS = 30_000  # of a side of the sheet; matplotlib's own limit is 65,536
# Inches.
_CELL = 1.6
_GAP = 0.08
_MARGIN = 0.12
_LINE = 0.24  # of text, with the space around it
_WIDEST, _TALLEST = 1.8 * _CELL, 1.8 * _CELL  # what a long original may take
_THINNEST = 0.08  # and at least takes, so that something is seen of it

# From records, so many of a shard are looked at for each image wanted, in so many shards.
_LOOK, _SHARDS = 4, 16


class _Outline(NamedTuple):
    """Where a view lies in its image: float64 [4, 2], (row, column) of its corners in turn.

    An upright one ends with the image. A turned one may go beyond it.
    """

    corners: np.ndarray
    is_turned: bool


class _Row(NamedTuple):
    """One image on the sheet. All pixels are uint8; `drawn` is (width, height) in inches."""

    caption: str
    original: np.ndarray
    sides: tuple[int, int]
    drawn: tuple[float, float]
    evaluated: np.ndarray
    views: list[np.ndarray]
    outlines: list[_Outline]


def contact_sheet(
    split: Split,
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str],
    train: Callable[[tf.Tensor | Picture, tf.Tensor], tf.Tensor],
    evaluate: Callable[[tf.Tensor | Picture], tf.Tensor],
    window: Callable[[tf.Tensor, tf.Tensor], Window],
    images: int = 6,
    views: int = 5,
    seed: int = 0,
) -> list[list[Box]]:
    """Draw images of a split as evaluation and training see them, as a PNG at 150 dots an inch.

    A row is an image: the original with its class, height and width, and a numbered rectangle where
    each view comes from, turned or sheared where the view is; what evaluation sees; the views,
    framed in the rectangles' colours. The part of a crop that lies beyond the image has no place in
    the original: its rectangle ends there.

    Args:
        path: the PNG to write, whole or not at all; a missing folder is made.
        class_names: label i means class_names[i].
        train: (image, seed [2]) -> uint8 [size, size, 3], as for `training_dataset`.
        evaluate: image -> uint8 or float32 [size, size, 3] in [0, 255], as for
            `evaluation_dataset`.
        window: (sides [2], seed [2]) -> where `train` crops, such as `augment.train_window` given
            the same options.
        images: how many, of classes as different as can be; all of a smaller split. Of records,
            those that come first in a few shards.
        views: training views of each image; view v of row i depends on (seed, i, v) alone.
        seed: decides the images too.

    Returns:
        For each image, for each view, (top, left, height, width) of what its rectangle spans in the
        image, in pixels of the source. `train` may round a crop to whole pixels there, half a pixel
        away.

    Raises:
        ValueError: `images` or `views` is below 1, the split is empty, a label has no name, or an
            image cannot be decoded, which the message names.
        OSError: the file cannot be written.
    """
    for name, count in (("images", images), ("views", views)):
        if count < 1:
            raise ValueError(f"{name}={count}: a contact sheet needs at least 1")
    if split.size == 0:
        raise ValueError(f"split {split.name!r} has no images to show")
    chosen = _choose(split, images, len(class_names), np.random.default_rng(seed))
    rows = []
    # On the CPU, as in a tf.data pipeline.
    with tf.device("CPU"), bad_images_named(chosen):
        for i, (source, label) in enumerate(_stored(chosen)):
            name = _name(label, class_names, split.name)
            base = tf.constant([seed, i], tf.int64)
            # Any, for the stub of fold_in gives ints.
            seeds: Any = [tf.random.fold_in(base, view) for view in range(views)]
            rows.append(_row(source, name, train, evaluate, window, seeds, split.bit_depth))
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(_draw(rows).savefig, format="png"))
    return [[_box(row.sides, outline) for outline in row.outlines] for row in rows]


# --- which images ----------------------------------------------------------------------------


def _choose(split: Split, images: int, classes: int, rng: np.random.Generator) -> Split:
    """Return a split of at most so many images, evenly of its classes, in the order of labels."""
    if split.records is not None:
        shards, labels = _first_records(split.records, images, classes, rng)
        picked = _evenly(np.array(labels), images, rng)
        records = replace(split.records, shards=tuple(shards[i] for i in picked))
        return replace(split, size=len(picked), records=records)
    order = rng.permutation(split.size)
    labels = labels_of(split)
    if split.several_labels:  # each set of labels counts as a class
        labels = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return split.take(order[_evenly(labels[order], images, rng)])


def _name(label: int | np.ndarray, class_names: Sequence[str], split_name: str) -> str:
    if isinstance(label, np.ndarray):
        return ", ".join(str(class_names[int(i)]) for i in np.flatnonzero(label)) or "no label"
    if not 0 <= label < len(class_names):
        raise ValueError(
            f"an image of split {split_name!r} has label {label}, "
            f"and there are {len(class_names)} class names"
        )
    return str(class_names[label])


def _evenly(labels: np.ndarray, images: int, rng: np.random.Generator) -> np.ndarray:
    """Return indices of `labels`, by label: in turns one of each class, the first ones first."""
    _, of_class, counts = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.argsort(of_class, kind="stable")
    turn = np.empty(len(labels), int)
    turn[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Where the last turn is not whole, which classes have one is drawn.
    picked = np.lexsort((rng.permutation(len(counts))[of_class], turn))[:images]
    return picked[np.argsort(labels[picked], kind="stable")]


def _first_records(
    records: Records, images: int, classes: int, rng: np.random.Generator
) -> tuple[list[Shard], list[int]]:
    """Return single records, and their labels, from the heads of shards in random order.

    No more are read than are needed for `images` images evenly of `classes` classes, or than the
    limits above allow: a class that comes late in every shard is missed.
    """
    single: list[Shard] = []
    labels: list[int] = []
    counts: collections.Counter[int] = collections.Counter()
    for opened, number in enumerate(rng.permutation(len(records.shards))):
        shard = records.shards[number]
        if len(single) >= images and (opened == _SHARDS or _even(counts, images, classes)):
            break
        stop = min(shard.stop, shard.start + _LOOK * images)
        head = replace(records, shards=(replace(shard, stop=stop),)).dataset()
        before = len(single)
        try:
            for place, (_, label) in enumerate(head, shard.start):
                single.append(Shard(shard.path, place, place + 1))
                labels.append(int(label))
                counts[int(label)] += 1
                if _even(counts, images, classes):
                    break
        except TENSORFLOW_ERRORS as error:
            place = shard.start + len(single) - before
            raise ValueError(f"{shard.path}, record {place}: {reason(error)}") from error
    if not single:
        raise ValueError("the split's files hold no records to show")
    return single, labels


def _even(counts: collections.Counter[int], images: int, classes: int) -> bool:
    """Return whether `images` can be taken, and no class twice more often than another."""
    turns, rest = divmod(images, max(classes, 1))
    whole = sum(min(count, turns) for count in counts.values()) >= images - rest
    return whole and sum(min(count, turns + 1) for count in counts.values()) >= images


def _stored(split: Split) -> Iterator[tuple[tf.Tensor, int | np.ndarray]]:
    """Yield (uint8 [h, w, 3] or an encoded image, label or uint8 [classes]) in order."""
    if split.records is not None:
        for encoded, label in split.records.dataset():
            yield encoded, int(label)
        return
    read = tf.constant if split.paths is None else tf.io.read_file
    for picture, label in zip(pictures_of(split), labels_of(split), strict=True):
        yield read(picture), label if split.several_labels else int(label)


# --- what they become ------------------------------------------------------------------------


def _row(
    source: tf.Tensor,
    name: str,
    train: Callable,
    evaluate: Callable,
    window: Callable,
    seeds: Sequence[tf.Tensor],
    bit_depth: BitDepth,
) -> _Row:
    def transformed(transform: Callable) -> np.ndarray:
        # The pipelines' way, where training decodes no more of a JPEG than its crop.
        encoded = source.dtype == tf.string
        pixels = np.asarray(
            transform_encoded(source, transform, bit_depth=bit_depth)
            if encoded
            else transform(source)
        )
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

    image = (decode(source, bit_depth=bit_depth) if source.dtype == tf.string else source).numpy()
    height, width = image.shape[:2]
    drawn = _drawn(height, width)
    return _Row(
        caption=f"{' '.join(name.split())}, {height} × {width}",
        original=_shrunk(image, drawn),
        sides=(height, width),
        drawn=drawn,
        evaluated=transformed(evaluate),
        views=[transformed(lambda image, seed=seed: train(image, seed)) for seed in seeds],
        outlines=[
            _outline(window(tf.constant([height, width]), seed), height, width) for seed in seeds
        ],
    )


def _outline(window: Window, height: int, width: int) -> _Outline:
    places = np.asarray(corners(np.array([height, width]), window), float)
    if window.view is not None and not window.view.is_upright:
        return _Outline(places, is_turned=True)
    return _Outline(np.clip(places, 0, [height, width]), is_turned=False)


def _box(sides: tuple[int, int], outline: _Outline) -> Box:
    """Return what an outline spans in the image, in source pixels."""
    places = np.clip(outline.corners, 0, sides)
    (top, left), (height, width) = places.min(axis=0).tolist(), np.ptp(places, axis=0).tolist()
    return top, left, height, width


def _drawn(height: int, width: int) -> tuple[float, float]:
    """Return width and height in inches: a cell high, but a long image as long as it may be.

    The image keeps its ratio, unless it would be too thin to be seen.
    """
    tallest = _TALLEST if height > 2 * width else _CELL
    scale = min(_WIDEST / width, tallest / height)
    return max(width * scale, _THINNEST), max(height * scale, _THINNEST)


def _shrunk(image: np.ndarray, drawn: tuple[float, float]) -> np.ndarray:
    """Return the image in no more pixels than it has dots on the sheet."""
    sides = [
        min(side, max(1, round(inches * _DPI)))
        for side, inches in zip(image.shape[:2], reversed(drawn), strict=True)
    ]
    if sides == list(image.shape[:2]):
        return image
    small = tf.image.resize(image, sides, antialias=True)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


# --- the sheet -------------------------------------------------------------------------------


def _draw(rows: Sequence[_Row]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    views = len(rows[0].views)
    # From the left: the originals, then cells; from the top: heads, then for each row a caption
    # above its pictures.
    first = max(row.drawn[0] for row in rows)
    lefts = [_MARGIN + first + 2 * _GAP + i * (_CELL + _GAP) for i in range(1 + views)]
    width = lefts[-1] + _CELL + _MARGIN
    heights = [_LINE + max(_CELL, row.drawn[1]) + _GAP for row in rows]
    height = _LINE + sum(heights) + _MARGIN
    dpi = min(_DPI, _MOST_DOTS / max(width, height))
    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)

    def place(left: float, top: float, size: tuple[float, float]) -> Axes:
        share = (left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height)
        axis = figure.add_axes(share)
        axis.set_xticks([])
        axis.set_yticks([])
        return axis

    def write(left: float, bottom: float, text: str, **style: Any) -> None:
        # parse_math: a class called "$5" is a name, not the start of a formula.
        at = left / width, 1 - bottom / height
        style = {"va": "bottom", "color": _INK, "fontsize": 9, "parse_math": False, **style}
        figure.text(*at, text, **style)

    for left, head in zip(lefts, ["evaluation", *range(1, 1 + views)], strict=True):
        write(left + _CELL / 2, _MARGIN + _LINE - 0.05, f"{head}", ha="center", weight="bold")
    top = _MARGIN
    for row, row_height in zip(rows, heights, strict=True):
        pictures = top + _LINE
        write(_MARGIN, pictures - 0.05, row.caption)
        _draw_original(place(_MARGIN, pictures, row.drawn), row, dpi)
        cells = [(row.evaluated, _EVALUATION, "solid")]
        cells += [(view, _look(i)[0], _look(i)[2]) for i, view in enumerate(row.views)]
        for left, (pixels, colour, stroke) in zip(lefts, cells, strict=True):
            axis = place(left, pictures, (_CELL, _CELL))
            _show(axis, pixels, pixels.shape[:2], _CELL * dpi)
            axis.spines[:].set(color=colour, linewidth=2.5, linestyle=stroke)
        top += row_height
    return figure


def _look(view: int) -> tuple[str, str, str]:
    """Return a view's colour, the colour of its number on that, and its stroke."""
    turn, index = divmod(view, len(_COLOURS))
    return (*_COLOURS[index], _STROKES[turn % len(_STROKES)])


def _show(axis: Axes, pixels: np.ndarray, sides: tuple[int, int], dots: float) -> None:
    """Draw pixels on the whole axis, whose coordinates are those of an image of `sides`."""
    small = 2 * max(pixels.shape[:2]) <= dots
    axis.imshow(
        pixels,
        extent=(0, sides[1], sides[0], 0),
        aspect="auto",
        interpolation="nearest" if small else "antialiased",
    )


def _draw_original(axis: Axes, row: _Row, dpi: float) -> None:
    from matplotlib.patches import Polygon

    _show(axis, row.original, row.sides, max(row.drawn) * dpi)
    axis.spines[:].set_visible(False)
    for view, outline in enumerate(row.outlines):
        colour, ink, stroke = _look(view)
        for halo in (True, False):
            axis.add_patch(
                Polygon(
                    outline.corners[:, ::-1],
                    closed=True,
                    fill=False,
                    clip_on=outline.is_turned,
                    edgecolor="white" if halo else colour,
                    linewidth=3.6 if halo else 1.8,
                    linestyle="solid" if halo else stroke,
                )
            )
        # Each number at its own share of its rectangle's longer edge, so that two rectangles in
        # the same place do not hide each other's.
        share = (view + 0.5) / len(row.outlines)
        first, across, _, down = outline.corners
        inches = np.array(row.drawn[::-1]) / row.sides
        edges = [np.linalg.norm((end - first) * inches) for end in (across, down)]
        end = across if edges[0] >= edges[1] else down
        place = np.clip(first + share * (end - first), 0, row.sides)
        axis.text(
            place[1],
            place[0],
            f"{view + 1}",
            ha="center",
            va="center",
            fontsize=6,
            color=ink,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "white"},
        )

"""keras-vgg search."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from keras_vgg.cli.rows import RowFormat, require_no_input, row_format, text_file
from keras_vgg.console import is_terminal, new_table, note, show
from keras_vgg.image_paths import expanded

if TYPE_CHECKING:
    from keras_vgg.runs.similar import PhotoSearch, SearchAnswer

SOME_BAD = 3  # the exit status if some files could not be read


@dataclasses.dataclass(frozen=True)
class Search:
    """Find the photographs of a folder that are most like others: keras-vgg search FOLDER PHOTO

    Near-duplicates come first: copies that look the same, but may be compressed, scaled, mirrored,
    brighter or grey. Then come the nearest descriptors. An index on disk keeps what describes each
    photograph, so that a second search reads only new and changed files.

    The exit status is 3 if some files could not be read, and 2 if nothing was found.
    """

    folder: tyro.conf.Positional[Path]
    """The folder to search: all images at any depth (JPEG, PNG, BMP, GIF, WebP)."""
    queries: tyro.conf.Positional[tuple[Path, ...]]
    """The photographs whose like is searched for: files, folders, patterns in quotes, tables. A
    query in the folder is not its own answer."""
    top: int = 10
    """Number of photographs to print for each query."""
    weights: str = "imagenet"
    """Pretrained weights: imagenet, torchvision, a weight file, a run directory or
    hf://OWNER/NAME."""
    configuration: str = "D"
    """Column of the paper's Table 1, for imagenet and torchvision, such as D or E."""
    pooling: Literal["avg", "max", "gem", "rmac"] = "gem"
    """How a feature map becomes a vector: mean, maximum, generalised mean (GeM), or the sum of
    regions' maxima (R-MAC)."""
    layer: str | None = None
    """Layer whose feature map is pooled, such as block5_conv3 (default: block5_pool)."""
    size: int = 224
    """Smallest side in pixels to which an image is rescaled."""
    whitening: str | None = None
    """Whitening of the descriptors: folder learns it on the photographs of FOLDER; a path names an
    .npz file of keras_vgg.retrieval (default: none)."""
    index: Path | None = None
    """File of the index (default: in the cache, one for each folder and way to describe)."""
    bit_depth: Literal["16", "14", "12", "10", "stretch"] = "16"
    """Which bits of a 16-bit PNG file carry the image: the lowest 16, 14, 12 or 10; stretch: from
    its smallest to its largest value."""
    format: RowFormat | None = None
    """table: for a person. csv, jsonl (JSON Lines): for a program (default: as the name of --out
    ends, else table)."""
    out: Path | None = None
    """File to write csv or jsonl into; it appears complete or not at all (default: print)."""
    picture: Path | None = None
    """PNG file to draw the queries and their photographs into: the first 50 of each."""

    def check(self) -> None:
        """Check paths and options, without TensorFlow.

        Raises:
            FileNotFoundError: there is nothing at a path, or nothing matches a pattern.
            ValueError: options contradict each other, or --out or --picture names an input.
        """
        row_format(self.format, self.out)
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, not {self.top}")
        if not self.queries:
            raise ValueError("search needs a folder, and at least one photograph to compare")
        if not expanded(self.folder).is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder: the folder to search comes first")
        if self.picture is not None and self.picture.suffix.lower() != ".png":
            raise ValueError(f"--picture {self.picture} must end in .png")
        if self.picture is not None and not self.picture.parent.is_dir():
            raise FileNotFoundError(f"there is no folder for --picture {self.picture}")
        if self.picture is not None and _is_below(self.picture, expanded(self.folder)):
            raise ValueError(
                f"--picture {self.picture} is inside the folder to search, where the next search "
                "would find it: name a file elsewhere"
            )
        from keras_vgg.image_paths import existing_paths

        queries = existing_paths(self.queries)
        require_no_input("--out", self.out, queries)
        require_no_input("--picture", self.picture, queries)

    def __call__(self) -> int:
        format = row_format(self.format, self.out)
        from functools import partial

        from keras_vgg.data import load_image
        from keras_vgg.data.listing import image_files
        from keras_vgg.runs.few_levels import few_levels_line
        from keras_vgg.runs.search_answers import draw_search, write_search_answers
        from keras_vgg.runs.similar import Description, PhotoSearch

        files = image_files(self.queries)
        for left_out in files.left_out:
            note(f"not read: {left_out}")
        description = Description(
            self.weights, self.configuration, self.pooling, self.layer, self.size, self.bit_depth
        )
        search = PhotoSearch(
            self.folder,
            description,
            whitening=self.whitening,
            index=self.index,
            verbose=is_terminal(sys.stderr),
        )
        _note_index(search, self.folder)
        indexed = [self.folder.joinpath(file.path) for file in search.index.files]
        require_no_input("--out", self.out, [*files.paths, *indexed])
        if line := few_levels_line([*files.paths, *indexed], self.bit_depth):
            note(line)
        answers = list(search(files.paths, self.top))
        bad = [answer for answer in answers if answer.reason]
        if len(bad) == len(answers):
            raise ValueError(f"no query can be read; the first is {bad[0].query}: {bad[0].reason}")
        if not any(answer.matches for answer in answers):
            raise ValueError(f"{self.folder} has no other photograph than the query: nothing found")
        if format == "table":
            _show(answers)
        else:
            with text_file(self.out) as file:
                write_search_answers(answers, file, format)
        for answer in bad:
            note(f"not read: {answer.query}: {answer.reason}")
        if self.picture is not None:
            load = partial(load_image, bit_depth=self.bit_depth)
            draw_search(answers, load, self.picture, on_line=note)
        return SOME_BAD if bad or search.index.bad else 0


def _is_below(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _note_index(search: PhotoSearch, folder: Path) -> None:
    from keras_vgg.data.left_out import printable

    index, update = search.index, search.update
    for left_out in update.left_out:
        note(f"not read: {left_out}")
    for file in index.bad:
        note(f"not read: {printable(folder / file.path)}: {file.reason}")
    removed = f", {update.removed:,} are no longer there" if update.removed else ""
    note(
        f"{len(index.files):,} photographs, {update.described:,} new or changed{removed}; index "
        f"{search.index_path}"
    )


def _show(answers: list[SearchAnswer]) -> None:
    """Print one table for all queries; a query's name stands in its first row."""
    from keras_vgg.data.left_out import printable

    table = new_table("", "query", "photograph", "similarity", "near-duplicate")
    table.columns[1].justify = "left"
    for query, rank, match in _matches(answers):
        table.add_row(
            printable(query) if rank == 0 else "",
            printable(match.path),
            f"{match.similarity:.3f}",
            f"yes, {match.bits} bits" if match.near_duplicate else "",
        )
    show(table)


def _matches(answers: list[SearchAnswer]) -> Iterator:
    for answer in answers:
        for rank, match in enumerate(answer.matches):
            yield answer.query, rank, match

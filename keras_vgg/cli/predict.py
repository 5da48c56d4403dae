"""keras-vgg predict."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from keras_vgg.cli.arguments import require_model_first
from keras_vgg.cli.rows import RowFormat, require_no_input, row_format, text_file
from keras_vgg.console import is_terminal, new_table, note, percent, show
from keras_vgg.image_paths import expanded

if TYPE_CHECKING:
    from keras_vgg.runs.predictor import Answer, Predictor

SOME_BAD = 3  # the exit status if some files could not be read


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify images: print the most probable classes of each, with their probabilities.

    A network that gives an image several labels prints all labels that reach their thresholds.

    The exit status is 3 if some files could not be read: their rows have the reason. It is 2 if
    no file could be read, or nothing was classified.
    """

    model: tyro.conf.Positional[Path]
    """A run directory; a .keras file; or an exported SavedModel folder, .tflite, .onnx or
    OpenVINO .xml file."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files (JPEG, PNG, BMP, GIF, WebP), folders (all images below them), patterns in quotes
    ('photos/**/*.jpg'), or tables with a column of paths (.csv, .tsv, .jsonl). A file that is named
    twice is classified once."""
    top: int | Literal["all"] | None = None
    """Number of classes to print for each image, or all (default: 2 in a table, 5 in csv and
    jsonl)."""
    format: RowFormat | None = None
    """table: for a person. csv, jsonl (JSON Lines): one row for each image, for a program (default:
    as the name of --out ends, else table)."""
    out: Path | None = None
    """File to write csv or jsonl into; it appears complete or not at all (default: print)."""
    calibrated: bool = True
    """Use the temperature of `keras-vgg calibrate`, if the run has one. A file has it inside."""
    unknown: float | None = None
    """Answer "unknown" where the most probable class is below the probability that this share of
    the validation images reaches, such as 0.95. Needs `keras-vgg calibrate`."""
    columns: str = ""
    """For a table whose column of paths has no common name: its name, such as path=file."""
    classes: str | None = None
    """For a file that does not state its classes: a text file with one name a line, or imagenet."""
    eval_scale: int | None = None
    """For a file that does not state it: smallest side to which an image is rescaled before the
    centre crop."""
    resize: Literal["crop", "squash", "pad"] | None = None
    """For a file that does not state it: how an image comes to the scale."""
    bit_depth: Literal["16", "14", "12", "10", "stretch"] | None = None
    """For a file that does not state it: which bits of a 16-bit PNG file carry the image, as in a
    recipe (default: 16)."""

    def check(self) -> None:
        """Check paths and options, without TensorFlow.

        Raises:
            FileNotFoundError: there is nothing at a path, or nothing matches a pattern.
            ValueError: options contradict each other, or --out names an input.
        """
        self._format()
        if not self.images:
            raise ValueError("predict needs at least one image file or folder")
        if not expanded(self.model).exists():
            raise FileNotFoundError(
                f"{self.model} is not a run directory or a model file: it does not exist"
            )
        require_model_first("predict", self.model, self.images)
        from keras_vgg.image_paths import existing_paths

        inputs = [self.model, *existing_paths(self.images), *([self.classes] * bool(self.classes))]
        require_no_input("--out", self.out, inputs)

    def __call__(self) -> int:
        format, names = self._format(), self._class_names()
        from keras_vgg.data.listing import image_files
        from keras_vgg.runs.classifier import run_of
        from keras_vgg.runs.few_levels import ADVICE, ADVICE_FOR_A_RUN, few_levels_line
        from keras_vgg.runs.predictor import Predictor

        files = image_files(self.images, self.columns)
        require_no_input("--out", self.out, files.paths)
        for left_out in files.left_out:
            note(f"not read: {left_out}")
        if files.repeated:
            note(f"{files.repeated:,} files are named more than once, and are classified once")
        predictor = Predictor(
            self.model,
            class_names=names,
            eval_scale=self.eval_scale,
            resize=self.resize,
            bit_depth=self.bit_depth,
            calibrated=None if self.calibrated else False,
            unknown=self.unknown,
        )
        for line in predictor.notes:
            note(line)
        advice = ADVICE if run_of(self.model) is None else ADVICE_FOR_A_RUN
        if line := few_levels_line(files.paths, predictor.bit_depth, advice):
            note(line)
        answers = predictor.stream(files.paths, verbose=is_terminal(sys.stderr))
        if format == "table":
            count, bad = self._show(answers, predictor.several_labels)
        else:
            count, bad = self._write(answers, predictor, format)
        if not bad:
            return 0
        if len(bad) == count:
            raise ValueError(_none_read(bad))
        note(f"{len(bad):,} of {count:,} files cannot be read; their rows have the reason")
        return SOME_BAD

    def _format(self) -> RowFormat:
        """Return the format. ValueError: options contradict each other."""
        if self.top is not None and self.top != "all" and self.top < 1:
            raise ValueError(f"--top must be at least 1, or all, not {self.top}")
        return row_format(self.format, self.out)

    def _class_names(self) -> list[str] | None:
        if self.classes is None:
            return None
        if self.classes == "imagenet":
            from keras_vgg.imagenet import class_names

            return list(class_names())
        path = expanded(self.classes)
        if not path.is_file():
            raise FileNotFoundError(
                f"--classes {self.classes}: there is no such file; name a text file with one class "
                "on every line, or imagenet"
            )
        try:
            names = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"--classes {self.classes} is not a text file: {error}") from error
        if not names or not all(name.strip() for name in names):
            raise ValueError(f"--classes {self.classes} must have one class name on every line")
        return names

    def _top(self, default: int) -> int | None:
        return None if self.top == "all" else self.top or default

    def _show(self, answers: Iterator[Answer], several_labels: bool) -> tuple[int, list[Answer]]:
        """Print one table; with several labels an image, all of them in one column.

        Return the number of answers, and those of bad files.
        """
        from keras_vgg.data.left_out import printable

        rows, bad = [], []
        for answer in answers:
            ranked = answer.ranked(self._top(2))
            cells = [cell for name, p in ranked for cell in (name, percent(p))]
            if ranked and several_labels:
                labels = answer.labels if self.top is None else ranked
                cells = [", ".join(f"{name} {percent(p)}" for name, p in labels) or "no label"]
            elif ranked:
                cells[0] = answer.name or ""
            else:
                bad.append(answer)
            rows.append((printable(answer.path or ""), cells, answer.reason))
        if len(bad) == len(rows) == 1:
            return 1, bad  # the error says all of it
        width = max(len(cells) for _, cells, _ in rows)
        reasons = ("reason",) if bad else ()
        headers = ["labels"][:width] if several_labels else _headers(width // 2)
        table = new_table("", "image", *headers, *reasons)
        if bad:
            table.columns[-1].no_wrap, table.columns[-1].justify = False, "left"
        for path, cells, reason in rows:
            padded = [*cells, *[""] * (width - len(cells))]
            table.add_row(path, *padded, *([reason] if bad else []))
        show(table)
        return len(rows), bad

    def _write(
        self, answers: Iterator[Answer], predictor: Predictor, format: Literal["csv", "jsonl"]
    ) -> tuple[int, list[Answer]]:
        """Write or print rows. Return the number of answers, and those of bad files."""
        from keras_vgg.runs.answers import write_answers

        with text_file(self.out) as file:
            written = write_answers(
                answers,
                file,
                format,
                predictor.class_names,
                self._top(5),
                several_labels=predictor.several_labels,
            )
            if self.out is not None and len(written[1]) == written[0]:
                raise ValueError(_none_read(written[1]))
        if self.out is not None:
            show(f"{self.out}: {written[0]:,} rows")
        return written


def _headers(classes: int) -> list[str]:
    names = ["class", "second class", *(f"class {i}" for i in range(3, classes + 1))]
    return [header for name in names[:classes] for header in (name, "probability")]


def _none_read(bad: Sequence[Answer]) -> str:
    from keras_vgg.data.left_out import printable

    first = f"{printable(bad[0].path or '')}: {bad[0].reason}"
    if len(bad) == 1:
        return first
    return f"none of {len(bad):,} files can be read as an image; the first is {first}"

"""keras-vgg evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate trained networks: top-1, top-5, loss, accuracy of each class, confusion matrix.

    Every image of the split is counted. The figures go into the run's results.json, the confusion
    matrix into a PNG beside it. Choose a network on the validation split, and read the test split
    once, to report. With several runs, the command prints a comparison with the first run (95 %
    bootstrap intervals, McNemar's p) and the average of their posteriors. Posteriors are kept in
    the run directory: repeat the command to resume an interrupted one.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """One or more run directories."""
    split: Literal["test", "validation", "train"] = "test"
    """Split to evaluate on."""
    protocol: Literal["center", "dense", "multi-crop", "both"] = "center"
    """How to test an image. center: one central crop; dense: the classifier as convolutions over
    the whole image; multi-crop: a 5 x 5 grid of crops; both: the average of dense and multi-crop.
    All but center also test the mirror image if training used mirror images."""
    scales: str = ""
    """Comma-separated smallest sides. The image is rescaled to each (bilinear), and the posteriors
    are averaged (default: the recipe's eval_scale)."""
    average: Literal["scores", "posteriors"] | None = None
    """Average the places of an image before the soft-max (scores) or after (posteriors) (default:
    scores for dense, posteriors for multi-crop)."""
    tables: bool = False
    """Print the paper's Tables 3 to 6 for the runs, at the paper's scales."""

    def __call__(self) -> None:
        from keras_vgg import runs as evaluating
        from keras_vgg.run import Run

        if not self.runs:
            raise ValueError("evaluate needs at least one run directory")
        runs = [Run.open(path) for path in self.runs]
        options = {"split": self.split, "verbose": True, "average": self.average}
        if self.tables:
            if self.scales or self.protocol != "center":
                raise ValueError(
                    "--tables has the paper's protocols and scales; leave out --protocol and"
                    " --scales"
                )
            for title, headers, rows in evaluating.paper_tables(runs, **options):
                table = new_table(f"{title}; {self.split}, per cent", *headers)
                for row in rows:
                    table.add_row(*("" if cell is None else cell for cell in row))
                show(table)
            return
        options |= {"protocol": self.protocol, "scales": self._scales()}
        if len(runs) > 1:
            names = evaluating.run_names(runs)
            self._compare(names, evaluating.evaluate_runs(runs, **options))
            return
        evaluation = evaluating.evaluate_run(runs[0], **options)
        table = new_table(self._title(self.runs[0]), "", "")
        table.add_row("images", f"{evaluation.count:,}")
        low, high = evaluation.interval()
        table.add_row("top-1 accuracy", f"{evaluation.top1:.2%} ({low:.2%} to {high:.2%})")
        if evaluation.top5 is not None:
            low, high = evaluation.interval(5)
            table.add_row("top-5 accuracy", f"{evaluation.top5:.2%} ({low:.2%} to {high:.2%})")
        table.add_row("loss", f"{evaluation.loss:.4f}")
        show(table)
        table = new_table("accuracy by class", "class", "images", "accuracy")
        counts = evaluation.confusion.sum(axis=1)
        for name, count, accuracy in zip(
            evaluation.class_names, counts, evaluation.per_class, strict=True
        ):
            table.add_row(name, str(count), f"{accuracy:.2%}" if count else "no image")
        show(table)
        name = evaluating.evaluation_name(
            self.split, self.protocol, options["scales"], options["average"]
        )
        show(str(runs[0].directory / f"confusion_{name}.png"))

    def _compare(self, names: Sequence[str], evaluations: Sequence) -> None:
        from keras_vgg.evaluation import compare, fuse

        headers = ("top-1", "95 % interval", "top-5", "loss", "minus the first", "p")
        table = new_table(self._title(*self.runs), "run", *headers)
        rows = [*zip(names, evaluations, strict=True)]
        for name, evaluation in [*rows, ("all, fused", fuse(evaluations))]:
            low, high = evaluation.interval()
            top5 = "" if evaluation.top5 is None else f"{evaluation.top5:.2%}"
            cells = [f"{evaluation.top1:.2%}", f"{low:.2%} to {high:.2%}", top5]
            cells.append(f"{evaluation.loss:.4f}")
            if evaluation is not evaluations[0]:
                comparison = compare(evaluations[0], evaluation)
                low, high = comparison.interval
                cells.append(f"{comparison.difference:+.2%} ({low:+.2%} to {high:+.2%})")
                cells.append(f"{comparison.p_value:.2g}")
            table.add_row(name, *cells)
        show(table)

    def _title(self, *runs: Path) -> str:
        parts = [str(runs[0])] if len(runs) == 1 else [f"{len(runs)} runs"]
        parts[0] += f": {self.split}, {self.protocol}"
        if self.scales:
            parts.append(f"scales {self.scales}")
        if self.protocol != "center":
            parts.append(f"averaged: {self.average or 'dense scores, multi-crop posteriors'}")
        return ", ".join(parts)

    def _scales(self) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in self.scales.split(",") if part.strip())
        except ValueError:
            raise ValueError(
                f"--scales must be whole numbers such as 256,384,512, not {self.scales!r}"
            ) from None

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
    """Test trained networks: top-1, top-5, loss, accuracy of each class, confusion matrix.

    Every image of the split is counted. A run's figures go into its results.json, the confusion
    matrix into a PNG beside it. Read the test split once, to report; select on validation.
    Several runs are compared, and fused by averaging their posteriors: that is only printed.
    Posteriors are kept in the
    run directory: what is interrupted goes on, and what was computed is not computed again.
    Intervals are bootstrap intervals of 95 %; p is McNemar's, against the first run.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    split: Literal["test", "validation", "train"] = "test"
    """Which images."""
    protocol: Literal["center", "dense", "multi-crop", "both"] = "center"
    """One crop an image; the classifier as convolutions over the whole image; a 5 x 5 grid of
    crops; or the average of the last two. All but center see the mirror image, if training did."""
    scales: str = ""
    """Comma-separated smallest sides to rescale to, bilinearly; their posteriors are averaged
    (default: the recipe's eval_scale)."""
    average: Literal["scores", "posteriors"] | None = None
    """Average the places of an image before or after the soft-max (default: dense scores,
    multi-crop posteriors)."""
    tables: bool = False
    """Print the paper's Tables 3 to 6 of the runs instead; the scales are the paper's."""

    def __call__(self) -> None:
        from keras_vgg import runs as testing
        from keras_vgg.run import Run

        if not self.runs:
            raise ValueError("evaluate needs at least one run directory")
        runs = [Run.open(path) for path in self.runs]
        options = {"split": self.split, "verbose": True, "average": self.average}
        if self.tables:
            if self.scales or self.protocol != "center":
                raise ValueError("--tables has the paper's protocols and scales: leave them out")
            for title, headers, rows in testing.paper_tables(runs, **options):
                table = new_table(f"{title}; {self.split}, per cent", *headers)
                for row in rows:
                    table.add_row(*("" if cell is None else cell for cell in row))
                show(table)
            return
        options |= {"protocol": self.protocol, "scales": self._scales()}
        if len(runs) > 1:
            names = testing.run_names(runs)
            self._compare(names, testing.evaluate_runs(runs, **options))
            return
        evaluation = testing.evaluate_run(runs[0], **options)
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
        name = testing.evaluation_name(
            self.split, self.protocol, options["scales"], options["average"]
        )
        show(str(runs[0].directory / f"confusion_{name}.png"))

    def _compare(self, names: Sequence[str], evaluations: Sequence) -> None:
        from keras_vgg.evaluation import compare, fuse

        headers = ("top-1", "95 % interval", "top-5", "loss", "minus the first", "p")
        table = new_table(self._title(*self.runs), "run", *headers)
        rows = [*zip(names, evaluations, strict=True)]
        for name, found in [*rows, ("all, fused", fuse(evaluations))]:
            low, high = found.interval()
            cells = [f"{found.top1:.2%}", f"{low:.2%} to {high:.2%}"]
            cells += ["" if found.top5 is None else f"{found.top5:.2%}", f"{found.loss:.4f}"]
            if found is not evaluations[0]:
                between = compare(evaluations[0], found)
                low, high = between.interval
                cells.append(f"{between.difference:+.2%} ({low:+.2%} to {high:+.2%})")
                cells.append(f"{between.p_value:.2g}")
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

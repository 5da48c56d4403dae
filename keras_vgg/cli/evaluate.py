"""keras-vgg evaluate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from keras_vgg.cli.arguments import require_runs
from keras_vgg.console import new_table, percent, show

if TYPE_CHECKING:
    from rich.table import Table

    from keras_vgg.evaluation import Evaluation, MultiLabelEvaluation
    from keras_vgg.run import Run
    from keras_vgg.runs import Recorded


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate trained networks: accuracy, balanced accuracy, AUC, each class, confusion matrix.

    Every image of the split is counted. The figures go into the run's results.json, the confusion
    matrix into a PNG beside it. Intervals are 95 % bootstrap intervals, over groups if the images
    have groups. Choose a network on the validation split, and read the test split once, to report.
    With several runs, the command prints a comparison with the first run (McNemar's p) and the
    average of their posteriors. Posteriors are kept in the run directory: repeat the command to
    resume an interrupted one.

    A run that gives an image several labels gets mean average precision, AUC, F1 and exact match in
    their place. The threshold of each label is chosen on the validation images, and kept.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """One or more run directories; or directories of folds, whose out-of-fold answers are then
    printed, or compared (McNemar's test over images, and the corrected resampled t-test over
    folds)."""
    split: Literal["test", "validation", "train", "all"] | None = None
    """Split to evaluate on (default: test; for another set without splits of its own, all)."""
    source: str | None = None
    """Where the run's images are now if they have moved, or another set to evaluate on, such as
    folder:PATH. The classes of another set are matched by name, and its results have a name of
    their own."""
    columns: str | None = None
    """For another set, csv:FILE: its columns' names, such as path=scan,label=diagnosis; "" if they
    have common names (default: the names of the runs' own table)."""
    data_dir: str | None = None
    """TFDS: the folder of prepared data sets, if it has moved (default: the runs' own)."""
    unknown_classes: Literal["error", "skip"] = "error"
    """If another set has classes that the run does not know: stop with an error, or skip their
    images."""
    specificity: float | None = None
    """Specificity at which the sensitivity for the second of two classes is stated (default:
    0.95)."""
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

    def check(self) -> None:
        """Check the runs, without TensorFlow; raises as `require_runs`."""
        require_runs("evaluate", self.runs, folds=True)

    def __call__(self) -> None:
        from keras_vgg.run import Run, holds_folds

        if any(map(holds_folds, self.runs)):
            self._evaluate_folds()
            return
        if self.specificity is not None and not 0 < self.specificity < 1:
            raise ValueError(
                f"--specificity must be in (0, 1), such as 0.95, not {self.specificity:g}"
            )
        if self.specificity is not None and (len(self.runs) > 1 or self.tables):
            raise ValueError("--specificity is for the figures of one run; leave it out")
        scales = self._scales()
        from keras_vgg import runs as evaluating

        runs = [Run.open(path) for path in self.runs]
        runs = [evaluating.in_data_dir(run, self.data_dir, self.source) for run in runs]
        runs = [evaluating.with_columns(run, self.columns, self.source) for run in runs]
        options: dict[str, Any] = {
            "split": self.split,
            "verbose": True,
            "average": self.average,
            "source": self.source,
            "unknown_classes": self.unknown_classes,
        }
        if any(run.several_labels for run in runs):
            options |= {"protocol": self.protocol, "scales": scales}
            self._evaluate_labels(runs, options)
            return
        if self.tables:
            self._show_papers_tables(evaluating.paper_tables, runs, options)
            return
        options |= {"protocol": self.protocol, "scales": scales}
        if len(runs) > 1:
            names = evaluating.run_names(runs)
            self._compare(names, evaluating.evaluate_runs(runs, **options))
            return
        recorded = evaluating.record_evaluation(runs[0], **options, **self._figure_options())
        self._show_figures(recorded)
        self._show_classes(recorded.evaluation)
        confusion = runs[0].directory / f"confusion_{recorded.key}.png"
        if runs[0].finished:
            show(str(confusion))

    def _evaluate_labels(self, runs: Sequence[Run], options: dict[str, Any]) -> None:
        """Evaluate a run with several labels an image, and print its figures."""
        from keras_vgg.runs import evaluate_labels
        from keras_vgg.runs.several_labels import few_images_of_thresholds

        if self.tables:
            raise ValueError("--tables has top-1 and top-5 errors, which need one label an image")
        if self.specificity is not None:
            raise ValueError("--specificity needs two classes, one for each image; leave it out")
        if len(runs) > 1:
            raise ValueError(
                "runs with several labels an image are not compared with others: name one run"
            )
        recorded = evaluate_labels(runs[0], **options)
        evaluation = recorded.evaluation
        table = new_table(self._title(recorded.images.title, self.runs[0]), "", "")
        _add_counts(table, evaluation)
        for figure in evaluation.figures().values():
            remark = figure.baseline_text()
            table.add_row(figure.title, figure.text() + (f"\n{remark}" if remark else ""))
        show(table)
        headers = ("class", "images", "AP", "AUC", "threshold", "precision", "recall", "F1")
        table = new_table("labels, each by itself", *headers)
        figures = (evaluation.average_precision, evaluation.auc, evaluation.thresholds)
        shares = (evaluation.precision, evaluation.recall, evaluation.f1)
        columns = zip(evaluation.class_names, evaluation.images, *figures, *shares, strict=True)
        for name, images, *values in columns:
            table.add_row(name, f"{images:,}", *map(_defined, values))
        show(table)
        if recorded.images.source is None and recorded.images.name == "validation":
            show("the thresholds were chosen on these images, so F1 and exact match flatter")
        else:
            show("the thresholds were chosen on the validation images, for the highest F1")
        few = few_images_of_thresholds(runs[0])
        if few:
            show(few)

    def _evaluate_folds(self) -> None:
        from keras_vgg.cli.folds import evaluate_folds
        from keras_vgg.run import holds_folds

        if self != Evaluate(self.runs):
            raise ValueError(
                "a cross-validation was evaluated when its folds were trained: leave out all "
                "options"
            )
        for path in self.runs:
            if not holds_folds(path):
                raise ValueError(
                    f"{path} is no cross-validation, and cannot be compared with one; name "
                    "directories that keras-vgg train --folds wrote"
                )
        evaluate_folds(self.runs)

    def _show_papers_tables(self, paper_tables: Callable, runs: Sequence, options: dict) -> None:
        if self.scales or self.protocol != "center":
            raise ValueError(
                "--tables has the paper's protocols and scales; leave out --protocol and --scales"
            )
        for title, headers, rows in paper_tables(runs, **options):
            table = new_table(f"{title}; {self._images()}, per cent", *headers)
            for row in rows:
                table.add_row(*("" if cell is None else cell for cell in row))
            show(table)

    def _show_figures(self, recorded: Recorded) -> None:
        """Print each figure with its interval, and a remark where it is no better than a guess."""
        evaluation = recorded.evaluation
        figures = evaluation.figures(**self._figure_options())
        baseline = figures.pop("majority_share")
        top1 = dataclasses.replace(
            baseline,
            title="top-1 accuracy",
            value=evaluation.top1,
            interval=evaluation.interval(),
            baseline=baseline.value,
        )
        shown = [top1, baseline]
        if evaluation.top5 is not None:
            shown.append(
                dataclasses.replace(
                    baseline,
                    title="top-5 accuracy",
                    value=evaluation.top5,
                    interval=evaluation.interval(5),
                )
            )
        shown += figures.values()
        table = new_table(self._title(recorded.images.title, self.runs[0]), "", "")
        _add_counts(table, evaluation)
        for figure in shown:
            remark = figure.baseline_text()
            table.add_row(figure.title, figure.text() + (f"\n{remark}" if remark else ""))
        table.add_row("loss", f"{evaluation.loss:.4f}")
        show(table)

    def _show_classes(self, evaluation: Evaluation) -> None:
        table = new_table("accuracy by class", "class", "images", "accuracy")
        counts = evaluation.confusion.sum(axis=1)
        for name, count, accuracy in zip(
            evaluation.class_names, counts, evaluation.per_class, strict=True
        ):
            table.add_row(name, str(count), f"{accuracy:.2%}" if count else "no image")
        show(table)

    def _compare(self, names: Sequence[str], evaluations: Sequence[Evaluation]) -> None:
        from keras_vgg.evaluation import compare, fuse

        headers = ("top-1", "95 % interval", "balanced", "top-5", "loss", "minus the first", "p")
        table = new_table(self._title(self._images(), *self.runs), "run", *headers)
        rows = [*zip(names, evaluations, strict=True)]
        for name, evaluation in [*rows, ("all, fused", fuse(evaluations))]:
            low, high = evaluation.interval()
            balanced = evaluation.figures()["balanced_accuracy"].value
            cells = [f"{evaluation.top1:.2%}", f"{low:.2%} to {high:.2%}", percent(balanced)]
            cells += [percent(evaluation.top5), f"{evaluation.loss:.4f}"]
            if evaluation is not evaluations[0]:
                comparison = compare(evaluations[0], evaluation)
                low, high = comparison.interval
                cells.append(f"{comparison.difference:+.2%} ({low:+.2%} to {high:+.2%})")
                cells.append(f"{comparison.p_value:.2g}")
            table.add_row(name, *cells)
        baseline = evaluations[0].figures()["majority_share"]
        table.add_row(baseline.title, percent(baseline.value))
        show(table)
        if evaluations[0].over:
            show(f"intervals {evaluations[0].over}; p takes images as independent")

    def _figure_options(self) -> dict[str, Any]:
        """Return what differs from the defaults of `Evaluation.figures`."""
        return {} if self.specificity is None else {"specificity": self.specificity}

    def _images(self) -> str:
        """Return the images of several runs in words."""
        split = self.split or ("test" if self.source is None else "")
        return " of ".join(part for part in (split, self.source) if part)

    def _title(self, images: str, *runs: Path) -> str:
        parts = [str(runs[0])] if len(runs) == 1 else [f"{len(runs)} runs"]
        parts[0] += f": {images}, {self.protocol}"
        if self.scales:
            parts.append(f"scales {self.scales}")
        if self.protocol != "center":
            usual = {"dense": "scores", "multi-crop": "posteriors"}
            of_both = "dense scores, multi-crop posteriors"
            parts.append(f"averaged: {self.average or usual.get(self.protocol, of_both)}")
        return ", ".join(parts)

    def _scales(self) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in self.scales.split(",") if part.strip())
        except ValueError:
            raise ValueError(
                f"--scales must be whole numbers such as 256,384,512, not {self.scales!r}"
            ) from None


def _add_counts(table: Table, evaluation: Evaluation | MultiLabelEvaluation) -> None:
    """Add the number of images, and what intervals are over if the images have groups."""
    table.add_row("images", f"{evaluation.count:,}")
    if evaluation.over:
        table.add_row("intervals", evaluation.over)


def _defined(value: float) -> str:
    return "–" if value != value else f"{value:.4f}"

"""Cross-validation: a run for each fold, and the answers for every image when it was held out."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import evaluation
from keras_vgg.console import notes_once
from keras_vgg.files import PARTIAL, sha256_of, write_json
from keras_vgg.fit import hosts, train
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, directory_of_run, holds_folds, read_fields
from keras_vgg.runs.evaluate import record_evaluation
from keras_vgg.runs.out_of_fold import Answers, read_table, write_table
from keras_vgg.runs.several_labels import evaluate_labels

TABLE, SUMMARY = "out_of_fold.csv", "folds.json"


@dataclasses.dataclass(frozen=True)
class FoldFigure:
    """A figure in every fold.

    Attributes:
        title: The figure in words.
        values: One for each fold; None where the figure is undefined.
        mean: The mean of the values that are defined; None if none is.
        standard_deviation: Between the folds, with n - 1; None for fewer than two values.
        is_share: Whether people write the figure in per cent.
    """

    title: str
    values: tuple[float | None, ...]
    mean: float | None
    standard_deviation: float | None
    is_share: bool


@dataclasses.dataclass(frozen=True)
class CrossValidation:
    """A finished cross-validation on disk.

    Attributes:
        directory: It holds fold-1, fold-2, ..., which are runs, out_of_fold.csv and folds.json.
        class_names: The classes, in the order of the probabilities.
        several_labels: Whether an image may have several labels.
        train_images, test_images: Images of each fold.
        fingerprints: What changes if a fold has other held-out images.
        figures: Figures on the held-out images, by name, such as "top1".
    """

    directory: Path
    class_names: tuple[str, ...]
    several_labels: bool
    train_images: tuple[int, ...]
    test_images: tuple[int, ...]
    fingerprints: tuple[str, ...]
    figures: Mapping[str, FoldFigure]

    @property
    def runs(self) -> list[Run]:
        """The run of each fold."""
        return [Run.open(path) for path in _fold_paths(self.directory, len(self.test_images))]

    @cached_property
    def evaluation(self) -> evaluation.Evaluation | evaluation.MultiLabelEvaluation:
        """The answers for every image, by the network that had not seen it.

        With several labels an image, the threshold of every label is 0.5 here, because each fold
        has thresholds of its own. `figures` has each fold's figures by its own thresholds.
        """
        labels, probabilities, groups = read_table(
            self.directory / TABLE, self.class_names, self.several_labels
        )
        if self.several_labels:
            return evaluation.MultiLabelEvaluation(
                labels, probabilities, self.class_names, groups=groups
            )
        return evaluation.Evaluation(labels, probabilities, self.class_names, groups)


@dataclasses.dataclass(frozen=True)
class FoldsCompared:
    """Two cross-validations of the same folds.

    Attributes:
        images: McNemar's test and the interval of accuracy over all images; None for several labels
            an image.
        figures: The corrected resampled t-test over the folds, for each figure that both have.
    """

    images: evaluation.Comparison | None
    figures: Mapping[str, evaluation.FoldComparison]


@notes_once()
def cross_validate(
    recipe: Recipe, workdir: str | Path, verbose: int | str = "auto"
) -> CrossValidation:
    """Train a network for each fold of a recipe, and test each on the fold that it has not seen.

    `recipe.folds` folds share the images; see `keras_vgg.data.load_source` for how. Fold k is an
    ordinary run in workdir/fold-k, whose test split is the fold. Its validation split, which
    selects the epoch, is held out of the other folds. No group is on two sides of a fold.

    Repeat the call to resume after a kill: finished folds are kept, and an unfinished one goes on.

    Args:
        recipe: A recipe with `folds`, and without `fold`.
        workdir: A directory for the runs: new, empty, or of the same cross-validation.
        verbose: As in `keras_vgg.train`.

    Returns:
        The cross-validation. out_of_fold.csv has a row for each image: path, group, fold, class and
        the probability of each class. folds.json has the figures of each fold, mean and standard
        deviation.

    Raises:
        ValueError, OSError, MemoryError: as `keras_vgg.train`; the recipe has no folds.
    """
    if recipe.folds < 2 or recipe.fold:
        raise ValueError(
            f"cross-validation needs a recipe with folds and without fold, such as folds=5, not "
            f"folds={recipe.folds}, fold={recipe.fold}"
        )
    if hosts.count() > 1:
        raise ValueError("a cross-validation runs on one host; give each host a fold of its own")
    directory = directory_of_run(workdir)
    _require_directory_of_folds(directory)
    tested = []
    paths = _fold_paths(directory, recipe.folds)
    for number, path in enumerate(paths, 1):
        if verbose:
            print(f"fold {number} of {recipe.folds}", flush=True)
        if not Run(path, recipe).finished:  # the figures are of other folds, which are gone
            for name in (TABLE, SUMMARY):
                (directory / name).unlink(missing_ok=True)
        run = train(recipe.replace(fold=number), path, verbose)
        tested.append(_test(run, shows_bars=verbose not in (0, 2)))
        gc.collect()  # before the next network, because a network may fill half of the memory
    class_names = tested[0].run.class_names
    write_table(directory / TABLE, [fold.answers for fold in tested], class_names)
    write_json(directory / SUMMARY, _summary(tested, class_names))
    return open_cross_validation(directory)


def open_cross_validation(directory: str | Path) -> CrossValidation:
    """Open a finished cross-validation.

    Raises:
        FileNotFoundError: the directory holds no folds.
        ValueError: not all folds are finished, or a file cannot be read.
    """
    directory = directory_of_run(directory)
    if not holds_folds(directory):
        raise FileNotFoundError(f"{directory} has no runs of folds")
    if not (directory / SUMMARY).is_file():
        raise ValueError(
            f"{directory} has not finished all folds; repeat its keras-vgg train command"
        )
    fields = read_fields(directory / SUMMARY)
    folds = fields["folds"]
    for number, (fold, path) in enumerate(
        zip(folds, _fold_paths(directory, len(folds)), strict=True), 1
    ):
        model = path / "model.keras"
        earlier = fold.get("model_sha256")  # files of earlier versions have none
        if earlier is not None and model.is_file() and sha256_of(model) != earlier:
            advice = "repeat the keras-vgg train command of the folds"
            if Run.open(path).recipe.restart_epochs:  # which that command would refuse
                advice = "it was extended: cross-validate with more epochs in another workdir"
            raise ValueError(
                f"fold {number} of {directory} has been trained since its figures were written; "
                f"{advice}"
            )
    return CrossValidation(
        directory=directory,
        class_names=tuple(fields["class_names"]),
        several_labels=fields["several_labels"],
        train_images=tuple(fold["train_images"] for fold in folds),
        test_images=tuple(fold["test_images"] for fold in folds),
        fingerprints=tuple(fold["fingerprint"] for fold in folds),
        figures={
            name: FoldFigure(
                title=figure["title"],
                values=tuple(figure["values"]),
                mean=figure["mean"],
                standard_deviation=figure["standard_deviation"],
                is_share=figure["is_share"],
            )
            for name, figure in fields["figures"].items()
        },
    )


def compare_cross_validations(
    one: CrossValidation, other: CrossValidation, level: float = 0.95
) -> FoldsCompared:
    """Compare two recipes on the same folds, image by image and fold by fold.

    Raises:
        ValueError: the classes or the folds differ; level is not in (0, 1).
    """
    if one.class_names != other.class_names or one.fingerprints != other.fingerprints:
        raise ValueError(
            f"{other.directory} and {one.directory} cannot be compared: their classes, or the "
            "images of their folds, differ; use the same source, seed, groups and number of folds"
        )
    images = None
    if isinstance(one.evaluation, evaluation.Evaluation):
        assert isinstance(other.evaluation, evaluation.Evaluation), "the images are the same"
        images = evaluation.compare(one.evaluation, other.evaluation, level)
    train_images = [min(pair) for pair in zip(one.train_images, other.train_images, strict=True)]
    figures = {
        name: evaluation.compare_folds(
            figure.values,  # pyright: ignore[reportArgumentType]  # all are defined
            other.figures[name].values,  # pyright: ignore[reportArgumentType]
            train_images,
            one.test_images,
            level,
        )
        for name, figure in one.figures.items()
        if name in other.figures and None not in (*figure.values, *other.figures[name].values)
    }
    return FoldsCompared(images, figures)


# --- one fold --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Tested:
    """A fold's run, the network's answers for the held-out images, and their figures."""

    run: Run
    answers: Answers
    figures: Mapping[str, evaluation.Figure]


def _test(run: Run, shows_bars: bool) -> _Tested:
    if run.several_labels:
        recorded = evaluate_labels(run, "test", shows_bars)
        figures = recorded.evaluation.figures()
    else:
        recorded = record_evaluation(run, "test", shows_bars)
        evaluated = recorded.evaluation
        top1 = evaluation.Figure("top-1 accuracy", evaluated.top1, evaluated.interval())
        loss = evaluation.Figure("loss", evaluated.loss, None, is_share=False)
        figures = {"top1": top1, "loss": loss, **evaluated.figures()}
        del figures["majority_share"]  # the data's, not the network's
    evaluated = recorded.evaluation
    answers = Answers(recorded.images.split, evaluated.labels, evaluated.probabilities)
    return _Tested(run, answers, figures)


def _fold_paths(directory: Path, folds: int) -> list[Path]:
    return [directory / f"fold-{number}" for number in range(1, folds + 1)]


def _require_directory_of_folds(directory: Path) -> None:
    """Raise ValueError if a directory holds other things than folds."""
    if (directory / "recipe.json").is_file():
        raise ValueError(f"{directory} holds a run without folds; choose another workdir")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; choose another workdir")
    if any(directory.glob("fold-*/recipe.json")):
        return  # files that a user or a system has put beside the folds do not matter
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    others = sorted(
        name
        for name in names
        if not name.startswith(("fold-", PARTIAL)) and name not in (TABLE, SUMMARY)
    )
    if others:
        raise ValueError(
            f"{directory} exists and is not a directory of folds: it has {others[0]}; choose "
            "another workdir"
        )


def _summary(tested: Sequence[_Tested], class_names: Sequence[str]) -> dict[str, Any]:
    folds = []
    for fold in tested:
        splits = fold.run.read_json("data.json")["splits"]
        folds.append(
            {
                "train_images": splits["train"]["images"],
                "validation_images": splits["validation"]["images"],
                "test_images": splits["test"]["images"],
                "fingerprint": splits["test"]["fingerprint"],
                "model_sha256": sha256_of(fold.run.model_path),
            }
        )
    figures = {}
    for name, figure in tested[0].figures.items():
        values = [fold.figures[name].value for fold in tested]
        defined = [value for value in values if value is not None]
        figures[name] = {
            "title": figure.title,
            "values": values,
            "mean": float(np.mean(defined)) if defined else None,
            "standard_deviation": float(np.std(defined, ddof=1)) if len(defined) > 1 else None,
            "is_share": figure.is_share,
        }
    return {
        "class_names": list(class_names),
        "several_labels": tested[0].run.several_labels,
        "folds": folds,
        "figures": figures,
    }

"""What keras-vgg train and evaluate print of cross-validations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keras_vgg.console import new_table, show

if TYPE_CHECKING:
    from keras_vgg.runs import CrossValidation


def show_cross_validation(result: CrossValidation) -> None:
    """Print each figure: mean, standard deviation, and the value of each fold."""
    folds = [f"fold {number}" for number in range(1, len(result.test_images) + 1)]
    title = f"{result.directory}: held-out images of {len(folds)} folds"
    table = new_table(title, "", "mean", "standard deviation", *folds)
    table.add_row("images", "", "", *(f"{count:,}" for count in result.test_images))
    for figure in result.figures.values():
        values = (figure.mean, figure.standard_deviation, *figure.values)
        table.add_row(figure.title, *(_number(value, figure.is_share) for value in values))
    show(table)
    if result.several_labels:
        show("F1 and exact match: each fold by its own thresholds, of its validation images")
    show(str(result.directory / "out_of_fold.csv"))


def evaluate_folds(directories: Sequence[Path]) -> None:
    """Print a cross-validation, or compare the first of several with each of the others.

    Raises:
        ValueError, FileNotFoundError: as `keras_vgg.runs.open_cross_validation`, and
            `compare_cross_validations`.
    """
    from keras_vgg.runs import open_cross_validation

    first, *others = [open_cross_validation(directory) for directory in directories]
    if not others:
        show_cross_validation(first)
    for other in others:
        _compare(first, other)


def _compare(one: CrossValidation, other: CrossValidation) -> None:
    from keras_vgg.evaluation import groups_text
    from keras_vgg.runs import compare_cross_validations

    compared = compare_cross_validations(one, other)
    headers = ("first", "second", "second minus first", "95 % interval", "p")
    title = f"{other.directory} minus {one.directory}, over {len(one.test_images)} folds"
    table = new_table(title, "", *headers)
    for name, comparison in compared.figures.items():
        figure = one.figures[name]
        low, high = (_number(bound, figure.is_share, "+") for bound in comparison.interval)
        table.add_row(
            figure.title,
            _number(figure.mean, figure.is_share),
            _number(other.figures[name].mean, figure.is_share),
            _number(comparison.difference, figure.is_share, "+"),
            f"{low} to {high}",
            f"{comparison.p_value:.2g}",
        )
    show(table)
    show("p: corrected resampled t-test of Nadeau and Bengio")
    if compared.images is not None:
        images = compared.images
        low, high = images.interval
        over = "" if images.groups is None else f", {groups_text(images.groups)}"
        show(
            f"all {sum(one.test_images):,} images: {images.difference:+.2%} ({low:+.2%} to "
            f"{high:+.2%}{over}); only the first right {images.one_only:,}, only the second "
            f"{images.other_only:,}; McNemar's p {images.p_value:.2g}"
        )


def _number(value: float | None, is_share: bool, sign: str = "") -> str:
    if value is None:
        return "undefined"
    return f"{value:{sign}.2%}" if is_share else f"{value:{sign}.4f}"

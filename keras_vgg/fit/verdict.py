"""What a run has learned, in words: whether it is better than always naming the commonest class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from keras_vgg.architecture import get_configuration
from keras_vgg.fit.inputs import describe_crops
from keras_vgg.fit.model import initializer_of
from keras_vgg.fit.schedule import best_row, compared_column
from keras_vgg.recipe import Recipe

_LEVEL = 0.05  # of the one-sided binomial test
_DEEP = ("C", "D", "E")
_GAP = 0.1  # accuracy above another one, from which on a difference is worth a word
_STUCK = 0.02  # of the first loss: a change that is none
_MOST_RANDOM = 0.95  # mean area of random answers, above which no network can show what it learned
_DRAWN_IMAGES = 5000
_QUANTILE = 1.645  # of the standard normal distribution, at 1 - _LEVEL


class Baseline:
    """What answers reach that do not look at an image.

    Attributes:
        share: Their mean figure.
        images: How many validation images there are.
    """

    share: float
    images: int
    _figure: ClassVar[str]  # as in "validation accuracy"
    _format: ClassVar[str] = ".2%"

    @property
    def can_be_beaten(self) -> bool:
        """Whether there are enough images for the best possible figure to be clearly better."""
        raise NotImplementedError

    def explains(self, value: float) -> bool:
        """Return whether such answers may have this figure."""
        raise NotImplementedError

    def leaves_open(self, value: float) -> bool:
        """Return whether a figure that luck explains is good: there are few validation images."""
        return value > self.share + _GAP

    def line(self, value: float, epoch: int) -> str:
        """Return what to say of it while a run trains."""
        better = "not clearly better" if self.leaves_open(value) else "no better"
        return (
            f"after epoch {epoch}, validation {self._figure} {value:{self._format}} is {better} "
            f"than {self._answer()}"
        )

    def final_line(self, value: float) -> str:
        """Return what to say of it at a run's end."""
        if self.leaves_open(value):
            return (
                f"validation {self._figure} {value:{self._format}} is not clearly better than "
                f"{self._answer()}: {self.images:,} validation images are too few to say"
            )
        return (
            f"this network is of no use: its best validation {self._figure}, "
            f"{value:{self._format}}, is no better than {self._answer()}"
        )

    def too_few_line(self) -> str:
        """Return what to say at the end of a run that has too few validation images."""
        return (
            f"{self.images:,} validation images are too few to say whether this network is better "
            f"than {self._answer()}"
        )

    def _answer(self) -> str:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Commonest(Baseline):
    """What an answer that is always the same would have right.

    Attributes:
        class_name: The commonest class of the validation images; None: not known. `share` is its
            share of them.
    """

    class_name: str | None
    share: float
    images: int
    _figure = "accuracy"

    @property
    def can_be_beaten(self) -> bool:
        """Whether there are enough images for an accuracy of 100 % to be significant."""
        return 0 < self.share < 1 and self.share**self.images <= _LEVEL

    def explains(self, value: float) -> bool:
        """Return whether this accuracy may be had so: a one-sided binomial test, level 5 %."""
        from scipy.stats import binomtest

        if not self.can_be_beaten:
            return False
        right = round(value * self.images)
        test = binomtest(right, self.images, self.share, alternative="greater")
        return bool(test.pvalue > _LEVEL)

    def _answer(self) -> str:
        named = f"always answering {self.class_name!r}" if self.class_name else "guessing"
        return f"{named} ({self.share:.2%} of {self.images:,} images)"


@dataclasses.dataclass(frozen=True)
class _Guesses(Baseline):
    """A baseline with a limit.

    Attributes:
        limit: What guesses exceed once in 20 times.
        best: The best possible figure.
    """

    share: float
    limit: float
    images: int
    best: float = 1.0

    @property
    def can_be_beaten(self) -> bool:
        """Whether guesses stay clearly below the best possible figure."""
        return self.limit < _MOST_RANDOM * self.best

    def explains(self, value: float) -> bool:
        return self.can_be_beaten and value <= self.limit


class RandomAnswers(_Guesses):
    """The area under the precision-recall curve that random answers reach, for several labels.

    `share` is the mean share of the validation images that have a label: random answers' mean.
    """

    _figure, _format = "pr_auc", ".3f"

    def _answer(self) -> str:
        return (
            f"random answers (up to {self.limit:.3f} in 19 of 20 draws; a label is on "
            f"{self.share:.2%} of {self.images:,} images on average)"
        )


class GuessedClasses(_Guesses):
    """The balanced accuracy that guesses reach. An answer that is always the same has its mean.

    `share` is 1 / the number of classes that validation images have.
    """

    _figure = "balanced accuracy"

    def _answer(self) -> str:
        return f"guessing ({self.share:.2%}, up to {self.limit:.2%} in 19 of 20 times)"


def commonest_class(class_names: Sequence[str], counts: Sequence[int]) -> Commonest:
    """Return the baseline of validation images, of which each class has so many."""
    largest = int(np.argmax(counts))
    total = sum(counts)
    return Commonest(class_names[largest], int(counts[largest]) / total, total)


def guessed_classes(counts: Sequence[int]) -> GuessedClasses:
    """Return the balanced accuracy of guesses, by the normal distribution.

    `counts` are the validation images of each class.
    """
    present = np.array([count for count in counts if count])
    share = 1 / len(present)
    deviation = math.sqrt(share * (1 - share) * np.sum(1 / present)) * share
    return GuessedClasses(share, share + _QUANTILE * deviation, int(present.sum()))


def baseline(class_names: Sequence[str], counts: Sequence[int], select_by: str) -> Baseline:
    """Return the baseline of the figure that selects, for images of one label.

    Args:
        class_names: All classes.
        counts: Validation images of each.
        select_by: The recipe's.
    """
    if select_by == "balanced_accuracy":
        return guessed_classes(counts)
    return commonest_class(class_names, counts)


def random_answers(labels: np.ndarray, seed: int = 0) -> RandomAnswers:
    """Return what random answers reach for labels [n, classes].

    A label that no image has counts as 0, as in Keras' metric: `best` is the share of the others.
    The average precision of a random order is drawn 100 times (fewer for over 20 labels), with at
    most 5,000 images: more images only narrow the draws.
    """
    counts = labels.sum(axis=0, dtype=np.int64)
    best = float(np.mean(counts > 0))
    counts = counts[counts > 0]
    images = len(labels)
    if not len(counts):
        return RandomAnswers(0.0, 1.0, images)
    drawn_images = min(images, _DRAWN_IMAGES)
    positives = np.maximum(counts * drawn_images // images, 1)
    rng = np.random.default_rng(seed)
    draws = max(20, min(100, 2000 // len(counts)))
    means = []
    for _ in range(draws):
        ranks = [np.sort(rng.permutation(drawn_images)[:count]) + 1 for count in positives]
        means.append(np.mean([np.mean(np.arange(1, len(r) + 1) / r) for r in ranks]))
    share, limit = np.mean(counts / images), np.quantile(means, 1 - _LEVEL)
    return RandomAnswers(float(share) * best, float(limit) * best, images, best)


def is_due(epoch: int, recipe: Recipe) -> bool:
    """Return whether to look after this epoch, from 1: after warm-up, then ever more rarely."""
    since = epoch - max(1, math.ceil(recipe.warmup_epochs))
    return since >= 0 and (since + 1) & since == 0  # 1, 2, 4, 8 ... epochs after warm-up began


def final_lines(
    recipe: Recipe, history: Sequence[Mapping[str, float]], guess: Baseline
) -> list[str]:
    """Return what to say of the best epoch at a run's end, and what to change; [] if it is good."""
    if not guess.can_be_beaten:
        return [guess.too_few_line()] if 0 < guess.share < 1 else []
    best = best_row(history, recipe)
    figure = best[compared_column(best)]
    if not guess.explains(figure):
        return []
    if guess.leaves_open(figure):
        return [guess.final_line(figure)]
    return [guess.final_line(figure), advice(recipe, history, guess.share)]


def advice(recipe: Recipe, history: Sequence[Mapping[str, float]], share: float) -> str:
    """Return what to change in a recipe whose run has learned nothing."""
    changes = []
    column = compared_column(history[0]).removeprefix("val_")
    column = column if column in history[0] else "accuracy"
    own = max(row[column] for row in history)
    is_learning = own > share + _GAP
    if is_learning:
        return (
            f"training {column.replace('_', ' ')} is {own:.2%}, so the network learns what does "
            "not carry over: check that the validation images have the right labels, add images or "
            "augmentation"
        )
    deep = get_configuration(recipe.configuration).name in _DEEP
    starts_at_random = recipe.init is None and initializer_of(recipe.initialization) is not None
    if deep and not recipe.batch_norm and starts_at_random:
        does_not = "may not" if recipe.initialization.lower().startswith("he") else "does not"
        changes.append(
            "--batch-norm True, or --initialization RUN with a trained run of configuration A "
            f"(a network as deep as {recipe.configuration} {does_not} begin to learn otherwise)"
        )
    first, last = history[0]["loss"], history[-1]["loss"]
    if len(history) == 1:
        changes.append("more --epochs than 1")
    elif abs(last - first) < _STUCK * first:
        changes.append(
            f"another --learning-rate than {recipe.learning_rate:g}: the loss has hardly moved, "
            f"{first:.3f} to {last:.3f}; try ten times that rate, then a tenth"
        )
    else:
        changes.append(f"a lower --learning-rate than {recipe.learning_rate:g}, or more --epochs")
    return f"try {'; '.join(changes)}"


def gap_line(
    recipe: Recipe,
    own: float,
    evaluated: float,
    images: int,
    batches: int,
    figure: str = "accuracy",
    *,
    estimated: bool = False,
) -> str | None:
    """Return why training's own accuracy is far above the kept model's on the same images.

    None where it is not. Dropout and augmentation work the other way: they lower training's own.

    Args:
        own: Training's accuracy in the epoch that was kept.
        evaluated: The kept model's accuracy on training images, in evaluation mode.
        images: How many images that was measured on.
        batches: Training batches until then.
        figure: "accuracy", or "pr_auc" for several labels an image.
        estimated: Whether the kept model has estimates in place of batch norm's moving averages.
    """
    deviation = math.sqrt(max(own * (1 - own), 1 / images) / images)
    if own - evaluated <= max(_GAP, 3 * deviation):
        return None
    reason = (
        "its images are scaled or cropped differently in evaluation: compare "
        f"{describe_crops(recipe)} with eval_scale {recipe.eval_scale_side}"
    )
    if recipe.batch_norm and estimated:
        reason = (
            "in training, batch norm sees each batch's own mean and variance, and the kept model "
            "those of many: use larger batches or a lower learning rate"
        )
    elif recipe.batch_norm:
        reason = (
            f"batch norm's moving averages do not fit the weights after {batches:,} "
            f"batch{'es' * (batches != 1)}, which change too quickly for them: train for more "
            "epochs, with smaller batches, or at a lower learning rate"
        )
    of_images = f"of {images:,} training images right"
    if figure != "accuracy":
        of_images = f"{figure} on {images:,} training images"
    return (
        f"training reported {own:.2%}, but the kept model has {evaluated:.2%} {of_images} in "
        f"evaluation mode: {reason}"
    )

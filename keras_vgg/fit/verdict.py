"""What a run has learned, in words: whether it is better than always naming the commonest class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from keras_vgg.architecture import get_configuration
from keras_vgg.recipe import Recipe

_LEVEL = 0.05  # of the one-sided binomial test
_DEEP = ("C", "D", "E")
_GAP = 0.1  # accuracy in training above the same images' in evaluation
_STUCK = 0.02  # of the first loss: a change that is none


@dataclasses.dataclass(frozen=True)
class Commonest:
    """What an answer that is always the same would have right.

    Attributes:
        class_name: The commonest class of the validation images; None: not known.
        share: Its share of them.
        images: How many there are.
    """

    class_name: str | None
    share: float
    images: int

    @property
    def can_be_beaten(self) -> bool:
        """Whether there are enough images for an accuracy of 100 % to be significant."""
        return 0 < self.share < 1 and self.share**self.images <= _LEVEL

    def explains(self, accuracy: float) -> bool:
        """Return whether this accuracy may be had so: a one-sided binomial test, level 5 %."""
        from scipy.stats import binomtest

        if not self.can_be_beaten:
            return False
        right = round(accuracy * self.images)
        test = binomtest(right, self.images, self.share, alternative="greater")
        return bool(test.pvalue > _LEVEL)

    def line(self, accuracy: float, epoch: int) -> str:
        """Return what to say of it while a run trains."""
        return (
            f"after epoch {epoch}, validation accuracy {accuracy:.2%} is no better than "
            f"{self._answer()}"
        )

    def final_line(self, accuracy: float) -> str:
        """Return what to say of it at a run's end."""
        return (
            f"this network is of no use: its best validation accuracy, {accuracy:.2%}, is no "
            f"better than {self._answer()}"
        )

    def too_few_line(self) -> str:
        """Return what to say at the end of a run that has too few validation images."""
        return (
            f"{self.images:,} validation images are too few to say whether this network is better "
            f"than {self._answer()}"
        )

    def _answer(self) -> str:
        named = f"always answering {self.class_name!r}" if self.class_name else "guessing"
        return f"{named} ({self.share:.2%} of {self.images:,} images)"


def is_due(epoch: int, recipe: Recipe) -> bool:
    """Return whether to look after this epoch, from 1: after warm-up, then ever more rarely."""
    since = epoch - max(1, math.ceil(recipe.warmup_epochs))
    return since >= 0 and (since + 1) & since == 0  # 1, 2, 4, 8 ... epochs after warm-up began


def advice(recipe: Recipe, history: Sequence[Mapping[str, float]], share: float) -> str:
    """Return what to change in a recipe whose run has learned nothing."""
    changes = []
    own = max(row["accuracy"] for row in history)
    is_learning = own > share + _GAP
    if is_learning:
        return (
            f"training accuracy is {own:.2%}, so the network learns what does not carry over: "
            "check that the validation images have the right labels, add images or augmentation"
        )
    deep = get_configuration(recipe.configuration).name in _DEEP
    if deep and not recipe.batch_norm and recipe.init is None:
        changes.append(
            "--batch-norm True, or --initialization RUN with a trained run of configuration A "
            f"(a network as deep as {recipe.configuration} does not begin to learn otherwise)"
        )
    first, last = history[0]["loss"], history[-1]["loss"]
    if abs(last - first) < _STUCK * first:
        changes.append(
            f"another --learning-rate than {recipe.learning_rate:g}: the loss has hardly moved, "
            f"{first:.3f} to {last:.3f}; try ten times that rate, then a tenth"
        )
    else:
        changes.append(f"a lower --learning-rate than {recipe.learning_rate:g}, or more --epochs")
    return "; ".join(changes)


def gap_line(recipe: Recipe, own: float, evaluated: float, images: int, batches: int) -> str | None:
    """Return why training's own accuracy is far above the kept model's on the same images.

    None where it is not. Dropout and augmentation work the other way: they lower training's own.

    Args:
        own: Training's accuracy in the epoch that was kept.
        evaluated: The kept model's accuracy on training images, in evaluation mode.
        images: How many images that was measured on.
        batches: Training batches until then.
    """
    deviation = math.sqrt(max(own * (1 - own), 1 / images) / images)
    if own - evaluated <= max(_GAP, 3 * deviation):
        return None
    reason = "its images are scaled or cropped differently in evaluation: compare train_scale "
    reason += f"{recipe.train_scale_range} with eval_scale {recipe.eval_scale_side}"
    if recipe.batch_norm:
        reason = (
            f"batch norm's moving averages have not settled after {batches:,} batches: train "
            "for more epochs, with smaller batches, or at a lower learning rate"
        )
    return (
        f"training reported {own:.2%}, but the kept model has {evaluated:.2%} of {images:,} "
        f"training images right in evaluation mode: {reason}"
    )

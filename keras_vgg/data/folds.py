"""Cross-validation: a source whose test split is one fold of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from keras_vgg.data.equal import equal_file_groups
from keras_vgg.data.groups import assign_folds
from keras_vgg.data.hold_out import hold_out, unit_numbers
from keras_vgg.data.left_out import NAMED, LeftOut, printable
from keras_vgg.data.split import Source, Split, labels_of


def check_fold(folds: int, fold: int) -> None:
    """Raise ValueError unless `fold` is one of `folds`, from 1; both are 0 without folds."""
    if folds == fold == 0:
        return
    if folds < 2:
        raise ValueError(f"folds={folds} must be at least 2, or 0 for no folds")
    if not 1 <= fold <= folds:
        raise ValueError(
            f"fold={fold} must be from 1 to {folds}, the number of folds; to train all of them, "
            "use keras-vgg train --folds, or keras_vgg.cross_validate"
        )


def with_fold(
    source: Source, folds: int, fold: int, validation_fraction: float, seed: int
) -> Source:
    """Return a source whose test split is one fold of the training and validation images.

    Every image is in one fold, and every class is spread evenly over the folds. The images of a
    group, and equal files, are in one fold. `seed` alone decides the folds. The validation split is
    held out of the other folds, and no group is in it and in train. The source's own test split is
    left out: it stays unseen until the end of a study.

    Args:
        source: A source with no image held out.
        folds: The number of folds.
        fold: Which one to test on, from 1.
        validation_fraction: Share of the other folds' images.
        seed: Decides the folds, and what is held out.

    Raises:
        ValueError: the labels are in TFRecord files, or the images cannot be divided.
    """
    everything = _joined([part for part in (source.train, source.validation) if part is not None])
    equal = equal_file_groups(everything)
    fold_of = assign_folds(
        unit_numbers(everything, equal),
        labels_of(everything),
        folds,
        np.random.default_rng(seed),
        source.class_names,
    )
    test = replace(everything.take(np.flatnonzero(fold_of == fold - 1)), name="test")
    rest = replace(everything.take(np.flatnonzero(fold_of != fold - 1)), name="train")
    rng = np.random.default_rng((seed, fold))
    train, validation = hold_out(rest, validation_fraction, "validation", rng, equal)
    left_out = source.left_out
    if source.test is not None:
        reason = "in the source's own test split, which folds leave alone"
        paths = [] if source.test.paths is None else list(source.test.paths[:NAMED])
        left_out += (LeftOut(reason, source.test.size, tuple(map(printable, paths))),)
    return replace(source, train=train, validation=validation, test=test, left_out=left_out)


def _joined(splits: Sequence[Split]) -> Split:
    """Return the images of several splits as one split, in this order."""
    for split in splits:
        if split.labels is None:
            raise ValueError(
                "folds need labels before training, and a source in TFRecord files has them "
                "inside; use the folder or the table that the records were made from"
            )
    first = splits[0]
    if len(splits) == 1:
        return first

    def column(name: str) -> np.ndarray | None:
        arrays = [getattr(split, name) for split in splits]
        return None if arrays[0] is None else np.concatenate(arrays)

    columns = {name: column(name) for name in ("labels", "images", "paths", "groups")}
    return replace(first, size=sum(split.size for split in splits), **columns)

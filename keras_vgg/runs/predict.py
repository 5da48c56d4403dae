"""Classify image files with a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keras_vgg.image_paths import expanded, require_list
from keras_vgg.run import Run
from keras_vgg.runs.predictor import Predictor


def predict_files(
    run: Run | str | Path, paths: Sequence[str | Path], top: int = 5
) -> list[list[tuple[str, float]]]:
    """Return the most probable classes of each image file, the most probable first.

    For many calls, or for many files, use `Predictor`, which loads the network once.

    Args:
        run: A run, or a path as `Predictor` takes it.
        paths: Image files.
        top: How many classes to return for each file.

    Returns:
        For each file, a list of (class name, probability).

    Raises:
        FileNotFoundError, ValueError: a file does not exist or is not an image, or as `Predictor`.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    require_list(paths)
    for path in map(Path, paths):
        if not expanded(path).exists():
            raise FileNotFoundError(f"{path}: no such image file")
    answers = []
    for answer in Predictor(run).stream(paths):
        if answer.probabilities is None:
            raise ValueError(f"{answer.path}: {answer.reason}")
        answers.append(answer.ranked(top))
    return answers

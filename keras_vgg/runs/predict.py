"""Classify image files with a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vgg import data, evaluation
from keras_vgg.fit import evaluation_transform
from keras_vgg.run import Run


def predict_files(
    run: Run, paths: Sequence[str | Path], top: int = 5
) -> list[list[tuple[str, float]]]:
    """Return the most probable classes of each image file, the most probable first.

    Args:
        run: A finished run.
        paths: Image files.
        top: How many classes to return for each file.

    Returns:
        For each file, a list of (class name, probability).

    Raises:
        FileNotFoundError, ValueError: a file does not exist or is not an image. Then no file is
            classified.
    """
    transform = evaluation_transform(run.recipe)
    depth = run.recipe.bit_depth
    images = np.stack([transform(data.load_image(p, bit_depth=depth)).numpy() for p in paths])
    return evaluation.predict(run.model(), images, run.class_names, top=top)

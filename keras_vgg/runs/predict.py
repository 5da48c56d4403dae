"""Name what is on image files by a run."""

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
    """The most probable classes of each image file, most probable first.

    Raises:
        FileNotFoundError, ValueError: a file that is not there or is no image; no file has been
            looked at then.
    """
    transform = evaluation_transform(run.recipe)
    images = np.stack([transform(data.load_image(path)).numpy() for path in paths])
    return evaluation.predict(run.model(), images, run.class_names, top=top)

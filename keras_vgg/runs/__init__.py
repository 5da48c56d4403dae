"""What one does with a trained run: test it, name images with it, explain them, export it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from keras_vgg import augment, data, evaluation
from keras_vgg.fit import evaluation_transform, load_source, training_transform
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.explaining import explain_files
from keras_vgg.runs.exporting import export_run, export_weights
from keras_vgg.runs.reporting import report_runs
from keras_vgg.runs.testing import (
    PROTOCOLS,
    evaluate_run,
    evaluate_runs,
    evaluation_name,
    paper_scales,
    paper_tables,
    run_names,
)

__all__ = [
    "PROTOCOLS",
    "evaluate_run",
    "evaluate_runs",
    "evaluation_name",
    "explain_files",
    "export_run",
    "export_weights",
    "paper_scales",
    "paper_tables",
    "predict_files",
    "report_runs",
    "run_names",
    "show_augmentation",
]


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


def show_augmentation(recipe: Recipe, path: str | Path, *, images: int = 6, views: int = 5) -> None:
    """Draw what a recipe makes of its training images, as `keras_vgg.data.contact_sheet`.

    Raises:
        ValueError, OSError: the recipe's source cannot be opened or shown, or `path` not written.
    """
    source = load_source(recipe)
    statistics = None
    if recipe.rgb_shift:
        with data.bad_images_named(source.train):
            statistics = data.statistics(source.train)
    data.contact_sheet(
        source.train,
        path,
        class_names=source.class_names,
        train=training_transform(recipe, statistics),
        evaluate=evaluation_transform(recipe),
        window=partial(
            augment.train_window,
            size=recipe.image_size,
            scale=recipe.train_scale,
            crop_padding=recipe.crop_padding,
        ),
        images=images,
        views=views,
        seed=recipe.seed,
    )

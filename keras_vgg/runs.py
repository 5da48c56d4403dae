"""What one does with a trained run: test it, name images with it, export it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import augment, data, evaluation, report
from keras_vgg import export as exporting
from keras_vgg.atomic import write_atomically
from keras_vgg.fit import (
    describe,
    evaluation_transform,
    load_source,
    require_same_data,
    training_transform,
)
from keras_vgg.fit.run import Run
from keras_vgg.recipe import Recipe

if TYPE_CHECKING:
    import keras


PROTOCOLS = ("center", "multi-crop")


def evaluation_name(split: str, protocol: str) -> str:
    """What a run calls the results of a split: test, or with multi-crop test_multi_crop."""
    return split if protocol == "center" else f"{split}_{protocol.replace('-', '_')}"


def evaluate_run(
    run: Run,
    split: str = "test",
    verbose: bool = False,
    model: keras.Model | None = None,
    protocol: str = "center",
) -> evaluation.Evaluation:
    """Test a run's best model on every image of a split.

    Writes the figures into the run's results.json under the split's name (multi-crop: with
    _multi_crop after it), and the confusion matrix to confusion_NAME.csv (rows are true classes)
    and confusion_NAME.png.

    Args:
        run: A finished run.
        split: "test", "validation" or "train".
        verbose: Show a progress bar.
        model: The run's model where it is loaded already.
        protocol: "center", one crop an image; "multi-crop", the paper's 5 x 5 grid of crops and
            their mirror images (section 3.2), of the image as training sees it: rescaled to
            eval_scale, padded by crop_padding. The 50 posteriors are averaged.

    Raises:
        ValueError: an unknown protocol; the run has not finished training; its source has no such
            split, has changed since, or holds a damaged image.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    model = model or run.model()
    images = _split(run, split)
    recipe = run.recipe
    batch_size, transform = recipe.batch_size, evaluation_transform(recipe)
    name = evaluation_name(split, protocol)
    if protocol == "multi-crop":
        batch_size = max(1, batch_size // 8)  # an image is 50
        transform = partial(
            augment.grid_crops,
            size=recipe.image_size,
            scale=recipe.eval_scale,
            padding=recipe.crop_padding,
        )
    dataset = data.evaluation_dataset(images, batch_size, transform)
    with data.bad_images_named(images):
        found = evaluation.evaluate(
            model, dataset, expected=images.size, class_names=run.class_names, verbose=verbose
        )
    figures = found.to_dict()
    del figures["confusion"]  # a million numbers for ImageNet
    run.add_results(**{name: figures})
    write_atomically(
        run.directory / f"confusion_{name}.csv",
        lambda path: np.savetxt(path, found.confusion, "%d", ","),
    )
    report.plot_confusion(found.confusion, run.class_names, run.directory / f"confusion_{name}.png")
    return found


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


def export_run(
    run: Run,
    directory: str | Path | None = None,
    *,
    images: int = 256,
    model: keras.Model | None = None,
    **options: Any,
) -> list[exporting.Artifact]:
    """Export a run's best model, verified on images of its validation split.

    Args:
        run: A finished run.
        directory: Default: export/ in the run directory.
        images: How many validation images to verify with, at most all of them.
        model: The run's model where it is loaded already.
        options: As `keras_vgg.export.export`: formats, overwrite, tolerance.

    Raises:
        ValueError: as `keras_vgg.export.export` and `evaluate_run`, or `images` is not positive.
    """
    if images < 1:
        raise ValueError(f"an export is verified on at least 1 image, not {images}")
    model = model or run.model()
    directory = run.directory / "export" if directory is None else Path(directory)
    validation = _split(run, "validation")
    dataset = data.evaluation_dataset(validation, 64, evaluation_transform(run.recipe))
    with data.bad_images_named(validation):
        taken = np.concatenate([x.numpy() for x, _ in dataset.take(-(-images // 64))])[:images]
    return exporting.export(model, run.class_names, directory, images=taken, **options)


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


def _split(run: Run, name: str) -> data.Split:
    source = load_source(run.recipe)
    split = getattr(source, name)
    if split is None:
        raise ValueError(f"source {run.recipe.source} has no {name} split")
    require_same_data(run, describe(source))
    return split

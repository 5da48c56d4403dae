"""Draw what a recipe's data augmentation makes of its training images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from keras_vgg import augment, data
from keras_vgg.fit import evaluation_transform, load_source, training_transform
from keras_vgg.fit.inputs import crop_options
from keras_vgg.recipe import Recipe


def show_augmentation(recipe: Recipe, path: str | Path, *, images: int = 6, views: int = 5) -> None:
    """Draw what a recipe makes of its training images, as `keras_vgg.data.contact_sheet` does.

    What changes a whole batch is not drawn: `keras_vgg.recipe.BATCH_AUGMENTATIONS`.

    Args:
        recipe: Its source, seed and data augmentation are used.
        path: The PNG to write.
        images: How many rows, one for each image.
        views: How many augmentations of each image.

    Raises:
        ValueError, OSError: the recipe's source cannot be opened or shown, or `path` cannot be
            written.
    """
    recipe = recipe.replace(color="rgb")  # the drawing shows where grey comes from
    if not recipe.fold:  # of a cross-validation, all images
        recipe = recipe.replace(folds=0)
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
        window=partial(augment.train_window, **crop_options(recipe)),
        images=images,
        views=views,
        seed=recipe.seed,
    )

"""The defaults of a recipe that a source decides: a photographer's for all but the digits."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from keras_vgg import data
from keras_vgg.architecture import MINIMUM_SIZE
from keras_vgg.console import notes_dropped
from keras_vgg.data.sources import without_decoding
from keras_vgg.fit.inputs import describe_crops, load_source
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, directory_of_run

IMAGENET_SIZE = 224
_GRANULE = 32  # the five max-poolings halve a side five times

# The fields whose defaults are others for photographs than for the digits.
SOURCE_FIELDS = ("image_size", "horizontal_flip")


def recipe_for(source: str, *, workdir: str | Path | None = None, **fields: Any) -> Recipe:
    """Return a recipe whose defaults fit a source; the fields that are given win.

    For the digits these are the defaults of `Recipe()`. For any other source they are those for
    photographs: mirror images in training, and an image size by the sizes of the images (the median
    smallest side of at most 200 training images, rounded down to a multiple of 32, from 32 to 224).
    Images are cropped, and the scales follow the image size, as in every recipe.

    Args:
        source: The source, as in `Recipe.source`.
        workdir: A run directory. If it has a run of this source with a checkpoint, then that run's
            values are the defaults, so that a repeated command resumes the run.
        fields: Fields of the recipe.

    Raises:
        ValueError, OSError: as `Recipe` and `keras_vgg.load_source`.

    Example:
        ```python
        from keras_vgg import recipe_for

        recipe = recipe_for("digits", epochs=3)  # or recipe_for("folder:photos")
        print(recipe.image_size, recipe.horizontal_flip)  # 32 False
        ```
    """
    size = MINIMUM_SIZE if source == "digits" else IMAGENET_SIZE  # until it is known
    recipe = Recipe().replace(source=source, **{"image_size": size, **fields})
    defaults = [name for name in SOURCE_FIELDS if name not in fields]
    if source == "digits" or not defaults:
        return recipe
    if workdir is not None and (directory_of_run(workdir) / "recipe.json").is_file():
        run = Run.open(workdir)
        earlier = run.recipe
        has_begun = run.finished or run.checkpoints  # else a command of other values begins anew
        if has_begun and earlier.source in (source, recipe.with_absolute_paths().source):
            return recipe.replace(**{name: getattr(earlier, name) for name in defaults})
    if "horizontal_flip" in defaults:
        recipe = recipe.replace(horizontal_flip=True)
    if "image_size" in defaults:
        train = look_at(recipe).train
        recipe = recipe.replace(image_size=size_for(data.median_smallest_side(train)))
    return recipe


def look_at(recipe: Recipe) -> data.Source:
    """Open a recipe's source quickly and whole: the images decide values of the recipe.

    Bad images are named, or skipped, when the training opens the source. Bad rows of a table have
    to be skipped here too; the training names them.
    """
    recipe = recipe.replace(folds=0, fold=0)
    on_bad_image = without_decoding(recipe.source, recipe.on_bad_image)
    with notes_dropped() if on_bad_image == "skip_rows" else contextlib.nullcontext():
        return load_source(recipe, on_bad_image)


def size_for(side: int, smallest: int = MINIMUM_SIZE) -> int:
    """Return the image size for images of this smallest side: a multiple of 32, at most 224."""
    return min(max(side // _GRANULE * _GRANULE, smallest), IMAGENET_SIZE)


def describe_defaults(recipe: Recipe, defaults: tuple[str, ...] = SOURCE_FIELDS) -> str:
    """Return a line on the defaults of a recipe for photographs.

    Args:
        recipe: From `recipe_for`.
        defaults: The fields that were not given.
    """
    parts = []
    if "image_size" in defaults:
        parts.append(f"image_size {recipe.image_size}, by the sizes of the images")
    if "horizontal_flip" in defaults:
        parts.append(f"horizontal_flip {recipe.horizontal_flip} (False for letters and digits)")
    parts.append(f"resize {recipe.resize}")
    parts.append(f"{describe_crops(recipe)}, eval_scale {recipe.eval_scale_side}")
    return f"defaults for photographs: {'; '.join(parts)}"

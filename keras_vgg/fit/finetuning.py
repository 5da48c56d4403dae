"""The recipe of a fine-tuning: a linear classifier on frozen features, then the last block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_vgg import architecture, data, hardware
from keras_vgg.fit.defaults import IMAGENET_SIZE, look_at, size_for
from keras_vgg.fit.inputs import describe_crops
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, directory_of_run

# ImageNet's filters see too little of an object in smaller images. CIFAR-10's images of 32 pixels
# are enlarged to 128: a linear classifier is 1.4 points better than at 96.
SMALLEST_SIZE = 128
FEWEST_IMAGES = 20  # training images a class: the block would learn fewer by heart
_UNEVEN = 1.5  # times the images of the smallest class, from which on classes have weights
_LARGEST_BATCH, _SMALLEST_BATCH = 32, 4
_STEPS = 10  # in an epoch, at least

_COMMON: dict[str, Any] = {
    "configuration": "D",
    "width_multiplier": 1.0,
    "batch_norm": False,
    "head": "gap",
    "init_head": "probe",
    "horizontal_flip": True,
    "keep_checkpoints": 1,
}
# Chosen on images of CIFAR-10 in a few trials: a first choice, not a search. The average of the
# weights is over about the last 20 steps: a few hundred images give 80 steps in all.
_BLOCK: dict[str, Any] = {
    "freeze_until": "block5",
    "epochs": 6,
    "learning_rate": 0.0005,
    "weight_decay": 5e-3,
    "ema_momentum": 0.95,
}
# The probe is the best linear classifier already: these epochs change little.
_HEAD: dict[str, Any] = {
    "freeze_until": "all",
    "epochs": 3,
    "learning_rate": 1e-5,
    "ema_momentum": 0.0,
}


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """What a fine-tuning does.

    Attributes:
        recipe: The recipe.
        lines: What was decided and why, in at most five lines.
    """

    recipe: Recipe
    lines: tuple[str, ...]


def plan_finetuning(
    source: str,
    *,
    init: str = "imagenet",
    head_only: bool = False,
    workdir: str | Path | None = None,
    **fields: Any,
) -> FineTuning:
    """Return the recipe that fits a source's images, classes and number, and this machine's memory.

    Args:
        source: As `Recipe.source`.
        init: As `Recipe.init`. A run directory also decides the network.
        head_only: Train only the classifier.
        workdir: A run directory. If it has a run with a checkpoint, then that run's recipe is the
            default, so that a repeated call resumes the run, with another memory too.
        fields: Fields of the recipe, which win.

    Raises:
        ValueError, OSError: as `Recipe` and `keras_vgg.load_source`.
    """
    asked = {"source": source, "init": init, **fields}
    if head_only:
        if fields.get("freeze_until", "all") != "all":
            raise ValueError(
                f"head_only freezes all blocks, and freeze_until is {fields['freeze_until']!r}: "
                "leave out one of them"
            )
        asked["freeze_until"] = "all"
    if workdir is not None and (directory_of_run(workdir) / "recipe.json").is_file():
        run = Run.open(workdir)
        if run.finished or run.checkpoints:  # without them, a run begins again
            recipe = run.recipe.replace(**asked)
            return FineTuning(recipe, (_recipe_line(recipe),))
    # `replace` names an unknown field, where Recipe would raise a TypeError.
    known = {"image_size": IMAGENET_SIZE, **_COMMON, **_BLOCK, **_network_of_run(init)}
    recipe = Recipe().replace(**known | asked)
    opened = look_at(recipe)
    train = opened.train
    if opened.several_labels:
        raise ValueError(
            f"{source} gives an image several labels, and finetune begins with a classifier of one "
            "label an image: use keras-vgg train with --init imagenet and --freeze-until block5"
        )
    median = data.median_smallest_side(train)
    classes = len(opened.class_names)
    decided: dict[str, Any] = {"image_size": size_for(median, SMALLEST_SIZE)}
    if recipe.sampling == "uniform" and _is_uneven(opened.class_counts().get("train")):
        decided["class_weights"] = "balanced"
        if asked.get("class_weights", "balanced") == "balanced":
            decided["select_by"] = "balanced_accuracy"  # what the weights aim at
    is_small = train.size < FEWEST_IMAGES * classes and "freeze_until" not in fields
    if is_small or head_only:
        decided |= _HEAD
    recipe = recipe.replace(**decided | asked)
    size = recipe.image_size
    scales: dict[str, Any] = {"eval_scale": size}
    if recipe.freeze_until == "all" and recipe.crop_area is None:
        scales["train_scale"] = (size, size)
    recipe = recipe.replace(**scales | asked)
    if "batch_size" not in asked:
        recipe = recipe.replace(batch_size=_fitting_batch(recipe, train.size))
    lines = [_source_line(opened, median), _recipe_line(recipe), *_stage_lines(recipe)]
    if is_small and not head_only:
        lines.append(
            f"block 5 stays frozen: {train.size / classes:.3g} training images a class are fewer "
            f"than {FEWEST_IMAGES}; --freeze-until block5 trains it nevertheless"
        )
    return FineTuning(recipe, tuple(lines))


def _network_of_run(init: str) -> dict[str, Any]:
    """Return the fields of a recipe that state the network of a run; none for other weights."""
    if not (Path(init) / "recipe.json").is_file():
        return {}
    recipe = Run.open(init).recipe
    names = ("configuration", "width_multiplier", "filters", "batch_norm", "color")
    return {name: getattr(recipe, name) for name in names}


def _is_uneven(counts: Sequence[int] | None) -> bool:
    """Return whether classes of so many training images have weights; None: it is not known."""
    return counts is not None and max(counts) >= _UNEVEN * max(1, min(counts))


def _fitting_batch(recipe: Recipe, images: int) -> int:
    """Return a power of 2 that leaves ten steps an epoch, and that half the memory can hold."""
    memory = hardware.available_memory()
    activations = architecture.totals(recipe.layers()).activations
    image_bytes = 2 * 4 * activations  # float32 values and their gradients
    batch = _LARGEST_BATCH
    while batch > _SMALLEST_BATCH and (
        batch * _STEPS > images or (memory is not None and batch * image_bytes > memory / 2)
    ):
        batch //= 2
    return batch


def _source_line(source: data.Source, median: int) -> str:
    sizes = {name: split.size for name, split in source.splits().items()}
    parts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    return (
        f"{source.name}: {parts} images, {len(source.class_names)} classes; the median smallest "
        f"side is {median} pixels"
    )


def _recipe_line(recipe: Recipe) -> str:
    weights = ", class weights" if recipe.class_weights != "none" else ""
    return (
        f"VGG {recipe.configuration} from {recipe.init}: {recipe.image_size}x{recipe.image_size}, "
        f"resize {recipe.resize}, batches of {recipe.batch_size}{weights}"
    )


def _stage_lines(recipe: Recipe) -> list[str]:
    lines = []
    if recipe.init_head == "probe":
        lines.append("first a linear classifier on the frozen base's features, computed once")
    if recipe.freeze_until != "all":
        mirrored = ", mirror images" if recipe.horizontal_flip else ""
        averaged = ", averaged weights" if recipe.ema_momentum else ""
        epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
        lines.append(
            f"then {recipe.freeze_until} and the classifier: {epochs}, learning rate "
            f"{recipe.learning_rate:g}, {describe_crops(recipe)}{mirrored}{averaged}"
        )
    return lines

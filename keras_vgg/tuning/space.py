"""The search space: fields of a recipe, each with a range or a list of choices."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keras_vgg.recipe import Recipe, field_types
from keras_vgg.recipe_faults import did_you_mean

if TYPE_CHECKING:
    import keras_tuner


@dataclasses.dataclass(frozen=True)
class Range:
    """All numbers from low to high, both included; whole numbers for a field of whole numbers.

    Attributes:
        low: The smallest number.
        high: The largest number.
        log: Draw uniformly on a logarithmic scale.
        step: Draw only low, low + step, ...

    Raises:
        ValueError: the range is empty, a logarithmic range has a bound of 0 or less, or the step
            does not fit.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty")
        if self.log and not self.low > 0:
            raise ValueError(f"a logarithmic range must begin above 0, not at {self.low:g}")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(
                f"a step of {self.step:g} does not fit a {'logarithmic ' if self.log else ''}range "
                f"from {self.low:g} to {self.high:g}"
            )


Space = Mapping[str, Range | Sequence[Any]]
"""Field of a recipe -> values to try. A single choice is set and not searched."""

# Other values of these fields give other images, so scores could not be compared.
_NOT_SEARCHED = ("source", "seed", "on_bad_image", "validation_fraction", "test_fraction")
_NOT_SEARCHED += ("select_by",)
_NOT_SEARCHED += ("columns", "group_pattern", "folds", "fold")
_NOT_SEARCHED += ("train_split", "validation_split", "test_split")
_NOT_SEARCHED += ("data_dir", "manual_dir", "download")
_NOT_SEARCHED += ("keep_checkpoints", "checkpoint_minutes", "checkpoint_steps")

_HEADS_WITH_HIDDEN_UNITS = ("fc", "conv")


def default_space(recipe: Recipe) -> dict[str, Range | Sequence[Any]]:
    """Return values worth trying around a recipe: network, optimisation, data augmentation.

    What the recipe decides by other fields stays as it is: weights to begin with, or numbers of
    filters, fix the network; `crop_area` takes the place of scales.
    """
    side = recipe.image_size
    batch_sizes = [size for size in (32, 64, 128) if size % recipe.gradient_accumulation == 0]
    space: dict[str, Range | Sequence[Any]] = {
        "configuration": ("A", "B", "C", "D", "E"),
        "width_multiplier": (0.125, 0.25, 0.5),
        "batch_norm": (True, False),
        "head": ("fc", "gap"),
        "hidden_units": (64, 128, 256, 512),
        "dropout": Range(0.0, 0.6, step=0.1),
        "learning_rate": Range(0.003, 0.3, log=True),
        "momentum": (0.8, 0.9, 0.95),
        "weight_decay": Range(1e-5, 1e-2, log=True),
        "label_smoothing": (0.0, 0.05, 0.1),
        "batch_size": batch_sizes or (recipe.batch_size,),
        "brightness": Range(0.0, 0.4, step=0.1),
        "contrast": Range(0.0, 0.4, step=0.1),
        "saturation": Range(0.0, 0.4, step=0.1),
        "hue": Range(0.0, 0.1, step=0.02),
        "crop_padding": (0, 2, 4),
    }
    if recipe.optimizer != "sgd":  # the decay is times the learning rate
        space |= {
            "learning_rate": Range(1e-4, 1e-2, log=True),
            "momentum": (recipe.momentum,),
            "weight_decay": Range(1e-3, 0.3, log=True),
        }
    begins_with_a_run = (Path(recipe.initialization) / "recipe.json").is_file()
    if recipe.init or recipe.filters or begins_with_a_run:
        for name in ("configuration", "width_multiplier", "batch_norm", "head", "hidden_units"):
            del space[name]
    if recipe.crop_area is not None:
        space["crop_padding"] = (recipe.crop_padding,)
    elif recipe.train_scale is not None:
        space["train_scale"] = ((side, side), (side, side * 5 // 4), (side * 9 // 8, side * 3 // 2))
        space["crop_padding"] = (recipe.crop_padding,)
    return space


def space_around(recipe: Recipe, space: Space) -> dict[str, Range | Sequence[Any]]:
    """Return the default space with the values of `space`, which replace those of their fields.

    Its other fields suit the single values of `space`. Without scales, if the image size is
    searched: they are numbers of pixels.
    """
    fixed = {
        name: values[0]
        for name, values in space.items()
        if not isinstance(values, Range) and len(values) == 1
    }
    if fixed.get("optimizer", "sgd") != "sgd" and recipe.learning_rate == Recipe().learning_rate:
        fixed.setdefault("learning_rate", 0.001)  # A recipe refuses SGD's default.
    try:
        values = default_space(recipe.replace(**fixed))
    except (TypeError, ValueError):  # `resolve` says what is wrong, or knows the searched partner
        values = default_space(recipe)
    if "image_size" in space and "image_size" not in fixed:
        values.pop("train_scale", None)
    return {**values, **space}


def resolve(recipe: Recipe, space: Space) -> tuple[Recipe, dict[str, Range | Sequence[Any]]]:
    """Return the recipe with every single choice set, and the fields to search.

    Raises:
        ValueError: a field is unknown, may not differ between trials, or has no choices; no field
            is left to search; a recipe cannot have one of the values.
    """
    known = [field.name for field in dataclasses.fields(Recipe)]
    single_choices: dict[str, Any] = {}
    searched: dict[str, Range | Sequence[Any]] = {}
    for name, choices in space.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"a recipe has no field {name!r} to search{hint}")
        single = not isinstance(choices, Range) and len(choices) == 1
        if name in _NOT_SEARCHED and not single:
            raise ValueError(
                f"{name} cannot be searched: scores with other values cannot be compared; give one "
                "value"
            )
        if isinstance(choices, Range):
            if name not in _numbers():
                raise ValueError(f"{name} is not a number: give choices, not a range")
            if _numbers()[name] is int and not float(choices.step or 1).is_integer():
                raise ValueError(
                    f"{name} is a whole number: the step must be whole too, not {choices.step:g}"
                )
            searched[name] = choices
        elif not choices:
            raise ValueError(f"{name} has no choices")
        elif single:
            single_choices[name] = choices[0]
        else:
            searched[name] = tuple(choices)
    recipe = _checked(recipe, single_choices, searched)
    heads = searched.get("head", (recipe.head,))
    assert not isinstance(heads, Range)  # refused above: head is not a number
    if not set(heads) & set(_HEADS_WITH_HIDDEN_UNITS):
        searched.pop("hidden_units", None)
    if not searched:
        raise ValueError("nothing to search: every field has a single choice")
    return recipe, searched


def _checked(recipe: Recipe, single_choices: Mapping[str, Any], searched: Space) -> Recipe:
    """Return the recipe with every single choice, if a recipe can have every other value too.

    A value is possible if it goes with the recipe's values of the other fields, or with the first
    value of each: optimizer=sgd,adamw needs another learning rate than the default.
    """
    values = {
        name: [_number(name, value) for value in (choices.low, choices.high)]
        if isinstance(choices, Range)
        else choices
        for name, choices in searched.items()
    }
    first_values = {name: choices[0] for name, choices in values.items()}

    def with_values(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
        try:
            return base.replace(**changes)
        except ValueError:
            return base.replace(**{**first_values, **changes})

    recipe = with_values(recipe, single_choices)
    for name, choices in values.items():
        for value in choices:
            with_values(recipe, {name: value})
    return recipe


def declare(hp: keras_tuner.HyperParameters, recipe: Recipe, searched: Space) -> Recipe:
    """Return the recipe of a trial's hyperparameters, and declare those that `hp` lacks.

    A hyperparameter has the name of its field. hidden_units exists only for heads that have hidden
    units. If train_scale is searched, and eval_scale is neither searched nor given by the recipe,
    the evaluation scale is the middle of the training scales, as in the paper.

    Raises:
        ValueError: a recipe cannot have these values together.
    """
    return recipe.replace(**draw_values(hp, recipe, searched))


def draw_values(hp: keras_tuner.HyperParameters, recipe: Recipe, searched: Space) -> dict[str, Any]:
    """Return field -> value as `declare`, also of values that no recipe can have together."""
    values: dict[str, Any] = {}
    head_first = sorted(searched, key=lambda name: name != "head")
    for name in head_first:
        if name == "hidden_units" and "head" in searched:
            with hp.conditional_scope("head", list(_HEADS_WITH_HIDDEN_UNITS)):
                value = _draw(hp, recipe, name, searched[name])
                if value is not None:  # the scope gives None for a head without hidden units
                    values[name] = value
        else:
            values[name] = _draw(hp, recipe, name, searched[name])
    free = "eval_scale" not in searched and recipe.eval_scale == "auto"
    if values.get("train_scale") and free:
        values["eval_scale"] = sum(values["train_scale"]) // 2
    return values


def parse_space(entries: Sequence[str]) -> dict[str, Range | Sequence[Any]]:
    """Return the space of FIELD=VALUE,VALUE,..., FIELD=LOW:HIGH, LOW:HIGH:log or LOW:HIGH:STEP.

    For train_scale, write a pair as 32-40. Write None as none; in a field that has the text none,
    such as auto_augment, none is that text.

    Raises:
        ValueError: an entry has another form.
    """
    space: dict[str, Range | Sequence[Any]] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not (name and equals and text):
            raise ValueError(f"{entry!r} is not FIELD=VALUES, as in learning_rate=0.01:0.3:log")
        # Without a number, as in source=folder:photos, the colon belongs to the value.
        parts = text.split(":") if name in _numbers() else [text]
        try:
            if name == "class_weights" and "=" in text:  # one value: a weight for each class
                space[name] = (text,)
            elif len(parts) == 1:
                space[name] = tuple(_value(name, word) for word in text.split(","))
            elif len(parts) == 2 or (len(parts) == 3 and parts[2] == "log"):
                space[name] = Range(float(parts[0]), float(parts[1]), log=len(parts) == 3)
            else:
                low, high, step = map(float, parts)
                space[name] = Range(low, high, step=step)
        except ValueError as error:
            raise ValueError(f"{entry}: {error}") from None
    return space


def _draw(
    hp: keras_tuner.HyperParameters, recipe: Recipe, name: str, choices: Range | Sequence[Any]
) -> Any:
    if isinstance(choices, Range) and choices.step is not None:
        # Not a step of keras-tuner, for which 0:0.6:0.1 ends at 0.5: 0.6 // 0.1 is 5.
        kind, default = _numbers()[name], getattr(recipe, name)
        count = int((choices.high - choices.low) / choices.step + 1e-9) + 1
        steps = [_rounded(choices.low + i * choices.step, kind) for i in range(count)]
        value = hp.Choice(name, steps, default=default if default in steps else None)
        return None if value is None else _rounded(value, kind)  # not always: see `draw_values`
    if isinstance(choices, Range):
        sampling = "log" if choices.log else "linear"
        default = getattr(recipe, name)
        in_range = isinstance(default, int | float) and choices.low <= default <= choices.high
        options = {"sampling": sampling, "default": default if in_range else None}
        if _numbers()[name] is int:
            step = None if choices.log else 1
            return hp.Int(name, int(choices.low), int(choices.high), step=step, **options)
        number = hp.Float(name, choices.low, choices.high, **options)
        return None if number is None else _rounded(number, float)
    if all(isinstance(choice, bool) for choice in choices):
        return hp.Boolean(name, default=getattr(recipe, name))
    if len({type(choice) for choice in choices}) == 1 and isinstance(choices[0], str):
        return hp.Choice(name, list(choices))
    if all(type(choice) in (int, float) for choice in choices):
        kind = _numbers().get(name, float)
        return hp.Choice(name, [kind(choice) for choice in choices])
    # keras-tuner's choices are texts or numbers; a pair, or None among pairs, is neither.
    text = hp.Choice(name, [json.dumps(choice) for choice in choices])
    assert text is not None  # only hidden_units, a number, is in a conditional scope
    decoded = json.loads(text)
    return tuple(decoded) if isinstance(decoded, list) else decoded


def _rounded(number: float, kind: type) -> Any:
    """Return a number of 12 digits: 0.1 + 0.2 is 0.3."""
    return kind(float(f"{number:.12g}"))


def _numbers() -> dict[str, type]:
    """Return the fields that hold a number, each with int or float."""
    kinds = {int: int, float: float, int | None: int, int | Literal["auto"] | None: int}
    return {name: kinds[kind] for name, kind in field_types().items() if kind in kinds}


def _number(name: str, value: Any) -> Any:
    """Return a bound such as 32.0 as an int if the field holds whole numbers."""
    if _numbers().get(name) is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _value(name: str, word: str) -> Any:
    kind = field_types().get(name)
    parts = typing.get_args(kind) or (kind,)
    takes_none = type(None) in parts
    if all(part in (str, type(None)) or isinstance(part, str) for part in parts):  # a text
        return word if word.lower() != "none" else None if takes_none else "none"
    constants = {"none": None if takes_none else "none", "true": True, "false": False}
    if word.lower() in constants:
        return constants[word.lower()]
    low, dash, high = word.partition("-")
    if dash and low.isdigit() and high.isdigit():
        return int(low), int(high)
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return word

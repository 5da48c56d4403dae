"""A recipe: everything that decides a training run, as one frozen value."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import re
import runpy
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from keras_vgg.architecture import MINIMUM_SIZE, Layer, get_configuration, layers

_LARGEST_SCALE = 8192
_LONGEST = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class Interval:
    """What a field's number must lie in; `closed`: the highest itself is allowed."""

    low: float
    high: float
    closed: bool = True

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.closed or value != self.high)

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training run, decided. `Recipe()` learns scikit-learn's handwritten digits.

    A recipe file is Python that defines `RECIPE = Recipe(...)` and states only what differs.

    Raises:
        ValueError: names the field, its value and what it may be.

    Example:
        ```python
        from keras_vgg import Recipe

        recipe = Recipe(configuration="D", batch_norm=True, epochs=60)
        longer = recipe.replace(epochs=90)
        print(longer.differences(recipe))  # {'epochs': (90, 60)}
        ```
    """

    # Data
    source: str = "digits"
    """Where images come from: digits, a TFDS name, folder:PATH, records:PATH or idx:PATH."""
    data_dir: str | None = None
    """TFDS: where prepared data sets live (default: TFDS's own, ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """TFDS: a folder that holds the data set's original files, which are then not downloaded."""
    download: bool = False
    """TFDS: download and prepare the data set when it is not there."""
    train_split: str | None = None
    """TFDS: split to train on, such as train[:90%] (default: chosen with the other two)."""
    validation_split: str | None = None
    """TFDS: split that selects the model (default: held out of train)."""
    test_split: str | None = None
    """TFDS: split that is read once, to report."""
    validation_fraction: Annotated[float, Interval(0, 1, closed=False)] = 0.1
    """Share of the training images held out where a source has no validation split."""
    test_fraction: Annotated[float, Interval(0, 1, closed=False)] = 0.2
    """Share of the images held out where a source has no test split (digits, folders)."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A damaged image: stop and name it, or decode all first, leave it out and say how many."""
    seed: Annotated[int, Interval(0, 2**31, closed=False)] = 0
    """Decides splits, initial weights, order, augmentation and dropout."""

    # Network
    configuration: str = "A"
    """Column of the paper's Table 1: A, A-LRN, B, C, D or E (or VGG11 ... VGG19)."""
    width_multiplier: Annotated[float, Interval(1e-3, 16)] = 0.25
    """Scales the filters of every convolution; 1 is the paper's width."""
    batch_norm: bool = True
    """Batch normalisation after every convolution."""
    head: Literal["fc", "conv", "gap"] = "fc"
    """The classifier: the paper's, the same as convolutions, or global average pooling."""
    hidden_units: Annotated[int, Interval(1, 1e6)] = 128
    """Width of fc1 and fc2; the paper's is 4096."""
    dropout: Annotated[float, Interval(0, 1, closed=False)] = 0.5
    """Dropout rate after fc1 and fc2."""

    # Where it starts
    initialization: str = "he_normal"
    """First weights: normal (the paper's), normal:SD (of that standard deviation), glorot, a Keras
    initializer, or a run, from which the first four convolutions and the classifier are taken
    (section 3.1), the rest as it began."""
    init: str | None = None
    """All first weights: imagenet, torchvision, a weight file or a run; None: initialization's."""
    init_head: Literal["none", "hidden", "all"] = "none"
    """Which layers of the classifier are loaded too: none, fc1 and fc2, or all (same classes)."""
    freeze_until: Literal["none", "block2", "block3", "block4", "block5", "all"] = "none"
    """Do not train the blocks before this one; all: train the classifier only."""
    layer_decay: Annotated[float, Interval(1e-6, 1)] = 1.0
    """Each block's learning rate is that of the next, towards the classifier, times this."""

    # What the network sees
    image_size: Annotated[int, Interval(MINIMUM_SIZE, 4096)] = 32
    """Side of the network's square input, from 32 up."""
    train_scale: tuple[int, int] | None = (32, 40)
    """Training images are rescaled to a smallest side drawn from this range; None: not at all."""
    eval_scale: Annotated[int | None, Interval(1, _LARGEST_SCALE)] = 36
    """Evaluation images are rescaled to this smallest side, then cropped; None: not at all."""
    crop_padding: Annotated[int, Interval(0, 1024)] = 0
    """Zero pixels put on every side before the random crop."""
    horizontal_flip: bool = False
    """Mirror half of the training images."""
    brightness: Annotated[float, Interval(0, 1)] = 0.0
    """Add up to this share of the full range, either way."""
    contrast: Annotated[float, Interval(0, 1)] = 0.0
    """Stretch about the mean by a factor up to 1 plus or minus this."""
    saturation: Annotated[float, Interval(0, 1)] = 0.0
    """Move from (or to) grey by a factor up to 1 plus or minus this."""
    hue: Annotated[float, Interval(0, 0.5)] = 0.0
    """Rotate hue by up to this share of a turn, either way; at most 0.5."""
    rgb_shift: Annotated[float, Interval(0, 10)] = 0.0
    """The paper's colour shift along the training set's RGB components; its strength is 0.1."""
    rand_augment: Annotated[float, Interval(0, 1)] = 0.0
    """Magnitude of two random operations of keras.layers.RandAugment, drawn once a batch."""
    random_erasing: Annotated[float, Interval(0, 1)] = 0.0
    """Probability that keras.layers.RandomErasing puts a rectangle of noise on an image."""
    mixup: Annotated[float, Interval(0, 1)] = 0.0
    """Alpha of keras.layers.MixUp, which blends two images of a batch; 0.2 is usual."""
    cutmix: Annotated[float, Interval(0, 1)] = 0.0
    """Factor of keras.layers.CutMix, which pastes a part of another image; 1 is usual."""
    mean_rgb: tuple[float, float, float] | None = None
    """Subtracted inside the model, in [0, 255]; None: init's, else the training set's mean."""
    std_rgb: tuple[float, float, float] | None = None
    """Divided by inside the model, in [0, 255]; None: as mean_rgb; the paper has 1 1 1."""

    # Optimisation
    epochs: Annotated[int, Interval(1, 1e6)] = 20
    """Passes over the training split."""
    batch_size: Annotated[int, Interval(1, 1e6)] = 64
    """Images a step."""
    gradient_accumulation: Annotated[int, Interval(1, 1e6)] = 1
    """Take a step's images in so many parts, one after the other, for less memory; each part is
    normalised by itself where there is batch norm."""
    learning_rate: Annotated[float, Interval(1e-12, 1e3)] = 0.05
    """SGD learning rate after warm-up."""
    momentum: Annotated[float, Interval(0, 1, closed=False)] = 0.9
    """SGD momentum."""
    nesterov: bool = False
    """Nesterov's momentum."""
    weight_decay: Annotated[float, Interval(0, 1)] = 5e-4
    """As the paper means it: a kernel's gradient grows by this times the kernel."""
    label_smoothing: Annotated[float, Interval(0, 1, closed=False)] = 0.0
    """Share of the target spread over all classes."""
    schedule: Literal["constant", "step", "cosine", "plateau"] = "cosine"
    """How the learning rate falls; the paper's is plateau."""
    warmup_epochs: Annotated[float, Interval(0, 1e6)] = 1.0
    """The learning rate rises linearly over these epochs."""
    decay_factor: Annotated[float, Interval(1e-6, 1, closed=False)] = 0.1
    """step, plateau: what the learning rate is multiplied by."""
    step_epochs: tuple[int, ...] = ()
    """step: the epochs before which it falls, such as 60 120 160."""
    plateau_patience: Annotated[int, Interval(1, 1e6)] = 5
    """plateau: epochs without a better validation accuracy before it falls."""
    plateau_drops: Annotated[int, Interval(0, 100)] = 3
    """plateau: how often it falls; training ends when it would fall once more."""
    early_stopping: Annotated[int, Interval(0, 1e6)] = 0
    """End after so many epochs without a better one (validation accuracy, then loss); 0: never."""

    # Engine
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Arithmetic of the layers; weights, soft-max and loss stay float32. auto: half where the
    device has it and the network is large enough to gain."""
    jit: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with XLA. auto: where that is faster."""
    devices: str = "auto"
    """auto: all accelerators, else the CPU; a number: so many; cpu: no accelerator. Several take
    equal parts of a batch."""
    deterministic: bool = True
    """Every batch is decided by seed, epoch and step; False lets images overtake slower ones."""
    keep_checkpoints: Annotated[int, Interval(1, 1e6)] = 2
    """How many of the newest checkpoints to keep."""
    checkpoint_minutes: Annotated[float, Interval(0, 1e6)] = 10.0
    """Within an epoch, write a checkpoint after so many minutes; there is one after each epoch."""
    checkpoint_steps: Annotated[int, Interval(0, 1e9)] = 0
    """Within an epoch, write a checkpoint every so many steps as well; 0: none."""

    def __post_init__(self) -> None:
        for name, kind in field_types().items():
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
            elif kind is float and type(value) is int:
                try:
                    object.__setattr__(self, name, float(value))
                except OverflowError:
                    raise ValueError(f"{name} is too large: {_short(value)}") from None
        _validate(self)

    @property
    def part_size(self) -> int:
        """Images that are computed at a time: `batch_size` over `gradient_accumulation`."""
        return self.batch_size // self.gradient_accumulation

    def network_options(self) -> dict[str, Any]:
        """Return what decides the network's layers, for `layers` and `keras_vgg.vgg` alike."""
        return {
            "input_shape": (self.image_size, self.image_size, 3),
            "batch_norm": self.batch_norm,
            "width_multiplier": self.width_multiplier,
            "head": self.head,
            "hidden_units": self.hidden_units,
        }

    def layers(self, classes: int = 1000) -> tuple[Layer, ...]:
        """Return the network's layer table (`keras_vgg.architecture.layers`), without building."""
        return layers(self.configuration, classes=classes, **self.network_options())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Raises ValueError for text that is not JSON and for fields that are not a recipe's."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a recipe's JSON cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ValueError("a recipe's JSON must be an object of fields")
        return Recipe().replace(**values)

    def replace(self, /, **changes: Any) -> Recipe:
        """A recipe with some fields changed; ValueError for a field that there is not."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"a recipe has no field {_quoted(name)}{hint}")
        return dataclasses.replace(self, **changes)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """The fields in which two recipes differ, with both values.

        Where the data lies and what is kept of it do not make another experiment.
        """
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        return {k: (mine[k], others[k]) for k in mine if mine[k] != others[k] and k not in _PLACE}


# Fields that change whole batches: the arguments of augment.batch_augmentation.
BATCH_AUGMENTATIONS = ("rand_augment", "random_erasing", "mixup", "cutmix")

_PLACE = ("data_dir", "manual_dir", "download")
_PLACE += ("keep_checkpoints", "checkpoint_minutes", "checkpoint_steps")

# Keras initializers that give all units the same weights, or that have no form for a convolution:
# nothing is learned from them.
_NOT_RANDOM = ("zeros", "ones", "constant", "identity", "stft")
_MEAN, _STD = (-1e4, 1e4), (1e-3, 1e4)  # float32 holds a pixel less the mean, over the deviation


@functools.cache
def field_types() -> Mapping[str, Any]:
    """Return each field's type by its name, such as `int | None`."""
    return typing.get_type_hints(Recipe)


@functools.cache
def _intervals() -> Mapping[str, Interval]:
    """Return what each number of a recipe must lie in."""
    hints = typing.get_type_hints(Recipe, include_extras=True)
    return {
        name: part
        for name, hint in hints.items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, Interval)
    }


def _require_type(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError unless a field's value is of its type: no float for an int, for example."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {_quoted(value)}")
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, not {_quoted(value)}")
    elif not _is_one_of(value, options):
        text = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f"{name} must be {text}, not {_quoted(value)}")


def _is_one_of(value: Any, options: tuple[Any, ...]) -> bool:
    for option in options:
        if typing.get_origin(option) is tuple:
            numbers = (int,) if int in typing.get_args(option) else (float, int)
            if isinstance(value, tuple) and all(type(item) in numbers for item in value):
                return True
        elif type(value) is option:
            return True
    return False


def _validate(recipe: Recipe) -> None:
    for name, kind in field_types().items():
        value = getattr(recipe, name)
        _require_type(name, value, kind)
        interval = _intervals().get(name)
        if interval is not None and value is not None and not interval.holds(value):
            raise ValueError(f"{name} must be in {interval}, not {_short(value)}")
    _require_pixels(recipe)
    _require_network(recipe)
    _require_optimisation(recipe)


def _require_pixels(recipe: Recipe) -> None:
    """Raise ValueError for scales and statistics of pixels that no image can have."""
    if recipe.std_rgb is not None and not all(v > 0 for v in recipe.std_rgb):
        raise ValueError(f"std_rgb must be positive, not {_short(recipe.std_rgb)}")
    for name, (low, high) in (("mean_rgb", _MEAN), ("std_rgb", _STD)):
        value = getattr(recipe, name)
        if value is not None and (len(value) != 3 or not all(low <= v <= high for v in value)):
            raise ValueError(
                f"{name} must be three numbers in [{low:g}, {high:g}], not {_short(value)}"
            )
    scale = recipe.train_scale
    if scale is not None and not (len(scale) == 2 and 1 <= scale[0] <= scale[1] <= _LARGEST_SCALE):
        raise ValueError(
            f"train_scale must be two rising whole numbers up to {_LARGEST_SCALE}, not "
            f"{_short(scale)}"
        )
    if recipe.crop_padding >= recipe.image_size:
        raise ValueError(
            f"crop_padding ({recipe.crop_padding}) must be below image_size ({recipe.image_size})"
        )


def _require_network(recipe: Recipe) -> None:
    """Raise ValueError for a network or first weights from which nothing is learned."""
    get_configuration(recipe.configuration)
    if recipe.initialization.lower().removesuffix("initializer") in _NOT_RANDOM:
        raise ValueError(
            f"initialization={_quoted(recipe.initialization)} gives every unit the same weights, "
            "which then stay the same; take a random one, such as he_normal"
        )
    if recipe.init is None and (recipe.freeze_until != "none" or recipe.init_head != "none"):
        raise ValueError(
            f"freeze_until={recipe.freeze_until!r} and init_head={recipe.init_head!r} need init, "
            "such as imagenet: random weights are not worth keeping"
        )
    if recipe.init is not None and (recipe.mean_rgb is None) != (recipe.std_rgb is None):
        raise ValueError("with init, give mean_rgb and std_rgb both, or neither: then they are its")


def _require_optimisation(recipe: Recipe) -> None:
    """Raise ValueError for batches, devices and a schedule that cannot be."""
    if recipe.schedule == "step" and not recipe.step_epochs:
        raise ValueError("schedule 'step' needs step_epochs, such as 60 120 160")
    if list(recipe.step_epochs) != sorted(set(recipe.step_epochs)):
        raise ValueError(f"step_epochs must rise, not {_short(recipe.step_epochs)}")
    if recipe.step_epochs and not 1 <= recipe.step_epochs[0] <= recipe.step_epochs[-1] <= 1e6:
        raise ValueError(f"step_epochs must be in [1, 1e+06], not {_short(recipe.step_epochs)}")
    if recipe.devices not in ("auto", "cpu") and not re.fullmatch("[1-9][0-9]*", recipe.devices):
        raise ValueError(f"devices must be auto, cpu or a number, not {_quoted(recipe.devices)}")
    if recipe.batch_size % recipe.gradient_accumulation:
        raise ValueError(
            f"batch_size ({recipe.batch_size}) must be a multiple of gradient_accumulation "
            f"({recipe.gradient_accumulation})"
        )
    if recipe.warmup_epochs > recipe.epochs:
        raise ValueError(
            f"warmup_epochs ({recipe.warmup_epochs:g}) is more than epochs ({recipe.epochs})"
        )


def _short(value: Any) -> str:
    """A value for a message; Python refuses to print a whole number of many digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, tuple):
        return _cut(f"({', '.join(map(_short, value))})")
    return str(value)


def _quoted(value: Any) -> str:
    """A value of any kind for a message, as Python writes it."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # a number of very many digits, a list in a list in ...
        return f"a {type(value).__name__} that is too large to show"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a Python file that defines RECIPE, or from a run's recipe.json.

    A Python recipe is code, and is run: read one from somebody else before you load it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file defines no RECIPE, or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    if path.suffix == ".json":
        return Recipe.from_json(path.read_text())
    if path.suffix != ".py":
        raise ValueError(f"a recipe is a .py or .json file, not {path}")
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except Exception as error:
        raise ValueError(f"recipe {path} cannot be run: {error!r}") from error
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe {path} defines no RECIPE = Recipe(...)")
    return recipe

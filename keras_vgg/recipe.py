"""A recipe: everything that decides a training run, as one frozen value."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import runpy
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from keras_vgg import recipe_checks
from keras_vgg.architecture import MINIMUM_SIZE, Layer, layers, widths
from keras_vgg.recipe_checks import LARGEST_SCALE, Interval
from keras_vgg.recipe_faults import describe_fault, describe_missing, did_you_mean


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every decision about a training run. `Recipe()` trains on scikit-learn's handwritten digits.

    A recipe file is Python that defines `RECIPE = Recipe(...)` and states only the fields that
    differ from `Recipe()`.

    Raises:
        ValueError: a field has a wrong value. The error names the field, the value and the values
            that the field may have.

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
    """Source of the images: digits, a TFDS name, folder:PATH, csv:FILE (a table; also TSV and JSON
    Lines), records:PATH or idx:PATH."""
    data_dir: str | None = None
    """TFDS: the folder of prepared data sets (default: ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """TFDS: a folder with the data set's original files. TFDS then does not download them."""
    download: bool = False
    """TFDS: download and prepare the data set if it is missing."""
    train_split: str | None = None
    """TFDS: training split, such as train[:90%] (default: chosen with the other two)."""
    validation_split: str | None = None
    """TFDS: validation split, which selects the best epoch (default: held out of train)."""
    test_split: str | None = None
    """TFDS: test split. Training does not read it."""
    validation_fraction: Annotated[float, Interval(0, 1, closed=False)] = 0.1
    """Share of the training images to hold out if a source has no validation split."""
    test_fraction: Annotated[float, Interval(0, 1, closed=False)] = 0.2
    """Share of the images to hold out if a source has no test split (digits, folders, tables)."""
    columns: str = ""
    """csv: the columns' names if they are not common ones: path, label (one label) or labels
    (several), split, group; such as path=file,label=diagnosis,group=patient."""
    group_pattern: str | None = None
    """folder, csv: regular expression on an image's path. What the first parenthesis matches is the
    image's group, such as a patient; no drawn split has images of one group on two sides."""
    folds: int = 0
    """Cross-validation: number of folds, which share all images but those of the source's own test
    split; 0: none. train trains one network for each fold."""
    fold: int = 0
    """The fold that is the test split, from 1; 0: none, or all of them one after the other."""
    on_bad_image: Literal["error", "skip"] = "error"
    """error: stop at a damaged image and name it. skip: decode all images first, leave out the
    damaged ones and print their number."""
    seed: Annotated[int, Interval(0, 2**31, closed=False)] = 0
    """Random seed of splits, initial weights, order, augmentation and dropout."""

    # Network
    configuration: str = "A"
    """Column of the paper's Table 1: A, A-LRN, B, C, D or E (or VGG11 ... VGG19)."""
    width_multiplier: Annotated[float, Interval(1e-3, 16)] = 0.25
    """Factor on the number of filters of every convolution; 1 is the paper's width."""
    filters: tuple[int, ...] = ()
    """Number of filters of each convolution, from block1_conv1 on, in place of width_multiplier; as
    a pruned network has them. Empty: width_multiplier decides."""
    batch_norm: bool = True
    """Batch normalisation after every convolution."""
    head: Literal["fc", "conv", "gap"] = "fc"
    """Classifier. fc: the paper's. conv: the same layers as convolutions. gap: global average
    pooling."""
    hidden_units: Annotated[int, Interval(1, 1e6)] = 128
    """Width of fc1 and fc2; the paper's is 4096."""
    dropout: Annotated[float, Interval(0, 1, closed=False)] = 0.5
    """Dropout rate after fc1 and fc2."""

    # Initial weights
    initialization: str = "he_normal"
    """Initial weights: normal (the paper's), normal:SD (standard deviation SD), glorot, a Keras
    initializer, or a run directory. A run gives the first four convolutions and the classifier
    (section 3.1); the other layers get that run's initializer."""
    init: str | None = None
    """Pretrained weights for all layers: imagenet, torchvision, a weight file, a run directory or
    hf://OWNER/NAME. None: use initialization."""
    init_head: Literal["none", "hidden", "all", "probe"] = "none"
    """Layers of the classifier to load from init: none, hidden (fc1 and fc2), or all (same
    classes). probe: begin with the linear classifier that is best on the features of init
    (scikit-learn's logistic regression; head gap)."""
    freeze_until: Literal["none", "block2", "block3", "block4", "block5", "all"] = "none"
    """Freeze the blocks before this one. all: train only the classifier."""
    layer_decay: Annotated[float, Interval(1e-6, 1)] = 1.0
    """Layer-wise learning-rate decay: a block's learning rate is this times the rate of the next
    block, towards the classifier."""

    # Images and data augmentation
    image_size: Annotated[int, Interval(MINIMUM_SIZE, 4096)] = 32
    """Side of the network's square input in pixels; at least 32."""
    color: Literal["rgb", "grey"] = "rgb"
    """grey: the network takes images of one channel, the luma. Pretrained weights then give exactly
    what they give for R = G = B."""
    train_scale: tuple[int, int] | Literal["auto"] | None = "auto"
    """Range of the smallest side to which each training image is rescaled; auto: from image_size
    to 5/4 of it; None: do not rescale."""
    eval_scale: Annotated[int | Literal["auto"] | None, Interval(1, LARGEST_SCALE)] = "auto"
    """Smallest side to which evaluation images are rescaled before the centre crop; auto: 9/8 of
    image_size; None: do not rescale."""
    resize: Literal["crop", "squash", "pad"] = "crop"
    """How an image comes to a scale. crop: its smallest side, and crops are taken. squash: both
    sides, whatever its shape. pad: its largest side, and zeros are put beside it."""
    bit_depth: Literal["16", "14", "12", "10", "stretch"] = "16"
    """16-bit PNG files: the bits that carry the image, of which the upper 8 are used; stretch: the
    smallest and largest value of each file become 0 and 255."""
    crop_padding: Annotated[int, Interval(0, 1024)] = 0
    """Pixels of zero padding on every side before the random crop."""
    crop_area: tuple[float, float] | None = None
    """Range of the share of an image's area that a training crop has, such as 0.08 1 (Inception's
    crops, which are made square). None: square crops, as train_scale and crop_padding say."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """crop_area: range of the crops' width / height, from 0.1 to 10."""
    horizontal_flip: bool = False
    """Mirror each training image left to right with probability 0.5."""
    vertical_flip: bool = False
    """Mirror each training image top to bottom with probability 0.5."""
    rotation: Annotated[float, Interval(0, 180)] = 0.0
    """Turn each training image by up to plus or minus this many degrees."""
    shear: Annotated[float, Interval(0, 1)] = 0.0
    """Slant each training image along both axes by up to plus or minus this: pixels to the side for
    each pixel from the centre."""
    translation: Annotated[float, Interval(0, 1)] = 0.0
    """Move each training image in both directions by up to plus or minus this share of
    image_size."""
    auto_augment: Literal["none", "trivial", "rand"] = "none"
    """Operations drawn for each training image by itself. trivial: one of TrivialAugment's 14, of a
    drawn strength. rand: rand_operations of RandAugment's, of the strength rand_magnitude."""
    rand_operations: Annotated[int, Interval(1, 8)] = 2
    """auto_augment rand: number of operations."""
    rand_magnitude: Annotated[int, Interval(0, 30)] = 9
    """auto_augment rand: strength of the operations, from 0 to 30."""
    brightness: Annotated[float, Interval(0, 1)] = 0.0
    """Add up to plus or minus this share of the full range."""
    contrast: Annotated[float, Interval(0, 1)] = 0.0
    """Scale around the mean by a factor of up to 1 plus or minus this."""
    saturation: Annotated[float, Interval(0, 1)] = 0.0
    """Scale the distance from grey by a factor of up to 1 plus or minus this."""
    hue: Annotated[float, Interval(0, 0.5)] = 0.0
    """Rotate the hue by up to plus or minus this share of a turn; at most 0.5."""
    rgb_shift: Annotated[float, Interval(0, 10)] = 0.0
    """Strength of the paper's colour shift along the training set's RGB components; the paper
    uses 0.1."""
    cutout: Annotated[float, Interval(0, 1)] = 0.0
    """Cover a square of this share of image_size, anywhere in each training image, with the image's
    mean colour; 0.5 is usual."""
    rand_augment: Annotated[float, Interval(0, 1)] = 0.0
    """Magnitude of keras.layers.RandAugment, which draws two operations for each batch. For
    operations drawn for each image, use auto_augment."""
    random_erasing: Annotated[float, Interval(0, 1)] = 0.0
    """Probability that keras.layers.RandomErasing fills a rectangle of an image with noise."""
    mixup: Annotated[float, Interval(0, 1)] = 0.0
    """Alpha of keras.layers.MixUp, which blends two images of a batch; 0.2 is usual."""
    cutmix: Annotated[float, Interval(0, 1)] = 0.0
    """Factor of keras.layers.CutMix, which pastes a part of another image; 1 is usual."""
    unmixed_epochs: Annotated[int, Interval(0, 1e6)] = 0
    """Number of last epochs, before the end and before each restart, without mixup and cutmix. A
    training that ends early, by early_stopping or plateau, does not come to them."""
    mean_rgb: tuple[float, float, float] | None = None
    """Mean that the model subtracts, in [0, 255]; None: that of init or of the training set. With
    an init that does not state its input, the network takes RGB."""
    std_rgb: tuple[float, float, float] | None = None
    """Deviation that the model divides by, in [0, 255]; None: as mean_rgb. The paper uses 1 1 1."""

    # Optimisation
    epochs: Annotated[int, Interval(1, 1e6)] = 20
    """Passes over the training split."""
    batch_size: Annotated[int, Interval(1, 1e6)] = 64
    """Training images in a step."""
    gradient_accumulation: Annotated[int, Interval(1, 1e6)] = 1
    """Compute a batch in this many parts, one after the other, which takes less memory. Batch
    normalisation sees one part at a time."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """Keras' optimizer of this name. muon: also for the kernels of convolutions; AdamW for biases,
    batch norm and the last layer."""
    learning_rate: Annotated[float, Interval(1e-12, 1e3)] = 0.05
    """Learning rate after warm-up; 0.001 is usual with adamw and muon."""
    momentum: Annotated[float, Interval(0, 1, closed=False)] = 0.9
    """Momentum of sgd and muon (0.95 is usual with muon); the first beta of adamw."""
    nesterov: bool = False
    """Use Nesterov momentum: sgd and muon (usual with muon)."""
    weight_decay: Annotated[float, Interval(0, 1)] = 5e-4
    """Weight decay of the kernels. sgd: as in the paper, this times a kernel is added to the
    kernel's gradient. adamw, muon: decoupled, this times learning rate times kernel is subtracted
    from the kernel; 0.05 is usual."""
    clip_norm: Annotated[float, Interval(0, 1e6)] = 0.0
    """Scale the gradient of all weights down to at most this norm; 0: leave it as it is. With sgd,
    weight decay is in the gradient."""
    ema_momentum: Annotated[float, Interval(0, 1, closed=False)] = 0.0
    """Momentum of an average of the weights over the steps, which is validated, kept and exported
    as the model; 0.999 is usual, and less for short trainings. 0: no average."""
    label_smoothing: Annotated[float, Interval(0, 1, closed=False)] = 0.0
    """Share of the target that is spread over all classes; with several labels an image, that goes
    half to 0 and half to 1."""
    loss: Literal["crossentropy", "focal"] = "crossentropy"
    """Loss. focal: cross-entropy in which an image counts the less, the surer the network is of its
    class (keras.losses.CategoricalFocalCrossentropy with alpha 1). With several labels an image,
    both are Keras' binary ones."""
    focal_gamma: Annotated[float, Interval(0, 10)] = 2.0
    """Focal loss: the cross-entropy is multiplied by (1 - p) to this power; 0: cross-entropy."""
    teachers: tuple[str, ...] = ()
    """Distillation: finished run directories whose networks, averaged, are the teacher. They see
    the same images, at their own size, and must have the same classes."""
    distillation_weight: Annotated[float, Interval(0, 1)] = 0.5
    """Distillation: weight of the teacher's probabilities in the loss; that of the labels is 1
    minus this."""
    distillation_temperature: Annotated[float, Interval(0.1, 100)] = 2.0
    """Distillation: the scores of teacher and network are divided by this before the soft-max.
    A higher temperature shows more of what the teacher thinks of the other classes."""
    class_weights: str = "none"
    """Weights of the classes in the training loss and accuracy. balanced: every class counts the
    same, however many training images it has. Or weights by name, such as cat=2,dog=0.5; other
    classes then have weight 1. Validation has no weights."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Training images of an epoch. uniform: every image once. balanced: every class equally often
    in every batch; the images of a class take turns. An epoch has as many steps either way."""
    select_by: Literal["accuracy", "balanced_accuracy"] = "accuracy"
    """Validation figure that selects the epoch to keep, and that plateau and early_stopping watch.
    balanced_accuracy: the mean of the classes' accuracies. With several labels an image, the area
    under the precision-recall curves is watched instead."""
    schedule: Literal["constant", "step", "cosine", "plateau"] = "cosine"
    """Learning-rate schedule; the paper's is plateau."""
    warmup_epochs: Annotated[float, Interval(0, 1e6)] = 1.0
    """Epochs in which the learning rate rises linearly."""
    decay_factor: Annotated[float, Interval(1e-6, 1, closed=False)] = 0.1
    """step, plateau: factor on the learning rate."""
    step_epochs: tuple[int, ...] = ()
    """step: epochs after which the learning rate falls, such as 60 120 160 of 200."""
    plateau_patience: Annotated[int, Interval(1, 1e6)] = 5
    """plateau: epochs without a better validation accuracy (or what select_by names) before the
    learning rate falls."""
    plateau_drops: Annotated[int, Interval(0, 100)] = 3
    """plateau: how often the learning rate falls; training ends instead of one more fall."""
    restart_epochs: tuple[int, ...] = ()
    """Warm restarts: epochs after which the schedule begins again, without warm-up, over the epochs
    up to the next restart or the end. train --extend adds one."""
    restart_rates: tuple[float, ...] = ()
    """The learning rate after each restart, in place of learning_rate."""
    early_stopping: Annotated[int, Interval(0, 1e6)] = 0
    """End after this many epochs without a better validation figure, or at the same figure, a lower
    loss; 0: never."""

    # Engine
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"
    """Precision of the layers; weights, soft-max and loss stay float32. auto: half precision if the
    device has it and the network is large enough to gain."""
    jit: Literal["auto", "on", "off"] = "auto"
    """Compile the training step with XLA. auto: if that is faster."""
    devices: str = "auto"
    """auto: all accelerators, or the CPU if there are none. A number: that many devices. cpu:
    the CPU only. Several devices take equal parts of a batch."""
    deterministic: bool = True
    """Let seed, epoch and step decide every batch. False: images need not wait for slower ones."""
    keep_checkpoints: Annotated[int, Interval(1, 1e6)] = 2
    """Number of newest checkpoints to keep; the newest of a whole epoch is always kept."""
    checkpoint_minutes: Annotated[float, Interval(0, 1e6)] = 10.0
    """Minutes between checkpoints within an epoch; each epoch ends with a checkpoint too."""
    checkpoint_steps: Annotated[int, Interval(0, 1e9)] = 0
    """Steps between checkpoints within an epoch, besides checkpoint_minutes; 0: no such limit."""

    def __post_init__(self) -> None:
        for name, kind in field_types().items():
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
            elif kind is float and type(value) is int:
                try:
                    object.__setattr__(self, name, float(value))
                except OverflowError:
                    raise ValueError(
                        f"{name} is too large: {recipe_checks.shorten(value)}"
                    ) from None
        self._check()

    def _check(self) -> None:
        for name, kind in field_types().items():
            recipe_checks.check_value(name, getattr(self, name), kind, _intervals().get(name))
        recipe_checks.check_folds(self.folds, self.fold)
        recipe_checks.check_pixel_statistics(self.mean_rgb, self.std_rgb, self.init)
        recipe_checks.check_scales(self.image_size, self.crop_padding, self.train_scale)
        recipe_checks.check_crop_area(
            self.crop_area, self.crop_ratio, self.train_scale, self.crop_padding
        )
        widths(self.configuration, self.width_multiplier, self.filters)
        recipe_checks.check_first_weights(
            self.initialization, self.init, self.init_head, self.freeze_until, self.head
        )
        recipe_checks.check_schedule(
            self.schedule, self.step_epochs, self.warmup_epochs, self.epochs
        )
        recipe_checks.check_restarts(self.restart_epochs, self.restart_rates, self.epochs)
        recipe_checks.check_optimizer(self.optimizer, self.learning_rate, self.nesterov)
        if self.unmixed_epochs > self.epochs:
            raise ValueError(
                f"unmixed_epochs ({self.unmixed_epochs}) is more than epochs ({self.epochs})"
            )
        if self.color == "grey" and self.rand_augment:
            raise ValueError(
                f"rand_augment={self.rand_augment} works on RGB images; use color='rgb', or set it "
                "to 0"
            )
        if self.rand_augment and self.auto_augment != "none":
            raise ValueError(
                f"rand_augment={self.rand_augment} and auto_augment={self.auto_augment!r} would "
                "augment an image twice; choose one"
            )
        recipe_checks.parse_class_weights(self.class_weights)
        if self.class_weights == self.sampling == "balanced":
            raise ValueError(
                "class_weights='balanced' and sampling='balanced' would balance the classes twice; "
                "choose one"
            )
        recipe_checks.check_devices(self.devices, self.batch_size, self.gradient_accumulation)

    @property
    def part_size(self) -> int:
        """Images that are computed at a time: `batch_size` / `gradient_accumulation`."""
        return self.batch_size // self.gradient_accumulation

    @property
    def train_scale_range(self) -> tuple[int, int] | None:
        """`train_scale`, in pixels also where that is auto."""
        if self.train_scale == "auto":
            return self.image_size, self.image_size * 5 // 4
        return self.train_scale

    @property
    def eval_scale_side(self) -> int | None:
        """`eval_scale`, in pixels also where that is auto."""
        return self.image_size * 9 // 8 if self.eval_scale == "auto" else self.eval_scale

    def network_options(self) -> dict[str, Any]:
        """Return the arguments of `layers` and `keras_vgg.vgg` that decide the layers."""
        return {
            "input_shape": (self.image_size, self.image_size, 1 if self.color == "grey" else 3),
            "batch_norm": self.batch_norm,
            "width_multiplier": 1.0 if self.filters else self.width_multiplier,
            "filters": self.filters,
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
        """Return the recipe that `to_json` wrote.

        Raises:
            ValueError: the text is not JSON, or has fields or values that a recipe cannot have.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a recipe's JSON cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ValueError("a recipe's JSON must be an object of fields")
        return Recipe().replace(**values)

    def replace(self, /, **changes: Any) -> Recipe:
        """Return a recipe with some fields changed; raise ValueError for an unknown field."""
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"a recipe has no field {recipe_checks.quote(name)}{hint}")
        return dataclasses.replace(self, **changes)

    def with_absolute_paths(self) -> Recipe:
        """Return a recipe that means the same files from any folder.

        These are the paths of the source, of data_dir and manual_dir, of the teachers, and of
        weights and runs that `init` and `initialization` name and that exist.
        """
        changes: dict[str, Any] = {}
        kind, colon, path = self.source.partition(":")
        if kind in PATH_SOURCES and path:
            changes["source"] = f"{kind}{colon}{_absolute(path)}"
        for name in ("data_dir", "manual_dir"):
            if getattr(self, name):
                changes[name] = _absolute(getattr(self, name))
        for name in ("init", "initialization"):
            value = getattr(self, name)
            if not value or not os.path.exists(os.path.expanduser(value)):
                continue
            if os.sep in value or not _is_known_name(value):
                changes[name] = _absolute(value)
        if self.teachers:
            changes["teachers"] = tuple(map(_absolute, self.teachers))
        return self.replace(**changes) if changes else self

    def without_folders(self) -> Recipe:
        """Return a recipe for others, which does not name the folders of this machine."""
        kind, colon, path = self.source.partition(":")
        changes: dict[str, Any] = {"data_dir": None, "manual_dir": None}
        if colon and kind in PATH_SOURCES:
            changes["source"] = f"{kind}:{PurePath(path).name}"
        for name in ("init", "initialization"):
            value = getattr(self, name)
            if value is not None and "/" in value and not value.startswith("hf://"):
                changes[name] = PurePath(value).name
        changes["teachers"] = tuple(PurePath(teacher).name for teacher in self.teachers)
        return self.replace(**changes)

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Return the fields in which two recipes differ, with both values.

        The folders of the data and the number of checkpoints do not make another experiment.
        """
        ours, others = (
            dataclasses.asdict(recipe)
            | {"train_scale": recipe.train_scale_range, "eval_scale": recipe.eval_scale_side}
            for recipe in (self, other)
        )
        return {k: (ours[k], others[k]) for k in ours if ours[k] != others[k] and k not in _STORAGE}


# Fields that change whole batches: the arguments of augment.batch_augmentation.
BATCH_AUGMENTATIONS = ("rand_augment", "random_erasing", "mixup", "cutmix")

PATH_SOURCES = ("folder", "csv", "records", "idx")  # "folder:PATH"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


# What a value without a folder may name besides a path: a published checkpoint, an initializer.
_KNOWN_NAMES = ("imagenet", "torchvision", "normal", "glorot", "constant", "glorotnormal")
_KNOWN_NAMES += ("glorotuniform", "henormal", "heuniform", "identity", "lecunnormal")
_KNOWN_NAMES += ("lecununiform", "ones", "orthogonal", "randomnormal", "randomuniform", "stft")
_KNOWN_NAMES += ("truncatednormal", "uniform", "variancescaling", "zeros")


def _is_known_name(value: str) -> bool:
    return value.lower().replace("_", "").removesuffix("initializer") in _KNOWN_NAMES


_STORAGE = ("data_dir", "manual_dir", "download")
_STORAGE += ("keep_checkpoints", "checkpoint_minutes", "checkpoint_steps")


@functools.cache
def field_types() -> Mapping[str, Any]:
    """Return each field's type by name, such as `int | None`."""
    return typing.get_type_hints(Recipe)


@functools.cache
def _intervals() -> Mapping[str, Interval]:
    """Return the range of each number by its field's name."""
    hints = typing.get_type_hints(Recipe, include_extras=True)
    return {
        name: part
        for name, hint in hints.items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, Interval)
    }


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a Python file that defines RECIPE, or from a run's recipe.json.

    This function runs a Python recipe. Read a recipe from somebody else before you load it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file defines no RECIPE, or cannot be read. The error names the file, the
            line and the text there.
    """
    path = Path(path)
    if not path.is_file():
        is_run = (path / "recipe.json").is_file()
        hint = f"; the recipe of this run is {path / 'recipe.json'}" if is_run else ""
        raise FileNotFoundError(f"no recipe at {path}{hint}")
    if path.suffix == ".json":
        try:
            return Recipe.from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"recipe {path}: {error}") from error
    if path.suffix != ".py":
        raise ValueError(f"a recipe is a .py or .json file, not {path}")
    try:
        values = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        fields = [field.name for field in dataclasses.fields(Recipe)]
        fault = describe_fault(path, error, fields)
        raise ValueError(f"recipe {path} cannot be run: {fault}") from error
    recipe = values.get("RECIPE")
    if not isinstance(recipe, Recipe):
        raise ValueError(describe_missing(path, values, Recipe))
    return recipe

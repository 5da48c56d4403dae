"""Check a recipe's values: the type and the range of each field, and fields against each other.

Every function raises a ValueError that names the field, its value and the values that it may have.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

LARGEST_SCALE = 8192  # pixels
_LONGEST = 80  # characters of a value in a message

# Keras initializers that give all units the same weights, or that have no form for a convolution.
# A network learns nothing from such weights.
_NOT_RANDOM = ("zeros", "ones", "constant", "identity", "stft")
_MOST_FOLDS = 1000
# With these bounds, float32 holds (pixel - mean) / deviation.
_MEAN, _DEVIATION = (-1e4, 1e4), (1e-3, 1e4)
_RATES = (1e-12, 1e3)
_RATIOS = (0.1, 10.0)  # width / height of a crop
_HEAVIEST = 1e6  # class weight
_SGD_RATE = 0.05  # the default of learning_rate
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf"


@dataclasses.dataclass(frozen=True)
class Interval:
    """The range of a field's number. If `closed`, the field may be `high` itself."""

    low: float
    high: float
    closed: bool = True

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.closed or value != self.high)

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


def check_value(name: str, value: Any, kind: Any, interval: Interval | None) -> None:
    """Check a field's value against the field's type and range."""
    _check_type(name, value, kind)
    if interval is not None and isinstance(value, int | float) and not interval.holds(value):
        raise ValueError(f"{name} must be in {interval}, not {shorten(value)}")


def _check_type(name: str, value: Any, kind: Any) -> None:
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    options = typing.get_args(kind) if is_union else (kind,)
    if value is None and type(None) in options:
        return
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {quote(value)}")
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, not {quote(value)}")
    elif not _is_one_of(value, options):
        text = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f"{name} must be {text}, not {quote(value)}")


def _is_one_of(value: Any, options: tuple[Any, ...]) -> bool:
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return True
        elif typing.get_origin(option) is tuple:
            kinds = {int: (int,), str: (str,)}.get(typing.get_args(option)[0], (float, int))
            if isinstance(value, tuple) and all(type(item) in kinds for item in value):
                return True
        elif type(value) is option:  # so True is no int, and 2.5 is no int either
            return True
    return False


def check_scales(
    image_size: int, crop_padding: int, train_scale: Sequence[int] | str | None
) -> None:
    if isinstance(train_scale, tuple) and not (
        len(train_scale) == 2 and 1 <= train_scale[0] <= train_scale[1] <= LARGEST_SCALE
    ):
        raise ValueError(
            f"train_scale must be two rising whole numbers up to {LARGEST_SCALE}, not "
            f"{shorten(train_scale)}"
        )
    if crop_padding >= image_size:
        raise ValueError(f"crop_padding ({crop_padding}) must be below image_size ({image_size})")


def check_crop_area(
    area: Sequence[float] | None,
    ratio: Sequence[float],
    train_scale: Sequence[int] | str | None,
    crop_padding: int,
) -> None:
    low, high = _RATIOS
    if not (len(ratio) == 2 and low <= ratio[0] <= ratio[1] <= high):
        raise ValueError(
            f"crop_ratio must be two rising numbers, width / height, in [{low:g}, {high:g}], not "
            f"{shorten(tuple(ratio))}"
        )
    if area is None:
        return
    if not (len(area) == 2 and 0 < area[0] <= area[1] <= 1):
        raise ValueError(
            "crop_area must be two rising shares of the image's area in (0, 1], such as 0.08 1, "
            f"not {shorten(tuple(area))}"
        )
    if train_scale != "auto" or crop_padding:
        name, value = ("crop_padding", crop_padding)
        if train_scale != "auto":
            name, value = ("train_scale", train_scale)
        raise ValueError(
            f"crop_area decides the size of a crop, so {name} ({value}) would have no effect; use "
            "one of them"
        )


def require_no_frames(
    image_size: int, train_scale: Sequence[int] | None, eval_scale: int | None
) -> None:
    """Refuse scales below the network's input: it would see small images in frames of zeros."""
    smallest = {"train_scale": None if train_scale is None else train_scale[0]}
    smallest["eval_scale"] = eval_scale
    for name, side in smallest.items():
        if side is not None and side < image_size:
            raise ValueError(
                f"{name} begins at {side}, below image_size ({image_size}), so the network would "
                f"see a frame of zeros around every image; use a {name} of at least {image_size}, "
                "or auto"
            )


def check_pixel_statistics(
    mean_rgb: Sequence[float] | None, std_rgb: Sequence[float] | None, init: str | None
) -> None:
    if std_rgb is not None and not all(v > 0 for v in std_rgb):
        raise ValueError(f"std_rgb must be positive, not {shorten(std_rgb)}")
    for name, value, (low, high) in (
        ("mean_rgb", mean_rgb, _MEAN),
        ("std_rgb", std_rgb, _DEVIATION),
    ):
        if value is not None and (len(value) != 3 or not all(low <= v <= high for v in value)):
            raise ValueError(
                f"{name} must be three numbers in [{low:g}, {high:g}], not {shorten(value)}"
            )
    if init is not None and (mean_rgb is None) != (std_rgb is None):
        raise ValueError(
            "with init, give mean_rgb and std_rgb both, or neither to take those of init"
        )


def check_first_weights(
    initialization: str, init: str | None, init_head: str, freeze_until: str, head: str
) -> None:
    if initialization.lower().removesuffix("initializer") in _NOT_RANDOM:
        raise ValueError(
            f"initialization={quote(initialization)} gives every unit the same weights, "
            "and training cannot change that; choose a random initializer, such as he_normal"
        )
    if init is None and (freeze_until != "none" or init_head != "none"):
        raise ValueError(
            f"freeze_until={freeze_until!r} and init_head={init_head!r} need init, "
            "such as imagenet: random weights are not worth keeping"
        )
    if init_head == "probe" and head != "gap":
        raise ValueError(
            f"init_head='probe' is a linear classifier on the pooled features, so it needs head "
            f"'gap', not {head!r}"
        )


def check_schedule(
    schedule: str, step_epochs: Sequence[int], warmup_epochs: float, epochs: int
) -> None:
    if schedule == "step" and not step_epochs:
        half, three_quarters = epochs // 2, 3 * epochs // 4
        example = f"{half} {three_quarters}" if half < three_quarters else "60 120 of 200 epochs"
        raise ValueError(f"schedule 'step' needs step_epochs, such as {example}")
    if list(step_epochs) != sorted(set(step_epochs)):
        raise ValueError(f"step_epochs must rise, not {shorten(step_epochs)}")
    if step_epochs and not 1 <= step_epochs[0] <= step_epochs[-1] <= 1e6:
        raise ValueError(f"step_epochs must be in [1, 1e+06], not {shorten(step_epochs)}")
    if warmup_epochs > epochs:
        raise ValueError(f"warmup_epochs ({warmup_epochs:g}) is more than epochs ({epochs})")


def check_restarts(
    restart_epochs: Sequence[int], restart_rates: Sequence[float], epochs: int
) -> None:
    if len(restart_epochs) != len(restart_rates):
        raise ValueError(
            f"each of restart_epochs, {shorten(tuple(restart_epochs))}, needs its learning rate in "
            f"restart_rates, not {shorten(tuple(restart_rates))}"
        )
    edges = (0, *restart_epochs, epochs)
    if any(first >= second for first, second in itertools.pairwise(edges)):
        raise ValueError(
            f"restart_epochs must rise within [1, {epochs - 1}], below epochs, not "
            f"{shorten(tuple(restart_epochs))}"
        )
    low, high = _RATES
    if not all(low <= rate <= high for rate in restart_rates):
        raise ValueError(
            f"restart_rates must be in [{low:g}, {high:g}], not {shorten(tuple(restart_rates))}"
        )


def check_optimizer(optimizer: str, learning_rate: float, nesterov: bool) -> None:
    if optimizer != "sgd" and learning_rate == _SGD_RATE:
        raise ValueError(
            f"learning_rate={_SGD_RATE} is the default, which is meant for sgd; give "
            f"optimizer={optimizer!r} its own, such as 0.001"
        )
    if optimizer == "adamw" and nesterov:
        raise ValueError("nesterov=True is for optimizer 'sgd' or 'muon', not 'adamw'")


def parse_class_weights(text: str) -> dict[str, float]:
    """Return the weights by class name of a text such as cat=2,dog=0.5; none for none, balanced."""
    if text in ("none", "balanced"):
        return {}
    weights: dict[str, float] = {}
    end = 0
    # The names are what lies between: a pattern for them too would take hours for a long text.
    for match in re.finditer(rf"=\s*({_NUMBER})\s*(?:,|$)", text):
        name, number = text[end : match.start()].strip(), match[1]
        if not name or name in weights:
            break
        weights[name] = float(number)
        if not 0 <= weights[name] <= _HEAVIEST:
            raise ValueError(
                f"class_weights must be in [0, {_HEAVIEST:g}], not {number} for {name!r}"
            )
        end = match.end()
    if end < len(text) or not weights:
        raise ValueError(
            "class_weights must be none, balanced, or a weight for each of some classes, such as "
            f"cat=2,dog=0.5, not {quote(text)}"
        )
    return weights


def check_folds(folds: int, fold: int) -> None:
    if folds < 0 or folds == 1 or folds > _MOST_FOLDS:
        raise ValueError(
            f"folds must be from 2 to {_MOST_FOLDS}, or 0 for no folds, not {shorten(folds)}"
        )
    if fold and not folds:
        raise ValueError(f"fold {shorten(fold)} is one of several: state folds too, such as 5")
    if not 0 <= fold <= folds:
        raise ValueError(
            f"fold must be from 1 to folds ({folds}), or 0 for all of them, not {shorten(fold)}"
        )


def check_devices(devices: str, batch_size: int, gradient_accumulation: int) -> None:
    if devices not in ("auto", "cpu") and not re.fullmatch("[1-9][0-9]*", devices):
        raise ValueError(f"devices must be auto, cpu or a number, not {quote(devices)}")
    if batch_size % gradient_accumulation:
        raise ValueError(
            f"batch_size ({batch_size}) must be a multiple of gradient_accumulation "
            f"({gradient_accumulation})"
        )


def shorten(value: Any) -> str:
    """Return a number or numbers for a message. Python refuses to print very many digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    if isinstance(value, tuple):
        return _cut(f"({', '.join(map(shorten, value))})")
    return str(value)


def quote(value: Any) -> str:
    """Return a value of any type for a message, as Python writes the value."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):  # a number of very many digits, a list in a list in ...
        return f"a {type(value).__name__} that is too large to show"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text):,} characters)"

"""Table 1 of arXiv:1409.1556v6 as data, and arithmetic on it. Imports no framework."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Iterator, Sequence

BATCH_NORM_EPSILON = 1e-5  # what a batch normalisation adds to a variance
MINIMUM_SIZE = 32  # five 2x2 pools leave one pixel of 32


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One column of Table 1; `blocks` holds (kernel, filters) of each convolution."""

    name: str
    builder: str
    blocks: tuple[tuple[tuple[int, int], ...], ...]
    lrn: bool = False

    @property
    def weight_layers(self) -> int:
        """Convolutions and the three fully connected layers: the paper's depth."""
        return sum(map(len, self.blocks)) + 3


# Table 1: kernel x filters, block by block; a 2x2 max-pool ends each block.
_A = (((3, 64),), ((3, 128),), ((3, 256),) * 2, ((3, 512),) * 2, ((3, 512),) * 2)
_B = (((3, 64),) * 2, ((3, 128),) * 2, *_A[2:])
_C = (*_B[:2], *((*block, (1, block[0][1])) for block in _B[2:]))
_D = (*_B[:2], *((*block, (3, block[0][1])) for block in _B[2:]))
_E = (*_D[:2], *((*block, (3, block[0][1])) for block in _D[2:]))

CONFIGURATIONS: dict[str, Configuration] = {
    "A": Configuration("A", "VGG11", _A),
    "A-LRN": Configuration("A-LRN", "VGG11LRN", _A, lrn=True),
    "B": Configuration("B", "VGG13", _B),
    "C": Configuration("C", "VGG16C", _C),
    "D": Configuration("D", "VGG16", _D),
    "E": Configuration("E", "VGG19", _E),
}


def block_of(layer: str) -> int | None:
    """Return the block, from 1, of one of VGG's own layers by its name; None for other layers."""
    own = re.match(r"block(\d)_(?!conv\d_norm)", layer)  # SSD adds block4_conv3_norm
    return int(own[1]) if own else None


def get_configuration(name: str) -> Configuration:
    """Return a configuration by the paper's letter or the builder's name, in any case.

    Raises:
        ValueError: no configuration has the name.
    """
    for configuration in CONFIGURATIONS.values():
        if str(name).lower() in (configuration.name.lower(), configuration.builder.lower()):
            return configuration
    known = ", ".join(f"{c.name} ({c.builder})" for c in CONFIGURATIONS.values())
    raise ValueError(f"unknown VGG configuration {str(name)[:40]!r}; choose {known}")


def describe(
    configuration: str, width_multiplier: float, filters: Sequence[int], batch_norm: bool
) -> str:
    """Return a description such as "VGG16 (configuration D), width 0.5, batch norm"."""
    column = get_configuration(configuration)
    parts = [f"{column.builder} (configuration {column.name})"]
    if len(filters):
        parts.append(f"filters {' '.join(map(str, filters))}")
    elif width_multiplier != 1:
        parts.append(f"width {width_multiplier:g}")
    if batch_norm:
        parts.append("batch norm")
    return ", ".join(parts)


HEADS = ("fc", "conv", "gap")
POOLINGS = (None, "avg", "max")


def check_options(
    classes: int, head: str, pooling: str | None, width_multiplier: float, hidden_units: int
) -> None:
    """Raise ValueError for an option that no network can have."""
    for name, value in (("classes", classes), ("hidden_units", hidden_units)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, not {head!r}")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be None, 'avg' or 'max', not {pooling!r}")
    if not 0 < width_multiplier < math.inf:
        raise ValueError(f"width_multiplier must be positive, not {width_multiplier}")


def scaled_width(filters: int, width_multiplier: float) -> int:
    """Return a convolution's filters times the multiplier, rounded half up, at least 1."""
    return max(1, math.floor(filters * width_multiplier + 0.5))


def widths(
    configuration: str, width_multiplier: float = 1.0, filters: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the number of filters of each convolution, in order: `filters` if there are any.

    Raises:
        ValueError: no configuration has the name, or `filters` does not give each convolution a
            positive whole number.
    """
    names = [name for name, _, _ in convolutions(configuration)]
    if not len(filters):
        return tuple(scaled_width(f, width_multiplier) for _, _, f in convolutions(configuration))
    wrong = [f for f in filters if isinstance(f, bool) or not isinstance(f, numbers.Integral)]
    if wrong or min(filters) < 1:
        raise ValueError(f"filters must be positive whole numbers, not {tuple(filters)}")
    if len(filters) != len(names):
        raise ValueError(
            f"filters needs {len(names)} numbers for configuration {configuration}, one for each"
            f" convolution from {names[0]} to {names[-1]}; it has {len(filters)}"
        )
    return tuple(map(int, filters))


def with_widths(
    configuration: str, width_multiplier: float = 1.0, filters: Sequence[int] = ()
) -> Configuration:
    """Return a configuration whose blocks hold the numbers of filters that `widths` returns."""
    column = get_configuration(configuration)
    remaining = iter(widths(configuration, width_multiplier, filters))
    blocks = tuple(tuple((kernel, next(remaining)) for kernel, _ in b) for b in column.blocks)
    return dataclasses.replace(column, blocks=blocks)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One row of a layer table.

    Attributes:
        name: The Keras layer's name, as in keras.applications.
        kind: conv, batch_norm, lrn, pool, flatten, dense or global_pool.
        kernel: (height, width) of the layer's window; None for a layer without one.
        output_shape: (height, width, channels), or (units,).
        parameters: Weights and biases; batch norm counts its moving statistics too.
        trainable_parameters: Parameters that gradients change.
        macs: Multiply-accumulates for one image: convolutions and dense layers only.
        receptive_field: Side, in input pixels, of the square that one output sees (not clipped to
            the image); None after a layer that combines all places.
        stride: Input pixels between neighbouring outputs; None as for `receptive_field`.
    """

    name: str
    kind: str
    kernel: tuple[int, int] | None
    output_shape: tuple[int, ...]
    parameters: int
    trainable_parameters: int
    macs: int
    receptive_field: int | None
    stride: int | None

    @property
    def activations(self) -> int:
        """Values in the output for one image."""
        return math.prod(self.output_shape)


def layers(
    configuration: str,
    *,
    input_shape: Sequence[int] = (224, 224, 3),
    include_top: bool = True,
    pooling: str | None = None,
    classes: int = 1000,
    batch_norm: bool = False,
    width_multiplier: float = 1.0,
    filters: Sequence[int] = (),
    head: str = "fc",
    hidden_units: int = 4096,
    train_size: int | tuple[int, int] | None = None,
) -> tuple[Layer, ...]:
    """Return the layer table of a network, without building the network.

    Args:
        configuration: "A" ... "E", "A-LRN", or a builder's name.
        input_shape: (height, width, channels), at least 32x32.
        include_top, pooling, classes, batch_norm, width_multiplier, filters, head, hidden_units: as
            in `keras_vgg.vgg`.
        train_size: With `head="conv"`, the side, or (height, width), of the images that the
            classifier is trained on; fc1's kernel is a 32nd of it. A larger input gives maps,
            (rows, columns, units), for dense evaluation (section 3.2). Default: the input's size.

    Returns:
        One `Layer` for each Keras layer that has weights or changes the shape, in order. A
        convolutional head ends with its score map, before the average over places.

    Raises:
        ValueError: the configuration or an option is unknown, the input is under 32x32, or
            `train_size` is under 32 or above the input.
    """
    check_options(classes, head, pooling, width_multiplier, hidden_units)
    height, width, channels = input_shape
    if channels < 1:
        raise ValueError(f"an image must have at least 1 channel, not {channels}")
    if min(height, width) < MINIMUM_SIZE:
        raise ValueError(f"input must be at least 32x32, not {height}x{width}")
    window = _window((height, width), train_size) if include_top and head == "conv" else None
    table = _Table(height, width, channels)
    _add_blocks(table, with_widths(configuration, width_multiplier, filters), batch_norm)
    units = {"fc1": hidden_units, "fc2": hidden_units, "predictions": classes}
    if not include_top:
        if pooling:
            table.add_global_pool(f"{pooling}_pool")
    elif head == "gap":
        table.add_global_pool("avg_pool")
        table.add_dense("predictions", table.channels, classes)
    elif window is not None:
        for name, width in units.items():
            table.add_convolution(name, window if name == "fc1" else (1, 1), width, padded=False)
    else:
        inputs = table.height * table.width * table.channels
        table.add("flatten", "flatten", (inputs,), is_local=False)
        for name, width in units.items():
            table.add_dense(name, inputs, width)
            inputs = width
    return tuple(table.rows)


class _Table:
    """The rows of a layer table so far, and the output shape of the last layer.

    Attributes:
        field: Side, in input pixels, of the square that one output of the last layer sees.
        stride: Input pixels between neighbouring outputs of the last layer.
    """

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.field = self.stride = 1
        self.rows: list[Layer] = []

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    def add(
        self,
        name: str,
        kind: str,
        shape: tuple[int, ...],
        kernel: tuple[int, int] | None = None,
        trainable: int = 0,
        frozen: int = 0,
        macs: int = 0,
        is_local: bool = True,
    ) -> None:
        """Add a row; with `is_local`, each output of the layer sees only a part of the image."""
        field, stride = (self.field, self.stride) if is_local else (None, None)
        total = trainable + frozen
        row = Layer(name, kind, kernel, shape, total, trainable, macs, field, stride)
        self.rows.append(row)

    def add_convolution(
        self, name: str, kernel: tuple[int, int], filters: int, *, padded: bool
    ) -> None:
        weights = math.prod(kernel) * self.channels * filters
        self.field += (max(kernel) - 1) * self.stride
        self.channels = filters
        if not padded:
            self.height, self.width = self.height - kernel[0] + 1, self.width - kernel[1] + 1
        macs = weights * self.height * self.width  # once for each place of the map
        self.add(name, "conv", self.shape, kernel, weights + filters, macs=macs)

    def add_pool(self, name: str) -> None:
        """Add a 2x2 pool of stride 2."""
        self.field, self.stride = self.field + self.stride, 2 * self.stride
        self.height, self.width = self.height // 2, self.width // 2
        self.add(name, "pool", self.shape, (2, 2))

    def add_global_pool(self, name: str) -> None:
        self.add(name, "global_pool", (self.channels,), is_local=False)

    def add_dense(self, name: str, inputs: int, units: int) -> None:
        weights = inputs * units
        self.add(name, "dense", (units,), None, weights + units, macs=weights, is_local=False)


def _add_blocks(table: _Table, configuration: Configuration, batch_norm: bool) -> None:
    """Add the convolutional blocks, each with the pool that ends it."""
    for b, block in enumerate(configuration.blocks, 1):
        for i, (kernel, filters) in enumerate(block, 1):
            name = f"block{b}_conv{i}"
            table.add_convolution(name, (kernel, kernel), filters, padded=True)
            if batch_norm:  # scale and shift, and two moving statistics
                table.add(f"{name}_bn", "batch_norm", table.shape, None, 2 * filters, 2 * filters)
            if configuration.lrn and (b, i) == (1, 1):
                table.add("block1_lrn", "lrn", table.shape)
        table.add_pool(f"block{b}_pool")


def _window(sides: tuple[int, int], train_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return fc1's kernel: the size of the last feature map for an image of `train_size`."""
    if train_size is None:
        train_size = sides
    is_square = isinstance(train_size, (int, numbers.Integral))
    train_sides = (int(train_size),) * 2 if is_square else tuple(train_size)
    if min(train_sides) < MINIMUM_SIZE:
        raise ValueError(f"train_size must be at least {MINIMUM_SIZE}, not {train_size}")
    if any(trained > side for trained, side in zip(train_sides, sides, strict=True)):
        raise ValueError(
            f"train_size must be at most the input, {sides[0]}x{sides[1]}, not {train_size}"
        )
    return train_sides[0] // 32, train_sides[1] // 32


def convolutions(configuration: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, kernel, filters at full width) of each convolution, in order."""
    for b, block in enumerate(get_configuration(configuration).blocks, 1):
        for i, (kernel, filters) in enumerate(block, 1):
            yield f"block{b}_conv{i}", kernel, filters


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over a layer table; activations and MACs are those of one image.

    Attributes:
        parameters: Weights, biases and batch norm's moving statistics.
        trainable_parameters: Parameters that gradients change.
        macs: Multiply-accumulates of a forward pass.
        activations: Values in the outputs of all layers except flatten, which copies nothing.
    """

    parameters: int
    trainable_parameters: int
    macs: int
    activations: int


def totals(rows: Sequence[Layer]) -> Totals:
    """Return the sums over a layer table."""
    return Totals(
        sum(row.parameters for row in rows),
        sum(row.trainable_parameters for row in rows),
        sum(row.macs for row in rows),
        sum(row.activations for row in rows if row.kind != "flatten"),
    )


@dataclasses.dataclass(frozen=True)
class Stack:
    """Convolutions of one kernel on top of each other, stride 1, each with its ReLU.

    Attributes:
        kernel: Side of each convolution's window.
        depth: Number of convolutions.
        receptive_field: Side, in pixels, of the square that one output sees.
        weights: Weights of all convolutions, without biases.
    """

    kernel: int
    depth: int
    receptive_field: int
    weights: int


def stack(kernel: int, depth: int, channels: int) -> Stack:
    """Return what a stack of convolutions of `channels` to `channels` sees and costs (section 2.3).

    Raises:
        ValueError: an argument is under 1.
    """
    if min(kernel, depth, channels) < 1:
        raise ValueError(
            f"kernel, depth and channels must be 1 or more, not {kernel}, {depth}, {channels}"
        )
    return Stack(kernel, depth, 1 + depth * (kernel - 1), depth * (kernel * channels) ** 2)


def parameters(configuration: str, **options) -> int:
    """Return a network's number of parameters; `options` as in `layers`."""
    return totals(layers(configuration, **options)).parameters


def macs(configuration: str, **options) -> int:
    """Return the multiply-accumulates of one image's forward pass; `options` as in `layers`."""
    return totals(layers(configuration, **options)).macs

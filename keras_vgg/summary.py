"""Count a network's layers, parameters and memory from the paper's table, without building it.

A table is (headers, rows of text): the command line prints it, and `markdown` formats it. `record`
returns the same numbers for JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras_vgg.architecture import Layer, Stack, get_configuration, layers, stack, totals

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

# Bytes of one value.
PRECISIONS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
WINDOWS = (3, 5, 7, 11)  # section 2.3; earlier networks begin with a window of 7 or 11


def layer_table(rows: Sequence[Layer], batch: int = 1) -> Table:
    """Return a table with one row for each layer.

    The memory is that of a layer's output, for `batch` images as float32. Parameters and
    multiply-accumulates are empty for a layer that has none. A receptive field is a side in pixels
    of the input, or "all" after a dense layer.
    """
    headers = ("layer", "kernel", "output", "parameters", "MACs", "memory, MB")
    headers += ("receptive field", "stride")
    lines = [
        (
            row.name,
            _times(row.kernel or ()),
            _times(row.output_shape),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.macs:,}" if row.macs else "",
            _megabytes(4 * batch * row.activations) if row.kind != "flatten" else "",
            str(row.receptive_field or "all"),
            str(row.stride or ""),
        )
        for row in rows
    ]
    return headers, lines


def total_table(rows: Sequence[Layer], batch: int = 1) -> Table:
    """Return the totals of a network as a table.

    The forward pass holds the output of each layer once, as float32. The backward pass also holds a
    gradient of each. An engine needs more for intermediate values, and less where it computes in
    place.
    """
    sums = totals(rows)
    images = "1 image" if batch == 1 else f"{batch:,} images"
    lines = [
        ("parameters", f"{sums.parameters:,}"),
        ("of them trainable", f"{sums.trainable_parameters:,}"),
        ("multiply-accumulates, 1 image", f"{sums.macs:,}"),
    ]
    if batch > 1:
        lines.append((f"multiply-accumulates, {images}", f"{batch * sums.macs:,}"))
    forward = 4 * batch * sums.activations
    lines += [
        (f"forward, {images}, MB", _megabytes(forward)),
        (f"forward and backward, {images}, MB", _megabytes(2 * forward)),
    ]
    for name, size in PRECISIONS.items():
        lines.append((f"parameters as {name}, MB", _megabytes(size * sums.parameters)))
    return ("", ""), lines


def record(rows: Sequence[Layer], batch: int = 1) -> dict[str, Any]:
    """Return the numbers of both tables for JSON, in bytes instead of megabytes."""
    sums = totals(rows)
    forward = 4 * batch * sums.activations
    return {
        "batch": batch,
        "layers": [
            dataclasses.asdict(row) | {"output_bytes": 4 * batch * row.activations} for row in rows
        ],
        "totals": {
            **dataclasses.asdict(sums),
            "forward_bytes": forward,
            "forward_backward_bytes": 2 * forward,
            "parameter_bytes": {name: size * sums.parameters for name, size in PRECISIONS.items()},
        },
    }


def comparison(configurations: Sequence[str], batch: int = 1, **options: Any) -> Table:
    """Return a table of networks side by side, as in Table 1, with their totals.

    Args:
        configurations: Two or more letters or builders' names.
        batch: Number of images for the memory.
        options: As in `architecture.layers`.

    Raises:
        ValueError: there are fewer than two configurations, or one appears twice; or as
            `architecture.layers`.
    """
    columns = [get_configuration(name) for name in configurations]
    if len(columns) < 2 or len(set(columns)) < len(columns):
        names = " ".join(configurations)
        raise ValueError(f"a comparison takes two or more different configurations, not {names!r}")
    tables = [layers(configuration.name, **options) for configuration in columns]
    lines = [("builder", *(c.builder for c in columns))]
    lines.append(("weight layers", *(str(c.weight_layers) for c in columns)))
    for block in range(1, 6):
        parts = ([r for r in rows if r.name.startswith(f"block{block}_")] for rows in tables)
        lines.append((f"block {block}", *("\n".join(filter(None, map(_word, p))) for p in parts)))
    parts = ([r for r in rows if not r.name.startswith("block")] for rows in tables)
    lines.append(("classifier", *("\n".join(filter(None, map(_word, p))) for p in parts)))
    sums = [totals(rows) for rows in tables]
    first = sums[0]
    forward = [4 * batch * network.activations for network in sums]
    fields = [next(r for r in rows if r.name == "block5_pool").receptive_field for rows in tables]
    lines += [
        ("parameters", *(f"{network.parameters:,}" for network in sums)),
        ("of the first's", *(f"{network.parameters / first.parameters:.3f}" for network in sums)),
        ("GMAC, 1 image", *(f"{network.macs / 1e9:.2f}" for network in sums)),
        ("of the first's", *(f"{network.macs / first.macs:.2f}" for network in sums)),
        ("forward, MB", *map(_megabytes, forward)),
        ("forward and backward, MB", *(_megabytes(2 * size) for size in forward)),
    ]
    for name, size in PRECISIONS.items():
        memory = (_megabytes(size * network.parameters) for network in sums)
        lines.append((f"parameters as {name}, MB", *memory))
    lines.append(("block5_pool sees, pixels", *map(str, fields)))
    return ("", *(configuration.name for configuration in columns)), lines


def kernels(channels: int = 512) -> list[tuple[Stack, Stack]]:
    """Return, for each of WINDOWS, one convolution and the stack of 3x3 that sees as much."""
    return [
        (stack(window, 1, channels), stack(3, (window - 1) // 2, channels)) for window in WINDOWS
    ]


def kernel_table(channels: int = 512) -> Table:
    """Compare one large convolution with a stack of 3x3 that sees as much (section 2.3).

    Args:
        channels: Input and output channels of each layer. The ratios do not depend on it.

    Raises:
        ValueError: `channels` is under 1.
    """
    headers = ("sees", "one layer", "its weights", "stack", "its weights", "the layer has more")
    rows = [
        (
            f"{one.receptive_field}x{one.receptive_field}",
            f"{one.kernel}x{one.kernel}, 1 ReLU",
            f"{one.weights:,} = {one.weights // channels**2}C²",
            f"{small.depth} of 3x3, {small.depth} ReLU",
            f"{small.weights:,} = {small.weights // channels**2}C²",
            f"{one.weights / small.weights - 1:.0%}",
        )
        for one, small in kernels(channels)
    ]
    return headers, rows


def markdown(table: Table) -> str:
    """Return a table as Markdown; the first column is left-aligned, the others right-aligned."""
    headers, rows = table
    lines = [headers, (":--", *("--:",) * (len(headers) - 1)), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("\n", "<br>") for cell in line) + " |" for line in lines
    )


def _word(row: Layer) -> str:
    """Return a layer's name in Table 1."""
    if row.kind == "conv":
        assert row.kernel is not None, "a convolution has a window"
        return f"conv{row.kernel[0]}-{row.output_shape[-1]}"
    if row.kind == "dense":
        return f"FC-{row.output_shape[-1]}"
    return {"lrn": "LRN", "global_pool": "global pool"}.get(row.kind, "")


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _megabytes(size: float) -> str:
    """Return bytes as text in units of 10^6 bytes."""
    return f"{size / 1e6:,.2f}"

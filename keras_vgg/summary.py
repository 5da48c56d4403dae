"""A network in numbers, from the paper's table alone: layers, totals, comparisons.

Nothing is built. Tables are (headers, rows of text), which the command line prints and `markdown`
writes down; `record` is the same for JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from keras_vgg.architecture import Layer, Stack, get_configuration, layers, stack, totals

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]

# Bytes a value.
PRECISIONS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
WINDOWS = (3, 5, 7, 11)  # 7 and 11 are those of the first layers of the paper's rivals, section 2.3


def layer_table(rows: Sequence[Layer], batch: int = 1) -> Table:
    """A row a layer; memory is that of its output for `batch` images as float32.

    Parameters and multiply-accumulates are empty where a layer has none; a receptive field is a
    side in pixels of the input, and "all" behind a dense layer.
    """
    headers = ("layer", "kernel", "output", "parameters", "MACs", "memory, MB")
    headers += ("receptive field", "stride")
    found = [
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
    return headers, found


def total_table(rows: Sequence[Layer], batch: int = 1) -> Table:
    """What a network needs in all.

    Forward memory has every layer's output once, as float32; backward, a gradient of each as well.
    What an engine needs in between comes on top, and what it computes in place goes off.
    """
    found = totals(rows)
    images = "1 image" if batch == 1 else f"{batch:,} images"
    lines = [
        ("parameters", f"{found.parameters:,}"),
        ("of them trainable", f"{found.trainable_parameters:,}"),
        ("multiply-accumulates, 1 image", f"{found.macs:,}"),
    ]
    if batch > 1:
        lines.append((f"multiply-accumulates, {images}", f"{batch * found.macs:,}"))
    forward = 4 * batch * found.activations
    lines += [
        (f"forward, {images}, MB", _megabytes(forward)),
        (f"forward and backward, {images}, MB", _megabytes(2 * forward)),
    ]
    for name, size in PRECISIONS.items():
        lines.append((f"parameters as {name}, MB", _megabytes(size * found.parameters)))
    return ("", ""), lines


def record(rows: Sequence[Layer], batch: int = 1) -> dict[str, Any]:
    """The two tables as numbers, for JSON; bytes, not megabytes."""
    found = totals(rows)
    forward = 4 * batch * found.activations
    return {
        "batch": batch,
        "layers": [
            dataclasses.asdict(row) | {"output_bytes": 4 * batch * row.activations} for row in rows
        ],
        "totals": {
            **dataclasses.asdict(found),
            "forward_bytes": forward,
            "forward_backward_bytes": 2 * forward,
            "parameter_bytes": {name: size * found.parameters for name, size in PRECISIONS.items()},
        },
    }


def comparison(configurations: Sequence[str], batch: int = 1, **options: Any) -> Table:
    """Networks side by side, in the manner of Table 1, with their totals.

    Args:
        configurations: Letters or builders' names, two or more.
        batch: Images that the memory is for.
        options: As in `architecture.layers`.

    Raises:
        ValueError: fewer than two, or one twice; or as `architecture.layers`.
    """
    found = [get_configuration(name) for name in configurations]
    if len(found) < 2 or len(set(found)) < len(found):
        given = " ".join(configurations)
        raise ValueError(f"a comparison takes two or more different configurations, not {given!r}")
    tables = [layers(configuration.name, **options) for configuration in found]
    lines = [("builder", *(c.builder for c in found))]
    lines.append(("weight layers", *(str(c.weight_layers) for c in found)))
    for block in range(1, 6):
        parts = ([r for r in rows if r.name.startswith(f"block{block}_")] for rows in tables)
        lines.append((f"block {block}", *("\n".join(filter(None, map(_word, p))) for p in parts)))
    parts = ([r for r in rows if not r.name.startswith("block")] for rows in tables)
    lines.append(("classifier", *("\n".join(filter(None, map(_word, p))) for p in parts)))
    sums = [totals(rows) for rows in tables]
    first = sums[0]
    forward = [4 * batch * found.activations for found in sums]
    fields = [next(r for r in rows if r.name == "block5_pool").receptive_field for rows in tables]
    lines += [
        ("parameters", *(f"{found.parameters:,}" for found in sums)),
        ("of the first's", *(f"{found.parameters / first.parameters:.3f}" for found in sums)),
        ("GMAC, 1 image", *(f"{found.macs / 1e9:.2f}" for found in sums)),
        ("of the first's", *(f"{found.macs / first.macs:.2f}" for found in sums)),
        ("forward, MB", *map(_megabytes, forward)),
        ("forward and backward, MB", *(_megabytes(2 * size) for size in forward)),
    ]
    for name, size in PRECISIONS.items():
        held = (_megabytes(size * found.parameters) for found in sums)
        lines.append((f"parameters as {name}, MB", *held))
    lines.append(("block5_pool sees, pixels", *map(str, fields)))
    return ("", *(configuration.name for configuration in found)), lines


def kernels(channels: int = 512) -> list[tuple[Stack, Stack]]:
    """(one convolution, the stack of 3x3 that sees as much) for each of WINDOWS."""
    return [
        (stack(window, 1, channels), stack(3, (window - 1) // 2, channels)) for window in WINDOWS
    ]


def kernel_table(channels: int = 512) -> Table:
    """One large convolution against a stack of 3x3 that sees as much: section 2.3's argument.

    Args:
        channels: Channels of every layer, into it and out of it. The ratios are the same for any.

    Raises:
        ValueError: channels under 1.
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
    """A table as Markdown; the first column to the left, the others to the right."""
    headers, rows = table
    lines = [headers, (":--", *("--:",) * (len(headers) - 1)), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("\n", "<br>") for cell in line) + " |" for line in lines
    )


def _word(row: Layer) -> str:
    """A layer as Table 1 prints it."""
    if row.kind == "conv":
        assert row.kernel is not None, "a convolution has a window"
        return f"conv{row.kernel[0]}-{row.output_shape[-1]}"
    if row.kind == "dense":
        return f"FC-{row.output_shape[-1]}"
    return {"lrn": "LRN", "global_pool": "global pool"}.get(row.kind, "")


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _megabytes(size: float) -> str:
    """Bytes as 10^6 bytes."""
    return f"{size / 1e6:,.2f}"

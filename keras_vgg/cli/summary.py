"""keras-vgg summary."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tyro

from keras_vgg.cli.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print the layers of a configuration: output shape, parameters, MACs, receptive field.

    Computed from the paper's table, without building the network.
    """

    configuration: tyro.conf.Positional[str]
    """A, A-LRN, B, C, D, E, or VGG11, VGG11LRN, VGG13, VGG16C, VGG16, VGG19."""
    input_size: int = 224
    """Side of the image, from 32 up."""
    channels: int = 3
    """Of the image."""
    classes: int = 1000
    """Width of the classifier."""
    batch_norm: bool = False
    """With batch normalisation."""
    width_multiplier: float = 1.0
    """Scales the filters of every convolution."""
    head: Literal["fc", "conv", "gap"] = "fc"
    """The classifier."""
    hidden_units: int = 4096
    """Width of fc1 and fc2."""

    def __call__(self) -> None:
        from keras_vgg import architecture

        rows = architecture.layers(
            self.configuration,
            input_shape=(self.input_size, self.input_size, self.channels),
            classes=self.classes,
            batch_norm=self.batch_norm,
            width_multiplier=self.width_multiplier,
            head=self.head,
            hidden_units=self.hidden_units,
        )
        found = architecture.get_configuration(self.configuration)
        table = new_table(
            f"{found.builder}, configuration {found.name}: {found.weight_layers} weight layers",
            *("layer", "kernel", "output", "parameters", "MACs", "receptive field"),
        )
        for row in rows:
            table.add_row(
                row.name,
                "x".join(map(str, row.kernel)) if row.kernel else "",
                "x".join(map(str, row.output_shape)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                str(row.receptive_field or "all"),
            )
        table.add_section()
        total, macs = sum(r.parameters for r in rows), sum(r.macs for r in rows)
        table.add_row("total", "", "", f"{total:,}", f"{macs:,}", "")
        show(table)

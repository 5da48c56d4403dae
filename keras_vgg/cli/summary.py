"""keras-vgg summary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from keras_vgg.cli.arguments import require_suffix
from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print a network layer by layer: output, parameters, MACs, memory, receptive field.

    The figures are computed from the paper's table; no network is built. MACs are the
    multiply-accumulates of convolutions and dense layers for one image. Memory is that of the
    outputs as float32, in units of 10^6 bytes.
    """

    configuration: tyro.conf.Positional[str | None] = None
    """Configuration of the paper (A, A-LRN, B, C, D, E) or its common name (VGG11, VGG11LRN, VGG13,
    VGG16C, VGG16, VGG19)."""
    compare: tuple[str, ...] = ()
    """Compare two or more configurations side by side instead."""
    kernels: bool = False
    """Compare one large convolution with a stack of 3x3 convolutions of the same receptive field
    instead (section 2.3)."""
    input: Annotated[int, tyro.conf.arg(aliases=["--input-size"])] = 224
    """Side of the square image, from 32 up."""
    batch: int = 1
    """Number of images for which the memory is computed."""
    channels: int = 3
    """Number of channels of the image."""
    classes: int = 1000
    """Number of classes."""
    batch_norm: bool = False
    """Add batch normalisation after every convolution."""
    width_multiplier: float = 1.0
    """Factor for the number of filters of every convolution."""
    filters: tuple[int, ...] = ()
    """Number of filters of each convolution instead, as in a pruned network."""
    head: Literal["fc", "conv", "gap"] = "fc"
    """Classifier: fully connected layers, the same as convolutions, or global average pooling."""
    hidden_units: int = 4096
    """Number of units of fc1 and fc2."""
    format: Literal["table", "markdown", "json"] = "table"
    """Output format."""
    plot: Path | None = None
    """PNG to draw: memory and parameters of each layer."""

    def __call__(self) -> None:
        from keras_vgg import architecture, summary

        choices = [self.configuration is not None, bool(self.compare), self.kernels]
        if sum(choices) != 1:
            raise ValueError("summary takes one of: a configuration, --compare A B ..., --kernels")
        if self.batch < 1:
            raise ValueError(f"--batch must be 1 or more, not {self.batch}")
        if self.plot is not None and self.configuration is None:
            raise ValueError("--plot draws one configuration: keras-vgg summary D --plot FILE.png")
        if self.plot is not None:
            require_suffix("--plot", self.plot, ".png")
        options = self._options()
        if self.kernels:
            if self.format == "json":
                pairs = [list(map(dataclasses.asdict, pair)) for pair in summary.kernels()]
                print(json.dumps(pairs, indent=2))
                return
            self._print("one convolution or a stack of 3x3, C = 512", summary.kernel_table())
            return
        if self.compare:
            comparison = summary.comparison(self.compare, self.batch, **options)
            if self.format == "json":
                records = {
                    name: summary.record(architecture.layers(name, **options), self.batch)
                    for name in self.compare
                }
                print(json.dumps(records, indent=2))
                return
            self._print(self._title("configurations"), comparison)
            return
        assert self.configuration is not None  # The check above leaves this case.
        rows = architecture.layers(self.configuration, **options)
        if self.plot is not None:
            from keras_vgg.report import plot_layers

            plot_layers(rows, self.plot, batch=self.batch)
        if self.format == "json":
            print(json.dumps(summary.record(rows, self.batch), indent=2))
            return
        config = architecture.get_configuration(self.configuration)
        title = f"{config.builder}, configuration {config.name}"
        title += f", {config.weight_layers} weight layers"
        self._print(self._title(title), summary.layer_table(rows, self.batch))
        self._print("in all", summary.total_table(rows, self.batch))
        if self.plot is not None:
            show(str(self.plot))

    def _options(self) -> dict[str, Any]:
        names = ("classes", "batch_norm", "width_multiplier", "filters", "head", "hidden_units")
        shape = (self.input, self.input, self.channels)
        return {name: getattr(self, name) for name in names} | {"input_shape": shape}

    def _title(self, subject: str) -> str:
        batch_norm = ", batch norm" if self.batch_norm else ""
        image = f"{self.input}x{self.input}x{self.channels}"
        return f"{subject}{batch_norm}: {image}, batch {self.batch}"

    def _print(self, title: str, table: tuple) -> None:
        from keras_vgg import summary

        headers, rows = table
        if self.format == "markdown":
            print(f"**{title}**\n\n{summary.markdown(table)}\n")
        else:
            rich_table = new_table(title, *headers)
            for row in rows:
                rich_table.add_row(*row)
                if any("\n" in cell for cell in row):
                    rich_table.add_section()
            show(rich_table)

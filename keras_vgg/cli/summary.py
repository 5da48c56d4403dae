"""keras-vgg summary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print a network layer by layer: output, parameters, MACs, memory, receptive field.

    Computed from the paper's table, without building the network. MACs are multiply-accumulates of
    convolutions and dense layers for one image; memory is that of outputs as float32, in units of
    10^6 bytes.
    """

    configuration: tyro.conf.Positional[str | None] = None
    """A, A-LRN, B, C, D, E, or VGG11, VGG11LRN, VGG13, VGG16C, VGG16, VGG19."""
    compare: tuple[str, ...] = ()
    """Two or more of these instead, side by side."""
    kernels: bool = False
    """Instead: one large convolution against a stack of 3x3 that sees as much (section 2.3)."""
    input: Annotated[int, tyro.conf.arg(aliases=["--input-size"])] = 224
    """Side of the image, from 32 up."""
    batch: int = 1
    """Images that the memory is for."""
    channels: int = 3
    """Channels of the image."""
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
    format: Literal["table", "markdown", "json"] = "table"
    """How it is printed."""
    plot: Path | None = None
    """Draw memory and parameters by layer as a PNG there."""

    def __call__(self) -> None:
        from keras_vgg import architecture, summary

        asked = [self.configuration is not None, bool(self.compare), self.kernels]
        if sum(asked) != 1:
            raise ValueError("summary takes one of: a configuration, --compare A B ..., --kernels")
        if self.batch < 1:
            raise ValueError(f"--batch must be 1 or more, not {self.batch}")
        if self.plot is not None and self.configuration is None:
            raise ValueError("--plot draws one configuration: keras-vgg summary D --plot FILE.png")
        options = self._options()
        if self.kernels:
            if self.format == "json":
                pairs = [list(map(dataclasses.asdict, pair)) for pair in summary.kernels()]
                print(json.dumps(pairs, indent=2))
                return
            self._print("one convolution or a stack of 3x3, C = 512", summary.kernel_table())
            return
        if self.compare:
            compared = summary.comparison(self.compare, self.batch, **options)
            if self.format == "json":
                found = {
                    name: summary.record(architecture.layers(name, **options), self.batch)
                    for name in self.compare
                }
                print(json.dumps(found, indent=2))
                return
            self._print(self._title("configurations"), compared)
            return
        assert self.configuration is not None  # one of the three is given
        rows = architecture.layers(self.configuration, **options)
        if self.plot is not None:
            from keras_vgg.report import plot_layers

            plot_layers(rows, self.plot, batch=self.batch)
        if self.format == "json":
            print(json.dumps(summary.record(rows, self.batch), indent=2))
            return
        found = architecture.get_configuration(self.configuration)
        title = f"{found.builder}, configuration {found.name}, {found.weight_layers} weight layers"
        self._print(self._title(title), summary.layer_table(rows, self.batch))
        self._print("in all", summary.total_table(rows, self.batch))
        if self.plot is not None:
            show(str(self.plot))

    def _options(self) -> dict[str, Any]:
        names = ("classes", "batch_norm", "width_multiplier", "head", "hidden_units")
        shape = (self.input, self.input, self.channels)
        return {name: getattr(self, name) for name in names} | {"input_shape": shape}

    def _title(self, of: str) -> str:
        normed = ", batch norm" if self.batch_norm else ""
        return f"{of}{normed}: {self.input}x{self.input}x{self.channels}, batch {self.batch}"

    def _print(self, title: str, table: tuple) -> None:
        from keras_vgg import summary

        headers, rows = table
        if self.format == "markdown":
            print(f"**{title}**\n\n{summary.markdown(table)}\n")
        else:
            drawn = new_table(title, *headers)
            for row in rows:
                drawn.add_row(*row)
                if any("\n" in cell for cell in row):
                    drawn.add_section()
            show(drawn)

"""keras-vgg convert."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.cli.arguments import command_line
from keras_vgg.image_paths import expanded


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a weight file to another format of Keras or PyTorch.

    The command reads and writes Keras .h5, .weights.h5 and .keras, .safetensors and PyTorch .pth.
    It also reads KerasHub presets and run directories. Every weight stays the same.
    """

    source: tyro.conf.Positional[Path]
    """The weight file, preset or run directory to read."""
    target: tyro.conf.Positional[Path]
    """The file to write. Its suffix decides the format."""
    naming: Literal["torchvision", "timm"] = "torchvision"
    """Names and layout of the weights in a .safetensors or .pth file."""
    overwrite: bool = False
    """Replace an existing file."""
    preprocessing: Literal["caffe", "torchvision"] | None = None
    """The preprocessing that the network expects, if the source does not state it."""
    include_top: bool = True
    """Convert the classifier too. Without it, any head of the source is left out."""

    def check(self) -> None:
        """Check the order of the files and the naming, without TensorFlow.

        Raises:
            ValueError: the file to read is not the first argument; the file to write has no names
                of PyTorch.
        """
        from keras_vgg.weights import hub_repository

        is_there = hub_repository(self.source) is not None or expanded(self.source).exists()
        if expanded(self.target).exists() and not is_there:
            raise ValueError(
                f"{self.source} does not exist, and the file to read comes first: "
                f"{command_line('convert', self.target, self.source)}"
            )
        if self.naming != "torchvision" and self.target.suffix.lower() in (".h5", ".keras"):
            raise ValueError(
                f"--naming {self.naming} is for .safetensors and .pth files, and {self.target} is "
                "a file of Keras: leave out --naming"
            )

    def __call__(self) -> None:
        from keras_vgg import convert

        network = convert.convert_weights(
            self.source,
            self.target,
            self.naming,
            self.overwrite,
            self.preprocessing,
            self.include_top,
        )
        print(f"{self.target}: {convert.describe(network)}")
        if network.note:
            print(network.note)

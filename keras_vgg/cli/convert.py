"""keras-vgg convert."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a weight file's numbers in another format: Keras' or PyTorch's, either way.

    Keras .h5, .weights.h5 and .keras, .safetensors and PyTorch .pth are read and written, KerasHub
    presets and run directories are read. Every weight stays the same.
    """

    source: tyro.conf.Positional[Path]
    """What to read."""
    target: tyro.conf.Positional[Path]
    """What to write; its suffix decides the format."""
    naming: Literal["torchvision", "timm"] = "torchvision"
    """Names and layout in a .safetensors or .pth."""
    overwrite: bool = False
    """Replace a file that is there."""
    preprocessing: Literal["caffe", "torchvision"] | None = None
    """What the network expects, where the source does not say."""

    def __call__(self) -> None:
        from keras_vgg import convert

        network = convert.convert_weights(
            self.source, self.target, self.naming, self.overwrite, self.preprocessing
        )
        print(f"{self.target}: {convert.describe(network)}")

"""keras-vgg stylize."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.cli.rows import note
from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Give a photograph the style of another picture: keras-vgg stylize CONTENT STYLE --out PNG

    The pixels are changed, step by step, until VGG's features have the correlations of the style
    and the places of the content (Gatys et al., CVPR 2016). Beside the result, a folder gets
    pictures on the way and the losses. Repeat the command to resume after an interruption.
    """

    content: tyro.conf.Positional[Path]
    """The photograph to stylise (JPEG, PNG, BMP, GIF, WebP)."""
    style: tyro.conf.Positional[Path]
    """The picture whose style it gets."""
    out: Path
    """PNG file to write. The folder NAME_steps beside it gets the pictures on the way."""
    size: int | Literal["content"] = 512
    """Longer side of the result in pixels, or content for that of CONTENT."""
    style_size: int | None = None
    """Longer side to which STYLE is scaled: smaller for finer patterns (default: that of the
    result)."""
    style_weight: float = 5.0
    """Weight of the style; that of the content is 1."""
    style_layers: str | None = None
    """Comma-separated layers of the style (default: the first convolution of each block)."""
    content_layer: str = "block4_conv2"
    """Layer of the content."""
    steps: int = 200
    """Number of steps."""
    every: int = 50
    """Steps between two pictures on the way."""
    start: Literal["content", "style", "noise"] = "content"
    """The first image."""
    method: Literal["l-bfgs", "adam"] = "l-bfgs"
    """How the loss is lowered: SciPy's L-BFGS, as in the paper, or Keras' Adam."""
    learning_rate: float = 5.0
    """Adam's step, in grey levels of 255."""
    pooling: Literal["avg", "max"] = "avg"
    """The network's pooling: avg, as in the paper, or its own."""
    tile: int | None = None
    """Side of a tile in pixels, a multiple of 16: for an image that memory does not hold (default:
    no tiles)."""
    weights: str = "imagenet"
    """Pretrained weights: imagenet, torchvision, a weight file or a run directory."""
    configuration: str = "D"
    """Column of the paper's Table 1, for imagenet and torchvision, such as D or E."""
    seed: int = 0
    """Seed of the noise."""
    overwrite: bool = False
    """Replace a PNG that exists, and begin anew."""

    def __call__(self) -> None:
        from keras_vgg.perceptual.style import STYLE_LAYERS
        from keras_vgg.runs.stylizing import Stylisation, stylize_files

        layers = STYLE_LAYERS
        if self.style_layers is not None:
            layers = tuple(part.strip() for part in self.style_layers.split(",") if part.strip())
        settings = Stylisation(
            weights=self.weights,
            configuration=self.configuration,
            size=None if self.size == "content" else self.size,
            style_size=self.style_size,
            style_weight=self.style_weight,
            style_layers=layers,
            content_layer=self.content_layer,
            pooling_layers="avg" if self.pooling == "avg" else None,
            start=self.start,
            method=self.method,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        losses = stylize_files(
            self.content,
            self.style,
            self.out,
            settings,
            steps=self.steps,
            every=self.every,
            tile=self.tile,
            overwrite=self.overwrite,
            verbose=sys.stderr.isatty(),
            on_line=note,
        )
        first, last = losses[0], losses[-1]
        show(
            f"{self.out}: loss {last.total:.4g} after {len(losses) - 1} steps, "
            f"{last.total / first.total:.2%} of the first image's; style {last.style:.4g}, content "
            f"{last.content:.4g}"
        )

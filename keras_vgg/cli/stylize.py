"""keras-vgg stylize."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.console import is_terminal, note, show


@dataclasses.dataclass(frozen=True)
class Stylize:
    """Give a photograph the style of another picture: keras-vgg stylize CONTENT STYLE --out PNG

    The pixels are changed, step by step, until VGG's features have the correlations of the style
    and the places of the content (Gatys et al., CVPR 2016). Beside the result, a folder gets
    pictures on the way and the losses. Repeat the command to resume after an interruption.

    A network does it in one pass (Johnson et al., ECCV 2016). Train one for a style:
    keras-vgg stylize FOLDER STYLE --out NET.keras. Use it: keras-vgg stylize CONTENT --network
    NET.keras --out PNG. Write it for LiteRT: the same with --out NET.tflite.
    """

    content: tyro.conf.Positional[Path]
    """The photograph to stylise (JPEG, PNG, BMP, GIF, WebP); to train a network, a folder of
    photographs."""
    out: Path
    """File to write: a .png; a .keras, the network to train; with --network, also a .tflite. For a
    PNG without --network, the folder NAME_steps beside it gets the pictures on the way."""
    style: tyro.conf.Positional[Path | None] = None
    """The picture whose style it gets. With --network, there is none."""
    network: Path | None = None
    """Style network (.keras) that stylises CONTENT."""
    size: int | Literal["content"] | None = None
    """Longer side of the result in pixels, or content for that of CONTENT (default: 512). To train
    a network: side of the crops (default: 256). With --network: default content; 256 for LiteRT."""
    style_size: int | None = None
    """Longer side to which STYLE is scaled: smaller for finer patterns (default: that of the
    result)."""
    style_weight: float = 5.0
    """Weight of the style; that of the content is 1."""
    style_layers: str | None = None
    """Comma-separated layers of the style (default: the first convolution of each block)."""
    content_layer: str = "block4_conv2"
    """Layer of the content."""
    steps: int | None = None
    """Number of steps: of a picture (default: 200), or of a training, of 4 photographs each
    (default: 2000), a multiple of --every."""
    every: int = 50
    """Steps between two pictures on the way, or between two lines of a training."""
    start: Literal["content", "style", "noise"] = "content"
    """The first image."""
    method: Literal["l-bfgs", "adam"] = "l-bfgs"
    """How the loss is lowered: SciPy's L-BFGS, as in the paper, or Keras' Adam."""
    learning_rate: float = 5.0
    """Adam's step, in grey levels of 255, for --method adam."""
    pooling: Literal["avg", "max"] = "avg"
    """The network's pooling: avg, as in the paper, or its own."""
    tile: int | None = None
    """Side of a tile in pixels, a multiple of 16: for an image whose maps memory does not hold.
    With --method adam, it takes the least memory (default: no tiles)."""
    weights: str = "imagenet"
    """Pretrained weights: imagenet, torchvision, a weight file, a run directory or
    hf://OWNER/NAME."""
    configuration: str = "D"
    """Column of the paper's Table 1, for imagenet and torchvision, such as D or E."""
    seed: int = 0
    """Seed of the noise (--start noise), or of a training."""
    bit_depth: Literal["16", "14", "12", "10", "stretch"] = "16"
    """Which bits of a 16-bit PNG file carry the image: the lowest 16, 14, 12 or 10; stretch: from
    its smallest to its largest value."""
    overwrite: bool = False
    """Replace a file that exists, and an interrupted stylisation of other pictures or options. The
    same one is resumed."""

    def __call__(self) -> None:
        if self.network is not None:
            names = ("content", "out", "network", "size", "bit_depth", "overwrite")
            self._require_only(names, "--network")
            return self._apply(self.network)
        if self.style is None:
            raise ValueError("name the picture of the style after CONTENT, or a --network")
        if self.out.suffix.lower() == ".keras":
            others = {"start", "method", "learning_rate", "tile"}
            names = [field.name for field in dataclasses.fields(self) if field.name not in others]
            self._require_only(names, "the training of a network")
            return self._train(self.style)
        if self.is_litert:
            raise ValueError("a .tflite file needs the --network that it is made of")
        if self.method != "adam":
            self._require_default("learning_rate", f"--method {self.method}")
        if self.start != "noise":
            self._require_default("seed", f"--start {self.start}")
        return self._descend(self.style)

    def _require_only(self, names: Collection[str], purpose: str) -> None:
        """Raise a ValueError if another option is not at its default."""
        for field in dataclasses.fields(self):
            if field.name not in names:
                self._require_default(field.name, purpose)

    def _require_default(self, name: str, purpose: str) -> None:
        """Raise a ValueError if an option is not at its default."""
        (field,) = (field for field in dataclasses.fields(self) if field.name == name)
        if getattr(self, name) != field.default:
            word = name.upper()
            option = word if word == "STYLE" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} plays no part with {purpose}; leave it out")

    @property
    def is_litert(self) -> bool:
        """Whether the file to write is one for LiteRT."""
        return self.out.suffix.lower() == ".tflite"

    def _layers(self) -> tuple[str, ...]:
        from keras_vgg.perceptual.style import STYLE_LAYERS

        if self.style_layers is None:
            return STYLE_LAYERS
        return tuple(part.strip() for part in self.style_layers.split(",") if part.strip())

    def _apply(self, network: Path) -> None:
        """Write a picture, or a LiteRT file."""
        from keras_vgg.runs import style_networks

        size = None if self.size == "content" else self.size
        if self.is_litert:
            if self.size == "content":
                raise ValueError("a .tflite file needs --size in pixels, not content")
            mean, most = style_networks.export_style_network(
                self.content,
                network,
                self.out,
                size=size or 256,
                bit_depth=self.bit_depth,
                overwrite=self.overwrite,
                on_line=note,
            )
            show(
                f"{self.out}: {self.out.stat().st_size / 1e6:.2f} MB; differs from the network by "
                f"{mean:.2g} grey levels of 255 on average, {most:.2g} at most"
            )
            return
        image = style_networks.apply_style_network(
            self.content,
            network,
            self.out,
            size=size,
            bit_depth=self.bit_depth,
            overwrite=self.overwrite,
            on_line=note,
        )
        show(f"{self.out}: {image.shape[0]} x {image.shape[1]} pixels")

    def _train(self, style: Path) -> None:
        """Train a network."""
        from keras_vgg.runs.style_networks import StyleTraining, train_style_network

        if self.size == "content":
            raise ValueError("the training of a network needs --size in pixels, not content")
        settings = StyleTraining(
            weights=self.weights,
            configuration=self.configuration,
            size=256 if self.size is None else self.size,
            style_size=self.style_size,
            style_weight=self.style_weight,
            style_layers=self._layers(),
            content_layer=self.content_layer,
            pooling_layers="avg" if self.pooling == "avg" else None,
            seed=self.seed,
            bit_depth=self.bit_depth,
        )
        losses = train_style_network(
            self.content,
            style,
            self.out,
            settings,
            steps=2000 if self.steps is None else self.steps,
            every=self.every,
            overwrite=self.overwrite,
            verbose=is_terminal(sys.stderr),
            on_line=note,
        )
        show(f"{self.out}: mean loss {losses[-1]:.4g} at the end, {losses[0]:.4g} at the beginning")

    def _descend(self, style: Path) -> None:
        """Lower the loss of a picture's pixels."""
        from keras_vgg.runs.stylizing import Stylisation, stylize_files

        size = 512 if self.size is None else self.size
        settings = Stylisation(
            weights=self.weights,
            configuration=self.configuration,
            size=None if size == "content" else size,
            style_size=self.style_size,
            style_weight=self.style_weight,
            style_layers=self._layers(),
            content_layer=self.content_layer,
            pooling_layers="avg" if self.pooling == "avg" else None,
            start=self.start,
            method=self.method,
            learning_rate=self.learning_rate,
            seed=self.seed,
            bit_depth=self.bit_depth,
        )
        losses = stylize_files(
            self.content,
            style,
            self.out,
            settings,
            steps=200 if self.steps is None else self.steps,
            every=self.every,
            tile=self.tile,
            overwrite=self.overwrite,
            verbose=is_terminal(sys.stderr),
            on_line=note,
        )
        first, last = losses[0], losses[-1]
        show(
            f"{self.out}: loss {last.total:.4g} after {len(losses) - 1} steps, "
            f"{last.total / first.total:.2%} of the first image's; style {last.style:.4g}, content "
            f"{last.content:.4g}"
        )

"""keras-vgg explain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from keras_vgg.cli.arguments import require_model_first
from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Explain:
    """Show why a run's model answers as it does: heat on images, feature maps, filters.

    Each image becomes a PNG with the image, the heat over it, the class and its probability. The
    part that the model did not see is grey. An image is drawn at its own size, at most 1600 pixels
    wide and high.
    """

    run: tyro.conf.Positional[Path]
    """The run directory."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files (JPEG, PNG, BMP, GIF, WebP). With --method filters alone, there is none."""
    method: str = "grad-cam"
    """Comma-separated methods. grad-cam, grad-cam++, occlusion, saliency and smoothgrad are drawn
    side by side; features draws the strongest feature maps of each block; filters draws images that
    a layer's first filters answer to."""
    layer: str | None = None
    """Layer for grad-cam, features and filters, such as block4_conv3 (default: the last
    convolution; for features, the last one of each block)."""
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Explain this class instead of the most probable one. If the run gives an image several
    labels, each label of the image is explained by default."""
    out: Path | None = None
    """Folder to write into (default: explain/ in the run directory)."""
    seed: int = 0
    """Seed of smoothgrad's noise and of the filters' first images."""

    def check(self) -> None:
        """Raise ValueError if the run is not the first argument; without TensorFlow."""
        require_model_first("explain", self.run, self.images)

    def __call__(self) -> None:
        from keras_vgg.data.left_out import printable
        from keras_vgg.run import Run
        from keras_vgg.runs import explain_files

        written = explain_files(
            Run.open(self.run),
            self.images,
            methods=[part.strip() for part in self.method.split(",") if part.strip()],
            layer=self.layer,
            class_name=self.class_name,
            out=self.out,
            seed=self.seed,
        )
        for path in written:
            show(printable(path))

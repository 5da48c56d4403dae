"""keras-vgg explain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Explain:
    """Show why a run's model says what it says: heat on images, feature maps, filters.

    Each image becomes a PNG: the picture, the heat over it, the class and its probability. What the
    model did not see of the picture is grey. It is drawn at its own size, but at most 1600 pixels
    wide and high.
    """

    run: tyro.conf.Positional[Path]
    """The run directory."""
    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files (JPEG, PNG, BMP, GIF, WebP); filters needs none."""
    method: str = "grad-cam"
    """Comma-separated: grad-cam, grad-cam++, occlusion, saliency, smoothgrad, side by side;
    features, the strongest maps of each block; filters, what a layer's first filters answer to."""
    layer: str | None = None
    """The layer that grad-cam, features and filters look at, such as block4_conv3 (default: the
    last convolution; for features the last of each block)."""
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Explain this class instead of the most probable one."""
    out: Path | None = None
    """The folder to write into (default: explain/ in the run directory)."""
    seed: int = 0
    """Seed of smoothgrad's noise and of the filters' first images."""

    def __call__(self) -> None:
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
            show(str(path))

"""keras-vgg predict."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Predict:
    """Classify images: print the most probable classes of each, with their probabilities."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """One or more image files (JPEG, PNG, BMP, GIF, WebP)."""
    top: int = 5
    """Number of classes to print."""

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import predict_files

        if not self.images:
            raise ValueError("predict needs at least one image file")
        run = Run.open(self.run)
        for path, ranked in zip(
            self.images, predict_files(run, self.images, top=self.top), strict=True
        ):
            table = new_table(str(path), "class", "probability")
            for name, probability in ranked:
                table.add_row(name, f"{probability:.2%}")
            show(table)

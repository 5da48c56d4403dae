"""A source of images on the command line."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Where:
    """How a source is opened."""

    data_dir: str | None = None
    """TFDS: where prepared data sets live (default: TFDS's own, ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """TFDS: a folder that holds the data set's original files, which are then not downloaded."""
    download: bool = False
    """TFDS: download and prepare the data set when it is not there."""
    validation_fraction: float = 0.1
    """Share of the training images held out where a source has no validation split."""
    test_fraction: float = 0.2
    """Share of the images held out where a source has no test split (digits, folders)."""
    seed: int = 0
    """Decides what is held out."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A damaged image: stop and name it, or decode all first, leave it out and say how many."""

    def open(self, source: str):
        from keras_vgg import data

        return data.load_source(source, **dataclasses.asdict(self))


DEFAULT = Where()
Opened = Annotated[Where, tyro.conf.arg(name="")]
SourceName = tyro.conf.Positional[str]

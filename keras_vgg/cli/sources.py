"""The options of every command that opens a source of images."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How to open a source."""

    data_dir: str | None = None
    """TFDS: the folder of prepared data sets (default: TFDS's own, ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """TFDS: a folder with the data set's original files, which are then not downloaded."""
    download: tyro.conf.FlagConversionOff[bool] = False
    """TFDS: download and prepare the data set if it is missing."""
    train_split: str | None = None
    """TFDS: the split to train on, such as train[:90%]."""
    validation_split: str | None = None
    """TFDS: the split for validation."""
    test_split: str | None = None
    """TFDS: the split for the test."""
    validation_fraction: float = 0.1
    """Share of the training images to hold out if a source has no validation split."""
    test_fraction: float = 0.2
    """Share of the images to hold out if a source has no test split (digits, folders, tables)."""
    seed: int = 0
    """Decides which images are held out."""
    columns: str = ""
    """csv: the columns' names if they are not common ones, such as
    path=file,label=diagnosis,group=patient."""
    group_pattern: str | None = None
    """folder, csv: regular expression on an image's path. What the first parenthesis matches is the
    image's group, such as a patient; no drawn split has images of one group on two sides."""
    on_bad_image: Literal["error", "skip"] = "error"
    """If an image is damaged: stop with an error, or skip it. Skipping decodes all images first,
    and prints how many are left out."""

    bit_depth: Literal["16", "14", "12", "10", "stretch"] = "16"
    """For 16-bit PNG files: the lowest bits that carry the image, or stretch, which spreads each
    file's own range over all greys. A pack keeps all bits."""

    def open(self, source: str, **changes: Any):
        from keras_vgg import data

        return data.load_source(source, **{**dataclasses.asdict(self), **changes})


DEFAULT_OPTIONS = SourceOptions()
# No prefix: the flags are --data-dir and so on, not --source-options.data-dir.
FlatSourceOptions = Annotated[SourceOptions, tyro.conf.arg(name="")]
SourceName = tyro.conf.Positional[str]

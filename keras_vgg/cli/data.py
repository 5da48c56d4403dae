"""keras-vgg data check, stats, pack, show."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.cli.sources import DEFAULT, Opened, SourceName
from keras_vgg.console import new_table, show
from keras_vgg.recipe import Recipe, load_recipe


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """Decode every image of a source beforehand; report damage, formats, sizes and classes.

    The exit status is 2 if an image is damaged; the report names each. Of records:PATH the files'
    hashes are compared as well.
    """

    source: SourceName
    """digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    report: Path = Path("data_check.json")
    """Where the report goes."""
    where: Opened = DEFAULT

    def __call__(self) -> None:
        from keras_vgg import data
        from keras_vgg.files import write_json

        # What is skipped would not be reported.
        source = dataclasses.replace(self.where, on_bad_image="error").open(self.source)
        self.report.parent.mkdir(parents=True, exist_ok=True)
        report = data.check(source, verbose=True)
        write_json(self.report, report)
        table = new_table(self.source, "split", "images", "bad", "height", "width", "formats")
        for name, split in report["splits"].items():
            sides = [
                "{} to {}".format(*split[side][::2]) if side in split else ""
                for side in ("height", "width")
            ]
            formats = [f"{kind} {count:,}" for kind, count in split.get("formats", {}).items()]
            bad = str(len(split["bad"])) if "bad" in split else "in memory"
            table.add_row(name, f"{split['images']:,}", bad, *sides, "; ".join(formats))
        show(table)
        for line in data.take_inventory(source).lines():
            show(line)
        show(str(self.report))
        bad = [name for split in report["splits"].values() for name, _ in split.get("bad", [])]
        if bad:
            listed = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise ValueError(f"{len(bad)} images of {self.source} cannot be decoded: {listed}")
        form, _, path = self.source.partition(":")
        if form == "records":
            data.verify(path)


@dataclasses.dataclass(frozen=True)
class DataStats:
    """Mean, deviation and principal components of RGB over a source's training split."""

    source: SourceName
    """digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    limit: int | None = None
    """Look at so many images, evenly spaced (default: all)."""
    where: Opened = DEFAULT

    def __call__(self) -> None:
        from keras_vgg import data

        split = self.where.open(self.source).train
        with data.bad_images_named(split):
            found = data.statistics(split, limit=self.limit, verbose=True)
        title = f"{self.source}: {found.images:,} of {split.size:,} training images, in [0, 255]"
        table = new_table(title, "", "red", "green", "blue")
        table.add_row("mean", *(f"{v:.3f}" for v in found.mean))
        table.add_row("standard deviation", *(f"{v:.3f}" for v in found.std))
        show(table)
        table = new_table(
            "covariance of RGB in [0, 1]: its components", "eigenvalue", "red", "green", "blue"
        )
        for value, vector in zip(found.eigenvalues, found.eigenvectors.T, strict=True):
            table.add_row(f"{value:.6f}", *(f"{v:+.4f}" for v in vector))
        show(table)
        for name, values in (("mean", found.mean), ("std", found.std)):
            show(f"--{name}-rgb " + " ".join(f"{v:.3f}" for v in values))


@dataclasses.dataclass(frozen=True)
class DataPack:
    """Write a source's splits as sharded TFRecords, to be read as records:OUT.

    Files are stored byte for byte, and every image is decoded once to see that it is whole.
    Repeating a command goes on with what was interrupted.
    """

    source: SourceName
    """digits, folder:PATH, idx:PATH or a TFDS name."""
    out: tyro.conf.Positional[Path]
    """The folder of the pack: new, empty, or an unfinished pack of the same source."""
    shard_images: int = 1024
    """Images a file."""
    where: Opened = DEFAULT

    def __call__(self) -> None:
        from keras_vgg import data

        source = self.where.open(self.source)
        manifest = data.pack(source, self.out, shard_images=self.shard_images, verbose=True)
        table = new_table(str(self.out), "split", "images", "files", "MB")
        for name, split in manifest["splits"].items():
            size = sum(shard["bytes"] for shard in split["shards"])
            row = (f"{split['images']:,}", str(len(split["shards"])), f"{size / 1e6:.1f}")
            table.add_row(name, *row)
        show(table)
        show(f"next: keras-vgg train --source records:{self.out} --workdir RUN")


@dataclasses.dataclass(frozen=True)
class DataShow:
    """Draw what a recipe makes of a source's training images: a contact sheet.

    A row an image: the original with the places of the crops, what evaluation sees, and several
    augmentations of it.
    """

    source: SourceName
    """digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    recipe: Path | None = None
    """A recipe file, or a run's recipe.json (default: the recipe of the digits)."""
    out: Path = Path("contact_sheet.png")
    """Where the picture goes."""
    images: int = 6
    """Rows."""
    views: int = 5
    """Augmentations of each."""
    where: Opened = DEFAULT

    def __call__(self) -> None:
        from keras_vgg.runs import show_augmentation

        recipe = load_recipe(self.recipe) if self.recipe else Recipe()
        if recipe.source != self.source:  # the recipe's named splits are of its own source
            splits = dict.fromkeys(("train_split", "validation_split", "test_split"))
            recipe = recipe.replace(source=self.source, **splits)
        given, default = dataclasses.asdict(self.where), dataclasses.asdict(DEFAULT)
        recipe = recipe.replace(**{k: v for k, v in given.items() if v != default[k]})
        show_augmentation(recipe, self.out, images=self.images, views=self.views)
        show(str(self.out))

"""keras-vgg data check, stats, pack, show."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tyro

from keras_vgg.cli.arguments import command_line, looks_like_source, require_suffix
from keras_vgg.cli.sources import DEFAULT_OPTIONS, FlatSourceOptions, SourceName
from keras_vgg.console import new_table, show
from keras_vgg.recipe import BATCH_AUGMENTATIONS, Recipe, load_recipe

_CLASSES_NAMED = 12  # classes of which `data check` prints every number of images


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """Decode every image of a source; report damage, formats, sizes and classes.

    The exit status is 2 if an image is damaged; the report names each one. For records:PATH, the
    hashes of the files are checked too.
    """

    source: SourceName
    """Source of images: digits, folder:PATH, csv:FILE, records:PATH, idx:PATH or a TFDS
    name."""
    report: Path = Path("data_check.json")
    """The JSON file to write the report into."""
    source_options: FlatSourceOptions = DEFAULT_OPTIONS

    def check(self) -> None:
        """Raise ValueError if the report's name is not that of a JSON file; without TensorFlow."""
        require_suffix("--report", self.report, ".json")

    def __call__(self) -> None:
        from keras_vgg import data
        from keras_vgg.data.left_out import listed, printable
        from keras_vgg.data.sources import without_decoding
        from keras_vgg.files import write_json

        # A skipped image would be missing from the report; rows of a table that are skipped are in
        # its inventory.
        on_bad_image = without_decoding(self.source, self.source_options.on_bad_image)
        source = self.source_options.open(self.source, on_bad_image=on_bad_image)
        self.report.parent.mkdir(parents=True, exist_ok=True)
        _require_writable(self.report)  # not only after a pass through all images
        report = data.check(source, verbose=True)
        write_json(self.report, report)
        table = new_table(self.source, "split", "images", "bad", "height", "width", "formats")
        for name, split in report["splits"].items():
            sides = [
                "{} to {}".format(*split[side][::2]) if side in split else ""
                for side in ("height", "width")
            ]
            formats = [f"{kind} {count:,}" for kind, count in split.get("formats", {}).items()]
            bad_count = str(len(split["bad"])) if "bad" in split else "in memory"
            table.add_row(name, f"{split['images']:,}", bad_count, *sides, "; ".join(formats))
        show(table)
        class_names = [printable(name) for name in source.class_names]
        for name, split in report["splits"].items():
            show(f"{name}: {_classes_line(class_names, split['class_counts'])}")
        for line in data.Inventory.from_json(source.class_names, report["inventory"]).lines():
            show(line)
        show(str(self.report))
        bad = [name for split in report["splits"].values() for name, _ in split.get("bad", [])]
        if bad:
            names = listed(bad[:10], len(bad))
            images = "1 image" if len(bad) == 1 else f"{len(bad)} images"
            raise ValueError(f"{images} of {self.source} cannot be decoded: {names}")
        kind, _, path = self.source.partition(":")
        if kind == "records":
            data.verify(path)


def _require_writable(path: Path) -> None:
    """Raise an OSError that names the path if it is a folder, or no file can be made beside it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def _classes_line(names: Sequence[str], counts: Sequence[int]) -> str:
    """Return the images of each class; of many classes, those of the smallest and the largest."""
    if len(names) <= _CLASSES_NAMED:
        return ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    least, most = (counts.index(end) for end in (min(counts), max(counts)))
    return (
        f"{len(names):,} classes, from {counts[least]:,} images ({names[least]}) to "
        f"{counts[most]:,} ({names[most]})"
    )


@dataclasses.dataclass(frozen=True)
class DataStats:
    """Print the mean, standard deviation and principal components of RGB over a training split."""

    source: SourceName
    """Source of images: digits, folder:PATH, csv:FILE, records:PATH, idx:PATH or a TFDS
    name."""
    limit: int | None = None
    """Number of images to read: evenly spaced; of records and large TFDS sets, the first ones
    (default: all)."""
    source_options: FlatSourceOptions = DEFAULT_OPTIONS

    def __call__(self) -> None:
        from keras_vgg import data

        split = self.source_options.open(self.source).train
        with data.bad_images_named(split):
            stats = data.statistics(split, limit=self.limit, verbose=True)
        title = f"{self.source}: {stats.images:,} of {split.size:,} training images, in [0, 255]"
        table = new_table(title, "", "red", "green", "blue")
        table.add_row("mean", *(f"{v:.3f}" for v in stats.mean))
        table.add_row("standard deviation", *(f"{v:.3f}" for v in stats.std))
        show(table)
        title = "principal components of RGB in [0, 1]"
        table = new_table(title, "eigenvalue", "red", "green", "blue")
        for value, vector in zip(stats.eigenvalues, stats.eigenvectors.T, strict=True):
            table.add_row(f"{value:.6f}", *(f"{v:+.4f}" for v in vector))
        show(table)
        for name, values in (("mean", stats.mean), ("std", stats.std)):
            show(f"--{name}-rgb " + " ".join(f"{v:.3f}" for v in values))


@dataclasses.dataclass(frozen=True)
class DataPack:
    """Write a source's splits as sharded TFRecords, which the source records:OUT reads.

    Files are stored byte for byte, unless max-side makes them smaller. Every image is decoded
    once, to check that it is whole. Repeat the command to resume an interrupted one.
    """

    source: SourceName
    """Source of images: digits, folder:PATH, csv:FILE, idx:PATH or a TFDS name."""
    out: tyro.conf.Positional[Path]
    """Folder to write into: new, empty, or with an unfinished pack of the same source."""
    shard_images: int = 1024
    """Number of images in a file."""
    max_side: int | None = None
    """Store larger images smaller: the longest side in pixels, such as 512. Photographs of many
    megapixels then cost a fraction of the time in every epoch (default: as they are)."""
    source_options: FlatSourceOptions = DEFAULT_OPTIONS

    def check(self) -> None:
        """Raise ValueError if the source is not the first argument; without TensorFlow."""
        if looks_like_source(str(self.out)):
            advice = command_line("data pack", self.out, self.source)
            if looks_like_source(self.source):
                advice = command_line("data pack", self.source, "OUT")
            raise ValueError(f"the source comes first, then a folder to write into: {advice}")

    def __call__(self) -> None:
        from keras_vgg import data

        # A pack holds the files' own bits.
        source = self.source_options.open(self.source, bit_depth="16")
        manifest = data.pack(
            source,
            self.out,
            shard_images=self.shard_images,
            max_side=self.max_side,
            verbose=True,
        )
        table = new_table(str(self.out), "split", "images", "files", "MB")
        for name, split in manifest["splits"].items():
            size = sum(shard["bytes"] for shard in split["shards"])
            row = (f"{split['images']:,}", str(len(split["shards"])), f"{size / 1e6:.1f}")
            table.add_row(name, *row)
        show(table)
        bit_depth = self.source_options.bit_depth
        packed = data.load_source(f"records:{self.out}", bit_depth=bit_depth)
        for line in data.take_inventory(packed).lines():
            show(line)
        words = [f"records:{self.out}", *(["--bit-depth", bit_depth] if bit_depth != "16" else [])]
        show(f"next: {command_line('train', '--source', *words, '--workdir', 'RUN')}")


@dataclasses.dataclass(frozen=True)
class DataShow:
    """Draw a contact sheet: how a recipe augments a source's training images.

    Each row shows one image: the original with the places of the crops, the image as evaluation
    sees it, and several augmentations. mixup, cutmix, random_erasing and rand_augment change whole
    batches, and are not drawn.
    """

    source: SourceName
    """Source of images: digits, folder:PATH, csv:FILE, records:PATH, idx:PATH or a TFDS
    name."""
    recipe: Path | None = None
    """A recipe file, or a run's recipe.json (default: the recipe that train takes for the
    source)."""
    out: Path = Path("contact_sheet.png")
    """The PNG to write."""
    images: int = 6
    """Number of images, one in a row."""
    views: int = 5
    """Number of augmentations of each image."""
    source_options: FlatSourceOptions = DEFAULT_OPTIONS

    def check(self) -> None:
        """Raise ValueError if the sheet's name is not that of a PNG; without TensorFlow."""
        require_suffix("--out", self.out, ".png")

    def __call__(self) -> None:
        from keras_vgg.runs import show_augmentation

        recipe = self._recipe()
        show_augmentation(recipe, self.out, images=self.images, views=self.views)
        if whole := [name for name in BATCH_AUGMENTATIONS if getattr(recipe, name)]:
            show(f"not drawn, because they change whole batches: {', '.join(whole)}")
        show(str(self.out))

    def _recipe(self) -> Recipe:
        from keras_vgg.fit import describe_defaults, recipe_for

        defaults = dataclasses.asdict(DEFAULT_OPTIONS)
        options = dataclasses.asdict(self.source_options)
        options = {name: value for name, value in options.items() if value != defaults[name]}
        if self.recipe is None:
            recipe = recipe_for(self.source, **options)
            if self.source != "digits":
                show(describe_defaults(recipe))
            return recipe
        recipe = load_recipe(self.recipe)
        if recipe.source != self.source:  # What names parts of the recipe's own source is left out.
            splits = dict.fromkeys(("train_split", "validation_split", "test_split"))
            recipe = recipe.replace(source=self.source, columns="", group_pattern=None, **splits)
        return recipe.replace(**options)

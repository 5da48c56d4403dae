"""Look through a data set before it is used: what does not decode, and what the rest is."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg.console import note_once, progress_bars
from keras_vgg.data.decode import (
    EXTENSIONS,
    TENSORFLOW_ERRORS,
    decode,
    is_16_bit,
    orientation,
    reason,
    why_bad,
)
from keras_vgg.data.inventory import take_inventory
from keras_vgg.data.left_out import HEAD_BYTES, READ_FORMATS, listed, marked_kind, printable
from keras_vgg.data.options import untuned
from keras_vgg.data.sides import Sizes, range_of_16_bit, sizes_of, uses_few_levels
from keras_vgg.data.split import Records, Source, Split, class_counts, labels_of, pictures_of

_NOT_READ = "could not be read: its TFRecord file is damaged at it or before it, or ends there"
_MOST_BAD_IMAGES = 0.1  # share of a split that may be skipped
_COMPONENTS = {1: "grey", 3: "colour", 4: "CMYK"}


def check(source: Source, verbose: bool = False) -> dict[str, Any]:
    """Decode every image of a source, and describe its splits in plain values for JSON.

    Each split has `images` and `class_counts`, which count bad images too, but no bad records, for
    their labels are not known. A split in files or records also has

    - `bad`: [name, reason] of each image that does not decode;
    - `formats`: the number of images of each format;
    - `wrong_extension`: [path, format] of each file whose name claims another format;
    - `turned`: the number of JPEGs that Exif turns upright;
    - `few_levels`: [name, smallest, largest value] of each 16-bit PNG that uses less than an
      eighth of the values of the source's `bit_depth`, so that it becomes almost one grey;
    - `height` and `width`: the smallest, median and largest, if any image is good.

    `inventory` is what the source holds and leaves out, see `keras_vgg.data.Inventory`. Its sizes
    are those of all images.
    `verbose` shows a progress bar on stderr.
    """
    splits = source.splits()
    with progress_bars(verbose) as bars:
        tasks = {name: bars.add_task(name, total=split.size) for name, split in splits.items()}
        described, sizes = {}, {}
        for name, split in splits.items():
            scanned = _Scan(
                split, lambda count, task=tasks[name]: bars.update(task, completed=count)
            )
            described[name] = scanned.describe(len(source.class_names))
            sizes[name] = scanned.sizes
    counts = {name: values["class_counts"] for name, values in described.items()}
    return {
        "source": source.name,
        "class_names": list(source.class_names),
        "splits": described,
        "inventory": take_inventory(source, sizes, counts).as_json(),
    }


def find_bad_images(split: Split) -> list[tuple[str, str]]:
    """Return (name, reason) of each image that does not decode; [] for images in memory.

    The name is a file's path, or "PATH, record N". All of them are decoded, in parallel.
    """
    return [(name, reason) for _, name, reason in bad_images(split)]


def bad_images(split: Split) -> list[tuple[int, str, str]]:
    """Return what `find_bad_images` does, with the position in the split before each."""
    return [] if split.images is not None else _Scan(split).bad()


def without_bad_images(split: Split) -> Split:
    """Return a split without the images that do not decode, and name them on stderr.

    Raises:
        ValueError: more than a tenth of the images are bad.
    """
    bad = bad_images(split)
    if not bad:
        return split
    names = listed([name for _, name, _ in bad[:10]], len(bad))
    message = (
        f"{len(bad)} of {split.size} images of split {split.name!r} cannot be decoded: {names}"
    )
    if len(bad) > _MOST_BAD_IMAGES * split.size:
        raise ValueError(f"{message}. More than {_MOST_BAD_IMAGES:.0%} is too many to skip")
    note_once(f"skipped: {message}")
    return split.without({position for position, _, _ in bad})


def raise_for_bad_images(split: Split) -> None:
    """Raise a ValueError that names the split's bad images, the first ten with reasons, if any.

    TensorFlow's own decoding error does not name the file: call this on tf.errors.OpError.
    """
    bad = find_bad_images(split)
    if bad:
        listed = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in bad[:10])
        more = "; ..." if len(bad) > 10 else ""
        raise ValueError(
            f"{len(bad)} of {split.size} images of split {split.name!r} cannot be decoded: "
            f'{listed}{more}. Mend or remove them, or skip them with on_bad_image="skip"'
        )


@contextlib.contextmanager
def bad_images_named(*splits: Split) -> Iterator[None]:
    """Turn a reading or decoding error met inside into a ValueError that names the images."""
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
        tf.errors.PermissionDeniedError,
        tf.errors.DataLossError,  # what is wrong with a TFRecord file itself
        UnicodeDecodeError,
    ) as error:
        for split in splits:
            raise_for_bad_images(split)
        raise ValueError(f"TensorFlow stopped: {reason(error)}") from error


class _Scan:
    """One pass over a split that decodes every image and keeps a few small numbers of each."""

    def __init__(self, split: Split, progress: Callable[[int], Any] = lambda count: None) -> None:
        self.split = split
        self.sides = np.zeros((split.size, 2), np.int32)  # 0 stays where an image is bad
        self.formats: collections.Counter[str] = collections.Counter()
        self.wrong_extension: list[tuple[str, str]] = []
        self.turned = 0
        self.deep = 0
        self.few_levels: list[tuple[int, int, int]] = []
        if split.records is None:
            self.labels = labels_of(split).copy()
        else:
            self.labels = np.full(split.size, -1, np.int32)
        if split.images is not None:
            progress(split.size)
            return
        # Errors are ignored here, and what is missing at the end is bad.
        examined = _readable(split).map(_examine, num_parallel_calls=tf.data.AUTOTUNE)
        examined = untuned(examined.ignore_errors().prefetch(tf.data.AUTOTUNE))
        rows = enumerate(examined.as_numpy_iterator(), 1)
        for done, (position, label, head, sides, components, turned, deep) in rows:
            self.sides[position] = sides
            if split.records is not None:
                self.labels[position] = label
            self.turned += int(turned)
            low, high = deep.tolist()
            self.deep += high >= 0
            if high >= 0 and uses_few_levels(low, high, split.bit_depth):
                self.few_levels.append((int(position), low, high))
            self._count(int(position), head, int(components))
            progress(done)
        progress(split.size)

    def _count(self, position: int, head: bytes, components: int) -> None:
        kind = marked_kind(head)
        assert kind in READ_FORMATS, "it was decoded"
        self.formats[f"{kind}, {_COMPONENTS[components]}" if components else kind] += 1
        if self.split.paths is not None:
            path = printable(self.split.paths[position])
            if path.lower().endswith(EXTENSIONS) and not path.lower().endswith(READ_FORMATS[kind]):
                self.wrong_extension.append((path, kind))

    def bad(self) -> list[tuple[int, str, str]]:
        """Return (position, name, reason) of each bad image."""
        positions = np.flatnonzero(self.sides[:, 0] == 0).tolist()
        if self.split.paths is not None:
            paths = [str(self.split.paths[position]) for position in positions]
            reasons = map(_why_bad_file, paths)
            return list(zip(positions, map(printable, paths), reasons, strict=True))
        if not positions:
            return []
        records = self.split.records
        assert records is not None, "images in memory are not scanned"
        reasons = dict.fromkeys(positions, _NOT_READ)
        for position, record in _serialized(records).ignore_errors():
            if int(position) in reasons:
                reasons[int(position)] = _why_bad_record(record, records)
        return [(position, *_named(records, position, why)) for position, why in reasons.items()]

    def _name(self, position: int) -> str:
        if self.split.paths is not None:
            return printable(self.split.paths[position])
        assert self.split.records is not None, "images in memory are not scanned"
        return self.split.records.name_of(position)

    @functools.cached_property
    def sizes(self) -> Sizes | None:
        """The sizes of the good images; None if there are none."""
        if self.split.images is not None:
            return sizes_of(self.split)
        good = self.sides[self.sides[:, 0] > 0]
        few_levels = [(self._name(n), low, high) for n, low, high in sorted(self.few_levels)]
        return Sizes.of(good, self.deep, few_levels) if len(good) else None

    def describe(self, classes: int) -> dict[str, Any]:
        described = {
            "images": self.split.size,
            "class_counts": class_counts(self.labels, classes).tolist(),
        }
        if self.split.images is not None:
            return described
        sizes = self.sizes
        ranges = {"height": list(sizes.height), "width": list(sizes.width)} if sizes else {}
        return described | {
            "bad": [[name, reason] for _, name, reason in self.bad()],
            "formats": dict(self.formats.most_common()),
            "wrong_extension": [list(pair) for pair in self.wrong_extension],
            "turned": self.turned,
            "few_levels": [list(row) for row in sizes.few_levels] if sizes else [],
            **ranges,
        }


def _readable(split: Split) -> tf.data.Dataset:
    """Return (position in the split, encoded image, label), or an error for what cannot be read."""
    records = split.records
    if records is not None:
        return _serialized(records).map(
            lambda position, record: (position, *records.parse(record)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    with tf.device("CPU"):
        paths, labels = tf.constant(pictures_of(split)), tf.constant(labels_of(split))
    return tf.data.Dataset.range(split.size).map(
        lambda position: (position, tf.io.read_file(paths[position]), labels[position]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _serialized(records: Records) -> tf.data.Dataset:
    """Return (position in the split, record), in order; after damage, those of the next shard.

    A shard that cannot be opened is left out: ignore_errors would try it again for ever.
    """
    firsts = np.cumsum([0, *(shard.stop - shard.start for shard in records.shards)])
    rows = [
        (os.fsencode(shard.path), shard.start, shard.stop, first)
        for shard, first in zip(records.shards, firsts, strict=False)
        if _why_not_opened(shard.path) is None
    ]
    columns = zip(*rows, strict=True) if rows else ((),) * 4
    with tf.device("CPU"):
        columns = tuple(
            tf.constant(column, kind)
            for column, kind in zip(columns, (tf.string, *(tf.int64,) * 3), strict=True)
        )

    def read(
        path: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, first: tf.Tensor
    ) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(path).skip(start).take(stop - start).enumerate(first)

    shards = tf.data.Dataset.from_tensor_slices(columns)
    # The stub has no function of several columns.
    return shards.flat_map(read)  # pyright: ignore[reportArgumentType]


def _examine(position: tf.Tensor, encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
    components = tf.cond(
        tf.io.is_jpeg(encoded), lambda: tf.io.extract_jpeg_shape(encoded)[2], lambda: 0
    )
    # The shape, for without a use of the image the decoding would be pruned away.
    sides = tf.shape(decode(encoded))[:2]
    head = tf.strings.substr(encoded, 0, HEAD_BYTES)
    with tf.control_dependencies([sides]):  # an image of too many pixels is refused before
        deep = tf.cond(
            is_16_bit(encoded), lambda: range_of_16_bit(encoded), lambda: tf.constant([0, -1])
        )
    return position, label, head, sides, components, orientation(encoded) > 1, deep


def _named(records: Records, position: int, why: str) -> tuple[str, str]:
    """Return "PATH, record N", where N counts in the file, and the reason."""
    if why == _NOT_READ:
        (shard,) = records.between(position, position + 1).shards
        why = _why_not_opened(shard.path) or why
    return records.name_of(position), why


def _why_not_opened(path: str) -> str | None:
    try:
        with tf.io.gfile.GFile(os.fsencode(path), "rb") as file:
            file.read(1)
    except tf.errors.OpError as error:
        return reason(error)
    return None


def _why_bad_record(record: tf.Tensor, records: Records) -> str:
    try:
        encoded, _ = records.parse(record)
    except TENSORFLOW_ERRORS as error:
        return reason(error)
    return why_bad(encoded) or _NOT_READ


def _why_bad_file(path: str) -> str:
    try:
        encoded = tf.io.read_file(os.fsencode(path))
    except tf.errors.OpError as error:
        return reason(error)
    return why_bad(encoded) or "could not be read"

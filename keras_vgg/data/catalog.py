"""TensorFlow Datasets as a source: choosing splits that do not overlap, and reading them."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg.data.split import Piece, Records, Shard, Source, Split, between
from keras_vgg.image_paths import expanded

# Their "test" has no labels (-1), so their "validation" is what everyone reports.
UNLABELLED_TEST = frozenset(
    {"i_naturalist2017", "i_naturalist2018", "imagenet2012", "places365_small"}
)
IN_MEMORY_BYTES = 2 * 2**30
# name/config:version. Anything more, such as huggingface:name, would make TFDS ask the network.
_NAME = re.compile(r"[A-Za-z]\w*(/[^/:]+)?(:[\d.*]+)?")


def load(
    name: str,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
) -> Source:
    """Open the TFDS set `name`, kept in `data_dir` (TFDS's own default if None).

    A set that is not prepared yet is prepared from the files in `manual_dir`, or downloaded if
    `download`; ValueError if neither is given.
    Splits given ("train[:90%]") are used as they are. Otherwise the test split is "test", or
    "validation" where there is no "test" or it has no labels, or else is held out of train; the
    validation split is "validation" where that is not the test split, or else held out of train.
    What is held out is one contiguous slice, at a place decided by `seed`: TFDS shuffles a set when
    it writes it. ValueError if splits overlap.
    Sets of images of one size, up to 2 GiB in all, are read into memory; others are streamed.
    """
    data_dir = None if data_dir is None else expanded(data_dir)
    manual_dir = None if manual_dir is None else expanded(manual_dir)
    builder = _builder(name, data_dir)
    image_key, label_key = _supervised_keys(builder.info)
    _prepare(builder, manual_dir, download)
    train, validation, test = _choose_splits(
        builder.info,
        (train_split, validation_split, test_split),
        (validation_fraction, test_fraction),
        np.random.default_rng(seed),
    )
    chosen = {"train": train, "validation": validation, "test": test}
    shape = builder.info.features[image_key].shape
    images = sum(_length(pieces) for pieces in chosen.values())
    in_memory = (
        None not in shape
        and shape[-1] in (1, 3)
        and images * np.prod(shape[:2]) * 3 <= IN_MEMORY_BYTES
    )
    read = _read_arrays if in_memory else _read_records
    class_names = tuple(builder.info.features[label_key].names)
    splits = {
        split: read(builder, split, pieces, image_key, label_key)
        for split, pieces in chosen.items()
        if pieces
    }
    return Source(name, class_names, splits["train"], splits.get("validation"), splits.get("test"))


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    import tensorflow_datasets as tfds

    if not _NAME.fullmatch(name):
        raise ValueError(_unknown(name))
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(_unknown(name)) from None
    except AssertionError as error:  # TFDS's word for a version it does not have
        raise ValueError(f"{name}: {error}") from None


def _prepare(builder: Any, manual_dir: str | os.PathLike[str] | None, download: bool) -> None:
    import tensorflow_datasets as tfds

    if builder.is_prepared():
        return
    if manual_dir is None and not download:
        raise ValueError(
            f"{builder.name} is not prepared in {builder.data_dir}: allow the download "
            "(download=True), or give the folder with its source files as manual_dir"
        )
    if manual_dir is not None and not os.path.isdir(manual_dir):
        raise FileNotFoundError(f"manual_dir={os.fspath(manual_dir)!r}: no such folder")
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:
        raise ValueError(f"{builder.name} cannot be prepared: {error}") from error


def _unknown(name: str) -> str:
    if os.path.isdir(name):
        return f"source {name!r} is a folder: write folder:{name}"
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(name.partition(":")[0].partition("/")[0], known)
    meant = f" (did you mean {', '.join(close)}?)" if close else ""
    return (
        f"unknown source {name!r}{meant}: give digits, folder:PATH, csv:FILE, records:PATH, "
        "idx:PATH or the name of a TensorFlow Datasets image set"
    )


def _supervised_keys(info: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    keys = (info.supervised_keys or ("image", "label"))[:2]  # places365_small has a third
    if len(keys) == 2 and all(key in info.features for key in keys):
        image, label = (info.features[key] for key in keys)
        if (
            isinstance(image, tfds.features.Image)
            and isinstance(label, tfds.features.ClassLabel)
            and image.np_dtype == np.uint8
        ):
            return keys
    raise ValueError(f"{info.name} is no set of 8-bit images with one class each: {info.features}")


def _choose_splits(
    info: Any,
    given: tuple[str | None, str | None, str | None],
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """Return the records of train, validation and test; [] where there is no such split."""
    train, validation, test = (_pieces(spec, info) if spec else [] for spec in given)
    validation_fraction, test_fraction = fractions
    held_out = 0
    if not train:
        train = _pieces("train", info)
    if not test and "test" in info.splits and info.name not in UNLABELLED_TEST:
        test = _pieces("test", info)
    if not test and "validation" in info.splits:
        whole = _pieces("validation", info)
        test = [] if _overlap(whole, validation) or _overlap(whole, train) else whole
    if not test:
        train, test = _hold_out(train, test_fraction, rng)
        held_out += len(test)
    if not validation and "validation" in info.splits:
        whole = _pieces("validation", info)
        validation = [] if _overlap(whole, test) or _overlap(whole, train) else whole
    if not validation:
        train, validation = _hold_out(train, validation_fraction, rng)
        held_out += len(validation)
    if held_out and info.disable_shuffling:
        raise ValueError(
            f"{info.name} is not shuffled when it is written, so a slice may hold few of its "
            "classes: name train_split, validation_split and test_split"
        )
    named = {"train_split": train, "validation_split": validation, "test_split": test}
    for a, b in itertools.combinations(named, 2):
        if _overlap(named[a], named[b]):
            raise ValueError(
                f"{a} {_spec(named[a])} and {b} {_spec(named[b])} of {info.name} share images: "
                "name splits that do not overlap"
            )
    return train, validation, test


def _pieces(spec: str, info: Any) -> list[Piece]:
    import tensorflow_datasets as tfds

    try:
        parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(info.splits)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{info.name} has no split {spec!r} (its splits: {', '.join(info.splits)}): {error}"
        ) from None
    pieces = []
    for part in parts:  # None is the beginning or the end
        stop = info.splits[part.splitname].num_examples if part.to is None else part.to
        pieces.append((part.splitname, part.from_ or 0, stop))
    if _length(pieces) <= 0:
        raise ValueError(f"split {spec!r} of {info.name} has no images")
    return pieces


def _hold_out(
    pieces: list[Piece], fraction: float, rng: np.random.Generator
) -> tuple[list[Piece], list[Piece]]:
    size = _length(pieces)
    count = int(size * fraction + 0.5)
    if fraction and not 0 < count < size:
        raise ValueError(f"cannot hold {fraction:g} of {size} images out of {_spec(pieces)}")
    start = int(rng.integers(size - count + 1))
    rest = between(pieces, 0, start) + between(pieces, start + count, size)
    return rest, between(pieces, start, start + count)


def _length(pieces: list[Piece]) -> int:
    return sum(stop - start for _, start, stop in pieces)


def _overlap(some: list[Piece], others: list[Piece]) -> bool:
    return any(a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2]) for a in some for b in others)


def _spec(pieces: list[Piece]) -> str:
    return "+".join(f"{name}[{start}:{stop}]" for name, start, stop in pieces)


def _read_arrays(
    builder: Any, name: str, pieces: list[Piece], image_key: str, label_key: str
) -> Split:
    examples = builder.as_dataset(split=_spec(pieces), batch_size=-1, shuffle_files=False)
    images, labels = examples[image_key].numpy(), examples[label_key].numpy()
    if labels.min() < 0:
        raise ValueError(f"{builder.name}: {_spec(pieces)} has images without a label")
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    return Split(name, len(labels), labels=labels.astype(np.int32), images=images)


def _read_records(
    builder: Any, name: str, pieces: list[Piece], image_key: str, label_key: str
) -> Split:
    import tensorflow_datasets as tfds

    spec = _spec(pieces)
    if builder.info.file_format is not tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"{builder.name} is prepared as {builder.info.file_format.value}, and images of "
            "varying size are read from tfrecord files"
        )

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Undecoded, so that a shuffle buffer holds files and not pixels.
        example = builder.info.features.deserialize_example(
            record, decoders={image_key: tfds.decode.SkipDecoding()}
        )
        label = example[label_key]
        tf.debugging.assert_non_negative(
            label, f"{builder.name}: {spec} has images without a label"
        )
        return example[image_key], label

    shards = tuple(
        Shard(os.fspath(part.filename), part.skip, part.skip + part.take)
        for part in builder.info.splits[spec].file_instructions
    )
    return Split(name, _length(pieces), records=Records(shards, parse, builder.info.full_name))

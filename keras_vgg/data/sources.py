"""The forms of source: digits, class folders, tables, records, IDX files, TensorFlow Datasets."""

from __future__ import annotations

import gzip
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np

from keras_vgg.data import catalog, records
from keras_vgg.data.decode import BitDepth
from keras_vgg.data.folders import load_folder
from keras_vgg.data.folds import check_fold, with_fold
from keras_vgg.data.hold_out import hold_out
from keras_vgg.data.inspection import without_bad_images
from keras_vgg.data.split import Source, Split, labels_of
from keras_vgg.data.tables import load_table
from keras_vgg.image_paths import expanded


def load_source(
    spec: str,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
    on_bad_image: str = "error",
    bit_depth: BitDepth = "16",
    columns: str = "",
    group_pattern: str | None = None,
    folds: int = 0,
    fold: int = 0,
) -> Source:
    """Open a data set.

    `spec` is one of

    - "digits": scikit-learn's 1,797 handwritten digits, 8 x 8;
    - "folder:PATH": a folder per class, or such folders in train/, val/ (or valid/, validation/)
      and test/, whatever their case (`training/` and `testing/` too);
      without train/ a test split is held out, with it test/ is the test split or there is none;
    - "csv:FILE": a table of paths and labels, see `tables.load_table`;
    - "records:PATH": what `records.pack` wrote, with the splits that were packed;
    - "idx:PATH": MNIST's four files, gzipped or not, and if it likes a classes.txt, a name a line;
    - the name of a TensorFlow Datasets image set, such as "fashion_mnist" or "imagenet2012":
      `catalog.load` says which splits it uses and what `data_dir`, `manual_dir`, `download` and
      the `*_split`s do.

    `test_fraction` of the images is held out where a test split has to be made, and
    `validation_fraction` of the remaining training images where there is no validation split:
    never of the test split, the same share of each class (of TFDS, see there), decided by `seed`
    alone. A fraction of 0 makes none.
    `on_bad_image` is for files and records. "error": a damaged image stops what reads it, see
    `raise_for_bad_images`. "skip": every image is decoded once, now, and bad ones are left out,
    with one line on stderr; more than a tenth is a ValueError. "skip_rows": only the rows of a
    table that cannot be used are left out.
    `bit_depth` says what 16-bit files become, see `data.decode`.
    `columns` names the columns of a table, such as "path=file,label=diagnosis".
    `group_pattern` is for folders and tables: a regular expression on an image's path, relative to
    the folder or as in the table. What its first parenthesis matches (without one: what it matches)
    is the image's group, such as a patient. No split that is drawn divides a group.
    With `folds`, the test split is number `fold` of so many folds, see `folds.with_fold`.
    ValueError or FileNotFoundError, naming the thing, for whatever else is wrong.

    Example:
        ```python
        from keras_vgg import load_source

        source = load_source("digits", test_fraction=0.2, seed=0)
        print(source.train.size, source.validation.size, source.test.size)  # 1293 145 359
        print(source.train.images.shape, source.class_names[source.train.labels[0]])
        ```
    """
    _check_fractions(validation_fraction, test_fraction)
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
    check_fold(folds, fold)
    form = spec.partition(":")[0]
    _check_options(spec, on_bad_image, bit_depth, columns, group_pattern)
    held_out = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    if folds:
        held_out = dict.fromkeys(held_out, 0.0)
    if spec == "digits" or form in _PATH_FORMS:
        if train_split or validation_split or test_split:
            raise ValueError(
                f"source {spec!r} takes no train_split, validation_split or test_split: "
                "only TensorFlow Datasets have named splits"
            )
        source = _without_named_splits(
            spec,
            **held_out,
            seed=seed,
            on_bad_image=on_bad_image,
            columns=columns,
            group_pattern=group_pattern,
        )
    else:
        source = catalog.load(
            spec,
            **held_out,
            seed=seed,
            data_dir=data_dir,
            manual_dir=manual_dir,
            download=download,
            train_split=train_split,
            validation_split=validation_split,
            test_split=test_split,
        )
    if on_bad_image == "skip":
        source = _without_bad_records(source)
    if folds:
        source = with_fold(source, folds, fold, validation_fraction, seed)
    splits = source.splits()
    return replace(source, **{n: replace(s, bit_depth=bit_depth) for n, s in splits.items()})


def without_decoding(spec: str, on_bad_image: str) -> str:
    """Return the `on_bad_image` that leaves out the same rows of a table, and no image."""
    return "skip_rows" if on_bad_image == "skip" and spec.startswith("csv:") else "error"


_PATH_FORMS = ("folder", "csv", "idx", "records")


def _check_fractions(validation_fraction: float, test_fraction: float) -> None:
    for name, fraction in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}_fraction={fraction} must be at least 0 and below 1")


def _check_options(
    spec: str, on_bad_image: str, bit_depth: str, columns: str, group_pattern: str | None
) -> None:
    """Raise ValueError for an option with a wrong value, or that this kind of source lacks."""
    if bit_depth not in get_args(BitDepth):
        raise ValueError(f"bit_depth={bit_depth!r} must be one of {', '.join(get_args(BitDepth))}")
    if on_bad_image not in ("error", "skip", "skip_rows"):
        raise ValueError(f'on_bad_image={on_bad_image!r} must be "error", "skip" or "skip_rows"')
    form, colon, path = spec.partition(":")
    if on_bad_image == "skip_rows" and form != "csv":
        raise ValueError(
            f"on_bad_image='skip_rows' is for a table: source {spec!r} is not csv:FILE"
        )
    if columns and form != "csv":
        raise ValueError(f"columns={columns!r} is for a table: source {spec!r} is not csv:FILE")
    if group_pattern and form not in ("folder", "csv"):
        raise ValueError(
            f"group_pattern={group_pattern!r} is for folder:PATH and csv:FILE: source {spec!r} has "
            "no paths to match"
        )
    if form in _PATH_FORMS and not (colon and path):
        raise ValueError(f"source {spec!r} needs a path, as in {form}:/data/flowers")


def _without_named_splits(
    spec: str,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    on_bad_image: str,
    columns: str,
    group_pattern: str | None,
) -> Source:
    """Open the digits or a source with a path; bad records are not skipped yet."""
    form, _, path = spec.partition(":")
    rng = np.random.default_rng(seed)
    if spec == "digits":
        return _with_held_out(spec, _digits(), _DIGITS, validation_fraction, test_fraction, rng)
    if form == "records":
        return records.load(path)
    root = expanded(path)
    if form == "csv":
        return load_table(
            spec,
            root,
            columns=columns,
            group_pattern=group_pattern,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            seed=seed,
            skip_bad_rows=on_bad_image != "error",
            skip_bad_images=on_bad_image == "skip",
        )
    if not root.exists():
        raise FileNotFoundError(f"source {spec!r}: there is no folder {root}")
    if not root.is_dir():
        raise ValueError(f"source {spec!r}: {root} is not a folder")
    if form == "idx":
        return _idx(spec, root, validation_fraction, rng)
    return load_folder(
        spec,
        root,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        skip_bad=on_bad_image == "skip",
        group_pattern=group_pattern,
    )


_DIGITS = tuple("0123456789")


def _digits() -> Split:
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    digits = load_digits()
    assert isinstance(digits, Bunch), "without return_X_y"
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _grey_split("digits", grey, digits.target)


def _grey_split(name: str, grey: np.ndarray, labels: np.ndarray) -> Split:
    images = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    return Split(name, len(labels), labels=labels.astype(np.int32), images=images)


def _with_held_out(
    spec: str,
    everything: Split,
    class_names: tuple[str, ...],
    validation_fraction: float,
    test_fraction: float,
    rng: np.random.Generator,
) -> Source:
    train, test = hold_out(everything, test_fraction, "test", rng)
    train, validation = hold_out(train, validation_fraction, "validation", rng)
    return Source(spec, class_names, replace(train, name="train"), validation, test)


def _without_bad_records(source: Source) -> Source:
    splits = {
        name: without_bad_images(split)
        for name in ("train", "validation", "test")
        if (split := getattr(source, name)) is not None and split.records is not None
    }
    return replace(source, **splits)


# --- IDX files -------------------------------------------------------------------------------


def _idx(spec: str, root: Path, validation_fraction: float, rng: np.random.Generator) -> Source:
    train, test = (
        _idx_split(root, name, prefix) for name, prefix in (("train", "train"), ("test", "t10k"))
    )
    listing = root / "classes.txt"
    if listing.is_file():
        try:
            lines = listing.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{listing} is not UTF-8: {error}; save it as UTF-8") from None
        class_names = tuple(line.strip() for line in lines if line.strip())
    else:
        class_names = tuple(str(label) for label in range(labels_of(train).max() + 1))
    for split in (train, test):
        largest = labels_of(split).max()
        if largest >= len(class_names):
            raise ValueError(
                f"{root}: label {largest} in the {split.name} labels is out of range: "
                f"there are {len(class_names)} classes"
            )
    train, validation = hold_out(train, validation_fraction, "validation", rng)
    return Source(spec, class_names, train, validation, test)


def _idx_split(root: Path, name: str, prefix: str) -> Split:
    images = _idx_array(root, f"{prefix}-images-idx3-ubyte", 3)
    labels = _idx_array(root, f"{prefix}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{root}: {len(images)} {name} images but {len(labels)} {name} labels")
    if not images.size:
        raise ValueError(f"{root}: there are no {name} images")
    return _grey_split(name, images, labels)


def _idx_array(root: Path, name: str, rank: int) -> np.ndarray:
    """Read uint8 [n, ...] of `rank` axes: magic number, big-endian sizes, then the bytes."""
    path = next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{root} has neither {name} nor {name}.gz")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    magic = 0x0800 + rank  # 0x08 is the code of unsigned bytes
    header_bytes = 4 * (1 + rank)
    header = np.frombuffer(content[:header_bytes].ljust(header_bytes, b"\0"), dtype=">u4")
    if header[0] != magic:
        raise ValueError(
            f"{path} is not an IDX file of {rank} axes: "
            f"its first bytes are {header[0]:#010x}, not {magic:#010x}"
        )
    shape = tuple(int(side) for side in header[1:])
    expected = int(np.prod(shape, dtype=object))
    body = len(content) - header_bytes
    if body != expected:
        raise ValueError(f"{path} holds {body} bytes of data, and its header says {expected}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)

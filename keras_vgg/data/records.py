"""Sources packed in TFRecord shards: written once, resumed after a stop, opened, and verified."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vgg.augment import rescale
from keras_vgg.console import progress_bars
from keras_vgg.data.decode import decode, decode_16_bit, is_16_bit, reason
from keras_vgg.data.equal import EqualImages, equal_in
from keras_vgg.data.inspection import find_bad_images
from keras_vgg.data.left_out import LeftOut, printable
from keras_vgg.data.options import untuned
from keras_vgg.data.split import Records, Shard, Source, Split, labels_of, pictures_of
from keras_vgg.files import remove_leftovers, sha256_of, whole_file, whole_names
from keras_vgg.image_paths import expanded

_FORMAT = {"format": "keras_vgg records", "version": 1}
_MANIFEST, _PROGRESS = "manifest.json", "progress.json"
_SPLITS = ("train", "validation", "test")
_FIELDS = {"source": str, "class_names": list, "splits": dict}
_SPLIT_FIELDS = {"images": int, "fingerprint": str, "class_counts": list, "shards": list}
_QUALITY = 95  # of a JPEG that is stored smaller
_SHARD_FIELDS = {"file": str, "images": int, "bytes": int, "sha256": str}


def parse(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the encoded image, string [], and the label, int32 [], of a record, string []."""
    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    example = tf.io.parse_single_example(serialized, features)
    return example["image"], tf.cast(example["label"], tf.int32)


def pack(
    source: Source,
    out: str | os.PathLike[str],
    *,
    shard_images: int = 1024,
    max_side: int | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Write every split of the source to `out` in shards of `shard_images`; return the manifest.

    Files are stored byte for byte, arrays as PNG, in one fixed random order so that every shard is
    mixed; records as they are, in their order. Each image is decoded first, so that a pack holds
    no damaged one. An image whose longest side is more than `max_side` is resized to that, with
    antialiasing, and stored upright, a JPEG as a JPEG of quality 95 and any other file as a PNG.
    The same call continues one that was stopped: it hashes the finished shards and leaves them
    alone. The same source is one of the same class names, sizes and fingerprints, wherever it lies;
    a file of a finished shard that has another size now is refused. One call at a time. The
    manifest also holds what the source left out, its equal images, and the group of each image, for
    the inventory of a training and the intervals of `evaluate`. If `out` is finished already, one
    line on stderr says so; the groups, and what the source left out, are brought up to date.

    Raises:
        ValueError: an image that cannot be decoded or has no label among the class names, named;
            the images may have several labels; `out` holds something else, or the pack of another
            source, which is left as it is.
        OSError: `out` cannot be written. The finished shards stay.
    """
    out = expanded(out)
    if source.several_labels:
        raise ValueError(
            f"{source.name} has several labels an image, and a pack holds one for each image; "
            "train from the source itself"
        )
    splits = {name: split for name in _SPLITS if (split := getattr(source, name)) is not None}
    manifest = _plan(source, splits, shard_images, max_side)
    if (out / _MANIFEST).exists():
        stored = _read(out / _MANIFEST)
        _refuse_another(out, stored, manifest)
        entries = {entry["file"]: entry for _, entry in _shard_files(out, stored)}
        for name, split in splits.items():
            for piece in _pieces(split, manifest["splits"][name]["shards"]):
                _refuse_changed(out, piece, entries[piece.file])
        updated = _with_remarks(stored, source, splits)
        done = "nothing to do"
        if json.dumps(updated) != json.dumps(stored):
            _write_json(out / _MANIFEST, updated, indent=1)
            done = "its groups and its list of left-out images are updated"
        (out / _PROGRESS).unlink(missing_ok=True)
        print(f"{out} already holds this pack: {done}", file=sys.stderr)
        return updated
    done = _claim(out, manifest)
    classes = len(source.class_names)
    with progress_bars(verbose) as bars:
        task = bars.add_task("packing", total=sum(split.size for split in splits.values()))
        for name, split in splits.items():
            fields = manifest["splits"][name]
            for piece in _pieces(split, fields["shards"]):
                file = piece.file
                if _is_whole(out / file, done.get(file)):
                    _refuse_changed(out, piece, done[file])
                    bars.advance(task, piece.stop - piece.first)
                else:
                    sizes = {"file_sizes": piece.file_sizes()}
                    images = _images(piece, classes, max_side)
                    advance = partial(bars.advance, task)
                    done[file] = sizes | _write_shard(out / file, images, classes, advance)
                    _write_json(out / _PROGRESS, {**manifest, "done": done})
            counts = np.zeros(classes, dtype=np.int64)
            for shard in fields["shards"]:
                entry = done[shard["file"]]
                counts += entry["class_counts"]
                shard |= {"bytes": entry["bytes"], "sha256": entry["sha256"]}
                shard["file_sizes"] = entry.get("file_sizes")
            fields["class_counts"] = counts.tolist()
    manifest = _with_remarks(manifest, source, splits)
    manifest["equal"] = [asdict(images) for images in equal_in(source)]
    _write_json(out / _MANIFEST, manifest, indent=1)
    (out / _PROGRESS).unlink()
    return manifest


def _with_remarks(
    manifest: dict[str, Any], source: Source, splits: dict[str, Split]
) -> dict[str, Any]:
    """Return a manifest with what the source left out, and with the group of each image.

    The records do not say where their images come from, so that this cannot be found later. Groups
    that the source does not have are kept.
    """
    stated = copy.deepcopy(manifest)
    stated["left_out"] = [asdict(reason) for reason in source.left_out]
    for name, split in splits.items():
        if split.groups is not None:
            order = _order(split)
            groups = split.groups if order is None else split.groups[order]
            stated["splits"][name]["groups"] = _groups_as_json(groups)
    return stated


def _write_shard(
    file: Path, images: Iterable[tuple[bytes, int]], classes: int, advance: Callable[[], None]
) -> dict[str, Any]:
    """Write one shard, and return its size, its hash and its images by class."""
    counts = np.zeros(classes, dtype=np.int64)
    # Bytes, for names that are not UTF-8; TensorFlow annotates text.
    with (
        _whole(file) as path,
        tf.io.TFRecordWriter(
            os.fsencode(path)  # pyright: ignore[reportArgumentType]
        ) as writer,
    ):
        for encoded, label in images:
            writer.write(_serialize(encoded, label))
            counts[label] += 1
            advance()
    return {
        "bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        "class_counts": counts.tolist(),
    }


def load(path: str | os.PathLike[str]) -> Source:
    """Open what `pack` wrote. The shards' sizes are checked; `verify` checks their contents.

    Raises:
        FileNotFoundError: no such folder, no manifest in it, or a shard of it is missing.
        ValueError: the manifest is damaged or not of this version, or a shard is cut or too long.
    """
    root = expanded(path)
    manifest = _open(root)
    shards = {shard["file"]: file for file, shard in _shard_files(root, manifest)}
    splits = {}
    for name, fields in manifest["splits"].items():
        listed = tuple(Shard(str(shards[s["file"]]), 0, s["images"]) for s in fields["shards"])
        identity = " ".join(shard["sha256"] for shard in fields["shards"])
        records = Records(listed, parse, identity)
        groups = _groups_of(root / _MANIFEST, fields)
        splits[name] = Split(name, fields["images"], records=records, groups=groups)
    left_out, equal = _remarks(root / _MANIFEST, manifest)
    return Source(
        f"records:{os.fspath(path)}",
        tuple(manifest["class_names"]),
        splits["train"],
        splits.get("validation"),
        splits.get("test"),
        left_out,
        equal,
        {name: fields["class_counts"] for name, fields in manifest["splits"].items()},
    )


def _remarks(
    file: Path, manifest: dict[str, Any]
) -> tuple[tuple[LeftOut, ...], tuple[EqualImages, ...]]:
    """Return what the source left out, and its equal images; none of packs of earlier versions."""
    try:
        left_out = tuple(LeftOut(**reason) for reason in manifest.get("left_out", ()))
        equal = tuple(EqualImages(**images) for images in manifest.get("equal", ()))
    except TypeError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    return left_out, equal


def _groups_as_json(groups: np.ndarray) -> dict[str, Any]:
    """Return the groups of images, names or None: each name once, and a number for each image."""
    numbers: dict[Any, int] = {}
    of_images = [numbers.setdefault(group, len(numbers)) for group in groups.tolist()]
    return {"names": list(numbers), "of_images": " ".join(map(str, of_images))}


def _groups_of(file: Path, fields: dict[str, Any]) -> np.ndarray | None:
    """Return the groups of a split's images; None of a pack without, or of an earlier version."""
    stored = fields.get("groups")
    if stored is None:
        return None
    try:
        names = stored["names"]
        groups = np.array([names[int(i)] for i in stored["of_images"].split()], dtype=object)
    except (TypeError, AttributeError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{file} is damaged: its groups cannot be read ({error})") from error
    if len(groups) != fields["images"]:
        raise ValueError(f"{file} is damaged: it has {len(groups)} groups of {fields['images']}")
    return groups


def verify(path: str | os.PathLike[str]) -> None:
    """Read every shard, and require the contents that `pack` wrote.

    Raises:
        ValueError: a shard has other contents; the error names the first one.
    """
    root = expanded(path)
    for file, shard in _shard_files(root, _open(root)):
        if sha256_of(file) != shard["sha256"]:
            raise ValueError(f"{file} is damaged: its SHA-256 is not the manifest's")


# --- the manifest ----------------------------------------------------------------------------


def _plan(
    source: Source, splits: dict[str, Split], shard_images: int, max_side: int | None
) -> dict[str, Any]:
    """Return the manifest before there is a shard: nothing is counted or hashed."""
    if shard_images < 1:
        raise ValueError(f"shard_images={shard_images} must be at least 1")
    if max_side is not None and max_side < 1:
        raise ValueError(f"max_side={max_side} must be at least 1 pixel")
    manifest = {**_FORMAT, "source": source.name, "class_names": list(source.class_names)}
    if max_side is not None:
        manifest["max_side"] = max_side
    manifest["splits"] = {}
    for name, split in splits.items():
        if split.size == 0:
            raise ValueError(f"split {name!r} of {source.name} has no images")
        starts = range(0, split.size, shard_images)
        shards = [
            {
                "file": f"{name}-{i:05}-of-{len(starts):05}.tfrecord",
                "images": min(shard_images, split.size - start),
                "bytes": 0,
                "sha256": "",
            }
            for i, start in enumerate(starts)
        ]
        fields = {"images": split.size, "fingerprint": split.fingerprint()}
        manifest["splits"][name] = {**fields, "class_counts": [], "shards": shards}
    return manifest


def _refuse_another(out: Path, stored: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ValueError if two manifests do not hold the same images in the same shards."""
    parts = [_parts(manifest) for manifest in (stored, new)]
    differing = [key for key in {**parts[0], **parts[1]} if parts[0].get(key) != parts[1].get(key)]
    if differing:
        raise ValueError(
            f"{out} holds a pack of another source ({stored['source']}) or of other shards: "
            f"{', '.join(differing)} differ; choose another folder"
        )


def _parts(manifest: dict[str, Any]) -> dict[str, Any]:
    parts = {"class names": manifest["class_names"], "max_side": manifest.get("max_side")}
    for name, split in manifest["splits"].items():
        parts[f"{name} size"] = split["images"]
        parts[f"{name} fingerprint"] = split["fingerprint"]
        parts[f"{name} shards"] = [(shard["file"], shard["images"]) for shard in split["shards"]]
    return parts


def _claim(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Make `out`, or go on with the same plan; return what is recorded of the finished shards."""
    done: dict[str, Any] = {}
    if (out / _PROGRESS).exists():
        stored = _read(out / _PROGRESS)
        _refuse_another(out, stored, plan)
        done = stored.get("done", {})
    elif out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder")
    elif out.exists() and whole_names(out):
        raise ValueError(f"{out} is not empty and holds no pack; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    _write_json(out / _PROGRESS, {**plan, "done": done})
    return done


def _open(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    if not (root / _MANIFEST).is_file():
        begun = (root / _PROGRESS).is_file()
        reason = ": packing was not finished: run it again" if begun else " and is no pack"
        raise FileNotFoundError(f"{root} has no {_MANIFEST}{reason}")
    return _read(root / _MANIFEST)


def _read(path: Path) -> dict[str, Any]:
    """Read a manifest, or the manifest in a progress file, and require all its fields."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    stated = {key: manifest.get(key) for key in _FORMAT} if isinstance(manifest, dict) else None
    if stated != _FORMAT:
        raise ValueError(f"{path} is not of {_FORMAT}: it states {stated}")
    _require(path, "the manifest", manifest, _FIELDS)
    _require(path, "splits", manifest["splits"], {"train": dict})
    for name, split in manifest["splits"].items():
        if name not in _SPLITS:
            raise ValueError(f"{path}: unknown split {name!r}")
        _require(path, name, split, _SPLIT_FIELDS)
        for shard in split["shards"]:
            _require(path, f"a shard of {name}", shard, _SHARD_FIELDS)
        listed = sum(shard["images"] for shard in split["shards"])
        if listed != split["images"]:
            raise ValueError(f"{path}: {name} has {split['images']} images, its shards {listed}")
    return manifest


def _require(path: Path, what: str, fields: Any, kinds: dict[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(fields, dict) or not isinstance(fields.get(name), kind):
            raise ValueError(f"{path}: {what} lacks {name!r}, or it is no {kind.__name__}")


def _shard_files(root: Path, manifest: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (path, entry) of each shard, and require the size that the entry states."""
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = root / shard["file"]
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, and the manifest lists it")
            size = path.stat().st_size
            if size != shard["bytes"]:
                raise ValueError(f"{path} has {size} bytes, and the manifest says {shard['bytes']}")
            yield path, shard


# --- the images ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Piece:
    """The images of a split that a shard holds: `first` to `stop` of an order.

    Attributes:
        order: A permutation of the split; None: its own order, that of records.
        file: The shard's name.
    """

    split: Split
    order: np.ndarray | None
    first: int
    stop: int
    file: str

    def images(self) -> Split:
        if self.order is None:
            return self.split.between(self.first, self.stop)
        return self.split.take(self.order[self.first : self.stop])

    def file_sizes(self) -> str | None:
        """Return a digest of the sizes of the images' files; None without files, or if one is gone.

        Reading the images names that one.
        """
        try:
            return self.images().stamp(times=False)
        except FileNotFoundError:
            return None


def _pieces(split: Split, shards: Iterable[dict[str, Any]]) -> Iterator[_Piece]:
    order = _order(split)
    first = 0
    for shard in shards:
        stop = first + shard["images"]
        yield _Piece(split, order, first, stop, shard["file"])
        first = stop


def _order(split: Split) -> np.ndarray | None:
    """Return the order of a split's images in its shards; None: records stay in theirs."""
    return None if split.labels is None else np.random.default_rng(0).permutation(split.size)


def _refuse_changed(out: Path, piece: _Piece, entry: dict[str, Any]) -> None:
    """Raise ValueError if a file in a finished shard has another size than when it was packed."""
    sizes = entry.get("file_sizes")  # shards of earlier versions have none
    if sizes is not None and sizes != piece.file_sizes():
        raise ValueError(
            f"{out / piece.file} holds images of {piece.split.name} whose files have changed "
            f"since: delete {out}, or choose another folder"
        )


def _images(piece: _Piece, classes: int, max_side: int | None) -> Iterator[tuple[bytes, int]]:
    """Yield (encoded image, label) of a piece; each must decode."""
    split, order = piece.split, piece.order
    images = _dataset(piece.images(), max_side).as_numpy_iterator()
    for position in range(piece.first, piece.stop):
        index = position if order is None else order[position]
        image = f"image {index} of split {split.name!r}"
        if split.paths is not None:
            image = printable(split.paths[index])
        try:
            encoded, label, *_ = next(images)
        except tf.errors.OpError as error:  # the map keeps the order, so it is this image's
            bad = find_bad_images(split.take(np.array([index]))) if split.paths is not None else []
            raise ValueError(f"{image}: {bad[0][1] if bad else reason(error)}") from error
        except StopIteration:
            raise ValueError(f"{image} is missing: its files hold fewer records") from None
        if not 0 <= label < classes:
            raise ValueError(f"{image} has label {label}, and there are {classes} classes")
        yield encoded, int(label)


def _dataset(split: Split, max_side: int | None) -> tf.data.Dataset:
    if split.records is not None:
        items = split.records.dataset()  # no shard before is read
    else:
        with tf.device("CPU"):  # arrays would go to the GPU's memory
            pair = (pictures_of(split), labels_of(split))
            items = tf.data.Dataset.from_tensor_slices(pair)

    def decoded(item: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if split.paths is not None:
            item = tf.io.read_file(item)
        elif split.images is not None:
            item = tf.io.encode_png(item)
        if max_side is not None:  # which decodes the image, too
            return _shrunk(item, tf.constant(max_side)), label
        # The sides are a use of the image, without which the decoding would be pruned away.
        return item, label, tf.shape(decode(item))

    items = items.map(decoded, num_parallel_calls=tf.data.AUTOTUNE)
    return untuned(items.prefetch(tf.data.AUTOTUNE))


@tf.function  # traced once, not for each shard
def _shrunk(encoded: tf.Tensor, max_side: tf.Tensor) -> tf.Tensor:
    """Return the bytes of an image whose longest side is at most `max_side`; unchanged if it is."""
    image = decode(encoded)

    def deep() -> tf.Tensor:  # bit_depth, which a recipe states, decides what 16 bits mean
        values = rescale(decode_16_bit(encoded), max_side, resize="pad") + 0.5
        return tf.io.encode_png(tf.cast(values, tf.uint16))

    def usual() -> tf.Tensor:
        pixels = tf.cast(rescale(image, max_side, resize="pad") + 0.5, tf.uint8)
        return tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: tf.io.encode_jpeg(pixels, quality=_QUALITY),
            lambda: tf.io.encode_png(pixels),
        )

    def smaller() -> tf.Tensor:
        return tf.cond(is_16_bit(encoded), deep, usual)

    return tf.cond(tf.reduce_max(tf.shape(image)[:2]) > max_side, smaller, lambda: encoded)


def _serialize(encoded: bytes, label: int) -> bytes:
    features = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(
        deterministic=True  # a resumed pack has the bytes of one that was not stopped
    )


# --- files -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to: the file appears at `path` as a whole, or not at all."""
    try:
        with whole_file(path) as partial:
            yield partial
    except tf.errors.OpError as error:  # TensorFlow's word for a full disk
        raise OSError(f"{path} cannot be written: {reason(error)}") from error


def _write_json(path: Path, value: dict[str, Any], indent: int | None = None) -> None:
    with _whole(path) as partial:
        partial.write_text(json.dumps(value, indent=indent) + "\n", encoding="utf-8")


def _is_whole(path: Path, entry: dict[str, Any] | None) -> bool:
    return entry is not None and path.is_file() and sha256_of(path) == entry["sha256"]

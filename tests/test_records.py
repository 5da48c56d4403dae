"""keras_vgg.data.records: what a pack holds, going on after a stop, and every refusal."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg.data import Source, Split, load_source, records, take_inventory
from keras_vgg.data.decode import decode_16_bit, is_16_bit
from keras_vgg.data.split import Records, Shard

SPLITS = ("train", "validation", "test")
EXTENSIONS = ("jpg", "png", "gif", "bmp", "webp")


def write_image(path: Path, seed: int, side: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side + 2, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def truncate(path: Path) -> None:
    write_image(path, 0, side=64)
    path.write_bytes(path.read_bytes()[:-2000])


def folder_of(count: int, root: Path) -> Path:
    """Images of the classes a and b, two to one, no two alike, of five formats."""
    for i in range(count):
        write_image(root / f"{'aab'[i % 3]}/{i:03}.{EXTENSIONS[i % 5]}", i, 8 + i % 4)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """10 images of class a and 5 of class b: 9 are in train, 3 in validation, 3 in test."""
    return folder_of(15, tmp_path / "images")


@pytest.fixture
def larger_folder(tmp_path: Path) -> Path:
    """20 images of class a and 10 of class b: 18 are in train, 6 in validation, 6 in test."""
    return folder_of(30, tmp_path / "images")


def open_folder(folder: Path, **options: Any) -> Source:
    return load_source(f"folder:{folder}", validation_fraction=0.25, test_fraction=0.2, **options)


def in_memory(count: int, name: str = "train") -> Split:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 5, 4, 3), dtype=np.uint8)
    return Split(name, count, labels=np.arange(count, dtype=np.int32) % 3, images=images)


def only(train: Split) -> Source:
    return Source("numbers", ("x", "y", "z"), train, None, None)


def contents(split: Split) -> list[tuple[bytes, int]]:
    return [(encoded, int(label)) for encoded, label in split.records.dataset().as_numpy_iterator()]


def written(split: Split) -> np.ndarray:
    return np.random.default_rng(0).permutation(split.size)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def refused(source: Source, out: Path, message: str, **options: Any) -> None:
    """`pack` refuses and touches nothing."""
    before = files(out)
    with pytest.raises(ValueError, match=message):
        records.pack(source, out, **options)
    assert files(out) == before


class Stop(Exception):
    """What the tests stop a pack with."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """stop_after(n): writing record n (from 0) raises Stop, until stop_after(-1)."""
    serialize = records._serialize
    left = -1

    def counting(encoded: bytes, label: int) -> bytes:
        nonlocal left
        left -= 1
        if left == -1:
            raise Stop
        return serialize(encoded, label)

    def stop(count: int) -> None:
        nonlocal left
        left = count if count >= 0 else 10**9

    stop(-1)
    monkeypatch.setattr(records, "_serialize", counting)
    return stop


# --- what a pack holds -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_keeps_the_groups(tmp_path: Path) -> None:
    """Patients on two sides are named, and intervals are over patients, as of the table."""
    patients = ["p0", "p1", "p2", "p3"]
    lines = ["path,label,patient,split"]
    for number in range(24):
        write_image(tmp_path / f"{number}.png", number)
        part = SPLITS[number % 3]
        lines.append(f"{number}.png,{'ab'[number % 2]},{patients[number % 4]},{part}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = load_source(f"csv:{tmp_path / 't.csv'}")
    records.pack(source, tmp_path / "pack", shard_images=3)
    packed = load_source(f"records:{tmp_path / 'pack'}")
    assert take_inventory(packed).shared_groups == take_inventory(source).shared_groups != ()
    of_file = dict(zip(map(bytes, map(Path.read_bytes, map(Path, source.test.paths))),
                       source.test.groups, strict=True))  # fmt: skip
    found = [of_file[encoded] for encoded, _ in contents(packed.test)]
    assert found == packed.test.groups.tolist()
    assert packed.test.between(2, 5).groups.tolist() == found[2:5]
    assert packed.test.take(np.array([4, 1])).groups.tolist() == [found[4], found[1]]
    assert packed.test.without({0}).groups.tolist() == found[1:]


@pytest.mark.slow
def test_groups_that_are_stated_later_come_into_the_pack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(24):
        place = tmp_path / "all" / ("train", "val", "test")[number % 3] / "ab"[number % 2]
        write_image(place / f"p{number % 4}_{number}.png", number)
    folder, out = f"folder:{tmp_path / 'all'}", tmp_path / "pack"
    records.pack(load_source(folder), out)
    shards = {file: file.read_bytes() for file in out.glob("*.tfrecord")}
    grouped = load_source(folder, group_pattern="(p[0-9])_")
    for source in (grouped, grouped, load_source(folder)):  # the last one loses nothing
        records.pack(source, out)
        groups = load_source(f"records:{out}").test.groups
        assert sorted(groups) == sorted(grouped.test.groups)
    told = [line.partition("pack: ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "its groups and its list of left-out images are updated",
        "nothing to do",
        "nothing to do",
    ]
    assert shards == {file: file.read_bytes() for file in out.glob("*.tfrecord")}


def test_files_are_packed_byte_for_byte_in_a_random_order(folder: Path, tmp_path: Path) -> None:
    source = open_folder(folder)
    records.pack(source, tmp_path / "out", shard_images=6)
    packed = records.load(tmp_path / "out")
    assert packed.class_names == ("a", "b")
    assert packed.name == f"records:{tmp_path / 'out'}"
    for name in SPLITS:
        split, there = getattr(source, name), getattr(packed, name)
        assert (there.name, there.size, there.labels) == (name, split.size, None)
        assert there.records.size == split.size
        expected = [(Path(split.paths[i]).read_bytes(), split.labels[i]) for i in written(split)]
        assert contents(there) == expected
    # In the order of the classes the first shard would have one class only.
    assert {label for _, label in contents(packed.train)[:6]} == {0, 1}


@pytest.mark.slow
def test_larger_images_are_packed_smaller(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 120 * 200 * 3).reshape(120, 200, 3).astype(np.uint8)
    for name, kind in (("a/large.jpg", "JPEG"), ("a/large.png", "PNG"), ("b/turned.jpg", "JPEG")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = Image.Exif()
        tags[0x0112] = 6 if "turned" in name else 1
        Image.fromarray(smooth).save(path, kind, exif=tags)
    write_image(tmp_path / "images/b/small.png", 0, 40)
    options = {"validation_fraction": 0, "test_fraction": 0}
    source = load_source(f"folder:{tmp_path / 'images'}", **options)
    manifest = records.pack(source, tmp_path / "out", max_side=50)
    assert manifest["max_side"] == 50
    records_of = contents(records.load(tmp_path / "out").train)
    packed = dict(zip(written(source.train), records_of, strict=True))
    files = [Path(path) for path in source.train.paths]
    images = {file.name: packed[i][0] for i, file in enumerate(files)}
    assert images["small.png"] == files[[f.name for f in files].index("small.png")].read_bytes()
    opened = {name: Image.open(io.BytesIO(encoded)) for name, encoded in images.items()}
    assert {name: (image.format, image.size) for name, image in opened.items()} == {
        "large.jpg": ("JPEG", (50, 30)),
        "large.png": ("PNG", (50, 30)),
        "turned.jpg": ("JPEG", (30, 50)),
        "small.png": ("PNG", (42, 40)),
    }
    expected = tf.image.resize(smooth, [30, 50], antialias=True)
    assert np.abs(np.asarray(opened["large.png"], float) - expected).max() <= 0.51
    with pytest.raises(ValueError, match="max_side differ; choose another folder"):
        records.pack(source, tmp_path / "out", max_side=60)
    with pytest.raises(ValueError, match="max_side=0 must be at least 1 pixel"):
        records.pack(source, tmp_path / "other", max_side=0)


@pytest.mark.slow
def test_arrays_are_packed_as_png(tmp_path: Path) -> None:
    source = load_source("digits")
    manifest = records.pack(source, tmp_path, shard_images=500)
    packed = records.load(str(tmp_path))
    for name in SPLITS:
        split = getattr(source, name)
        order = written(split)
        encoded, labels = zip(*contents(getattr(packed, name)), strict=True)
        assert all(image.startswith(b"\x89PNG") for image in encoded)
        decoded = [Image.open(io.BytesIO(image)).convert("RGB") for image in encoded]
        np.testing.assert_array_equal(np.stack(decoded), split.images[order])
        np.testing.assert_array_equal(labels, split.labels[order])
    assert [shard["images"] for shard in manifest["splits"]["train"]["shards"]] == [500, 500, 293]


@pytest.mark.slow
def test_records_are_packed_as_they_come(larger_folder: Path, tmp_path: Path) -> None:
    whole = replace(open_folder(larger_folder), validation=None)
    records.pack(whole, tmp_path / "first", shard_images=9)
    first = records.load(tmp_path / "first")
    one, two, *_ = (shard.path for shard in first.train.records.shards)
    # Parts of files, and shards that begin and end within them.
    some = Records((Shard(two, 1, 5), Shard(one, 0, 3), Shard(two, 0, 1)), records.parse)
    expected = contents(first.train)
    expected = expected[10:14] + expected[:3] + expected[9:10]
    source = replace(first, train=Split("train", 8, records=some))
    records.pack(source, tmp_path / "second", shard_images=6)
    second = records.load(tmp_path / "second")
    assert contents(second.train) == expected
    assert contents(second.test) == contents(first.test)
    assert [shard.stop for shard in second.train.records.shards] == [6, 2]


@pytest.mark.slow
def test_manifest(larger_folder: Path, tmp_path: Path) -> None:
    source, out = open_folder(larger_folder), tmp_path / "out"
    manifest = records.pack(source, out, shard_images=7)
    assert manifest == json.loads((out / "manifest.json").read_text())
    assert list(manifest)[:5] == ["format", "version", "source", "class_names", "splits"]
    assert list(manifest)[5:] == ["left_out", "equal"]
    assert (manifest["format"], manifest["version"]) == ("keras_vgg records", 1)
    assert manifest["source"] == source.name
    assert manifest["class_names"] == ["a", "b"]
    assert list(manifest["splits"]) == list(SPLITS)
    listed = ["manifest.json"]
    for name, fields in manifest["splits"].items():
        split = getattr(source, name)
        assert fields["images"] == split.size
        assert fields["fingerprint"] == split.fingerprint()
        assert fields["class_counts"] == np.bincount(split.labels).tolist()
        for shard in fields["shards"]:
            content = (out / shard["file"]).read_bytes()
            listed.append(shard["file"])
            assert shard["bytes"] == len(content)
            assert (out / shard["file"]).stat().st_mode & 0o777 == 0o644
            assert shard["sha256"] == hashlib.sha256(content).hexdigest()
            found = tf.data.TFRecordDataset(str(out / shard["file"])).reduce(0, lambda n, _: n + 1)
            assert shard["images"] == found
    assert sorted(listed) == sorted(files(out))  # no temporary and no progress file is left
    # 20 + 10 images: 0.2 of each class to test, then 0.25 of the rest to validation.
    assert [shard["file"] for shard in manifest["splits"]["train"]["shards"]] == [
        f"train-{i:05}-of-00003.tfrecord" for i in range(3)
    ]
    without_source = json.dumps({**manifest, "source": ""})
    assert str(tmp_path) not in without_source


@pytest.mark.slow
def test_records_count_their_classes(tmp_path: Path) -> None:
    records.pack(only(in_memory(10)), tmp_path / "first")
    source = records.load(tmp_path / "first")
    manifest = records.pack(source, tmp_path / "second", shard_images=4)
    assert manifest["splits"]["train"]["class_counts"] == [4, 3, 3]


@pytest.mark.slow
def test_a_pack_keeps_what_its_source_left_out_and_held_twice(tmp_path: Path) -> None:
    for i in range(12):
        write_image(tmp_path / "images" / f"train/{'aaab'[i % 4]}/{i}.png", i)
    for i, name in ((3, "b"), (20, "a"), (21, "a")):  # the first is a copy
        write_image(tmp_path / "images/test" / name / f"{i}.png", i)
    write_image(tmp_path / "images/train/a/scan.tif", 30)
    source = load_source(f"folder:{tmp_path / 'images'}", validation_fraction=0)
    expected = take_inventory(source)
    assert len(expected.lines()) == 3  # uneven, equal, left out
    records.pack(source, tmp_path / "packed")
    packed = take_inventory(records.load(tmp_path / "packed"))
    assert packed.lines() == expected.lines()
    assert packed.class_counts == expected.class_counts == {"train": [9, 3], "test": [2, 1]}
    records.pack(records.load(tmp_path / "packed"), tmp_path / "again")
    assert take_inventory(records.load(tmp_path / "again")).lines() == expected.lines()


@pytest.mark.slow
def test_records_are_taken_in_any_order(tmp_path: Path) -> None:
    records.pack(only(in_memory(10)), tmp_path, shard_images=4)
    split = records.load(tmp_path).train
    every = contents(split)
    taken = split.take(np.array([7, 0, 7, 3]))
    assert taken.size == 4
    assert contents(taken) == [every[i] for i in (7, 0, 7, 3)]
    assert split.take(np.array([], int)).size == 0


def test_a_split_that_the_source_lacks(tmp_path: Path) -> None:
    records.pack(only(in_memory(5)), tmp_path)
    packed = records.load(tmp_path)
    assert packed.validation is None
    assert packed.test is None


def test_parse_in_eager_mode_and_in_a_graph() -> None:
    serialized = tf.constant(records._serialize(b"bytes", 3))
    for function in (records.parse, tf.function(records.parse)):
        image, label = function(serialized)
        assert image.numpy() == b"bytes"
        assert (label.dtype, int(label)) == (tf.int32, 3)


def test_progress_is_on_stderr_if_verbose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records.pack(only(in_memory(5)), tmp_path / "quiet")
    assert capsys.readouterr() == ("", "")
    records.pack(only(in_memory(5)), tmp_path / "verbose", verbose=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "packing" in shown.err
    assert "5/5" in shown.err


# --- damaged images --------------------------------------------------------------------------


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "(JPEG|PNG)"),
        pytest.param(lambda path: path.unlink(), "No such file", marks=pytest.mark.slow),
        # test_inspection.py has these reasons too.
        *(
            pytest.param(partial(Path.write_bytes, data=content), reason, marks=pytest.mark.slow)
            for content, reason in (
                (b"", "the file is empty"),
                (b"words", "not a JPEG, PNG, BMP, GIF or WebP image"),
            )
        ),
    ],
)
def test_a_damaged_file_is_named(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], reason: str
) -> None:
    source, out = open_folder(folder), tmp_path / "out"
    order = written(source.train)
    jpeg_or_png = [i for i in order[5:] if source.train.paths[i].endswith(("jpg", "png"))]
    path = Path(source.train.paths[jpeg_or_png[-1]])
    damage(path)
    with pytest.raises(ValueError, match=rf"^{path}: .*{reason}"):
        records.pack(source, out, shard_images=5)
    # The shards before the image are there, and nothing of the one that would hold it.
    whole = list(order).index(jpeg_or_png[-1]) // 5
    assert sorted(files(out)) == [
        "progress.json",
        *(f"train-{i:05}-of-00002.tfrecord" for i in range(whole)),
    ]
    assert whole > 0
    # A mended image is in no finished shard, so the pack goes on.
    Image.new("RGB", (9, 7)).save(path)
    records.pack(source, out, shard_images=5)
    assert not (out / "progress.json").exists()


@pytest.mark.slow
def test_files_skipped_by_the_source_are_not_packed(folder: Path, tmp_path: Path) -> None:
    truncate(folder / "a" / "000.jpg")
    source = open_folder(folder, on_bad_image="skip")
    manifest = records.pack(source, tmp_path / "out")
    assert sum(split["images"] for split in manifest["splits"].values()) == 14


@pytest.mark.slow
def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "given.tfrecord"
    png = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in (png, png, png[:-20], png):
            writer.write(records._serialize(image, 0))

    def source(*ranges: tuple[int, int]) -> Source:
        shards = tuple(Shard(str(path), *limits) for limits in ranges)
        return only(Split("train", 4, records=Records(shards, records.parse)))

    for shard_images in (1, 4):
        with pytest.raises(ValueError, match=r"^image 2 of split 'train': .*PNG"):
            records.pack(source((0, 4)), tmp_path / f"{shard_images}", shard_images=shard_images)
    with pytest.raises(ValueError, match=r"^image 3 of split 'train' is missing: .*fewer records"):
        records.pack(source((0, 2), (3, 5)), tmp_path / "short")


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(tmp_path: Path, label: int) -> None:
    split = in_memory(6)
    split.labels[4] = label
    with pytest.raises(ValueError, match=f"^image 4 of split 'train' has label {label}.* 3 classe"):
        records.pack(only(split), tmp_path)


# --- going on after a stop -------------------------------------------------------------------


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("images", "shard_images", "written_before"),
    [(15, 6, 8), *(pytest.param(30, 5, n, marks=pytest.mark.slow) for n in (0, 12, 18, 23))],
)
def test_a_resumed_pack_is_that_of_an_uninterrupted_one(
    tmp_path: Path,
    stop_after: Callable[[int], None],
    images: int,
    shard_images: int,
    written_before: int,
) -> None:
    source, out = open_folder(folder_of(images, tmp_path / "images")), tmp_path / "out"
    expected = records.pack(source, tmp_path / "whole", shard_images=shard_images)
    stop_after(written_before)
    with pytest.raises(Stop):
        records.pack(source, out, shard_images=shard_images)
    before = {path.name: path.stat() for path in out.glob("*.tfrecord")}
    assert sorted(files(out)) == ["progress.json", *sorted(before)]
    # 9 images in train, 3 and 3; or 18, 6 and 6.
    shards = np.array([6, 3, 3, 3] if images == 15 else [5, 5, 5, 3, 5, 1, 5, 1])
    assert len(before) == np.sum(np.cumsum(shards) <= written_before)
    with pytest.raises(FileNotFoundError, match=r"packing was not finished: run it again"):
        records.load(out)
    # What a kill would have left.
    (out / ".partial-abctrain-00001-of-00002.tfrecord").write_bytes(b"half")
    stop_after(-1)
    assert records.pack(source, out, shard_images=shard_images) == expected
    assert files(out) == files(tmp_path / "whole")
    for name, stat in before.items():
        again = (out / name).stat()
        assert (again.st_ino, again.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_finished_shard_that_is_not_whole_is_written_again(
    tmp_path: Path, stop_after: Callable[[int], None], damage: str
) -> None:
    source = only(in_memory(12))
    records.pack(source, tmp_path / "whole", shard_images=5)
    stop_after(11)
    with pytest.raises(Stop):
        records.pack(source, tmp_path / "out", shard_images=5)
    shard = tmp_path / "out" / "train-00001-of-00003.tfrecord"
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(content[:-9] if damage == "cut" else content[:-9] + bytes(9))
    stop_after(-1)
    records.pack(source, tmp_path / "out", shard_images=5)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_kill_before_the_first_file(tmp_path: Path) -> None:
    (tmp_path / ".partial-abcprogress.json").write_bytes(b"{")
    records.pack(only(in_memory(3)), tmp_path)
    assert sorted(files(tmp_path)) == ["manifest.json", "train-00000-of-00001.tfrecord"]


def test_a_kill_after_the_manifest(tmp_path: Path) -> None:
    records.pack(only(in_memory(3)), tmp_path)
    before = files(tmp_path)
    (tmp_path / "progress.json").write_text("{}")
    records.pack(only(in_memory(3)), tmp_path)
    assert files(tmp_path) == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(tf.io.TFRecordWriter):
        def write(self, record: bytes) -> None:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.io, "TFRecordWriter", Full)
    with pytest.raises(OSError, match=r"train-00000-of-00001.tfrecord cannot be written: No space"):
        records.pack(only(in_memory(3)), tmp_path)
    assert sorted(files(tmp_path)) == ["progress.json"]


@pytest.mark.slow
def test_a_finished_pack_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    manifest = records.pack(open_folder(folder), out)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}
    capsys.readouterr()
    moved = folder.rename(tmp_path / "moved")
    assert records.pack(open_folder(moved), out) == manifest
    assert f"{out} already holds this pack" in capsys.readouterr().err
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}
    assert after == before
    changed = Path(open_folder(moved).train.paths[0])
    whole = changed.read_bytes()
    changed.write_bytes(whole + b" ")
    with pytest.raises(ValueError, match=r"train-00000.* holds images of train whose files"):
        records.pack(open_folder(moved), out)
    changed.write_bytes(whole)
    (out / "test-00000-of-00001.tfrecord").unlink()
    with pytest.raises(FileNotFoundError, match=r"test-00000-of-00001.tfrecord is missing"):
        records.pack(open_folder(moved), out)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [pytest.param(True, marks=pytest.mark.slow), False])
def test_another_source_is_refused(
    tmp_path: Path, stop_after: Callable[[int], None], finished: bool
) -> None:
    source = only(in_memory(9))
    stop_after(-1 if finished else 5)
    if finished:
        records.pack(source, tmp_path, shard_images=3)
    else:
        with pytest.raises(Stop):
            records.pack(source, tmp_path, shard_images=3)
        (tmp_path / ".partial-abc").write_bytes(b"half")
        stop_after(-1)
    relabelled = in_memory(9)
    relabelled.labels[0] = 2
    names = replace(source, class_names=("x", "y", "w"))
    refused(names, tmp_path, r"another source \(numbers\).*: class names differ", shard_images=3)
    refused(only(in_memory(8)), tmp_path, "train size, train fingerprint, train sh", shard_images=3)
    refused(only(relabelled), tmp_path, ": train fingerprint differ", shard_images=3)
    refused(source, tmp_path, ": train shards differ", shard_images=4)
    more = replace(source, test=in_memory(2, "test"))
    refused(more, tmp_path, ": test size, test fingerprint", shard_images=3)


@pytest.mark.slow
def test_another_part_of_the_same_records_is_refused(
    tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    records.pack(only(in_memory(9)), tmp_path / "first")
    [shard] = records.load(tmp_path / "first").train.records.shards

    def part(start: int, stop: int) -> Source:
        some = Records((replace(shard, start=start, stop=stop),), records.parse)
        return only(Split("train", stop - start, records=some))

    out = tmp_path / "out"
    stop_after(4)
    with pytest.raises(Stop):
        records.pack(part(0, 6), out, shard_images=2)
    stop_after(-1)
    refused(part(3, 9), out, "train fingerprint differ", shard_images=2)
    records.pack(part(0, 6), out, shard_images=2)


@pytest.mark.parametrize("name", ["manifest.json", "progress.json", "holiday.jpg"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"name": "app"}')
    (tmp_path / ".partial-x").write_bytes(b"")
    message = f"{tmp_path} is not empty" if name == "holiday.jpg" else f"{name} is not of .*format"
    refused(only(in_memory(3)), tmp_path, message)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with pytest.raises(ValueError, match="file is not a folder"):
        records.pack(only(in_memory(3)), tmp_path / "file")
    assert files(tmp_path) == {"file": b"content"}


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard_images=0 must be at least 1"):
        records.pack(only(in_memory(3)), tmp_path / "out", shard_images=0)
    with pytest.raises(ValueError, match="split 'train' of numbers has no images"):
        records.pack(only(in_memory(0)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def pack_of_nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nine")
    records.pack(only(in_memory(9)), folder, shard_images=3)
    return folder


@pytest.fixture
def packed(pack_of_nine: Path, tmp_path: Path) -> Path:
    """A copy, which a test may damage."""
    return shutil.copytree(pack_of_nine, tmp_path, dirs_exist_ok=True)


@pytest.mark.parametrize("opened", [records.load, records.verify])
def test_what_is_not_there(packed: Path, opened: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        opened(packed / "absent")
    (packed / "train-00001-of-00003.tfrecord").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001-of-00003.tfrecord is missing"):
        opened(packed)
    (packed / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no manifest.json and is no pack"):
        opened(packed)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "is not of .*: it states .*other"),
        (lambda m: m.update(version=2), "is not of .*: it states .*2"),
        (lambda m: m.pop("source"), "lacks 'source'"),
        (lambda m: m.pop("class_names"), "lacks 'class_names'"),
        (lambda m: m.pop("splits"), "lacks 'splits'"),
        (lambda m: m.update(splits={}), "splits lacks 'train'"),
        (lambda m: m.update(left_out=[{"files": 3}]), "is damaged"),
        (lambda m: m["splits"].update(extra={}), "unknown split 'extra'"),
        (lambda m: m["splits"].update(test=[]), "test lacks 'images'"),
        (lambda m: m["splits"]["train"].pop("images"), "train lacks 'images'"),
        (lambda m: m["splits"]["train"].update(images="9"), "'images', or it is no int"),
        (lambda m: m["splits"]["train"].update(images=8), "train has 8 images, its shards 9"),
        (lambda m: m["splits"]["train"].pop("fingerprint"), "train lacks 'fingerprint'"),
        (lambda m: m["splits"]["train"].pop("class_counts"), "train lacks 'class_counts'"),
        (lambda m: m["splits"]["train"].pop("shards"), "train lacks 'shards'"),
        *(
            (lambda m, key=key: m["splits"]["train"]["shards"][1].pop(key), f"lacks '{key}'")
            for key in ("file", "images", "bytes", "sha256")
        ),
    ],
)
def test_a_manifest_that_is_not_right(
    packed: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(packed / "manifest.json", change)
    with pytest.raises(ValueError, match=f"{packed / 'manifest.json'}.* {message}"):
        records.load(packed)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read(packed: Path, content: bytes) -> None:
    (packed / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest.json (cannot be read|is not of)"):
        records.load(packed)


@pytest.mark.parametrize("opened", [records.load, records.verify])
def test_a_shard_of_another_size(packed: Path, opened: Callable[[Path], Any]) -> None:
    shard = packed / "train-00002-of-00003.tfrecord"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{shard} has {size - 1} bytes, .*says {size}"):
        opened(packed)


def test_verify_names_the_first_damaged_shard(packed: Path) -> None:
    records.verify(packed)
    for i in (1, 2):
        shard = packed / f"train-{i:05}-of-00003.tfrecord"
        content = bytearray(shard.read_bytes())
        content[-20] ^= 1
        shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00001-of-00003.tfrecord is damaged"):
        records.verify(packed)
    records.load(packed)  # does not read the shards


@pytest.mark.slow
def test_another_pack_of_the_same_shape_is_another_source(tmp_path: Path) -> None:
    """Shards of the same names and sizes, with other images in them."""
    for name, value in (("a", 1), ("b", 200)):
        images = np.full((6, 4, 4, 3), value, np.uint8)
        split = Split("train", 6, labels=np.arange(6, dtype=np.int32) % 2, images=images)
        records.pack(Source(name, ("x", "y"), split, None, None), tmp_path / name)
    a, b = (load_source(f"records:{tmp_path / name}") for name in "ab")
    assert a.train.fingerprint() != b.train.fingerprint()
    records.pack(a, tmp_path / "again")
    with pytest.raises(ValueError, match="another source"):
        records.pack(b, tmp_path / "again")


@pytest.mark.slow
def test_a_smaller_image_keeps_its_16_bits(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "deep" / name).mkdir(parents=True)
        for number in range(4):
            values = np.random.default_rng(number).integers(1000, 1200, (60, 60), dtype=np.uint16)
            Image.fromarray(values).save(tmp_path / "deep" / name / f"{number}.png")
    records.pack(load_source(f"folder:{tmp_path / 'deep'}"), tmp_path / "out", max_side=30)
    encoded, _ = next(iter(records.load(tmp_path / "out").train.records.dataset()))
    assert is_16_bit(encoded)
    values = decode_16_bit(encoded).numpy()
    assert values.shape == (30, 30, 3)
    assert 1000 <= values.min() < values.max() <= 1200

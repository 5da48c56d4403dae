"""keras_vgg.data.inspection: what a look through a set finds: files, records, memory."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg.data.inspection import (
    bad_images_named,
    check,
    find_bad_images,
    raise_for_bad_images,
)
from keras_vgg.data.pipeline import evaluation_dataset
from keras_vgg.data.split import Records, Shard, Source, Split

# --- what the tests write --------------------------------------------------------------------


def encoded(kind: str, height: int, width: int, mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(height: int, width: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return encoded("JPEG", height, width, exif=tags)


def truncated(kind: str) -> bytes:
    whole = encoded(kind, 64, 64)
    return whole[: len(whole) // 2]


# name -> (bytes, label). Heights and widths as seen, of the good: see HEIGHT and WIDTH.
FILES = {
    "a.jpg": (encoded("JPEG", 10, 20), 0),
    "b.JPEG": (encoded("JPEG", 12, 21), 1),
    "c.png": (encoded("PNG", 14, 22), 2),
    "d.jpg": (encoded("PNG", 16, 23), 0),
    "e.jpg": (turned(24, 18), 1),  # 18 high and 24 wide
    "f.jpg": (encoded("JPEG", 20, 25, "L"), 1),
    "g.jpg": (encoded("JPEG", 22, 26, "CMYK"), 1),
    "h.jpg": (b"", 0),
    "i.png": (b"this is no picture, but some words", 0),
    "j.jpg": (truncated("JPEG"), 1),
    "k.png": (truncated("PNG"), 1),
    "l.bmp": (encoded("BMP", 24, 27), 0),
    "m.gif": (encoded("GIF", 26, 28), 0),
    "n.webp": (encoded("WEBP", 28, 29), 2),
    "o.png": (encoded("JPEG", 90, 7), 2),
}
# name -> what the reason must say.
BAD = {
    "h.jpg": "^the file is empty$",
    "i.png": "^not a JPEG, PNG, BMP, GIF or WebP image",
    "j.jpg": "Invalid JPEG data",
    "k.png": "^Invalid PNG data",
}
HEIGHT = [10, 20, 90]  # of 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 90
WIDTH = [7, 24, 29]  # of 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 7
FORMATS = {
    "JPEG, colour": 4,
    "JPEG, grey": 1,
    "JPEG, CMYK": 1,
    "PNG": 2,
    "BMP": 1,
    "GIF": 1,
    "WebP": 1,
}
CLASSES = ("ant", "bee", "cat", "none of it")


def source_of(split: Split, **others: Split | None) -> Source:
    return Source("folder:x", CLASSES, split, others.get("validation"), others.get("test"))


@pytest.fixture
def files(tmp_path: Path) -> Split:
    """FILES, on disk."""
    for name, (content, _) in FILES.items():
        (tmp_path / name).write_bytes(content)
    paths = np.array([str(tmp_path / name) for name in FILES], dtype=object)
    labels = np.array([label for _, label in FILES.values()], np.int32)
    labels.setflags(write=False)  # whoever looks must not write
    return Split("train", len(FILES), labels=labels, paths=paths)


def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A digit, then the image."""
    label = tf.strings.to_number(tf.strings.substr(record, 0, 1), tf.int32)
    return tf.strings.substr(record, 1, -1), label


def write_records(path: Path, contents: list[tuple[bytes, int]]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for content, label in contents:
            writer.write(str(label).encode() + content)


@pytest.fixture
def records(tmp_path: Path) -> Split:
    """FILES, in two TFRecord files, of which the second begins and ends with something else."""
    contents = list(FILES.values())
    write_records(tmp_path / "first.tfrecord", contents[:9])
    other = (encoded("PNG", 3, 3), 3)
    write_records(tmp_path / "second.tfrecord", [other, other, *contents[9:], other])
    shards = (
        Shard(str(tmp_path / "first.tfrecord"), 0, 9),
        Shard(str(tmp_path / "second.tfrecord"), 2, 2 + 6),
    )
    return Split("train", len(FILES), records=Records(shards, parse))


def good_records(path: Path, count: int = 6) -> Split:
    write_records(path, [(encoded("PNG", 8 + i, 9), i % 3) for i in range(count)])
    return Split("train", count, records=Records((Shard(str(path), 0, count),), parse))


def assert_bad(found: list[tuple[str, str]], expected: dict[str, str]) -> None:
    """The names in order, each reason as expected and fit to print."""
    assert [name for name, _ in found] == list(expected)
    for (_, reason), pattern in zip(found, expected.values(), strict=True):
        assert re.search(pattern, reason)
        assert reason.isprintable()
        assert not re.search(r"\{\{|\}\}|\[Op:|\[\[|device:|assertion", reason)


# --- the report ------------------------------------------------------------------------------


def test_check_files(files: Split, tmp_path: Path) -> None:
    before = files.labels.copy()
    report = check(source_of(files))
    assert json.loads(json.dumps(report)) == report
    assert list(report) == ["source", "class_names", "splits", "inventory"]
    assert report["inventory"]["absent"] == {"train": ["none of it"]}
    assert report["source"] == "folder:x"
    assert report["class_names"] == list(CLASSES)
    assert list(report["splits"]) == ["train"]
    found = report["splits"]["train"]
    assert found.pop("images") == len(FILES)
    assert found.pop("class_counts") == [6, 6, 3, 0]
    assert_bad(found.pop("bad"), {str(tmp_path / name): BAD[name] for name in BAD})
    assert found.pop("formats") == FORMATS
    wrong = {"d.jpg": "PNG", "o.png": "JPEG"}
    assert found.pop("wrong_extension") == [[str(tmp_path / n), kind] for n, kind in wrong.items()]
    assert found.pop("turned") == 1
    assert found.pop("few_levels") == []
    assert found.pop("height") == HEIGHT
    assert found.pop("width") == WIDTH
    assert found == {}
    np.testing.assert_array_equal(files.labels, before)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_damaged_header_is_counted_or_named(kind: str, tmp_path: Path) -> None:
    """What the decoder still takes has a format, and all else a reason."""
    whole = encoded(kind, 10, 12)
    for place in range(30):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        (tmp_path / f"{place:02}").write_bytes(damaged)
    paths = np.array(sorted(map(str, tmp_path.iterdir())), dtype=object)
    split = Split("train", 30, labels=np.zeros(30, np.int32), paths=paths)
    found = check(source_of(split))["splits"]["train"]
    assert sum(found["formats"].values()) + len(found["bad"]) == 30
    if kind == "BMP":
        assert str(tmp_path / "14") not in dict(found["bad"])  # the header's own size, unused


def test_check_names_16_bit_files_that_use_few_of_their_levels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 80).reshape(8, 10, 1)
    for name, low, high in (("dark", 1000, 1200), ("half", 0, 2**15), ("flat", 9, 9)):
        values = tf.cast(low + ramp * (high - low), tf.uint16)
        (tmp_path / f"{name}.png").write_bytes(tf.io.encode_png(values).numpy())
    names = ["dark.png", "flat.png", "half.png"]
    paths = np.array([str(tmp_path / name) for name in names], dtype=object)
    split = Split("train", 3, labels=np.zeros(3, np.int32), paths=paths)
    found = check(source_of(split))["splits"]["train"]["few_levels"]
    assert found == [[str(tmp_path / "dark.png"), 1000, 1200], [str(tmp_path / "flat.png"), 9, 9]]


def test_check_records(records: Split, tmp_path: Path) -> None:
    report = check(source_of(records))
    assert json.loads(json.dumps(report)) == report
    found = report["splits"]["train"]
    assert found["images"] == len(FILES)
    # The labels of the bad, two of class 0 and two of class 1, are not known.
    assert found["class_counts"] == [4, 4, 3, 0]
    inventory = report["inventory"]
    assert inventory["class_counts"] == {"train": [4, 4, 3, 0]}
    assert inventory["absent"] == {"train": ["none of it"]}
    expected = {
        f"{tmp_path}/first.tfrecord, record 7": BAD["h.jpg"],
        f"{tmp_path}/first.tfrecord, record 8": BAD["i.png"],
        f"{tmp_path}/second.tfrecord, record 2": BAD["j.jpg"],
        f"{tmp_path}/second.tfrecord, record 3": BAD["k.png"],
    }
    assert_bad(found["bad"], expected)
    assert found["wrong_extension"] == []
    # As of the same images in files, where the test above names all that is reported.
    assert {key: found[key] for key in ("formats", "turned", "height", "width")} == {
        "formats": FORMATS,
        "turned": 1,
        "height": HEIGHT,
        "width": WIDTH,
    }
    assert found["few_levels"] == []
    assert len(found) == 9


def test_check_memory() -> None:
    images = np.zeros((5, 4, 6, 3), np.uint8)
    split = Split("train", 5, labels=np.array([0, 2, 2, 2, 0], np.int32), images=images)
    found = check(source_of(split))["splits"]["train"]
    assert found == {"images": 5, "class_counts": [2, 0, 3, 0]}


@pytest.mark.slow
def test_check_looks_at_every_split(files: Split, tmp_path: Path) -> None:
    test = good_records(tmp_path / "test.tfrecord")
    validation = files.take(np.array([2, 7]))
    splits = check(source_of(files.take(np.array([0])), validation=validation, test=test))["splits"]
    assert list(splits) == ["train", "validation", "test"]
    assert [split["images"] for split in splits.values()] == [1, 2, 6]
    assert [len(split["bad"]) for split in splits.values()] == [0, 1, 0]
    assert splits["test"]["height"] == [8, 10, 13]  # the median of 8 to 13 is 10.5
    assert list(check(source_of(files, test=test))["splits"]) == ["train", "test"]


def test_where_nothing_is_good_there_are_no_sides(files: Split) -> None:
    found = check(source_of(files.take(np.array([7, 8]))))["splits"]["train"]
    assert len(found["bad"]) == 2
    assert found["formats"] == {}
    assert found["turned"] == 0
    assert "height" not in found
    assert "width" not in found


@pytest.mark.slow
def test_progress_goes_to_stderr_if_wanted(
    files: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = check(source_of(files))
    assert capsys.readouterr() == ("", "")
    assert check(source_of(files), verbose=True) == quiet
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "train" in printed.err
    assert "15/15" in printed.err


# --- bad images ------------------------------------------------------------------------------


# Other tests find the same files, by `check` and by `raise_for_bad_images`.
@pytest.mark.slow
def test_find_bad_images(files: Split, tmp_path: Path) -> None:
    found = find_bad_images(files)
    assert_bad(found, {str(tmp_path / name): BAD[name] for name in BAD})
    assert all(isinstance(bad, tuple) for bad in found)


def test_no_bad_images(files: Split, tmp_path: Path) -> None:
    memory = Split("train", 1, labels=np.zeros(1, np.int32), images=np.zeros((1, 2, 2, 3)))
    for good in (files.take(np.arange(7)), good_records(tmp_path / "x.tfrecord"), memory):
        assert raise_for_bad_images(good) is None


def test_a_file_that_is_gone_is_bad(files: Split) -> None:
    Path(files.paths[2]).unlink()
    found = dict(find_bad_images(files))
    assert "No such file or directory" in found[files.paths[2]]
    assert len(found) == 5


@pytest.mark.slow
def test_a_record_that_is_not_parsed_is_bad_and_moves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    png = encoded("PNG", 8, 9)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in (b"0" + png, b"?" + png, b"1" + png, b"2" + b"words", b"2" + png):
            writer.write(record)
    split = Split("train", 5, records=Records((Shard(str(path), 0, 5),), parse))
    expected = {
        f"{path}, record 1": "could not correctly convert",
        f"{path}, record 3": "not a JPEG",
    }
    assert_bad(find_bad_images(split), expected)
    assert check(source_of(split))["splits"]["train"]["class_counts"] == [1, 1, 1, 0]


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("damage", "first", "why"),
    [
        (flipped, 3, "damaged at it or before it"),
        pytest.param(
            *(lambda path: path.write_bytes(path.read_bytes()[:-5]), 5, "or ends there"),
            marks=pytest.mark.slow,
        ),
        (lambda path: write_records(path, [(encoded("PNG", 8, 9), 0)] * 4), 4, "or ends there"),
        (lambda path: path.unlink(), 0, "No such file or directory"),
    ],
)
def test_a_damaged_tfrecord_file(
    damage: Callable[[Path], None], first: int, why: str, tmp_path: Path
) -> None:
    """What cannot be reached is bad, and what comes in the next file is not."""
    good_records(tmp_path / "x.tfrecord")
    good_records(tmp_path / "y.tfrecord")
    damage(tmp_path / "x.tfrecord")
    shards = tuple(Shard(str(tmp_path / name), 0, 6) for name in ("x.tfrecord", "y.tfrecord"))
    split = Split("train", 12, records=Records(shards, parse))
    expected = {f"{tmp_path}/x.tfrecord, record {i}": why for i in range(first, 6)}
    assert_bad(find_bad_images(split), expected)


def test_raise_for_bad_images(files: Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^4 of 15 images of split 'train' cannot") as raised:
        raise_for_bad_images(files)
    for name in BAD:
        assert f"{tmp_path / name}: " in str(raised.value)
    assert str(raised.value).endswith('remove them, or skip them with on_bad_image="skip"')


def test_only_ten_are_listed(files: Split) -> None:
    split = files.take(np.array([7] * 12))
    with pytest.raises(ValueError, match=r"^12 of 12 images .*; \.\.\.\. Mend") as raised:
        raise_for_bad_images(split)
    assert str(raised.value).count("the file is empty") == 10


def first_pixel(image: tf.Tensor) -> tf.Tensor:
    read = image.read([0, 0, 1, 1]) if hasattr(image, "read") else image[:1, :1]
    return tf.ensure_shape(tf.cast(read, tf.float32), [1, 1, 3])


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("form", [pytest.param("files", marks=pytest.mark.slow), "records"])
def test_bad_images_named(form: str, request: pytest.FixtureRequest) -> None:
    split = request.getfixturevalue(form)
    good = Split("test", 1, labels=np.zeros(1, np.int32), images=np.zeros((1, 2, 2, 3)))
    with pytest.raises(ValueError, match=r"^4 of 15 images .* cannot be decoded"):  # noqa: SIM117
        with bad_images_named(good, split):
            list(evaluation_dataset(split, 4, first_pixel))


@pytest.mark.slow
def test_bad_images_named_in_a_function_of_keras(files: Split) -> None:
    @tf.function
    def consume(dataset: tf.data.Dataset) -> tf.Tensor:
        return dataset.reduce(0.0, lambda total, batch: total + tf.reduce_sum(batch[0]))

    with pytest.raises(ValueError, match=r"^4 of 15 images"), bad_images_named(files):
        consume(evaluation_dataset(files, 4, first_pixel))


@pytest.mark.slow
def test_bad_images_named_for_a_damaged_tfrecord_file(tmp_path: Path) -> None:
    split = good_records(tmp_path / "x.tfrecord")
    flipped(tmp_path / "x.tfrecord")
    with pytest.raises(ValueError, match=r"^3 of 6 images .*x\.tfrecord, record 3: "):  # noqa: SIM117
        with bad_images_named(split):
            list(split.records.dataset())


@pytest.mark.slow
def test_an_error_that_no_image_explains(tmp_path: Path) -> None:
    split = good_records(tmp_path / "x.tfrecord")

    @tf.function
    def fail(number: tf.Tensor) -> tf.Tensor:
        return tf.debugging.check_numerics(number, "no number at all")

    for call in (lambda: fail(tf.constant(np.nan)), lambda: tf.reshape(tf.zeros(3), [2, 2])):
        with pytest.raises(ValueError, match=r"^TensorFlow stopped: ") as raised:  # noqa: SIM117
            with bad_images_named(split):
                call()
        assert re.search("no number at all|reshape", str(raised.value))
        assert not re.search(r"\{\{|\[Op:|\[\[|\n|Graph execution", str(raised.value))
        assert isinstance(raised.value.__cause__, tf.errors.InvalidArgumentError)


def test_other_errors_and_none_pass_through(files: Split) -> None:
    with pytest.raises(KeyError, match="mine"), bad_images_named(files):
        raise KeyError("mine")
    # Nothing went wrong, so nobody looks whether an image is bad.
    with contextlib.ExitStack() as stack:
        stack.enter_context(bad_images_named(files))

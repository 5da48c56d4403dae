"""keras_vgg.data: every form of source, the pipelines over them, and every refusal."""

import gzip
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits

from keras_vgg import augment, data
from keras_vgg.data import records

# --- what the tests write --------------------------------------------------------------------


def write_image(path: Path, sides: tuple[int, int] = (12, 10), value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (*sides, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def write_classes(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for i in range(count):
            write_image(root / name / f"{i:03}.png", (8 + i % 3, 9 + ord(name[0]) % 8), i)
    return root


def write_truncated(path: Path) -> None:
    write_image(path, (64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def write_idx(
    root: Path, zipped: bool = False, training: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """Training and 9 test images, 5 x 4, of 3 classes; the training images and labels."""
    rng = np.random.default_rng(0)
    for prefix, count in (("t10k", 9), ("train", training)):
        images = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        for name, header, values in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">4I", 0x803, count, 5, 4), images),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">2I", 0x801, count), labels),
        ):
            content = header + values.tobytes()
            if zipped:
                (root / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (root / name).write_bytes(content)
    return images, labels


def numbered(count: int) -> data.Split:
    """Split in memory whose image i is filled with i, and has label i % 5."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 6, 6, 3)
    )
    labels = np.arange(count, dtype=np.int32) % 5
    return data.Split("train", count, labels=labels, images=images.copy())


def plain(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return image


def seeded(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Another result for each seed, in a graph that is made at once."""
    return tf.cast(image, tf.float32) + tf.random.stateless_uniform([6, 6, 3], seed)


def epochs(dataset: tf.data.Dataset, steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.take(steps).as_numpy_iterator())


# --- digits ----------------------------------------------------------------------------------


def test_digits() -> None:
    source = data.load_source("digits")
    assert source.class_names == tuple("0123456789")
    splits = (source.train, source.validation, source.test)
    assert sum(split.size for split in splits) == 1797
    assert [split.name for split in splits] == ["train", "validation", "test"]
    assert source.test.size == pytest.approx(0.2 * 1797, abs=5)
    assert source.validation.size == pytest.approx(0.1 * 0.8 * 1797, abs=5)
    images = np.concatenate([split.images for split in splits])
    assert images.dtype == np.uint8
    assert images.shape == (1797, 8, 8, 3)
    # Every digit is in one split, and 16 has become 255.
    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(image[..., 1].tobytes() for image in images) == sorted(
        image.tobytes() for image in expected
    )


def test_held_out_splits_have_the_same_share_of_each_class() -> None:
    source = data.load_source("digits", validation_fraction=0.25, test_fraction=0.5)
    totals = np.bincount(load_digits().target)
    np.testing.assert_allclose(np.bincount(source.test.labels), totals / 2, atol=0.5)
    np.testing.assert_allclose(np.bincount(source.validation.labels), totals / 8, atol=1)


def test_splits_are_decided_by_the_seed() -> None:
    first, again, other = (data.load_source("digits", seed=seed).test for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


def test_a_fraction_of_zero_makes_no_split() -> None:
    source = data.load_source("digits", validation_fraction=0, test_fraction=0)
    assert source.train.size == 1797
    assert source.validation is None
    assert source.test is None


# --- folders ---------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    write_classes(tmp_path, {"b": 10, "a": 20})
    write_image(tmp_path / "a" / ".hidden.png")
    write_image(tmp_path / ".cache" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "README.txt").write_text("not a class")
    source = data.load_source(f"folder:{tmp_path}", validation_fraction=0.25, test_fraction=0.2)
    assert source.class_names == ("a", "b")
    assert source.test.size == 4 + 2
    assert source.validation.size == 4 + 2
    splits = (source.train, source.validation, source.test)
    paths = [path for split in splits for path in split.paths]
    assert sorted(paths) == sorted(map(str, tmp_path.glob("[ab]/0*.png")))
    for split in splits:
        names = [source.class_names[label] for label in split.labels]
        assert names == [Path(path).parent.name for path in split.paths]


@pytest.mark.slow
def test_every_extension_in_any_case(tmp_path: Path) -> None:
    names = ("1.jpg", "2.JPEG", "3.Png", "4.bmp", "5.GIF", "6.webp")
    for name in names:
        write_image(tmp_path / "a" / name)
    write_image(tmp_path / "b" / "1.png")
    source = data.load_source(f"folder:{tmp_path}", validation_fraction=0, test_fraction=0)
    assert tuple(Path(path).name for path in source.train.paths[:6]) == names
    assert data.find_bad_images(source.train) == []


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_train_validation_and_test_folders(tmp_path: Path, validation: str) -> None:
    for name, count in (("train", 4), (validation, 3), ("test", 2)):
        write_classes(tmp_path / name, {"a": count, "b": count})
    source = data.load_source(f"folder:{tmp_path}")
    assert [source.train.size, source.validation.size, source.test.size] == [8, 6, 4]
    assert [source.train.name, source.validation.name] == ["train", "validation"]


def test_validation_is_carved_out_of_train_and_never_out_of_test(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"a": 10, "b": 10})
    assert data.load_source(f"folder:{tmp_path}").test is None
    write_classes(tmp_path / "test", {"a": 10, "b": 10})
    source = data.load_source(f"folder:{tmp_path}", validation_fraction=0.2)
    assert [source.train.size, source.validation.size, source.test.size] == [16, 4, 20]
    assert all("/train/" in path for path in source.validation.paths)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        data.load_source(f"folder:{tmp_path / 'nowhere'}")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is not a folder"):
        data.load_source(f"folder:{tmp_path / 'a.png'}")


@pytest.mark.parametrize(("counts", "found"), [({}, 0), ({"a": 3}, 1)])
def test_fewer_than_two_classes(tmp_path: Path, counts: dict[str, int], found: int) -> None:
    write_classes(tmp_path, counts)
    with pytest.raises(ValueError, match=f"has {found} class folders"):
        data.load_source(f"folder:{tmp_path}")


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match=r"no image .* in class hollow"):
        data.load_source(f"folder:{tmp_path}")


def test_test_without_train(tmp_path: Path) -> None:
    write_classes(tmp_path / "test", {"a": 3, "b": 3})
    with pytest.raises(ValueError, match="has test but no train folder"):
        data.load_source(f"folder:{tmp_path}")


def test_val_beside_validation(tmp_path: Path) -> None:
    for name in ("train", "val", "validation"):
        write_classes(tmp_path / name, {"a": 3, "b": 3})
    with pytest.raises(ValueError, match="both val and validation"):
        data.load_source(f"folder:{tmp_path}")


# --- damaged files ---------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """60 images of two classes, four of them bad."""
    write_classes(tmp_path, {"a": 28, "b": 28})
    (tmp_path / "a" / "empty.jpg").touch()
    (tmp_path / "a" / "text.png").write_text("this is no picture")
    write_truncated(tmp_path / "b" / "half.jpg")
    write_truncated(tmp_path / "b" / "half.png")
    return tmp_path


BAD = ("a/empty.jpg", "a/text.png", "b/half.jpg", "b/half.png")


def test_a_damaged_image_is_an_error_and_can_be_named(damaged: Path) -> None:
    split = data.load_source(f"folder:{damaged}", validation_fraction=0, test_fraction=0).train
    dataset = data.evaluation_dataset(split, 10, partial(augment.eval_image, size=8))
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(dataset)
    with pytest.raises(ValueError, match=r'^4 of 60 images .*empty\.jpg.*on_bad_image="skip"$'):
        data.raise_for_bad_images(split)


def test_skip_leaves_bad_images_out_and_says_so(
    damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data.load_source(
        f"folder:{damaged}", validation_fraction=0, test_fraction=0, on_bad_image="skip"
    )
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("skipped: 4 of 60 images")
    assert all(name in line for name in BAD)
    assert source.train.size == 56
    assert data.raise_for_bad_images(source.train) is None
    np.testing.assert_array_equal(np.bincount(source.train.labels), [28, 28])


def test_too_many_bad_images_are_not_skipped(damaged: Path) -> None:
    for i in range(4):
        (damaged / "a" / f"empty{i}.png").touch()
    with pytest.raises(ValueError, match=r"8 of 64 images .* More than 10% is too many to skip"):
        data.load_source(f"folder:{damaged}", on_bad_image="skip")


def test_a_class_of_bad_images_only_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"good": 30})
    (tmp_path / "rotten").mkdir()
    (tmp_path / "rotten" / "0.png").touch()
    with pytest.raises(ValueError, match="in class rotten"):
        data.load_source(f"folder:{tmp_path}", on_bad_image="skip")


def test_images_in_memory_are_never_bad() -> None:
    assert data.find_bad_images(numbered(3)) == []


# --- one image -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_load_image_makes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).convert(mode).save(tmp_path / "x.png")
    image = data.load_image(tmp_path / "x.png")
    assert image.dtype == np.uint8
    assert image.shape == (5, 7, 3)
    if mode != "P":  # a palette rounds
        np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))


def test_load_image_takes_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(data.load_image(tmp_path / "x.gif")[0, 0], [255, 0, 0])


def test_load_image_refuses(damaged: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such image file"):
        data.load_image(damaged / "nowhere.png")
    with pytest.raises(ValueError, match="a: is a folder"):
        data.load_image(damaged / "a")
    for name, reason in zip(BAD, ("empty", "not a JPEG", "JPEG data", "PNG data"), strict=True):
        with pytest.raises(ValueError, match=f"{name}: .*{reason}"):
            data.load_image(damaged / name)


# --- IDX -------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(tmp_path: Path, zipped: bool) -> None:
    images, labels = write_idx(tmp_path, zipped)
    source = data.load_source(f"idx:{tmp_path}", validation_fraction=0)
    assert source.class_names == ("0", "1", "2")
    assert source.test.size == 9
    np.testing.assert_array_equal(source.train.images, np.stack([images] * 3, axis=-1))
    np.testing.assert_array_equal(source.train.labels, labels)


def test_idx_class_names_and_validation(tmp_path: Path) -> None:
    write_idx(tmp_path)
    text = "T-shirt/top\nTrouser\nAnkle boot\n"
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8-sig")  # as Notepad writes it
    source = data.load_source(f"idx:{tmp_path}", validation_fraction=0.25)
    assert source.class_names == ("T-shirt/top", "Trouser", "Ankle boot")
    assert source.validation.size == 4 + 3 + 3
    assert source.train.size == 30
    assert source.test.size == 9


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "not an IDX file of 3 axes"),
        (IMAGES, b"\x00\x00\x08", "not an IDX file of 3 axes"),
        (IMAGES, struct.pack(">2I", 0x801, 0), "first bytes are 0x00000801, not 0x00000803"),
        (IMAGES, struct.pack(">4I", 0x803, 40, 5, 4) + bytes(799), "799 bytes .* says 800"),
        (IMAGES, struct.pack(">4I", 0x803, 2, 5, 4) + bytes(40), "2 train images but 40"),
        (LABELS, struct.pack(">2I", 0x801, 40) + bytes(41), "41 bytes .* says 40"),
    ],
)
def test_unreadable_idx(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load_source(f"idx:{tmp_path}")


def test_truncated_gzip(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"ubyte\.gz is damaged"):
        data.load_source(f"idx:{tmp_path}")


def test_missing_idx(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"neither {IMAGES} nor {IMAGES}.gz"):
        data.load_source(f"idx:{tmp_path}")


def test_idx_label_out_of_range(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"label 2 in the train labels .* there are 2 classes"):
        data.load_source(f"idx:{tmp_path}")


# --- TensorFlow Datasets ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data_dir with `stills`, 40 + 9 images of one size, and `photos`, of varying size.

    Image i of a split is filled with i; its label is i % 2.
    """
    import tensorflow_datasets as tfds

    def examples(count: int, vary: int) -> tf.data.Dataset:
        def example(i: tf.Tensor) -> dict[str, tf.Tensor]:
            image = tf.fill(tf.stack([6 + i % vary, 5, 3]), tf.cast(i, tf.uint8))
            return {"image": image, "label": i % 2}

        return tf.data.Dataset.range(count).map(example)

    folder = tmp_path_factory.mktemp("tfds")
    for name, height, vary, splits in (
        ("stills", 6, 1, {"train": 40, "validation": 9, "test": 7}),
        ("photos", None, 3, {"train": 40, "validation": 9}),
    ):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(height, 5, 3)),
                    "label": tfds.features.ClassLabel(names=["even", "odd"]),
                }
            ),
            split_datasets={split: examples(count, vary) for split, count in splits.items()},
            data_dir=folder,
        )
    return folder


def values(split: data.Split) -> list[int]:
    """What the images of a split are filled with, in evaluation order."""
    dataset = data.evaluation_dataset(split, 4, partial(augment.eval_image, size=4))
    seen = []
    for images, labels in dataset.as_numpy_iterator():
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 2, labels)
        seen += images[:, 0, 0, 0].astype(int).tolist()
    return seen


@pytest.mark.slow
def test_tfds_of_one_size_is_read_into_memory(prepared: Path) -> None:
    source = data.load_source("stills", data_dir=prepared)
    assert source.class_names == ("even", "odd")
    assert source.train.images.shape == (40, 6, 5, 3)
    for split, size in ((source.train, 40), (source.validation, 9), (source.test, 7)):
        assert sorted(values(split)) == list(range(size))


@pytest.mark.slow
def test_tfds_of_varying_size_is_streamed(prepared: Path) -> None:
    # There is no test split, so validation is what is reported, and train is held out of.
    source = data.load_source("photos", data_dir=prepared, validation_fraction=0.25)
    assert source.train.records is not None
    assert sorted(values(source.test)) == list(range(9))
    assert source.validation.size == 10
    assert sorted(values(source.train) + values(source.validation)) == list(range(40))
    again = data.load_source("photos", data_dir=prepared, validation_fraction=0.25)
    assert values(again.validation) == values(source.validation)


def test_tfds_named_splits(prepared: Path) -> None:
    source = data.load_source(
        "stills", data_dir=prepared, train_split="train[:50%]", validation_split="train[75%:]"
    )
    assert [source.train.size, source.validation.size, source.test.size] == [20, 10, 7]
    assert not set(values(source.train)) & set(values(source.validation))


@pytest.mark.slow
def test_tfds_named_splits_leave_the_validation_split_to_the_test(prepared: Path) -> None:
    splits = {"train_split": "train[:75%]", "validation_split": "train[75%:]"}
    source = data.load_source("photos", data_dir=prepared, **splits)
    assert [source.train.size, source.validation.size] == [30, 10]
    assert sorted(values(source.test)) == list(range(9))
    source = data.load_source("photos", data_dir=prepared, validation_split="validation[:4]")
    assert [source.train.size, source.validation.size, source.test.size] == [32, 4, 8]


@pytest.mark.slow
def test_a_stream_begins_without_a_word(prepared: Path, caplog, monkeypatch) -> None:
    # AutoGraph warns of what it cannot rewrite.
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    split = data.load_source("photos", data_dir=prepared).train
    next(iter(data.training_dataset(split, 4, partial(augment.train_image, size=4), seed=0)))
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"validation_split": "train[90%:]"}, r"train_split train\[0:40\] and validation_split"),
        ({"test_split": "train[:1]"}, "train_split .* and test_split .* share images"),
        ({"train_split": "trian"}, "stills has no split 'trian' .its splits: .*train"),
        ({"train_split": "train[:0]"}, "has no images"),
    ],
)
def test_tfds_refuses_splits(prepared: Path, splits: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_source("stills", data_dir=prepared, **splits)


@pytest.mark.slow
def test_a_stream_trains_and_continues(prepared: Path) -> None:
    split = data.load_source("photos", data_dir=prepared, validation_fraction=0).train
    transform = partial(augment.train_image, size=4, brightness=0.2)
    whole = epochs(data.training_dataset(split, 12, transform, seed=1), 9)
    tf.random.set_seed(77)
    later = epochs(data.training_dataset(split, 12, transform, seed=1, start_epoch=2), 3)
    for (images, labels), (same_images, same_labels) in zip(whole[6:], later, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)
    crop = partial(augment.train_image, size=4)
    orders = np.concatenate(
        [
            images[:, 0, 0, 0]
            for images, _ in epochs(data.training_dataset(split, 12, crop, seed=1), 6)
        ]
    ).reshape(2, 36)
    assert all(len(set(order)) == 36 for order in orders)
    assert not np.array_equal(orders[0], orders[1])


def test_statistics_of_a_stream(prepared: Path) -> None:
    split = data.load_source("photos", data_dir=prepared).test
    measured = data.statistics(split, partial(augment.eval_image, size=4))
    np.testing.assert_allclose(measured.mean, [4, 4, 4])  # of 0..8
    assert measured.images == 9


def test_tfds_that_is_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"fashion_mnist is not prepared in .*download=True.*manual"
    ):
        data.load_source("fashion_mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="manual_dir='/nowhere'"):
        data.load_source("fashion_mnist", data_dir=tmp_path, manual_dir="/nowhere")


@pytest.mark.parametrize("spec", ["fashion_mnits", "/data/photos", "huggingface:mnist", ""])
def test_unknown_source(spec: str) -> None:
    with pytest.raises(
        ValueError, match=f"unknown source '{spec}'.*folder:PATH, csv:FILE, records:PATH, idx:PATH"
    ):
        data.load_source(spec)


def test_unknown_source_suggests() -> None:
    with pytest.raises(ValueError, match="did you mean fashion_mnist"):
        data.load_source("fashion_mnits")


@pytest.mark.slow
def test_fashion_mnist_from_the_official_files(data_folder: Path, tmp_path: Path) -> None:
    files = data_folder / "fashion-mnist"
    if not files.is_dir():
        pytest.skip(f"no {files}")
    through_tfds = data.load_source("fashion_mnist", data_dir=tmp_path, manual_dir=files)
    assert through_tfds.class_names[9] == "Ankle boot"
    splits = (through_tfds.train, through_tfds.validation, through_tfds.test)
    assert [split.size for split in splits] == [54_000, 6_000, 10_000]
    direct = data.load_source(f"idx:{files}", validation_fraction=0)
    as_bytes = partial(map, lambda image: image[..., 0].tobytes())
    assert sorted(as_bytes(through_tfds.test.images)) == sorted(as_bytes(direct.test.images))


# --- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must be at least 0 and below 1"),
        ({"test_fraction": -0.1}, "test_fraction=-0.1"),
        ({"on_bad_image": "ignore"}, "on_bad_image='ignore' must be"),
        ({"train_split": "train[:1%]"}, "'digits' takes no train_split"),
        ({"spec": "folder:"}, "'folder:' needs a path"),
        ({"spec": "idx"}, "'idx' needs a path"),
    ],
)
def test_load_source_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_source(**{"spec": "digits", **options})


def test_a_split_has_one_form() -> None:
    with pytest.raises(ValueError, match="'train' needs one of images, paths and records"):
        data.Split("train", 3, labels=np.zeros(3))
    with pytest.raises(ValueError, match="3 images, 2 labels, size 3"):
        data.Split("train", 3, labels=np.zeros(2), images=np.zeros((3, 1, 1, 3)))


# --- training --------------------------------------------------------------------------------


slow_with = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(params=["images", "paths"])
def split(request: pytest.FixtureRequest, tmp_path: Path) -> data.Split:
    """22 images, image i filled with i."""
    in_memory = numbered(22)
    if request.param == "images":
        return in_memory
    paths = [str(tmp_path / f"{i}.png") for i in range(22)]
    for path, image in zip(paths, in_memory.images, strict=True):
        Image.fromarray(image).save(path)
    return data.Split("train", 22, labels=in_memory.labels, paths=np.array(paths, dtype=object))


def test_training_batches(split: data.Split) -> None:
    dataset = data.training_dataset(split, 5, plain, seed=0)
    assert dataset.element_spec[0].dtype == tf.uint8
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert data.steps_per_epoch(split, 5) == 4
    batches = epochs(dataset, 12)
    for images, labels in batches:
        assert images.shape == (5, 6, 6, 3)
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 5, labels)
    orders = np.concatenate([images[:, 0, 0, 0] for images, _ in batches]).reshape(3, 20)
    # Epochs do not mix: no image comes twice in one. Each has its own order.
    assert all(len(set(order)) == 20 for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    # The remainder that is dropped is another one each time.
    assert set(range(22)) - set(orders[0]) != set(range(22)) - set(orders[1])


# The test of steps below covers this in the fast tests.
@pytest.mark.slow
@pytest.mark.parametrize("split", ["images", "paths"], indirect=True)
def test_start_epoch_continues_the_stream_exactly(split: data.Split) -> None:
    whole = epochs(data.training_dataset(split, 5, seeded, seed=9), 7 * 4)
    later = epochs(data.training_dataset(split, 5, seeded, seed=9, start_epoch=5), 2 * 4)
    for (images, labels), (same_images, same_labels) in zip(whole[20:], later, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("split", "epoch", "step"),
    [
        slow_with("images", 0, 3),
        ("images", 2, 1),
        ("paths", 2, 3),
        slow_with("images", 2, 0),
        slow_with("images", 2, 3),
        *(slow_with("paths", epoch, step) for epoch, step in ((0, 3), (2, 0), (2, 1))),
    ],
    indirect=["split"],
)
def test_any_step_can_be_begun_at(split: data.Split, epoch: int, step: int) -> None:
    # What trains is tried with files.
    transform = seeded
    if split.paths is not None:
        transform = partial(augment.train_image, size=6, crop_padding=2, brightness=0.3)
    mixing = augment.batch_augmentation(mixup=0.5)

    def mixed(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tuple:
        return mixing(images, tf.one_hot(labels, 5), seed)

    open_at = partial(data.training_dataset, split, 5, transform, seed=9, batch_transform=mixed)
    whole = epochs(open_at(), 16)[4 * epoch + step :]
    later = epochs(open_at(start_epoch=epoch, start_step=step), len(whole))
    for (images, labels), (same_images, same_labels) in zip(whole, later, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.parametrize("split", [slow_with("images"), "paths"], indirect=True)
def test_the_number_of_threads_is_no_matter(split: data.Split) -> None:
    found = []
    for threads in (1, 6):
        options = tf.data.Options()
        options.threading.private_threadpool_size = threads
        dataset = data.training_dataset(split, 5, seeded, seed=9).with_options(options)
        found.append(np.stack([images for images, _ in epochs(dataset, 12)]))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("split", ["images", slow_with("paths")], indirect=True)
def test_hosts_share_every_batch(split: data.Split) -> None:
    whole = epochs(data.training_dataset(split, 6, seeded, seed=9), 9)
    parts = [
        epochs(
            data.training_dataset(
                split, 2, seeded, seed=9, host=host, hosts=3, start_epoch=1, start_step=1
            ),
            5,
        )
        for host in range(3)
    ]
    for step, (images, labels) in enumerate(whole[4:]):
        np.testing.assert_array_equal(images, np.concatenate([part[step][0] for part in parts]))
        np.testing.assert_array_equal(labels, np.concatenate([part[step][1] for part in parts]))


@pytest.mark.parametrize(
    "where", [{"start_step": 4}, {"start_step": -1}, {"host": 2, "hosts": 2}, {"host": -1}]
)
def test_training_refuses_steps_and_hosts_that_there_are_not(where: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"start_step=.* must be in .* and host=.* in "):
        data.training_dataset(numbered(22), 5, plain, seed=0, **where)


def test_without_deterministic_every_image_still_comes_as_often() -> None:
    """An image may come late, when some of the next epoch have come already."""
    dataset = data.training_dataset(numbered(22), 11, plain, seed=0, deterministic=False)
    images = np.concatenate([images[:, 0, 0, 0] for images, _ in epochs(dataset, 2 * 50)])
    counts = np.bincount(images, minlength=22)
    assert len(counts) == 22
    np.testing.assert_allclose(counts, 50, atol=10)


def test_a_transform_that_knows_no_pictures_is_given_decoded_images(data_folder: Path) -> None:
    paths = sorted(map(str, (data_folder / "imagenet_samples").iterdir()))[:2]
    photographs = data.Split(
        "train", 2, labels=np.zeros(2, np.int32), paths=np.array(paths, dtype=object)
    )
    ((images, _),) = data.evaluation_dataset(photographs, 2, lambda image: image[:9, :9])
    expected = [data.load_image(path)[:9, :9] for path in paths]
    np.testing.assert_array_equal(images, expected)


# --- records ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = data.Source("numbers", ("a", "b", "c", "d", "e"), numbered(40), None, None)
    out = tmp_path_factory.mktemp("numbers") / "packed"

    def encoded(piece: Any, *_: object) -> Iterator[tuple[bytes, int]]:
        """What tests/test_records.py tests, without a graph for each shard."""
        split = piece.images()
        for image, label in zip(split.images, split.labels, strict=True):
            yield tf.io.encode_png(image).numpy(), int(label)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_images", encoded)
        data.pack(images, out, shard_images=2)
    return out


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> data.Split:
    """40 images in 20 shards of two, image i filled with i; two groups to be mixed."""
    shutil.copytree(packed, tmp_path / "packed")
    return data.load_source(f"records:{tmp_path / 'packed'}").train


def order_of(dataset: tf.data.Dataset, steps: int) -> list[int]:
    return np.concatenate([images[:, 0, 0, 0] for images, _ in epochs(dataset, steps)]).tolist()


def test_records_are_shuffled_anew_each_epoch(shards: data.Split) -> None:
    found = order_of(data.training_dataset(shards, 5, plain, seed=3), 16)
    assert sorted(found[:40]) == sorted(found[40:]) == list(range(40))
    assert found[:40] != found[40:]
    other = order_of(data.training_dataset(shards, 5, plain, seed=4), 8)
    assert other != found[:40]
    # Neither as they lie, nor shard by shard.
    lying = [int(image[0, 0, 0]) for image, _ in data.evaluation_dataset(
        shards, 40, lambda image: image
    ).unbatch()]  # fmt: skip
    neighbours = {frozenset(lying[i : i + 2]) for i in range(0, 40, 2)}
    assert sum(frozenset(found[i : i + 2]) in neighbours for i in range(0, 40, 2)) < 6


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("epoch", "step"), [slow_with(0, 1), (1, 6), slow_with(1, 0), slow_with(1, 7)]
)
def test_records_can_be_begun_at_any_step(shards: data.Split, epoch: int, step: int) -> None:
    whole = epochs(data.training_dataset(shards, 5, seeded, seed=3), 24)[8 * epoch + step :]
    later = data.training_dataset(shards, 5, seeded, seed=3, start_epoch=epoch, start_step=step)
    for (images, labels), (same_images, same_labels) in zip(
        whole, epochs(later, len(whole)), strict=True
    ):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.slow
def test_skipped_groups_of_shards_are_not_read(shards: data.Split) -> None:
    """With 16 of 20 shards passed, it is no matter that they are gone."""
    expected = order_of(data.training_dataset(shards, 4, plain, seed=3), 10)[32:]
    lying = [int(tf.io.decode_png(encoded)[0, 0, 0]) for encoded, _ in shards.records.dataset()]
    unused = [
        shard
        for i, shard in enumerate(shards.records.shards)
        if not set(lying[2 * i : 2 * i + 2]) & set(expected)
    ]
    assert len(unused) == 16
    for shard in unused:
        Path(shard.path).unlink()
    later = data.training_dataset(shards, 4, plain, seed=3, start_step=8)
    assert order_of(later, 2) == expected


@pytest.mark.slow
def test_bad_records_are_left_out_when_asked(
    shards: data.Split, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One of 40, in a file of TFDS's or anyone's making."""
    path = Path(shards.records.shards[3].path)
    kept = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(kept[0].replace(b"PNG", b"PMG"))
        writer.write(kept[1])
    size = path.stat().st_size
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert manifest["splits"]["train"]["shards"][3]["bytes"] == size  # so that it still opens
    spec = f"records:{path.parent}"
    with pytest.raises(ValueError, match=f"{path}, record 0"):
        data.raise_for_bad_images(data.load_source(spec).train)
    found = data.load_source(spec, on_bad_image="skip").train
    assert found.size == found.records.size == 39
    assert "skipped: 1 of 40 images of split 'train'" in capsys.readouterr().err
    whole = [int(label) for _, label in shards.records.dataset()]
    assert [int(label) for _, label in found.records.dataset()] == whole[:6] + whole[7:]
    everything = data.training_dataset(found, 13, plain, seed=0)
    assert len(set(order_of(everything, 3))) == 39


@pytest.mark.parametrize("positions", [[], [0], [7], [0, 1], [3, 4, 5], range(8), [2, 6]])
def test_records_without_some(positions: Sequence[int]) -> None:
    parts = (data.Shard("a", 2, 5), data.Shard("b", 0, 4), data.Shard("c", 9, 10))

    def listed(records: data.Records) -> list[tuple[str, int]]:
        return [(s.path, i) for s in records.shards for i in range(s.start, s.stop)]

    records = data.Records(parts, lambda record: record)
    expected = [name for i, name in enumerate(listed(records)) if i not in positions]
    assert listed(records.without(positions)) == expected


@pytest.mark.slow
def test_hosts_share_the_shards(shards: data.Split) -> None:
    assert data.steps_per_epoch(shards, 4, hosts=3) == 3  # of 14, 14 and 12 records
    found = [
        order_of(data.training_dataset(shards, 4, plain, seed=3, host=host, hosts=3), 6)
        for host in range(3)
    ]
    assert all(len(set(part[:12])) == 12 for part in found)
    assert not set(found[0]) & set(found[1])
    assert not set(found[0]) & set(found[2])
    assert not set(found[1]) & set(found[2])


def test_the_stream_is_decided_by_the_seed_alone() -> None:
    streams = []
    for seed, unrelated in ((1, 5), (1, 6), (2, 5)):
        tf.random.set_seed(unrelated)
        dataset = data.training_dataset(numbered(22), 5, seeded, seed=seed)
        streams.append(np.stack([images for images, _ in epochs(dataset, 8)]))
    np.testing.assert_array_equal(streams[0], streams[1])
    assert not np.array_equal(streams[0], streams[2])


def test_every_image_has_a_seed_of_its_own() -> None:
    def seed_of(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.cast(seed, tf.float32), [2, 1, 1])

    batches = epochs(data.training_dataset(numbered(22), 11, seed_of, seed=0), 6)
    seeds = {tuple(seed.ravel()) for images, _ in batches for seed in images}
    assert len(seeds) == 3 * 22


@pytest.mark.parametrize("batch_size", [0, 23])
def test_training_refuses_batch_sizes(batch_size: int) -> None:
    message = f"batch_size={batch_size} must be from 1 to 22"
    with pytest.raises(ValueError, match=message):
        data.training_dataset(numbered(22), batch_size, plain, seed=0)
    with pytest.raises(ValueError, match=message):
        data.steps_per_epoch(numbered(22), batch_size)


# --- evaluation and statistics ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "batch_size"),
    [
        *(("images", size) for size in (1, 5, 11, 100)),
        ("paths", 5),
        *(slow_with("paths", size) for size in (1, 11, 100)),
    ],
    indirect=["split"],
)
def test_evaluation_is_every_image_once_in_order(split: data.Split, batch_size: int) -> None:
    dataset = data.evaluation_dataset(split, batch_size, partial(augment.eval_image, size=4))
    batches = list(dataset.as_numpy_iterator())
    assert dataset.cardinality() == len(batches) == -(-22 // batch_size)
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, 0, 0], range(22))
    np.testing.assert_array_equal(labels, np.arange(22) % 5)


def test_evaluation_refuses_batch_size_zero() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        data.evaluation_dataset(numbered(4), 0, lambda image: image)


def test_statistics_are_those_of_numpy() -> None:
    colored = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
    colored[..., 1] = colored[..., 0] // 2 + colored[..., 1] // 4
    measured = data.statistics(data.Split("train", 30, labels=np.zeros(30), images=colored))
    pixels = colored.reshape(-1, 3)
    np.testing.assert_allclose(measured.mean, pixels.mean(axis=0))
    np.testing.assert_allclose(measured.std, pixels.std(axis=0))
    covariance = np.cov(pixels.T / 255, bias=True)
    vectors, diagonal = measured.eigenvectors, np.diag(measured.eigenvalues)
    np.testing.assert_allclose(vectors @ diagonal @ vectors.T, covariance, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert list(measured.eigenvalues) == sorted(measured.eigenvalues, reverse=True)
    assert measured.images == 30


def test_statistics_through_a_transform_and_of_evenly_spaced_images(split: data.Split) -> None:
    double: Callable[[tf.Tensor], tf.Tensor] = lambda image: tf.cast(image, tf.float32) * 2  # noqa: E731
    measured = data.statistics(split, double, limit=4)
    assert measured.images == 4
    np.testing.assert_allclose(measured.mean, 2 * np.mean([0, 5, 11, 16]))
    np.testing.assert_allclose(measured.std, 2 * np.std([0, 5, 11, 16]))


def test_statistics_weigh_pixels_alike(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("small.png", "large.png")]
    Image.new("RGB", (2, 1), (10, 0, 0)).save(paths[0])
    Image.new("RGB", (2, 3), (50, 0, 0)).save(paths[1])
    files = data.Split("train", 2, labels=np.zeros(2), paths=np.array(paths, dtype=object))
    measured = data.statistics(files)
    np.testing.assert_allclose(measured.mean, [40, 0, 0])  # 2 pixels of 10 and 6 of 50
    assert measured.std[1] == 0


def test_statistics_refuse_no_images() -> None:
    with pytest.raises(ValueError, match="limit=0"):
        data.statistics(numbered(4), limit=0)


@pytest.mark.parametrize("count", [1, 4, 9, 10, 99])
def test_a_spread_is_even_and_in_order(count):
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, axis=3)
    split = data.Split("train", 10, labels=np.arange(10, dtype=np.int32), images=images)
    chosen = split.spread(count)
    assert chosen.size == min(count, 10)
    labels = chosen.labels.tolist()
    np.testing.assert_array_equal(chosen.images[:, 0, 0, 0], labels)
    gaps = np.diff([*labels, 10 + labels[0]])
    assert gaps.max() - gaps.min() <= 1


# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [
        lambda split: data.training_dataset(split, 4, plain, seed=0),
        lambda split: data.training_dataset(split, 4, plain, seed=0).rebatch(2),
        lambda split: data.evaluation_dataset(split, 4, lambda image: image).cache(),
        lambda split: data.evaluation_dataset(split, None, lambda image: image),
    ],
)
def test_no_autotuner_holds_up_the_end_of_an_iterator(dataset: Callable) -> None:
    assert dataset(numbered(20)).options().autotune.enabled is False


def test_a_tilde_in_the_folders_of_tfds(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(prepared.parent))
    source = data.load_source("stills", data_dir=f"~/{prepared.name}")
    assert source.train.size == 40
    with pytest.raises(FileNotFoundError, match=str(prepared.parent)):
        data.load_source("mnist", data_dir=prepared, manual_dir="~/nowhere")


def test_a_seed_is_not_negative() -> None:
    with pytest.raises(ValueError, match="seed=-1 must be 0 or more"):
        data.load_source("digits", seed=-1)


def test_class_names_of_another_encoding(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "classes.txt").write_bytes("Grün\nRot\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes.txt is not UTF-8: .*; save it as UTF-8"):
        data.load_source(f"idx:{tmp_path}")

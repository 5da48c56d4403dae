"""keras_vgg.data.contact_sheet: the boxes are where the pixels came from, and a PNG is drawn."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import augment, data
from keras_vgg.data import show
from keras_vgg.data.sheet_drawing import Row

NAMES = ("a", "b", "c")
GEOMETRY = {"size": 32, "scale": (40, 60)}
SHOWN = {
    "class_names": NAMES,
    "train": partial(augment.train_image, **GEOMETRY),
    "evaluate": partial(augment.eval_image, size=32, scale=48),
    "window": partial(augment.train_window, **GEOMETRY),
}


def ramps(count: int, height: int = 90, width: int = 120) -> np.ndarray:
    """Images whose red says the row and whose green the column."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 2, columns * 2, np.full_like(rows, 9)], axis=-1).astype(np.uint8)
    return np.repeat(image[np.newaxis], count, axis=0)


def split_of(form: str, folder: Path) -> data.Split:
    labels = np.arange(9, dtype=np.int32) % 3
    in_memory = data.Split("train", 9, labels=labels, images=ramps(9))
    if form == "images":
        return in_memory
    if form == "records":
        data.pack(data.Source("ramps", NAMES, in_memory, None, None), folder / "p", shard_images=4)
        return data.load_source(f"records:{folder / 'p'}").train
    paths = [str(folder / f"{i}.png") for i in range(9)]
    for path, image in zip(paths, in_memory.images, strict=True):
        Image.fromarray(image).save(path)
    return data.Split("train", 9, labels=labels, paths=np.array(paths, dtype=object))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "form",
    [
        pytest.param("images", marks=pytest.mark.slow),
        "paths",
        pytest.param("records", marks=pytest.mark.slow),
    ],
)
def test_boxes_are_where_the_views_come_from(form: str, tmp_path: Path) -> None:
    views = []

    def train(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        view = augment.train_image(image, seed, **GEOMETRY)
        views.append(view.numpy())
        return view

    sheet = tmp_path / "sheets" / "sheet.png"
    boxes = data.contact_sheet(
        split_of(form, tmp_path), sheet, **{**SHOWN, "train": train}, images=3, views=4, seed=5
    )
    assert [len(row) for row in boxes] == [4, 4, 4]
    for view, (top, left, height, width) in zip(views, itertools.chain(*boxes), strict=True):
        assert 0 <= top < top + height <= 90
        assert 0 <= left < left + width <= 120
        middle = view.mean(axis=(0, 1))
        # 2 levels a pixel; train_image may move a window by half of one.
        np.testing.assert_allclose(middle[0] / 2, top + height / 2 - 0.5, atol=0.8)
        np.testing.assert_allclose(middle[1] / 2, left + width / 2 - 0.5, atol=0.8)
    assert len({box for row in boxes for box in row}) == 12
    assert [path.name for path in sheet.parent.iterdir()] == ["sheet.png"]
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 300
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500  # not an empty page


def test_a_turned_crop_is_outlined_where_its_pixels_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[Row] = []
    draw = show.draw
    monkeypatch.setattr(show, "draw", lambda drawn: (rows.extend(drawn), draw(drawn))[1])
    turned = {"size": 32, "scale": (60, 60), "rotation": 40.0, "flip": False}
    shown = {
        **SHOWN,
        "train": partial(augment.train_image, **turned),
        "window": partial(augment.train_window, **turned),
    }
    split = split_of("images", tmp_path)
    data.contact_sheet(split, tmp_path / "s.png", **shown, images=2, views=3)
    pairs = [pair for row in rows for pair in zip(row.views, row.outlines, strict=True)]
    assert all(outline.is_turned for _, outline in pairs)
    inside = [
        (view, places)
        for view, (places, _) in pairs
        if (places > 0).all() and (places < [90, 120]).all()
    ]
    assert len(inside) > 2
    for view, places in inside:
        # 2 levels a pixel, in rows and columns. A pixel of the view is 1.5 of the image.
        pixels = view[[0, 0, -1, -1], [0, -1, -1, 0], :2] / 2
        np.testing.assert_allclose(pixels, places - 0.5, atol=2)


def test_classes_are_spread_and_a_seed_repeats(tmp_path: Path) -> None:
    counts = []

    def evaluate(image: tf.Tensor) -> tf.Tensor:
        counts.append(int(image[0, 0, 2]))
        return augment.eval_image(image, size=32)

    images = np.stack([np.full((32, 32, 3), i, np.uint8) for i in range(30)])
    split = data.Split("train", 30, labels=np.repeat([0, 1, 2], [28, 1, 1]), images=images)
    shown = {**SHOWN, "evaluate": evaluate}
    for seed in (1, 1, 2):
        data.contact_sheet(split, tmp_path / "s.png", **shown, images=4, views=1, seed=seed)
    assert all({28, 29} <= set(counts[i : i + 4]) for i in (0, 4, 8))
    assert counts[:4] == counts[4:8] != counts[8:]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 900), (900, 5), (1, 1)])
def test_odd_sizes_are_drawn(height: int, width: int, tmp_path: Path) -> None:
    split = data.Split("train", 2, labels=np.zeros(2, np.int32), images=ramps(2, height, width))
    ((box, *_), _) = data.contact_sheet(split, tmp_path / "s.png", **SHOWN, images=2, views=2)
    assert 0 < box[2] <= height
    assert 0 < box[3] <= width


@pytest.mark.parametrize("wrong", [{"images": 0}, {"views": 0}, {"class_names": NAMES[:1]}])
def test_refusals_leave_no_file(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at least 1|and there are 1 class names"):
        data.contact_sheet(split_of("images", tmp_path), tmp_path / "s.png", **(SHOWN | wrong))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    split = split_of("paths", tmp_path)
    Path(split.paths[4]).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"4\.png"):
        data.contact_sheet(split, tmp_path / "s.png", **SHOWN, images=9)

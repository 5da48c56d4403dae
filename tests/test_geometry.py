"""keras_vgg.augment, the fused geometry: what is read of an image, and what comes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment
from keras_vgg.augment import geometry

# (height, width) of an image, smallest side to which it is rescaled, size of the crop
CASES = [
    (375, 500, 256, 224),
    (500, 333, 384, 224),  # portrait, odd
    (61, 47, 100, 64),  # enlarged
    (301, 401, 40, 32),  # shrunk more than sevenfold
    (8, 8, 36, 32),  # a handwritten digit
    (1, 40, 64, 48),  # a line
    (40, 1, 64, 64),
    (1, 1, 33, 32),
    (30, 20, 24, 32),  # smaller than the crop once rescaled
    (9, 2000, 16, 16),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def draws(count: int) -> np.ndarray:
    """What windows are made of, the four corners among them."""
    numbers = np.random.default_rng(1).uniform(size=(count, 3)).astype(np.float32)
    corners = [[0, 0], [0.9999999, 0.9999999], [0, 0.9999999], [0.9999999, 0]]
    numbers[:4, 1:] = corners[:count]
    return numbers


def windows(height: int, width: int, scale: int, size: int, count: int, padding: int = 0) -> list:
    return [
        augment.random_window(
            tf.constant([height, width]), u, size=size, scale=(scale, scale), crop_padding=padding
        )
        for u in draws(count)
    ]


def two_step(image: np.ndarray, window: augment.Window) -> np.ndarray:
    """The whole image resized, zeros around it, and the window cut out."""
    scaled, start = (x.numpy().astype(np.int32) for x in (window.scaled, window.start))
    resized = tf.image.resize(image, scaled, antialias=True).numpy()
    result = np.zeros((window.size, window.size, 3), np.float32)
    (top, left), (bottom, right) = np.maximum(start, 0), np.minimum(start + window.size, scaled)
    row, column = start
    result[top - row : bottom - row, left - column : right - column] = resized[
        top:bottom, left:right
    ]
    return result


@pytest.mark.parametrize(("height", "width", "scale", "size"), CASES)
def test_exact_resampling_equals_resizing_the_whole_image(
    height: int, width: int, scale: int, size: int
) -> None:
    image = noise(height, width)
    sides = geometry.scaled_sides(tf.constant([height, width]), scale)
    for window in windows(height, width, scale, size, 6, padding=size // 4):
        np.testing.assert_array_equal(window.scaled, sides)
        result = augment.resample(image, window)
        # float32 places a sample to a part in 2^22 of the longer side, and noise is the worst.
        tolerance = 255 * max(height, width, *window.scaled.numpy()) / 2**22
        np.testing.assert_allclose(result, two_step(image, window), atol=tolerance)


def test_exact_resampling_of_photographs(data_folder: Path) -> None:
    for path in sorted((data_folder / "imagenet_samples").iterdir())[:6]:
        image = tf.io.decode_jpeg(tf.io.read_file(str(path)), channels=3)
        for scale in (256, 512):
            window = windows(*image.shape[:2], scale, 224, 1)[0]
            result = augment.resample(image, window)
            resized = augment.rescale(image, scale)
            top, left = window.start.numpy()
            expected = resized[top : top + 224, left : left + 224]
            assert np.abs(result - expected).max() <= 1e-3
            assert np.abs(result - expected).mean() <= 2e-5


@pytest.mark.parametrize(("height", "width", "scale", "size"), CASES)
def test_a_snapped_window_is_the_nearest_whole_pixels(
    height: int, width: int, scale: int, size: int
) -> None:
    def op(u: tf.Tensor) -> tuple:
        window = augment.random_window(
            tf.constant([height, width]), u, size=size, scale=(scale, scale), crop_padding=size // 4
        )
        low, high = geometry.visible(window)
        snapped = geometry.snapped(tf.constant(sides, tf.int64), window.scaled, low, high)
        return (low, high, window.scaled, *snapped)

    sides = np.array([height, width])
    low, high, scaled, first, last = mapped(op, draws(200))
    assert (low >= 0).all() and (high <= scaled).all() and (low < high).all()  # noqa: PT018
    assert (first >= 0).all() and (last <= sides).all() and (first < last).all()  # noqa: PT018
    wanted = np.stack([low * sides / scaled, high * sides / scaled])
    moved = np.abs(np.stack([first, last]) - wanted)
    # Half a pixel, and up to one where less than a pixel is wanted.
    assert (moved <= np.where(wanted[1] - wanted[0] < 1, 1.0, 0.5)).all()


def test_fast_resampling_is_the_window_cut_out_and_resized() -> None:
    image = noise(375, 500)
    for window in windows(375, 500, 300, 224, 8):
        low, high = geometry.visible(window)
        sides = tf.constant([375, 500], tf.int64)
        (top, left), (bottom, right) = geometry.snapped(sides, window.scaled, low, high)
        expected = tf.image.resize(image[top:bottom, left:right], [224, 224])
        np.testing.assert_array_equal(augment.resample(image, window, exact=False), expected)


@pytest.mark.parametrize(("height", "width", "scale"), [(8, 8, 36), (301, 401, 40)])
def test_fast_resampling_is_exact_beyond_a_factor_of_two(
    height: int, width: int, scale: int
) -> None:
    image = noise(height, width)
    for window in windows(height, width, scale, 32, 3):
        np.testing.assert_array_equal(
            augment.resample(image, window, exact=False), augment.resample(image, window)
        )


def test_no_more_is_read_than_is_needed() -> None:
    image, parts = noise(400, 600), []

    def read(part: tf.Tensor) -> tf.Tensor:
        top, left, height, width = part.numpy()
        parts.append((height, width))
        return tf.constant(image[top : top + height, left : left + width])

    picture = augment.Picture(tf.constant([400, 600]), read)
    for seed in range(5):
        result = augment.train_image(picture, [0, seed], size=64, scale=(200, 200), hue=0.1)
        assert parts.pop() == (128, 128)
        expected = augment.train_image(image, [0, seed], size=64, scale=(200, 200), hue=0.1)
        np.testing.assert_array_equal(result, expected)
    result = augment.eval_image(picture, size=64, scale=200)
    height, width = parts.pop()
    # One crop and, either side, the reach of the filter and one to be sure.
    assert 128 <= height <= 128 + 8 and 128 <= width <= 128 + 8  # noqa: PT018
    np.testing.assert_array_equal(result, augment.eval_image(image, size=64, scale=200))
    views = augment.grid_crops(picture, size=64, scale=100)
    np.testing.assert_array_equal(views, augment.grid_crops(image, size=64, scale=100))
    assert parts == [(400, 600)]


def mapped(op: Callable, items: np.ndarray) -> list[np.ndarray]:
    """What op gives for each item, in one tf.data pass."""
    dataset = tf.data.Dataset.from_tensor_slices(items).map(op).batch(len(items))
    return [x.numpy() for x in tf.nest.flatten(dataset.get_single_element())]


def drawn(op: Callable, count: int) -> list[np.ndarray]:
    return mapped(op, np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.int32))


@pytest.mark.slow
def test_scales_and_offsets_are_drawn_evenly_and_reach_the_ends() -> None:
    def op(seed: tf.Tensor) -> tuple:
        window = augment.train_window(
            tf.constant([30, 40]), seed, size=24, scale=(28, 31), crop_padding=1
        )
        return window.scaled, window.start

    scaled, start = drawn(op, 4000)
    sides, counts = np.unique(scaled, axis=0, return_counts=True)
    # 40 / 30 of it, rounded
    np.testing.assert_array_equal(sides, [[28, 37], [29, 39], [30, 40], [31, 41]])
    assert counts.min() > 890  # 1000 each, standard deviation 27
    assert counts.max() < 1110
    at_30 = start[scaled[:, 0] == 30]
    rows, counts = np.unique(at_30[:, 0], return_counts=True)
    np.testing.assert_array_equal(rows, np.arange(-1, 8))  # 30 + 2 - 24 and one more
    assert counts.min() > 70  # 111 each, standard deviation 10
    np.testing.assert_array_equal(np.unique(at_30[:, 1]), np.arange(-1, 18))


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("sides", "scale", "padding", "resize"),
    [
        ((240, 120), (32, 128), 0, "pad"),
        ((300, 25), (64, 128), 0, "pad"),
        ((300, 40), (40, 96), 16, "pad"),
        ((40, 40), None, 31, "crop"),
        ((4, 90), (32, 60), 31, "pad"),
    ],
)
def test_no_crop_is_zeros_alone(
    sides: tuple[int, int], scale: tuple[int, int] | None, padding: int, resize: Any
) -> None:
    def op(seed: tf.Tensor) -> tuple:
        window = augment.train_window(
            tf.constant(sides), seed, size=32, scale=scale, crop_padding=padding, resize=resize
        )
        return (*geometry.visible(window), window.scaled)

    low, high, scaled = drawn(op, 2000)
    assert (high > low).all()
    # No padding that was not asked for takes a pixel's place.
    assert (high - low >= np.minimum(scaled, 32) - min(padding, 31)).all()
    white = np.full((*sides, 3), 255, np.uint8)
    for seed in range(8):
        crop = augment.train_image(
            white, [seed, 0], size=32, scale=scale, crop_padding=padding, resize=resize
        )
        assert crop.numpy().max() > 0


def test_every_pixel_of_an_image_is_reached() -> None:
    def op(seed: tf.Tensor) -> tuple:
        window = augment.train_window(tf.constant([33, 47]), seed, size=24, scale=(26, 40))
        return geometry.snapped(
            tf.constant([33, 47], tf.int64), window.scaled, *geometry.visible(window)
        )

    reached = np.zeros((33, 47), bool)
    for first, last in zip(*drawn(op, 2000), strict=True):
        reached[first[0] : last[0], first[1] : last[1]] = True
    assert reached.all()


def test_snapping_shifts_neither_way_on_average() -> None:
    def op(seed: tf.Tensor) -> tuple:
        sides = tf.constant([375, 500], tf.int64)
        window = augment.train_window(sides, seed, size=224, scale=(256, 512))
        low, high = geometry.visible(window)
        return (*geometry.snapped(sides, window.scaled, low, high), low, window.scaled)

    first, last, low, scaled = drawn(op, 3000)
    shift = first - low * [375, 500] / scaled
    assert np.abs(shift.mean(axis=0)).max() < 0.04  # standard error 0.005, halves go up
    zoom = (last - first) / (224 * np.array([375, 500]) / scaled)
    assert np.abs(zoom.mean(axis=0) - 1).max() < 1e-3


def test_a_scale_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale=\(9, 8\) must be \(smallest, largest\)"):
        augment.random_window(tf.constant([8, 8]), tf.zeros(3), size=4, scale=(9, 8))

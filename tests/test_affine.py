"""keras_vgg.augment.affine: one map of places, one interpolation, against NumPy."""

import math
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment, data
from keras_vgg.augment import affine, geometry
from tests.test_augment import call, noise

# (height, width) of an image, smallest side to which it is rescaled, size of the crop
CASES = [
    (90, 70, 48, 40),  # shrunk by less than two
    (8, 9, 36, 32),  # enlarged: a handwritten digit
    (301, 401, 40, 32),  # shrunk sevenfold
    (5, 300, 24, 24),  # a long strip
    (1, 1, 33, 32),
]
LEFT_RIGHT, NOT_MIRRORED = tf.constant([False, True]), tf.constant([False, False])


def reference(image: np.ndarray, window: augment.Window) -> np.ndarray:
    """Interpolate at each pixel's centre; black beyond the image's edge, blended over a pixel."""
    read, scaled = np.array(image.shape[:2]), window.scaled.numpy()
    reduction = np.maximum(read // scaled, 1)
    sides = np.maximum(read // reduction, 1)
    if (reduction > 1).any():
        image = tf.image.resize(image, sides, antialias=True).numpy()
    centers = np.stack(np.mgrid[: window.size, : window.size], axis=-1) + 0.5
    linear, offset = window.view.map.numpy()[:, :2], window.view.map.numpy()[:, 2]
    ratio = sides / scaled
    places = (centers @ linear.T + offset + window.start.numpy()) * ratio
    step = np.linalg.norm(ratio[:, np.newaxis] * linear, axis=1)
    shares = np.minimum(places / step, (sides - places) / step) + 0.5
    share = np.clip(shares, 0, 1).prod(axis=-1)
    places = np.clip(places - 0.5, 0, sides - 1)
    first = np.floor(places).astype(int)
    last = np.minimum(first + 1, sides - 1)
    down, right = np.moveaxis(places - first, -1, 0)[..., np.newaxis]
    (top, left), (bottom, right_side) = np.moveaxis(first, -1, 0), np.moveaxis(last, -1, 0)
    upper = (1 - right) * image[top, left] + right * image[top, right_side]
    lower = (1 - right) * image[bottom, left] + right * image[bottom, right_side]
    return share[..., np.newaxis] * ((1 - down) * upper + down * lower)


def window_of(case: tuple[int, ...], changes: list, mirrored: tf.Tensor) -> augment.Window:
    height, width, scale, size = case
    window = augment.random_window(
        tf.constant([height, width]), tf.constant([0.5, 0.3, 0.6]), size=size, scale=(scale, scale)
    )
    return window._replace(view=affine.view_of(size, changes, mirrored))


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("case", CASES)
def test_a_view_is_one_interpolation_of_the_source(case: tuple[int, ...]) -> None:
    image, size = noise(*case[:2]), case[3]
    changes = [
        affine.affine_map(size / 2, 0.4, (0.2, -0.3), (3.5, -2.25)),
        affine.affine_map(0.0, shear=(0.0, 0.5)),
    ]
    window = window_of(case, changes, LEFT_RIGHT)

    def op(pixels: tf.Tensor) -> tf.Tensor:
        return affine.seen(augment.picture_of(pixels), window, rescaled=True)

    result = call(op, image) if case == CASES[0] else op(tf.constant(image)).numpy()
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference(image, window), atol=0.1)


@pytest.mark.parametrize("case", CASES[:3])
@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (True, True)])
def test_a_view_that_changes_nothing_is_the_crop_bit_for_bit(
    case: tuple[int, ...], mirrored: tuple[bool, bool]
) -> None:
    image = augment.picture_of(noise(*case[:2]))
    neutral = affine.affine_map(case[3] / 2, 0.0, (0.0, 0.0), (0.0, 0.0))
    window = window_of(case, [neutral, neutral], tf.constant(mirrored))
    crop = augment.resample(image, window, exact=False).numpy()
    crop = crop[:: -1 if mirrored[0] else 1, :: -1 if mirrored[1] else 1]
    np.testing.assert_array_equal(affine.seen(image, window, rescaled=True), crop)


@pytest.mark.parametrize("mirrored", [(False, False), (True, True)])
@pytest.mark.parametrize("shift", [(3.0, -5.0), (0.0, 31.0), (40.0, 0.0)])
def test_a_move_by_whole_pixels_is_a_crop_elsewhere(
    shift: tuple[float, float], mirrored: tuple[bool, bool]
) -> None:
    image = augment.picture_of(noise(60, 70))
    window = geometry.central_window([60, 70], size=32, scale=40)
    view = affine.view_of(32, [affine.affine_map(0.0, shift=shift)], tf.constant(mirrored))
    assert view.is_upright
    moved = affine.seen(image, window._replace(view=view), rescaled=True).numpy()
    # A mirrored image that is moved down is moved up before.
    signs = np.where(mirrored, 1, -1)
    start = window.start + (signs * np.array(shift)).astype(np.int64)
    if shift[0] == 40.0:  # nothing of the image is left
        assert (moved == 0).all()
        return
    elsewhere = window._replace(start=start, inside=False)
    expected = augment.resample(image, elsewhere, exact=False).numpy()
    expected = expected[:: -1 if mirrored[0] else 1, :: -1 if mirrored[1] else 1]
    np.testing.assert_array_equal(moved, expected)
    # Resampling moves a window to whole pixels of the source, the map does not.
    warped = affine.warp(image, window, view).numpy()
    assert np.abs(warped.mean() - moved.mean()) < 2


def changed(image: np.ndarray, change: tf.Tensor) -> np.ndarray:
    """A square image that is not rescaled, changed."""
    size = image.shape[0]
    window = geometry.central_window(image.shape[:2], size=size)
    window = window._replace(view=affine.view_of(size, [change], NOT_MIRRORED))
    return affine.seen(augment.picture_of(image), window, rescaled=False).numpy()


def test_each_map_is_what_it_says() -> None:
    image = noise(12, 12)
    turned = changed(image, affine.affine_map(6.0, math.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-2)  # counterclockwise
    moved = changed(image, affine.affine_map(6.0, shift=(2.0, -3.0)))
    expected = np.zeros_like(image)
    expected[2:, :9] = image[:10, 3:]
    np.testing.assert_allclose(moved, expected, atol=1e-3)
    # Rows 6.5, 7.5, ... are 0.5, 1.5, ... below the centre, and go twice as far to the left.
    slanted = changed(image, affine.affine_map(6.0, shear=(0.0, 2.0)))
    for row in range(12):
        source = np.arange(12) + 2 * row - 11
        inner = (source >= 1) & (source <= 10)  # the image's edge is blended with black
        np.testing.assert_allclose(slanted[row, inner], image[row, source[inner]], atol=1e-3)
        assert (slanted[row, (source < -1) | (source > 12)] == 0).all()
    upright = changed(image.transpose(1, 0, 2), affine.affine_map(6.0, shear=(2.0, 0.0)))
    np.testing.assert_allclose(upright, slanted.transpose(1, 0, 2), atol=1e-3)


def test_maps_compose_in_the_order_of_the_changes() -> None:
    image = np.pad(noise(6, 6), [(5, 5), (5, 5), (0, 0)])
    turn, move = affine.affine_map(8.0, math.pi / 2), affine.affine_map(8.0, shift=(0.0, 2.0))
    turned_then_moved = changed(image, affine.compose(turn, move))
    expected = np.roll(np.rot90(image), 2, axis=1)
    np.testing.assert_allclose(turned_then_moved, expected, atol=1e-2)


@pytest.mark.parametrize("degrees", [0.001, 10.0, 45.0])
def test_a_turned_image_that_is_reduced_does_not_alias(degrees: float) -> None:
    rows, columns = np.mgrid[:500, :500]
    board = np.repeat(255 * ((rows + columns) % 2)[..., np.newaxis], 3, axis=-1).astype(np.uint8)
    window = geometry.central_window([500, 500], size=160, scale=224)
    turn = affine.affine_map(80.0, math.radians(degrees))
    window = window._replace(view=affine.view_of(160, [turn], NOT_MIRRORED))
    pixels = affine.seen(augment.picture_of(board), window, rescaled=True).numpy()
    assert abs(pixels.mean() - 127.5) < 0.5
    assert pixels.std() < 3  # 127.5 without a reduction


def test_only_what_is_seen_is_read() -> None:
    image, parts = noise(400, 600), []

    def read(part: tf.Tensor) -> tf.Tensor:
        top, left, height, width = part.numpy()
        parts.append((height, width))
        return tf.constant(image[top : top + height, left : left + width])

    picture = augment.Picture(tf.constant([400, 600]), read)
    options = {"size": 64, "crop_area": (0.02, 0.02), "rotation": 45.0}
    for seed in range(4):
        result = augment.train_image(picture, [0, seed], **options)
        np.testing.assert_array_equal(result, augment.train_image(image, [0, seed], **options))
        # 4,800 pixels in the crop, at most twice as many turned, and two around them.
        assert np.prod(parts.pop()) < 2.5 * 4800


def test_corners_lie_where_the_map_says() -> None:
    sides = tf.constant([100, 200])
    window = augment.train_window(sides, [0, 1], size=32, scale=(50, 50))
    top, left = window.start.numpy()
    expected = 2.0 * np.array([[0, 0], [0, 32], [32, 32], [32, 0]]) + 2.0 * np.array([top, left])
    np.testing.assert_allclose(augment.corners(sides, window), expected)
    quarter = affine.affine_map(16.0, math.pi / 2)
    turned = window._replace(view=affine.view_of(32, [quarter], NOT_MIRRORED))
    # After a quarter turn to the left, the upper right corner is the upper left one.
    found = augment.corners(sides, turned).numpy()
    np.testing.assert_allclose(found, np.roll(expected, -1, axis=0), atol=1e-3)


EVERYTHING = {
    "size": 32, "crop_area": (0.3, 1.0), "rotation": 20.0, "shear": 0.1, "translation": 0.1,
    "vertical_flip": True, "policy": augment.rand_augment(2, 12), "brightness": 0.1,
    "cutout": 0.4,
}  # fmt: skip


@pytest.mark.slow
def test_a_batch_is_a_function_of_seed_epoch_and_step() -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 40, 48, 3)).astype(np.uint8)
    split = data.Split("train", 24, labels=np.zeros(24, np.int32), images=images)
    batches = partial(
        data.training_dataset, split, transform=partial(augment.train_image, **EVERYTHING), seed=3
    )
    whole = [x for x, _ in batches(8).take(5).as_numpy_iterator()]
    # The fifth batch is the second of epoch 1; the second of two hosts makes half of it.
    place = {"start_epoch": 1, "start_step": 1, "host": 1, "hosts": 2}
    resumed = next(batches(4, **place).as_numpy_iterator())[0]
    np.testing.assert_array_equal(resumed, whole[4][4:])
    assert len({x.tobytes() for x in np.concatenate(whole)}) == 40


def test_switching_a_view_off_leaves_the_crop_and_the_colour_as_they_were() -> None:
    image, seed = noise(60, 80), [4, 7]
    plain = {"size": 32, "crop_area": (0.3, 1.0)}
    expected = augment.train_window(tf.constant([60, 80]), seed, **plain)
    options = {**plain, "rotation": 20.0, "policy": augment.trivial_augment()}
    window = augment.train_window(tf.constant([60, 80]), seed, **options)
    np.testing.assert_array_equal(window.scaled, expected.scaled)
    np.testing.assert_array_equal(window.start, expected.start)
    flipped = augment.train_image(image, seed, **plain, vertical_flip=True).numpy()
    crop = augment.train_image(image, seed, **plain).numpy()
    assert (flipped == crop).all() or (flipped == crop[::-1]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_cut_out_covers_a_square_with_the_mean(channels: int) -> None:
    image = noise(32, 32)[..., :channels]
    for draws, (rows, columns) in (
        ([0.5, 0.5], (slice(8, 24), slice(8, 24))),
        ([0.0, 0.999], (slice(0, 8), slice(23, 32))),  # the image's edge cuts the square
    ):
        result = augment.cut_out(tf.constant(image), tf.constant(draws), 0.5).numpy()
        mean = np.floor(image.astype(float).mean(axis=(0, 1)) + 0.5)
        assert (result[rows, columns] == mean).all()
        outside = np.ones((32, 32), bool)
        outside[rows, columns] = False
        np.testing.assert_array_equal(result[outside], image[outside])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rotation", -1.0),
        ("rotation", 181.0),
        ("rotation", math.nan),
        ("shear", 1.5),
        ("translation", -0.1),
        ("cutout", 1.1),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.5, 0.2)),
        ("crop_area", (0.5, 1.5)),
    ],
)
def test_train_image_refuses_wrong_ranges(name: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=name):
        augment.train_image(noise(8, 8), [0, 0], size=4, **{name: wrong})

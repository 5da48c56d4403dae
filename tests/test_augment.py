"""keras_vgg.augment: every operation is tested eagerly and in tf.data."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment


def call(op: Callable, image: np.ndarray, *rest: object) -> np.ndarray:
    """op(image, seed...), eagerly and in tf.data with sides known and unknown, which must agree."""
    given = (tf.constant(image), *map(tf.constant, rest))
    eager = op(*given).numpy()

    def both(image: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        free = tf.raw_ops.PlaceholderWithDefault(input=image, shape=tf.TensorShape([None, None, 3]))
        return op(image, *rest), op(free, *rest)

    for result in tf.data.Dataset.from_tensors(given).map(both).get_single_element():
        assert result.dtype == eager.dtype
        # The order of additions may differ.
        np.testing.assert_allclose(result, eager, atol=1e-2)
    return eager


def noise(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(dtype)


def many(op: Callable, image: np.ndarray, count: int) -> np.ndarray:
    """op(image, seed) for the seeds [0, 0]..[0, count - 1], in one tf.data pass."""
    seeds = np.stack([np.zeros(count), np.arange(count)], axis=1).astype(np.int32)
    image = tf.constant(image)
    dataset = tf.data.Dataset.from_tensor_slices(seeds).map(partial(op, image))
    return np.stack(list(dataset.as_numpy_iterator()))


# --- geometry --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "smallest", "expected"),
    [
        ((40, 60), 20, (20, 30)),
        ((60, 40), 80, (120, 80)),
        ((10, 15), 3, (3, 5)),  # 4.5 rounds up
        ((3, 100), 1, (1, 33)),
        ((7, 7), 7, (7, 7)),
        ((375, 500), 256, (256, 341)),  # 341.33
    ],
)
def test_rescale_sides(sides: tuple[int, int], smallest: int, expected: tuple[int, int]) -> None:
    result = call(partial(augment.rescale, side=smallest), noise(*sides))
    assert result.shape == (*expected, 3)
    assert result.dtype == np.float32


@pytest.mark.parametrize("antialias", [True, False])
def test_rescale_is_bilinear(antialias: bool) -> None:
    image = noise(40, 60)
    op = partial(augment.rescale, side=16, antialias=antialias)
    expected = tf.image.resize(image, [16, 24], antialias=antialias)
    np.testing.assert_allclose(call(op, image), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("resize", "sides", "expected"),
    [
        ("squash", (40, 300), (20, 20)),
        ("pad", (40, 300), (3, 20)),  # 2.67
        ("pad", (60, 40), (20, 13)),
        ("pad", (1, 900), (1, 20)),
    ],
)
def test_rescale_squashes_or_takes_the_largest_side(
    resize: str, sides: tuple[int, int], expected: tuple[int, int]
) -> None:
    result = call(partial(augment.rescale, side=20, resize=resize), noise(*sides))
    assert result.shape == (*expected, 3)


def test_rescale_refuses_another_resize() -> None:
    with pytest.raises(ValueError, match=r'resize=.stretch. must be "crop", "squash" or "pad"'):
        augment.rescale(noise(4, 4), 8, resize="stretch")


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("sides", [(40, 300), (300, 40), (50, 50)])
def test_every_way_of_seeing_an_image_resizes_alike(sides: tuple[int, int]) -> None:
    image = noise(*sides)
    squashed = tf.image.resize(image, [36, 36], antialias=True).numpy()
    padded = augment.pad_to(augment.rescale(image, 36, resize="pad"), 36, 36).numpy()
    for resize, whole in (("squash", squashed), ("pad", padded)):
        options = {"size": 32, "scale": 36, "resize": resize}
        center = call(partial(augment.eval_image, **options), image)
        np.testing.assert_allclose(center, whole[2:34, 2:34], atol=1e-3)
        dense = call(partial(augment.whole_image, **options), image)
        np.testing.assert_allclose(dense, whole, atol=1e-3)
        crops = call(partial(augment.grid_crops, grid=2, flip=False, **options), image)
        np.testing.assert_allclose(crops[0], whole[:32, :32], atol=1e-3)
        np.testing.assert_allclose(crops[3], whole[4:, 4:], atol=1e-3)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_training_sees_an_image_resized_alike(resize: str) -> None:
    """At the scale of the crop there is one place for the crop: evaluation's."""
    image = np.repeat(np.repeat(noise(5, 30), 12, axis=0), 12, axis=1)  # smooth
    train = partial(augment.train_image, size=32, scale=(32, 32), resize=resize, flip=False)
    evaluated = augment.eval_image(image, size=32, scale=32, resize=resize).numpy()
    result = call(train, image, [1, 2])
    np.testing.assert_allclose(result, evaluated, atol=0.51)


def test_rescale_refuses_no_pixels() -> None:
    with pytest.raises(ValueError, match="side=0"):
        augment.rescale(noise(4, 4), 0)


def test_pad_to_puts_the_odd_pixel_at_the_bottom_right() -> None:
    image = noise(3, 4)
    result = call(partial(augment.pad_to, height=6, width=9), image)
    np.testing.assert_array_equal(result, np.pad(image, [(1, 2), (2, 3), (0, 0)]))
    assert result.dtype == np.uint8


def test_pad_to_leaves_long_sides_alone() -> None:
    image = noise(8, 4)
    np.testing.assert_array_equal(
        call(partial(augment.pad_to, height=6, width=6), image),
        np.pad(image, [(0, 0), (1, 1), (0, 0)]),
    )
    np.testing.assert_array_equal(call(partial(augment.pad_to, height=8, width=2), image), image)


def test_center_crop() -> None:
    image = noise(9, 6)
    result = call(partial(augment.center_crop, size=4), image)
    np.testing.assert_array_equal(result, image[2:6, 1:5])  # floor(5 / 2), 2 / 2


def test_random_crop_is_a_window() -> None:
    image = np.arange(9 * 7 * 3, dtype=np.uint8).reshape(9, 7, 3)
    op = lambda image, seed: augment.random_crop(image, 5, seed)  # noqa: E731
    result = call(op, image, [3, 4])
    top, left = divmod(int(result[0, 0, 0]) // 3, 7)
    np.testing.assert_array_equal(result, image[top : top + 5, left : left + 5])


@pytest.mark.slow
def test_random_crop_reaches_every_offset_equally() -> None:
    rows, columns = np.mgrid[:7, :6]
    image = np.stack([rows, columns, columns], axis=-1).astype(np.uint8)
    crops = many(lambda image, seed: augment.random_crop(image, 4, seed), image, 2400)
    offsets, counts = np.unique(crops[:, 0, 0, :2], axis=0, return_counts=True)
    assert len(offsets) == 4 * 3
    # 200 each, standard deviation 13.5
    assert counts.min() > 140
    assert counts.max() < 260


@pytest.mark.parametrize("crop", [augment.center_crop, partial(augment.random_crop, seed=[0, 0])])
def test_a_crop_larger_than_the_image_is_refused(crop: Callable) -> None:
    with pytest.raises(ValueError, match="cannot crop 9 x 9 pixels from 8 x 10"):
        crop(noise(8, 10), size=9)


def test_random_flip_mirrors_half_of_the_time() -> None:
    image = noise(3, 4)
    flips = many(augment.random_flip, image, 1000)
    mirrored = (flips == image[:, ::-1]).all(axis=(1, 2, 3))
    same = (flips == image).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 430 < mirrored.sum() < 570


def test_random_flip_goes_both_ways_in_tf_data() -> None:
    image = noise(3, 4)
    flips = {
        bool((call(augment.random_flip, image, [0, seed]) == image).all()) for seed in range(4)
    }
    assert flips == {True, False}


# --- colour ----------------------------------------------------------------------------------


@pytest.fixture
def middling() -> np.ndarray:
    """A picture that moderate adjustments do not take out of [0, 255]."""
    return 100 + noise(6, 5).astype(np.float32) / 5


def test_brightness_is_that_of_tf_image(middling: np.ndarray) -> None:
    result = call(partial(augment.adjust_color, brightness_delta=-31.5), middling)
    np.testing.assert_allclose(result, tf.image.adjust_brightness(middling, -31.5), atol=1e-3)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.7])
def test_contrast_is_that_of_tf_image(middling: np.ndarray, factor: float) -> None:
    result = call(partial(augment.adjust_color, contrast_factor=factor), middling)
    np.testing.assert_allclose(result, tf.image.adjust_contrast(middling, factor), atol=1e-3)


def test_contrast_follows_brightness(middling: np.ndarray) -> None:
    result = call(
        partial(augment.adjust_color, brightness_delta=20.0, contrast_factor=1.4), middling
    )
    expected = tf.image.adjust_contrast(tf.image.adjust_brightness(middling, 20.0), 1.4)
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_saturation_interpolates_with_grey(middling: np.ndarray) -> None:
    grey = (middling @ [0.299, 0.587, 0.114])[..., np.newaxis]
    for factor in (0.0, 0.4, 1.5):
        result = call(partial(augment.adjust_color, saturation_factor=factor), middling)
        np.testing.assert_allclose(result, grey + factor * (middling - grey), atol=1e-3)


def test_hue_rotates_chroma_and_keeps_luma(middling: np.ndarray) -> None:
    def yiq(image: np.ndarray) -> np.ndarray:
        return tf.image.rgb_to_yiq(image).numpy()

    before = yiq(middling)
    after = yiq(call(partial(augment.adjust_color, hue_angle=0.9), middling))
    np.testing.assert_allclose(after[..., 0], before[..., 0], atol=2e-2)
    turned = (after[..., 1] + 1j * after[..., 2]) / (before[..., 1] + 1j * before[..., 2])
    np.testing.assert_allclose(np.angle(turned), 0.9, atol=0.02)
    np.testing.assert_allclose(np.abs(turned), 1.0, atol=0.02)


def test_a_full_turn_of_hue_and_neutral_factors_change_nothing(middling: np.ndarray) -> None:
    result = call(partial(augment.adjust_color, hue_angle=2 * math.pi), middling)
    np.testing.assert_allclose(result, middling, atol=1e-3)
    np.testing.assert_array_equal(call(augment.adjust_color, middling), middling)


def test_saturation_and_hue_leave_grey_alone() -> None:
    grey = np.repeat(noise(4, 4)[..., :1], 3, axis=-1)
    result = call(partial(augment.adjust_color, saturation_factor=1.9, hue_angle=1.2), grey)
    np.testing.assert_allclose(result, grey, atol=1e-2)


def test_all_four_are_the_four_in_turn(middling: np.ndarray) -> None:
    step = augment.adjust_color(middling, brightness_delta=12.0)
    step = augment.adjust_color(step, contrast_factor=0.8)
    step = augment.adjust_color(step, saturation_factor=1.3)
    step = augment.adjust_color(step, hue_angle=-0.4)
    result = call(lambda image: augment.adjust_color(image, 12.0, 0.8, 1.3, -0.4), middling)
    np.testing.assert_allclose(result, step, atol=1e-3)


def test_colour_is_clipped_to_the_range() -> None:
    image = noise(8, 8)
    op = partial(augment.adjust_color, contrast_factor=1.9, saturation_factor=1.9)
    result = call(op, image)
    assert result.dtype == np.float32
    assert result.min() == 0.0
    assert result.max() == 255.0


def test_color_jitter_is_adjust_color_with_drawn_amounts() -> None:
    image, seed = noise(8, 6), [5, 6]
    result = call(
        lambda image, seed: augment.color_jitter(image, seed, 0.1, 0.2, 0.3, 0.05), image, seed
    )
    b, c, s, h = tf.random.stateless_uniform([4], seed, -1.0, 1.0).numpy()
    expected = augment.adjust_color(
        image, 25.5 * b, 1 + 0.2 * c, 1 + 0.3 * s, 0.05 * 2 * math.pi * h
    )
    np.testing.assert_allclose(result, expected, atol=1e-3)


def test_brightness_draws_cover_their_range_evenly() -> None:
    image = np.full((1, 1, 3), 128, np.uint8)
    op = lambda image, seed: augment.color_jitter(image, seed, brightness=0.2)  # noqa: E731
    deltas = many(op, image, 1000)[:, 0, 0, 0] - 128
    assert -51 <= deltas.min() < -49
    assert 49 < deltas.max() <= 51
    assert abs(deltas.mean()) < 4  # standard error 0.93


def test_no_jitter_only_makes_floats() -> None:
    image = noise(4, 4)
    result = call(augment.color_jitter, image, [1, 2])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize(
    "strength", [{"hue": 0.51}, {"brightness": -0.1}, {"contrast": 1.1}, {"saturation": 2.0}]
)
def test_color_jitter_refuses_bad_strengths(strength: dict[str, float]) -> None:
    (name, value), *_ = strength.items()
    with pytest.raises(ValueError, match=f"{name}={value} must be between 0 and"):
        augment.color_jitter(noise(2, 2), [0, 0], **strength)


EIGENVALUES = np.array([0.2, 0.02, 0.005])
EIGENVECTORS = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]


def test_rgb_shift_moves_every_pixel_along_the_components(middling: np.ndarray) -> None:
    op = lambda image, seed: augment.rgb_shift(  # noqa: E731
        image, seed, 0.1, EIGENVALUES, EIGENVECTORS
    )
    result = call(op, middling, [7, 8])
    alpha = tf.random.stateless_normal([3], [7, 8], stddev=0.1).numpy()
    expected = middling + 255 * EIGENVECTORS @ (alpha * EIGENVALUES)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert np.abs(result - middling).max() > 0.1


@pytest.mark.slow
def test_rgb_shift_has_the_stated_covariance() -> None:
    image = np.full((1, 1, 3), 128.0, np.float32)
    op = lambda image, seed: augment.rgb_shift(  # noqa: E731
        image, seed, 0.1, EIGENVALUES, EIGENVECTORS
    )
    shifts = (many(op, image, 4000)[:, 0, 0] - 128.0) / 255
    along = shifts @ EIGENVECTORS
    np.testing.assert_allclose(along.std(axis=0), 0.1 * EIGENVALUES, rtol=0.05)


def test_rgb_shift_is_clipped() -> None:
    op = lambda image, seed: augment.rgb_shift(image, seed, 50.0, np.ones(3), np.eye(3))  # noqa: E731
    result = call(op, noise(4, 4), [0, 1])
    assert set(np.unique(result)) <= {0.0, 255.0}


# --- whole images ----------------------------------------------------------------------------

EVERYTHING = {
    "size": 16, "scale": (18, 24), "crop_padding": 2, "brightness": 0.1, "contrast": 0.1,
    "saturation": 0.1, "hue": 0.1, "shift": 0.1,
    "eigenvalues": EIGENVALUES, "eigenvectors": EIGENVECTORS,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_train_image_result(dtype: type) -> None:
    result = call(partial(augment.train_image, **EVERYTHING), noise(30, 40, dtype), [1, 2])
    assert result.shape == (16, 16, 3)
    assert result.dtype == np.uint8
    assert result.min() < 50 < 200 < result.max()


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
@pytest.mark.parametrize("options", [{}, {"hue": 0.2}, {"cutout": 0.25}, {"scale": (18, 24)}])
def test_train_image_takes_whole_numbers_of_any_type(options: dict, dtype: type) -> None:
    image, op = noise(30, 40, np.uint8), partial(augment.train_image, size=16, **options)
    np.testing.assert_array_equal(op(image.astype(dtype), [1, 2]), op(image, [1, 2]))


def test_all_colour_is_one_rounded_affine_map() -> None:
    """What `train_image` computes for speed is `adjust_color` and the shift, rounded."""
    image, seed = noise(16, 24).astype(np.float32) / 4 + 60, [4, 2]
    crop = augment.train_image(image, seed, size=16, flip=False).numpy().astype(np.float32)
    jitter = {"brightness": 0.1, "contrast": 0.3, "saturation": 0.4, "hue": 0.1}
    drawn = 2 * tf.random.stateless_uniform([8], seed).numpy()[4:] - 1
    for size, names in ((16, list(jitter)), (15, ["contrast"]), (16, ["hue"])):
        used = {name: jitter[name] if name in names else 0.0 for name in jitter}
        expected = augment.adjust_color(
            crop[:size, :size],
            255 * used["brightness"] * drawn[0],
            1 + used["contrast"] * drawn[1],
            1 + used["saturation"] * drawn[2],
            2 * math.pi * used["hue"] * drawn[3],
        )
        # The window of this image is at the same place for both sizes.
        op = partial(augment.train_image, size=size, flip=False, **used)
        whole = op(crop[:size, :size], seed).numpy()
        assert np.abs(whole - expected.numpy()).max() <= 0.51
    shifted = partial(
        augment.train_image, size=16, flip=False, shift=0.5, **jitter,
        eigenvalues=EIGENVALUES, eigenvectors=EIGENVECTORS,
    )  # fmt: skip
    without = partial(augment.train_image, size=16, flip=False, **jitter)
    difference = call(shifted, crop, seed).astype(float) - without(crop, seed)
    inside = np.ptp(difference, axis=(0, 1))
    assert (inside <= 1).all()  # one number a channel, but for rounding
    assert np.abs(difference).max() > 3


def test_train_image_has_a_static_shape() -> None:
    spec = tf.TensorSpec([None, None, 3], tf.uint8)
    op = tf.function(partial(augment.train_image, **EVERYTHING))
    assert op.get_concrete_function(spec, tf.TensorSpec([2], tf.int32)).output_shapes == (16, 16, 3)
    op = tf.function(partial(augment.eval_image, size=16, scale=20))
    assert op.get_concrete_function(spec).output_shapes == (16, 16, 3)


def test_train_image_is_a_function_of_its_seed() -> None:
    op = partial(augment.train_image, **EVERYTHING)
    image = noise(30, 40)
    first = call(op, image, [1, 2])
    np.testing.assert_array_equal(first, op(image, tf.constant([1, 2])))
    assert not np.array_equal(first, op(image, tf.constant([1, 3])))
    # int64 seeds are seeds, too
    assert op(image, tf.constant(np.array([1, 2]))).shape == (16, 16, 3)


@pytest.mark.slow
def test_train_image_scale_covers_its_range_inclusively() -> None:
    image = np.full((10, 10, 3), 200, np.uint8)
    # Padding shows how large the rescaled image was.
    op = partial(augment.train_image, size=12, scale=(8, 12), flip=False)
    crops = many(op, image, 500)
    sides, counts = np.unique((crops[..., 0] > 0).any(axis=1).sum(axis=1), return_counts=True)
    np.testing.assert_array_equal(sides, [8, 9, 10, 11, 12])
    assert counts.min() > 65  # 100 each, standard deviation 9


def test_train_image_crop_padding_reaches_every_offset() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[4, 4] = 255
    crops = many(partial(augment.train_image, size=8, crop_padding=2, flip=False), image, 600)
    where = {tuple(np.argwhere(crop[..., 0])[0]) for crop in crops}
    assert where == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_train_image_pads_small_images_before_the_crop() -> None:
    image = noise(5, 6)
    result = call(partial(augment.train_image, size=8, flip=False), image, [0, 0])
    np.testing.assert_array_equal(result, np.pad(image, [(1, 2), (1, 1), (0, 0)]))


def test_switching_one_operation_off_leaves_the_others_as_they_were() -> None:
    image, seed = noise(20, 20), [3, 9]
    crop = call(partial(augment.train_image, size=8, flip=False), image, seed)
    flip = call(partial(augment.train_image, size=8), image, seed)
    assert np.array_equal(flip, crop) or np.array_equal(flip, crop[:, ::-1])
    bright = call(partial(augment.train_image, size=8, flip=False, brightness=0.01), image, seed)
    assert np.abs(bright - crop).max() <= 2.56


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (8, 4)}, r"scale=\(8, 4\)"),
        ({"scale": (0, 4)}, r"scale=\(0, 4\)"),
        ({"crop_padding": -1}, "crop_padding=-1"),
        ({"crop_padding": 4}, "crop_padding=4 must be 0 or more pixels, below size=4"),
        ({"shift": 0.1}, "shift=0.1 needs eigenvalues"),
        ({"hue": 0.6}, "hue=0.6"),
    ],
)
def test_train_image_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment.train_image(noise(8, 8), [0, 0], size=4, **options)


def test_eval_image_pads_and_does_not_stretch() -> None:
    image = noise(28, 28)
    result = call(partial(augment.eval_image, size=32), image)
    np.testing.assert_array_equal(result, np.pad(image, [(2, 2), (2, 2), (0, 0)]))
    assert result.dtype == np.float32


def test_eval_image_rescales_and_takes_the_centre() -> None:
    image = noise(40, 60)
    result = call(partial(augment.eval_image, size=16, scale=20), image)
    resized = tf.image.resize(image, [20, 30], antialias=True).numpy()
    np.testing.assert_allclose(result, resized[2:18, 7:23], atol=1e-3)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("padding", "height", "width"),
    [
        (0, 41, 64),
        (3, 36, 36),
        (3, 28, 20),  # narrower than the crop, even padded
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0, 36, 36), (0, 32, 32), (0, 28, 20), (3, 41, 64), (3, 32, 32))
        ),
    ],
)
def test_grid_crops_are_the_crops_by_hand(height: int, width: int, padding: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype("uint8")
    views = call(partial(augment.grid_crops, size=32, padding=padding), image)
    assert views.shape == (50, 32, 32, 3)
    assert views.dtype == np.float32
    sides = [max(side + 2 * padding, 32) for side in (height, width)]
    before = [(side - old) // 2 for side, old in zip(sides, (height, width), strict=True)]
    padded = np.zeros((*sides, 3), "uint8")
    padded[before[0] : before[0] + height, before[1] : before[1] + width] = image
    tops, lefts = ([int((side - 32) * k / 4) for k in range(5)] for side in sides)
    expected = [padded[top : top + 32, left : left + 32] for top in tops for left in lefts]
    np.testing.assert_array_equal(views[:25], expected)
    np.testing.assert_array_equal(views[25:], [crop[:, ::-1] for crop in expected])


def test_grid_crops_rescale_and_need_two_a_side() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype("uint8")
    views = call(partial(augment.grid_crops, size=32, scale=40, grid=3, flip=False), image)
    whole = augment.rescale(tf.constant(image), 40).numpy()
    assert views.shape == (9, 32, 32, 3)
    np.testing.assert_allclose(views[4], whole[4:36, 10:42], atol=1e-3)
    with pytest.raises(ValueError, match="at least 2 crops a side"):
        augment.grid_crops(image, size=32, grid=1)

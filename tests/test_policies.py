"""keras_vgg.augment.policies and tones: what is drawn, and what each operation does."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from keras_vgg import augment
from keras_vgg.augment import policies, tones
from tests.test_augment import call, noise


def smooth() -> np.ndarray:
    """A picture of even areas and edges, with no black and no white."""
    pixels = np.repeat(np.repeat(noise(6, 6), 6, axis=0), 6, axis=1).astype(float)
    return (20 + 0.8 * pixels + noise(36, 36) / 40).astype(np.uint8)


def enhanced(enhancer: Callable, factor: float) -> np.ndarray:
    return np.asarray(enhancer(Image.fromarray(smooth())).enhance(factor))


@pytest.mark.parametrize("factor", [0.01, 0.6, 1.0, 1.99])
@pytest.mark.parametrize(
    ("tone", "enhancer"),
    [
        (tones.brightness, ImageEnhance.Brightness),
        (tones.saturation, ImageEnhance.Color),
        (tones.contrast, ImageEnhance.Contrast),
        (tones.sharpness, ImageEnhance.Sharpness),
    ],
    ids=["brightness", "saturation", "contrast", "sharpness"],
)
def test_factors_are_those_of_pillow(tone: tones.Tone, enhancer: Callable, factor: float) -> None:
    result = tone(tf.constant(smooth()), tf.constant(factor)).numpy()
    assert result.dtype == np.uint8
    expected = enhanced(enhancer, factor).astype(int)
    # Pillow rounds luma and blurred image first.
    np.testing.assert_allclose(result, expected, atol=2)
    assert abs(result.mean() - expected.mean()) < 0.6
    if factor == 1.0:
        np.testing.assert_array_equal(result, smooth())


@pytest.mark.parametrize(
    ("tone", "strength", "expected"),
    [
        *((tones.posterize, bits, partial(ImageOps.posterize, bits=bits)) for bits in (8, 4, 2)),
        (tones.solarize, 255.0, partial(ImageOps.solarize, threshold=255.0)),
        (tones.solarize, 76.5, partial(ImageOps.solarize, threshold=76.5)),
        (tones.solarize, 0.0, partial(ImageOps.solarize, threshold=0.0)),
        (tones.equalize, 0.0, ImageOps.equalize),
        (tones.autocontrast, 0.0, ImageOps.autocontrast),
    ],
)
@pytest.mark.parametrize("kind", ["smooth", "one value", "two values"])
def test_other_tones_are_those_of_pillow(
    kind: str, tone: tones.Tone, strength: float, expected: Callable
) -> None:
    image = smooth() if kind == "smooth" else np.full((36, 36, 3), 77, np.uint8)
    if kind == "two values":
        image[:9] = 140
    result = tone(tf.constant(image), tf.constant(strength, tf.float32)).numpy()
    theirs = np.asarray(expected(Image.fromarray(image))).astype(int)
    np.testing.assert_allclose(result, theirs, atol=1 if tone is tones.autocontrast else 0)


def test_tones_of_a_grey_image_are_those_of_its_rgb() -> None:
    grey = smooth()[..., :1]
    for tone in policies.TONES.values():
        strength = tf.constant(4.0 if tone is tones.posterize else 1.4)
        result = tone(tf.constant(grey), strength).numpy()
        in_rgb = tone(tf.constant(np.repeat(grey, 3, axis=-1)), strength).numpy()
        np.testing.assert_allclose(result, in_rgb[..., :1].astype(int), atol=1)


def test_trivial_augment_has_the_wide_space() -> None:
    table = dict(
        zip(policies.OPERATIONS, policies.strengths(augment.trivial_augment(), 224), strict=True)
    )
    assert len(table) == 14
    highest = {name: float(row[30]) for name, row in table.items() if row.any()}
    assert highest == pytest.approx(
        {
            "rotate": 135, "shear_x": 0.99, "shear_y": 0.99, "translate_x": 32, "translate_y": 32,
            "brightness": 0.99, "saturation": 0.99, "contrast": 0.99, "sharpness": 0.99,
            "posterize": 2, "solarize": 0,
        }
    )  # fmt: skip
    assert table["posterize"][0] == 8
    assert table["solarize"][0] == 255
    assert table["rotate"][10] == pytest.approx(45)


def test_rand_augment_follows_the_size_of_the_image() -> None:
    small, large = (
        dict(
            zip(policies.OPERATIONS, policies.strengths(augment.rand_augment(), size), strict=True)
        )
        for size in (32, 224)
    )
    assert large["rotate"][30] == 30
    assert large["posterize"][30] == 4
    assert large["translate_x"][30] == math.floor(150 / 331 * 224)
    assert small["translate_x"][30] == math.floor(150 / 331 * 32)


def drawn(policy: augment.Policy, count: int) -> tuple[np.ndarray, np.ndarray]:
    seeds = np.stack([np.full(count, 5), np.arange(count)], axis=1).astype(np.int32)

    def draw(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        operations = policies.draw(policy, seed, 224)
        return tf.stack([o.number for o in operations]), tf.stack([o.strength for o in operations])

    pairs = tf.data.Dataset.from_tensor_slices(seeds).map(draw).batch(count)
    return tuple(x.numpy() for x in pairs.get_single_element())


def test_trivial_augment_draws_every_operation_level_and_sign_equally() -> None:
    numbers, strengths = drawn(augment.trivial_augment(), 4200)
    assert numbers.shape == (4200, 1)
    counts = np.bincount(numbers[:, 0], minlength=14)
    assert counts.min() > 240  # 300 each, standard deviation 17
    assert counts.max() < 360
    degrees = strengths[numbers == policies.OPERATIONS.index("rotate")]
    np.testing.assert_allclose(degrees % 4.5, 0, atol=1e-4)
    assert 0.4 < (degrees > 0).mean() < 0.58
    assert len(np.unique(degrees)) > 50  # of 61
    factors = strengths[numbers == policies.OPERATIONS.index("brightness")]
    assert 0.0099 <= factors.min() < 0.1 < 1.9 < factors.max() <= 1.9901


def test_rand_augment_draws_its_number_of_operations_of_one_level() -> None:
    numbers, strengths = drawn(augment.rand_augment(3, 15), 1000)
    assert numbers.shape == (1000, 3)
    degrees = strengths[numbers == policies.OPERATIONS.index("rotate")]
    assert set(np.round(degrees, 3)) == {15.0, -15.0}
    assert len(np.unique(numbers, axis=0)) > 700  # of 2,744; operations may repeat


@pytest.mark.parametrize(
    ("operation", "strength", "moved"),
    [("rotate", 90.0, (0, 0)), ("translate_x", 5.0, (5, 0)), ("translate_y", -5.0, (0, -5))],
)
def test_geometric_operations_go_the_right_way(
    operation: str, strength: float, moved: tuple[int, int]
) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    image[6:9, 10:13] = noise(3, 3)
    number = policies.OPERATIONS.index(operation)
    result = policies.apply(
        policies.Operation(tf.constant(number), tf.constant(strength)), tf.constant(image)
    )
    expected = np.roll(image, moved, axis=(1, 0))
    if operation == "rotate":
        expected = np.rot90(image)
    np.testing.assert_array_equal(result, expected)


def test_shears_keep_the_upper_left_corner() -> None:
    image = smooth()
    for name in ("shear_x", "shear_y"):
        number = policies.OPERATIONS.index(name)
        operation = policies.Operation(tf.constant(number), tf.constant(1.0))
        result = policies.apply(operation, tf.constant(image)).numpy().astype(int)
        if name == "shear_y":
            result, image = result.transpose(1, 0, 2), image.transpose(1, 0, 2)
        for row in (2, 10):  # half a pixel more than a whole number of pixels
            between = (image[row, row:-1].astype(float) + image[row, row + 1 :]) / 2
            np.testing.assert_allclose(result[row, : 35 - row], between, atol=0.51)


def test_a_policy_is_a_function_of_the_seed() -> None:
    options = {"size": 24, "scale": (24, 30), "policy": augment.rand_augment()}
    op = partial(augment.train_image, **options)
    image = call(op, smooth(), [1, 2])
    assert image.shape == (24, 24, 3)
    assert image.dtype == np.uint8
    assert not np.array_equal(image, op(smooth(), [1, 3]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, 9), "rand_operations=0"),
        ((9, 9), "rand_operations=9"),
        ((2, 31), "rand_magnitude=31"),
        ((2, -1), "rand_magnitude=-1"),
    ],
)
def test_rand_augment_refuses(options: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment.rand_augment(*options)

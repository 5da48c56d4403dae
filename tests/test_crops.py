"""keras_vgg.augment.area_window: Inception's crops."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment


def drawn(sides: tuple[int, int], count: int, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """Corner and extent in source pixels of many crops, [count, 2] each."""
    draws = np.random.default_rng(0).uniform(size=(count, 10, 4)).astype(np.float32)

    def place(one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        window = augment.area_window(tf.constant(sides), one, size=224, **options)
        places = augment.corners(np.array(sides), window)
        return places[0], places[2] - places[0]

    places = tf.data.Dataset.from_tensor_slices(draws).map(place).batch(count)
    return tuple(x.numpy() for x in places.get_single_element())


@pytest.mark.slow
def test_areas_ratios_and_places_have_their_distribution() -> None:
    corner, extent = drawn((400, 500), 3000, area=(0.1, 0.5))
    assert (corner >= -0.01).all()
    assert (corner + extent <= np.array([400, 500]) + 0.01).all()
    area, ratio = extent.prod(axis=1) / 200_000, extent[:, 1] / extent[:, 0]
    assert area.min() >= 0.098
    assert area.max() <= 0.502
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.2, 0.3, 0.4], atol=0.012)
    logs = np.log(ratio) / np.log(4 / 3)
    np.testing.assert_allclose(np.quantile(logs, [0.1, 0.5, 0.9]), [-0.8, 0, 0.8], atol=0.05)
    share = corner / np.maximum(np.array([400, 500]) - extent, 1)
    np.testing.assert_allclose(
        np.quantile(share, [0.25, 0.75], axis=0).mean(1), [0.25, 0.75], atol=0.03
    )


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((10, 1000), (10, 13)), ((1000, 10), (13, 10)), ((90, 100), (90, 100)), ((1, 1), (1, 1))],
)
def test_a_crop_that_never_fits_is_the_largest_in_the_middle(
    sides: tuple[int, int], expected: tuple[int, int]
) -> None:
    corner, extent = drawn(sides, 2, area=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    if sides == (90, 100):  # a ratio of exactly 10 / 9 is not drawn
        np.testing.assert_allclose(corner, 0, atol=1)
    np.testing.assert_allclose(extent[0], expected, atol=0.6)
    middle = (np.array(sides) - extent[0]) / 2
    np.testing.assert_allclose(corner[0], middle, atol=0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.0, 1.0)}, "crop_area"),
        ({"area": (0.4, 0.2)}, "crop_area"),
        ({"area": (0.4, 1.01)}, "crop_area"),
        ({"area": (0.4, 1.0), "ratio": (0.0, 1.0)}, "crop_ratio"),
        ({"area": (0.4, 1.0), "ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"area": (0.4, 1.0), "ratio": (1.0, 11.0)}, "crop_ratio"),
    ],
)
def test_wrong_ranges_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment.area_window(tf.constant([9, 9]), tf.zeros([10, 4]), size=4, **options)

"""Iterative stratification: each label keeps its share on both sides, and no group is divided."""

import numpy as np
import pytest

from keras_vgg.data.hold_out import hold_out
from keras_vgg.data.split import Split
from keras_vgg.data.stratify import draw_by_labels


def labels_of(rng, images=600, shares=(0.02, 0.1, 0.3, 0.6)):
    return (rng.random((images, len(shares))) < shares).astype(np.uint8)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_label_keeps_its_share(fraction):
    rng = np.random.default_rng(0)
    for seed in range(20):
        labels = labels_of(rng)
        held = draw_by_labels(labels, fraction, np.random.default_rng(seed))
        counts = labels.sum(axis=0)
        assert np.all(np.abs(labels[held].sum(axis=0) - fraction * counts) <= 3)
        without = ~labels.any(axis=1)
        assert abs(without[held].sum() - fraction * without.sum()) <= 2
        assert abs(held.sum() - fraction * len(labels)) <= 8


def test_a_rare_label_is_on_both_sides():
    labels = np.zeros((200, 2), np.uint8)
    labels[:, 0] = 1
    labels[[3, 77], 1] = 1
    for seed in range(20):
        held = draw_by_labels(labels, 0.1, np.random.default_rng(seed))
        assert labels[held, 1].sum() == 1
        assert 15 <= held.sum() <= 25


def test_a_label_of_one_image_stays_in_the_rest():
    labels = np.ones((50, 2), np.uint8)
    labels[1:, 1] = 0
    for seed in range(20):
        assert not draw_by_labels(labels, 0.2, np.random.default_rng(seed))[0]


def test_no_group_is_divided_and_shares_stay_near():
    rng = np.random.default_rng(1)
    for seed in range(50):
        labels = labels_of(rng, 300)
        groups = rng.integers(0, 60, 300)
        held = draw_by_labels(labels, 0.2, np.random.default_rng(seed), groups)
        assert not set(groups[held]) & set(groups[~held])
        assert 0.1 < held.mean() < 0.3


def test_the_seed_decides():
    labels = labels_of(np.random.default_rng(2))
    first, again, other = (
        draw_by_labels(labels, 0.2, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_hold_out_draws_by_labels():
    labels = labels_of(np.random.default_rng(3), 100)
    images = np.zeros((100, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(100)
    split = Split("train", 100, labels=labels, images=images)
    rest, held = hold_out(split, 0.2, "validation", np.random.default_rng(0))
    assert rest.size + held.size == 100
    assert (held.name, held.labels.ndim) == ("validation", 2)
    places = np.concatenate([rest.images[:, 0, 0, 0], held.images[:, 0, 0, 0]])
    np.testing.assert_array_equal(np.sort(places), np.arange(100))
    np.testing.assert_array_equal(labels[held.images[:, 0, 0, 0]], held.labels)

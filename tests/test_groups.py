"""keras_vgg.data.groups: no draw and no fold divides a group, and classes stay even."""

import re

import numpy as np
import pytest

from keras_vgg.data.groups import assign_folds, draw_by_group, group_names, shared_groups, units
from keras_vgg.data.hold_out import hold_out
from keras_vgg.data.split import Split


def split_of(labels: np.ndarray, groups: np.ndarray | None = None) -> Split:
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, -1)
    return Split("all", len(labels), labels=labels, images=images, groups=groups)


def random_data(rng: np.random.Generator, mixed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and groups: up to 8 images a group, of one class unless mixed."""
    sizes = rng.integers(1, 9, rng.integers(20, 120))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    classes = int(rng.integers(2, 6))
    labels = rng.integers(0, classes, len(groups))
    if not mixed:
        labels = rng.integers(0, classes, len(sizes))[groups]
    order = rng.permutation(len(groups))
    return labels[order].astype(np.int32), groups[order]


@pytest.mark.parametrize("mixed", [False, True])
def test_no_group_is_on_two_sides_in_1000_draws_and_classes_stay_even(mixed: bool) -> None:
    """The bound is half of the largest group, of the class if groups have one, and the rounding."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        labels, groups = random_data(rng, mixed)
        fraction = rng.uniform(0.05, 0.5)
        held = draw_by_group(units(len(labels), groups), labels, fraction, rng)
        assert not set(groups[held]) & set(groups[~held])
        for label in np.unique(labels):
            of_class = labels == label
            images, sizes = of_class.sum(), np.bincount(groups[of_class])
            assert (of_class & ~held).any()
            if np.count_nonzero(sizes) > 1:
                assert (of_class & held).any()
            target = images * fraction
            bound = (8 if mixed else sizes.max()) / 2 + 1
            if target >= sizes.max() / 2:
                assert abs((of_class & held).sum() - target) <= bound


def test_a_class_of_one_group_stays_in_the_rest() -> None:
    labels = np.array([0] * 10 + [1] * 4, np.int32)
    groups = np.array([*"aabbccddee", *"zzzz"], dtype=object)
    for seed in range(20):
        rest, held = hold_out(split_of(labels, groups), 0.2, "test", np.random.default_rng(seed))
        assert set(held.groups) <= set("abcde")
        assert held.size == 2
        assert "z" in rest.groups


def test_groups_of_one_image_and_large_groups() -> None:
    labels = np.repeat([0, 1], 50).astype(np.int32)
    single = np.arange(100).astype(str).astype(object)
    rest, held = hold_out(split_of(labels, single), 0.2, "test", np.random.default_rng(0))
    assert np.bincount(held.labels).tolist() == [10, 10]
    assert np.array_equal(held.images, np.sort(held.images, axis=0))  # in the order of the split
    # Two groups of a class are too large for the fraction, and one is held out nevertheless.
    large = np.array(["a"] * 30 + ["b"] * 20 + ["c"] * 30 + ["d"] * 20, dtype=object)
    rest, held = hold_out(split_of(labels, large), 0.1, "test", np.random.default_rng(0))
    assert set(held.groups) == {"b", "d"}
    assert set(rest.groups) == {"a", "c"}


def test_several_labels_have_groups_too() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5).astype(object)
    labels = (rng.random((200, 4)) < 0.3).astype(np.uint8)
    rest, held = hold_out(split_of(labels, groups), 0.25, "test", rng)
    assert not set(rest.groups) & set(held.groups)
    assert 40 <= held.size <= 60
    numbers = units(200, groups)
    folds = assign_folds(numbers, labels, 5, rng, "abcd")
    counts = np.array([labels[folds == fold].sum(axis=0) for fold in range(5)])
    assert (np.abs(counts - labels.sum(axis=0) / 5) <= 5).all()


def test_without_groups_a_draw_is_what_it_was() -> None:
    """Images that the version before groups held out: a run that began then can resume."""
    labels = np.tile(np.arange(3), 20).astype(np.int32)
    _, held = hold_out(split_of(labels), 0.2, "test", np.random.default_rng(7))
    assert held.images[:, 0, 0, 0].tolist() == EARLIER


EARLIER = [1, 5, 9, 13, 20, 24, 32, 36, 37, 39, 41, 49]


def test_units_join_keys_of_two_kinds() -> None:
    patients = ["a", "a", "b", "c", None, None]
    copies = [None, "x", "x", None, None, "y"]
    assert units(6, patients, copies).tolist() == [0, 0, 0, 1, 2, 3]
    assert units(3, None).tolist() == [0, 1, 2]


# --- folds -----------------------------------------------------------------------------------


def test_folds_are_whole_even_and_complete() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        labels, groups = random_data(rng, mixed=False)
        names = [str(label) for label in range(labels.max() + 1)]
        number = int(rng.integers(2, 6))
        of_class = [len(set(groups[labels == label])) for label in range(len(names))]
        if 1 in of_class:
            continue
        folds = assign_folds(units(len(labels), groups), labels, number, rng, names)
        assert set(folds) == set(range(number))
        assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
        for label in range(len(names)):
            counts = np.bincount(folds[labels == label], minlength=number)
            largest = np.bincount(groups[labels == label]).max()
            assert counts.max() - counts.min() <= largest


def test_folds_without_groups_differ_by_one_image_of_a_class() -> None:
    labels = np.repeat([0, 1, 2], [23, 11, 7]).astype(np.int32)
    rng = np.random.default_rng(0)
    folds = assign_folds(units(41), labels, 5, rng, "abc")
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1
    again = assign_folds(units(41), labels, 5, np.random.default_rng(0), "abc")
    assert np.array_equal(folds, again)


def test_folds_that_cannot_be() -> None:
    labels = np.array([0, 0, 1, 1], np.int32)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="5 folds need 5 images or groups of images"):
        assign_folds(units(4), labels, 5, rng, "ab")
    with pytest.raises(ValueError, match="class 'dog' has one image, or one group of images"):
        assign_folds(units(4, ["a", "b", "c", "c"]), labels, 2, rng, ["cat", "dog"])
    with pytest.raises(ValueError, match="class 'dog' has one image"):
        assign_folds(units(3), labels[:3], 2, rng, ["cat", "dog"])


# --- names -----------------------------------------------------------------------------------


def test_a_pattern_names_the_group() -> None:
    paths = ["cat/p1_a.png", "dog/p12_b.png"]
    assert group_names(paths, "(p[0-9]+)_").tolist() == ["p1", "p12"]
    assert group_names(paths, "p[0-9]+").tolist() == ["p1", "p12"]
    assert group_names(paths, "/([^_]+)(_.)").tolist() == ["p1", "p12"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(p", "group_pattern '(p' is not a regular expression: "),
        ("q[0-9]", "group_pattern 'q[0-9]' finds no group in 7 of 7 paths: cat/p0.png, "),
        ("p(9)?", "finds no group in 7 of 7 paths"),
        ("p[12]", "finds no group in 5 of 7 paths: cat/p0.png, cat/p3.png"),
    ],
)
def test_a_pattern_that_does_not_fit(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        group_names([f"cat/p{i}.png" for i in range(7)], pattern)


def test_groups_on_two_sides_are_named() -> None:
    labels = np.zeros(4, np.int32)
    train = split_of(labels, np.array(["p1", "p2", "p3", "p3"], dtype=object))
    test = split_of(labels, np.array(["p2", "p4", "p3", "p3"], dtype=object))
    (shared,) = shared_groups({"train": train, "test": test, "validation": split_of(labels)})
    assert str(shared) == "2 groups have images in train and in test: p2, p3"
    with pytest.raises(ValueError, match="1 groups, and 4 images"):
        split_of(labels, np.array(["p1"], dtype=object))

"""keras_vgg.augment.batch_augmentation: Keras' layers as functions of a seed."""

import types
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment, data, fit, hardware
from keras_vgg.fit import inputs, training
from keras_vgg.fit.checkpoint import Progress
from keras_vgg.recipe import Recipe

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
ONE_HOT = np.eye(4, dtype=np.float32)[np.arange(8) % 4]


def batches(operation, count: int = 6, threads: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    seeds = np.stack([np.full(count, 3), np.arange(count)], axis=1).astype(np.int32)
    dataset = tf.data.Dataset.from_tensor_slices(seeds).map(
        lambda seed: operation(IMAGES, ONE_HOT, seed), num_parallel_calls=threads
    )
    return list(dataset.as_numpy_iterator())


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "strengths",
    [
        {"mixup": 0.3},
        {"cutmix": 1.0},
        {"mixup": 0.3, "cutmix": 1.0},
        {"random_erasing": 1.0},
        pytest.param({"rand_augment": 0.5}, marks=pytest.mark.slow),
        pytest.param(
            {"rand_augment": 0.3, "random_erasing": 0.5, "mixup": 0.2}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_a_batch_is_a_function_of_its_seed(strengths: dict[str, float]) -> None:
    found = batches(augment.batch_augmentation(**strengths))
    again = batches(augment.batch_augmentation(**strengths), threads=1)
    for (images, labels), (others, other_labels) in zip(found, again, strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, other_labels)
        assert images.dtype == np.uint8
        assert images.shape == IMAGES.shape
        np.testing.assert_allclose(labels.sum(axis=1), 1.0, atol=1e-6)
    assert len({images.tobytes() for images, _ in found}) == len(found)  # another seed, another
    if keras.backend.backend() != "tensorflow":
        return  # only in tf.data are Keras' layers TensorFlow then
    eager, labels = augment.batch_augmentation(**strengths)(IMAGES, ONE_HOT, tf.constant([3, 0]))
    np.testing.assert_allclose(eager, found[0][0], atol=1)  # rounding
    np.testing.assert_allclose(labels, found[0][1], atol=1e-6)


def test_mixup_blends_images_as_their_labels() -> None:
    ((images, labels),) = batches(augment.batch_augmentation(mixup=0.5), 1)
    for image, label, own, row in zip(images, labels, IMAGES, ONE_HOT, strict=True):
        weight = label @ row
        if 0.01 < weight < 0.99:
            rest = (image - weight * own.astype(float)) / (1 - weight)
            other = np.abs(IMAGES - rest).mean(axis=(1, 2, 3)).argmin()
            np.testing.assert_allclose(label, weight * row + (1 - weight) * ONE_HOT[other])
            break
    else:
        pytest.fail("no image was blended with one of another class")


def test_cutmix_pastes_a_rectangle_of_another_image() -> None:
    ((images, labels),) = batches(augment.batch_augmentation(cutmix=1.0), 1)
    partners = 0
    for image, label, own, row in zip(images, labels, IMAGES, ONE_HOT, strict=True):
        changed = (image != own).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        if not len(rows):
            continue
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found = [i for i, other in enumerate(IMAGES) if (image[window] == other[window]).all()]
        assert len(found) == 1
        outside = np.ones((16, 16), bool)
        outside[window] = False
        np.testing.assert_array_equal(image[outside], own[outside])
        assert set(np.flatnonzero(label)) == {row.argmax(), ONE_HOT[found[0]].argmax()}
        partners += 1
    assert partners >= 3


def test_random_erasing_has_its_probability() -> None:
    erased = [
        (images != IMAGES).any(axis=(1, 2, 3))
        for images, _ in batches(augment.batch_augmentation(random_erasing=0.25), 40)
    ]
    assert 50 <= np.sum(erased) <= 110  # of 320: 80, standard deviation 7.7


def test_mixup_and_cutmix_take_turns() -> None:
    both = batches(augment.batch_augmentation(mixup=0.4, cutmix=1.0), 24)
    # A pasted rectangle leaves the rest of an image exactly as it was.
    cut = [(images == IMAGES).mean() > 0.3 for images, _ in both]
    assert 4 <= sum(cut) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_policy_of_the_model_is_no_matter(policy: str) -> None:
    strengths = {"rand_augment": 0.3, "random_erasing": 0.5, "mixup": 0.2, "cutmix": 0.5}
    expected = batches(augment.batch_augmentation(**strengths), 2)
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        found = batches(augment.batch_augmentation(**strengths), 2)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    for (images, labels), (others, other_labels) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, other_labels)


def test_nothing_is_none() -> None:
    assert augment.batch_augmentation() is None


# --- the last epochs, without mixing ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "mixed"),
    [
        ({}, "11111111"),
        ({"unmixed_epochs": 3}, "11111000"),
        ({"unmixed_epochs": 8}, "00000000"),
        ({"unmixed_epochs": 2, "restart_epochs": (5,), "restart_rates": (0.1,)}, "11100100"),
    ],
    ids=str,
)
def test_the_last_epochs_of_each_part_are_not_mixed(changes: dict, mixed: str) -> None:
    recipe = Recipe(epochs=8, cutmix=1.0, **changes)
    assert "".join(str(int(inputs.is_mixed(recipe, epoch))) for epoch in range(8)) == mixed
    for epoch in range(8):
        later = [e for e in range(epoch + 1, 8) if mixed[e] != mixed[epoch]]
        assert inputs.next_mixing_switch(recipe, epoch) == (later[0] if later else None)
    # Without mixing, there is nothing to switch.
    assert inputs.next_mixing_switch(recipe.replace(cutmix=0.0), 0) is None


@pytest.mark.parametrize(
    ("changes", "is_said"),
    [
        ({"early_stopping": 3}, True),
        ({"schedule": "plateau"}, True),
        ({}, False),
        ({"early_stopping": 3, "mixup": 0.0}, False),
    ],
    ids=str,
)
def test_a_training_that_may_not_come_to_the_last_epochs_says_so(
    changes: dict, is_said: bool, capsys: pytest.CaptureFixture
) -> None:
    recipe = Recipe(**{"epochs": 9, "mixup": 0.2, "unmixed_epochs": 2} | changes)
    source = fit.load_source(recipe)
    prepared: Any = types.SimpleNamespace(
        recipe=recipe,
        source=source,
        validation=source.validation,
        inventory=data.take_inventory(source),
        full_model=types.SimpleNamespace(name="vgg", count_params=lambda: 1),
        initial=None,
        teachers=[],
        class_weights=None,
    )
    engine = hardware.Engine(("cpu:0",), "float32", False)
    training.announce(prepared, recipe, engine, Progress())
    line = "the last 2 of 9 epochs are without mixup and cutmix; a training that ends early"
    assert (line in capsys.readouterr().out) is is_said


@pytest.mark.slow
def test_batches_before_and_after_the_switch_are_those_of_recipes_without_one() -> None:
    """Three epochs of two steps; the last one is begun at its second step too."""
    recipe = Recipe(
        epochs=3, mixup=0.5, batch_size=32, test_fraction=0.95, unmixed_epochs=1, color="grey"
    )
    source = fit.load_source(recipe)
    assert source.train.size // 32 == 2

    def taken(
        recipe: Recipe, count: int, epoch: int = 0, step: int = 0, switches: bool = True
    ) -> list[tuple]:
        statistics = data.ChannelStatistics.unknown()
        dataset = inputs.training_data(recipe, source, statistics, epoch, step, switches=switches)
        assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        return [*dataset.take(count).as_numpy_iterator()]

    found = taken(recipe, 6)
    mixed = taken(recipe.replace(unmixed_epochs=0), 6)
    for one, other in zip(taken(recipe, 6, switches=False), mixed, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
    plain = taken(recipe.replace(mixup=0.0), 2, epoch=2)
    (last,) = taken(recipe, 1, epoch=2, step=1)
    np.testing.assert_array_equal(last[0], plain[1][0])
    for one, other in zip(found, mixed[:4] + plain, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    assert not np.isin(found[3][1], (0, 1)).all()
    assert np.isin(found[4][1], (0, 1)).all()

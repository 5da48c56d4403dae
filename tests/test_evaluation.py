"""Figures against hand computation, and against Keras; every image counted once."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import binomtest

import keras_vgg
from keras_vgg.evaluation import Evaluation, Protocol, compare, evaluate, fuse, predict, runner
from keras_vgg.localization import localizer
from tests.other_backends import passes_on

NAMES = ("cat", "dog", "emu")
# An image of one pixel that holds the probabilities which `identity` then gives.
PROBABILITIES = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]], np.float32
)
LABELS = np.array([0, 1, 0, 1])


SCALE = 128  # a power of 2, so that nothing is rounded


def identity(*shape: int) -> keras.Model:
    """Return a network whose images are `SCALE` times their own probabilities."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Flatten()(inputs / SCALE))


def batches(*sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    ends = list(itertools.accumulate(sizes, initial=0))
    images = SCALE * PROBABILITIES.reshape(4, 1, 1, 3)
    return [(images[a:b], LABELS[a:b]) for a, b in itertools.pairwise(ends)]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return identity(1, 1, 3)


@pytest.mark.parametrize("sizes", [(4,), (3, 1), (1, 1, 1, 1)])
def test_figures_equal_hand_computation(model: keras.Model, sizes: tuple[int, ...]) -> None:
    result = evaluate(model, batches(*sizes), expected=4, class_names=NAMES)

    assert result.count == 4
    assert result.top1 == 0.5
    assert result.top5 is None
    by_hand = -(math.log(0.7) + math.log(0.6) + math.log(0.3) + math.log(1e-7)) / 4
    assert result.loss == pytest.approx(by_hand, rel=1e-6)
    np.testing.assert_array_equal(result.confusion, [[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(result.per_class, [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(result.labels, LABELS)
    np.testing.assert_array_equal(result.probabilities, PROBABILITIES)
    assert result.probabilities.dtype == np.float32


def test_certain_and_right_has_the_loss_of_the_clip() -> None:
    certain = Evaluation(np.array([1]), np.array([[0, 1]], np.float32), ("no", "yes"))

    assert certain.loss == pytest.approx(1e-7, rel=1e-6)


def test_top5_misses_only_the_sixth() -> None:
    rows = np.tile(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04], np.float32), (4, 1))
    result = Evaluation(np.array([0, 4, 5, 5]), rows, tuple("abcdef"))

    assert result.top5 == 0.5
    assert result.top1 == 0.25


def test_figures_equal_keras_evaluate_on_tf_data() -> None:
    generator = np.random.default_rng(0)
    images = SCALE * generator.dirichlet(np.ones(6), 50).reshape(50, 1, 2, 3).astype(np.float32)
    labels = generator.integers(0, 6, 50)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    model = identity(1, 2, 3)

    ours = evaluate(model, dataset, expected=50, class_names=tuple("abcdef"))

    model.compile(
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5)],
    )
    loss, top1, top5 = model.evaluate(dataset, verbose=0)
    assert ours.loss == pytest.approx(loss, rel=1e-5)
    assert ours.top1 == pytest.approx(top1)
    assert ours.top5 == pytest.approx(top5)


def test_to_dict_survives_json(model: keras.Model) -> None:
    result = evaluate(model, batches(4), expected=4, class_names=NAMES)

    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))

    first = {key: figures[key] for key in itertools.takewhile("majority_class".__ne__, figures)}
    assert first == {
        "count": 4,
        "top1": 0.5,
        "top5": None,
        "loss": result.loss,
        "top1_interval": [0.0, 1.0],
        "class_names": ["cat", "dog", "emu"],
        "per_class": [0.5, 0.5, None],
        "confusion": [[1, 1, 0], [0, 1, 1], [0, 0, 0]],
    }
    assert figures["balanced_accuracy"] == 0.5  # tests/test_figures.py has the others


@pytest.mark.parametrize(("expected", "seen"), [(5, 4), (3, 4)])
def test_a_wrong_count_is_an_error(model: keras.Model, expected: int, seen: int) -> None:
    with pytest.raises(ValueError, match=f"^evaluated {seen} of {expected} images$"):
        evaluate(model, batches(3, 1), expected=expected, class_names=NAMES)


def test_an_endless_data_set_is_an_error(model: keras.Model) -> None:
    endless = itertools.cycle(batches(3, 1))

    with pytest.raises(ValueError, match=r"^evaluated 7 of 4 images$"):
        evaluate(model, endless, expected=4, class_names=NAMES)


def test_no_images_is_an_error(model: keras.Model) -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, [], expected=0, class_names=NAMES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3, 1], r"label 3 is not in \[0, 3\)"),
        ([0, 1, -1, 1], r"label -1 is not in \[0, 3\)"),
        ([0, 1], r"4 integers.* not int64 \(2,\)"),
        ([0.0, 1.0, 0.0, 1.0], "not float64"),
        (np.eye(4, 3, dtype=int), r"labels \(4, 3\) are several an image"),
    ],
)
def test_wrong_labels_are_an_error(model: keras.Model, labels: object, message: str) -> None:
    images = SCALE * PROBABILITIES.reshape(4, 1, 1, 3)

    with pytest.raises(ValueError, match=message):
        evaluate(model, [(images, np.asarray(labels))], expected=4, class_names=NAMES)


def test_a_model_of_other_width_is_an_error(model: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"output is \(4, 3\); 4 class names"):
        evaluate(model, batches(4), expected=4, class_names=(*NAMES, "fox"))


def test_an_output_that_is_not_finite_is_an_error(model: keras.Model) -> None:
    images = np.full((1, 1, 1, 3), np.nan, np.float32)

    with pytest.raises(ValueError, match="images hold values that are not finite"):
        evaluate(model, [(images, np.array([0]))], expected=1, class_names=NAMES)
    with pytest.raises(ValueError, match="images hold values that are not finite"):
        predict(model, images, NAMES)
    # Finite images and weights whose products are not.
    inputs = keras.Input((1, 1, 3))
    squares = keras.layers.Lambda(lambda x: (1e20 * x * (1e20 * x))[:, 0, 0])(inputs)
    large = np.full((1, 1, 1, 3), 255, np.float32)
    with pytest.raises(ValueError, match="output is not finite"):
        predict(keras.Model(inputs, squares), large, NAMES)


def test_progress_only_when_verbose_and_on_stderr(
    model: keras.Model, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(model, batches(3, 1), expected=4, class_names=NAMES)
    assert capfd.readouterr() == ("", "")

    evaluate(model, batches(3, 1), expected=4, class_names=NAMES, verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "4/4" in err


def test_scores_are_no_probabilities() -> None:
    model = keras_vgg.vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=3,
        width_multiplier=1 / 16,
        kernel_initializer="he_normal",
        classifier_activation=None,
    )
    images, labels = np.full((2, 32, 32, 3), 90, np.float32), np.array([0, 1])
    for use in (
        lambda: evaluate(model, [(images, labels)], expected=2, class_names=NAMES),
        lambda: predict(model, images, NAMES),
        lambda: runner(model, Protocol("center"), 3)(images),
    ):
        with pytest.raises(ValueError, match="are no probabilities: end the model in a soft-max"):
            use()
    dense = runner(model, Protocol("dense"), 3)(images)  # which applies a soft-max to scores
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-6)
    model.get_layer("fc1").quantize("int8")
    with pytest.raises(ValueError, match=r"layer 'fc1' of 'vgg11' is quantised \(int8\)"):
        runner(model, Protocol("dense"), 3)
    with pytest.raises(ValueError, match="is quantised"):
        localizer(model)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_batches_of_tf_data_on(backend: str) -> None:
    assert "1 passed" in passes_on(backend, "-k", "figures_equal_keras", __file__)


def test_predict_orders_classes_by_probability(model: keras.Model) -> None:
    images = SCALE * PROBABILITIES[:3].reshape(3, 1, 1, 3)

    everything = predict(model, images, NAMES)
    best = predict(model, images, NAMES, top=1)

    assert [[name for name, _ in row] for row in everything] == [
        ["cat", "dog", "emu"],
        ["dog", "emu", "cat"],
        ["dog", "cat", "emu"],  # a tie keeps the order of the classes
    ]
    assert everything[1][0] == ("dog", pytest.approx(0.6))
    assert best == [row[:1] for row in everything]


@pytest.mark.parametrize(
    ("images", "top", "message"),
    [
        (np.zeros((1, 1, 3)), 5, r"not \(1, 1, 3\)"),
        (np.zeros((0, 1, 1, 3)), 5, r"not \(0, 1, 1, 3\)"),
        (np.zeros((1, 1, 1, 3)), 0, "top must be at least 1, not 0"),
    ],
)
def test_predict_refuses(model: keras.Model, images: np.ndarray, top: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(model, images, NAMES, top)


def right_on(*right: bool) -> Evaluation:
    """An evaluation of two classes, right where it says so."""
    rows = np.where(np.array(right)[:, None], [[0.9, 0.1]], [[0.2, 0.8]]).astype(np.float32)
    return Evaluation(np.zeros(len(right), int), rows, ("no", "yes"))


def test_the_interval_is_that_of_resampled_images() -> None:
    found = right_on(*[True] * 70, *[False] * 30)
    right = np.array([1] * 70 + [0] * 30)
    random = np.random.default_rng(0)
    drawn = right[random.integers(0, 100, (40_000, 100))].mean(axis=1)
    np.testing.assert_allclose(found.interval(), np.quantile(drawn, [0.025, 0.975]), atol=0.011)
    narrow = found.interval(level=0.5)
    assert found.interval()[0] < narrow[0] < 0.7 < narrow[1] < found.interval()[1]


@pytest.mark.parametrize(("groups", "units"), [(None, 5), (["x", "y", "y", "x", "y"], 2)])
def test_the_interval_of_all_or_none_is_exact(groups: list[str] | None, units: int) -> None:
    """Against scipy's interval of Clopper and Pearson; the bootstrap's has no width."""
    of_image = None if groups is None else np.array(groups)
    all_right = replace(right_on(*[True] * 5), groups=of_image)
    none_right = replace(right_on(*[False] * 5), groups=of_image)
    for level in (0.5, 0.95):
        low, high = binomtest(units, units).proportion_ci(level, "exact")
        assert all_right.interval(level=level) == pytest.approx((low, high))
        assert none_right.interval(level=level) == pytest.approx((1 - high, 1 - low))
    rows = np.eye(6, dtype=np.float32)[[0] * 5]
    top5 = Evaluation(np.zeros(5, int), rows, tuple("abcdef"), all_right.groups).interval(5)
    assert top5 == pytest.approx(all_right.interval())


def test_the_interval_of_top5() -> None:
    rows = np.tile(np.array([0.3, 0.25, 0.2, 0.15, 0.06, 0.04], np.float32), (4, 1))
    result = Evaluation(np.array([0, 4, 5, 5]), rows, tuple("abcdef"))
    low, high = result.interval(top=5)
    assert low < 0.5 < high
    assert result.interval(top=5) != result.interval()


def test_intervals_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), not 95"):
        right_on(True).interval(level=95)
    with pytest.raises(ValueError, match="no top-5 accuracy for 2 classes"):
        right_on(True).interval(top=5)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), not 95"):
        compare(right_on(True), right_on(True), level=95)


def test_fusion_averages_posteriors() -> None:
    one = Evaluation(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]], np.float32), ("a", "b"))
    two = Evaluation(np.array([0, 1]), np.array([[0.4, 0.6], [0.1, 0.9]], np.float32), ("a", "b"))
    fused = fuse([one, two])
    np.testing.assert_allclose(fused.probabilities, [[0.65, 0.35], [0.35, 0.65]], atol=1e-7)
    assert (one.top1, two.top1, fused.top1) == (0.5, 0.5, 1.0)
    np.testing.assert_array_equal(fuse([one]).probabilities, one.probabilities)


def test_comparison_by_hand() -> None:
    """Eight images on which they differ, seven of them right by the other only."""
    one = right_on(*[False] * 7, True, *[True] * 4)
    other = right_on(*[True] * 7, False, *[True] * 4)
    found = compare(one, other)
    assert (found.one_only, found.other_only) == (1, 7)
    assert found.difference == 0.5
    # The chance of at most one head, or at most one tail, in eight throws of a coin.
    assert found.p_value == pytest.approx(2 * (1 + 8) / 2**8)
    random = np.random.default_rng(1)
    paired = np.array([1] * 7 + [-1] + [0] * 4)
    drawn = paired[random.integers(0, 12, (40_000, 12))].mean(axis=1)
    np.testing.assert_allclose(found.interval, np.quantile(drawn, [0.025, 0.975]), atol=0.09)
    back = compare(other, one)
    assert back.difference == -0.5
    assert back.p_value == found.p_value


def test_equal_models_do_not_differ() -> None:
    found = compare(right_on(True, False), right_on(True, False))
    assert (found.difference, found.p_value) == (0.0, 1.0)
    bound = 1 - 0.025**0.5  # of two images, as Clopper's and Pearson's of 0 of 2
    assert found.interval == pytest.approx((-bound, bound))
    wider = compare(right_on(True, False), right_on(True, False), level=0.99).interval
    assert wider[1] > bound


@pytest.mark.parametrize("function", [compare, lambda a, b: fuse([a, b])])
def test_other_images_or_classes_are_refused(function) -> None:
    one = right_on(True, False)
    with pytest.raises(ValueError, match="different images: 2 and 3"):
        function(one, right_on(True, False, True))
    labels = Evaluation(np.array([0, 1]), one.probabilities, one.class_names)
    with pytest.raises(ValueError, match="the labels differ"):
        function(one, labels)
    names = Evaluation(one.labels, one.probabilities, ("yes", "no"))
    with pytest.raises(ValueError, match="different classes"):
        function(one, names)


def test_nothing_to_fuse() -> None:
    with pytest.raises(ValueError, match="no evaluation to fuse"):
        fuse([])


@pytest.mark.parametrize(
    ("labels", "columns", "value", "message"),
    [
        ([0, 1], 3, 0.5, r"probabilities \[n, 2\], not \[2\] and \[2, 3\]"),
        ([0, 1, 1], 2, 0.5, r"not \[3\] and \[2, 2\]"),
        ([0, 2], 2, 0.5, "label 2 is none of the 2 classes"),
        ([0, -1], 2, 0.5, "labels must be integers from 0"),
        ([0.0, 1.0], 2, 0.5, "labels must be integers from 0"),
        ([0, 1], 2, np.nan, "a probability is not finite"),
        (
            [0, 1],
            2,
            1.1,
            "values from 1.1 to 1.1 are no probabilities: end the model in a soft-max",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, columns, value, message):
    with pytest.raises(ValueError, match=message):
        Evaluation(np.array(labels), np.full((2, columns), value), ("cat", "dog"))

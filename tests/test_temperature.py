"""Temperature scaling against a direct minimisation, and thresholds against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from keras_vgg.evaluation import Evaluation, softmax
from keras_vgg.evaluation.temperature import (
    LARGEST,
    apply_temperature,
    fit_temperature,
    threshold_that_keeps,
)

NAMES = tuple("abcde")


def too_sure(factor: float, count: int = 400) -> Evaluation:
    """Scores of a network, multiplied by a factor, and labels drawn from the scores themselves."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (count, len(NAMES)))
    labels = np.array([rng.choice(len(NAMES), p=row) for row in softmax(scores)])
    return Evaluation(labels, softmax(factor * scores).astype(np.float32), NAMES)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_that_of_a_direct_minimisation(factor: float) -> None:
    evaluation = too_sure(factor)
    scores = np.log(evaluation.probabilities.astype(np.float64))
    rows = np.arange(evaluation.count)

    fitted = fit_temperature(evaluation)

    grid = np.arange(0.1, 6, 0.0005)
    nll = [-log_softmax(scores / t, axis=1)[rows, evaluation.labels].mean() for t in grid]
    assert fitted.value == pytest.approx(grid[int(np.argmin(nll))], abs=1e-3)
    assert fitted.value == pytest.approx(factor, rel=0.2)
    assert fitted.nll[1] == pytest.approx(min(nll), abs=1e-6)
    assert fitted.nll[0] == pytest.approx(evaluation.loss, abs=1e-6)
    assert fitted.nll[1] <= fitted.nll[0]
    if factor == 3:
        assert fitted.ece[1] < fitted.ece[0] / 2


def test_a_temperature_divides_the_scores() -> None:
    scores = np.random.default_rng(1).normal(0, 3, (20, 5))

    np.testing.assert_allclose(
        apply_temperature(softmax(scores), 2.5), softmax(scores / 2.5), atol=1e-7
    )
    hard = np.eye(3, dtype=np.float32)
    assert np.isfinite(apply_temperature(hard, 2.0)).all()
    np.testing.assert_array_equal(apply_temperature(hard, 2.0).argmax(axis=1), [0, 1, 2])


def test_images_that_are_all_right_say_nothing_and_a_guesser_reaches_the_end() -> None:
    right = Evaluation(np.arange(3), np.eye(3, dtype=np.float32) * 0.8 + 0.1, tuple("abc"))
    fitted = fit_temperature(right)
    assert fitted.value == 1
    assert "all 3 images are classified correctly" in fitted.note

    wrong = Evaluation(np.array([1, 2, 0]), right.probabilities, tuple("abc"))
    fitted = fit_temperature(wrong)
    assert fitted.value == pytest.approx(LARGEST, rel=1e-3)
    assert "end of its range" in fitted.note


def test_a_threshold_keeps_its_share() -> None:
    probabilities = np.random.default_rng(2).dirichlet(np.ones(4), 200).astype(np.float32)
    for share in (0.5, 0.9, 0.95, 0.999, 1.0):
        threshold = threshold_that_keeps(share, probabilities)
        kept = probabilities.max(axis=1) >= threshold
        assert kept.sum() == np.ceil(200 * share)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 1"):
        threshold_that_keeps(share, np.ones((1, 1)))


def test_no_image_is_refused() -> None:
    nothing = Evaluation(np.zeros(0, int), np.zeros((0, 5), np.float32), NAMES)
    with pytest.raises(ValueError, match="one label each"):
        fit_temperature(nothing)
    with pytest.raises(ValueError, match="at least 1 image"):
        threshold_that_keeps(0.9, nothing.probabilities)

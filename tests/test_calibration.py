"""Calibration and the scores of a class, against hand computation and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from keras_vgg.evaluation import Evaluation, calibration

NAMES = ("no", "yes")


def sure_of_yes(*confidences: float, labels: list[int]) -> Evaluation:
    yes = np.array(confidences)
    return Evaluation(np.array(labels), np.stack([1 - yes, yes], axis=1), NAMES)


def test_expected_calibration_error_by_hand() -> None:
    # Four bins: (0.5, 0.75] has 0.6 and 0.7, one of them right; (0.75, 1] has 0.8, 0.9 and 1, all.
    found = sure_of_yes(0.6, 0.7, 0.8, 0.9, 1.0, labels=[1, 0, 1, 1, 1])

    result = calibration(found, bins=4)

    np.testing.assert_array_equal(result.edges, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(result.counts, [0, 0, 2, 3])
    np.testing.assert_allclose(result.confidence, [np.nan, np.nan, 0.65, 0.9])
    np.testing.assert_allclose(result.accuracy, [np.nan, np.nan, 0.5, 1])
    assert result.error == pytest.approx((2 * 0.15 + 3 * 0.1) / 5)


def test_a_bin_has_its_upper_edge_and_rounding_leaves_none_out() -> None:
    result = calibration(sure_of_yes(0.5, 0.75, 1 + 1e-7, labels=[0, 1, 1]), bins=4)

    np.testing.assert_array_equal(result.counts, [0, 1, 1, 1])


def test_as_sure_as_right_has_no_error() -> None:
    found = sure_of_yes(*[0.75] * 4, labels=[1, 1, 1, 0])

    assert calibration(found).error == pytest.approx(0)
    assert len(calibration(found).counts) == 15  # Guo et al. 2017


def test_calibration_refuses() -> None:
    with pytest.raises(ValueError, match="at least 1 bin, not 0"):
        calibration(sure_of_yes(0.6, labels=[1]), bins=0)
    with pytest.raises(ValueError, match="no image"):
        calibration(sure_of_yes(labels=[]))


def test_precision_and_f1_are_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    labels, answers = generator.integers(0, 3, 50), generator.integers(0, 4, 50)
    found = Evaluation(labels, np.eye(5)[answers], tuple("abcde"))

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, answers, labels=range(5), zero_division=np.nan
    )

    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.per_class, recall)
    np.testing.assert_allclose(found.f1[:4], f1[:4])
    assert np.isnan(found.precision[4])  # never answered, and there is no image of it
    assert np.isnan(found.f1[4])

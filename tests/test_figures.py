"""Figures beside accuracy: equal to scikit-learn's, with intervals, and undefined with a reason."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from sklearn import metrics

from keras_vgg.evaluation import (
    Evaluation,
    MultiLabelEvaluation,
    choose_thresholds,
    figures,
)
from keras_vgg.evaluation.resampling import (
    Ranking,
    interval_of,
    rank_resamplings,
    resampled_counts,
)

EXACT = {"abs": 1e-9, "rel": 0}


def drawn(images: int, classes: int, *, ties: bool = False, seed: int = 0):
    """Labels and posteriors that agree more often than by chance; with ties, of few values."""
    random = np.random.default_rng(seed)
    labels = random.choice(classes, images, p=random.dirichlet(np.full(classes, 2.0)))
    scores = random.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    if ties:
        probabilities = np.round(4 * probabilities) + 1
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float32)


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(classes))


def of_answers(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return scikit-learn's figures of the answers."""
    answers = probabilities.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # answers of classes without images
        balanced = metrics.balanced_accuracy_score(labels, answers)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, answers, average="macro", zero_division=0
    )
    kappa = metrics.cohen_kappa_score(labels, answers)
    return {
        "majority_share": np.bincount(labels).max() / len(labels),
        "balanced_accuracy": balanced,
        "macro_precision": precision,
        "macro_recall": recall,
        "macro_f1": f1,
        "kappa": kappa,
    }


def check(labels: np.ndarray, probabilities: np.ndarray, expected: dict[str, float]) -> None:
    results = figures(labels, probabilities, names(probabilities.shape[1]))
    assert {key: results[key].value for key in expected} == pytest.approx(expected, **EXACT)
    for key, figure in results.items():
        assert figure.interval is not None, key
        assert figure.interval[0] <= figure.value <= figure.interval[1] or key != "kappa"


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [3, 7])
def test_several_classes(classes: int, ties: bool) -> None:
    labels, probabilities = drawn(300, classes, ties=ties)
    # scikit-learn wants rows of float64 whose sum is 1; the order of the scores is the same.
    normalised = probabilities.astype(np.float64)
    normalised /= normalised.sum(axis=1, keepdims=True)
    areas = [metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in range(classes)]
    auc = metrics.roc_auc_score(labels, normalised, multi_class="ovr", average="macro")
    if not ties:  # normalising breaks ties
        assert np.mean(areas) == pytest.approx(auc, **EXACT)
    check(labels, probabilities, of_answers(labels, probabilities) | {"auc": np.mean(areas)})


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("specificity", [0.95, 0.5, 0.999])
def test_two_classes(ties: bool, specificity: float) -> None:
    labels, probabilities = drawn(240, 2, ties=ties, seed=2)
    second = probabilities[:, 1]
    false_alarms, found, thresholds = metrics.roc_curve(labels, second, drop_intermediate=False)
    allowed = false_alarms <= 1 - specificity + 1e-12
    results = figures(labels, probabilities, names(2), specificity=specificity)
    expected = of_answers(labels, probabilities) | {
        "auc": metrics.roc_auc_score(labels, second),
        "average_precision": metrics.average_precision_score(labels, second),
        "sensitivity": found[allowed].max(),
    }
    assert {key: one.value for key, one in results.items()} == pytest.approx(expected, **EXACT)
    if results["sensitivity"].value:
        threshold = results["sensitivity"].threshold
        assert threshold in thresholds
        answered = second >= threshold
        assert answered[labels == 1].mean() == results["sensitivity"].value
        assert answered[labels == 0].mean() <= 1 - specificity + 1e-12


def test_absent_classes_and_a_class_that_is_never_answered() -> None:
    labels, probabilities = drawn(200, 6, seed=3)
    kept = ~np.isin(labels, (1, 4))
    labels, probabilities = labels[kept], probabilities[kept]
    probabilities[:, 4] /= 100  # class 4: no image, no answer
    probabilities[:, 2] /= 100  # class 2: images, no answer
    assert not np.isin((2, 4), probabilities.argmax(axis=1)).any()
    assert 1 in probabilities.argmax(axis=1)
    areas = [metrics.roc_auc_score(labels == c, probabilities[:, c]) for c in (0, 2, 3, 5)]
    check(labels, probabilities, of_answers(labels, probabilities) | {"auc": np.mean(areas)})


@pytest.mark.parametrize("classes", [2, 4])
def test_one_class_only(classes: int) -> None:
    """What is undefined is None with a reason, in JSON too, and there is no warning."""
    probabilities = np.full((5, classes), 0.1, np.float32)
    probabilities[:, 1] = 0.9
    result = Evaluation(np.ones(5, int), probabilities, names(classes))
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert fields["undefined"]["auc"] == "all images are of one class"
    assert fields["undefined"]["kappa"] == "all labels and answers are one class"
    assert fields["auc"] is fields["auc_interval"] is fields["kappa"] is None
    assert fields["balanced_accuracy"] == fields["macro_f1"] == fields["majority_share"] == 1
    assert (fields["majority_class"], fields["majority_share_interval"]) == ("class 1", [1, 1])
    assert "undefined: all images" in result.figures()["auc"].text()
    if classes == 2:
        assert fields["sensitivity"] is None
        assert fields["average_precision"] == 1  # as scikit-learn
        none = Evaluation(np.zeros(5, int), probabilities, names(2)).figures()
        assert none["average_precision"].undefined == "no image is of class 1"
        assert none["balanced_accuracy"].value == 0


@pytest.mark.slow
def test_intervals_are_those_of_resampled_images() -> None:
    labels, probabilities = drawn(150, 2, seed=4)
    results = figures(labels, probabilities, names(2))
    random = np.random.default_rng(5)
    by_hand: dict[str, list[float]] = {"auc": [], "average_precision": [], "macro_f1": []}
    for _ in range(200):
        chosen = random.integers(0, 150, 150)
        label, second = labels[chosen], probabilities[chosen, 1]
        by_hand["auc"].append(metrics.roc_auc_score(label, second))
        by_hand["average_precision"].append(metrics.average_precision_score(label, second))
        answers = probabilities[chosen].argmax(axis=1)
        by_hand["macro_f1"].append(metrics.f1_score(label, answers, average="macro"))
    for key, values in by_hand.items():
        limits = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(results[key].interval, limits, atol=0.025, err_msg=key)
    again = figures(labels, probabilities, names(2))
    assert again == results
    other = figures(labels, probabilities, names(2), seed=1)
    assert other["auc"].interval != results["auc"].interval


def test_counts_stand_for_the_drawn_images() -> None:
    """Each row of counts gives what scikit-learn gives for the images that it stands for."""
    labels, probabilities = drawn(60, 2, ties=True, seed=2)
    ranking = Ranking(probabilities[:, 1], labels == 1)
    blocks = list(resampled_counts(60, 20))
    assert (blocks[0] == 1).all()
    for counts in blocks:
        points = ranking.points(counts)
        areas, precisions = points.auc(), points.average_precision()
        found = points.sensitivity(0.9)
        for row, times in enumerate(counts):
            assert times.sum() == 60
            label, second = np.repeat(labels, times), np.repeat(probabilities[:, 1], times)
            assert areas[row] == pytest.approx(metrics.roc_auc_score(label, second), **EXACT)
            expected = metrics.average_precision_score(label, second)
            assert precisions[row] == pytest.approx(expected, **EXACT)
            alarms, hits, _ = metrics.roc_curve(label, second, drop_intermediate=False)
            assert found[row] == pytest.approx(hits[alarms <= 0.1 + 1e-12].max(), **EXACT)


def test_the_number_of_resamplings() -> None:
    assert rank_resamplings(1000, 10) == 1000
    assert rank_resamplings(10_000, 10) == 500
    assert rank_resamplings(50_000, 100) == 100
    assert rank_resamplings(50_000, 1000) == 0
    assert interval_of(np.full(3, np.nan)) is None
    assert interval_of(np.array([np.nan, 0.5])) == (0.5, 0.5)


def test_a_figure_that_is_not_above_its_baseline_says_so() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    always = Evaluation(labels, np.tile(np.array([0.9, 0.1], np.float32), (10, 1)), ("a", "b"))
    results = always.figures()
    assert results["majority_share"].title == "majority baseline: always a"
    assert (
        results["balanced_accuracy"].baseline_text().startswith("not above 50.00%, one answer for")
    )
    assert results["kappa"].baseline_text().startswith("not above 0.0000")
    assert not results["auc"].above_baseline
    assert not results["average_precision"].above_baseline
    right = Evaluation(labels, np.eye(2, dtype=np.float32)[labels], ("a", "b")).figures()
    assert [figure.baseline_text() for figure in right.values()] == [""] * len(right)


@pytest.mark.parametrize("specificity", [0, 1, 95, float("nan")])
def test_a_specificity_that_is_none(specificity: float) -> None:
    labels, probabilities = drawn(10, 2)
    with pytest.raises(ValueError, match=r"specificity must be in \(0, 1\), such as 0.95, not"):
        figures(labels, probabilities, names(2), specificity=specificity)


def test_no_image_has_no_figures() -> None:
    with pytest.raises(ValueError, match="need at least 1 image"):
        figures(np.empty(0, int), np.empty((0, 2)), names(2))


# --- several labels --------------------------------------------------------------------------


def multi_hot(images: int, classes: int, *, ties: bool = False, seed: int = 0):
    random = np.random.default_rng(seed)
    labels = (random.random((images, classes)) < random.uniform(0.1, 0.7, classes)).astype(np.uint8)
    probabilities = 1 / (1 + np.exp(-random.normal(size=labels.shape) - 2.0 * labels + 1))
    if ties:
        probabilities = np.round(8 * probabilities) / 8
    return labels, probabilities.astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
def test_several_labels(ties: bool) -> None:
    labels, probabilities = multi_hot(200, 5, ties=ties)
    thresholds = np.array([0.3, 0.5, 0.6, 0.25, 1.0])
    result = MultiLabelEvaluation(labels, probabilities, names(5), thresholds)
    predicted = (probabilities >= thresholds).astype(int)
    expected = {
        "mean_average_precision": metrics.average_precision_score(labels, probabilities),
        "auc": metrics.roc_auc_score(labels, probabilities),
        "micro_f1": metrics.f1_score(labels, predicted, average="micro"),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "exact_match": metrics.accuracy_score(labels, predicted),
    }
    results = result.figures()
    assert {key: one.value for key, one in results.items()} == pytest.approx(expected, **EXACT)
    for name, values in (
        ("auc", metrics.roc_auc_score(labels, probabilities, average=None)),
        ("average_precision", metrics.average_precision_score(labels, probabilities, average=None)),
        ("f1", metrics.f1_score(labels, predicted, average=None, zero_division=0)),
        ("recall", metrics.recall_score(labels, predicted, average=None)),
    ):
        np.testing.assert_allclose(getattr(result, name), values, rtol=0, atol=1e-9)
    for figure in results.values():
        assert figure.interval[0] <= figure.value <= figure.interval[1]
    for area, (low, high) in zip(result.auc, result.auc_intervals, strict=True):
        assert low <= area <= high
    assert result.count == 200


def test_all_or_no_labels_right_has_an_exact_interval() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    right = MultiLabelEvaluation(labels, labels.astype(np.float32), ("a", "b"))
    assert right.figures()["exact_match"].interval == pytest.approx((0.025 ** (1 / 3), 1.0))
    wrong = MultiLabelEvaluation(labels, 1 - labels.astype(np.float32), ("a", "b"))
    assert wrong.figures()["exact_match"].interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 3)))


def test_labels_that_no_image_has_or_all_have() -> None:
    labels, probabilities = multi_hot(50, 4)
    labels[:, 1], labels[:, 2] = 0, 1
    result = MultiLabelEvaluation(labels, probabilities, names(4))
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [area is None for area in fields["auc_by_class"]] == [False, True, True, False]
    assert fields["auc_by_class_intervals"][1] is None
    assert fields["average_precision_by_class"][1] is None
    assert fields["average_precision_by_class"][2] == 1
    kept = labels[:, [0, 2, 3]], probabilities[:, [0, 2, 3]]
    expected = metrics.average_precision_score(*kept)
    assert fields["mean_average_precision"] == pytest.approx(expected, **EXACT)
    assert fields["thresholds"] == [0.5] * 4
    nothing = MultiLabelEvaluation(np.zeros((3, 2)), np.zeros((3, 2), np.float32), names(2))
    undefined = {key for key, one in nothing.figures().items() if one.value is None}
    assert undefined == {"mean_average_precision", "auc", "micro_f1", "macro_f1"}
    assert set(nothing.to_dict()["undefined"]) == undefined
    assert nothing.figures()["exact_match"].value == 1


@pytest.mark.parametrize("ties", [False, True])
def test_thresholds_maximise_f1(ties: bool) -> None:
    labels, probabilities = multi_hot(40, 4, ties=ties, seed=1)
    thresholds = choose_thresholds(labels, probabilities)
    for has, scores, threshold in zip(labels.T, probabilities.T, thresholds, strict=True):
        candidates = np.unique(scores)
        best = max(metrics.f1_score(has, scores >= candidate) for candidate in candidates)
        assert metrics.f1_score(has, scores >= threshold) == pytest.approx(best, **EXACT)
        # No higher threshold is as good.
        higher = candidates[candidates > threshold][1:]
        assert all(metrics.f1_score(has, scores >= one) < best for one in higher)


def test_thresholds_by_hand() -> None:
    labels = np.array([[1, 0, 1, 1, 0], [1, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    probabilities = np.array(
        [[0.9, 0.2, 0.5, 0.4, 0.9], [0.5, 0.3, 0.5, 0.2, 0.8], [0.25, 0.9, 0.5, 0.6, 0.1]]
    )
    # Apart: halfway. No image: 0.5. All tied: half of the tie. All labelled: below the lowest.
    # Both F1 = 2/3 ({0.9, 0.8} and all): 0.8 is 2 * 1 / 4 = 1/2, and all is 4/5.
    expected = [0.375, 0.5, 0.25, 0.1, 0.05]
    np.testing.assert_allclose(choose_thresholds(labels, probabilities), expected)
    # Between neighbours of float32, the threshold still tells them apart.
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    column = np.array([[low], [high]])
    threshold = choose_thresholds(np.array([[0], [1]]), column)
    assert (column >= threshold).ravel().tolist() == [False, True]


@pytest.mark.parametrize(
    ("labels", "probabilities", "options", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 2)), {}, r"not \(2, 3\) and \(2, 2\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, r"n >= 1, not \(0, 2\)"),
        (np.full((2, 2), 2), np.zeros((2, 2)), {}, "labels must be 0 or 1"),
        (np.zeros((2, 2)), np.full((2, 2), np.nan), {}, "not finite"),
        (np.zeros((2, 3)), np.zeros((2, 3)), {}, r"labels \(2, 3\) do not fit 2 class names"),
        (np.zeros((2, 2)), np.zeros((2, 2)), {"thresholds": np.ones(3)}, r"2 numbers.*not \(3,\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), {"thresholds": [0.5, 2]}, r"in \[0, 1\], not 2"),
    ],
)
def test_several_labels_that_do_not_fit(labels, probabilities, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        MultiLabelEvaluation(labels, probabilities, names(2), **options)

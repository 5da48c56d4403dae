"""Bootstrap intervals over groups, such as patients, against a direct computation."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits

from keras_vgg import cli
from keras_vgg.evaluation import (
    Evaluation,
    MultiLabelEvaluation,
    compare,
    figures,
    fuse,
    groups_text,
)
from keras_vgg.evaluation.resampling import group_numbers
from keras_vgg.run import Run
from keras_vgg.runs import report_runs
from keras_vgg.runs.report import _evaluated

SIZES = (1, 2, 3, 5, 8, 13, 2, 4)  # images of each group
GROUPS = np.repeat([f"patient {number}" for number in range(len(SIZES))], SIZES)
NAMES = ("a", "b", "c")


def answers(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and probabilities; the images of a group are alike."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, classes, len(SIZES)), SIZES)
    labels[:classes] = range(classes)
    scores = rng.random((len(labels), classes)) + np.eye(classes)[labels] * 0.4
    return labels, (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def draws(resamplings: int) -> list[np.ndarray]:
    """Return the images of groups drawn with replacement, as many groups as there are."""
    members = [np.flatnonzero(name == GROUPS) for name in dict.fromkeys(GROUPS)]
    chosen = np.random.default_rng(0).integers(0, len(members), (resamplings, len(members)))
    return [np.concatenate([members[group] for group in row]) for row in chosen]


def percentiles(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return pytest.approx((low, high), abs=1e-9)


def test_intervals_of_accuracy_and_of_a_difference_are_a_direct_bootstrap() -> None:
    classes = 7
    labels, probabilities = answers(classes)
    names = tuple("abcdefg")
    one = Evaluation(labels, probabilities, names, GROUPS)
    other = Evaluation(labels, answers(classes, seed=1)[1], names, GROUPS)
    right, right_other = (e.probabilities.argmax(axis=1) == labels for e in (one, other))
    best = np.argsort(probabilities, axis=1)[:, -5:]
    top5 = (best == labels[:, np.newaxis]).any(axis=1)
    drawn = draws(20_000)

    assert one.interval() == percentiles([right[images].mean() for images in drawn])
    assert one.interval(5) == percentiles([top5[images].mean() for images in drawn])
    compared = compare(one, other)
    differences = [right_other[images].mean() - right[images].mean() for images in drawn]
    assert compared.interval == percentiles(differences)
    assert compared.groups == one.group_count == 8
    assert fuse([one, other]).group_count == 8


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of pairs of a positive and a negative image in the right order."""
    pairs = scores[labels == 1][:, np.newaxis] - scores[labels == 0]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_are_a_direct_bootstrap(classes: int) -> None:
    labels, probabilities = answers(classes)
    answered = probabilities.argmax(axis=1)
    found = figures(labels, probabilities, NAMES[:classes], groups=GROUPS)
    commonest = np.bincount(labels).argmax()
    drawn = draws(1000)

    shares = [np.mean(labels[images] == commonest) for images in drawn]
    assert found["majority_share"].interval == percentiles(shares)
    whole = metrics.recall_score(labels, answered, average=None)

    def balanced(images: np.ndarray) -> float:
        """A class of which nothing was drawn keeps its accuracy."""
        recalls = [
            np.mean(answered[images][labels[images] == label] == label)
            if (labels[images] == label).any()
            else whole[label]
            for label in range(classes)
        ]
        return float(np.mean(recalls))

    assert found["balanced_accuracy"].interval == percentiles([balanced(i) for i in drawn])
    if classes == 2:
        areas = [area(labels[i], probabilities[i, 1]) for i in drawn if len(set(labels[i])) == 2]
        assert found["auc"].interval == percentiles(areas)


def test_figures_of_several_labels_are_a_direct_bootstrap() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(0, 2, (len(SIZES), 3)), SIZES, axis=0)
    probabilities = np.clip(labels * 0.3 + rng.random(labels.shape) * 0.7, 0, 1).astype(np.float32)
    result = MultiLabelEvaluation(labels, probabilities, NAMES, groups=GROUPS)
    predicted = (probabilities >= 0.5).astype(int)
    drawn = draws(1000)

    exact = (labels == predicted).all(axis=1)
    found = result.figures()
    assert found["exact_match"].interval == percentiles([exact[images].mean() for images in drawn])
    hits, given = labels * predicted, labels + predicted
    micro = [2 * hits[images].sum() / given[images].sum() for images in drawn]
    assert found["micro_f1"].interval == percentiles(micro)
    assert result.to_dict()["groups"] == 8


def test_without_groups_or_with_one_nothing_changes() -> None:
    labels, probabilities = answers(3)
    plain = Evaluation(labels, probabilities, NAMES)
    alone = np.arange(len(labels))
    for groups in (alone, np.full(len(labels), "p"), np.full(len(labels), "")):
        same = Evaluation(labels, probabilities, NAMES, groups)
        assert same.group_count is None
        assert same.to_dict() == plain.to_dict()
    assert "groups" not in plain.to_dict()
    names = figures(labels, probabilities, NAMES)
    assert figures(labels, probabilities, NAMES, groups=alone) == names


def test_the_missing_groups_of_a_table_are_no_group() -> None:
    labels, probabilities = answers(3)
    names = np.array(["p", "q", *"rrsstt"] * len(labels), dtype=object)[: len(labels)]
    expected = Evaluation(labels, probabilities, NAMES, np.where(names < "r", None, names))
    pandas = pytest.importorskip("pandas")
    for missing in (float("nan"), np.float32("nan"), pandas.NA, pandas.NaT, ""):
        groups = np.where(names < "r", missing, names)
        assert Evaluation(labels, probabilities, NAMES, groups).to_dict() == expected.to_dict()


def test_images_of_one_group_are_said_to_be() -> None:
    labels, probabilities = answers(3)
    both = np.eye(3, dtype=np.uint8)[labels]

    def over(groups: list[str | None]) -> set[str]:
        of_image = np.array(groups, object)
        count = len(groups)
        one_label = Evaluation(labels[:count], probabilities[:count], NAMES, of_image)
        several = MultiLabelEvaluation(both[:count], probabilities[:count], NAMES, groups=of_image)
        return {one_label.over, several.over}

    assert over(["p"] * 5) == {"over the images of one group: intervals come out too narrow"}
    assert over(["p"] * 4 + ["q"]) == {groups_text(2)}
    for groups in (["", None, ""], ["p"], ["p", "q", "r"]):
        assert over(groups) == {""}
    assert Evaluation(labels, probabilities, NAMES).over == ""


def test_groups_of_like_images_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(0, 2, 40), 25)  # 40 patients, each all right or all wrong
    probabilities = np.stack([right, 1 - right], axis=1).astype(np.float32)
    patients = np.repeat(np.arange(40), 25)
    labels = np.zeros(1000, int)
    by_image = Evaluation(labels, probabilities, ("a", "b")).interval()
    by_patient = Evaluation(labels, probabilities, ("a", "b"), patients).interval()
    assert by_patient[1] - by_patient[0] > 4 * (by_image[1] - by_image[0])


def test_an_image_without_a_group_is_by_itself_and_numbers_must_agree() -> None:
    np.testing.assert_array_equal(group_numbers(["x", "", None, "x", ""], 5), [0, 1, 2, 0, 3])
    with pytest.raises(ValueError, match="each image needs a group: 2 groups, 3 images"):
        group_numbers(["x", "y"], 3)
    with pytest.raises(ValueError, match="each image needs a group"):
        Evaluation(np.zeros(3, int), np.eye(3), NAMES, np.array(["x"])).interval()
    assert groups_text(20) == "over 20 groups"
    assert groups_text(19) == "over 19 groups, too few: intervals come out too narrow"


@pytest.fixture
def grouped(tmp_path: Path) -> str:
    """Sixty digits of twelve patients in a table."""
    digits = load_digits()
    with (tmp_path / "scans.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "patient"])
        for number in range(60):
            image = (digits.images[number] * 255 / 16).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", digits.target[number], f"p{number // 5}"])
    return f"csv:{tmp_path / 'scans.csv'}"


@pytest.mark.slow
def test_the_command_and_the_report_name_the_groups(
    varied_run: Run, grouped: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(shutil.copytree(varied_run.directory, tmp_path / "run"))
    assert cli.main(["evaluate", str(run.directory), "--source", grouped]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "intervals over 12 groups, too few: intervals come out too narrow" in text
    ((key, figures),) = [(k, v) for k, v in run.results.items() if k.startswith("all_of_")]
    assert figures["groups"] == 12
    by_image = Evaluation(np.zeros(60, int), np.tile([figures["top1"], 0], (60, 1)), ("a", "b"))
    assert figures["top1_interval"] != list(by_image.interval())
    page = report_runs([run], source=grouped, images=0).read_text()
    assert "bootstrap intervals of 95 % over 12 groups" in page
    rows = (tmp_path / "scans.csv").read_text().splitlines(keepends=True)
    one_patient = tmp_path / "one.csv"  # p0 has the first five
    one_patient.write_text("".join(rows[:6]))
    assert cli.main(["evaluate", str(run.directory), "--source", f"csv:{one_patient}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "over the images of one group: intervals come out too narrow" in text
    page = report_runs([run], source=f"csv:{one_patient}", images=0).read_text()
    assert "of 95 % over the images of one group: intervals come out too narrow" in page
    # Results of earlier versions have no groups.
    del figures["groups"]
    assert [one.name for one in _evaluated({key: figures})] == [key]

    other = shutil.copytree(run.directory, tmp_path / "other")
    assert cli.main(["evaluate", str(run.directory), str(other), "--source", grouped]) == 0
    assert "intervals over 12 groups, too few" in " ".join(capsys.readouterr().out.split())

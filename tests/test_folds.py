"""Cross-validation: the folds of a source, a run for each, resuming, and the paired tests."""

import csv
import itertools
import json
import os
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from keras_vgg import cli, data, evaluation, runs
from keras_vgg.data.folds import with_fold
from keras_vgg.data.groups import shared_groups
from keras_vgg.fit import describe, load_source, train
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs import folds as module
from keras_vgg.runs.out_of_fold import Answers, read_table, write_table
from tests import processes
from tests.test_fit import TINY

pytestmark = pytest.mark.usefixtures("blank_plots")


# --- the folds of a source -------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 24 images: eight patients a class, three images each."""
    root = tmp_path_factory.mktemp("folds") / "photos"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(24):
            pixels = np.random.default_rng(100 * label + i).integers(0, 256, (8, 8, 3))
            path = root / name / f"{name[0]}{i // 3}_{i}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def test_each_image_is_held_out_once_and_no_group_is_divided(photos: Path) -> None:
    held: list[str] = []
    for fold in range(1, 5):
        source = data.load_source(
            f"folder:{photos}", group_pattern="([cd][0-9]+)_", folds=4, fold=fold
        )
        sides = [set(split.groups) for split in source.splits().values()]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 16
        assert np.bincount(source.test.labels).tolist() == [6, 6]
        assert source.validation.size
        held += source.test.paths.tolist()
    assert len(held) == len(set(held)) == 48


def test_folds_leave_the_sources_own_test_split_alone(tmp_path: Path, photos: Path) -> None:
    for part, place in (("train", 0), ("val", 1), ("test", 2)):
        for path in sorted(photos.glob("*/*.png"))[place::3]:
            target = tmp_path / part / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    spec = f"folder:{tmp_path}"
    source = data.load_source(spec, folds=2, fold=1)
    paths = [path for split in source.splits().values() for path in split.paths]
    assert len(paths) == 32
    assert not any("/test/" in path for path in paths)
    (left_out,) = source.left_out
    assert str(left_out).startswith("16 in the source's own test split, which folds leave alone: ")
    # A pattern's groups that the folders divide are said.
    source = data.load_source(spec, group_pattern="([cd][0-9]+)_", validation_fraction=0)
    line, *_ = data.take_inventory(source).lines()
    assert line.startswith("16 groups have images in train and in validation: c0, c1, c2, c3, c4, ")
    inventory = data.take_inventory(source)
    kept = inventory.as_json()
    assert kept["shared_groups"][0]["count"] == 16
    again = data.Inventory.from_json(source.class_names, kept)
    assert again.lines() == inventory.lines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 5}, "fold=0 must be from 1 to 5, the number of folds; to train all of them"),
        ({"folds": 5, "fold": 6}, "fold=6 must be from 1 to 5"),
        ({"folds": 1, "fold": 1}, "folds=1 must be at least 2"),
        ({"fold": 2}, "folds=0 must be at least 2"),
        ({"folds": 2000, "fold": 1}, "2000 folds need 2000 images or groups of images"),
        ({"group_pattern": "x"}, "source 'digits' has no paths to match"),
        ({"columns": "path=file"}, "source 'digits' is not csv:FILE"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.load_source("digits", **options)


def test_records_have_no_folds() -> None:
    split = data.Split("train", 0, records=data.Records((), parse=lambda record: (record, record)))
    with pytest.raises(ValueError, match="folds need labels before training"):
        with_fold(data.Source("records:packed", ("a", "b"), split, None, None), 2, 1, 0.1, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": 1}, "folds must be from 2 to 1000, or 0 for no folds, not 1"),
        ({"folds": -5}, "folds must be from 2 to 1000"),
        ({"folds": 5, "fold": 6}, r"fold must be from 1 to folds \(5\), or 0 for all of them, not"),
        ({"fold": 1}, "fold 1 is one of several: state folds too"),
    ],
)
def test_a_recipes_folds(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_a_recipe_of_a_version_without_folds_loads() -> None:
    fields = json.loads(Recipe().to_json())
    for name in ("columns", "group_pattern", "folds", "fold"):
        del fields[name]
    assert Recipe.from_json(json.dumps(fields)) == Recipe()


# --- a run for each --------------------------------------------------------------------------

CROSS = TINY.replace(folds=2, epochs=1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tiny_run: Run) -> list[str]:
    """`train` copies the tiny run in place of training; return the names of what it trained."""
    names: list[str] = []

    def copy(recipe: Recipe, workdir: Path, verbose: object) -> Run:
        run = Run(workdir, recipe)
        if not run.finished:
            names.append(workdir.name)
            shutil.copytree(tiny_run.directory, workdir)
            run.write_recipe()
            run.write_json("data.json", describe(load_source(recipe)))
        return run

    monkeypatch.setattr(module, "train", copy)
    return names


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_cross_validation(tmp_path: Path, trained: list[str], capsys) -> None:
    whole = runs.cross_validate(CROSS, tmp_path / "cv", verbose=0)
    assert trained == ["fold-1", "fold-2"]
    assert [run.recipe.fold for run in whole.runs] == [1, 2]
    assert sum(whole.test_images) == whole.evaluation.count == 1797
    for number, run in enumerate(whole.runs):
        top1 = run.results["test"]["top1"]
        assert whole.figures["top1"].values[number] == top1
        expected = load_source(run.recipe).test
        assert whole.test_images[number] == expected.size
    values = [run.results["test"]["top1"] for run in whole.runs]
    assert whole.figures["top1"].mean == pytest.approx(np.mean(values))
    assert whole.figures["top1"].standard_deviation == pytest.approx(np.std(values, ddof=1))
    with (tmp_path / "cv" / "out_of_fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "path",
        "group",
        "fold",
        "class",
        *(f"probability_{i}" for i in range(10)),
    ]
    assert rows[0]["path"] == "test image 0 of fold 1"
    # The table holds the very probabilities: another fold's are not touched by a repeated call.
    right = np.average(values, weights=whole.test_images)
    assert whole.evaluation.top1 == pytest.approx(right)
    assert whole.evaluation.probabilities.dtype == np.float32

    # A kill after the first fold: what is finished is kept, and the table is the same.
    table = (tmp_path / "cv" / "out_of_fold.csv").read_bytes()
    shutil.rmtree(tmp_path / "cv" / "fold-2")
    (tmp_path / "cv" / "folds.json").unlink()
    assert cli.main(["evaluate", str(tmp_path / "cv")]) == cli.BAD_INPUT
    assert "has not finished all folds; repeat its keras-vgg train" in capsys.readouterr().err
    runs.cross_validate(CROSS, tmp_path / "cv", verbose=0)
    assert trained == ["fold-1", "fold-2", "fold-2"]
    assert (tmp_path / "cv" / "out_of_fold.csv").read_bytes() == table

    # Figures of a network that has been replaced are not shown.
    shutil.copytree(tmp_path / "cv", tmp_path / "again")
    (tmp_path / "again" / "fold-2" / "model.keras").write_bytes(b"another network")
    with pytest.raises(ValueError, match=r"fold 2 of .*again has been trained since its figures"):
        runs.open_cross_validation(tmp_path / "again")
    again = Run.open(tmp_path / "again" / "fold-2")
    restarts = {"restart_epochs": (again.recipe.epochs,), "restart_rates": (0.01,)}
    more = again.recipe.replace(epochs=again.recipe.epochs + 2, **restarts)
    Run(again.directory, more).write_recipe()
    with pytest.raises(ValueError, match="it was extended: cross-validate with more epochs in"):
        runs.open_cross_validation(tmp_path / "again")

    # What lies beside the folds does not matter, and figures of folds that are gone are removed.
    (tmp_path / "cv" / ".DS_Store").touch()
    runs.cross_validate(CROSS, tmp_path / "cv", verbose=0)
    shutil.copytree(tmp_path / "cv", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "fold-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_test", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.cross_validate(CROSS, tmp_path / "killed", verbose=0)
    assert not (tmp_path / "killed" / "folds.json").exists()

    shutil.copytree(tmp_path / "cv", tmp_path / "other")
    assert cli.main(["evaluate", str(tmp_path / "cv"), str(tmp_path / "other")]) == cli.OK
    out = capsys.readouterr().out
    assert "all 1,797 images: +0.00%" in out
    assert "McNemar's p 1" in out
    assert cli.main(["evaluate", str(tmp_path / "cv")]) == cli.OK
    assert "standard deviation" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("x"), "is a file; choose another workdir"),
        (lambda path: (path.mkdir(), (path / "notes.txt").touch()), "it has notes.txt; choose"),
        (lambda path: (path.mkdir(), (path / "recipe.json").touch()), "holds a run without folds"),
    ],
)
def test_a_directory_of_something_else_is_refused(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "cv")
    with pytest.raises(ValueError, match=message):
        runs.cross_validate(CROSS, tmp_path / "cv", verbose=0)


def test_a_recipe_without_folds_is_refused(tmp_path: Path) -> None:
    for recipe in (TINY, CROSS.replace(fold=1)):
        with pytest.raises(ValueError, match="needs a recipe with folds and without fold"):
            runs.cross_validate(recipe, tmp_path / "cv")


# --- the paired tests ------------------------------------------------------------------------


def write_folds(
    directory: Path, seed: int, right: float, labels: np.ndarray, several: bool = False
) -> runs.CrossValidation:
    """Write a cross-validation of random answers, of which this share is right."""
    rng = np.random.default_rng(seed)
    shape = (len(labels), 3)
    scores = rng.random(shape) + (rng.random(shape[0]) < right)[:, np.newaxis] * (
        labels if several else np.eye(3)[labels]
    )
    shares = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    tested = []
    for fold, part in enumerate(np.array_split(np.arange(len(labels)), 4), 1):
        run = Run(directory / f"fold-{fold}", Recipe(folds=4, fold=fold))
        run.directory.mkdir(parents=True)
        run.write_recipe()
        run.model_path.write_bytes(b"a network")
        sizes = {"train": 120, "validation": 30, "test": len(part)}
        splits = {k: {"images": n, "fingerprint": f"{k} {fold}"} for k, n in sizes.items()}
        fields = {"class_names": ["a", "b", "c"], "splits": splits, "several_labels": several}
        run.write_json("data.json", fields)
        images = np.zeros((len(part), 1, 1, 3), np.uint8)
        split = data.Split("test", len(part), labels[part], images)
        kind = evaluation.MultiLabelEvaluation if several else evaluation.Evaluation
        evaluated = kind(labels[part], shares[part], ("a", "b", "c"))
        figures = evaluated.figures()
        if not several:
            figures["top1"] = evaluation.Figure("top-1 accuracy", evaluated.top1, None)
        answers = Answers(split, labels[part], shares[part])
        tested.append(module._Tested(run, answers, figures))
    write_table(directory / "out_of_fold.csv", [one.answers for one in tested], ("a", "b", "c"))
    module.write_json(directory / "folds.json", module._summary(tested, ("a", "b", "c")))
    result = runs.open_cross_validation(directory)
    np.testing.assert_array_equal(result.evaluation.probabilities, shares)
    np.testing.assert_array_equal(result.evaluation.labels, labels)
    return result


def test_names_of_groups_that_are_not_utf_8_and_classes_of_one_name(tmp_path: Path) -> None:
    groups = np.array([os.fsdecode(b"M\xe9ller"), "Ott"], dtype=object)
    split = data.Split("test", 2, np.array([0, 1]), np.zeros((2, 1, 1, 3), np.uint8), groups=groups)
    answers = Answers(split, np.array([0, 1]), np.full((2, 2), 0.5, np.float32))
    write_table(tmp_path / "table.csv", [answers], ("a", "b"))
    assert r"M\xe9ller,1,a" in (tmp_path / "table.csv").read_text(encoding="utf-8")
    (shared,) = shared_groups({"train": split, "test": split})
    assert r"M\xe9ller" in str(shared)
    write_table(tmp_path / "twins.csv", [answers], ("crane", "crane"))
    labels, *_ = read_table(tmp_path / "twins.csv", ("crane", "crane"), several_labels=False)
    np.testing.assert_array_equal(labels, [0, 1])


def test_the_paired_tests_equal_a_direct_computation(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 202).astype(np.int32)
    one = write_folds(tmp_path / "one", 1, 0.5, labels)
    other = write_folds(tmp_path / "other", 2, 0.7, labels)
    compared = runs.compare_cross_validations(one, other)
    # Nadeau and Bengio, "Inference for the generalization error", 2003, from the definition.
    folds = np.array_split(np.arange(202), 4)
    right = [e.evaluation.probabilities.argmax(1) == labels for e in (one, other)]
    d = np.array([right[1][fold].mean() - right[0][fold].mean() for fold in folds])
    ratio = np.mean([len(fold) / 120 for fold in folds])
    variance = (1 / 4 + ratio) * ((d - d.mean()) ** 2).sum() / 3
    t = d.mean() / variance**0.5
    found = compared.figures["top1"]
    assert found.difference == pytest.approx(d.mean(), rel=1e-12)
    assert found.statistic == pytest.approx(t, rel=1e-12)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(t), 3), rel=1e-12)
    reach = stats.t.ppf(0.975, 3) * variance**0.5
    assert found.interval == pytest.approx((d.mean() - reach, d.mean() + reach), rel=1e-12)
    only, only_other = (right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum()
    exact = stats.binomtest(int(only), int(only + only_other)).pvalue
    assert compared.images.p_value == pytest.approx(exact, rel=1e-12)
    assert (compared.images.one_only, compared.images.other_only) == (only, only_other)
    assert "majority_share" in compared.figures


def test_several_labels_are_compared_over_folds(tmp_path: Path, capsys) -> None:
    labels = (np.random.default_rng(0).random((80, 3)) < 0.5).astype(np.uint8)
    one = write_folds(tmp_path / "one", 1, 0.5, labels, several=True)
    other = write_folds(tmp_path / "other", 2, 0.7, labels, several=True)
    compared = runs.compare_cross_validations(one, other)
    assert compared.images is None
    assert "exact_match" in compared.figures
    assert cli.main(["evaluate", str(tmp_path / "one")]) == cli.OK
    assert "F1 and exact match: each fold by its own thresholds" in capsys.readouterr().out


def test_other_folds_are_not_compared(tmp_path: Path, capsys) -> None:
    labels = np.random.default_rng(0).integers(0, 3, 40).astype(np.int32)
    one = write_folds(tmp_path / "one", 1, 0.5, labels)
    other = write_folds(tmp_path / "other", 2, 0.7, labels)
    summary = json.loads((other.directory / "folds.json").read_text())
    summary["folds"][2]["fingerprint"] = "other images"
    (other.directory / "folds.json").write_text(json.dumps(summary))
    with pytest.raises(
        ValueError, match="images of their folds, differ; use the same source, seed"
    ):
        runs.compare_cross_validations(one, runs.open_cross_validation(other.directory))
    for arguments, message in (
        ([one.directory, "--protocol", "dense"], "leave out all options"),
        ([one.directory, tmp_path / "nowhere"], "nowhere is no cross-validation"),
    ):
        assert cli.main(["evaluate", *map(str, arguments)]) == cli.BAD_INPUT
        assert message in capsys.readouterr().err
    (one.directory / "out_of_fold.csv").write_text("path,group\n")
    damaged = runs.open_cross_validation(one.directory)
    with pytest.raises(ValueError, match=r"out_of_fold.csv cannot be read: it has other columns"):
        _ = damaged.evaluation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], [0.6], [10], [5]), "the same two folds or more, not 1 and 1"),
        (([0.5, 0.6], [0.6], [10, 10], [5, 5]), "the same two folds or more, not 2 and 1"),
        (([0.5, 0.6], [0.6, 0.7], [10, 0], [5, 5]), "needs training and held-out images"),
        (([0.5, 0.6], [0.6, 0.7], [10, 9], [5, 5], 1.0), r"level must be in \(0, 1\), not 1.0"),
    ],
)
def test_folds_that_cannot_be_compared(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation.compare_folds(*arguments)


def test_equal_differences_have_no_variance() -> None:
    same = evaluation.compare_folds([0.5, 0.75], [0.5, 0.75], [9, 9], [3, 3])
    assert (same.difference, same.p_value, same.interval) == (0, 1, (0, 0))
    better = evaluation.compare_folds([0.5, 0.75], [0.75, 1.0], [9, 9], [3, 3])
    assert (better.statistic, better.p_value) == (np.inf, 0)


# --- trained and killed ----------------------------------------------------------------------


@pytest.mark.slow
def test_killed_folds_go_on(tmp_path: Path, photos: Path) -> None:
    """A kill in the second fold; the repeated command ends with the table of an undisturbed one."""
    options = ["--source", f"folder:{photos}", "--group-pattern", "([cd][0-9]+)_", "--folds", "3"]
    options += ["--image-size", "32", "--width-multiplier", "0.0625", "--hidden-units", "8"]
    options += ["--epochs", "3", "--batch-size", "8", "--precision", "float32", "--quiet"]
    killed, whole, output = tmp_path / "killed", tmp_path / "whole", tmp_path / "output.txt"

    def start(directory: Path) -> BaseProcess:
        return processes.start(output, ["train", *options, "--workdir", str(directory)])

    process = start(killed)
    while not list(killed.glob("fold-2/checkpoints/*.npz")):
        assert process.is_alive(), output.read_text()
        time.sleep(0.02)
    process.kill()
    process.join()
    finished = (killed / "fold-1" / "model.keras").stat().st_mtime_ns
    assert not (killed / "fold-2" / "results.json").is_file()
    for directory in (killed, whole):
        process = start(directory)
        process.join()
        assert process.exitcode == 0, output.read_text()
    assert (killed / "fold-1" / "model.keras").stat().st_mtime_ns == finished
    assert (killed / "out_of_fold.csv").read_bytes() == (whole / "out_of_fold.csv").read_bytes()
    summaries = [json.loads((folder / "folds.json").read_text()) for folder in (killed, whole)]
    for fold in itertools.chain(*(summary["folds"] for summary in summaries)):
        del fold["model_sha256"]  # the archive has the time at which it was written
    assert summaries[0] == summaries[1]
    with (killed / "out_of_fold.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["path"] for row in rows}) == 48
    for group in {row["group"] for row in rows}:
        assert len({row["fold"] for row in rows if row["group"] == group}) == 1
    with pytest.raises(ValueError, match="fold=0 must be from 1 to 3"):
        train(Run.open(killed / "fold-1").recipe.replace(fold=0), tmp_path / "one", verbose=0)

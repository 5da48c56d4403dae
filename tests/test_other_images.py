"""A run's images in a new place, and other sets, whose classes are matched by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import cli, data, evaluation, runs
from keras_vgg.fit import Run, describe, file_sizes, load_source
from keras_vgg.recipe import Recipe
from keras_vgg.runs import images
from keras_vgg.runs.images import open_split

pytestmark = pytest.mark.usefixtures("blank_plots")

COLOURS = {"blue": (20, 20, 220), "green": (20, 220, 20), "red": (220, 20, 20)}


def write(folder: Path, class_name: str, count: int, colour: str | None = None, first: int = 0):
    """Write pictures of a colour, each with noise of its own."""
    for number in range(first, first + count):
        noise = np.random.default_rng([number, len(class_name)]).integers(0, 20, (36, 36, 3))
        path = folder / class_name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise + np.array(COLOURS[colour or class_name])
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def names_colours() -> keras.Model:
    """A network that answers with the colour of an image: blue, green or red."""
    inputs = keras.Input((32, 32, 3))
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 25)(inputs))
    scores = keras.layers.Dense(3, use_bias=False, name="predictions", activation="softmax")
    outputs = scores(means)
    scores.set_weights([np.eye(3, dtype=np.float32)[::-1]])
    return keras.Model(inputs, outputs)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not trained; its first blue picture is red."""
    folder = tmp_path_factory.mktemp("made")
    for class_name, count in (("blue", 12), ("green", 8), ("red", 8)):
        write(folder / "own", class_name, count)
    write(folder / "own", "blue", 1, "red")
    recipe = Recipe(
        source=f"folder:{folder / 'own'}",
        image_size=32,
        batch_size=8,
        validation_fraction=0.25,
        test_fraction=0.5,
    )
    run = Run(folder / "run", recipe)
    run.directory.mkdir()
    run.write_recipe()
    source = load_source(recipe)
    run.write_json("data.json", describe(source) | {"file_sizes": file_sizes(source)})
    run.write_json("results.json", {"epochs": 1, "best_epoch": 1, "parameters": 9})
    names_colours().save(run.model_path)
    return run


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    """A copy of the run and of its images, without the images of the recipe."""
    shutil.copytree(made.directory.parent, tmp_path / "copy")
    source = f"folder:{tmp_path / 'copy' / 'own'}"
    copy = Run(tmp_path / "copy" / "run", made.recipe.replace(source=source))
    copy.write_recipe()
    return copy


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another set without splits, with two of the three classes."""
    write(tmp_path / "other", "red", 3)
    write(tmp_path / "other", "green", 5)
    return tmp_path / "other"


@pytest.mark.slow
def test_images_that_have_moved(run: Run, tmp_path: Path) -> None:
    before = runs.evaluate_run(run)
    old = Path(run.recipe.source.removeprefix("folder:"))
    shutil.move(old, tmp_path / "new place")
    with pytest.raises(FileNotFoundError, match=rf"no folder {old}.*new place with --source"):
        runs.evaluate_run(run)
    recorded = runs.record_evaluation(run, source=f"folder:{tmp_path / 'new place'}")
    np.testing.assert_array_equal(recorded.evaluation.probabilities, before.probabilities)
    assert (recorded.key, recorded.images.source) == ("test", None)
    assert recorded.images.title == "test images"
    assert "source" not in run.results["test"]
    validation = open_split(run, "validation", f"folder:{tmp_path / 'new place'}")
    assert validation.size == len(validation.labels) > 0
    with pytest.raises(FileNotFoundError, match="new place with --source"):
        runs.calibrate_run(run)
    runs.calibrate_run(run, source=f"folder:{tmp_path / 'new place'}")
    assert run.read_json("calibration.json")["images"] == validation.size
    for class_name in ("red", "green"):
        write(tmp_path / "another", class_name, 3)
    with pytest.raises(ValueError, match="does not hold the images of"):
        runs.calibrate_run(run, source=f"folder:{tmp_path / 'another'}")


def test_files_of_other_sizes_under_the_same_names_are_another_set(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "smaller"
    for path in Path(run.recipe.source.removeprefix("folder:")).rglob("*.png"):
        (new / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((18, 18)).save(new / path.parent.name / path.name)
    tested = runs.open_images(run, source=f"folder:{new}")
    assert (tested.name, tested.source, tested.classes) == ("test", f"folder:{new}", (0, 1, 2))
    assert tested.split.fingerprint() == runs.open_images(run).split.fingerprint()
    assert "files of other sizes: they count as another set" in capsys.readouterr().err
    with pytest.raises(ValueError, match="its files have the same names and other sizes"):
        open_split(run, "validation", f"folder:{new}")
    described = run.read_json("data.json")
    run.write_json("data.json", {name: described[name] for name in ("class_names", "splits")})
    assert runs.open_images(run, source=f"folder:{new}").source is None  # no sizes to compare


def test_a_moved_run_without_test_images_has_the_split_that_a_command_asks_for(
    run: Run, tmp_path: Path
) -> None:
    run = Run(run.directory, run.recipe.replace(test_fraction=0.0))
    run.write_recipe()
    source = load_source(run.recipe)
    run.write_json("data.json", describe(source) | {"file_sizes": file_sizes(source)})
    shutil.move(run.recipe.source.removeprefix("folder:"), tmp_path / "new place")
    moved = f"folder:{tmp_path / 'new place'}"
    with pytest.raises(ValueError, match="has no test split; it has train, validation"):
        runs.open_images(run, source=moved)
    tested = runs.open_images(run, source=moved, default_split="validation")
    assert (tested.name, tested.source) == ("validation", None)
    assert tested.split.size == source.splits()["validation"].size


def test_tfds_that_has_moved(made: Run, tmp_path: Path, capsys, monkeypatch) -> None:
    opened = []

    def stop(recipe: Recipe):
        opened.append((recipe.source, recipe.data_dir))
        raise ValueError("it is opened")

    run = Run(tmp_path / "run", made.recipe.replace(source="cifar10", data_dir="/old"))
    shutil.copytree(made.directory, run.directory)
    run.write_recipe()
    monkeypatch.setattr("keras_vgg.runs.images.load_source", stop)
    options = ["--data-dir", str(tmp_path)]
    for command in (["evaluate"], ["calibrate"], ["report", "--split", "test"], ["export"]):
        assert cli.main([command[0], str(run.directory), *command[1:], *options]) == cli.BAD_INPUT
        assert "it is opened" in capsys.readouterr().err, command
    assert opened == [("cifar10", str(tmp_path))] * 4
    assert Run.open(run.directory).recipe.data_dir == "/old"
    for directory, folder, source, message in (
        (run.directory, "nowhere", None, "there is no such folder"),
        (made.directory, str(tmp_path), None, "is for data sets of TFDS, and the images are from"),
        (run.directory, str(tmp_path), "digits", "the images are from digits; if they have moved"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            runs.in_data_dir(Run.open(directory), folder, source)
    assert runs.in_data_dir(made, None) is made


@pytest.mark.slow
def test_runs_of_other_splits_are_not_compared(run: Run, tmp_path: Path) -> None:
    """The same folder is each run's own data, of which each has drawn another test split."""
    source = run.recipe.source
    recipe = run.recipe.replace(seed=run.recipe.seed + 1)
    other = Run(tmp_path / "other", recipe)
    shutil.copytree(run.directory, other.directory)
    other.write_recipe()
    other.write_json("data.json", describe(load_source(recipe)))
    message = "cannot be compared: their images differ"
    with pytest.raises(ValueError, match=message):
        runs.evaluate_runs([run, other], source=source)
    with pytest.raises(ValueError, match=message):
        runs.report_runs([run, other], tmp_path / "report.html", source=source)
    assert len(runs.evaluate_runs([run, run], source=source)) == 2


def test_another_set(
    run: Run,
    other: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs.evaluate_run(run)
    own = run.results["test"]
    recorded = runs.record_evaluation(run, source=f"folder:{other}")
    assert capsys.readouterr().err.splitlines() == [f"folder:{other} has no image of blue"]
    assert recorded.evaluation.labels.tolist() == [1] * 5 + [2] * 3  # the run's numbers
    assert recorded.evaluation.top1 == 1
    assert recorded.evaluation.class_names == ("blue", "green", "red")
    assert recorded.key.startswith("all_of_other_")
    assert run.results["test"] == own
    fields = run.results[recorded.key]
    assert (fields["source"], fields["count"]) == (f"folder:{other}", 8)
    assert fields["per_class"] == [None, 1.0, 1.0]
    assert (run.directory / f"confusion_{recorded.key}.csv").is_file()
    folders = {path.name for path in (run.directory / "posteriors").iterdir()}
    assert folders == {"test", recorded.key.removeprefix("all_of_")}
    with pytest.raises(ValueError, match=r"has no splits of its own, so no test split; leave out"):
        runs.evaluate_run(run, "test", source=f"folder:{other}")
    with pytest.raises(ValueError, match=r"does not hold the images of .*/run, which are from"):
        open_split(run, "validation", f"folder:{other}")
    monkeypatch.setattr(evaluation, "posteriors", None)  # nothing is computed again
    again = runs.evaluate_runs([run, run], source=f"folder:{other}")
    np.testing.assert_array_equal(again[1].probabilities, recorded.evaluation.probabilities)


def test_unknown_classes(run: Run, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(other, "mauve", 2, "red")
    write(other, "apricot", 2, "red")
    source = f"folder:{other}"
    message = r"does not know 2 of the 4 classes of .*: apricot, mauve; it knows blue, green, red\."
    with pytest.raises(ValueError, match=message + r".*--unknown-classes skip"):
        runs.evaluate_run(run, source=source)
    recorded = runs.record_evaluation(run, source=source, unknown_classes="skip")
    assert recorded.evaluation.labels.tolist() == [1] * 5 + [2] * 3
    assert recorded.evaluation.top1 == 1
    assert run.results[recorded.key]["skipped_classes"] == ["apricot", "mauve"]
    err = capsys.readouterr().err
    assert "4 of 12 images are left out: the run does not know apricot, mauve" in err
    for class_name in ("red", "green"):
        (other / class_name).rename(other / f"{class_name}ish")
    with pytest.raises(ValueError, match=r"knows no class of .*which has apricot, greenish, mauve"):
        runs.evaluate_run(run, source=source, unknown_classes="skip")


@pytest.mark.slow
def test_another_set_has_the_groups_of_the_pattern(run: Run, other: Path, capsys) -> None:
    grouped = Run(run.directory, run.recipe.replace(group_pattern=r"/([0-3])\.png"))
    with pytest.raises(ValueError, match="finds no group"):  # there is a number 4
        load_source(grouped.recipe.replace(source=f"folder:{other}"))
    assert runs.evaluate_run(grouped, source=f"folder:{other}").group_count is None
    assert f"folder:{other} has no groups, so intervals are over images" in capsys.readouterr().err
    grouped = Run(run.directory, run.recipe.replace(group_pattern=r"/([0-9])\.png"))
    found = runs.evaluate_run(grouped, source=f"folder:{other}")
    assert (found.count, found.group_count) == (8, 5)


def test_another_table_needs_no_group(run: Run, other: Path, tmp_path: Path) -> None:
    named = run.recipe.replace(source="csv:own.csv", columns="path=scan,label=name,group=case")
    Run(run.directory, named).write_recipe()
    rows = [f"{path},{path.parent.name}" for path in sorted(other.glob("*/*"))]
    (tmp_path / "new.csv").write_text("\n".join(["scan,name", *rows]))
    tested = runs.evaluate_run(Run.open(run.directory), source=f"csv:{tmp_path / 'new.csv'}")
    assert tested.count == 8
    (tmp_path / "new.csv").write_text("\n".join(["scan,class", *rows]))
    with pytest.raises(ValueError, match="has no column 'name'"):
        runs.evaluate_run(Run.open(run.directory), source=f"csv:{tmp_path / 'new.csv'}")


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("own", ["same csv", "csv", "folder"])
def test_another_table_has_columns_of_its_own(
    run: Run, other: Path, tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two readers label the same images: each is another set, with results of its own."""
    source = f"csv:{tmp_path / 'new.csv'}"
    if own != "folder":
        names = {"csv": "path=scan,label=name", "same csv": "path=path,label=third"}
        table = "csv:own.csv" if own == "csv" else source
        Run(run.directory, run.recipe.replace(source=table, columns=names[own])).write_recipe()
    seconds = ["green"] + ["red"] * 7
    images = zip(sorted(other.glob("*/*")), seconds, strict=True)
    rows = [f"{path},{path.parent.name},{second},red" for path, second in images]
    (tmp_path / "new.csv").write_text("\n".join(["path,label,second,third", *rows]))
    for columns in ("", "path=path,label=second"):
        arguments = ["evaluate", str(run.directory), "--source", source, "--columns", columns]
        assert cli.main(arguments) == 0
    err = capsys.readouterr().err
    assert ("by other columns are those of" in err) is (own == "same csv")
    results = [fields for name, fields in run.results.items() if "_of_new_" in name]
    assert [fields.get("columns") for fields in results] == [None, "path=path,label=second"]
    assert [fields["top1"] for fields in results] == [1, 1 / 2]


@pytest.mark.parametrize(
    ("columns", "source", "message"),
    [
        ("label=third", "csv:{}", "has no column 'third'"),
        ("colour=first", "csv:{}", "columns must name each of path, label"),
        ("label=first", "folder:{}", "of another table, and source='folder:.*' is none"),
        ("label=first", None, "and there is no source; name the table with --source csv:FILE"),
    ],
)
def test_columns_that_another_table_has_not(
    run: Run, tmp_path: Path, columns: str, source: str | None, message: str
) -> None:
    (tmp_path / "new.csv").write_text("path,first\na.png,red")
    if source is not None:
        source = source.format(tmp_path / "new.csv")
    with pytest.raises(ValueError, match=message):
        runs.with_columns(run, columns, source)
    assert runs.with_columns(run, None, source) is run


def test_another_set_with_splits(run: Run, tmp_path: Path, capsys) -> None:
    for class_name in COLOURS:
        write(tmp_path / "set" / "train", class_name, 2)
    write(tmp_path / "set" / "test", "blue", 3)
    write(tmp_path / "set" / "test", "mauve", 3, "red")
    source = f"folder:{tmp_path / 'set'}"
    tested = runs.open_images(run, source=source)
    assert tested.key("test_dense").startswith("test_dense_of_set_")
    assert tested.split.labels.tolist() == [0, 0, 0]
    err = capsys.readouterr().err
    assert f"{source} has no test image of green, red" in err
    assert "not read: 3 in a class of test that train has not" in err
    assert runs.open_images(run, "train", source=source).split.size == 6
    with pytest.raises(ValueError, match="no validation split; choose one of train, test"):
        runs.evaluate_run(run, "validation", source=source)


@pytest.mark.slow
def test_records_have_the_same_answers(run: Run, other: Path, tmp_path: Path) -> None:
    write(other, "mauve", 2, "red")
    options = {"validation_fraction": 0, "test_fraction": 0}
    data.pack(data.load_source(f"folder:{other}", **options), tmp_path / "pack", shard_images=4)
    folder = runs.evaluate_run(run, source=f"folder:{other}", unknown_classes="skip")
    packed = runs.evaluate_run(run, source=f"records:{tmp_path / 'pack'}", unknown_classes="skip")
    assert (packed.count, packed.top1) == (8, 1)
    np.testing.assert_array_equal(np.sort(packed.labels), np.sort(folder.labels))


def test_images_that_have_changed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = run.recipe.source
    write(Path(source.removeprefix("folder:")), "red", 2, first=20)
    with pytest.raises(ValueError, match=rf"has changed since .*; --source {source} evaluates on"):
        runs.evaluate_run(run)
    tested = runs.open_images(run, source=source)
    assert "it may have been trained on some of them" in capsys.readouterr().err
    assert (tested.split.size, tested.name) == (30, "all")


def test_several_labels_are_matched_by_name(run: Run) -> None:
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.uint8)
    split = data.Split("train", 3, labels, paths=np.array(["a", "b", "c"]))
    kept, present = data.relabelled(split, np.array([3, -1, 0]), 4)
    assert kept.labels.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0]]
    assert (kept.paths.tolist(), present) == (["a", "c"], {0, 3})
    one = data.Split("train", 4, np.array([0, 1, -1, 2]), paths=np.array(list("abcd")))
    kept, present = data.relabelled(one, np.array([3, -1, 0]), 4)
    assert (kept.labels.tolist(), kept.paths.tolist(), present) == ([3, 0], ["a", "d"], {0, 3})
    source = data.Source("csv:x", run.class_names, split, None, None)
    with pytest.raises(ValueError, match=r"gives an image several labels, and .*/run one label"):
        images._of_another_set(run, source, None, Recipe(source="csv:x"), "error")


@pytest.mark.slow
def test_results_on_another_set_are_not_published(run: Run, other: Path) -> None:
    run.add_results(validation_accuracy=0.5, training_seconds=1.0)
    before = runs.model_card(run, "owner/name")
    recorded = runs.record_evaluation(run, source=f"folder:{other}")
    assert recorded.key in run.results
    assert runs.model_card(run, "owner/name") == before


def test_names_that_repeat(run: Run, other: Path) -> None:
    run.write_json("data.json", {**run.read_json("data.json"), "class_names": ["red", "a", "red"]})
    with pytest.raises(ValueError, match=r"cannot be matched by name: .*/run has red more than"):
        runs.evaluate_run(run, source=f"folder:{other}")


def test_evaluate_on_another_set(run: Run, other: Path, capsys) -> None:
    assert cli.main(["evaluate", str(run.directory), "--source", f"folder:{other}"]) == cli.OK
    out = capsys.readouterr().out
    assert f"{run.directory}: images of folder:{other}, center" in out
    assert "no image" in out
    assert "majority baseline: always green" in out
    copy = shutil.copytree(run.directory, run.directory.parent / "b")
    several = ["evaluate", str(run.directory), str(copy), "--source", f"folder:{other}"]
    assert cli.main(several) == cli.OK
    out = capsys.readouterr().out
    assert "balanced" in out
    words = " ".join(out.split())
    assert "majority baseline: always green 62.50%" in words


@pytest.mark.slow
def test_report_on_another_set_or_on_images_that_have_moved(
    run: Run,
    other: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keras_vgg.report.page.to_svg", lambda *_: "<svg/>")
    arguments = ["report", str(run.directory), "--images", "0", "--out", str(tmp_path / "a.html")]
    assert cli.main([*arguments, "--source", f"folder:{other}"]) == cli.OK
    assert f"8 images of folder:{other}; 95 % interval" in (tmp_path / "a.html").read_text()
    old = Path(run.recipe.source.removeprefix("folder:"))
    shutil.move(old, tmp_path / "new")
    assert cli.main([*arguments, "--source", f"folder:{tmp_path / 'new'}"]) == cli.OK
    # The run has not been tested, and a report alone does not read the test images.
    assert " validation images; 95 % interval" in (tmp_path / "a.html").read_text()
    assert cli.main([*arguments, "--source", "folder:nowhere"]) == cli.BAD_INPUT
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "folder:nowhere"], "no folder"),
        (["--source", "no_such_set_anywhere"], "unknown source 'no_such_set_anywhere'"),
        (["--source", "digits"], "knows no class of digits, which has 0, 1, 2"),
        (["--split", "all"], "has no all split; it has train, validation, test"),
        (["--unknown-classes", "drop"], "invalid choice 'drop'"),
        (["--unknown-classes", "skip"], "unknown_classes is for another set; name the set with"),
        (["--specificity", "0.9"], "specificity=0.9 is for two classes, and "),
        (["--specificity", "0.9", "--tables"], "--specificity is for the figures of one run"),
        (["--specificity", "95"], "--specificity must be in (0, 1), such as 0.95, not 95"),
        (["--specificity", "nan"], "--specificity must be in (0, 1), such as 0.95, not nan"),
    ],
)
def test_bad_input(made: Run, arguments: list[str], message: str, capsys) -> None:
    assert cli.main(["evaluate", str(made.directory), *arguments]) == cli.BAD_INPUT
    err = capsys.readouterr().err
    assert message in err
    if "choice" not in message:
        assert len(err.splitlines()) == 1


def test_a_network_that_is_no_better_than_a_guess_says_so(capsys) -> None:
    from keras_vgg.cli.evaluate import Evaluate
    from keras_vgg.runs import Recorded, RunImages

    labels = np.array([0] * 10 + [1] * 2)
    always = np.tile(np.array([0.9, 0.1], np.float32), (12, 1))
    evaluated = evaluation.Evaluation(labels, always, ("cat", "dog"))
    tested = RunImages(data.Split("test", 12, labels, paths=np.array(["a"] * 12)), "test")
    Evaluate((Path("run"),), specificity=0.9)._show_figures(Recorded("test", evaluated, tested))
    text = " ".join(capsys.readouterr().out.split())
    for row in (
        "top-1 accuracy 83.33% (58.33% to 100.00%) not above 83.33%, one answer for all",
        "majority baseline: always cat 83.33%",
        "balanced accuracy 50.00% (50.00% to 50.00%) not above 50.00%",
        "Cohen's kappa 0.0000 (0.0000 to 0.0000) not above 0.0000, one",
        "ROC AUC of dog 0.5000 (0.5000 to 0.5000) not above 0.5000",
        "sensitivity for dog at 90 % specificity 0.00% (0.00% to 0.00%)",
    ):
        assert row in text

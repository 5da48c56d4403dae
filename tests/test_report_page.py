"""The report: its numbers are the evaluation's, its texts are text, and it opens anywhere."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import cli, data, evaluation, explain, report
from keras_vgg.evaluation import compare
from keras_vgg.export import Artifact
from keras_vgg.files import sha256_of
from keras_vgg.fit import Run, describe, evaluation_transform, load_source
from keras_vgg.models import vgg
from keras_vgg.plotting import BEST, DASHES, INK, LINE, MUTED, SERIES
from keras_vgg.runs import evaluate_run, evaluate_runs, report_runs
from keras_vgg.runs import report as reporting
from keras_vgg.runs.images import open_split
from keras_vgg.runs.report import _opened
from keras_vgg.runs.report_scores import scores_of
from keras_vgg.runs.telling_images import most_telling_images
from tests.test_fit import TINY

CHROMIUM = Path("/usr/bin/chromium")
SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(1)>'
LONG = "a name without an end " * 4 + "x" * 80


RECIPE = TINY.replace(batch_norm=False, epochs=3, train_scale=(32, 40))


@pytest.fixture(scope="module")
def trained(varied_run, tmp_path_factory):
    """A run of the digits, evaluated on its validation images.

    It was not trained: its network is that of `varied_run`, and its history is made up.
    """
    folder = shutil.copytree(varied_run.directory, tmp_path_factory.mktemp("runs") / "first")
    run = Run(folder, RECIPE)
    run.write_recipe()
    (row,) = run.history
    shares = (0.1, 0.3, 0.2)
    run.write_history([row | {"epoch": i, "val_accuracy": s} for i, s in enumerate(shares, 1)])
    run.add_results(epochs=3, best_epoch=2, validation_accuracy=0.3)
    evaluate_run(run, "validation")
    return run


@pytest.fixture
def without_plots(monkeypatch):
    """A plot takes 0.1 s; the tests of `written` and of the synthetic pages look at plots."""
    monkeypatch.setattr("keras_vgg.report.page.to_svg", lambda *_: "<svg/>")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it."""
    return Run.open(shutil.copytree(trained.directory, tmp_path / "first"))


@pytest.fixture(scope="module")
def found(trained):
    """Its evaluation."""
    return evaluate_runs([trained], "validation")[0]


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """Its report, with three pictures of each kind; nothing is evaluated again for it."""
    path = tmp_path_factory.mktemp("report") / "one.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "posteriors", None)
        return report_runs([trained], path, images=3)


@pytest.fixture(scope="module")
def hostile(tiny_run, tmp_path_factory):
    """A run whose classes, folder and recipe are named by an enemy; its images are files.

    It was not trained: its history is that of `tiny_run`.
    """
    folder = tmp_path_factory.mktemp("hostile")
    images = np.random.default_rng(0).integers(0, 256, (60, 40, 40, 3)).astype(np.uint8)
    for i, image in enumerate(images):
        # No class folder can have a slash in its name.
        name = ("<img src=x onerror=alert(1)>", "&lt;b&gt; ${7*7} {{ 7*7 }}", LONG)[i % 3]
        path = folder / "<i>photos" / name / f"{i} <script>.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    recipe = TINY.replace(
        source=f"folder:{folder / '<i>photos'}",
        epochs=1,
        batch_size=16,
        validation_fraction=0.3,
        test_fraction=0.3,
        brightness=0.0,
        rgb_shift=0.0,
        batch_norm=False,
    )
    run = Run(Path(shutil.copytree(tiny_run.directory, folder / "run <b>&amp;")), recipe)
    run.write_recipe()
    source = load_source(recipe)
    inventory = {"inventory": data.take_inventory(source).as_json()}
    run.write_json("data.json", describe(source) | inventory)
    options = recipe.network_options() | {"include_preprocessing": True}
    vgg(recipe.configuration, weights=None, classes=3, **options).save(run.model_path)
    return run


@pytest.fixture(scope="module")
def hostile_page(hostile, tmp_path_factory):
    return report_runs([hostile], tmp_path_factory.mktemp("report") / "hostile.html", images=3)


def page_of(run_or_runs, **options) -> str:
    runs = run_or_runs if isinstance(run_or_runs, list) else [run_or_runs]
    return report_runs(runs, **options).read_text()


def text_of(page: str) -> str:
    """What is to be read on a page, with plain spaces."""
    bare = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(bare))


def rows_of(page: str, label: str) -> list[list[str]]:
    """The cells of the table in the box of this name."""
    box = page.split(f'aria-label="{label}"')[1].split("</table>")[0]
    rows = re.findall(r"<tr.*?</tr>", box, flags=re.DOTALL)
    return [
        [text_of(cell).strip() for cell in re.findall(r"<t[hd]\b.*?</t[hd]>", row, flags=re.DOTALL)]
        for row in rows
    ]


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


# --- one run ---------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_evaluation(trained, found, written):
    page = written.read_text()

    text = text_of(page)
    stored = trained.results["validation"]
    low, high = stored["top1_interval"]
    assert f"Top-1 accuracy {percent(stored['top1'])} {found.count} validation images" in text
    assert f"95 % interval {100 * low:.2f} to {percent(high)}" in text
    assert f"Top-5 accuracy {percent(stored['top5'])}" in text
    assert f"Loss {stored['loss']:.4f}" in text
    classes = {row[0]: row[1:] for row in rows_of(page, "Table: accuracy by class")[1:]}
    for i, name in enumerate(found.class_names):
        scores = found.per_class[i], found.precision[i], found.f1[i]
        shown = ["–" if np.isnan(score) else percent(score) for score in scores]
        assert classes[name] == [str(found.confusion[i].sum()), *shown]
    matrix = rows_of(page, "Table: confusion matrix")
    assert matrix[0] == ["true \\ answer", *found.class_names]
    counts = [[int(cell or 0) for cell in row[1:]] for row in matrix[1:]]
    np.testing.assert_array_equal(counts, found.confusion)
    error = evaluation.calibration(found).error
    assert f"The expected calibration error is {percent(error)} over 15 bins" in text
    assert ["validation", str(found.count), percent(stored["top1"])] == rows_of(
        page, "Table: evaluations"
    )[1][:3]
    bins = rows_of(page, "Table: calibration by bin")[1:]
    assert sum(int(row[1]) for row in bins) == found.count
    figures = rows_of(page, "Table: figures")
    assert figures[0] == ["Figure", "Value", "95 % interval", "One answer"]
    for row, figure in zip(figures[1:], found.figures().values(), strict=True):
        texts = [figure.value_text(), figure.interval_text()]
        assert row[:3] == [figure.title, *(text.replace("%", " %") for text in texts)]
    curves = evaluation.class_curves(found)
    assert page.count('<svg class="small-plot"') == 2 * len(curves) > 2
    assert f"AUC {curves[0].auc:.4f}, AP {curves[0].average_precision:.4f}" in text


def test_curves_of_two_classes_and_a_network_below_the_baseline():
    """The page says that a network with one answer for all images is no better than a guess."""
    labels = np.array([0] * 8 + [1] * 2)
    always = evaluation.Evaluation(labels, np.tile(np.float32([0.9, 0.1]), (10, 1)), (IMAGE, "b"))
    content = report.RunContent(1, "run", "", [], [], [], images_title="test images")
    scores = scores_of(always)
    html_page = report.render(report.Page("run", [replace(content, scores=scores)], "now"))
    text = text_of(html_page)
    assert f"not above the 80.00 % of always {IMAGE}; balanced accuracy 50.00 %" in text
    assert "balanced accuracy 50.00 % 50.00 % to 50.00 % 50.00 % not above" in text
    assert "<figcaption>ROC curve of b: AUC 0.5000</figcaption><svg" in html_page
    assert "of b: average precision 0.2000</figcaption><svg" in html_page
    assert SCRIPT not in html_page
    assert IMAGE not in html_page
    (curves,) = evaluation.class_curves(always)
    assert curves.false_alarms.tolist() == curves.sensitivity.tolist() == [0, 1]
    many = evaluation.Evaluation(np.array([0]), np.full((1, 11), 1 / 11), tuple("abcdefghijk"))
    assert evaluation.class_curves(many) == []


def test_recipe_and_history_are_those_of_the_run(run):
    page = page_of(run, images=0)

    changes = rows_of(page, "Table: how the recipe differs from the default")
    assert ["width_multiplier", "0.0625", "0.25"] in changes
    assert len(changes) == 1 + len(run.recipe.differences(type(run.recipe)()))
    whole = dict(rows_of(page, "Table: the whole recipe")[1:])
    assert whole["train_scale"] == "32 40"
    assert whole["configuration"] == "A"
    assert whole["init"] == "none"
    environment = dict(rows_of(page, "Table: environment")[1:])
    assert environment["engine"] == run.read_json("environment.json")["engine"]
    assert "numpy" in environment
    best = run.results["best_epoch"]
    assert f"best epoch: {best}, {percent(run.results['validation_accuracy'])}" in text_of(page)
    epochs = [row[0] for row in rows_of(page, "Table: metrics by epoch")[1:]]
    assert epochs == [f"{n} (best)" if n == best else f"{n}" for n in (1, 2, 3)]
    for title in ("Loss", "Accuracy (%)", "Learning rate", "Training images per second"):
        assert f"<figcaption>{title}</figcaption><svg" in page
    assert "The report was made without pictures: --images 12" in text_of(page)


def test_pictures_are_the_surest_mistakes_and_the_least_sure_hits(found, written):
    page = written.read_text()
    sure, answers = found.probabilities.max(1), found.probabilities.argmax(1)
    wrong = np.flatnonzero(answers != found.labels)
    right = np.flatnonzero(answers == found.labels)

    mistakes, hits = page.split('id="mistakes"')[1].split('id="calibration"')[0].split('id="hits"')
    for part, expected in (
        (mistakes, wrong[np.argsort(-sure[wrong], kind="stable")][:3]),
        (hits, right[np.argsort(sure[right], kind="stable")][:3]),
    ):
        cards = part.split('<li class="card">')[1:]
        assert len(cards) == 3
        for card, i in zip(cards, expected, strict=True):
            text = text_of(card)
            assert f"image {i} " in text
            assert f"{100 * sure[i]:.1f} %" in text
            name = found.class_names[found.labels[i]]
            assert f'alt="image {i}, a {name}"' in card
            assert (
                f"{name} true class {100 * found.probabilities[i, found.labels[i]]:.1f} %" in text
            )
            assert card.count('src="data:image/png;base64,') == 3  # itself, and two classes' maps
    assert "block5_conv2, 2x2 places" in text_of(page)


def test_too_little_memory_for_grad_cam_is_a_memory_error(trained, found, monkeypatch):
    def too_large(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(explain, "grad_cam", too_large)
    split = open_split(trained, "validation")
    with pytest.raises(MemoryError, match=r"the memory is too small: end .* \(OOM when"):
        most_telling_images(trained, found, split, 1, False)


def test_the_picture_shown_is_the_image_of_the_split(trained, written):
    run, page = trained, written.read_text()
    number = int(re.search(r'alt="image (\d+), a', page)[1])
    encoded = re.search(rf'src="data:image/png;base64,([^"]*)" alt="image {number},', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    split = open_split(run, "validation").take(np.array([number]))
    transform = evaluation_transform(run.recipe)
    ((image, _),) = data.evaluation_dataset(split, None, transform).as_numpy_iterator()
    np.testing.assert_array_equal(shown, np.clip(np.rint(image), 0, 255))


@pytest.mark.usefixtures("without_plots")
def test_the_test_split_is_read_only_when_it_has_been_or_is_asked_for(run):
    recipe = run.recipe.replace(validation_fraction=0.03, test_fraction=0.03)  # fewer images
    run = Run(run.directory, recipe)
    run.write_recipe()
    run.write_json("data.json", describe(load_source(recipe)))
    shutil.rmtree(run.directory / "posteriors")
    assert " validation images; " in text_of(page_of(run, images=0))
    assert not (run.directory / "posteriors" / "test").exists()
    assert " test images; " in text_of(page_of(run, images=0, split="test"))  # is evaluated now
    assert " test images; " in text_of(page_of(run, images=0))  # its posteriors are there
    kept = run.directory / "posteriors" / "test"
    (part,) = kept.glob("*/*.npz")
    part.rename(part.with_name("000000000-000000009.npz"))  # an evaluation that was interrupted
    assert " validation images; " in text_of(page_of(run, images=0))


@pytest.mark.usefixtures("without_plots")
def test_what_a_run_does_not_have_is_said(run):
    (run.directory / "results.json").unlink()
    run.write_json("results.json", {"epochs": 3})

    text = text_of(page_of(run, images=0))

    assert f"There is no export: keras-vgg export {run.directory} writes" in text
    assert f"keras-vgg evaluate {run.directory} evaluates the run" in text


@pytest.mark.usefixtures("without_plots")
def test_an_export_is_shown_with_its_figures(run):
    artifact = Artifact(
        format="litert_int8",
        path=Path("model_int8.tflite"),
        bytes=1_234_567,
        sha256="0" * 64,
        images=145,
        top1=0.91,
        top5=None,
        agreement=0.99,
        max_difference=0.0123,
        latency_ms={"1": (1.5, 2.25), "2": (1.0, 1.75)},
        peak_bytes=45_000_000,
        float_operations=(),
    )
    model = {"parameters": 10, "bytes": 2_000_000, "top1": 0.92, "top5": 0.99}
    record = {"model": model, "artifacts": [{**vars(artifact), "path": "model_int8.tflite"}]}
    (run.directory / "export").mkdir()
    (run.directory / "export" / "export.json").write_text(json.dumps(record))

    rows = rows_of(page_of(run, images=0), "Table: exports")

    expected = ["1.23", "91.00 %", "–", "99.00 %", "1.2e-02", "1.50 (2.25)", "1.00 (1.75)", "45"]
    assert rows[1:] == [
        ["the model, float32", "2.00", "92.00 %", "99.00 %", *"–––––"],
        ["litert_int8", *expected],
    ]


@pytest.mark.usefixtures("without_plots")
def test_a_run_that_has_no_model_yet(run):
    (run.directory / "results.json").unlink()
    run.model_path.unlink()

    text = text_of(page_of(run))

    assert "The run has not finished training. Repeat the train command" in text
    assert "Training Learning rate" not in text
    assert "best epoch: " in text
    assert "Calibration error" not in text
    (run.directory / "metrics.csv").unlink()
    assert "No epoch has ended yet" in text_of(page_of(run))


@pytest.mark.usefixtures("without_plots")
def test_the_figure_that_selects_is_named(run):
    text = text_of(page_of(run, images=0))
    assert "of 3, by validation accuracy" in text
    header, *rows = (run.directory / "metrics.csv").read_text().splitlines()
    shares = ("0.25", "0.75", "0.5")
    rows = [f"{row},{share}" for row, share in zip(rows, shares, strict=True)]
    (run.directory / "metrics.csv").write_text(
        "\n".join([f"{header},val_balanced_accuracy", *rows]) + "\n"
    )
    Run(run.directory, run.recipe.replace(select_by="balanced_accuracy")).write_recipe()
    text = text_of(page_of(Run.open(run.directory), images=0))
    assert "of 3, by validation balanced_accuracy" in text
    assert "best epoch: 2, 75.00 % balanced_accuracy" in text


@pytest.mark.usefixtures("without_plots")
def test_a_metric_that_an_older_run_lacks_is_named(run):
    rows = [{k: v for k, v in row.items() if k != "images_per_second"} for row in run.history]
    run.write_history(rows)

    page = page_of(run, images=0)

    assert "metrics.csv has no values for: Training images per second" in text_of(page)
    assert "<figcaption>Learning rate</figcaption><svg" in page


@pytest.mark.slow
def test_a_run_whose_images_have_gone_keeps_the_rest(hostile, tmp_path):
    moved = shutil.copytree(hostile.directory, tmp_path / "run")
    run = Run(moved, hostile.recipe.replace(source=f"folder:{tmp_path / 'gone'}"))

    text = text_of(page_of(run))

    assert "The validation images cannot be opened, so nothing is evaluated" in text
    assert str(tmp_path / "gone") in text
    assert "Learning rate" in text
    with pytest.raises(OSError, match="gone"):  # a split that was asked for is not left out
        report_runs([run], split="validation")


def test_images_without_a_test_split_that_have_moved(tmp_path):
    for split, name in itertools.product(("train", "val"), ("cat", "dog")):
        folder = tmp_path / "old" / split / name
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = np.full((40, 40, 3), 50 * i + len(split), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    run = Run(tmp_path / "run", TINY.replace(source=f"folder:{tmp_path / 'old'}"))
    run.directory.mkdir()
    run.write_recipe()
    run.write_json("data.json", describe(load_source(run.recipe)))
    run.write_json("results.json", {})
    shutil.move(tmp_path / "old", tmp_path / "new")
    images = _opened(run, [run], None, f"folder:{tmp_path / 'new'}", "error")
    assert (images.name, images.source, images.split.size) == ("validation", None, 4)


# --- several runs ----------------------------------------------------------------------------


@pytest.mark.slow
def test_several_runs_are_compared(trained, found, tmp_path):
    one = found
    runs = [trained, Run.open(shutil.copytree(trained.directory, tmp_path / "worse"))]
    model = trained.model()  # it will take one class for the next, and this for the one
    weights = model.get_layer("predictions").get_weights()
    model.get_layer("predictions").set_weights([w[..., [1, 0, *range(2, 10)]] for w in weights])
    model.save(runs[1].model_path)
    shutil.rmtree(runs[1].directory / "posteriors", ignore_errors=True)
    (other,) = evaluate_runs(runs[1:], "validation")
    between = compare(one, other)

    page = page_of(runs, path=tmp_path / "both.html", images=0)

    rows = rows_of(page, "Table: the runs compared")
    assert [row[0] for row in rows[1:]] == ["1: first", "2: worse"]
    assert [row[1] for row in rows[1:]] == [percent(one.top1), percent(other.top1)]
    low, high = other.interval()
    assert rows[2][2] == f"{100 * low:.2f} to {percent(high)}"
    low, high = between.interval
    difference = [f"{100 * between.difference:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}"]
    assert rows[2][3:6] == [*difference, f"{between.p_value:.2g}"]
    assert "They are the same." in text_of(page)
    assert "<figcaption>Validation accuracy (%)</figcaption><svg" in page


@pytest.mark.slow
def test_recipes_that_differ_and_a_run_that_is_not_finished(run, trained, tmp_path):
    other = run.recipe.replace(learning_rate=0.5, step_epochs=(3, 4))
    copy = Run(Path(shutil.copytree(run.directory, tmp_path / "copy")), other)
    copy.write_recipe()
    (copy.directory / "results.json").unlink()
    copy.model_path.unlink()  # else its best model so far is compared

    page = page_of([run, copy], path=tmp_path / "out" / "page.html", images=0)

    differences = rows_of(page, "Table: where the recipes differ")[1:]
    assert sorted(differences) == [
        ["learning_rate", str(run.recipe.learning_rate), "0.5"],
        ["step_epochs", "none", "3 4"],
    ]
    assert "Accuracies are compared once every run is evaluated" in text_of(page)
    assert len(rows_of(page, "Table: the runs compared")) == 3


@pytest.mark.slow
def test_the_default_place_of_several_runs_is_the_current_folder(run, tmp_path, monkeypatch):
    copy = Run.open(shutil.copytree(run.directory, tmp_path / "copy"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    assert report_runs([run, copy], images=0).resolve() == tmp_path / "here" / "report.html"


# --- wrong inputs ----------------------------------------------------------------------------


@pytest.mark.usefixtures("without_plots")
def test_only_a_report_is_replaced(run, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<!DOCTYPE html><title>my thesis</title>")
    with pytest.raises(FileExistsError, match="is not a report of keras-vgg"):
        report_runs([run], path)
    assert path.read_text().endswith("my thesis</title>")
    with pytest.raises(FileExistsError, match="is a folder"):
        report_runs([run], tmp_path)
    path.unlink()
    assert report_runs([run], path, images=0) == path
    path.write_text(path.read_text() + "an older report")
    assert report_runs([run], path, images=0) == path
    assert path.read_text().endswith("</html>")


def test_runs_of_different_classes_or_images_are_refused(trained, hostile, tmp_path):
    with pytest.raises(ValueError, match="cannot be compared: their validation images or classes"):
        report_runs([trained, hostile], tmp_path / "page.html")
    # Another seed holds out other images: this is what its training would write of them.
    recipe = trained.recipe.replace(seed=1)
    other = Run(Path(shutil.copytree(trained.directory, tmp_path / "other")), recipe)
    other.write_json("data.json", describe(load_source(recipe)))
    with pytest.raises(ValueError, match="cannot be compared"):
        report_runs([trained, other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_wrong_arguments(run):
    with pytest.raises(ValueError, match="no run to report on"):
        report_runs([])
    with pytest.raises(ValueError, match="is given twice"):
        report_runs([run, Run(run.directory / ".." / "first", run.recipe)])
    with pytest.raises(ValueError, match="0 or more, not -1"):
        report_runs([run], images=-1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "{"),
        ("results.json", '{"test": {"top1": 0.9}}'),
        ("metrics.csv", "epoch,loss\n1,x\n"),
        ("metrics.csv", "epoch,loss\n1,2.5\n"),
    ],
)
def test_a_damaged_file_is_named(run, name, text):
    (run.directory / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} cannot be read"):
        report_runs([run])
    assert not (run.directory / "report.html").exists()


@pytest.mark.usefixtures("without_plots")
def test_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(run.directory)
    assert cli.main(["report", ".", "--images", "1"]) == cli.OK
    captured = capsys.readouterr()
    assert Path(captured.out.strip()) == run.directory / "report.html"
    assert "Grad-CAM" in captured.err
    assert "<title>first – keras_vgg report</title>" in Path(captured.out.strip()).read_text()
    for arguments, message in (
        ([str(tmp_path)], "is not a run directory"),
        ([], "at least one run directory"),
        ([".", "--out", "recipe.json"], "is not a report of keras-vgg"),
    ):
        assert cli.main(["report", *arguments]) == cli.BAD_INPUT
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


# --- what is on the page is text, and all of it is there -------------------------------------


class Elements(HTMLParser):
    """The elements of a page, (name, attributes), as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def harmless():
    """The elements of a page of good names."""
    page = report.render(synthetic(classes=3, names=["a", "b", "c"], run="a"))
    return [tag for tag, _ in Elements(page).found]


def test_texts_are_escaped(hostile_page):
    page = hostile_page.read_text()

    text = text_of(page)
    for name in ("<img src=x onerror=alert(1)>", "run <b>&amp;", "<i>photos", "<script>.png"):
        assert name in text
    assert "&lt;b&gt; ${7*7} {{ 7*7 }}" in text  # neither unescaped nor run
    elements = Elements(page).found
    assert not {"script", "i"} & {tag for tag, _ in elements}
    assert all(given.get("src", "data:").startswith("data:") for _, given in elements)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", [SCRIPT, IMAGE, "</style><script>", "-->", "]]>", "\x07\x1b[31m"])
def test_any_name_is_only_text(name, harmless):
    page = report.render(synthetic(classes=3, names=[name, "b", "c"], run=name))

    elements = Elements(page).found
    assert [tag for tag, _ in elements] == harmless
    assert not [given for _, given in elements if any(key.startswith("on") for key in given)]
    assert text_of(page).count(re.sub(r"\s+", " ", name)) >= 10


def test_nothing_is_fetched(written):
    page = written.read_text()

    elements = Elements(page).found
    loaded = [
        given[key]
        for tag, given in elements
        for key in ("src", "href", "xlink:href", "srcset", "data")
        if tag != "a" and key in given
    ]
    assert loaded
    assert all(value.startswith(("data:image/", "#")) for value in loaded)
    ids = [given["id"] for _, given in elements if "id" in given]
    assert len(ids) == len(set(ids))
    links = [given["href"] for tag, given in elements if tag == "a"]
    for target in [*links, *loaded]:
        assert target.startswith(("https://arxiv.org/", "data:")) or target[1:] in ids
    assert "default-src 'none'" in page
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements}
    assert not re.search(r"@import|url\((?!#)", page)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub('base64,[^"]*', "", svg))  # variables alone
    assert len(page) < 1e6


def synthetic(classes: int, names: list[str] | None = None, run: str = "run", runs: int = 1):
    """A page of made-up content."""
    names = names or [f"class {i}" for i in range(classes)]
    generator = np.random.default_rng(classes)
    confusion = generator.poisson(0.2, (classes, classes)) + np.diag(
        generator.integers(1, 9, classes)
    )
    scores = report.Scores(
        count=int(confusion.sum()),
        top1=0.5,
        top1_interval=(0.4, 0.6),
        top5=None,
        top5_interval=None,
        loss=1.0,
        classes=[report.ClassScores(name, 5, 0.5, None, None) for name in names],
        confusion=confusion,
        bins=[report.Bin(0, 0.5, 0, None, None), report.Bin(0.5, 1, 3, 0.7, 0.6)],
        calibration_error=0.1,
    )
    picture = report.Picture(np.full((300, 300, 3), 128, np.uint8), f"a {names[0]}", names[0])
    shown = report.Shown(names[0], names[0], [(names[0], 0.5, True)], [picture] * 3)
    history = [
        {"epoch": e, "val_accuracy": 0.1 * e, "val_loss": 1 / e, "learning_rate": 0.0}
        for e in (1, 2, 3)
    ]
    content = report.RunContent(
        number=1,
        name=run,
        subtitle=run,
        changes=[("source", run, "digits")],
        recipe=[("source", run)],
        environment=[("command", run)],
        history=history,
        best_epoch=3,
        evaluated=[report.Evaluated(run, 3, 0.5, None, None, 1.0)],
        images_title="test images",
        scores=scores,
        mistakes=[shown],
        hits=[shown],
        missing={"export": run},
    )
    every = [replace(content, number=i + 1) for i in range(runs)]
    between = [report.Comparison(0.1, (0, 0.2), 0.04)] * (runs - 1)
    return report.Page(run, every, "made", between, [("source", [run] * runs)] if runs > 1 else ())


@pytest.mark.slow
def test_many_classes_are_a_map_and_the_rest_is_folded():
    page = report.render(synthetic(classes=120))

    assert "Table: confusion matrix" not in page
    assert '<figure class="wide"><svg' in page
    assert "The other 90 classes" in page
    assert len(rows_of(page, "Table: most frequent confusions")) == 11
    assert "data:image/jpeg" in page  # larger pictures


@pytest.mark.slow
def test_no_two_elements_of_several_runs_have_one_name():
    ids = [
        given["id"]
        for _, given in Elements(report.render(synthetic(3, runs=3))).found
        if "id" in given
    ]

    assert len(ids) == len(set(ids)) > 30


def channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        values = [value / 255 for value in channels(colour)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme):
    """WCAG 2.1: 4.5 for text, also in a line's colour."""
    folder = Path(report.__file__).parent / "templates"
    blocks = re.findall(r":root \{(.*?)\}", (folder / "report.css").read_text(), flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[0 if scheme == "light" else 1]))
    own = {"ink": INK, "muted": MUTED, "line": LINE, "best": BEST}
    own |= {f"series-{i}": colour for i, colour in enumerate(SERIES)}
    assert own.keys() <= colours.keys()
    if scheme == "light":
        assert own.items() <= colours.items()  # PNG plots have the page's colours
    assert len(DASHES) == len(SERIES) == len(set(DASHES))  # not told apart by colour alone

    for ground in ("paper", "panel"):
        for name in ("ink", "muted", "link", "best", *(f"series-{i}" for i in range(len(SERIES)))):
            assert contrast(colours[ground], colours[name]) >= 4.5, (ground, name)
    for hue in ("right", "wrong"):  # the strongest cell of a confusion matrix
        parts = zip(channels(colours[hue]), channels(colours["panel"]), strict=True)
        cell = "#" + "".join(f"{round(0.6 * a + 0.4 * b):02x}" for a, b in parts)
        assert contrast(cell, colours["ink"]) >= 4.5, hue


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=str(CHROMIUM))
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(written, hostile_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for path in (written, hostile_page):
        shutil.copy(path, folder)
    report.write_page(synthetic(40, [LONG] * 40, LONG, runs=3), folder / "three.html")
    report.write_page(synthetic(3, [SCRIPT, IMAGE, LONG], SCRIPT), folder / "script.html")
    return folder


FINDINGS = """() => ({
    wide: document.documentElement.scrollWidth,
    images: [...document.images].map(i => i.naturalWidth > 0 && i.alt.length > 0),
    headings: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(h => +h.tagName[1]),
    scripts: document.scripts.length,
    handlers: document.querySelectorAll("[onerror], [onload], [onclick]").length,
    plots: [...document.querySelectorAll("svg.plot")].map(s => s.getBoundingClientRect().width),
    named: [...document.querySelectorAll("svg.plot")].every(
        s => s.getAttribute("role") === "img" && s.getAttribute("aria-label")),
    heads: [...document.querySelectorAll("th")].every(t => ["row", "col"].includes(t.scope)),
    boxes: [...document.querySelectorAll(".scroll")].every(b => b.tabIndex === 0),
    language: document.documentElement.lang, title: document.title,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector("svg.plot text")).fill,
})"""


# Every page, width and scheme, and all pairs of the last two.
SEEN = [
    ("one", "light", 1280),
    ("one", "dark", 390),
    ("hostile", "dark", 1280),
    ("three", "light", 390),
    ("script", "light", 390),
]


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        pytest.param(*seen, marks=[pytest.mark.slow] * (seen not in SEEN))
        for seen in itertools.product(
            ("one", "hostile", "three", "script"), ("light", "dark"), (1280, 390)
        )
    ],
)
def test_in_chromium(browser, pages, name, scheme, width):
    said = []
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    asked: list[str] = []
    page.goto((pages / f"{name}.html").as_uri())
    closed = page.evaluate(FINDINGS)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(FINDINGS)
    context.close()

    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [
        (pages / f"{name}.html").as_uri()
    ]
    assert closed["wide"] <= width
    assert found["wide"] <= width
    assert found["images"]
    assert all(found["images"])
    levels = found["headings"]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert found["scripts"] == found["handlers"] == 0
    assert found["plots"]
    assert all(200 < side <= width for side in found["plots"])
    assert found["named"]
    assert found["heads"]
    assert found["boxes"]
    assert found["language"] == "en"
    assert found["title"]
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 29)"}[scheme]
    assert found["ink"] == {"light": "rgb(85, 96, 111)", "dark": "rgb(163, 174, 189)"}[scheme]


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_an_export_of_an_earlier_network_is_not_shown(run):
    artifact = {"format": "litert", "bytes": 9, "images": 4, "top1": 1.0, "top5": 1.0}
    artifact |= {"agreement": 1.0, "max_difference": 0.0, "latency_ms": {}, "peak_bytes": None}
    record = {"model": {"bytes": 9, "top1": 1.0, "top5": 1.0}, "artifacts": [artifact]}
    (run.directory / "export").mkdir()
    file = run.directory / "export" / "export.json"
    notes = {"model_sha256": sha256_of(run.model_path), "images": "images of folder:new"}
    file.write_text(json.dumps(notes | record))
    assert "Verified on 4 images of folder:new, each file" in text_of(page_of(run, images=0))
    file.write_text(json.dumps(record))  # of an earlier version
    assert "Verified on 4 validation images, each file" in text_of(page_of(run, images=0))
    file.write_text(json.dumps({"model_sha256": "0" * 64} | record))
    text = text_of(page_of(run, images=0))
    assert "is of an earlier network of this run: keras-vgg export" in text
    assert "Verified on" not in text


@pytest.mark.usefixtures("without_plots")
def test_the_recipe_shown_is_the_runs_own(run):
    other = dataclasses.replace(run, recipe=run.recipe.replace(source="csv:x", columns="label=b"))
    page = page_of(run, images=0)
    assert "label=b" not in page
    contents = reporting._content(other, 1, "run", str(run.directory))
    assert dict(contents.recipe)["columns"] == ""
    assert "columns" not in [name for name, *_ in contents.changes]

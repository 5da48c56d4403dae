"""Several labels an image: from the table to figures, maps, answers and files."""

import csv
import io
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import metrics
from sklearn.datasets import load_digits

from keras_vgg import augment, cli, data, evaluation, explain
from keras_vgg.data import sheet_images
from keras_vgg.demo.answer import Examples
from keras_vgg.export import verify
from keras_vgg.export.checks import check_thresholds
from keras_vgg.fit import fit, verdict
from keras_vgg.fit import metrics as fit_metrics
from keras_vgg.fit.finetuning import plan_finetuning
from keras_vgg.fit.inputs import one_hot
from keras_vgg.fit.schedule import best_row, selecting_column
from keras_vgg.models import vgg
from keras_vgg.recipe import Recipe
from keras_vgg.report import page
from keras_vgg.run import Run
from keras_vgg.runs import (
    Predictor,
    evaluate_labels,
    evaluate_run,
    explain_files,
    export_run,
    read_thresholds,
    report_runs,
    with_columns,
    write_answers,
)
from keras_vgg.runs.telling_labels import labels_to_explain, most_telling_labels, ranked_images

pytestmark = pytest.mark.usefixtures("blank_plots")

NAMES = ("0", "1", "2")
SIZES = {"train": 64, "validation": 48, "test": 48}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Canvases of no, one or two digits, and their table."""
    folder = tmp_path_factory.mktemp("canvases")
    digits = load_digits()
    images = np.repeat(np.repeat(digits.images * 255 / 16, 2, axis=1), 2, axis=2).astype(np.uint8)
    rng = np.random.default_rng(0)
    rows = []
    for split, count in SIZES.items():
        for number in range(count):
            canvas, labels = np.zeros((32, 32), np.uint8), []
            for place in range(number % 3):
                digit = int(rng.choice([d for d in range(3) if d not in labels]))
                chosen = rng.choice(np.flatnonzero(digits.target == digit))
                canvas[8:24, 16 * place : 16 * place + 16] = images[chosen]
                labels.append(digit)
            Image.fromarray(canvas).save(folder / f"{split}{number}.png")
            rows.append((f"{split}{number}.png", "|".join(map(str, labels)), split))
    path = folder / "canvases.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return path


def recipe_of(table, **fields):
    options = {"width_multiplier": 1 / 16, "hidden_units": 8, "train_scale": None, "epochs": 1}
    options |= {"eval_scale": None, "batch_size": 32, "batch_norm": False, "head": "gap"}
    options |= fields
    return Recipe(source=f"csv:{table}", **options)


@pytest.fixture(scope="session")
def run(table, tmp_path_factory):
    return fit(recipe_of(table), tmp_path_factory.mktemp("labels") / "run", verbose=2)


# --- the data --------------------------------------------------------------------------------


def split_of(labels):
    return data.Split(
        "train", len(labels), np.array(labels), np.zeros((len(labels), 4, 4, 3), "u1")
    )


@pytest.mark.parametrize(
    "labels", [np.ones((2, 3), np.int32), np.full((2, 3), 2, np.uint8), np.ones((2, 3), bool)]
)
def test_labels_are_zeros_and_ones(labels):
    with pytest.raises(ValueError, match="must be uint8, each 0 or 1, not"):
        split_of(labels)


def test_a_table_with_a_column_of_labels_is_a_source(table):
    source = data.load_source(f"csv:{table}")
    assert source.several_labels
    assert source.class_names == NAMES
    assert source.train.labels.dtype == np.uint8
    np.testing.assert_array_equal(source.train.labels[:6].sum(axis=1), [0, 1, 2, 0, 1, 2])
    changed = source.train.labels.copy()
    changed[0, 0] = 1
    relabelled = data.Split("train", source.train.size, changed, paths=source.train.paths)
    assert relabelled.fingerprint() != source.train.fingerprint()
    inventory = data.take_inventory(source)
    assert inventory.class_counts["test"] == source.test.labels.sum(axis=0).tolist()


def test_batches_have_the_labels(table):
    split = data.load_source(f"csv:{table}").test
    batches = data.evaluation_dataset(split, 20, lambda image: image)
    labels = np.concatenate([labels for _, labels in batches.as_numpy_iterator()])
    np.testing.assert_array_equal(labels, split.labels)
    _, targets = one_hot(tf.zeros(()), tf.constant(split.labels), 3)
    np.testing.assert_array_equal(targets, split.labels.astype(np.float32))


def test_blended_images_have_blended_labels():
    blend = augment.batch_augmentation(mixup=0.5)
    images = tf.constant(np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)), tf.uint8)
    labels = np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]], np.float32)
    _, targets = blend(images, tf.constant(labels), tf.constant([1, 2]))
    targets = targets.numpy()
    assert targets.shape == (4, 3)
    assert ((targets >= 0) & (targets <= 1)).all()
    assert targets.sum() == pytest.approx(labels.sum(), abs=2)
    assert not np.isin(targets, (0, 1)).all()


def test_a_contact_sheet_names_all_labels(table):
    split = data.load_source(f"csv:{table}").train
    chosen = sheet_images.choose(split, 7, len(NAMES), np.random.default_rng(0))
    names = [
        sheet_images.label_name(label, NAMES, "train") for _, label in sheet_images.stored(chosen)
    ]
    assert "no label" in names
    assert any(", " in name for name in names)


def test_packing_is_refused(table, tmp_path):
    with pytest.raises(ValueError, match="has several labels an image, and a pack holds one"):
        data.pack(data.load_source(f"csv:{table}"), tmp_path / "pack")


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_weights": "balanced"},
        {"sampling": "balanced"},
        {"select_by": "balanced_accuracy"},
        {"init_head": "probe", "init": "imagenet", "head": "gap"},
    ],
)
def test_what_needs_one_label_is_refused(table, tmp_path, wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name}='.*' needs one label an image"):
        fit(recipe_of(table, **wrong), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_finetune_and_tune_are_refused(table):
    from keras_vgg.tuning import VGGHyperModel

    with pytest.raises(ValueError, match="gives an image several labels, and finetune"):
        plan_finetuning(f"csv:{table}")
    with pytest.raises(ValueError, match="gives an image several labels, and a search"):
        _ = VGGHyperModel(recipe_of(table)).classes


def test_losses_are_those_of_keras():
    targets, answers = np.array([[1.0, 0.0, 1.0]]), np.array([[0.7, 0.4, 0.1]])
    loss = fit_metrics.loss_for(Recipe(label_smoothing=0.2), several_labels=True)
    smoothed = targets * 0.8 + 0.1
    expected = -np.mean(smoothed * np.log(answers) + (1 - smoothed) * np.log(1 - answers))
    assert float(loss(targets, answers)) == pytest.approx(expected, rel=1e-5)
    focal = fit_metrics.loss_for(Recipe(loss="focal", focal_gamma=0.0), several_labels=True)
    plain = fit_metrics.loss_for(Recipe(), several_labels=True)
    assert float(focal(targets, answers)) == pytest.approx(float(plain(targets, answers)), rel=1e-5)


def test_a_run_trains_and_selects_by_the_area(run):
    (row,) = run.history
    assert list(row)[1:5] == ["loss", "pr_auc", "val_loss", "val_pr_auc"]
    assert run.several_labels
    assert run.results["validation_pr_auc"] == row["val_pr_auc"]
    assert "validation_accuracy" not in run.results
    assert 0 < run.results["training_pr_auc"] <= 1
    assert run.model().layers[-1].activation is keras.activations.sigmoid


def test_the_highest_area_is_the_best_epoch():
    rows = [
        {"epoch": 1, "val_pr_auc": 0.4, "val_loss": 0.3},
        {"epoch": 2, "val_pr_auc": 0.6, "val_loss": 0.5},
        {"epoch": 3, "val_pr_auc": 0.6, "val_loss": 0.4},
    ]
    assert selecting_column(Recipe(), rows) == "val_pr_auc"
    assert best_row(rows)["epoch"] == 3


def test_random_answers_are_the_baseline():
    labels = (np.random.default_rng(0).random((400, 5)) < [0.02, 0.1, 0.2, 0.3, 0]).astype("u1")
    baseline = verdict.random_answers(labels)
    assert baseline.share == pytest.approx(labels.mean())
    random = np.random.default_rng(1)
    areas = [
        sum(metrics.average_precision_score(labels[:, k], random.random(400)) for k in range(4)) / 5
        for _ in range(100)
    ]
    assert np.mean(np.array(areas) <= baseline.limit) == pytest.approx(0.95, abs=0.06)
    assert baseline.can_be_beaten
    assert baseline.explains(baseline.limit)
    assert not baseline.explains(baseline.limit + 0.01)
    assert "no better than random answers" in baseline.line(0.1, 1)
    # Keras' metric counts the label that no image has as 0, and so do the limit and the best.
    (metric,) = fit_metrics.metrics_for(Recipe(), 5, several_labels=True)
    metric.update_state(labels.astype("float32"), labels * 0.8 + 0.1)
    assert baseline.best == pytest.approx(float(metric.result())) == pytest.approx(0.8)
    few = verdict.random_answers(np.ones((3, 2), np.uint8))
    assert not few.can_be_beaten
    assert not few.explains(0.5)
    assert not verdict.random_answers(np.zeros((3, 2), np.uint8)).can_be_beaten


# --- figures ---------------------------------------------------------------------------------


def test_figures_equal_scikit_learns_and_thresholds_are_kept(run, monkeypatch):
    recorded = evaluate_labels(run)
    evaluated = recorded.evaluation
    assert recorded.key == "test"
    labels, answers, given = evaluated.labels, evaluated.probabilities, evaluated.predicted
    values = {name: figure.value for name, figure in evaluated.figures().items()}
    expected = {
        "mean_average_precision": metrics.average_precision_score(labels, answers, average="macro"),
        "auc": metrics.roc_auc_score(labels, answers, average="macro"),
        "micro_f1": metrics.f1_score(labels, given, average="micro"),
        "macro_f1": metrics.f1_score(labels, given, average="macro"),
        "exact_match": metrics.accuracy_score(labels, given),
    }
    assert values == pytest.approx(expected, abs=1e-9)
    stored = run.results["test"]
    assert stored["macro_f1"] == values["macro_f1"]
    assert stored["thresholds"] == evaluated.thresholds.tolist()
    np.testing.assert_array_equal(read_thresholds(run), evaluated.thresholds)
    monkeypatch.setattr(evaluation, "choose_thresholds", lambda *args: pytest.fail("chosen again"))
    again = evaluate_labels(run, "validation").evaluation
    np.testing.assert_array_equal(again.thresholds, evaluated.thresholds)
    # Keras' area, of 200 thresholds, is near scikit-learn's.
    area = again.figures()["mean_average_precision"].value
    assert run.history[0]["val_pr_auc"] == pytest.approx(area, abs=0.1)


@pytest.mark.slow
def test_scores_and_posteriors_are_averaged_after_a_sigmoid():
    model = vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=3,
        width_multiplier=1 / 16,
        hidden_units=8,
        classifier_activation="sigmoid",
        include_preprocessing=True,
    )
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = model.predict(images, verbose=0)
    for average in evaluation.AVERAGES:
        dense = evaluation.runner(model, evaluation.Protocol("dense", average, mirror=False), 3)
        np.testing.assert_allclose(dense(images), expected, atol=1e-6)
        crops = evaluation.Protocol("multi-crop", average, mirror=False)
        twice = np.stack([images, images], axis=1)
        answers = evaluation.runner(model, crops, 3)(twice)
        np.testing.assert_allclose(answers, expected, atol=1e-6)


def test_what_evaluates_one_label_is_refused(run, table, tmp_path):
    with pytest.raises(ValueError, match="several labels, and this needs one for each image"):
        evaluate_run(run)
    one_label = tmp_path / "one.csv"
    rows = [("path", "label")]
    rows += [(str(table.parent / f"test{number}.png"), str(number % 3)) for number in range(6)]
    with one_label.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(ValueError, match=r"gives an image one label, and .* several labels"):
        evaluate_labels(run, source=f"csv:{one_label}")


def test_the_command_shows_the_figures_of_every_label(run, capsys):
    expected = evaluate_labels(run).evaluation
    capsys.readouterr()
    assert cli.main(["evaluate", str(run.directory)]) == cli.OK
    printed = capsys.readouterr().out
    for figure in expected.figures().values():
        assert figure.text() in printed, figure.title
    lines = printed.splitlines()
    rows = [line.strip(" │|").replace("│", " ").split() for line in lines]
    for name, images in zip(NAMES, expected.images, strict=True):
        assert [row for row in rows if row[:2] == [name, str(images)]], printed
    assert "the thresholds were chosen on the validation images, for the highest F1" in printed
    assert cli.main(["evaluate", str(run.directory), "--split", "validation"]) == cli.OK
    assert "were chosen on these images, so F1 and exact match flatter" in capsys.readouterr().out


def test_the_command_refuses_what_needs_one_label(run, tmp_path, capsys):
    another = shutil.copytree(run.directory, tmp_path / "another")
    for argument, message in (
        ("--tables", "--tables has top-1 and top-5 errors, which need one label an image"),
        ("--specificity=0.9", "--specificity needs two classes, one for each image; leave it out"),
        (str(another), "name one run"),
    ):
        assert cli.main(["evaluate", str(run.directory), argument]) == cli.BAD_INPUT
        assert message in " ".join(capsys.readouterr().err.split())


def test_damaged_thresholds_are_named(run):
    path = run.directory / "thresholds.json"
    evaluate_labels(run)
    sound = path.read_text()
    content = json.loads(sound)
    content["thresholds"]["validation"] = [0.5]
    try:
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"has \(1,\) thresholds for validation"):
            read_thresholds(run)
        path.write_text('{"thresholds": 3, "model_sha256": ""}')
        with pytest.raises(ValueError, match=r"thresholds\.json cannot be read"):
            read_thresholds(run)
        # Those of another model do not count.
        path.write_text(json.dumps({**json.loads(sound), "model_sha256": "0"}))
        assert read_thresholds(run) is None
    finally:
        path.write_text(sound)


# --- maps, report, answers -------------------------------------------------------------------


@pytest.mark.slow
def test_each_label_has_its_own_map(run, table, tmp_path, monkeypatch):
    from keras_vgg.runs import explain

    evaluate_labels(run)
    monkeypatch.setattr(explain, "read_thresholds", lambda run: np.zeros(3))
    drawn = []
    monkeypatch.setattr(explain, "_draw_heats", lambda path, *rest: drawn.append(rest[2:4]))
    explain_files(run, [table.parent / "test2.png"], out=tmp_path)
    explain_files(run, [table.parent / "test2.png"], class_name="1", out=tmp_path)
    (heats, title), (one, _) = drawn
    assert sorted(heats) == [f"{name}: grad-cam" for name in NAMES]
    assert all(f"{name} " in title for name in NAMES)
    assert list(one) == ["grad-cam"]


def test_a_map_is_of_the_score_before_the_sigmoid(run):
    from keras_vgg.explain.network import opened

    network = opened(run.model())
    images = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3)).astype(np.float32)
    scores = keras.ops.convert_to_numpy(network.scores([images]))
    probabilities = network.probabilities(images, 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), probabilities, rtol=1e-5)


def evaluation_of(labels, probabilities):
    return evaluation.MultiLabelEvaluation(
        np.array(labels), np.array(probabilities, "float32"), NAMES
    )


def test_mistakes_and_hits_are_ranked_by_their_margins():
    evaluated = evaluation_of(
        [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]],
        [[0.9, 0.1, 0.1], [0.6, 0.3, 0.1], [0.9, 0.1, 0.8], [0.2, 0.55, 0.1]],
    )
    mistakes, hits = ranked_images(evaluated, 5)
    assert mistakes.tolist() == [2, 1]
    assert hits.tolist() == [3, 0]
    assert labels_to_explain(evaluated, 2) == [0, 2]
    assert labels_to_explain(evaluated, 1) == [1, 0]


def test_too_little_memory_for_grad_cam_is_a_memory_error(run, monkeypatch):
    def too_large(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(explain, "grad_cam", too_large)
    recorded = evaluate_labels(run)
    with pytest.raises(MemoryError, match=r"the memory is too small: end .* \(OOM when"):
        most_telling_labels(run, recorded.evaluation, recorded.images.split, 1, False)


@pytest.mark.slow
def test_the_report_shows_the_labels(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "to_svg", lambda *arguments: "")
    evaluate_labels(run)
    html = report_runs([run], tmp_path / "report.html", images=1).read_text()
    for text in ("mean average precision", "exact match", "Table: each label by itself", "pr_auc"):
        assert text in html, text
    assert "Confusion matrix" not in html
    assert "Grad-CAM" in html


@pytest.mark.slow
def test_answers_have_all_labels(run, table):
    evaluated = evaluate_labels(run).evaluation
    predictor = Predictor(run)
    assert predictor.several_labels
    paths = [table.parent / f"test{number}.png" for number in range(4)]
    answers = predictor(paths)
    for answer, given in zip(answers, evaluated.predicted[:4], strict=True):
        assert sorted(name for name, _ in answer.labels) == [
            NAMES[i] for i in np.flatnonzero(given)
        ]
    out = io.StringIO()
    write_answers(answers, out, "csv", NAMES, 2, several_labels=True)
    rows = list(csv.DictReader(io.StringIO(out.getvalue())))
    assert rows[2]["labels"] == "|".join(name for name, _ in answers[2].labels)
    out = io.StringIO()
    write_answers(answers, out, "jsonl", NAMES, 2, several_labels=True)
    line = json.loads(out.getvalue().splitlines()[2])
    assert line["labels"] == [name for name, _ in answers[2].labels]
    with pytest.raises(ValueError, match=r"unknown=0\.9 needs one label an image"):
        Predictor(run, unknown=0.9)


# --- exports ---------------------------------------------------------------------------------


def test_a_file_must_give_the_same_labels():
    expected = np.array([[0.9, 0.2, 0.500004], [0.1, 0.7, 0.3]], np.float32)
    thresholds = np.full(3, 0.5)
    labels = np.array([[1, 0, 1], [0, 1, 0]], np.uint8)
    compare = verify.compare_labels
    assert compare("onnx", expected, expected, labels, None, thresholds) == (1.0, 0.0)
    tied = expected - np.float32([[0, 0, 1e-5], [0, 0, 0]])
    agreement, _ = compare("onnx", tied, expected, labels, None, thresholds)
    assert agreement == 0.5
    with pytest.raises(verify.ExportError, match=r"differ by up to 0\.2"):
        compare("onnx", expected - np.float32(0.2), expected, labels, None, thresholds)
    with pytest.raises(verify.ExportError, match="nan or infinite"):
        compare("onnx", expected * np.nan, expected, labels, None, thresholds)
    worse = expected[::-1]
    with pytest.raises(verify.ExportError, match="has a lower mean average precision"):
        compare("litert_int8", worse, expected, labels, 0.5, thresholds)
    with pytest.raises(verify.ExportError, match="gives other labels than the model"):
        compare("litert_int8", worse, expected, None, 0.5, thresholds)


def test_thresholds_fit_the_network(run):
    model = run.model()
    assert check_thresholds(model, None, 3).tolist() == [0.5] * 3
    for wrong in ([0.5], [0.1, 0.2, 1.5]):
        with pytest.raises(ValueError, match="thresholds must be 3 numbers in"):
            check_thresholds(model, wrong, 3)
    softmax = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
    assert check_thresholds(softmax, None, 3) is None
    with pytest.raises(ValueError, match="gives an image one label"):
        check_thresholds(softmax, [0.5] * 3, 3)
    with pytest.raises(ValueError, match="compress needs one label an image"):
        export_run(run, compress=True)


@pytest.mark.slow
def test_a_check_counts_every_label(table):
    source = data.load_source(f"csv:{table}")
    counts = data.check(source)["splits"]["test"]["class_counts"]
    assert counts == source.test.labels.sum(axis=0).tolist()


@pytest.mark.slow
def test_exports_answer_with_all_labels(run, table, tmp_path):
    evaluate_labels(run)
    folder = tmp_path / "export"
    artifacts = export_run(run, folder, images=24, formats=("saved_model", "litert"))
    assert all(a.top1 is None and a.mean_average_precision > 0 for a in artifacts)
    stated = json.loads((folder / "export.json").read_text())["description"]["output"]
    assert stated["activation"] == "sigmoid"
    assert stated["thresholds"] == read_thresholds(run).tolist()
    path = table.parent / "test2.png"
    (expected,) = Predictor(run)([path])
    for file in ("saved_model", "model.tflite"):
        (answer,) = Predictor(folder / file)([path])
        assert [name for name, _ in answer.labels] == [name for name, _ in expected.labels]
        np.testing.assert_allclose(answer.probabilities, expected.probabilities, atol=1e-4)
    served = tf.saved_model.load(folder / "saved_model").signatures["classify"]
    answers = served(image_bytes=tf.constant([path.read_bytes()]))
    assert answers["probabilities"].shape == (1, 3)
    order = answers["indices"].numpy()[0]
    np.testing.assert_allclose(
        answers["probabilities"].numpy()[0], expected.probabilities[order], atol=1e-4
    )


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(table, tmp_path):
    recipe = recipe_of(table, epochs=2, mixup=0.2)
    whole = fit(recipe, tmp_path / "whole", verbose=0)

    class Interrupted(Exception):
        pass

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "resumed", verbose=0, callbacks=[Stop()])
    resumed = fit(recipe, tmp_path / "resumed", verbose=0)
    columns = ("loss", "pr_auc", "val_loss", "val_pr_auc")
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert [one[name] for name in columns] == [other[name] for name in columns]


def test_the_page_shows_examples_with_all_their_labels(run):
    examples = Examples(run, 3)
    assert len(examples.thumbnails) == 3
    assert {name for _, text in examples.thumbnails for name in text.split(", ")} <= {
        *NAMES,
        "no label",
    }
    assert examples[0].shape == (32, 32, 3)


@pytest.mark.slow
def test_another_table_of_labels_has_columns_of_its_own(run, table, tmp_path):
    """The thresholds come from the run's own table, which has other columns."""
    own = Run.open(shutil.copytree(run.directory, tmp_path / "run"))
    (own.directory / "thresholds.json").unlink(missing_ok=True)
    with open(table, newline="") as file:
        rows = [row for row in csv.reader(file) if row[2] == "test"]
    with open(tmp_path / "other.csv", "w", newline="") as file:
        lines = [(str(table.parent / path), labels) for path, labels, _ in rows]
        csv.writer(file).writerows([("picture", "seen"), *lines])
    source = f"csv:{tmp_path / 'other.csv'}"
    other = with_columns(own, "path=picture,labels=seen", source)
    recorded = evaluate_labels(other, source=source)
    assert recorded.evaluation.count == len(rows)

"""keras-vgg finetune: a folder of photographs becomes a run that can be resumed."""

import os
import shutil
from functools import partial

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from keras_vgg import cli, data, explain, finetune, hardware, runs
from keras_vgg.fit import Run, build_model, evaluation_transform, load_source, probe
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.fit.finetuning import plan_finetuning
from keras_vgg.fit.inputs import channel_statistics
from keras_vgg.fit.model import initial_weights
from keras_vgg.fit.outcome import _probe_remark
from keras_vgg.fit.probe import fit_classifier
from keras_vgg.recipe import Recipe
from tests.test_fit_defaults import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 30 pictures, red and green."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("green", "red")):
        (root / name).mkdir()
        for i in range(30):
            pixels = rng.integers(0, 120, (40, 44, 3), np.uint8)
            pixels[..., 1 - channel] += 100
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def small(tiny_run):
    """Options for a network that trains in seconds."""
    fields = ("configuration", "width_multiplier", "batch_norm")
    return {name: getattr(tiny_run.recipe, name) for name in fields} | {
        "init": str(tiny_run.directory),
        "image_size": 32,
        "epochs": 1,
        "learning_rate": 0.001,
        "verbose": 0,
    }


@pytest.fixture(scope="module")
def finished(photos, small, tmp_path_factory, blank_plots):
    """A run whose report has no heat: to compute it takes seconds, and no test looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "grad_cam", lambda model, images, **_: np.zeros(images.shape[:3]))
        return finetune(photos, tmp_path_factory.mktemp("finetune") / "run", **small)


def test_a_folder_becomes_a_run_with_a_test_and_a_report(finished, photos, tiny_run):
    recipe = finished.recipe
    assert finished.finished
    assert finished == Run.open(finished.directory)
    assert recipe.source == f"folder:{photos}"
    assert (recipe.init, recipe.init_head) == (str(tiny_run.directory), "probe")
    assert (recipe.freeze_until, recipe.head) == ("block5", "gap")
    assert recipe.epochs == 1 == len(finished.history)
    assert finished.results["test"]["count"] == 12
    assert finished.results["test"]["top1"] > 0.9
    assert "report" in (finished.directory / "report.html").read_text()
    assert finished.read_json("probe.json")["validation_accuracy"] > 0.9
    before, after = tiny_run.model(), finished.model()
    names = ("block1_conv1", "block4_conv2", "block5_conv1")
    same = [
        np.array_equal(
            *(keras.ops.convert_to_numpy(m.get_layer(name).kernel) for m in (before, after))
        )
        for name in names
    ]
    assert same == [True, True, False]


def test_a_finished_run_is_left_alone_and_other_options_are_refused(
    finished, photos, small, capsys
):
    before = {p: p.stat().st_mtime_ns for p in finished.directory.rglob("*") if p.is_file()}
    again = finetune(photos, finished.directory, **small | {"verbose": 2})
    assert capsys.readouterr().out == f"{finished.directory} is finished; nothing to do\n"
    assert again == finished
    # What is not given stays as it was decided.
    assert finetune(photos, finished.directory, init=small["init"], verbose=0) == finished
    with pytest.raises(
        ValueError, match=r"another recipe .epochs 1, not 3.; choose another workdir"
    ):
        finetune(photos, finished.directory, **small | {"epochs": 3})
    with pytest.raises(ValueError, match="freeze_until 'block5', not 'all'"):
        finetune(photos, finished.directory, head_only=True, **small)
    with pytest.raises(ValueError, match="another recipe"):
        finetune(photos.parent / "others", finished.directory, **small)
    kept = {p: p.stat().st_mtime_ns for p in before if p.name != ".lock"}
    assert kept == {p: time for p, time in before.items() if p.name != ".lock"}


@pytest.fixture(scope="module")
def finished_after_two(photos, small, tmp_path_factory, blank_plots):
    return finetune(photos, tmp_path_factory.mktemp("two") / "run", **small | {"epochs": 2})


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_fine_tuning_ends_as_an_uninterrupted_one(
    finished_after_two, photos, small, epoch, tmp_path, monkeypatch
):
    """Interrupted before the first checkpoint, the classifier is fitted again."""
    finished, small = finished_after_two, small | {"epochs": 2}
    on_epoch_begin = Recorder.on_epoch_begin

    def interrupt(self, begun, logs=None):
        if begun == epoch:
            raise KeyboardInterrupt
        on_epoch_begin(self, begun, logs)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_epoch_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune(photos, run, **small)
    # Another memory would give another batch; what was decided stays.
    monkeypatch.setattr(hardware, "available_memory", lambda: 1)
    again = finetune(photos, run, **small)
    for ours, theirs in zip(
        again.model().get_weights(), finished.model().get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert again.results["test"] == finished.results["test"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base.weights.h5", "base.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_weight_file_is_the_base(photos, small, tiny_run, tmp_path, monkeypatch, name):
    """Its own classifier, of ten digits, is left out."""
    monkeypatch.chdir(tmp_path)
    (tiny_run.model().save if name == "base.h5" else tiny_run.model().save_weights)(name)
    options = small | {"init": name, "epochs": 1}
    with pytest.raises(ValueError, match=r"base.* does not say which input .* give mean_rgb and"):
        finetune(photos, "run", **options)
    options |= {"mean_rgb": (120.0, 120.0, 120.0), "std_rgb": (60.0, 60.0, 60.0)}
    run = finetune(photos, "run", **options)
    assert run.recipe.init == str(tmp_path / name)
    kernels = [
        keras.ops.convert_to_numpy(model.get_layer("block1_conv1").kernel)
        for model in (run.model(), tiny_run.model())
    ]
    np.testing.assert_array_equal(*kernels)
    assert run.results["test"]["top1"] > 0.9


@pytest.mark.slow
def test_a_missing_report_is_written(finished, photos, small, tmp_path):
    """A process that ended between training and report goes on with what is missing."""
    shutil.copytree(finished.directory, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    page.unlink()
    finetune(photos, tmp_path / "run", **small)
    assert page.is_file()
    # A page that is older than the results is of another network, or of an unfinished run.
    os.utime(page, (0, 0))
    finetune(photos, tmp_path / "run", **small)
    assert page.stat().st_mtime > 0


def test_a_run_without_a_checkpoint_is_planned_anew(finished, photos, small, tmp_path):
    shutil.copytree(finished.directory, tmp_path / "run")
    for name in ("results.json", "checkpoints", "metrics.csv"):
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    source = f"folder:{photos}"
    fields = {name: value for name, value in small.items() if name != "verbose"}
    options = fields | {"workdir": tmp_path / "run", "image_size": 48}
    plan = plan_finetuning(source, **options)
    assert plan == plan_finetuning(source, **(options | {"workdir": None}))
    kept = plan_finetuning(source, **(options | {"workdir": finished.directory}))
    assert kept.recipe.eval_scale == finished.recipe.eval_scale


def test_the_first_classifier_leaves_the_features_of_the_whole_set(monkeypatch, tmp_path):
    """Of a set above its limit it takes a part, whose features are others."""
    monkeypatch.setattr(probe, "MOST_IMAGES", 8)
    folders = []

    def features(base, split, transform, mirrored, folder, batch_size, verbose):
        folders.append((folder.name, split.size))
        return np.zeros((split.size, 1, 4)), np.zeros(split.size, int)

    monkeypatch.setattr(probe, "_features", features)
    monkeypatch.setattr(probe.frozen, "split_model", lambda model: (None, None))
    monkeypatch.setattr(probe.transfer, "linear_probe", _no_fit)
    images = np.zeros((12, 8, 8, 3), np.uint8)
    train = data.Split("train", 12, np.arange(12) % 2, images)
    validation = data.Split("validation", 4, np.arange(4) % 2, images[:4])
    with pytest.raises(InterruptedError):
        fit_classifier(keras.Sequential(), Recipe(), train, validation, None, tmp_path)
    assert folders == [("train-probe", 8), ("validation", 4)]


def test_the_first_classifier_has_the_weights_that_sampling_and_names_give_together():
    labels = np.array([0] * 6 + [1] * 2)
    named = np.array([1, 3, 1], np.float32)  # no image has the last class
    weights = partial(probe._weights_for_scikit_learn, labels=labels)
    assert weights(Recipe(), None) is None
    assert weights(Recipe(), named) == {0: 1, 1: 3, 2: 1}
    assert weights(Recipe(sampling="balanced"), None) == "balanced"
    both = weights(Recipe(sampling="balanced"), named)
    assert both == pytest.approx({0: 8 / 12, 1: 8 / 4 * 3})


def _no_fit(*arguments, **options):
    raise InterruptedError


@pytest.mark.slow
def test_a_small_set_trains_the_classifier_alone(tmp_path, tiny_run, small, capsys):
    photos = write_photos(tmp_path / "few", [(40, 40)] * 8)
    first = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    damaged = first.with_stem("damaged")
    damaged.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    options = {name: value for name, value in small.items() if name != "learning_rate"}
    options |= {"verbose": 2, "on_bad_image": "skip"}
    run = finetune(photos, tmp_path / "run", **options)
    out, err = capsys.readouterr()
    assert err.count("skipped: ") == 1
    assert "block 5 stays frozen: " in out
    assert " training images a class are fewer than 20" in out
    assert "features of 26 images computed" not in out  # once, for the classifier
    assert run.recipe.freeze_until == "all"
    assert run.recipe.learning_rate == 1e-5
    assert run.results["test"]["count"] == 4
    assert "linear classifier on the features: validation accuracy" in out


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_first_classifier_is_scikit_learns(tiny_run, tmp_path, classes, class_weights):
    recipe = tiny_run.recipe.replace(
        head="gap",
        init=str(tiny_run.directory),
        init_head="probe",
        horizontal_flip=True,
        class_weights=class_weights,
        train_scale=(32, 32),
        eval_scale=32,
    )
    source = load_source(recipe)
    train, validation = (
        split.take(np.flatnonzero(split.labels < classes))
        for split in (source.train, source.validation)
    )
    statistics = channel_statistics(recipe, train)
    model = build_model(recipe, 10, statistics, initial=initial_weights(recipe))
    transform = evaluation_transform(recipe)
    figures = fit_classifier(model, recipe, train, validation, transform, tmp_path)
    images = np.stack([transform(image) for image in train.images])
    base = keras.Model(model.inputs[0], model.get_layer("avg_pool").output)
    views = [base.predict(view, verbose=0) for view in (images, images[:, :, ::-1])]
    x, y = np.concatenate(views), np.tile(train.labels, 2)
    expected = make_pipeline(
        StandardScaler(),
        LogisticRegression(
            C=figures["C"],
            max_iter=200,
            class_weight=None if class_weights == "none" else "balanced",
        ),
    ).fit(x, y)
    probabilities = model.predict(images, verbose=0)
    np.testing.assert_allclose(
        probabilities[:, :classes], expected.predict_proba(views[0]), atol=2e-3
    )
    assert probabilities[:, classes:].max() < 0.01  # no image has these classes
    images = np.stack([transform(image) for image in validation.images])
    hits = model.predict(images, verbose=0).argmax(axis=1) == validation.labels
    assert hits.mean() == pytest.approx(figures["validation_accuracy"])


def test_a_network_that_is_worse_than_its_first_classifier_is_named(tmp_path):
    run = Run(tmp_path, Recipe(init="imagenet", init_head="probe", head="gap"))
    kept = {"val_accuracy": 0.44}
    assert _probe_remark(run, kept, 50) is None  # a run of an earlier version has no figure
    run.write_json("probe.json", {"validation_accuracy": 0.89})
    assert _probe_remark(run, kept, 50).startswith(
        "the linear classifier that it began with had 89.00% of the validation images, and after "
        "training the network has 44.00%: try"
    )
    assert _probe_remark(run, {"val_accuracy": 0.8}, 50) is None  # by chance
    assert _probe_remark(run, kept, 4) is None
    balanced = Run(tmp_path, run.recipe.replace(select_by="balanced_accuracy"))
    assert _probe_remark(balanced, kept, 50) is None


def test_a_classifier_on_features_needs_pooled_ones():
    with pytest.raises(ValueError, match=r"init_head='probe' .* needs head 'gap', not 'fc'"):
        Recipe(init="imagenet", init_head="probe")
    with pytest.raises(ValueError, match="init_head='probe' need init"):
        Recipe(head="gap", init_head="probe")


def test_the_plan_follows_the_images(photos, tmp_path, monkeypatch):
    plan = plan_finetuning(f"folder:{photos}")
    recipe = plan.recipe
    assert recipe.image_size == 128
    assert (recipe.train_scale_range, recipe.eval_scale_side) == ((128, 160), 128)
    assert (recipe.class_weights, recipe.select_by) == ("none", "accuracy")
    assert recipe.batch_size == 4  # ten steps an epoch
    assert (recipe.configuration, recipe.width_multiplier, recipe.batch_norm) == ("D", 1, False)
    assert (recipe.epochs, recipe.learning_rate, recipe.ema_momentum) == (6, 0.0005, 0.95)
    assert len(plan.lines) <= 5
    assert "40 pixels" in plan.lines[0]
    assert plan.lines[3] == (
        "then block5 and the classifier: 6 epochs, learning rate 0.0005, train_scale (128, 160), "
        "mirror images, averaged weights"
    )
    cropped = plan_finetuning(f"folder:{photos}", crop_area=(0.3, 1.0))
    assert "crop_area (0.3, 1.0), mirror images" in cropped.lines[3]
    large = write_photos(tmp_path / "large", [(300, 260)] * 70 + [(1000, 900)])
    for i in range(40):
        (large / "dog" / f"{i}.jpg").unlink()
    plan = plan_finetuning(f"folder:{large}")
    assert plan.recipe.image_size == 224
    assert (plan.recipe.class_weights, plan.recipe.select_by) == ("balanced", "balanced_accuracy")
    own = plan_finetuning(f"folder:{large}", class_weights="none").recipe
    assert (own.class_weights, own.select_by) == ("none", "accuracy")
    assert "class weights" in plan.lines[1]
    assert plan.recipe.batch_size == 4 < plan.recipe.batch_size * 2
    many = plan_finetuning(f"folder:{large}", test_fraction=0.0, validation_fraction=0.01)
    assert many.recipe.batch_size == 8
    monkeypatch.setattr(hardware, "available_memory", lambda: 2**28)
    less = plan_finetuning(f"folder:{large}", test_fraction=0.0, validation_fraction=0.01)
    assert less.recipe.batch_size == 4


def test_fields_that_are_given_win_and_a_run_decides_its_network(photos, tiny_run):
    source = f"folder:{photos}"
    recipe = plan_finetuning(source, image_size=64, batch_size=7, brightness=0.1).recipe
    assert (recipe.image_size, recipe.batch_size, recipe.brightness) == (64, 7, 0.1)
    assert recipe.eval_scale_side == 64
    recipe = plan_finetuning(source, head_only=True, epochs=9).recipe
    assert (recipe.freeze_until, recipe.epochs, recipe.train_scale) == ("all", 9, (128, 128))
    with pytest.raises(
        ValueError, match="head_only freezes all blocks, and freeze_until is 'block4'"
    ):
        plan_finetuning(source, head_only=True, freeze_until="block4")
    assert plan_finetuning(source, init_head="none").recipe.init_head == "none"
    assert plan_finetuning(source, init="imagenet").recipe.width_multiplier == 1
    own = tiny_run.recipe
    recipe = plan_finetuning(source, init=str(tiny_run.directory), batch_norm=False).recipe
    assert (recipe.configuration, recipe.width_multiplier) == (
        own.configuration,
        own.width_multiplier,
    )
    assert not recipe.batch_norm
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        plan_finetuning(source, epoch=3)


def error_of(capsys, *arguments):
    status = cli.main(["finetune", *map(str, arguments)])
    captured = capsys.readouterr()
    assert status == cli.BAD_INPUT
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("keras-vgg: error: ")
    return captured.err


def test_bad_input(photos, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--image-size", "32", "--configuration", "A", "--quiet"]
    assert "there is no folder" in error_of(capsys, "nowhere")
    write_photos(tmp_path / "one", [(40, 40)] * 3, classes=("cat",))
    assert "needs at least 2" in error_of(capsys, "one")
    assert "no weight file at no.h5" in error_of(capsys, photos, "--init", "no.h5", *small)
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="out")]).save("other.keras")
    error = error_of(capsys, photos, "--init", "other.keras", *small)
    assert "other.keras" in error
    notes = tmp_path / "notes.txt"
    notes.write_text("no weights")
    assert "notes.txt is no weight file" in error_of(capsys, photos, "--init", notes, *small)
    error = error_of(capsys, photos, "--workdir", tiny_run.directory)
    assert "holds a run of another recipe (source " in error
    error = error_of(capsys, photos, "--workdir", notes.parent, *small)
    assert "is not a run directory" in error
    assert "image_size must be in [32" in error_of(capsys, photos, "--image-size", "20")
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_the_command_says_what_it_did_and_what_is_next(finished, photos, monkeypatch, capsys):
    calls = []

    def fake(source, workdir, **options):
        calls.append((source, workdir, options))
        return finished

    monkeypatch.setattr("keras_vgg.runs.finetune", fake)
    arguments = ["finetune", str(photos), "--init", "a.h5", "--epochs", "3", "--quiet"]
    arguments += ["--head-only", "--resize", "pad", "--class-weights", "balanced"]
    assert cli.main(arguments) == cli.OK
    ((source, workdir, options),) = calls
    assert source == str(photos)
    assert workdir.parts == ("runs", photos.name)
    assert options == {
        "init": "a.h5",
        "head_only": True,
        "verbose": 2,
        "epochs": 3,
        "resize": "pad",
        "class_weights": "balanced",
    }
    out = capsys.readouterr().out
    for text in (
        "validation accuracy",
        "test accuracy",
        "of 12 images",
        "majority baseline",
        "report.html",
        "next: ",
    ):
        assert text in out
    assert Recipe.from_json((finished.directory / "recipe.json").read_text()) == finished.recipe


def test_fields_that_are_given_are_not_refused_for_decided_ones(tmp_path, monkeypatch):
    for name, count in (("a", 12), ("b", 30)):
        write_photos(tmp_path / "photos", [(32, 32)] * count, [name])
    source = f"folder:{tmp_path / 'photos'}"
    options = {"init": "imagenet", "image_size": 32}
    assert plan_finetuning(source, **options).recipe.class_weights == "balanced"
    plan = plan_finetuning(source, **options, sampling="balanced")
    assert plan.recipe.class_weights == "none"
    plan_finetuning(source, **options, head_only=True, crop_area=(0.3, 1.0))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    assert runs.finetuning._absolute("imagenet") == "imagenet"

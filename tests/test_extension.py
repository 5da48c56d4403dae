"""A run that is used before its end, ended early, and trained for more epochs."""

import shutil

import keras
import numpy as np
import pytest

from keras_vgg import cli
from keras_vgg.fit import distillation, extend, finish, fit, load_source
from keras_vgg.fit.extension import begin_extension, read_extensions
from keras_vgg.fit.metrics import metrics_for
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, UnfinishedRun
from keras_vgg.runs import calibrate_run, evaluate_run, report_runs
from tests.test_fit import TINY, checkpoint_arrays

pytestmark = pytest.mark.usefixtures("blank_plots")

UNEVEN = TINY.replace(
    epochs=2,
    sampling="balanced",
    loss="focal",
    select_by="balanced_accuracy",
    keep_checkpoints=3,
)


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C in an epoch, after a batch; both from 0."""

    def __init__(self, epoch, batch):
        super().__init__()
        self._place, self._epoch = (epoch, batch), -1

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._place:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of two epochs, interrupted in the second."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(KeyboardInterrupt):
        fit(UNEVEN, folder, verbose=0, callbacks=[Interrupt(1, 2)])
    return Run.open(folder)


@pytest.fixture
def unfinished(interrupted, tmp_path):
    return Run.open(shutil.copytree(interrupted.directory, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default::keras_vgg.run.UnfinishedRun")
def test_an_unfinished_run_is_used_with_a_notice(unfinished, tmp_path, capsys):
    before = {path.name for path in unfinished.directory.iterdir()}
    with pytest.warns(UnfinishedRun, match=r"has not finished training \(epoch 1 of 2\)"):
        evaluation = evaluate_run(unfinished, "validation")
    assert evaluation.count == load_source(UNEVEN).validation.size
    assert {path.name for path in unfinished.directory.iterdir()} == before | {"posteriors"}
    with pytest.warns(UnfinishedRun):
        page = report_runs([unfinished], tmp_path / "report.html", images=0)
    assert "training has not finished (epoch 1 of 2)" in page.read_text(encoding="utf-8")
    assert cli.main(["evaluate", str(unfinished.directory), "--split", "validation"]) == 0
    out, err = capsys.readouterr()
    assert "confusion" not in out
    (line,) = (line for line in err.splitlines() if "has not finished" in line)
    assert line.startswith(f"keras-vgg: {unfinished.directory} has not finished training")
    assert line.endswith("its best network so far is used, and no result is final")
    assert not unfinished.finished
    with pytest.raises(ValueError, match="has not finished training"):
        calibrate_run(unfinished)
    assert not (unfinished.directory / "calibration.json").exists()
    with pytest.raises(ValueError, match=r"resume it first, or end it with .* --finish"):
        unfinished.require_finished()
    (unfinished.directory / "model.keras").unlink()
    with pytest.raises(ValueError, match="has not finished training, and has no network yet"):
        evaluate_run(unfinished, "validation")


def test_a_run_is_finished_early_and_then_extended(unfinished, capsys):
    model = unfinished.model_path.read_bytes()
    (row,) = unfinished.history
    assert row["val_balanced_accuracy"] > 0
    run = finish(unfinished.directory)
    assert run.results["finished_early_at_epoch"] == run.results["epochs"] == 1
    assert run.results["validation_balanced_accuracy"] == row["val_balanced_accuracy"]
    assert run.model_path.read_bytes() == model
    assert fit(UNEVEN, run.directory).finished
    assert "is finished; nothing to do" in capsys.readouterr().out
    run.add_results(test={"top1": 0.5})
    (run.directory / "confusion_test.csv").write_text("1")
    arguments = ["train", "--workdir", str(run.directory), "--extend", "1", "--quiet"]
    assert cli.main([*arguments, "--extend-rate", "0.01"]) == 0
    out = capsys.readouterr().out
    assert "epochs 2 to 2: schedule cosine from a learning rate of 0.01" in out
    assert "test: these results are of the network of 1 epochs" in out
    extended = Run.open(run.directory)
    assert extended.history[0] == row
    assert len(extended.history) == extended.results["epochs"] == 2
    assert extended.history[1]["learning_rate"] < 0.01
    assert extended.results.keys().isdisjoint({"test", "finished_early_at_epoch"})
    assert not (run.directory / "confusion_test.csv").exists()
    assert extended.recipe == UNEVEN.replace(restart_epochs=(1,), restart_rates=(0.01,))
    (entry,) = read_extensions(extended)
    assert Recipe().replace(**entry["recipe"]) == UNEVEN
    assert entry["results"]["test"] == {"top1": 0.5}
    with pytest.raises(ValueError, match=r"which has been extended: .*recipe\.json"):
        fit(UNEVEN, run.directory, verbose=0)


@pytest.mark.slow
def test_steps_of_the_epoch_that_finish_leaves_out_do_not_count(tmp_path):
    recipe = UNEVEN.replace(batch_norm=True, checkpoint_steps=1, keep_checkpoints=9)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "run", verbose=0, callbacks=[Interrupt(1, 2)])
    assert "-step-" in Run.open(tmp_path / "run").checkpoints[-1].name
    finish(tmp_path / "run")
    begin_extension(tmp_path / "run", 1)
    assert [path.stem for path in Run.open(tmp_path / "run").checkpoints] == ["epoch-000001"]


def copy_of(run, folder):
    return Run.open(shutil.copytree(run.directory, folder))


def test_an_extension_begins_once_whenever_it_is_killed(tiny_run, tmp_path, monkeypatch):
    run = copy_of(tiny_run, tmp_path / "run")
    results = run.results
    with monkeypatch.context() as patch:  # a kill before results.json is removed
        patch.setattr("keras_vgg.fit.extension._put_aside", lambda *_: [])
        begin_extension(run.directory, 3)
    assert Run.open(run.directory).finished
    for epochs in (3, 3):  # again, and after a kill in its first epoch
        recipe, _ = begin_extension(run.directory, epochs)
        assert (recipe.epochs, recipe.restart_epochs) == (4, (1,))
        assert recipe.restart_rates == (pytest.approx(TINY.learning_rate / 10),)
    assert Run.open(run.directory).recipe == recipe
    (entry,) = read_extensions(run)
    assert entry["results"] == results
    for epochs, rate in ((2, None), (3, 0.5)):
        with pytest.raises(ValueError, match=r"has not finished training \(4 epochs\): resume it"):
            begin_extension(run.directory, epochs, rate)


def taught_copy(run, folder):
    """A finished run that states a teacher, and the teacher."""
    teacher = copy_of(run, folder / "teacher")
    recipe = run.recipe.replace(teachers=(str(teacher.directory),))
    taught = Run(copy_of(run, folder / "run").directory, recipe)
    taught.write_recipe()
    taught.write_json(distillation.FILE, distillation.describe([teacher]))
    return taught, teacher


@pytest.mark.parametrize("changed", ["teacher", "no teacher", "data"])
def test_a_run_that_cannot_be_extended_stays_as_it_is(tiny_run, tmp_path, changed):
    run, teacher = taught_copy(tiny_run, tmp_path)
    if changed == "teacher":
        teacher.model_path.write_bytes((teacher.directory / "results.json").read_bytes())
    elif changed == "no teacher":
        shutil.rmtree(teacher.directory)
    else:
        described = run.read_json("data.json")
        described["splits"]["test"]["fingerprint"] = "another"
        run.write_json("data.json", described)
    (run.directory / "confusion_test.csv").write_text("1")
    files = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
    message = {"no teacher": "is not a run directory"}.get(changed, "has changed since")
    with pytest.raises((ValueError, OSError), match=message):
        extend(run.directory, 1, verbose=0)
    assert files == {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_is_finished_without_its_teacher(tiny_run, tmp_path):
    run, teacher = taught_copy(tiny_run, tmp_path)
    shutil.rmtree(teacher.directory)
    (run.directory / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="teacher is not a run directory"):
        fit(run.recipe, run.directory, verbose=0)
    assert finish(run.directory, verbose=0).results["finished_early_at_epoch"] == 1


@pytest.mark.parametrize("restarts", [(1, 2), (2,), (3, 5)])
def test_planned_restarts_after_the_end_are_left_out(tiny_run, tmp_path, restarts):
    """As of a run that stopped early."""
    run = copy_of(tiny_run, tmp_path / "run")
    done = run.results["epochs"]
    rates = tuple(0.1 / epoch for epoch in restarts)
    planned = run.recipe.replace(epochs=9, restart_epochs=restarts, restart_rates=rates)
    Run(run.directory, planned).write_recipe()
    recipe, _ = begin_extension(run.directory, 2, 0.01)
    kept = [(epoch, rate) for epoch, rate in zip(restarts, rates, strict=True) if epoch < done]
    assert recipe.epochs == done + 2
    assert [*zip(recipe.restart_epochs, recipe.restart_rates, strict=True)] == [
        *kept,
        (done, 0.01),
    ]
    assert begin_extension(run.directory, 2, 0.01)[0] == recipe


@pytest.mark.slow
def test_results_of_evaluate_survive_an_extension_that_was_finished_at_once(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    run.add_results(test={"top1": 0.5})
    begin_extension(run.directory, 3)  # and the process ended in its first epoch
    finish(run.directory, verbose=0)
    begin_extension(run.directory, 3)
    (entry,) = read_extensions(Run.open(run.directory))
    assert entry["results"]["test"] == {"top1": 0.5}


@pytest.mark.slow
def test_keras_loads_its_own_checkpoint_of_balanced_accuracy(tmp_path):
    metric = metrics_for(UNEVEN, 10)[-1]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[metric])
    x, y = np.eye(10, 4, dtype="float32"), np.eye(10, dtype="float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    assert again.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0))


@pytest.mark.slow
def test_what_cannot_be_extended_or_finished_is_refused(tiny_run, tmp_path, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    files = {path: path.read_bytes() for path in run.directory.rglob("*.json")}
    train = ["train", "--workdir", str(run.directory)]
    for options, message in (
        (["--extend", "0"], "a run is extended by at least 1 epoch, not 0"),
        (["--extend", "-2"], "at least 1 epoch, not -2"),
        (["--extend", "two"], "two"),
        (["--extend", "1", "--extend-rate", "0"], "restart_rates must be in [1e-12, 1000], not (0"),
        (["--extend", "1", "--extend-rate", "nan"], "restart_rates must be in"),
        (["--extend-rate", "0.1"], "--extend-rate needs --extend N"),
        (["--extend", "1", "--finish"], "choose one"),
        (["--extend", "1", "--epochs", "9"], "leave out the recipe and its options"),
        (["--finish", "--seed", "1"], "leave out the recipe and its options"),
    ):
        assert cli.main([*train, *options]) == 2
        assert message in capsys.readouterr().err
    nothing = ["train", "--workdir", str(tmp_path / "nothing")]
    for options in (["--extend", "1"], ["--finish"]):
        assert cli.main([*nothing, *options]) == 2
        assert "is not a run directory" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="use the recipe of that run to resume it, or train it for"
    ):
        fit(run.recipe.replace(epochs=5), run.directory, verbose=0)
    assert {path: path.read_bytes() for path in run.directory.rglob("*.json")} == files
    shutil.rmtree(run.directory / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoints, from which it would go on"):
        begin_extension(run.directory, 1)
    (run.directory / "results.json").unlink()
    with pytest.raises(
        ValueError, match=r"no epoch of .* has ended, so there is no network to keep"
    ):
        finish(run.directory, verbose=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"restart_epochs": (2,)}, r"\(2\), needs its learning rate in restart_rates, not \(\)"),
        ({"restart_epochs": (20,), "restart_rates": (1,)}, r"must rise within \[1, 19\].*\(20\)"),
        ({"restart_epochs": (0,), "restart_rates": (1,)}, "must rise within"),
        ({"restart_epochs": (3, 3), "restart_rates": (1, 1)}, "must rise within"),
        ({"restart_epochs": (3,), "restart_rates": (0.0,)}, r"restart_rates must be in .*\(0.0\)"),
    ],
)
def test_wrong_restarts_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.slow
def test_an_extended_run_is_that_of_one_training_with_a_restart(tmp_path):
    """Also if it was killed within an epoch, and resumed by the same call."""
    recipe = UNEVEN.replace(batch_norm=True, checkpoint_steps=2)
    restarted = recipe.replace(epochs=4, restart_epochs=(2,), restart_rates=(0.005,))
    whole = fit(restarted, tmp_path / "whole", verbose=0)
    run = fit(recipe, tmp_path / "run", verbose=0)
    for place in ((2, 3), (3, 4)):
        with pytest.raises(KeyboardInterrupt):
            extend(run.directory, 2, verbose=0, callbacks=[Interrupt(*place)])
    run = extend(run.directory, 2, verbose=0)
    assert run.recipe == whole.recipe
    volatile = {"seconds", "images_per_second"}
    for ours, theirs in zip(run.history, whole.history, strict=True):
        assert {k: v for k, v in ours.items() if k not in volatile} == {
            k: v for k, v in theirs.items() if k not in volatile
        }
    first, second = checkpoint_arrays(run), checkpoint_arrays(whole)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    kept = [model.get_weights() for model in (run.model(), whole.model())]
    for ours, theirs in zip(*kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_a_run_that_stopped_early_goes_on_from_there(tmp_path):
    recipe = TINY.replace(epochs=9, early_stopping=1, learning_rate=1e-9, batch_norm=True)
    run = fit(recipe, tmp_path / "run", verbose=0)
    done = run.results["epochs"]
    assert done < 9
    run = extend(run.directory, 1, learning_rate=0.01, verbose=0)
    assert run.recipe.restart_epochs == (done,)
    assert run.results["epochs"] == done + 1
    best = max(run.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert run.results["best_epoch"] == best["epoch"]

"""Training: the run directory, resuming, the paper's weight decay, what goes wrong."""

import functools
import json
import os
import re
import shutil
import struct
import types
import warnings
from importlib import metadata

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import data, hardware, runs
from keras_vgg import fit as fitting
from keras_vgg.fit import (
    Run,
    TrainingDiverged,
    callbacks,
    checkpoint,
    fit,
    preparation,
    training,
)
from keras_vgg.fit.averages import Averages
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.recipe import Recipe
from keras_vgg.versions import package_versions

pytestmark = pytest.mark.usefixtures("blank_plots")

# The whole of a run in seconds: 1/16 width, 8 hidden units, few images a step.
TINY = Recipe(
    width_multiplier=1 / 16,
    hidden_units=8,
    batch_norm=False,
    validation_fraction=0.1,
    test_fraction=0.8,
    batch_size=32,
    epochs=2,
    brightness=0.1,
    rgb_shift=0.1,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    validated, enter = [], Averages.enter

    def noted(self, model, epoch, batches_taken):
        validated.append((epoch, batches_taken))
        enter(self, model, epoch, batches_taken)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Averages, "enter", noted)
        run = fit(TINY, tmp_path_factory.mktemp("run") / "whole", verbose=0)
    steps = run.read_json("data.json")["splits"]["train"]["images"] // TINY.batch_size
    assert validated == [(0, steps), (1, 2 * steps)]
    return run


def checkpoint_arrays(run):
    path = max((run.directory / "checkpoints").glob("*.npz"))
    with np.load(path) as file:
        # "0042 sgd_1/fc1_kernel_momentum": Keras numbers names within a process.
        return {re.sub(r"_\d+/", "/", k): file[k] for k in file.files if k != "progress"}


def fit_interrupted(recipe, workdir, epoch, monkeypatch):
    """A run that is interrupted as epoch `epoch` begins, counted from 0."""
    on_epoch_begin = Recorder.on_epoch_begin

    def interrupt(self, begun, logs=None):
        if begun == epoch:
            raise KeyboardInterrupt
        on_epoch_begin(self, begun, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_epoch_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, workdir, verbose=0)


def test_run_directory(finished):
    names = {p.name for p in finished.directory.iterdir()}
    assert names == {
        ".lock",
        "recipe.json",
        "environment.json",
        "data.json",
        "metrics.csv",
        "model.keras",
        "checkpoints",
        "tensorboard",
        "results.json",
        "training_curve.png",
    }
    assert finished.recipe == TINY
    assert finished.class_names == tuple("0123456789")
    assert [row["epoch"] for row in finished.history] == [1, 2]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "val_top5_accuracy"} <= set(
        finished.history[0]
    )
    assert finished.history[0]["images_per_second"] > 0
    events = list((finished.directory / "tensorboard").rglob("events.out.tfevents.*"))
    assert len(events) == 2
    assert len(list((finished.directory / "checkpoints").iterdir())) == TINY.keep_checkpoints


def test_results_are_of_the_best_epoch_and_its_model(finished):
    results = finished.results
    best = max(finished.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert results["best_epoch"] == best["epoch"]
    assert results["validation_accuracy"] == pytest.approx(best["val_accuracy"])
    assert 1e8 < results["peak_memory"] < 1e11
    source = fitting.load_source(TINY)
    dataset = data.evaluation_dataset(source.validation, 64, fitting.evaluation_transform(TINY))
    model = finished.model()
    hits = [
        keras.ops.convert_to_numpy(model(x)).argmax(1) == np.asarray(labels)
        for x, labels in dataset
    ]
    assert np.concatenate(hits).mean() == pytest.approx(best["val_accuracy"])


def test_a_finished_run_is_left_alone(finished, capsys):
    before = (finished.directory / "results.json").stat().st_mtime_ns
    fit(TINY, finished.directory)
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert (finished.directory / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_resumed_run_ends_as_an_uninterrupted_one(finished, tmp_path, monkeypatch):
    """Weights, optimiser, dropout seeds, data order and the records: bit for bit."""
    fit_interrupted(TINY, tmp_path / "run", 1, monkeypatch)
    assert not Run.open(tmp_path / "run").finished
    resumed = fit(TINY, tmp_path / "run", verbose=0)
    whole, again = checkpoint_arrays(finished), checkpoint_arrays(resumed)
    assert whole.keys() == again.keys()
    assert any("seed" in name for name in whole)
    for name in whole:
        np.testing.assert_array_equal(whole[name], again[name], err_msg=name)
    timing = {"images_per_second", "seconds"}
    for a, b in zip(finished.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if k not in timing} == {
            k: v for k, v in b.items() if k not in timing
        }


def copied(finished, directory):
    """An unfinished run with the checkpoints of a finished one."""
    shutil.copytree(finished.directory, directory)
    (directory / "results.json").unlink()
    return Run.open(directory)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    newest = run.checkpoints[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.warns(UserWarning, match=f"{newest.name} cannot be read"):
        assert Recorder(run, 1).restore(compiled(TINY)).epoch == 1
    assert newest not in run.checkpoints
    assert [row["epoch"] for row in run.history] == [1]


def test_checkpoints_of_which_none_can_be_read_are_not_trained_over(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    other = compiled(TINY.replace(hidden_units=16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r"none of the checkpoints of .* can be read"):
            Recorder(run, 1).restore(other)
    assert "is of another model" in str(caught[-1].message)
    assert len(run.checkpoints) == 2


def test_a_run_whose_data_changed_is_not_resumed_or_tested(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    described = run.read_json("data.json")
    described["splits"]["test"]["images"] += 1
    run.write_json("data.json", described)
    with pytest.raises(ValueError, match=r"source digits has changed since .*: test was"):
        fit(TINY, run.directory, verbose=0)
    run.add_results(epochs=2)
    with pytest.raises(ValueError, match="source digits has changed"):
        runs.evaluate_run(run)


@pytest.mark.slow
def test_a_metrics_row_that_a_kill_lost_is_written_again(finished, tmp_path):
    run = copied(finished, tmp_path / "run")
    (run.directory / "metrics.csv").unlink()
    leftover = run.directory / "checkpoints" / ".partial-xyepoch-000002.npz"
    leftover.write_bytes(b"half")
    resumed = fit(TINY, run.directory, verbose=0)
    assert resumed.history == finished.history
    assert not leftover.exists()


def compiled(recipe):
    statistics = data.ChannelStatistics(
        np.full(3, 100.0), np.full(3, 50.0), np.ones(3), np.eye(3), 1
    )
    model = fitting.build_model(recipe, 10, statistics)
    fitting.compile_model(model, recipe, hardware.Engine(("cpu:0",), "float32", False))
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.slow
def test_weight_decay_is_the_papers():
    """One step by hand: w <- w - lr (gradient + wd w), for kernels; biases do not decay."""
    decay, rate = 0.5, 0.1
    recipe = TINY.replace(
        weight_decay=decay, learning_rate=rate, momentum=0.0, dropout=0.0, batch_norm=False
    )
    x = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    y = np.eye(10, dtype="float32")[[1, 2, 3, 4]]
    plain = compiled(recipe.replace(weight_decay=0.0))
    before = plain.get_weights()
    decayed = compiled(recipe)
    decayed.set_weights(before)
    plain.train_on_batch(x, y)
    decayed.train_on_batch(x, y)
    for w, start, without, wanted in zip(
        decayed.weights, before, plain.get_weights(), decayed.get_weights(), strict=True
    ):
        decays = decay if w.name == "kernel" else 0.0
        np.testing.assert_allclose(wanted, without - rate * decays * start, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "l2"), [("sgd", 0.25), ("adamw", None)])
def test_weight_decay_reaches_every_kernel_once(optimizer, l2):
    """As a regulariser with SGD; AdamW decays the weights itself."""
    recipe = TINY.replace(weight_decay=0.5, optimizer=optimizer, learning_rate=0.001)
    model = fitting.build_model(recipe, 10, data.ChannelStatistics.unknown())
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    assert len(kernels) == 11
    found = [getattr(layer.kernel_regularizer, "l2", None) for layer in kernels]
    assert found == [None if l2 is None else pytest.approx(l2)] * 11


def test_batch_norm_is_one_operation_in_training_and_its_averages_are_kept(tmp_path):
    model, other = (compiled(TINY.replace(batch_norm=True)) for _ in range(2))
    norms = [layer for layer in model.layers if layer.name.endswith("_bn")]
    assert len(norms) == 8
    assert all(isinstance(layer.call, functools.partial) for layer in norms)
    for layer in norms:
        layer.moving_mean.assign(layer.moving_mean + 3)
    arrays = checkpoint.copied(model, checkpoint.Progress([{"epoch": 1}]))
    checkpoint.save(tmp_path / "c.npz", arrays)
    checkpoint.load(tmp_path / "c.npz", other)
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_preprocessing_is_the_training_sets_statistics_inside_the_model():
    layer = compiled(TINY).get_layer("preprocessing")
    assert layer.mean == (100.0,) * 3
    assert layer.std == (50.0,) * 3
    paper = compiled(TINY.replace(mean_rgb=(1, 2, 3), std_rgb=(1, 1, 1)))
    assert paper.get_layer("preprocessing").mean == (1.0, 2.0, 3.0)


def test_label_smoothing_and_top5_reach_compile():
    model = compiled(TINY.replace(label_smoothing=0.3))
    assert model.loss.get_config()["label_smoothing"] == 0.3
    names = model.evaluate(
        np.zeros((2, 32, 32, 3), "float32"), np.eye(10)[:2], verbose=0, return_dict=True
    )
    assert {"accuracy", "top5_accuracy"} <= set(names)


def test_the_training_step_is_traced_once(monkeypatch):
    calls = []
    compute_loss = keras.Model.compute_loss

    def counted(self, *args, training=True, **options):
        calls.append(training)
        return compute_loss(self, *args, training=training, **options)

    monkeypatch.setattr(keras.Model, "compute_loss", counted)
    model = compiled(TINY)
    model.fit(np.zeros((4, 32, 32, 3), "float32"), np.eye(10)[:4], batch_size=2, verbose=0)
    assert calls == [True]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_precision(precision):
    statistics = data.ChannelStatistics(np.zeros(3), np.zeros(3), np.ones(3), np.eye(3), 1)
    model = fitting.build_model(TINY, 10, statistics, precision)
    assert model.get_layer("block1_conv1").dtype_policy.name == precision
    assert keras.config.dtype_policy().name == "float32"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("jit", ["on", "off"])
def test_jit(jit):
    assert hardware.choose_engine(TINY.replace(jit=jit)).jit_compile is (jit == "on")


def test_nan_stops_with_advice_and_the_run_may_be_begun_again(tmp_path, monkeypatch):
    wild = TINY.replace(
        learning_rate=1e3,
        batch_norm=False,
        warmup_epochs=0.0,
        momentum=0.99,
        brightness=0.0,
        rgb_shift=0.0,
    )
    with pytest.raises(TrainingDiverged, match=r"not a number .*lower --learning-rate.*No check"):
        fit(wild, tmp_path / "run", verbose=0)
    run = Run.open(tmp_path / "run")
    assert not run.finished
    assert run.checkpoints == []
    assert not run.model_path.exists()
    with pytest.raises(ValueError, match="has not finished training"):
        run.model()
    calmer = wild.replace(epochs=1, learning_rate=0.01)
    fit_interrupted(calmer, tmp_path / "run", 0, monkeypatch)
    assert Run.open(tmp_path / "run").recipe == calmer


@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_weights_that_validation_finds_ruined_are_not_kept(tmp_path, name):
    recorder = Recorder(Run(tmp_path, TINY), 1)
    recorder.set_model(compiled(TINY))
    recorder.on_epoch_begin(0)
    with pytest.raises(TrainingDiverged, match="after epoch 1"):
        recorder.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0} | {name: float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_clipping_is_advised_where_it_is_possible(tmp_path, monkeypatch):
    recorder = Recorder(Run(tmp_path, TINY), 1)
    recorder.set_model(compiled(TINY))
    assert "--clip-norm 5" in str(recorder._diverged("the loss is not a number", "now"))
    several = types.SimpleNamespace(num_replicas_in_sync=2)
    monkeypatch.setattr(type(recorder.model), "distribute_strategy", several)
    assert "--clip-norm" not in str(recorder._diverged("the loss is not a number", "now"))


def test_ruined_weights_that_no_loss_shows_are_not_kept(tmp_path):
    """A ReLU may give 0 for NaN; the loss of what follows is a number."""
    recorder = Recorder(Run(tmp_path, TINY), 1)
    recorder.set_model(compiled(TINY))
    recorder.on_epoch_begin(0)
    kernel = recorder.model.get_layer("block1_conv1").kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]), kernel, np.nan))
    with pytest.raises(TrainingDiverged, match="weights are not numbers after epoch 1"):
        recorder.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_holds_nan_is_not_taken(tmp_path):
    model = compiled(TINY)
    model.get_layer("block1_conv1").bias.assign(np.full(4, np.nan))
    checkpoint.save(tmp_path / "nan.npz", checkpoint.copied(model, checkpoint.Progress()))
    other = compiled(TINY)
    with pytest.raises(ValueError, match=r"nan\.npz holds values that are not finite"):
        checkpoint.load(tmp_path / "nan.npz", other)
    assert checkpoint.holds_finite_values(other)


def test_another_recipe_is_refused(finished):
    with pytest.raises(ValueError, match=r"another recipe \(epochs 2, not 4\)"):
        fit(TINY.replace(epochs=4), finished.directory)


def test_other_files_are_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a run directory"):
        fit(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "folder:nowhere"}, "nowhere"),
        ({"source": "no_such_set"}, "no_such_set"),
        ({"validation_fraction": 0.0}, "no validation images"),
    ],
    ids=str,
)
def test_what_cannot_begin_leaves_nothing(tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        fit(TINY.replace(**changes), tmp_path / "run", verbose=0)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the run directory .* cannot be written"):
        fit(TINY, tmp_path / "file" / "run")


def test_a_folder_that_the_user_made_stays(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        fit(TINY.replace(source="folder:nowhere"), tmp_path, verbose=0)
    assert tmp_path.is_dir()


def test_where_the_data_lies_is_not_another_experiment(finished, tmp_path):
    shutil.copytree(finished.directory, tmp_path / "run")
    moved = TINY.replace(data_dir="elsewhere", keep_checkpoints=7)
    assert fit(moved, tmp_path / "run", verbose=0).finished
    assert Run.open(tmp_path / "run").recipe.data_dir == os.path.abspath("elsewhere")


def test_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        Run.open(tmp_path)


def test_environment_variables_that_are_set_win(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    hardware.prepare_environment()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


def test_environment_is_recorded(finished):
    found = json.loads((finished.directory / "environment.json").read_text())
    assert found["packages"]["keras"] == keras.__version__
    assert found["packages"]["tensorflow"] == tf.__version__
    assert found["engine"] == str(hardware.choose_engine(TINY))
    described = finished.read_json("data.json")
    counts = {name: split["images"] for name, split in described["splits"].items()}
    assert counts == {"train": 319, "validation": 40, "test": 1438}


@pytest.mark.parametrize(
    ("flags", "engine"),
    [
        ("fpu avx2", "cpu, float32, without XLA"),
        ("avx2 avx512_bf16", "cpu, float32, without XLA (this cpu's bfloat16 is slow)"),
    ],
)
def test_the_engine_that_is_recorded_is_the_processors(tmp_path, monkeypatch, flags, engine):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    found = training.describe_environment(hardware.choose_engine(TINY.replace(devices="cpu")))
    assert (found["engine"], found["precision"]) == (engine, "float32")


def test_a_package_without_metadata_does_not_end_a_training(monkeypatch):
    """As with tensorflow-cpu: the distribution has another name than the module."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    found = training.describe_environment(hardware.choose_engine(TINY))["packages"]
    assert (found["tensorflow"], found["keras"]) == (tf.__version__, keras.__version__)
    assert package_versions(["no-such-package"]) == {"no-such-package": None}


@pytest.mark.slow
def test_callbacks_see_epochs_that_are_kept(tmp_path):
    seen = []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            run = Run.open(tmp_path / "run")
            seen.append((len(run.history), run.model_path.exists(), "val_accuracy" in logs))
            self.model.stop_training = epoch == 1

    run = fit(TINY.replace(epochs=3), tmp_path / "run", verbose=0, callbacks=[Note()])

    assert seen == [(1, True, True), (2, True, True)]
    assert run.results["epochs"] == 2


@pytest.mark.parametrize(
    "callback", [keras.callbacks.LearningRateScheduler(abs), keras.callbacks.ReduceLROnPlateau()]
)
def test_callbacks_that_would_have_no_effect_are_refused(callback, tmp_path, finished):
    message = f"{type(callback).__name__} would have no effect, because the recipe decides"
    with pytest.raises(ValueError, match=message):
        fit(TINY, tmp_path / "run", verbose=0, callbacks=[callback])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=message):
        fitting.extend(finished.directory, 1, callbacks=[callback])
    assert Run.open(finished.directory).finished


def test_the_speed_is_that_of_the_steps_that_were_taken(tiny_run, monkeypatch):
    """Another callback has ended the epoch after two of nine steps, of a second each."""
    clock = types.SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(callbacks, "time", clock)
    recorder = Recorder(tiny_run, steps_per_epoch=9)
    recorder.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace()))
    recorder.on_epoch_begin(0)
    assert recorder._images_per_second() == 0.0
    for batch in range(2):
        recorder.on_train_batch_begin(batch)
        clock.now += 1.0
        recorder.on_train_batch_end(batch, {"loss": 1.0})
    assert recorder._images_per_second() == tiny_run.recipe.batch_size


@pytest.mark.parametrize("fault", ["a.log; No space left on device", "a.png; Too many open files"])
def test_a_full_disk_is_no_lack_of_memory(fault):
    with pytest.raises(OSError, match=fault), preparation.memory_error_explained(TINY):
        raise tf.errors.ResourceExhaustedError(None, None, fault)


@pytest.mark.parametrize(
    ("images", "devices", "accumulation", "expected"),
    [
        (200, 2, 2, (64, 2)),
        (51, 1, 1, (51, 1)),
        (51, 1, 2, (50, 2)),
        (7, 1, 8, (7, 1)),
        (50, 1, 2, (50, 2)),
        (51, 2, 1, (50, 1)),
        (51, 2, 2, (48, 2)),
        (3, 2, 2, (2, 1)),
    ],
)
def test_batches_of_few_images_are_shared_equally(images, devices, accumulation, expected):
    recipe = TINY.replace(batch_size=64, gradient_accumulation=accumulation)
    found = preparation._with_fitting_batches(recipe, images, devices)
    assert (found.batch_size, found.gradient_accumulation) == expected


@pytest.mark.slow
def test_too_little_memory_is_named_and_can_be_begun_again(tmp_path, monkeypatch):
    def exhausted(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\npages")

    with monkeypatch.context() as patch:
        patch.setattr(keras.Model, "fit", exhausted)
        with pytest.raises(MemoryError, match=r"batches of 32; try a smaller --batch-size.*OOM"):
            fit(TINY, tmp_path / "run", verbose=0)
    smaller = TINY.replace(batch_size=16, epochs=1, warmup_epochs=0)
    assert fit(smaller, tmp_path / "run", verbose=0).finished


def test_one_class_is_not_trained(tmp_path):
    (tmp_path / "classes.txt").write_text("all\n")
    for prefix in ("train", "t10k"):
        header = struct.pack(">4I", 0x803, 9, 5, 4)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(180))
        labels = struct.pack(">2I", 0x801, 9) + bytes(9)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(ValueError, match="has one class, all, and classification needs at least 2"):
        fit(TINY.replace(source=f"idx:{tmp_path}"), tmp_path / "run", verbose=0)

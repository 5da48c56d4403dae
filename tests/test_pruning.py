"""keras_vgg.runs.pruning: from a run to a narrower run, in steps that can be interrupted."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import cli, plotting
from keras_vgg.cli import main
from keras_vgg.cli.prune import Prune
from keras_vgg.export import prune
from keras_vgg.files import sha256_of, write_json
from keras_vgg.fit import describe, distillation, load_source
from keras_vgg.fit.model import initial_weights
from keras_vgg.models import vgg
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run, RunInUse, claim, locked, read_fields
from keras_vgg.runs import (
    explain_files,
    export_run,
    open_pruning,
    predict_files,
    prune_run,
    pruning,
    report_runs,
    sensitivity,
)
from tests.test_fit import TINY
from tests.test_prune import images, network
from tests.test_training import script

OPTIONS: dict[str, Any] = {"steps": 2, "images": 40, "epochs": 1, "verbose": 0}


@pytest.mark.slow
def test_a_run_becomes_narrower_in_steps_that_resume(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "pruned"
    trained: list[str] = []
    train = pruning.train

    def interrupted(recipe: Any, directory: Path, verbose: Any) -> Run:
        trained.append(directory.name)
        if trained == ["step-1", "step-2"]:
            raise KeyboardInterrupt
        return train(recipe, directory, verbose)

    monkeypatch.setattr(pruning, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_run(tiny_run, workdir, **OPTIONS)
    removed = (workdir / "step-2.keras").read_bytes()
    assert open_pruning(workdir).steps[1].validation is None
    result = prune_run(tiny_run, workdir, **OPTIONS)
    assert trained == ["step-1", "step-2"] * 2
    assert (workdir / "step-2.keras").read_bytes() == removed

    first, last = result.steps
    original = result.original
    assert original.macs * 0.4 < last.macs <= original.macs / 2
    assert original.macs / 2 < first.macs <= original.macs * 0.5**0.5
    assert last.parameters < first.parameters < original.parameters
    run = result.run
    assert run.directory == workdir / "step-2"
    assert run.recipe.filters == last.filters
    assert run.recipe.teachers == (str(tiny_run.directory),)
    assert [c.filters for c in prune.convolutions(run.model())] == list(last.filters)
    assert last.validation == run.results["validation_accuracy"]
    assert "test" not in run.results
    assert (workdir / "pruning.png").stat().st_size > 10_000
    kept = read_fields(workdir / "pruning.json")["steps"]
    for divergences in (step["divergences"] for step in kept):
        # The network answers all images alike, so neither may be worse.
        assert 0 <= divergences["fitted"] <= divergences["removed"]
    record = run.read_json("init.json")
    assert record["source"] == str(workdir / "step-2.keras")

    command = ["prune", str(tiny_run.directory), "--workdir", str(workdir), "--steps", "2"]
    assert main([*command, "--images", "40", "--epochs", "1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"{run.directory} is finished; nothing to do" in printed
    assert f"{last.parameters:,}" in printed
    assert main([*command, "--images", "50", "--epochs", "1"]) == 2
    assert "holds another pruning, with images 40, not 50; choose" in capsys.readouterr().err

    size = f"{4e-6 * last.parameters + 0.02}"  # MB; graph and names
    command = ["export", str(tiny_run.directory), "--pruned", str(workdir), "--format", "litert"]
    command += ["--target-size", size, "--tolerance", "100", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "Chosen: litert, pruned to " in printed, printed
    assert main([*command[:4], "--format", "litert"]) == 2
    assert "gives candidates for target_latency or target_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 1.0}, r"macs must be the share .* in \(0, 1\), not 1"),
        ({"macs": float("nan")}, "macs must be the share"),
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"images": -3}, "images must be 1 or more, not -3"),
        ({"teachers": ("a",), "init": "b"}, "the pruning decides init, teachers; leave it out"),
        ({"criterion": "l2"}, "criterion must be one of taylor, l1, batch_norm, not 'l2'"),
        ({"epochs": 0}, "epochs must be in"),
        ({"learning_rate": -1.0}, "learning_rate must be in"),
        ({"macs": 0.001}, r"macs=0.001 cannot be reached: with one filter .* ask for at least"),
        ({"source": "folder:absent"}, "absent"),
    ],
    ids=str,
)
def test_wrong_arguments_leave_nothing(
    tiny_run: Run, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prune_run(tiny_run, tmp_path / "pruned", verbose=0, **options)
    assert not list(tmp_path.glob("pruned/*"))


def test_criteria_that_do_not_fit_leave_nothing(
    made_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"'batch_norm' needs .* network of .*run has none"):
        prune_run(made_run, tmp_path / "pruned", **OPTIONS, criterion="batch_norm")
    monkeypatch.setattr(prune, "is_tensorflow", lambda: False)
    with pytest.raises(ValueError, match=r"'taylor' needs Keras on TensorFlow.* or use 'l1'"):
        prune_run(made_run, tmp_path / "pruned", **OPTIONS)
    assert not (tmp_path / "pruned").exists()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    for criterion, backend in (("taylor", "tensorflow"), ("l1", None)):
        command = Prune(made_run.directory, tmp_path / "pruned", criterion=criterion)
        assert cli._backend(command) == backend


@pytest.fixture
def made_run(tmp_path: Path) -> Run:
    """A finished run on a folder of images; its network is not trained, and has no batch norm."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for number in range(12):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    recipe = TINY.replace(source=f"folder:{tmp_path / 'photos'}", batch_norm=False)
    run = Run(tmp_path / "run", recipe.replace(validation_fraction=0.3, test_fraction=0.2))
    run.directory.mkdir()
    run.write_recipe()
    run.write_json("data.json", describe(load_source(run.recipe)))
    run.write_json("results.json", {"epochs": 3, "validation_accuracy": 0.5})
    save_network(run, {})
    return run


def save_network(run: Run, options: dict[str, Any]) -> None:
    model = vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=len(run.class_names),
        hidden_units=8,
        include_preprocessing=True,
        **(options or {"width_multiplier": 1 / 16}),
    )
    model.save(run.model_path)


def two_images(*_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Stands in for the decoding of images."""
    return np.zeros((2, 32, 32, 3)), np.zeros(2, int)


class Passes:
    """Stands in for the answers without filters of a layer; layer `fatal`, from 1, is killed."""

    def __init__(self, fatal: int | None = None) -> None:
        self.count, self.fatal = 0, fatal

    def __call__(
        self, net: keras.Model, layer: Any, without: list[np.ndarray], inputs: np.ndarray
    ) -> list[np.ndarray]:
        self.count += 1
        if self.count == self.fatal:
            raise KeyboardInterrupt
        return [np.full((len(inputs), 2), 0.5) for _ in without]


def test_a_kill_in_the_sensitivity_loses_one_layer_at_most(
    made_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = made_run.model(), tmp_path / "step-1.sensitivity.json"
    monkeypatch.setattr(sensitivity, "as_arrays", two_images)

    def measured(passes: Passes, file: Path, count: int = 2) -> list[dict[str, Any]]:
        monkeypatch.setattr(prune, "_answers_without", passes)
        layers = sensitivity.run_sensitivities(made_run, model, "l1", count, file, 0)
        return [{**asdict(layer), "order": layer.order.tolist()} for layer in layers]

    whole = Passes()
    expected = measured(whole, tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        measured(Passes(fatal=whole.count), file)
    assert len(read_fields(file)["layers"]) == len(expected) - 1
    resumed = Passes()
    assert measured(resumed, file) == expected
    assert resumed.count == 1 < whole.count == len(expected)
    other = Passes()
    measured(other, file, 3)  # more images are another sensitivity
    assert other.count == whole.count


@pytest.mark.slow
def test_images_that_have_moved_are_named(
    made_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "photos").rename(tmp_path / "moved")
    other = shutil.copytree(tmp_path / "moved", tmp_path / "other")
    (other / "cat" / "0.png").unlink()
    trained: list[Any] = []

    def noted(recipe: Any, directory: Path, verbose: Any) -> Run:
        trained.append(recipe)
        assert not list(directory.parent.glob("*.sensitivity.json"))  # it is in pruning.json
        raise InterruptedError("as far as this")

    monkeypatch.setattr(pruning, "train", noted)
    monkeypatch.setattr(prune, "_answers_without", Passes())
    monkeypatch.setattr(sensitivity, "as_arrays", two_images)
    command = ["prune", str(made_run.directory), "--workdir", str(tmp_path / "pruned")]
    command += ["--criterion", "l1", "--images", "2", "--quiet"]
    for arguments, message in (
        (["--macs", "0.001"], "macs=0.001 cannot be reached"),
        ([], "name their new place with --source"),
        (["--source", f"folder:{other}"], "does not hold the images of"),
        (["--source", f"folder:{tmp_path / 'moved'}"], "as far as this"),
    ):
        assert main([*command, *arguments]) == 2
        assert message in capsys.readouterr().err
    (recipe,) = trained
    assert recipe.source == f"folder:{tmp_path / 'moved'}"
    assert recipe.filters == open_pruning(tmp_path / "pruned").steps[0].filters


def killed_training(recipe: Recipe, directory: Path, verbose: Any) -> Run:
    """Stands in for `train`: writes what a training has after its first epoch, and is killed."""
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "checkpoints" / "epoch-0001.npz").write_bytes(b"")
    step, teacher = Run(directory, recipe.with_absolute_paths()), Run.open(recipe.teachers[0])
    step.write_recipe()
    shutil.copy(teacher.directory / "data.json", directory)
    initial = initial_weights(recipe)
    assert initial is not None
    step.write_json("init.json", {"source": recipe.init, "sha256": initial.sha256()})
    step.write_json(distillation.FILE, distillation.describe([teacher]))
    raise KeyboardInterrupt


def resumed_training(recipe: Recipe, directory: Path, verbose: Any) -> Run:
    with claim(directory, recipe.with_absolute_paths()) as (step, is_new):
        assert not is_new
        step.write_json("results.json", {"validation_accuracy": 0.75})
        return step


@pytest.fixture
def options_of_killed(made_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The options of a pruning in tmp_path / "pruned" whose training was killed."""
    options: dict[str, Any] = {"steps": 1, "criterion": "l1", "images": 2, "verbose": 0}
    monkeypatch.setattr(prune, "_answers_without", Passes())
    monkeypatch.setattr(sensitivity, "as_arrays", two_images)
    monkeypatch.setattr(pruning, "train", killed_training)
    with pytest.raises(KeyboardInterrupt):
        prune_run(made_run, tmp_path / "pruned", **options)
    monkeypatch.setattr(pruning, "train", resumed_training)
    return options


def test_a_killed_pruning_ends_with_a_repeated_command(
    made_run: Run, tmp_path: Path, options_of_killed: dict, capsys: pytest.CaptureFixture
) -> None:
    workdir = tmp_path / "pruned"
    done = prune_run(made_run, workdir, **options_of_killed)
    assert done.steps[0].validation == 0.75
    command = ["prune", str(made_run.directory), "--workdir", str(workdir), "--criterion", "l1"]
    assert main([*command, "--images", "2", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"{done.steps[0].parameters:,}" in printed
    assert str(workdir / "pruning.png") in printed


@pytest.mark.slow
def test_a_training_goes_on_when_its_images_have_moved(
    made_run: Run, tmp_path: Path, options_of_killed: dict
) -> None:
    options = options_of_killed
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = f"folder:{tmp_path / 'moved'}"
    with pytest.raises(ValueError, match=r"another recipe \(batch_size"):
        prune_run(made_run, tmp_path / "pruned", **options, source=moved, batch_size=3)
    done = prune_run(made_run, tmp_path / "pruned", **options, source=moved)
    assert done.steps[0].validation == 0.75
    assert done.run.recipe.source == moved
    with pytest.raises(ValueError, match=r"another recipe \(batch_size"):  # also when finished
        prune_run(made_run, tmp_path / "pruned", **options, source=moved, batch_size=3)


@pytest.mark.slow
def test_a_pruning_goes_on_when_its_networks_have_moved(
    made_run: Run, tmp_path: Path, options_of_killed: dict
) -> None:
    for finished in (False, True):
        run = Run.open(shutil.move(made_run.directory, tmp_path / f"run-{finished}"))
        moved = Path(shutil.move(tmp_path / "pruned", tmp_path / f"pruned-{finished}"))
        assert Run.open(moved / "step-1").finished == finished
        done = prune_run(run, moved, **options_of_killed)
        assert done.run.recipe.teachers == (str(run.directory),)
        assert done.run.recipe.init == str(moved / "step-1.keras")
        assert read_fields(moved / pruning.FILE)["run"] == str(run.directory)
        shutil.move(run.directory, made_run.directory)
        shutil.move(moved, tmp_path / "pruned")
    save_network(made_run, {})  # trained anew
    with pytest.raises(ValueError, match=r"another pruning, of the network that .*run-True had"):
        prune_run(made_run, tmp_path / "pruned", **options_of_killed)


@pytest.mark.slow
def test_other_networks_in_place_of_those_that_have_moved_are_refused(
    made_run: Run, tmp_path: Path, options_of_killed: dict
) -> None:
    moved = Path(shutil.move(tmp_path / "pruned", tmp_path / "moved"))
    before = (moved / "step-1" / "recipe.json").read_text()
    shutil.copy(made_run.model_path, moved / "step-1.keras")
    with pytest.raises(ValueError, match=r"the weights of .* have changed since .*step-1 began"):
        prune_run(made_run, moved, **options_of_killed)
    assert (moved / "step-1" / "recipe.json").read_text() == before


def test_a_new_place_leaves_out_what_names_parts_of_the_first(made_run: Run) -> None:
    splits = {"train_split": "train[:90%]", "validation_split": "train[90%:]"}
    recipe = made_run.recipe.replace(source="cifar10", validation_fraction=0.0, **splits)
    moved = pruning._in_place(Run(made_run.directory, recipe), made_run.recipe.source).recipe
    assert moved.source == made_run.recipe.source
    assert moved.train_split is None
    assert moved.validation_split is None


@pytest.mark.slow
def test_a_run_with_uneven_widths_is_a_run_like_any_other(made_run: Run, tmp_path: Path) -> None:
    widths = (3, 5, 9, 7, 11, 8, 13, 6)
    run = Run(made_run.directory, made_run.recipe.replace(filters=widths))
    run.write_recipe()
    run.write_history(
        [{"epoch": 1, "loss": 0.7, "accuracy": 0.5, "val_loss": 0.7, "val_accuracy": 0.5}]
    )
    save_network(run, {"filters": widths})
    photo = tmp_path / "photos" / "cat" / "0.png"

    (answer,) = predict_files(run, [photo])
    assert {name for name, _ in answer} == {"cat", "dog"}
    (picture,) = explain_files(run, [photo], out=tmp_path / "explained")
    assert picture.stat().st_size > 1000
    page = report_runs([run], images=1).read_text()
    assert " ".join(map(str, widths)) in page


def test_a_kill_in_the_first_step_leaves_a_pruning_that_goes_on(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = tmp_path / "pruned"
    workdir.mkdir()
    (workdir / ".partial-pruning.json").write_text("")  # as a kill leaves it

    def killed(run: Run, limit: float, settings: Any, workdir: Path, number: int, _: Any) -> None:
        (workdir / f"step-{number}.keras").write_bytes(b"a network")
        raise KeyboardInterrupt

    monkeypatch.setattr(pruning, "_remove", killed)
    for options in (
        OPTIONS,
        OPTIONS,
        OPTIONS | {"steps": 3},
    ):  # Nothing is lost with other options.
        with pytest.raises(KeyboardInterrupt):
            prune_run(tiny_run, workdir, **options)
    with locked(workdir), pytest.raises(RunInUse, match="pruned is in use: another process"):
        prune_run(tiny_run, workdir, **OPTIONS)
    assert open_pruning(workdir).steps == ()
    with pytest.raises(ValueError, match="has 0 of 3 steps; repeat the pruning to resume"):
        pruning.stand_ins(tiny_run, workdir)


@pytest.mark.parametrize("is_better", [True, False])
def test_fitted_weights_are_kept_if_they_answer_validation_images_better(
    is_better: bool,
    varied_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def spoil(model: keras.Model, small: keras.Model, *arguments: Any) -> None:
        last = small.layers[-1]
        last.set_weights([-10 * values for values in last.get_weights()])

    if not is_better:
        monkeypatch.setattr(pruning, "reconstruct", spoil)
    model = varied_run.model()
    kept = {"block5_conv1": np.arange(0, 32, 2)}
    small = prune.remove_filters(model, kept)
    before = small.get_weights()
    figures = pruning._fit_weights(varied_run, model, small, kept, 30, verbose=2)
    assert (figures["fitted"] < figures["removed"]) == is_better
    unchanged = all(map(np.array_equal, before, small.get_weights()))
    assert unchanged != is_better
    printed = capsys.readouterr().out
    assert f"30 validation images: {figures['removed']:.3g} with the filters removed" in printed
    assert f"{figures['fitted']:.3g} with the weights fitted" in printed


def test_a_step_without_its_network_is_refused_before_any_work(
    tiny_run: Run, tmp_path: Path
) -> None:
    step = Run.open(shutil.copytree(tiny_run.directory, tmp_path / "step-1"))
    stage = {"filters": [], "macs": 1, "parameters": 1, "validation": 0.5}
    record = {"model_sha256": sha256_of(tiny_run.model_path), "settings": {"steps": 1}}
    stages = {"figure": "", "original": stage, "steps": [stage]}
    write_json(tmp_path / "pruning.json", {**record, **stages})
    assert list(pruning.stand_ins(tiny_run, tmp_path)) == ["pruned to 100%"]
    step.model_path.unlink()
    with pytest.raises(FileNotFoundError, match=r"step-1/model\.keras is missing"):
        pruning.stand_ins(tiny_run, tmp_path)


def test_runs_and_folders_that_do_not_fit_are_refused(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists and holds no pruning"):
        prune_run(tiny_run, tmp_path, **OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"pruning.json is missing"):
        open_pruning(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pruning.json is missing"):
        export_run(tiny_run, tmp_path / "out", pruned=tmp_path, target_size=1.0)
    unfinished = Run.open(shutil.copytree(tiny_run.directory, tmp_path / "unfinished"))
    (unfinished.directory / "results.json").unlink()
    with pytest.raises(ValueError, match="has not finished training"):
        prune_run(unfinished, tmp_path / "pruned", **OPTIONS)
    assert not (tmp_path / "pruned").exists()
    assert (tmp_path / "notes.txt").read_text() == "precious"


@pytest.mark.slow
def test_the_network_that_torch_pruning_sees_is_the_same() -> None:
    torch = pytest.importorskip("torch")
    model = network(configuration="B", head="gap", batch_norm=True)
    last = model.layers[-1]
    last.activation = None
    twin, convolutions = script("prune_cifar10").as_torch(model)
    assert len(convolutions) == 10
    pictures = images(model)
    logits = model.predict(pictures, verbose=0)
    preprocessed = model.get_layer("block1_conv1").input
    inside = keras.Model(model.inputs, preprocessed).predict(pictures, verbose=0)
    with torch.no_grad():
        theirs = twin(torch.tensor(inside.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(theirs, logits, atol=1e-4)


def test_a_second_call_of_the_script_keeps_the_rows_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_of_pruning = script("prune_cifar10")

    def row(network: str, macs: int, top1: float) -> dict[str, Any]:
        file = {"bytes": macs, "latency_ms": {"2": [macs / 1e6, 1.0]}, "top1": top1}
        figures = {"test": top1 + 0.1, "test_interval": (0.0, 1.0), "parameters": 1}
        files = dict.fromkeys(script_of_pruning.FORMATS, file)
        return {"network": network, "macs": macs, "files": files, **figures}

    original = row("original", 4_000_000, 0.8)
    half, quarter = row("half", 2_000_000, 0.7), row("quarter", 1_000_000, 0.6)
    theirs = [row(f"half, torch-pruning{end}", 1_900_000, 0.5) for end in ("", "-taylor")]
    rows = script_of_pruning.together([original, half], [original, quarter, *theirs])
    assert rows == [original, half, *theirs, quarter]
    *_, last = script_of_pruning.table(rows).splitlines()
    assert "70.00% (0.00% to 100.00%) | 1.00 ms, 0.25; 60.00% |" in last
    drawn: dict[str, list[float]] = {}

    def note(figure: Any, path: Path) -> None:
        save_png(figure, path)
        for line in figure.axes[0].lines:
            drawn[str(line.get_label())] = [round(y) for y in line.get_ydata()]

    save_png = plotting.save_png
    monkeypatch.setattr(plotting, "save_png", note)
    quarter["files"] = {**quarter["files"], "litert_int8": original["files"]["litert"]}
    script_of_pruning.draw(rows, tmp_path / "pruned.png")
    assert (tmp_path / "pruned.png").stat().st_size > 10_000
    assert drawn["litert"] == [80, 70, 60]
    assert drawn["litert_int8"] == [80, 70, 80]  # each file has an accuracy of its own


def test_the_script_refuses_figures_of_another_run(tmp_path: Path) -> None:
    require_same = script("prune_cifar10").require_same
    identity = {"model_sha256": "abc", "images": 1000}
    require_same(tmp_path, {"rows": []}, identity)  # as earlier versions wrote it
    require_same(tmp_path, {**identity, "rows": []}, identity)
    with pytest.raises(ValueError, match=r"figures of another RUN \(model_sha256 def, not abc\)"):
        require_same(tmp_path, {**identity, "model_sha256": "def"}, identity)
    with pytest.raises(ValueError, match=r"another number of --images \(images 500, not 1000\)"):
        require_same(tmp_path, {**identity, "images": 500}, identity)


def test_a_network_in_bfloat16_gives_the_script_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(configuration="A", head="gap")
    finally:
        keras.config.set_dtype_policy("float32")
    pictures = images(model)[:2]
    inputs = script("prune_cifar10").preprocessed(model, pictures)
    assert inputs.dtype == np.float32
    assert inputs.shape == (2, 3, *pictures.shape[1:3])


@pytest.mark.slow
def test_factors_of_full_rank_answer_alike_and_smaller_ones_save_what_they_should() -> None:
    low_rank = script("low_rank_cifar10")
    model = network(configuration="A", head="gap", batch_norm=True)
    directions = low_rank.spectra(model, images(model))
    whole = {name: len(energy) for name, (energy, *_) in directions.items()}
    factorised = low_rank.factorised(model, whole, directions)
    pictures = images(model)
    before, after = (net.predict(pictures, verbose=0) for net in (model, factorised))
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert factorised.get_layer("block2_conv1").kernel_size == (1, 1)

    energies = {"second": np.array([4.0] * 32 + [1.0] * 32), "third": np.array([1.0] * 64)}
    layers = {"first": (100, 10, 3), "second": (368_640, 10, 64), "third": (368_640, 10, 64)}
    ranks = low_rank.ranks_for(0.75, energies, layers)
    assert ranks == {"second": 32, "third": 48}  # the weak half of the second goes first
    assert 100 + 10 * (9 * 64 + 64) * (32 + 48) <= 0.75 * (100 + 2 * 368_640)

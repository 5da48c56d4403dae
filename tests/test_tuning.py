"""Searches: what a trial is, what survives an interruption, what comes out, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from keras_tuner.errors import FailedTrialError
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from keras_vgg import architecture, cli, fit, report
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.recipe import Recipe, load_recipe
from keras_vgg.tuning import (
    Attempt,
    Limits,
    Range,
    VGGHyperModel,
    attempts,
    best,
    parse_space,
    search,
)
from keras_vgg.tuning.hypermodel import cost
from keras_vgg.tuning.live_table import trial_line
from keras_vgg.tuning.oracle import TUNERS, make_oracle, quiet_keras_tuner
from keras_vgg.tuning.plots import plot_parallel
from keras_vgg.tuning.results import importances, pareto
from keras_vgg.tuning.space import Space
from keras_vgg.tuning.tuner import MedianPruner, RunTuner, _HParams
from tests.test_fit import TINY

BASE = TINY.replace(
    epochs=1, brightness=0.0, rgb_shift=0.0, dropout=0.0, warmup_epochs=0.5, batch_norm=False
)
LONGER = BASE.replace(epochs=2)  # for the slow tests
SPACE = {
    "learning_rate": Range(0.001, 0.1, log=True),
    "head": ("fc", "gap"),
    "hidden_units": (4, 8),
    "batch_size": (16, 32),
    "train_scale": ((32, 32), (32, 40)),
}
NOTHING_FITS = Limits(parameters=1)


def searched_in(workdir: Path, recipe: Recipe = BASE, **options: object) -> list[Attempt]:
    options = {"tuner": "random", "space": SPACE, "max_trials": 2, "verbose": False} | options
    return search(recipe, workdir, **options)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of one epoch a trial; the curves of its trials, which take 0.2 s, are not drawn."""
    workdir = tmp_path_factory.mktemp("tuning") / "search"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_history", lambda *_, **__: None)
        searched_in(workdir)
    return workdir


@pytest.fixture(scope="module")
def searched_for_longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("tuning") / "search"
    found = searched_in(workdir, LONGER)
    assert [a.val_accuracy for a in found] == [max(a.curve) for a in found]
    return workdir


def test_a_search_leaves_its_trials_and_what_they_say(searched: Path) -> None:
    found = attempts(searched)
    assert [a.number for a in found] == [0, 1]
    for a in found:
        run = fit.Run.open(a.folder / "run")
        assert (a.val_accuracy,) == (run.results["validation_accuracy"],) == a.curve
        assert a.parameters == run.results["parameters"]
        assert a.state == "done"
        for name, value in a.values.items():
            tried = getattr(run.recipe, name)
            assert value == ("-".join(map(str, tried)) if isinstance(tried, tuple) else tried)
        assert run.recipe.differences(BASE).keys() <= {*SPACE, "eval_scale"}
    with (searched / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == [a.val_accuracy for a in found]
    assert [int(row["trained_epochs"]) for row in rows] == [len(a.curve) for a in found]
    for name in ("search.png", "parallel_coordinates.png"):
        assert (searched / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_best_recipe_gives_its_score_again(searched_for_longer: Path, tmp_path: Path) -> None:
    searched = searched_for_longer
    run = fit.fit(load_recipe(searched / "best_recipe.py"), tmp_path / "run", verbose=0)
    assert run.results["validation_accuracy"] == best(attempts(searched)).val_accuracy
    assert "have not been read" in (searched / "best_recipe.py").read_text()


def test_tensorboard_has_the_hyperparameters(searched: Path) -> None:
    (file,) = (searched / "trial_0" / "run" / "tensorboard").glob("events*")
    tags = [v.tag for event in EventFileLoader(str(file)).Load() for v in event.summary.value]
    assert "_hparams_/session_start_info" in tags


def test_a_finished_search_is_repeated_from_its_files(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit", lambda *_, **__: pytest.fail("trained again"))
    before = attempts(searched)
    assert searched_in(searched) == before


@pytest.mark.slow
def test_an_interrupted_search_ends_as_if_it_had_not_been(
    searched_for_longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    on_epoch_begin = Recorder.on_epoch_begin

    def interrupt(self: Recorder, epoch: int, logs: dict | None = None) -> None:
        begun.append(epoch)
        if len(begun) == 4:  # the second epoch of the second trial
            raise KeyboardInterrupt
        on_epoch_begin(self, epoch, logs)

    monkeypatch.setattr(Recorder, "on_epoch_begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        searched_in(tmp_path / "search", LONGER)
    # As a kill between two files leaves it: a trial that the oracle does not know of.
    shutil.copytree(tmp_path / "search" / "trial_1", tmp_path / "search" / "trial_2")
    state = json.loads((tmp_path / "search" / "oracle.json").read_text())
    assert state["ongoing_trials"] == {"tuner0": "1"}
    (tmp_path / "search" / "trial_2" / "facts.json").unlink()

    found = searched_in(tmp_path / "search", LONGER)

    assert begun == [0, 1, 0, 1, 1]  # no epoch is lost but the one that was cut off
    whole = attempts(searched_for_longer)
    assert [(a.values, a.curve) for a in found] == [(a.values, a.curve) for a in whole]


@pytest.mark.parametrize(
    "tuner",
    [pytest.param(t, marks=[pytest.mark.slow] * (t != "hyperband")) for t in TUNERS],
)
def test_a_seed_makes_a_search_again(tuner: str, tmp_path: Path) -> None:
    """By trials that are refused, which takes no time."""

    def tried(name: str, seed: int) -> list:
        options = {"tuner": tuner, "seed": seed, "limits": NOTHING_FITS, "max_trials": 5}
        with pytest.raises(ValueError, match=r"all \d trials failed, the last: refused: \d"):
            searched_in(tmp_path / name, **options)
        return [dict(a.values) for a in attempts(tmp_path / name)]

    first = tried("a", 0)
    assert tried("b", 0) == first
    assert tuner == "grid" or tried("c", 1) != first
    assert all(a.state == "refused" for a in attempts(tmp_path / "a"))


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    space = {"learning_rate": (1000.0, 0.01)}
    found = search(LONGER, tmp_path / "s", tuner="grid", space=space, max_trials=2)
    assert {a.state for a in found} == {"failed", "done"}
    failed = next(a for a in found if a.state == "failed")
    assert "the loss is not a number" in failed.reason
    assert best(found).values == {"learning_rate": 0.01}
    said = capsys.readouterr().out
    assert f"trial {failed.number} failed: the loss is not a number" in said
    assert "best " in said


@pytest.mark.slow
def test_the_budget_ends_a_search_which_a_larger_one_goes_on_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"was spent before one trial .*larger budget"):
        searched_in(tmp_path / "s", budget=1e-3)
    spent = json.loads((tmp_path / "s" / "spent.json").read_text())["seconds"]
    found = searched_in(tmp_path / "s", budget=spent + 1000, max_trials=1)
    assert [a.state for a in found] == ["done"]


@pytest.mark.slow
def test_hyperband_trains_the_best_for_longer(tmp_path: Path) -> None:
    base = BASE.replace(epochs=3)
    found = search(
        base, tmp_path / "s", tuner="hyperband", space=SPACE, max_trials=4, verbose=False
    )
    assert [a.epochs for a in found] == [1, 1, 1, 3]
    first = max(found[:3], key=lambda a: a.val_accuracy)
    again = {k: v for k, v in found[3].values.items() if k != "epochs"}
    assert again == {k: v for k, v in first.values.items() if k != "epochs"}
    assert len(found[3].curve) == 3


def values_of_a_search(tuner: str, space: Space, folder: Path) -> list[tuple[dict, int]]:
    """Return the values and epochs of an oracle's trials; a wider network scores higher."""
    recipe = BASE.replace(epochs=9)
    hp = keras_tuner.HyperParameters()
    VGGHyperModel(recipe, space).declare_hyperparameters(hp)
    oracle = make_oracle(tuner, hp, max_trials=100, max_epochs=9, seed=0)
    oracle._set_project_dir(folder, "search")
    found = []
    with quiet_keras_tuner():
        while (trial := oracle.create_trial("one")).status != "STOPPED":
            values = dict(trial.hyperparameters.values)
            epochs = values.get("tuner/epochs", 9)
            found.append(({k: v for k, v in values.items() if "/" not in k}, epochs))
            oracle.update_trial(trial.trial_id, {"val_accuracy": values["width_multiplier"]})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
    return found


def test_hyperband_halves_what_a_small_space_has(tmp_path: Path) -> None:
    """keras-tuner's ends after the first short round, for which it misses combinations."""
    space = {"width_multiplier": (0.125, 0.25, 0.5, 1.0)}
    found = values_of_a_search("hyperband", space, tmp_path)
    assert [epochs for _, epochs in found] == [1, 1, 1, 1, 3, 3, 9]
    assert found[-1][0] == {"width_multiplier": 1.0}


def test_a_bayesian_search_trains_no_combination_twice(tmp_path: Path) -> None:
    space = {"width_multiplier": (0.125, 0.25, 0.5, 1.0)}
    found = [str(values) for values, _ in values_of_a_search("bayesian", space, tmp_path)]
    assert len(found) == len(set(found)) == 4


@pytest.mark.parametrize(
    ("base", "space", "message"),
    [
        (BASE, {"train_scale": ((4, 4), (32, 40))}, "train_scale"),
        (
            BASE.replace(init="imagenet", width_multiplier=1.0, init_head="none"),
            {"configuration": ("C", "D"), "batch_norm": (False,)},
            "are published for weights='imagenet'",
        ),
    ],
)
def test_what_a_training_would_refuse_is_refused(base: Recipe, space: Space, message: str) -> None:
    model, refused = VGGHyperModel(base, space), []
    for values in next(iter(space.values())):
        hp = keras_tuner.HyperParameters()
        model.declare_hyperparameters(hp)
        name = hp.space[0].name
        hp.values[name] = values if isinstance(values, str) else json.dumps(values)
        try:
            model.recipe(hp)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) == 1
    assert message in refused[0]


@pytest.mark.slow
def test_a_spent_budget_says_why_trials_failed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the budget .* failed, the last: refused: .* parameters"):
        searched_in(tmp_path / "s", budget=2, max_trials=None, limits=NOTHING_FITS)


@pytest.mark.slow
def test_a_search_of_an_earlier_version_goes_on(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    shutil.copytree(searched, folder)
    stored = json.loads((folder / "search.json").read_text())
    del stored["recipe"]["distillation_temperature"]  # as if the field were new
    (folder / "search.json").write_text(json.dumps(stored))
    assert len(searched_in(folder)) == 2


def attempt(folder: Path, number: int, *curve: float, **facts: object) -> Attempt:
    options = {"parameters": 10, "epochs": 6, "at": number, "val_accuracy": max(curve)} | facts
    return Attempt(folder / f"trial_{number}", options.pop("values", {}), curve=curve, **options)


class _Model:
    stop_training = False


@pytest.mark.parametrize(
    ("mine", "others", "stopped"),
    [
        ([0.1, 0.2], 3, True),
        ([0.5, 0.2], 3, False),  # it was better once
        ([0.1, 0.2], 2, False),  # too few to tell
        ([0.1], 3, False),  # too early
        ([0.1] * 6, 3, True),  # stopped before its last epoch
    ],
)
def test_a_hopeless_trial_is_ended(
    mine: list, others: int, stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [attempt(tmp_path, n, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6) for n in range(others)]
    monkeypatch.setattr("keras_vgg.tuning.tuner.attempts", lambda _: there)
    folder = tmp_path / "trial_9"
    folder.mkdir()

    pruner = MedianPruner(tmp_path, folder, BASE.replace(epochs=6))
    pruner.set_model(_Model())
    pruner.on_train_begin()
    for epoch, accuracy in enumerate(mine):
        pruner.on_epoch_end(epoch, {"val_accuracy": accuracy})
        if pruner.model.stop_training:
            break
    assert pruner.model.stop_training == stopped == (folder / "pruned").exists()
    assert epoch < 5


def test_a_trial_is_compared_with_trials_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short trial ends with a low learning rate, and so is near its best accuracy."""
    there = [attempt(tmp_path, n, 0.3, 0.6, 0.9, epochs=3) for n in range(5)]
    monkeypatch.setattr("keras_vgg.tuning.tuner.attempts", lambda _: there)
    pruner = MedianPruner(tmp_path, tmp_path / "trial_9", BASE.replace(epochs=6))
    pruner.set_model(_Model())
    pruner.on_train_begin()
    for epoch in range(5):
        pruner.on_epoch_end(epoch, {"val_accuracy": 0.2})
    assert not pruner.model.stop_training


def test_the_later_epochs_are_not_a_contest_among_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two good ones came to their end, three poor ones were pruned; a middling one goes on."""
    there = [attempt(tmp_path, n, 0.5, 0.6, 0.7, 0.7, 0.8, 0.9) for n in range(2)]
    there += [attempt(tmp_path, n, 0.1, 0.2, pruned=True) for n in range(2, 5)]
    monkeypatch.setattr("keras_vgg.tuning.tuner.attempts", lambda _: there)
    pruner = MedianPruner(tmp_path, tmp_path / "trial_9", BASE.replace(epochs=6))
    pruner.set_model(_Model())
    pruner.on_train_begin()
    for epoch, accuracy in enumerate([0.3, 0.4, 0.5, 0.6, 0.7]):
        pruner.on_epoch_end(epoch, {"val_accuracy": accuracy})
        assert not pruner.model.stop_training


def test_the_front_is_what_no_smaller_one_equals(tmp_path: Path) -> None:
    sizes = [(30, 0.9), (10, 0.5), (20, 0.5), (15, 0.8), (40, 0.85), (10, 0.4)]
    found = [attempt(tmp_path, n, a, parameters=p) for n, (p, a) in enumerate(sizes)]
    assert [(a.parameters, a.val_accuracy) for a in pareto(found)] == [
        (10, 0.5),
        (15, 0.8),
        (30, 0.9),
    ]
    assert best(found).number == 0
    assert best([]) is None


@pytest.mark.slow
def test_what_decides_is_found_to_be_important(tmp_path: Path) -> None:
    found = [
        attempt(
            tmp_path,
            n,
            0.5 + 0.1 * (n % 2),
            values={"head": ("fc", "gap")[n % 2], "momentum": 0.1 * (n % 5)},
        )
        for n in range(20)
    ]
    shares = importances(found)
    assert [*shares] == ["head", "momentum"]
    assert shares["head"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(found[:7]) == {}


@pytest.mark.slow
def test_pruned_trials_are_compared_where_all_have_been(tmp_path: Path) -> None:
    found = []
    for n in range(20):
        good = n % 2 == 0
        curve = (0.6, 0.7, 0.8) if good else (0.3, 0.4)
        values = {"head": "gap" if good else "fc", "momentum": 0.1 * (n % 5)}
        found.append(attempt(tmp_path, n, *curve, values=values, pruned=not good))
    assert importances(found)["head"] > 0.9
    # At the second epoch all pruned ones were as good as the others.
    found = [
        attempt(
            tmp_path, n, 0.6, 0.7, *([0.8] if n % 2 else []), values={"x": n}, pruned=n % 2 == 0
        )
        for n in range(20)
    ]
    assert importances(found) == {}


def test_what_a_network_costs_is_known_without_building_it() -> None:
    parameters, megabytes = cost(BASE.replace(batch_norm=True), 10)
    options = {"width_multiplier": 1 / 16, "hidden_units": 8, "batch_norm": True}
    shape = {"input_shape": (32, 32, 3), "classes": 10}
    assert parameters == architecture.parameters("A", **options, **shape)
    rows = architecture.layers("A", **options, **shape)
    activations = sum(row.activations for row in rows if row.kind != "flatten")  # copies nothing
    assert megabytes == pytest.approx(4 * (3 * parameters + 2 * 32 * activations) / 1e6)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(parameters=1000), r"refused: 3\d,\d+ parameters, more than 1,000"),
        (Limits(memory_mb=0.5), r"refused: training needs \d+ MB, more than 0"),
        (Limits(latency_ms=1e-4), r"refused: .* ms an image, more than 0.0001"),
    ],
)
def test_what_is_over_a_limit_is_refused(limits: Limits, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"all 1 trials failed, the last: {reason}"):
        searched_in(tmp_path / "s", limits=limits, max_trials=1)
    assert not (tmp_path / "s" / "trial_0" / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:(currentThread|getName)\(\) is deprecated")
@pytest.mark.parametrize(
    "tuner",
    [keras_tuner.RandomSearch, keras_tuner.Hyperband],
)
def test_keras_tuners_own_tuners_take_the_hypermodel(
    tuner: type[keras_tuner.Tuner], tmp_path: Path
) -> None:
    space = {"head": ("fc", "gap"), "hidden_units": (4, 8)}
    hypermodel = VGGHyperModel(BASE, space, directory=tmp_path / "runs")
    options = {"max_epochs": 2} if tuner is keras_tuner.Hyperband else {"max_trials": 1}
    searcher = tuner(
        hypermodel, objective="val_accuracy", directory=tmp_path, project_name="t", **options
    )
    searcher.oracle.max_trials = 2
    searcher.search(verbose=0)
    trials = [t for t in searcher.oracle.trials.values() if t.score is not None]
    runs = {path.name: fit.Run.open(path) for path in (tmp_path / "runs").iterdir()}
    assert len(trials) == len(runs) == 2
    scores = [run.results["validation_accuracy"] for run in runs.values()]
    assert sorted(t.score for t in trials) == pytest.approx(sorted(scores))
    found = hypermodel.recipe(searcher.get_best_hyperparameters()[0])
    (run,) = [run for run in runs.values() if run.recipe == found]
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    (best,) = searcher.get_best_models()
    np.testing.assert_allclose(best.predict(images, verbose=0), run.model().predict(images), 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:(currentThread|getName)\(\) is deprecated")
@pytest.mark.parametrize(
    "options",
    [{"init_head": "none"}, {"freeze_until": "all"}, {"color": "grey"}],
    ids=["trained whole", "frozen", "grey"],
)
def test_a_tuners_best_model_has_the_preprocessing_of_its_start(
    tiny_run: fit.Run, options: dict, tmp_path: Path
) -> None:
    """The digits' mean and deviation are in the network's layers, not in its weights."""
    recipe = TINY.replace(init=str(tiny_run.directory), epochs=1, **options)
    hypermodel = VGGHyperModel(recipe, {"momentum": (0.8, 0.9)}, directory=tmp_path / "runs")
    searcher = keras_tuner.RandomSearch(
        hypermodel, "val_accuracy", max_trials=1, directory=tmp_path, project_name="t"
    )
    searcher.search(verbose=0)
    (folder,) = (tmp_path / "runs").iterdir()
    run = fit.Run.open(folder)
    channels = 1 if run.recipe.color == "grey" else 3
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, channels)).astype("float32")
    (best,) = searcher.get_best_models()
    first, expected = (network.get_layer("preprocessing") for network in (best, run.model()))
    assert first.get_config() == expected.get_config()
    np.testing.assert_allclose(
        best.predict(images, verbose=0), run.model().predict(images, verbose=0), rtol=1e-5
    )


def test_data_given_to_search_is_refused(tmp_path: Path) -> None:
    hypermodel = VGGHyperModel(BASE, SPACE, directory=tmp_path)
    with pytest.raises(ValueError, match="call search\\(\\) without data"):
        hypermodel.fit(keras_tuner.HyperParameters(), None, [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuner": "sobol"}, "unknown tuner 'sobol'; the tuners are random, bayesian"),
        ({"max_trials": 0}, "max_trials must be 1 or more, not 0"),
        ({"budget": 0}, "the budget must be more than 0 seconds"),
        ({"max_trials": None}, "give max_trials or a budget"),
        ({"space": {"momentum": (0.9,)}}, "nothing to search"),
        (
            {"tuner": "hyperband", "space": SPACE | {"epochs": (1, 2)}},
            "hyperband decides the epochs; leave epochs out of the space",
        ),
    ],
)
def test_wrong_arguments_leave_nothing(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        searched_in(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_some_of_the_variables_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    with pytest.raises(ValueError, match="needs KERASTUNER_ORACLE_PORT, KERASTUNER_TUNER_ID too"):
        searched_in(tmp_path / "s")


def test_another_search_and_other_files_are_refused(searched: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"another search .tuner is 'random' .* not 'grid'"):
        searched_in(searched, tuner="grid")
    with pytest.raises(ValueError, match=r"another search .seed"):
        searched_in(searched, seed=3)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a search"):
        searched_in(tmp_path)


def stub_training(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let each trial begin and end with an error, without training."""

    def train(self, recipe, directory, callbacks=(), verbose=0):
        next(one for one in callbacks if isinstance(one, _HParams)).on_train_begin()
        raise error

    monkeypatch.setattr(VGGHyperModel, "train", train)


def test_a_network_that_is_too_large_to_time_is_a_failed_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(VGGHyperModel, "build", exhausted)
    with pytest.raises(ValueError, match="all 2 trials failed"):
        searched_in(tmp_path / "s", limits=Limits(latency_ms=5))
    assert "the memory is too small" in attempts(tmp_path / "s")[0].reason


def test_none_is_a_value_for_tensorboard_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_training(monkeypatch, FailedTrialError("the stub has no network"))
    space = parse_space(["train_scale=none,32-36"])
    with pytest.raises(ValueError, match="all 2 trials failed, the last: the stub has no network"):
        searched_in(tmp_path / "s", tuner="grid", space=space)
    trials = attempts(tmp_path / "s")
    assert [trial.values["train_scale"] for trial in trials] == [None, "32-36"]
    assert {trial.state for trial in trials} == {"failed"}


@pytest.mark.slow
def test_a_refused_trial_has_its_values_as_other_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_training(monkeypatch, FailedTrialError("the stub has no network"))
    space = {"train_scale": (None, (32, 34)), "unmixed_epochs": (0, 2), "epochs": (1, 2)}
    with pytest.raises(ValueError, match="all 8 trials failed"):
        searched_in(tmp_path / "s", LONGER, tuner="grid", space=space, max_trials=8)
    trials = attempts(tmp_path / "s")
    refused = [dict(trial.values) for trial in trials if "unmixed_epochs (2)" in str(trial.reason)]
    expected = {"unmixed_epochs": 2, "epochs": 1}
    assert len(refused) == 2
    assert all({"train_scale": scale, **expected} in refused for scale in (None, "32-34"))


def test_a_search_keeps_to_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume from another folder, or of images that have changed, would compare other things."""
    stub_training(monkeypatch, FailedTrialError("the stub has no network"))
    for folder in ("here", "there"):
        for number in range(24):
            path = tmp_path / folder / "photos" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    recipe = BASE.replace(source="folder:photos", validation_fraction=0.2, test_fraction=0.2)
    space = {"learning_rate": (0.01, 0.02)}

    def search_from(folder: str, message: str) -> None:
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(ValueError, match=message):
            searched_in(tmp_path / "s", recipe, space=space)

    search_from("here", "all 2 trials failed")
    search_from("there", "holds another search .recipe is")
    search_from("here", "all 2 trials failed")
    (tmp_path / "here" / "photos" / "a" / "0.png").unlink()
    search_from("here", r"the images of folder:.*photos have changed since the search in .* began")


def test_a_search_with_a_path_in_its_space_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_training(monkeypatch, FailedTrialError("the stub has no network"))
    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    recipe = BASE.replace(validation_fraction=0.2, test_fraction=0.2)
    space = {"source": ("folder:photos",), "learning_rate": (0.01, 0.02)}
    for _ in range(2):
        with pytest.raises(ValueError, match="all 2 trials failed"):
            searched_in(tmp_path / "s", recipe, space=space)


def test_an_unknown_error_ends_the_search_and_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_training(monkeypatch, TypeError("no such option"))
    with pytest.raises(RuntimeError, match="trial 0 ended with TypeError: no such option; correct"):
        searched_in(tmp_path / "s")
    (trial,) = attempts(tmp_path / "s")
    assert (trial.state, trial.reason) == ("failed", "TypeError: no such option")
    # When the cause is corrected, the trial begins again.
    stub_training(monkeypatch, FailedTrialError("the stub has no network"))
    with pytest.raises(ValueError, match="all 2 trials failed"):
        searched_in(tmp_path / "s")
    assert [trial.number for trial in attempts(tmp_path / "s")] == [0, 1]
    assert {trial.reason for trial in attempts(tmp_path / "s")} == {"the stub has no network"}


GRID = {"momentum": (0.8, 0.9), "label_smoothing": (0.0, 0.1)}


def grid_values(workdir: Path, trials: int, max_trials: int | None = None) -> list[dict]:
    """Search a grid by trials that are refused; require this number of trials, all different."""
    options = {"tuner": "grid", "space": GRID, "limits": NOTHING_FITS, "max_trials": max_trials}
    with pytest.raises(ValueError, match=f"all {trials} trials failed"):
        searched_in(workdir, **options)
    values = [dict(trial.values) for trial in attempts(workdir)]
    assert len({tuple(one.values()) for one in values}) == len(values) == trials
    return values


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "place", ["run_trial", pytest.param("pre_create_trial", marks=pytest.mark.slow)]
)
def test_a_stopped_grid_goes_on_with_the_other_combinations(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = grid_values(tmp_path / "whole", 4)
    calls = []
    original = getattr(RunTuner, place)

    def stop_at_the_third(self: RunTuner, *arguments: object, **options: object) -> object:
        calls.append(place)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(RunTuner, place, stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        grid_values(tmp_path / "stopped", 4)
    assert len(attempts(tmp_path / "stopped")) == 2
    assert grid_values(tmp_path / "stopped", 4) == whole
    assert grid_values(tmp_path / "stopped", 4) == whole


@pytest.mark.slow
def test_a_grid_takes_more_trials_later(tmp_path: Path) -> None:
    first = grid_values(tmp_path / "s", 2, max_trials=2)
    assert grid_values(tmp_path / "s", 3, max_trials=3)[:2] == first
    assert grid_values(tmp_path / "s", 4)[:2] == first


@pytest.mark.slow
def test_a_grid_with_a_conditional_field_goes_on(tmp_path: Path) -> None:
    space = {"head": ("gap", "fc"), "hidden_units": (4, 8), "batch_norm": (True, False)}
    options = {"tuner": "grid", "space": space, "limits": NOTHING_FITS}
    for trials in (1, 3, 6):
        with pytest.raises(ValueError, match=f"all {trials} trials failed"):
            searched_in(tmp_path / "s", **options, max_trials=trials if trials < 6 else None)
    values = [tuple(trial.values.items()) for trial in attempts(tmp_path / "s")]
    assert len(set(values)) == 6


@pytest.mark.parametrize("name", [".", "inner/.."])
def test_the_current_folder_is_a_folder_for_a_search(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="all 2 trials failed"):
        searched_in(Path(name), limits=NOTHING_FITS)
    assert len(attempts(tmp_path)) == 2
    assert not (tmp_path / "untitled_project").exists()


def test_the_command_gives_each_limit_its_own_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict = {}
    monkeypatch.setattr(
        "keras_vgg.tuning.search", lambda *_, **options: asked.update(options) or []
    )
    command = ["tune", "--workdir", str(tmp_path / "s"), "--max-parameters", "5"]
    command += ["--max-memory-mb", "6", "--max-latency-ms", "7", "--prune", "False"]
    assert cli.main(command) == cli.OK
    assert asked["limits"] == Limits(parameters=5, memory_mb=6, latency_ms=7)
    assert asked["prune"] is False


@pytest.mark.parametrize("value", [0, -1])
def test_limits_are_positive(value: float) -> None:
    with pytest.raises(ValueError, match="latency_ms must be more than 0"):
        Limits(latency_ms=value)


def test_the_command(
    tiny_run: fit.Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training gives a copy of `tiny_run`; other tests train in a search."""

    def copied(recipe: Recipe, directory: Path, verbose: int, callbacks: object = ()) -> fit.Run:
        run = fit.Run(Path(shutil.copytree(tiny_run.directory, directory)), recipe)
        run.write_recipe()
        return run

    monkeypatch.setattr(fit, "fit", copied)
    recipe = tmp_path / "tiny.py"
    recipe.write_text(f"from keras_vgg.recipe import Recipe\nRECIPE = {BASE!r}\n")
    arguments = ["tune", recipe, "--workdir", tmp_path / "s", "--only"]  # by Hyperband
    arguments += ["--max-trials", 1, "--budget", "1h", "--space", "head=fc,gap", "epochs=1"]
    assert cli.main([*map(str, arguments)]) == cli.OK
    out = capsys.readouterr().out
    assert "trial 0 done: " in out
    assert "left\n" in out
    assert "best of 1 trials: 0, validation accuracy" in out
    assert str(tmp_path / "s" / "best_recipe.py") in out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "soon"], "--budget must be a time such as 90s, 30m or 2h, not 'soon'"),
        (["--space", "lr=1,2"], "no field 'lr' to search"),
        (["--space", "dropout=0.5:0.1"], "dropout=0.5:0.1: the range from 0.5 to 0.1 is empty"),
        (["--tuner", "sobol"], "sobol"),
        (["--tuner", "random"], "give max_trials or a budget"),
        (["missing.py"], "missing.py"),
    ],
)
def test_bad_input_to_the_command(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["tune", *arguments, "--workdir", str(tmp_path / "s")]) == cli.BAD_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_line_says_why_a_trial_failed(tmp_path: Path) -> None:
    failed = attempt(
        tmp_path, 3, 0.1, val_accuracy=None, reason="the loss is not a number", seconds=2
    )
    assert trial_line(failed) == "trial 3 failed: the loss is not a number, 1 of 6 epochs, 2 s"


def test_values_without_an_order_are_drawn(tmp_path: Path) -> None:
    values = [None, "auto", 36, 0.5]
    trials = [attempt(tmp_path, i, 0.5, values={"scale": v}) for i, v in enumerate(values)]
    plot_parallel(["scale"], trials, tmp_path / "parallel.png")
    assert (tmp_path / "parallel.png").stat().st_size > 5000


@pytest.mark.slow
def test_values_that_do_not_go_together_are_trials_that_are_refused(tmp_path: Path) -> None:
    space = {"class_weights": ("none", "balanced"), "sampling": ("uniform", "balanced")}
    found = search(BASE.replace(epochs=1), tmp_path / "s", tuner="grid", space=space, max_trials=4)
    assert len(found) == 4
    assert [a.state for a in found].count("refused") == 1
    (refused,) = (a for a in found if a.state == "refused")
    assert refused.values == {"class_weights": "balanced", "sampling": "balanced"}

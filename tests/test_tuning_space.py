"""What a search varies: ranges and choices become hyperparameters, and these a recipe."""

from __future__ import annotations

import keras_tuner
import pytest

from keras_vgg.recipe import Recipe
from keras_vgg.tuning import Range, VGGHyperModel, default_space, parse_space, space_around
from keras_vgg.tuning.space import declare, resolve

BASE = Recipe()


def drawn(space: dict, **values: object) -> Recipe:
    recipe, searched = resolve(BASE, space)
    hp = keras_tuner.HyperParameters()
    declare(hp, recipe, searched)
    hp.values.update(values)
    return declare(hp, recipe, searched)


def test_hyperparameters_are_called_as_fields_and_begin_at_the_recipes_values() -> None:
    recipe, searched = resolve(BASE, default_space(BASE))
    hp = keras_tuner.HyperParameters()
    found = declare(hp, recipe, searched)
    assert {parameter.name for parameter in hp.space} == searched.keys()
    assert hp.values["learning_rate"] == BASE.learning_rate
    assert hp.values["dropout"] == BASE.dropout
    assert isinstance(found, Recipe)


def test_every_draw_of_the_default_space_is_a_recipe() -> None:
    recipe, searched = resolve(BASE, default_space(BASE))
    hp = keras_tuner.HyperParameters()
    declare(hp, recipe, searched)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("val_accuracy", "max"), hyperparameters=hp, seed=1
    )
    seen = []
    for trial in range(40):
        values = oracle.populate_space(str(trial))["values"]
        drawn_hp = hp.copy()
        drawn_hp.values = values
        seen.append(declare(drawn_hp, recipe, searched))
        assert ("hidden_units" in values) == (seen[-1].head == "fc")
    assert {r.configuration for r in seen} == set("ABCDE")
    assert {r.batch_size for r in seen} == {32, 64, 128}
    assert {type(r.train_scale) for r in seen} == {tuple}
    assert all(0.003 <= r.learning_rate <= 0.3 for r in seen)
    assert {r.hue for r in seen} <= {0.0, 0.02, 0.04, 0.06, 0.08, 0.1}


@pytest.mark.parametrize(
    ("changes", "fixed", "batch_sizes"),
    [
        ({"init": "imagenet"}, True, (32, 64, 128)),
        ({"init": "imagenet", "head": "gap", "init_head": "probe"}, True, (32, 64, 128)),
        ({"filters": (8, 8, 8, 8, 8, 8, 8, 8)}, True, (32, 64, 128)),
        ({"initialization": "a/run"}, True, (32, 64, 128)),
        ({"crop_area": (0.3, 1.0)}, False, (32, 64, 128)),
        ({"batch_size": 192, "gradient_accumulation": 64}, False, (64, 128)),
        ({"batch_size": 30, "gradient_accumulation": 3}, False, None),
    ],
)
def test_the_default_space_leaves_what_the_recipe_decides(
    changes: dict, fixed: bool, batch_sizes: tuple | None, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "run").mkdir(parents=True)
    (tmp_path / "a" / "run" / "recipe.json").write_text(Recipe().to_json())
    base = Recipe(warmup_epochs=0).replace(**changes)
    recipe, searched = resolve(base, default_space(base))
    assert ("configuration" not in searched) == fixed
    assert ("head" not in searched) == fixed
    assert searched.get("batch_size") == batch_sizes
    assert (recipe.batch_size, recipe.filters) == (base.batch_size, base.filters)
    assert ("train_scale" in searched) == (base.crop_area is None)


def test_a_short_trial_has_no_restart_after_its_end() -> None:
    recipe = BASE.replace(epochs=30, restart_epochs=(3, 10), restart_rates=(0.05, 0.01))
    model = VGGHyperModel(recipe, {"dropout": (0.1, 0.2)})
    hp = keras_tuner.HyperParameters()
    model.declare_hyperparameters(hp)
    short = model.recipe(hp, epochs=4)
    assert (short.restart_epochs, short.restart_rates) == ((3,), (0.05,))
    assert model.recipe(hp).restart_epochs == (3, 10)


def test_evaluation_follows_the_training_scales() -> None:
    space = {"train_scale": ((32, 36), (32, 48))}
    assert drawn(space, train_scale="[32, 48]").eval_scale == 40
    assert drawn({**space, "eval_scale": (32, 34)}, train_scale="[32, 48]").eval_scale == 32
    assert drawn({**space, "eval_scale": (34,)}, train_scale="[32, 48]").eval_scale == 34


def test_weights_of_classes_are_one_value() -> None:
    weights = "cat=2,dog=0.5"
    assert parse_space([f"class_weights={weights}"]) == {"class_weights": (weights,)}
    assert parse_space(["class_weights=none,balanced"]) == {"class_weights": ("none", "balanced")}


def test_a_single_choice_is_set_and_not_searched() -> None:
    recipe, searched = resolve(BASE, {"epochs": (3,), "momentum": (0.8, 0.9)})
    assert recipe.epochs == 3
    assert searched.keys() == {"momentum"}
    recipe, searched = resolve(BASE, {"head": ("gap",), "hidden_units": (8, 16), "epochs": (1, 2)})
    assert (recipe.head, searched.keys()) == ("gap", {"epochs"})


@pytest.mark.parametrize("optimizers", [("sgd", "adamw"), ("adamw", "sgd"), ("adamw",)])
def test_values_that_need_another_value_of_another_field(optimizers: tuple) -> None:
    space = {"optimizer": optimizers, "learning_rate": Range(0.001, 0.1, log=True)}
    model = VGGHyperModel(BASE, space)
    hp = keras_tuner.HyperParameters()
    model.declare_hyperparameters(hp)
    hp.values |= {"learning_rate": 0.002, "optimizer": "adamw"}
    recipe = model.recipe(hp)
    assert (recipe.optimizer, recipe.learning_rate) == ("adamw", 0.002)


def test_values_that_go_only_with_the_recipe_or_only_with_each_other() -> None:
    space = {"class_weights": ("balanced", "none"), "sampling": ("balanced", "uniform")}
    assert VGGHyperModel(BASE, space).space == space
    VGGHyperModel(BASE, space).declare_hyperparameters(keras_tuner.HyperParameters())


def test_integers_of_a_range() -> None:
    recipe = drawn({"batch_size": Range(16, 64, step=16)}, batch_size=48)
    assert recipe.batch_size == 48
    assert isinstance(recipe.batch_size, int)


@pytest.mark.parametrize(
    ("low", "high", "step", "count"), [(0, 0.6, 0.1, 7), (0, 0.15, 0.05, 4), (0, 0.5, 0.2, 3)]
)
def test_the_steps_of_a_range_reach_its_end(
    low: float, high: float, step: float, count: int
) -> None:
    space = {"dropout": Range(low, high, step=step)}
    hp = keras_tuner.HyperParameters()
    VGGHyperModel(BASE.replace(dropout=0.3), space).declare_hyperparameters(hp)
    (dropout,) = hp.space
    assert dropout.values == [round(i * step, 12) for i in range(count)]
    # A value of the recipe that is no step is no value of the search.
    assert dropout.default == (0.3 if 0.3 in dropout.values else 0.0)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("learning_rate=0.01:0.3:log", Range(0.01, 0.3, log=True)),
        ("hue=0:0.1:0.02", Range(0, 0.1, step=0.02)),
        ("dropout=0:0.5", Range(0, 0.5)),
        ("batch_size=32,64", (32, 64)),
        ("configuration=A,A-LRN", ("A", "A-LRN")),
        ("train_scale=none,32-40", (None, (32, 40))),
        ("auto_augment=None,trivial", ("none", "trivial")),
        ("class_weights=none,balanced", ("none", "balanced")),
        ("batch_norm=true,False", (True, False)),
        ("source=folder:photos", ("folder:photos",)),
        ("train_split=train[:10%]", ("train[:10%]",)),
        ("bit_depth=12,16,stretch", ("12", "16", "stretch")),
        ("data_dir=none,2024,2024-25", (None, "2024", "2024-25")),
    ],
)
def test_text(entry: str, expected: object) -> None:
    assert [*parse_space([entry]).values()] == [expected]


def test_a_pair_or_none_is_given_back_as_it_was() -> None:
    space = {"train_scale": (None, (32, 40))}
    assert drawn(space, train_scale="null").train_scale is None
    assert drawn(space, train_scale="[32, 40]").train_scale == (32, 40)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"lerning_rate": (1, 2)},
            "no field 'lerning_rate' to search; did you mean 'learn",
        ),
        ({"seed": (1, 2)}, "seed cannot be searched"),
        ({"source": ("digits", "mnist")}, "source cannot be searched"),
        ({"momentum": ()}, "momentum has no choices"),
        ({"head": Range(1, 2)}, "head is not a number"),
        ({"momentum": (0.9, 2.0)}, "momentum"),
        ({"configuration": ("A", "Z")}, "Z"),
        ({"dropout": Range(0.5, 1.5)}, "dropout"),
        ({"momentum": (0.9,)}, "nothing to search"),
        ({"head": ("gap",), "hidden_units": (1, 2)}, "nothing to search"),
        ({"hidden_units": Range(64, 256, step=0.5)}, "the step must be whole too, not 0.5"),
        ({"hidden_units": Range(64, 256, step=2.5)}, "the step must be whole too, not 2.5"),
        ({"optimizer": ("sgd", "adamw"), "momentum": (0.8, 0.9)}, "give optimizer='adamw' its own"),
    ],
)
def test_wrong_spaces(space: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(BASE, space)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 2, "high": 1}, "from 2 to 1 is empty"),
        ({"low": 1, "high": 1}, "is empty"),
        ({"low": 0, "high": 1, "log": True}, "must begin above 0"),
        ({"low": 0, "high": 1, "step": 2}, "step of 2"),
        ({"low": 1, "high": 2, "step": 0.1, "log": True}, "step of 0.1"),
    ],
)
def test_wrong_ranges(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Range(**arguments)


@pytest.mark.parametrize("entry", ["dropout", "=1", "dropout=", "dropout=a:b", "dropout=1:0"])
def test_wrong_text(entry: str) -> None:
    with pytest.raises(ValueError, match=entry):
        parse_space([entry])


def test_the_default_space_has_the_rates_and_decays_of_the_optimizer() -> None:
    recipe = Recipe(optimizer="adamw", learning_rate=0.001, momentum=0.95)
    space = default_space(recipe)
    assert space["learning_rate"] == Range(1e-4, 1e-2, log=True)
    assert space["weight_decay"] == Range(1e-3, 0.3, log=True)
    base, searched = resolve(recipe, space)
    assert base.momentum == 0.95
    assert "momentum" not in searched


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"image_size": (64,)}, {"train_scale": ((64, 64), (64, 80), (72, 96))}),
        ({"image_size": (32, 64)}, {"train_scale": None}),
        ({"optimizer": ("adamw",)}, {"learning_rate": Range(1e-4, 1e-2, log=True)}),
        ({"optimizer": ("adamw",), "learning_rate": (0.002,)}, {"learning_rate": (0.002,)}),
        ({"init": ("imagenet",)}, {"width_multiplier": None, "head": None}),
        ({"gradient_accumulation": (64,)}, {"batch_size": [64, 128]}),
        ({"head": ("gap", "conv")}, {"head": ("gap", "conv"), "momentum": (0.8, 0.9, 0.95)}),
        ({"crop_area": (3,)}, {"crop_area": (3,), "dropout": Range(0.0, 0.6, step=0.1)}),  # wrong
    ],
)
def test_the_default_space_suits_what_is_set(space: dict, expected: dict) -> None:
    found = space_around(BASE, space)
    assert {name: found.get(name) for name in expected} == expected

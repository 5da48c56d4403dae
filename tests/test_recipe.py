"""Recipes: values, files, and what is wrong with them."""

from pathlib import Path

import pytest

from keras_vgg import recipe_checks
from keras_vgg.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "training" / "recipes").glob("*.py"))


def test_scales_follow_the_image_size_unless_they_are_given() -> None:
    recipe = Recipe()
    assert (recipe.train_scale_range, recipe.eval_scale_side) == ((32, 40), 36)
    large = recipe.replace(image_size=224)
    assert (large.train_scale_range, large.eval_scale_side) == ((224, 280), 252)
    given = large.replace(train_scale=(256, 512), eval_scale=None)
    assert (given.train_scale_range, given.eval_scale_side) == ((256, 512), None)
    assert Recipe.from_json(large.to_json()) == large
    # A run of an earlier version has the numbers.
    assert recipe.replace(train_scale=(32, 40), eval_scale=36).differences(recipe) == {}


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"train_scale": (32, 40)}, "train_scale begins at 32, below image_size .64."),
        ({"eval_scale": 60}, "eval_scale begins at 60, below image_size .64."),
    ],
)
def test_scales_that_leave_a_frame_are_refused_in_training(
    scales: dict[str, object], message: str
) -> None:
    recipe = Recipe(image_size=64, **scales)
    with pytest.raises(ValueError, match=message):
        recipe_checks.require_no_frames(
            recipe.image_size, recipe.train_scale_range, recipe.eval_scale_side
        )


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "vgg.h5").touch()
    for name in ("he_normal", "glorot", "imagenet", "run1"):
        (tmp_path / name).mkdir()
    (tmp_path / "vgg.h5").touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "own.h5").touch()
    for given, expected in (
        ({"source": "folder:pics"}, {"source": f"folder:{tmp_path / 'pics'}"}),
        ({"source": "folder:../x:y/"}, {"source": f"folder:{tmp_path.parent / 'x:y'}"}),
        ({"source": "records:~/a"}, {"source": f"records:{tmp_path / 'home' / 'a'}"}),
        ({"source": "idx:./mnist"}, {"source": f"idx:{tmp_path / 'mnist'}"}),
        ({"data_dir": "tfds"}, {"data_dir": str(tmp_path / "tfds")}),
        ({"init": "files/vgg.h5"}, {"init": str(tmp_path / "files" / "vgg.h5")}),
        ({"init": "vgg.h5"}, {"init": str(tmp_path / "vgg.h5")}),
        ({"init": "run1"}, {"init": str(tmp_path / "run1")}),
        ({"init": "~/own.h5"}, {"init": str(tmp_path / "home" / "own.h5")}),
        ({"initialization": "run1"}, {"initialization": str(tmp_path / "run1")}),
        ({"initialization": "./glorot"}, {"initialization": str(tmp_path / "glorot")}),
        ({"initialization": "./files"}, {"initialization": str(tmp_path / "files")}),
    ):
        absolute = Recipe(**given).with_absolute_paths()
        assert absolute == Recipe(**expected)
        assert absolute.with_absolute_paths() == absolute
    for same in (
        {},
        {"source": "fashion_mnist"},
        {"source": "digits"},
        {"init": "imagenet"},
        {"init": "hf://OWNER/NAME"},
        {"init": "no_such_file.h5"},
        {"initialization": "he_normal"},
        {"initialization": "glorot"},
        {"initialization": "normal:0.01"},
        {"source": "folder:/data/pics"},
    ):
        assert Recipe(**same).with_absolute_paths() == Recipe(**same)


def test_json_round_trip():
    recipe = Recipe(step_epochs=(3, 5), mean_rgb=(1.0, 2.0, 3.0), train_scale=None)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_whole_numbers_are_floats_where_floats_are_meant():
    assert Recipe(learning_rate=1) == Recipe(learning_rate=1.0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_of_the_repository_are_records(path):
    recipe = load_recipe(path)
    assert isinstance(recipe, Recipe)
    text = path.read_text()
    for word in ("command:", "hardware:", "result:"):
        assert word in text


def test_a_recipe_file_states_what_differs(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from keras_vgg.recipe import Recipe\nRECIPE = Recipe(epochs=7)\n")
    assert Recipe().differences(load_recipe(path)) == {"epochs": (Recipe().epochs, 7)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eopchs": 3}, "no field 'eopchs'; did you mean 'epochs'"),
        ({"epochs": 0}, r"epochs must be in \[1, 1e\+06\], not 0"),
        ({"epochs": 2.5}, "epochs must be int, not 2.5"),
        ({"head": "mlp"}, "head must be one of fc, conv, gap, not 'mlp'"),
        ({"configuration": "F"}, "unknown VGG configuration 'F'"),
        ({"image_size": 28}, r"image_size must be in \[32"),
        ({"batch_norm": 1}, "batch_norm must be True or False, not 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be in"),
        ({"learning_rate": "fast"}, "learning_rate must be float, not 'fast'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"hue": 0.6}, "hue must be in"),
        ({"train_scale": (40, 32)}, "train_scale must be two rising whole numbers"),
        ({"train_scale": (32,)}, "train_scale must be two rising"),
        ({"train_scale": (32.5, 40)}, "train_scale must be"),
        ({"std_rgb": (1.0, 0.0, 1.0)}, "std_rgb must be positive"),
        ({"mean_rgb": (1.0,)}, "mean_rgb must be three numbers"),
        ({"schedule": "step"}, "needs step_epochs"),
        ({"step_epochs": (5, 3)}, "step_epochs must rise"),
        ({"warmup_epochs": 30.0}, "warmup_epochs .30. is more than epochs .20."),
        ({"learning_rate": 10**400}, "learning_rate is too large: a number of more than 20 digits"),
        ({"epochs": 10**4000}, r"epochs must be in .* not a number of more than 20 digits"),
        ({"train_scale": (10**30, 10**30)}, "train_scale must be two rising whole numbers up to"),
        ({"train_scale": (32, 8193)}, "up to 8192, not .32, 8193."),
        ({"initialization": "constant"}, "gives every unit the same weights"),
        ({"initialization": "Zeros"}, "gives every unit the same weights"),
        ({"mean_rgb": (1e39, 0, 0)}, r"mean_rgb must be three numbers in \[-10000, 10000\]"),
        ({"mean_rgb": (10**400, 0, 0)}, "mean_rgb must be three numbers in"),
        ({"std_rgb": (1e-300,) * 3}, r"std_rgb must be three numbers in \[0.001, 10000\]"),
        ({"std_rgb": (float("nan"),) * 3}, "std_rgb must be positive"),
        ({"step_epochs": (-5, 3)}, r"step_epochs must be in \[1, 1e\+06\]"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adamw, muon, not 'adam'"),
        ({"optimizer": "SGD"}, "optimizer must be one of"),
        ({"optimizer": 1}, "optimizer must be one of sgd, adamw, muon, not 1"),
        ({"optimizer": "adamw"}, "learning_rate=0.05 is the default, .* optimizer='adamw' its own"),
        ({"optimizer": "muon"}, "optimizer='muon' its own, such as 0.001"),
        (
            {"optimizer": "adamw", "learning_rate": 0.001, "nesterov": True},
            "nesterov=True is for optimizer 'sgd' or 'muon', not 'adamw'",
        ),
        ({"clip_norm": -1.0}, r"clip_norm must be in \[0, 1e\+06\], not -1"),
        ({"clip_norm": "big"}, "clip_norm must be float, not 'big'"),
        ({"clip_norm": float("nan")}, "clip_norm must be in"),
        ({"ema_momentum": 1.0}, r"ema_momentum must be in \[0, 1\), not 1.0"),
        ({"ema_momentum": -0.5}, r"ema_momentum must be in"),
        ({"ema_momentum": True}, "ema_momentum must be float, not True"),
        ({"filters": (4, 4)}, "filters needs 8 numbers for configuration A.* it has 2"),
        ({"filters": (4.5,) * 8}, "filters must be"),
        ({"filters": 4}, "filters must be"),
        ({"teachers": "runs/a"}, r"teachers must be tuple\[str, ...\], not 'runs/a'"),
        ({"teachers": (1,)}, "teachers must be"),
        ({"teachers": None}, "teachers must be"),
        ({"distillation_weight": 1.5}, r"distillation_weight must be in \[0, 1\], not 1.5"),
        ({"distillation_weight": -1}, "distillation_weight must be in"),
        ({"distillation_weight": "half"}, "distillation_weight must be float"),
        ({"distillation_temperature": 0}, r"distillation_temperature must be in \[0.1, 100\]"),
        ({"distillation_temperature": 1e3}, "distillation_temperature must be in"),
        ({"distillation_temperature": None}, "distillation_temperature must be float"),
        ({"unmixed_epochs": -1}, "unmixed_epochs must be in"),
        ({"unmixed_epochs": 1.5}, "unmixed_epochs must be int, not 1.5"),
        ({"unmixed_epochs": 21}, "unmixed_epochs .21. is more than epochs .20."),
    ],
    ids=str,
)
def test_bad_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe().replace(**changes)


IMPORT = "from keras_vgg import Recipe\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = 1", "defines no RECIPE"),
        ("a.py", "\nx = (", r"line 2, 'x = \(': '\(' was never closed"),
        (
            "a.py",
            "import nowhere_at_all",
            "cannot be run: line 1, 'import nowhere_at_all': No module",
        ),
        ("a.py", "1 / 0", "cannot be run: line 1, '1 / 0': ZeroDivisionError: division"),
        ("a.py", f"{IMPORT}r = Recipe()", "defines no RECIPE = .*; rename 'r' to RECIPE"),
        ("a.py", "RECIPE = {'epochs': 3}", "its RECIPE is of type dict"),
        ("a.py", f"{IMPORT}RECIPE = Recipe", "its RECIPE is the class Recipe"),
        (
            "a.py",
            "RECIPE = Recipe()",
            "'Recipe' is not defined; write first: from keras_vgg import",
        ),
        ("a.py", f"{IMPORT}RECIPE = Recip()", "did you mean 'Recipe'"),
        ("a.py", "from keras_vgg import Recip", "line 1, .*did you mean 'Recipe'"),
        ("a.py", "from keras_vg import Recipe", "line 1, .*did you mean 'keras_vgg'"),
        ("a.py", f"{IMPORT}RECIPE = Recipe(eopchs=3)", "line 2, .*'eopchs'; did you mean 'epochs'"),
        ("a.py", f"{IMPORT}RECIPE = Recipe(Epochs=3)", "did you mean 'epochs'"),
        ("a.py", f"{IMPORT}RECIPE = Recipe(\n  seed=1,\n  eopchs=3,\n)", "line 4, 'eopchs=3,'"),
        (
            "a.py",
            f"{IMPORT}RECIPE = Recipe(\n  seed=1,\n  head='mlp',\n)",
            "line 4, .*one of fc, conv",
        ),
        ("a.py", f"{IMPORT}RECIPE = Recipe().replace(\n  eopchs=3)", "line 3, .*did you mean"),
        ("a.py", f"{IMPORT}RECIPE = Recipe().replase()", "line 2, .*did you mean 'replace'"),
        ("a.py", "def f():\n  return 1 / 0\nf()", "line 2, 'return 1 / 0'"),
        ("a.py", "if True:\nx = 1", "line 2, 'x = 1': expected an indented block"),
        ("a.py", "import sys\nsys.exit(3)", "line 2, .*it ends the program"),
        ("a.py", "x = '\0'", "null bytes"),
        ("a.txt", "", "is a .py or .json file"),
        ("a.json", "{", r"a\.json: .*JSON cannot be read: .*line 1"),
        ("a.json", "[1]", "must be an object"),
        ("a.json", '{"colour": 1}', "no field 'colour'"),
        ("a.json", '{"self": 1}', "no field 'self'"),
        ("a.json", "[" * 100_000, "JSON cannot be read"),
        ("a.json", '{"epochs": ' + "9" * 5000 + "}", "JSON cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_a_fault_in_another_file_names_both(tmp_path):
    (tmp_path / "base.py").write_text(f"{IMPORT}RECIPE = Recipe(epochs=0)")
    path = tmp_path / "mine.py"
    path.write_text(
        f"import keras_vgg\nRECIPE = keras_vgg.load_recipe({str(path.parent)!r} + '/base.py')"
    )
    with pytest.raises(
        ValueError, match=r"mine\.py .*line 2, .*base\.py .*line 2, .*epochs must be"
    ):
        load_recipe(path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.py").write_bytes(b"x = '\xe9'\n")
    (tmp_path / "a.json").write_bytes(b'{"source": "\xe9"}')
    for name in ("a.py", "a.json"):
        with pytest.raises(ValueError, match=rf"{name}.*utf-8"):
            load_recipe(tmp_path / name)


def test_a_run_directory_is_not_a_recipe(tmp_path):
    (tmp_path / "recipe.json").write_text(Recipe().to_json())
    with pytest.raises(FileNotFoundError, match=r"the recipe of this run is .*recipe\.json"):
        load_recipe(tmp_path)


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"no recipe at nowhere\.py"):
        load_recipe("nowhere.py")


@pytest.mark.parametrize(
    "value", ["x" * 200_000, [[0]] * 9_000, [10**5000]], ids=["text", "list", "number"]
)
def test_a_large_value_is_named_in_a_short_message(value):
    for field in ("epochs", "head", "batch_norm", "devices", "step_epochs", "configuration"):
        with pytest.raises(ValueError, match=field) as raised:
            Recipe(**{field: value})
        assert len(str(raised.value)) < 300
    with pytest.raises(ValueError, match="has no field 'xxx"):
        Recipe.from_json('{"' + "x" * 200_000 + '": 1}')

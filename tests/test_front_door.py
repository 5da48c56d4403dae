"""What a stranger's tools know of the package: names, types, arguments."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import keras_vgg
from keras_vgg import dense, perceptual, weights
from keras_vgg.features import feature_extractor

RIGHT = """
import keras
import keras_vgg
from keras_vgg import VGG19, Recipe, Run, train, vgg
from keras_vgg.weights import Checkpoint

model: keras.Model = VGG19(weights=None, classes=10)
small: keras.Model = vgg("D", weights=None, batch_norm=True)
run: Run = train(Recipe(epochs=1), "runs/digits")
keras_vgg.dense.unet("D", weights=None)
"""

# Each line is one error.
WRONG = {
    "from keras_vgg import VGG17": "VGG17",
    "from keras_vgg.weights import checkpoint_of": "checkpoint_of",
    "VGG19(wieghts=None)": "wieghts",
    'VGG19(classes="ten")': "classes",
    'train("runs/digits")': "workdir",
}


def imported_for_type_checkers(module) -> dict[str, str]:
    """Name -> the module that has it, of each import below `if TYPE_CHECKING`; "": a module."""
    tree = ast.parse(Path(module.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module.removeprefix(module.__name__).removeprefix(".")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("module", [keras_vgg, weights])
def test_what_a_type_checker_reads_is_what_runs(module):
    imported = imported_for_type_checkers(module)
    modules = [name for name, home in imported.items() if not home]
    assert modules == list(getattr(module, "_MODULES", ()))
    assert {name: home for name, home in imported.items() if home} == module._HOMES
    assert set(module.__all__) - {"__version__"} == set(module._HOMES)


@pytest.mark.slow
def test_a_type_checker_sees_the_wrong_uses_and_no_others(tmp_path):
    consumer = tmp_path / "consumer.py"
    consumer.write_text(RIGHT + "\n".join(WRONG) + "\n")
    # An editable install is a hook that a type checker does not run.
    root = str(Path(keras_vgg.__file__).parents[1])
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [root]}))
    first = RIGHT.count("\n") + 1
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--level", "error"]
    command += ["--pythonpath", sys.executable, str(consumer)]
    # Outside the repository, whose settings would apply.
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    errors = {
        error["range"]["start"]["line"] + 1: error["message"]
        for error in json.loads(done.stdout)["generalDiagnostics"]
    }
    assert sorted(errors) == [first + i for i in range(len(WRONG))], errors
    for line, word in zip(sorted(errors), WRONG.values(), strict=True):
        assert word in errors[line]


def test_a_builder_explains_each_of_its_arguments():
    text = inspect.getdoc(keras_vgg.VGG19)
    assert text.startswith("Configuration E of the paper: 19 weight layers.")
    for name in inspect.signature(keras_vgg.VGG19).parameters:
        assert f"    {name}: " in text
    assert "configuration:" not in text


@pytest.mark.parametrize("name", ["dense", "explain", "retrieval", "runs", "weights"])
def test_a_module_is_an_attribute_as_the_guides_write_it(name, monkeypatch):
    monkeypatch.delattr(keras_vgg, name, raising=False)  # as in a new process
    assert getattr(keras_vgg, name).__name__ == f"keras_vgg.{name}"
    assert name in dir(keras_vgg)


LOADS = """
import sys
from pathlib import Path
import keras_vgg
assert "keras" not in sys.modules
from keras_vgg.layers import load_keras_file
models = [load_keras_file(Path(path)) for path in sys.argv[1:]]

import keras  # before keras_vgg, as another process has it
keras.saving.get_custom_objects().clear()
for name in [name for name in sys.modules if name.split(".")[0] == "keras_vgg"]:
    del sys.modules[name]
import keras_vgg
models += [keras.saving.load_model(path, compile=False) for path in sys.argv[1:]]
print(*(model.name for model in models))
"""


@pytest.mark.slow
def test_another_process_loads_every_kind_of_network(tmp_path):
    """The import of the package is enough, as are the functions of the package."""
    options = {"weights": None, "width_multiplier": 1 / 16}
    base = keras_vgg.vgg("A", include_top=False, **options)
    networks = [
        dense.unet("A", 2, decoder_filters=(2,) * 5, **options),
        feature_extractor(base, ["block1_conv1:pre"], pooling_layers="l2"),
        perceptual.style_network(width=2, residual_blocks=1),
    ]
    paths = [tmp_path / f"{number}.keras" for number in range(len(networks))]
    for network, path in zip(networks, paths, strict=True):
        network.save(path)
    command = [sys.executable, "-c", LOADS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == 2 * [network.name for network in networks]


def test_a_star_import_defines_every_public_name():
    names: dict = {}
    exec("from keras_vgg import *", names)
    assert set(keras_vgg.__all__) <= set(names)


ORDERS = {
    "tensorflow": "import keras_vgg\nimport tensorflow as tf\nload = tf.keras.models.load_model\n",
    "builder": "from keras_vgg import VGG16\nfrom keras.saving import load_model as load\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_keras_may_be_imported_after_the_package(order, tmp_path):
    dense.unet("A", 2, weights=None, width_multiplier=1 / 16, decoder_filters=(2,) * 5).save(
        tmp_path / "unet.keras"
    )
    code = f"import sys\n{ORDERS[order]}print(load(sys.argv[1]).name)"
    command = [sys.executable, "-c", code, str(tmp_path / "unet.keras")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["unet_vgg11"]

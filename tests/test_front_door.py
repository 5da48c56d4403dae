"""What a stranger's tools know of the package: names, types, arguments."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import keras_vgg
from keras_vgg import weights

RIGHT = """
import keras
from keras_vgg import VGG19, Recipe, Run, train, vgg
from keras_vgg.weights import Checkpoint

model: keras.Model = VGG19(weights=None, classes=10)
small: keras.Model = vgg("D", weights=None, batch_norm=True)
run: Run = train(Recipe(epochs=1), "runs/digits")
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
    """Name -> the module that has it, of each import below `if TYPE_CHECKING`."""
    tree = ast.parse(Path(module.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module.removeprefix(f"{module.__name__}.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("module", [keras_vgg, weights])
def test_what_a_type_checker_reads_is_what_runs(module):
    assert imported_for_type_checkers(module) == module._HOMES
    assert set(module.__all__) - {"__version__"} == set(module._HOMES)


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


def test_a_star_import_defines_every_public_name():
    names: dict = {}
    exec("from keras_vgg import *", names)
    assert set(keras_vgg.__all__) <= set(names)

"""The notebooks run from the first cell to the last, with small budgets, and hold to their form."""

import ast
import importlib
import os
import re
from pathlib import Path
from types import ModuleType

import keras
import nbformat
import numpy as np
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_vgg import vgg

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# Notebook -> its parameters here; a function gets the folder in which the notebook runs.
DIGITS = {"SOURCE": "digits", "WIDTH": 1 / 16}
BUDGETS = {
    "01_architecture": {"WIDTH": 1 / 16},
    "02_fashion_mnist": DIGITS | {"EPOCHS": 2, "HIDDEN_UNITS": 16, "LINEAR_IMAGES": 200},
    "03_augmentation": {"SOURCE": lambda here: photographs(here), "EPOCHS": 10},
    "04_transfer": {
        "SOURCE": lambda here: photographs(here),
        "SPLITS": {},
        "WIDTH": 1 / 16,
        "WEIGHTS": lambda here: network(here, include_top=False),
        "SIZE": 48,
        "COUNTS": (10, 20),
        "EPOCHS": 1,
    },
    "05_what_vgg_sees": {
        "SOURCE": lambda here: photographs(here),
        "MODEL": lambda here: network(here, head="gap", classes=4),
        "IMAGES": 2,
        "SIZE": 64,
        "FILTERS": 2,
        "STEPS": 2,
        "WINDOW": 32,
    },
    "06_testing": DIGITS | {"SIZE": 32, "TRAIN_SCALE": (32, 40), "FLIP": False, "EPOCHS": 1},
    # A network that has seen 50 batches says nothing of what 8 bits cost.
    "07_export": DIGITS | {"EPOCHS": 4, "HIDDEN_UNITS": 16, "IMAGES": 50, "TOLERANCE": 100.0},
    "08_search": {
        "SOURCE": "digits",
        "SPLITS": {},
        "TRIALS": 2,
        "EPOCHS": 1,
        "WIDTHS": (1 / 16, 1 / 12),
        "SEEDS": (1,),
    },
    "09_medical_style_study": {"FOLDS": 2, "EPOCHS": 2},
    "10_style": {
        "WEIGHTS": lambda here: network(here, include_top=False),
        "SIZE": 64,
        "STEPS": 2,
        "STYLE_WEIGHTS": (1,),
    },
}


def photographs(folder):
    """A source of two classes: parts of the two photographs that scikit-learn brings."""
    for name, whole in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(30):
            top, left = 60 * (i // 6), 80 * (i % 6)
            part = Image.fromarray(whole[top : top + 180, left : left + 240])
            part.save(folder / "photos" / name / f"{i:02}.jpg")
    return f"folder:{folder / 'photos'}"


def network(folder, **options):
    path = folder / "network.keras"
    preprocessing = {"include_preprocessing": True, "width_multiplier": 1 / 16}
    size = {"input_shape": (64, 64, 3)} if options.get("head") else {}
    vgg("D", weights=None, **preprocessing, **size, **options).save(path)
    return str(path)


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    """Its code cells as one Python module; IPython's % commands are left out."""
    sources = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", "\n".join(sources), flags=re.M))


def parameters_of(notebook):
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


def named(target):
    return [e.id for e in getattr(target, "elts", [target])]


def test_all_ten_are_run():
    assert [path.stem for path in NOTEBOOKS] == sorted(BUDGETS)
    assert len(BUDGETS) == 10


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_execution(path, tmp_path):
    notebook = read(path)
    cell = parameters_of(notebook)
    known = [n for line in ast.parse(cell.source).body for t in line.targets for n in named(t)]
    for name, value in BUDGETS[path.stem].items():
        assert name in known
        value = value(tmp_path) if callable(value) else value
        cell.source += f"\n{name} = {value!r}"
    # No other kernel than this Python's, whatever is installed on the machine.
    manager = AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])
    )
    client = NotebookClient(
        notebook, km=manager, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "-1",
        "HOME": str(tmp_path),  # nothing of a cache is read, or written
        "PYTHONPATH": str(ROOT),
        "https_proxy": "http://127.0.0.1:9",  # a download fails at once
    }
    # With this variable ipykernel leaves descriptor 2 alone, and no cell shows what C++ writes.
    del environment["PYTEST_CURRENT_TEST"]
    client.execute(env=environment, cleanup_kc=True)
    lines = [
        line
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
        for line in output.text.splitlines()
    ]
    assert lines == []
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        assert cell.metadata in ({}, {"tags": ["parameters"]})
        # Readable ids, so that a change of one cell is a change of its lines alone.
        assert re.fullmatch("[a-z][a-z0-9-]*", cell.id)
    colab, title = notebook.cells[:2]
    assert "import google.colab" in colab.source
    assert '%pip install -q "keras-vgg' in colab.source
    assert title.source.startswith(f"# {int(path.stem[:2])}. ")
    assert "**Question.**" in title.source
    assert "**Needs.**" in title.source
    (time,) = re.findall(r"\*\*Time\.\*\* (.+)", title.source)
    assert re.search(r"\d+ CPU cores", time)  # on what
    assert "minute" in time
    assert "measured" in time or "Run so far" in time  # what is known of it
    assert "## What you have seen" in notebook.cells[-1].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_public_names(path):
    tree = code_of(read(path))
    modules = {}  # a name in the notebook -> the module of ours that it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [a for a in node.names if a.name.startswith("keras_vgg")], "from, please"
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "keras_vgg":
            for alias in node.names:
                value = getattr(importlib.import_module(node.module), alias.name, None)
                if value is None or isinstance(value, ModuleType):
                    value = importlib.import_module(f"{node.module}.{alias.name}")
                    assert value.__doc__
                    modules[alias.asname or alias.name] = value
                assert not alias.name.startswith("_")
                if not isinstance(value, ModuleType):
                    assert is_public(importlib.import_module(node.module), alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
            if isinstance(node.value, ast.Name) and node.value.id in modules:
                assert is_public(modules[node.value.id], node.attr)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_tensorflow_is_imported_without_its_messages(path):
    """Before `prepare_environment`, nothing is imported that imports TensorFlow."""
    for statement in code_of(read(path)).body:
        text = ast.unparse(statement)
        if "prepare_environment()" in text:
            return
        for node in ast.walk(statement):
            module = getattr(node, "module", None)
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            if module == "keras_vgg":
                assert names == ["hardware"], text
            else:
                roots = {name.split(".")[0] for name in [module or "", *names]}
                assert not roots & {"keras", "keras_vgg", "tensorflow"}, text
    pytest.fail(f"{path.name} does not call prepare_environment")


def is_public(module, name):
    if hasattr(module, "__all__"):
        return name in module.__all__
    value = getattr(module, name)
    return not name.startswith("_") and getattr(value, "__module__", module.__name__) == (
        module.__name__
    )


def test_is_public_tells_them_apart():
    found = importlib.import_module("keras_vgg.imagenet")
    assert is_public(found, "class_names")
    assert not is_public(found, "_fetch_index")
    assert not is_public(found, "ImagePreprocessing")  # it is of keras_vgg.layers
    assert not is_public(importlib.import_module("keras_vgg.tuning"), "results")


def test_the_readme_lists_them():
    text = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\w+\.ipynb)\)", text) == [path.name for path in NOTEBOOKS]


def test_the_photographs_are_two_classes(tmp_path):
    from keras_vgg import load_source

    source = load_source(photographs(tmp_path))
    assert source.class_names == ("flower", "temple")
    counts = np.bincount(source.train.labels)
    assert counts.min() >= 16
    assert keras.saving.load_model(network(tmp_path, head="gap", classes=4)).output_shape[-1] == 4

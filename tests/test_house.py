"""The architecture of the package: import directions, what the wheel holds, lazy names."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import keras_vgg

PACKAGE = Path(keras_vgg.__file__).parent

# Room -> the rooms that it may import. cli may import everything, inside its handlers.
ALLOWED = {
    "architecture": set(),
    "layers": {"architecture"},
    "weights": {"architecture", "layers"},
    "models": {"architecture", "layers", "weights"},
    "convert": {"architecture", "atomic", "imagenet", "models", "weights"},
    "imagenet": {"layers"},
    "transfer": {"layers", "models"},
    "explain": {"layers", "models"},
    "atomic": set(),
    "pieces": {"atomic"},
    "progress": set(),
    "augment": set(),
    "data": {"atomic", "augment", "progress"},
    "recipe": {"architecture"},
    "hardware": {"architecture", "recipe"},
    "report": {"atomic"},
    "evaluation": {"models", "layers", "architecture", "progress"},
    "export": {"augment", "data", "evaluation", "layers", "progress", "transfer"},
    "localization": {"evaluation", "progress", "transfer", "weights"},
    "fit": {
        *(
            "architecture",
            "atomic",
            "augment",
            "data",
            "hardware",
            "layers",
            "models",
            "pieces",
            "progress",
            "recipe",
            "report",
        ),
        *("transfer", "weights"),
    },
    "tuning": {"architecture", "atomic", "data", "fit", "hardware", "recipe"},
    "runs": {
        *("atomic", "augment", "convert", "data", "evaluation", "export", "fit", "hardware"),
        *("imagenet", "models", "pieces", "progress", "recipe", "report", "weights"),
    },
}
# What may name TensorFlow; the rest runs on every backend of Keras.
TENSORFLOW = {"augment", "data", "export", "fit", "hardware", "cli"}
# A gradient is the one thing that Keras has no public function for: one file, each backend's.
EVERY_BACKEND = {"explain/gradient.py": {"tensorflow", "jax", "torch"}}


def imports(path):
    """(module, whether at the top of the file) of each import."""
    tree = ast.parse(path.read_text())
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in top
            yield from ((f"{node.module}.{alias.name}", node in top) for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)
ROOMS = sorted(ALLOWED)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    used = {
        name.split(".")[1]
        for name, _ in imports(path)
        if name.startswith("keras_vgg.") and name.split(".")[1] in {*ROOMS, "cli", "training"}
    }
    if room == "cli":
        at_top = {name for name, top in imports(path) if top and name.startswith("keras_vgg.")}
        assert {n.split(".")[1] for n in at_top} <= {"recipe", "architecture", "cli", "__version__"}
    else:
        assert used <= ALLOWED[room] | {room}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_some_rooms_name_tensorflow(path):
    modules = {name.split(".")[0] for name, _ in imports(path)}
    assert "training" not in modules
    excepted = EVERY_BACKEND.get(path.relative_to(PACKAGE).as_posix(), set())
    if room_of(path) not in TENSORFLOW:
        assert "tensorflow" not in modules - excepted
    if excepted:
        assert modules >= excepted
        assert not modules & {name.split(".")[0] for name, top in imports(path) if top} & excepted


@pytest.mark.parametrize("name", keras_vgg.__all__)
def test_public_names_resolve_and_are_documented(name):
    value = getattr(keras_vgg, name)
    assert isinstance(value, str) or value.__doc__


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'VGG17'"):
        keras_vgg.VGG17  # noqa: B018


def test_importing_the_package_imports_no_framework():
    code = "import sys, keras_vgg; print('keras' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_builder_imports_no_data_or_training_code():
    code = (
        "import sys\nfrom keras_vgg import VGG19\n"
        "print([m for m in ('keras_vgg.data', 'keras_vgg.fit', 'tensorflow_datasets', "
        "'tyro', 'ai_edge_litert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    root = PACKAGE.parent
    if not (root / "setup.cfg").is_file():
        pytest.skip("not run from a source tree")
    # A copy, so that the build leaves nothing in the tree.
    source = tmp_path / "source"
    source.mkdir()
    names = (
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "keras_vgg",
        "tests",
        "training",
    )
    for name in names:
        (source / name).symlink_to(root / name)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"keras_vgg"}
    assert {"keras_vgg/data/__init__.py", "keras_vgg/weights/published.py"} <= set(names)
    assert "keras_vgg/py.typed" in names
    # Installed elsewhere, it runs without the source tree.
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import keras_vgg; "
        "from keras_vgg import architecture; "
        "print(keras_vgg.__file__, architecture.parameters('D'))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(target / "keras_vgg" / "__init__.py"), "138357544"]

"""The architecture of the package: late imports, public names, what the wheel holds.

The directions of imports are contracts in pyproject.toml; `make check` runs lint-imports.
"""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import keras_vgg

PACKAGE = Path(keras_vgg.__file__).parent

# What the files of cli may import at the top, so that `keras-vgg --help` loads no framework.
LIGHT = {"architecture", "cli", "console", "image_paths", "recipe", "__version__"}
BACKENDS = {"jax", "tensorflow", "torch"}


def imports(nodes):
    """Return the full names of the modules and objects that the nodes import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_cli_imports_the_library_inside_its_handlers():
    heavy = [
        f"{path.name}: {name}"
        for path in sorted((PACKAGE / "cli").rglob("*.py"))
        for name in sorted(imports(ast.parse(path.read_text()).body))
        if name.startswith("keras_vgg.") and name.split(".")[1] not in LIGHT
    ]
    assert heavy == []


def test_the_gradient_imports_each_backend_inside_a_function():
    tree = ast.parse((PACKAGE / "gradient.py").read_text())
    assert {name.split(".")[0] for name in imports(ast.walk(tree))} >= BACKENDS
    assert not {name.split(".")[0] for name in imports(tree.body)} & BACKENDS


def test_public_names_resolve_and_are_documented():
    values = {name: getattr(keras_vgg, name, None) for name in keras_vgg.__all__}
    unresolved = [name for name, value in values.items() if value is None]
    undocumented = [
        name for name, value in values.items() if not isinstance(value, str) and not value.__doc__
    ]
    assert (unresolved, undocumented) == ([], [])


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'VGG17'"):
        keras_vgg.VGG17  # noqa: B018


def test_importing_the_package_imports_no_framework():
    code = "import sys, keras_vgg; print('keras' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_a_builder_imports_no_data_or_training_code():
    code = (
        "import sys\nfrom keras_vgg import VGG19\n"
        "print([m for m in ('keras_vgg.data', 'keras_vgg.fit', 'tensorflow_datasets', "
        "'tyro', 'ai_edge_litert') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
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
    assert {f"keras_vgg/report/templates/report.{kind}" for kind in ("html", "css")} <= set(names)
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


def test_no_function_hides_a_module():
    hidden = [
        f"{path.parent.name}.{name}"
        for path in PACKAGE.rglob("__init__.py")
        for name in imports(ast.parse(path.read_text()).body)
        if (path.parent / f"{name.split('.')[-1]}.py").is_file() and name.count(".") > 2
    ]
    assert hidden == []

"""A command that needs a package that is not installed says so in one line, with status 2."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_vgg import cli, vgg


def error_without(package: str, arguments: list[str], **environment: str) -> str:
    """Run a command in a process that cannot import a package; return its error."""
    code = (
        f"import sys; sys.modules[{package!r}] = None; from keras_vgg import cli; "
        f"sys.exit(cli.main({arguments!r}))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )
    assert process.returncode == cli.BAD_INPUT, process.stderr
    assert process.stderr.startswith("keras-vgg: error: ")
    assert process.stderr.count("\n") == 1, process.stderr
    return process.stderr


@pytest.mark.slow
def test_tune_without_keras_tuner(tmp_path) -> None:
    error = error_without("keras_tuner", ["tune", "--workdir", str(tmp_path / "search")])
    assert "pip install 'keras-vgg[tune]'" in error
    assert not (tmp_path / "search").exists()


@pytest.mark.slow
@pytest.mark.parametrize("package", ["torch", "jax"])
def test_a_backend_that_is_not_installed(package: str, tmp_path) -> None:
    arguments = ["train", "--workdir", str(tmp_path / "run")]
    error = error_without(package, arguments, KERAS_BACKEND=package)
    assert f"the package {package}, which KERAS_BACKEND={package} needs, is not installed" in error
    assert f"pip install 'keras-vgg[{package}]'" in error


def test_backend_jax_without_jax(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    arguments = ["train", "--workdir", str(tmp_path / "run"), "--backend", "jax"]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert "pip install 'keras-vgg[jax]'" in capsys.readouterr().err


def test_a_plot_without_matplotlib() -> None:
    error = error_without("matplotlib", ["summary", "D", "--plot", "layers.png"])
    assert "the package matplotlib is not installed: pip install keras-vgg" in error


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with two pictures, and a weight file beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "all").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), "uint8")
        Image.fromarray(pixels).save(folder / "all" / f"{number}.png")
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    vgg("A", width_multiplier=1 / 16, **options).save(folder / "base.keras")
    return folder


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("scipy.optimize", "stylize {all}/0.png {all}/1.png --out {tmp}/out.png --size 40"),
        ("scipy.fft", "search {all} {all}/0.png --index {tmp}/index.npz --size 32"),
        (
            "sklearn.decomposition",
            "search {all} {all}/0.png --index {tmp}/index.npz --size 32 --whitening folder",
        ),
    ],
)
def test_pictures_without(module, command, pictures, tmp_path, capfd, monkeypatch) -> None:
    words = command.format(all=pictures / "all", tmp=tmp_path).split()
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main([*words, "--weights", str(pictures / "base.keras")]) == cli.BAD_INPUT
    errors = [
        line for line in capfd.readouterr().err.splitlines() if line.startswith("keras-vgg: error")
    ]
    package = module.partition(".")[0]
    text = f"keras-vgg: error: the package {package} is not installed: pip install keras-vgg"
    assert errors == [text]
    assert {path.name for path in tmp_path.iterdir()} <= {"index.npz"}


@pytest.mark.slow
def test_compare_without_safetensors(pictures) -> None:
    """The learned weights of LPIPS and DISTS are such files."""
    files = [str(pictures / "all" / f"{number}.png") for number in range(2)]
    weights = ["--weights", str(pictures / "base.keras")]
    error = error_without("safetensors", ["compare", *files, *weights])
    assert "the package safetensors is not installed: pip install keras-vgg" in error


def test_a_backend_that_keras_does_not_have(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "JAX")
    assert cli.main(["explain", "run", "a.jpg"]) == cli.BAD_INPUT
    assert "KERAS_BACKEND must be one of tensorflow, jax, torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ImportError("libcudnn.so.9: cannot open"), "a package cannot be imported: libcudnn.so.9"),
        (ModuleNotFoundError("No module", name="tf2onnx.x"), "pip install 'keras-vgg[onnx]'"),
        (ModuleNotFoundError("No module", name="gradio"), "pip install 'keras-vgg[demo]'"),
        (
            ModuleNotFoundError("No module", name="jax"),
            "jax, which KERAS_BACKEND=jax needs, is not installed: pip install 'keras-vgg[jax]'",
        ),
    ],
)
def test_other_imports(raised, text, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self) -> None:
        raise raised

    monkeypatch.setattr(cli.Summary, "__call__", fail)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert cli.main(["summary", "D"]) == cli.BAD_INPUT
    assert text in capsys.readouterr().err
    with pytest.raises(ImportError):
        cli.main(["summary", "D", "--debug"])


def test_a_fault_of_this_package_has_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self) -> None:
        raise ImportError("cannot import name 'x' from 'keras_vgg.run'", name="keras_vgg.run")

    monkeypatch.setattr(cli.Summary, "__call__", fail)
    with pytest.raises(ImportError):
        cli.main(["summary", "D"])

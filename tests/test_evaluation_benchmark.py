"""benchmarks/evaluation.py and training.py: their parts, and a whole measurement of each."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = "VGG-11, quarter width, batch norm, 32x32, batch 128"


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import libraries

    return libraries


@pytest.fixture
def benchmark(libraries, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "evaluation", raising=False)
    import evaluation

    return evaluation


def test_ratios_are_those_of_the_same_round(libraries) -> None:
    rates = {"keras_vgg": [10.0, 20.0, 40.0], "PyTorch": [20.0, 20.0, 10.0]}
    assert libraries.table("VGG-16", rates).splitlines() == [
        "| VGG-16 | images/s | keras_vgg is faster by |",
        "|---|---|---|",
        "| keras_vgg | 20 |  |",
        "| PyTorch | 20 | 1.00 (0.50 to 4.00) |",
    ]


def test_each_library_has_an_engine_in_each_case_that_it_knows(libraries, benchmark) -> None:
    for recipe in benchmark.CASES.values():
        chosen = libraries.libraries_for(recipe)
        assert (libraries.APPLICATIONS in chosen) == (not recipe.batch_norm)
        assert {*chosen, *benchmark._own_engines(recipe, chosen)} <= set(benchmark.ENGINES)
        assert libraries.libraries_for(recipe, only=[]) == []


@pytest.mark.slow
def test_a_step_is_one_batch(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    from keras_vgg import evaluation as library

    recipe = benchmark.Recipe(
        width_multiplier=1 / 16, hidden_units=32, batch_size=6, eval_scale=None, precision="float32"
    )
    counts: list[int] = []
    runner = library.runner

    def counted(*arguments):
        run = runner(*arguments)
        return lambda images: counts.append(len(images)) or run(images)

    monkeypatch.setattr(library, "runner", counted)
    benchmark._evaluate(recipe)(3)
    benchmark._predictor(recipe)(2)
    assert counts == [6] * 5


@pytest.mark.slow
def test_pytorch_without_its_batch_norms_answers_the_same(libraries, benchmark) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    recipe = benchmark.Recipe(width_multiplier=1 / 16, hidden_units=32)
    model = libraries.torch_vgg(recipe).eval()
    for layer in model:
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
            torch.nn.init.normal_(layer.running_mean)
    folded = benchmark._with_folded_norms(model)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [["--cases", "VGG-99"], ["--only", "timm"]])
def test_wrong_arguments(libraries, benchmark, monkeypatch, capsys, wrong: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *wrong])
    with pytest.raises(SystemExit):
        libraries.compare("", benchmark.CASES, benchmark.ENGINES, benchmark._own_engines)
    assert f"invalid choice: '{wrong[1]}'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluation", "training"])
def test_a_small_network_is_measured(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--cases", SMALL]
    command += ["--rounds", "2", "--seconds", "0.1"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    title, _, *rows = process.stdout.strip().splitlines()
    assert title == f"| {SMALL} | images/s | keras_vgg is faster by |"
    assert rows[0].startswith("| keras_vgg | ")

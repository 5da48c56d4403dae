"""The scripts of training/: the paper's chain of stages, and what it costs."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from keras_vgg.evaluation import Evaluation, compare
from keras_vgg.fit import Run
from keras_vgg.recipe import Recipe, load_recipe

TRAINING = Path(__file__).parents[1] / "training"


def script(name: str) -> ModuleType:
    """Load a script as `python training/NAME.py` does: the modules beside it can be imported."""
    if str(TRAINING) not in sys.path:
        sys.path.append(str(TRAINING))
    spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


paper = script("paper")

TINY = """
from keras_vgg.recipe import Recipe
RECIPE = Recipe(
    width_multiplier=1 / 16, hidden_units=8, validation_fraction=0.1, test_fraction=0.8,
    batch_size=32, epochs=1, batch_norm=False, learning_rate=0.01,
)
"""


def test_the_stages_are_the_papers():
    stages = paper.chain(Recipe(image_size=224, learning_rate=0.01), Path("runs"))
    assert [(stage.name, stage.begins) for stage in stages] == [
        ("a-256", "he_normal"),
        ("a-lrn-256", "he_normal"),
        ("b-256", "a-256"),
        *(
            (f"{net}-{scale}", begins)
            for net in "cde"
            for scale, begins in ((256, "a-256"), (384, f"{net}-256"), ("jitter", f"{net}-384"))
        ),
    ]
    recipes = {stage.name: stage.recipe for stage in stages}
    assert recipes["d-256"].initialization == "runs/a-256"
    assert recipes["d-256"].learning_rate == 0.01
    assert (recipes["d-384"].init, recipes["d-384"].init_head) == ("runs/d-256", "all")
    assert recipes["d-384"].learning_rate == pytest.approx(0.001)
    assert recipes["d-jitter"].init == "runs/d-384"
    scales = {name: (r.train_scale, r.eval_scale) for name, r in recipes.items()}
    assert scales["b-256"] == ((256, 256), 256)
    assert scales["d-384"] == ((384, 384), 384)
    assert scales["e-jitter"] == ((256, 512), 384)


def test_a_comes_first_where_a_deeper_net_needs_it():
    nets = ["E", "A", "VGG19"]
    names = [stage.name for stage in paper.chain(Recipe(image_size=224), Path("r"), nets)]
    assert names == ["a-256", "e-256", "e-384", "e-jitter"]
    assert [s.name for s in paper.chain(Recipe(image_size=224), Path("r"), ["A-LRN"])] == [
        "a-lrn-256"
    ]


def test_what_is_no_chain():
    with pytest.raises(ValueError, match="unknown VGG configuration 'F'"):
        paper.chain(Recipe(), Path("r"), ["F"])
    with pytest.raises(ValueError, match=r"scales \(16, 40\) .* are below 32"):
        paper.chain(Recipe(), Path("r"), scales=(16, 40))
    with pytest.raises(ValueError, match="must not have init='imagenet'"):
        paper.chain(Recipe(init="imagenet"), Path("r"), scales=(32, 40), jitter=(32, 40))


@pytest.mark.slow
def test_the_chain_trains_each_stage_from_the_one_before_and_resumes(tmp_path, capsys):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(TINY)
    arguments = ["--recipe", str(recipe), "--workdir", str(tmp_path / "runs"), "--nets", "D"]
    arguments += ["--scales", "32", "36", "--jitter", "32", "40"]
    paper.main(arguments)
    out = capsys.readouterr().out
    assert "stage 4 of 4: d-jitter, from d-36" in out
    assert f"evaluate {tmp_path}/runs/a-32 {tmp_path}/runs/d-jitter --tables" in out
    runs = {path.name: Run.open(path) for path in (tmp_path / "runs").iterdir()}
    assert runs.keys() == {"a-32", "d-32", "d-36", "d-jitter"}
    for name, before in (("d-32", "a-32"), ("d-36", "d-32"), ("d-jitter", "d-36")):
        assert runs[name].read_json("init.json")["source"].startswith(str(runs[before].directory))
    # One epoch at a hundredth of the rate leaves them close, and not equal.
    before, after = (
        runs[name].model().get_layer("fc1").get_weights()[0] for name in ("d-36", "d-jitter")
    )
    assert 0 < np.abs(after - before).max() < 0.1 * np.abs(before).max()
    stamps = {
        name: (run.directory / "results.json").stat().st_mtime_ns for name, run in runs.items()
    }
    paper.main(arguments)
    assert capsys.readouterr().out.count("is finished; nothing to do") == 4
    for name, run in runs.items():
        assert (run.directory / "results.json").stat().st_mtime_ns == stamps[name]


def test_the_plan_trains_nothing(tmp_path, capsys):
    paper.main(["--plan", "--workdir", str(tmp_path / "runs")])
    out = capsys.readouterr().out
    assert "8.71e+18" in out
    assert not (tmp_path / "runs").exists()


def test_cost_by_hand():
    """D at 224: 15.47 GMAC, as the paper's own port counts; 138,357,544 float32 gradients."""
    recipe = Recipe(
        configuration="D", image_size=224, width_multiplier=1.0, hidden_units=4096, epochs=74,
        batch_size=256, batch_norm=False,
    )  # fmt: skip
    flop = paper.training_flop(recipe, 1_268_355)
    assert flop == pytest.approx(74 * 1_268_355 * 6 * 15.47e9, rel=1e-3)
    computing, exchanging = paper.hours(recipe, 1_268_355, 8, tflops=100, gbytes=100)
    assert computing == pytest.approx(flop / 8e14 / 3600)
    steps = 74 * (1_268_355 // 256)
    assert exchanging == pytest.approx(steps * 4 * 138_357_544 * 1.75 / 1e11 / 3600)
    assert paper.hours(recipe, 1_268_355, 1, 100, 100)[1] == 0


@pytest.mark.parametrize(
    "path", sorted(TRAINING.glob("recipes/imagenet_*.py")), ids=lambda p: p.stem
)
def test_the_imagenet_recipes_are_the_papers_and_say_what_they_cost(path):
    recipe, text = load_recipe(path), path.read_text()
    assert f"imagenet_{recipe.configuration.lower().replace('-', '_')}" == path.stem
    assert f"{paper.training_flop(recipe, paper.IMAGENET_IMAGES):.2e} FLOP" in text
    alone, _ = paper.hours(recipe, paper.IMAGENET_IMAGES, 1, 100, 100)
    assert f"{alone:.1f} h on one" in text
    computing, exchanging = paper.hours(recipe, paper.IMAGENET_IMAGES, 8, 100, 100)
    assert f"on 8, {computing:.1f} h and {exchanging:.1f} h" in text
    assert "not run" in text
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (256, 0.9, 5e-4)
    assert (recipe.dropout, recipe.hidden_units, recipe.image_size) == (0.5, 4096, 224)
    assert (recipe.learning_rate, recipe.schedule, recipe.plateau_drops) == (0.01, "plateau", 3)
    assert recipe.train_scale == ((256, 512) if recipe.configuration in "CDE" else (256, 256))
    assert recipe.eval_scale == sum(recipe.train_scale) // 2


claims = script("claims")


def evaluation(*right: bool) -> Evaluation:
    """Of two classes, the first being true, right where it says so."""
    rows = np.where(np.array(right)[:, None], [[0.9, 0.1]], [[0.2, 0.8]]).astype(np.float32)
    return Evaluation(np.zeros(len(right), int), rows, ("yes", "no"))


@pytest.mark.parametrize(
    ("one", "other", "equal", "verdict"),
    [
        ((40, 40), (80, 80), False, "holds"),
        ((80, 80), (40, 40), False, "reversed"),
        ((40, 40), (90, 39), False, "not shown"),  # one seed says otherwise
        ((50, 50), (51, 51), False, "not shown"),  # too little
        ((50, 50), (51, 49), True, "no difference"),
        ((40, 40), (80, 80), True, "better"),
        ((80, 80), (40, 40), True, "worse"),
    ],
)
def test_a_claim_is_judged_by_its_interval_and_every_seed(one, other, equal, verdict):
    """`one` and `other`: of 100 images, how many are right, by seed."""
    found = {
        (name, "single", seed): evaluation(*[True] * right, *[False] * (100 - right))
        for name, rights in (("A", one), ("B", other))
        for seed, right in enumerate(rights)
    }
    claim = claims.Claim("text", "paper", ("A", "single"), ("B", "single"), equal)
    judged = claims.judge(claim, found, range(2))
    assert judged["verdict"] == verdict
    assert judged["one"] == pytest.approx(100 - sum(one) / 2)
    assert judged["difference"] == pytest.approx((sum(one) - sum(other)) / 2)
    assert judged["seeds"] == pytest.approx([a - b for a, b in zip(one, other, strict=True)])
    low, high = judged["interval"]
    assert low <= judged["difference"] <= high
    row = claims.markdown([judged]).splitlines()[-1]
    assert row.startswith(f"| text | paper | {judged['one']:.2f} to {judged['other']:.2f} |")
    assert row.endswith(f"| {verdict} |")


def test_the_claims_runs_differ_in_what_they_say():
    base = load_recipe(TRAINING / "recipes" / "cifar10_claims.py")
    planned = claims.recipes(base, Path("runs"), 2)
    assert tuple(planned) == claims.RUNS
    changed = {name: base.differences(recipe).keys() for name, recipe in planned.items()}
    assert changed["E"] == {"seed", "configuration"}
    assert changed["D jitter"] == {"seed", "configuration", "train_scale"}
    assert planned["D jitter"].train_scale == (32, 40)
    assert changed["B batch norm"] == {"seed", "configuration", "batch_norm"}
    assert planned["D batch norm"].configuration == "D"
    assert planned["D from A"].initialization == "runs/a-2"
    assert planned["D Glorot"].initialization == "glorot"
    assert planned["D Glorot"].std_rgb == (1, 1, 1)  # as the paper's pixels are
    named = {which for claim in claims.CLAIMS for which in (claim.one, claim.other)}
    assert {net for net, _ in named} == planned.keys()
    assert all(how == "single" or net in claims.TESTED_FULLY for net, how in named)


def test_a_seeds_results_are_one_file_that_says_nothing_of_the_machine(tmp_path):
    base = load_recipe(TRAINING / "recipes" / "cifar10_claims.py").replace(
        source=f"folder:{tmp_path}"
    )
    planned = claims.recipes(base, tmp_path, 2)
    rows = [
        {"accuracy": 0.2, "val_accuracy": 0.25, "learning_rate": 0.1},
        {"accuracy": 0.4, "val_accuracy": 0.5, "learning_rate": 0.01},
    ]
    runs = {
        name: types.SimpleNamespace(recipe=planned[name], history=rows)
        for name in ("A", "D from A")
    }
    rights = {name: np.random.default_rng(len(name)).random(37) < 0.6 for name in runs}
    found = {(name, how): evaluation(*rights[name]) for name in runs for how in claims.TESTS}
    del found["D from A", "both"]  # not every net is tested in every way
    path = tmp_path / "results" / "seed-2.json"

    for name, run in runs.items():  # one after the other: the second leaves the first
        of_run = {which: result for which, result in found.items() if which[0] == name}
        claims.save(path, base, {name: run}, of_run)

    content = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text()
    assert content["nets"]["D from A"]["differs"] == {
        "seed": 2,
        "configuration": "D",
        "initialization": "a-2",
    }
    assert content["nets"]["A"]["training_accuracy"] == [0.2, 0.4]
    assert content["nets"]["A"]["validation_accuracy"] == [0.25, 0.5]
    read = claims.load(path, base.replace(source="folder:elsewhere", seed=1))
    assert read.keys() == found.keys()
    for which, given in found.items():
        assert read[which].top1 == given.top1
        between = compare(read[which], read["A", "single"])
        assert between == compare(given, found["A", "single"])
    with pytest.raises(ValueError, match="holds results of another recipe"):
        claims.load(path, base.replace(epochs=3))
    with pytest.raises(ValueError, match="holds results of another recipe"):
        claims.save(path, base.replace(epochs=3), runs, found)


def test_the_plot_takes_any_networks(tmp_path):
    found = {
        (net, "single", seed): evaluation(True, seed == 1) for net in "AB" for seed in range(2)
    }
    claims.plot(found, [0, 1], tmp_path / "claims.png")
    assert (tmp_path / "claims.png").stat().st_size > 10_000


def test_a_gradient_is_of_all_classes_and_of_the_weights_that_were_asked_for(tiny_run):
    before, after = claims.gradients(tiny_run.recipe, tiny_run, 64)
    _, again = claims.gradients(tiny_run.recipe, tiny_run, 64)
    layers = [layer.name for layer in tiny_run.model().layers if "_conv" in layer.name]
    assert [*before] == [*after] == [name for name in layers if not name.endswith(("bn", "relu"))]
    assert after == again
    assert before != after
    assert all(0 < size < 1e3 for size in before.values())

"""The paper's claims, tested again on CIFAR-10: which net, scale, test and start is better.

command:  python training/claims.py DIR --workdir runs/claims
          (DIR holds CIFAR-10's images as <class>/<image>)
hardware: 2 CPU cores
result:   training/README.md, training/claims

Every run of every seed is a run directory, and every posterior is kept, so an interrupted command
goes on. A seed's test images are read when all its runs are trained; nothing is selected on them.
What came out of a seed, with its recipes and which image each net had right, is one small file,
seed-K.json; the table is of all such files in a folder, so seeds can be run on several machines.
The runs of a seed can be shared out among processes, of one core each the faster way for nets so
small: `taskset -c 0 python training/claims.py DIR --train A B ...`, then the plain command. A
seed decides the split too: of two seeds' test images a tenth are the same, and the intervals, which
take all for different, are that much too narrow. They are of the choice of images; what the
trainings' own chance does is seen in the figures by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from keras_vgg import hardware
from keras_vgg.files import write_atomically

hardware.prepare_environment()  # before TensorFlow is imported below

from keras_vgg.evaluation import Evaluation, compare  # noqa: E402
from keras_vgg.fit import Run, TrainingDiverged, fit  # noqa: E402
from keras_vgg.recipe import Recipe, load_recipe  # noqa: E402
from keras_vgg.runs import evaluate_runs, paper_scales  # noqa: E402

NETS = ("A", "A-LRN", "B", "C", "D", "E")
RUNS = (*NETS, "D jitter", "D from A", "D Glorot")


def recipes(base: Recipe, workdir: Path, seed: int) -> dict[str, Recipe]:
    """The runs of one seed by name, those that others begin from first."""
    base = base.replace(seed=seed)
    assert base.train_scale is not None, "the jittered scale is made from the recipe's"
    low, high = base.train_scale
    step = base.image_size // 8
    found = {net: base.replace(configuration=net) for net in NETS}
    d = found["D"]
    found["D jitter"] = d.replace(train_scale=(low - step, high + step))
    found["D from A"] = d.replace(initialization=str(directory(workdir, "A", seed)))
    # With the paper's pixels, which are not divided by their deviation: of divided ones so little
    # comes through 13 layers that D was at chance after 4 epochs.
    found["D Glorot"] = d.replace(initialization="glorot", std_rgb=(1.0, 1.0, 1.0))
    return found


def directory(workdir: Path, name: str, seed: int) -> Path:
    return workdir / f"{name.lower().replace(' ', '_')}-{seed}"


def train(base: Recipe, workdir: Path, seed: int, only: Container[str] = RUNS) -> dict[str, Run]:
    """A seed's runs by name, trained; one whose loss is no number is left out."""
    runs = {}
    for name, recipe in recipes(base, workdir, seed).items():
        if name not in only:
            continue
        print(f"{name}, seed {seed}", flush=True)
        try:
            runs[name] = fit(recipe, directory(workdir, name, seed), verbose=2)
        except TrainingDiverged as error:
            print(f"left out: {error}", flush=True)
    return runs


@dataclass(frozen=True)
class Claim:
    """The other ought to have a lower top-1 error than the one; with `equal`, the same."""

    text: str
    paper: str
    one: tuple[str, str]
    other: tuple[str, str]
    equal: bool = False


# A net and a way of testing it, each: dense at one scale or at several, crops, or both.
CLAIMS = (
    Claim("1 deeper: B beats A", "29.6 to 28.7", ("A", "single"), ("B", "single")),
    Claim("1 deeper: D beats B", "28.7 to 27.0", ("B", "single"), ("D", "single")),
    Claim("1 deeper: E beats D", "27.0 to 27.3", ("D", "single"), ("E", "single")),
    Claim("2 LRN does not help", "29.6 to 29.7", ("A", "single"), ("A-LRN", "single"), equal=True),
    Claim("3 non-linearity: C beats B", "28.7 to 28.1", ("B", "single"), ("C", "single")),
    Claim("3 context: D beats C", "28.1 to 27.0", ("C", "single"), ("D", "single")),
    Claim("4 scale jitter helps", "27.0 to 25.6", ("D", "single"), ("D jitter", "single")),
    Claim("5 several scales: D", "27.0 to 26.6", ("D", "single"), ("D", "multi")),
    Claim(
        "5 several scales: D jitter", "25.6 to 24.8", ("D jitter", "single"), ("D jitter", "multi")
    ),
    Claim("6 crops beat dense", "24.8 to 24.6", ("D jitter", "multi"), ("D jitter", "crops")),
    Claim("6 both beat dense", "24.8 to 24.4", ("D jitter", "multi"), ("D jitter", "both")),
    Claim("6 both beat crops", "24.6 to 24.4", ("D jitter", "crops"), ("D jitter", "both")),
    Claim("7 from A equals at random", "said", ("D", "single"), ("D from A", "single"), equal=True),
    Claim("7 Glorot equals from A", "said", ("D from A", "single"), ("D Glorot", "single"), True),
)
TESTS = {"single": "dense", "multi": "dense", "crops": "multi-crop", "both": "both"}
# Tested in all ways. The others in one, for 150 crops an image cost far more than a dense pass.
TESTED_FULLY = ("D", "D jitter")


def test(base: Recipe, runs: Mapping[str, Run]) -> dict[tuple[str, str], Evaluation]:
    """(net, way of testing) -> what it found on its seed's test images."""
    # All at the scales of jittered training.
    jittered = recipes(base, Path(), base.seed)["D jitter"]
    single, several = (
        [scale for scale in scales if scale is not None] for scales in paper_scales(jittered)
    )
    return {
        (name, how): evaluate_runs(
            [run],
            "test",
            verbose=True,
            protocol=protocol,
            scales=single if how == "single" else several,
        )[0]
        for name, run in runs.items()
        for how, protocol in TESTS.items()
        if how == "single" or name in TESTED_FULLY
    }


def save(
    path: Path,
    base: Recipe,
    runs: Mapping[str, Run],
    found: Mapping[tuple[str, str], Evaluation],
) -> None:
    """A seed's results: of each net its recipe, its history, and which images it had right."""
    nets = {
        name: {
            "differs": _differences(base, run.recipe),
            "validation_accuracy": [row["val_accuracy"] for row in run.history],
            "right": {how: _packed(found[name, how]) for how in TESTS if (name, how) in found},
        }
        for name, run in runs.items()
    }
    images = next(iter(found.values())).count
    content = json.dumps({"base": _fields(base), "images": images, "nets": nets}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_text(content, encoding="utf-8"))


def load(path: Path, base: Recipe) -> dict[tuple[str, str], Evaluation]:
    """What `save` wrote: of the classes, whether the image's own or another.

    Raises:
        ValueError: it is of another recipe than `base`.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if Recipe.from_json(json.dumps(content["base"])) != _placeless(base):
        raise ValueError(f"{path} is of another recipe; choose another --results, or remove it")
    found = {}
    for name, net in content["nets"].items():
        for how, packed in net["right"].items():
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8))
            right = bits[: content["images"]].astype(np.float32)
            probabilities = np.stack([right, 1 - right], axis=1)
            labels = np.zeros(len(right), np.int32)
            found[name, how] = Evaluation(labels, probabilities, ("its own", "another"))
    return found


def _packed(evaluation: Evaluation) -> str:
    right = evaluation.probabilities.argmax(axis=1) == evaluation.labels
    return np.packbits(right).tobytes().hex()


def _placeless(base: Recipe) -> Recipe:
    """A recipe as it is on every machine and for any seed."""
    return base.replace(source="folder:cifar10", seed=0)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return json.loads(_placeless(recipe).to_json())


def _differences(base: Recipe, recipe: Recipe) -> dict[str, Any]:
    """The fields of a run that are not the base's; of a run that it begins from, the name."""
    if "/" in recipe.initialization:
        recipe = recipe.replace(initialization=Path(recipe.initialization).name)
    same = _fields(base)
    return {"seed": recipe.seed} | {k: v for k, v in _fields(recipe).items() if v != same[k]}


def pooled(
    found: Mapping[tuple[str, str, int], Evaluation], which: tuple[str, str], seeds: Sequence[int]
) -> Evaluation:
    """The seeds' test images end to end."""
    parts = [found[(*which, seed)] for seed in seeds]
    return Evaluation(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        parts[0].class_names,
    )


def judge(
    claim: Claim, found: Mapping[tuple[str, str, int], Evaluation], seeds: Sequence[int]
) -> dict[str, Any]:
    """A claim's figures: errors and their difference in per cent, other minus one."""
    one, other = (pooled(found, which, seeds) for which in (claim.one, claim.other))
    between = compare(one, other)
    each = [
        100 * (found[(*claim.one, seed)].top1 - found[(*claim.other, seed)].top1) for seed in seeds
    ]
    low, high = (-100 * bound for bound in reversed(between.interval))
    if claim.equal:
        verdict = "no difference" if low <= 0 <= high else "better" if high < 0 else "worse"
    elif high < 0 and max(each) < 0:
        verdict = "holds"
    elif low > 0 and min(each) > 0:
        verdict = "reversed"
    else:
        verdict = "not shown"
    return {
        "claim": claim.text,
        "paper": claim.paper,
        "one": 100 * (1 - one.top1),
        "other": 100 * (1 - other.top1),
        "difference": -100 * between.difference,
        "interval": [low, high],
        "seeds": each,
        "p": between.p_value,
        "verdict": verdict,
    }


def markdown(judged: Sequence[Mapping[str, Any]]) -> str:
    """The claims as a table for a README."""
    lines = [
        "| claim | paper | here, error | difference, 95 % interval | by seed | |",
        "|---|---|---|---|---|---|",
    ]
    for row in judged:
        low, high = row["interval"]
        seeds = ", ".join(map(_signed, row["seeds"]))
        lines.append(
            f"| {row['claim']} | {row['paper']} | {row['one']:.2f} to {row['other']:.2f} "
            f"| {_signed(row['difference'])} ({_signed(low)} to {_signed(high)}) | {seeds} "
            f"| {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no -0.00


def plot(
    found: Mapping[tuple[str, str, int], Evaluation], seeds: Sequence[int], path: Path
) -> None:
    """Errors of the nets at one scale, and of D by test: a dot a seed, a line the mean."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    nets = [net for net in RUNS if all((net, "single", seed) in found for seed in seeds)]
    _draw(left, [(net, "single") for net in nets], nets, found, seeds)
    left.set_title("dense testing at one scale")
    left.axvline(len(NETS) - 0.5, color="#bbbbbb", linewidth=1, linestyle=":")
    names = {"single": "dense,\none scale", "multi": "dense,\nseveral", "crops": "crops,\nseveral"}
    names["both"] = "both,\nseveral"
    for net, color in zip(TESTED_FULLY, ("#8aa4c8", "#1f4e9c"), strict=True):
        _draw(right, [(net, how) for how in names], names.values(), found, seeds, color, net)
    right.set_title("ways of testing D")
    right.legend(frameon=False)
    left.set_ylabel("top-1 error, %")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
    write_atomically(path, lambda target: figure.savefig(target, format="png"))


def _draw(axis, columns, names, found, seeds, color="#1f4e9c", label=None) -> None:
    errors = np.array(
        [[100 * (1 - found[(*which, seed)].top1) for seed in seeds] for which in columns]
    )
    places = np.arange(len(columns))
    axis.plot(places, errors.mean(axis=1), "_", markersize=22, color=color, label=label)
    for column in errors.T:
        axis.plot(places, column, "o", markersize=4, color=color, alpha=0.6)
    axis.set_xlim(-0.6, len(columns) - 0.4)  # room for the outermost marks
    axis.set_xticks(places, names, rotation=0 if label else 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = Path(__file__).parent
    parser.add_argument("data", help="CIFAR-10's images, as <class>/<image>")
    parser.add_argument("--workdir", type=Path, default=Path("runs/claims"))
    parser.add_argument("--recipe", type=Path, default=here / "recipes" / "cifar10_claims.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, help="seed-K.json and the table (default: workdir)")
    parser.add_argument(
        "--train",
        nargs="+",
        choices=RUNS,
        metavar="NET",
        help=f"train these only, and test nothing; of {', '.join(RUNS)}",
    )
    options = parser.parse_args()
    base = load_recipe(options.recipe).replace(source=f"folder:{options.data}")
    if options.train:
        for seed in options.seeds:
            train(base, options.workdir, seed, options.train)
        return
    results = options.results or options.workdir
    for seed in options.seeds:
        path = results / f"seed-{seed}.json"
        if not path.exists():
            runs = train(base, options.workdir, seed)
            save(path, base, runs, test(base.replace(seed=seed), runs))
    found = {
        (*which, int(path.stem.removeprefix("seed-"))): evaluation
        for path in results.glob("seed-*.json")
        for which, evaluation in load(path, base).items()
    }
    seeds = sorted({seed for *_, seed in found})
    judged = [
        judge(claim, found, seeds)
        for claim in CLAIMS
        if all((*which, seed) in found for which in (claim.one, claim.other) for seed in seeds)
    ]
    text = markdown(judged)
    for name, content in (("claims.json", json.dumps(judged, indent=2)), ("claims.md", text)):
        write_atomically(results / name, lambda path, c=content: path.write_text(c))
    plot(found, seeds, results / "claims.png")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"claims: {error}")

"""Test the paper's claims on CIFAR-10: which network, scale, evaluation and start is better.

command:  python training/claims.py DIR --workdir runs/claims
          (DIR holds CIFAR-10's images as <class>/<image>)
hardware: 2 CPU cores
result:   training/README.md, training/claims

Each run of each seed has a run directory, and all predicted probabilities are kept, so an
interrupted command resumes. A seed's test images are read after all its runs are trained; nothing
is selected on them. The results of a seed are one small file, seed-K.json: the recipes, and the
images that each network classified correctly. The table combines all such files of a folder, so
several machines can run the seeds.

Several processes can share the runs of a seed. For networks this small, one core for each process
is faster: `taskset -c 0 python training/claims.py DIR --nets A B ... --train-only`, then the plain
command. A later command with other `--nets` adds these to the seeds' files.

A seed decides the split too. A tenth of the test images of two seeds are the same, but the
intervals treat all images as different, so the intervals are a little too narrow. They describe
the choice of images. The figures by seed show the chance in the trainings.
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

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from keras_vgg import data  # noqa: E402
from keras_vgg.evaluation import Evaluation, compare  # noqa: E402
from keras_vgg.fit import (  # noqa: E402
    Run,
    TrainingDiverged,
    build_model,
    evaluation_transform,
    fit,
    load_source,
)
from keras_vgg.fit.inputs import channel_statistics  # noqa: E402
from keras_vgg.fit.model import initial_weights  # noqa: E402
from keras_vgg.recipe import Recipe, load_recipe  # noqa: E402
from keras_vgg.runs import evaluate_runs, paper_scales  # noqa: E402

NETS = ("A", "A-LRN", "B", "C", "D", "E")
PAPERS = (*NETS, "D jitter", "D from A", "D Glorot")
# Not the paper's. They tell whether depth itself harms, or only the training of deep networks.
NORMALIZED = ("B batch norm", "D batch norm")
RUNS = (*PAPERS, *NORMALIZED)


def recipes(base: Recipe, workdir: Path, seed: int) -> dict[str, Recipe]:
    """Return the recipes of one seed by name; a run that others begin from comes before them."""
    base = base.replace(seed=seed)
    assert base.train_scale_range is not None, "the jittered scale is computed from the recipe's"
    low, high = base.train_scale_range
    step = base.image_size // 8
    by_name = {net: base.replace(configuration=net) for net in NETS}
    d = by_name["D"]
    by_name["D jitter"] = d.replace(train_scale=(low - step, high + step))
    by_name["D from A"] = d.replace(initialization=str(directory(workdir, "A", seed)))
    # The paper does not divide pixels by their deviation. With divided pixels, the signal after 13
    # layers is so small that D was at chance after 4 epochs.
    by_name["D Glorot"] = d.replace(initialization="glorot", std_rgb=(1.0, 1.0, 1.0))
    for name in NORMALIZED:
        by_name[name] = base.replace(configuration=name[0], batch_norm=True)
    return by_name


def directory(workdir: Path, name: str, seed: int) -> Path:
    return workdir / f"{name.lower().replace(' ', '_')}-{seed}"


def train(base: Recipe, workdir: Path, seed: int, only: Container[str] = RUNS) -> dict[str, Run]:
    """Train a seed's runs and return them by name, without runs whose loss became NaN."""
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
    """The claim that `other` has a lower top-1 error than `one`; with `equal`, the same error."""

    text: str
    paper: str
    one: tuple[str, str]
    other: tuple[str, str]
    equal: bool = False


# Each side of a claim is a network and its evaluation: dense at one or several scales, crops, both.
CLAIMS = (
    Claim("1 deeper: B beats A", "29.6 to 28.7", ("A", "single"), ("B", "single")),
    Claim("1 deeper: D beats B", "28.7 to 27.0", ("B", "single"), ("D", "single")),
    Claim("1 deeper: E beats D", "27.0 to 27.3", ("D", "single"), ("E", "single")),
    Claim(
        "1 deeper, with batch norm: D beats B",
        "no figure",
        ("B batch norm", "single"),
        ("D batch norm", "single"),
    ),
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
    Claim(
        "7 from A equals at random",
        "no figure",
        ("D", "single"),
        ("D from A", "single"),
        equal=True,
    ),
    Claim(
        "7 Glorot equals from A", "no figure", ("D from A", "single"), ("D Glorot", "single"), True
    ),
)
TESTS = {"single": "dense", "multi": "dense", "crops": "multi-crop", "both": "both"}
# These have all evaluations. The others have one: 150 crops cost much more than a dense pass.
TESTED_FULLY = ("D", "D jitter")


def test(base: Recipe, runs: Mapping[str, Run]) -> dict[tuple[str, str], Evaluation]:
    """Evaluate a seed's runs on its test images; return the results by (network, evaluation)."""
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
    results: Mapping[tuple[str, str], Evaluation],
) -> None:
    """Write a seed's results: each network's recipe, history and correctly classified images.

    Networks that the file has already stay in it.
    """
    nets = _content(path, base)["nets"] if path.exists() else {}
    nets |= {
        name: {
            "differs": _differences(base, run.recipe),
            # With augmentation and dropout.
            "training_accuracy": [row["accuracy"] for row in run.history],
            "validation_accuracy": [row["val_accuracy"] for row in run.history],
            "learning_rate": [row["learning_rate"] for row in run.history],
            "right": {how: _packed(results[name, how]) for how in TESTS if (name, how) in results},
        }
        for name, run in runs.items()
    }
    images = next(iter(results.values())).count
    content = json.dumps({"base": _fields(base), "images": images, "nets": nets}, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda target: target.write_text(content, encoding="utf-8"))


def load(path: Path, base: Recipe) -> dict[tuple[str, str], Evaluation]:
    """Read a file of `save`; its evaluations have two classes, the image's own and another.

    Raises:
        ValueError: the file holds results of another recipe than `base`.
    """
    content = _content(path, base)
    results = {}
    for name, net in content["nets"].items():
        for how, packed in net["right"].items():
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8))
            right = bits[: content["images"]].astype(np.float32)
            probabilities = np.stack([right, 1 - right], axis=1)
            labels = np.zeros(len(right), np.int32)
            results[name, how] = Evaluation(labels, probabilities, ("its own", "another"))
    return results


def _content(path: Path, base: Recipe) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if Recipe.from_json(json.dumps(content["base"])) != _without_place(base):
        raise ValueError(
            f"{path} holds results of another recipe; pass another --results, or delete it"
        )
    return content


def _packed(evaluation: Evaluation) -> str:
    right = evaluation.probabilities.argmax(axis=1) == evaluation.labels
    return np.packbits(right).tobytes().hex()


def _without_place(base: Recipe) -> Recipe:
    """Return a recipe without the machine's folder and the seed."""
    return base.replace(source="folder:cifar10", seed=0)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return json.loads(_without_place(recipe).to_json())


def _differences(base: Recipe, recipe: Recipe) -> dict[str, Any]:
    """Return the fields in which a run differs from the base; a run to begin from, by its name."""
    if "/" in recipe.initialization:
        recipe = recipe.replace(initialization=Path(recipe.initialization).name)
    base_fields = _fields(base)
    return {"seed": recipe.seed} | {k: v for k, v in _fields(recipe).items() if v != base_fields[k]}


def gradients(
    base: Recipe, run: Run, images: int = 512
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the norm of each convolution's gradient, divided by the norm of its weights.

    The loss is that of validation images of all classes, without augmentation and dropout, in
    float32; batch norm uses their own statistics, as in training.

    Returns:
        The figures by layer, with the weights before the first epoch and with those of the best.
    """
    recipe = run.recipe.replace(source=base.source, dropout=0.0)
    source = load_source(recipe)
    assert source.validation is not None
    sample = source.validation.spread(images)
    batches = data.evaluation_dataset(sample, images, evaluation_transform(recipe))
    pixels, labels = next(iter(batches))
    keras.utils.set_random_seed(recipe.seed)
    model = build_model(
        recipe,
        len(source.class_names),
        channel_statistics(recipe, source.train),
        initial=initial_weights(recipe),
    )
    before = _gradients_of(model, pixels, labels)
    model.set_weights(run.model().get_weights())
    return before, _gradients_of(model, pixels, labels)


def _gradients_of(model: keras.Model, pixels: tf.Tensor, labels: tf.Tensor) -> dict[str, float]:
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    kernels: list[Any] = [variable.value for layer in layers for variable in layer.weights[:1]]
    with tf.GradientTape() as tape:
        answers = model(tf.cast(pixels, tf.float32), training=True)
        errors: Any = keras.losses.sparse_categorical_crossentropy(labels, answers)
        loss = tf.reduce_mean(errors)
    found = tape.gradient(loss, kernels)
    return {
        layer.name: float(tf.norm(gradient) / tf.norm(kernel))
        for layer, gradient, kernel in zip(layers, found, kernels, strict=True)
    }


def gradients_table(base: Recipe, workdir: Path, seeds: Sequence[int], nets: Sequence[str]) -> str:
    """Return a Markdown table of `gradients`, medians of the seeds: at the start, and after."""
    columns = {}
    for net in nets:
        by_seed = [gradients(base, Run.open(directory(workdir, net, seed))) for seed in seeds]
        for when, figures in zip(("before", "after"), zip(*by_seed, strict=True), strict=True):
            columns[f"{net}, {when} training"] = {
                layer: float(np.median([found[layer] for found in figures])) for layer in figures[0]
            }
    layers = list(max(columns.values(), key=len))
    lines = [f"| layer | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for layer in layers:
        cells = [f"{found[layer]:.2g}" if layer in found else "" for found in columns.values()]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pooled(
    results: Mapping[tuple[str, str, int], Evaluation],
    which: tuple[str, str],
    seeds: Sequence[int],
) -> Evaluation:
    """Return one evaluation of the test images of all seeds."""
    parts = [results[(*which, seed)] for seed in seeds]
    return Evaluation(
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        parts[0].class_names,
    )


def judge(
    claim: Claim, results: Mapping[tuple[str, str, int], Evaluation], seeds: Sequence[int]
) -> dict[str, Any]:
    """Return a claim's figures: the errors and their difference (other minus one), in percent."""
    one, other = (pooled(results, which, seeds) for which in (claim.one, claim.other))
    comparison = compare(one, other)
    by_seed = [
        100 * (results[(*claim.one, seed)].top1 - results[(*claim.other, seed)].top1)
        for seed in seeds
    ]
    low, high = (-100 * bound for bound in reversed(comparison.interval))
    if claim.equal:
        verdict = "no difference" if low <= 0 <= high else "better" if high < 0 else "worse"
    elif high < 0 and max(by_seed) < 0:
        verdict = "holds"
    elif low > 0 and min(by_seed) > 0:
        verdict = "reversed"
    else:
        verdict = "not shown"
    return {
        "claim": claim.text,
        "paper": claim.paper,
        "one": 100 * (1 - one.top1),
        "other": 100 * (1 - other.top1),
        "difference": -100 * comparison.difference,
        "interval": [low, high],
        "seeds": by_seed,
        "p": comparison.p_value,
        "verdict": verdict,
    }


def markdown(judged: Sequence[Mapping[str, Any]]) -> str:
    """Return the claims as a Markdown table."""
    lines = [
        "| claim | error in the paper, % | error here, % | difference (95 % interval) "
        "| difference by seed | verdict |",
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
    results: Mapping[tuple[str, str, int], Evaluation], seeds: Sequence[int], path: Path
) -> None:
    """Plot the errors of the networks at one scale, and of D by evaluation.

    A dot is a seed, and a line is the mean.
    """
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    nets = [net for net in RUNS if all((net, "single", seed) in results for seed in seeds)]
    _draw(left, [(net, "single") for net in nets], nets, results, seeds)
    left.set_title("dense testing at one scale")
    plain = sum(net in NETS for net in nets)
    left.axvline(plain - 0.5, color="#bbbbbb", linewidth=1, linestyle=":")
    names = {"single": "dense,\none scale", "multi": "dense,\nseveral", "crops": "crops,\nseveral"}
    names["both"] = "both,\nseveral"
    for net, color in zip(TESTED_FULLY, ("#8aa4c8", "#1f4e9c"), strict=True):
        if net in nets:
            _draw(right, [(net, how) for how in names], names.values(), results, seeds, color, net)
            right.legend(frameon=False)
    right.set_title("ways of testing D")
    left.set_ylabel("top-1 error, %")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
    write_atomically(path, lambda target: figure.savefig(target, format="png"))


def _draw(axis, columns, names, results, seeds, color="#1f4e9c", label=None) -> None:
    errors = np.array(
        [[100 * (1 - results[(*which, seed)].top1) for seed in seeds] for which in columns]
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
    parser.add_argument(
        "--results", type=Path, help="folder of seed-K.json and the table (default: workdir)"
    )
    parser.add_argument(
        "--nets",
        nargs="+",
        choices=RUNS,
        default=PAPERS,
        metavar="NET",
        help=f"train and test these, by default {', '.join(PAPERS)}; also {', '.join(NORMALIZED)}",
    )
    parser.add_argument("--train-only", action="store_true", help="test no network")
    parser.add_argument(
        "--gradients",
        action="store_true",
        help="print each layer's gradient at the start and after training, of trained networks",
    )
    options = parser.parse_args()
    base = load_recipe(options.recipe).replace(source=f"folder:{options.data}")
    if options.gradients:
        print(gradients_table(base, options.workdir, options.seeds, options.nets))
        return
    if options.train_only:
        for seed in options.seeds:
            train(base, options.workdir, seed, options.nets)
        return
    folder = options.results or options.workdir
    for seed in options.seeds:
        path = folder / f"seed-{seed}.json"
        known = _content(path, base)["nets"] if path.exists() else {}
        missing = [net for net in options.nets if net not in known]
        if missing:
            runs = train(base, options.workdir, seed, missing)
            save(path, base, runs, test(base.replace(seed=seed), runs))
    results = {
        (*which, int(path.stem.removeprefix("seed-"))): evaluation
        for path in folder.glob("seed-*.json")
        for which, evaluation in load(path, base).items()
    }
    seeds = sorted({seed for *_, seed in results})
    judged = []
    for claim in CLAIMS:
        sides = (claim.one, claim.other)
        having = [seed for seed in seeds if all((*side, seed) in results for side in sides)]
        if having == seeds:
            judged.append(judge(claim, results, seeds))
        elif having:
            print(f"left out, since only seeds {having} have its networks: {claim.text}")
    text = markdown(judged)
    for name, content in (("claims.json", json.dumps(judged, indent=2)), ("claims.md", text)):
        write_atomically(folder / name, lambda path, c=content: path.write_text(c))
    plot(results, seeds, folder / "claims.png")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"claims: {error}")

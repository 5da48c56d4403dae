"""Prune the filters of a finished run to several shares of its multiply-accumulates, and compare.

    python training/prune_cifar10.py RUN --out DIR --shares 0.5 0.25 --epochs 30
    python training/prune_cifar10.py RUN --out DIR --shares 0.5 --epochs 8 --torch-pruning

Each share is one call of `keras-vgg prune`. With --torch-pruning, the package torch-pruning
(`pip install torch-pruning`) chooses the filters too, by its group L2 norm over the whole network,
or with `--torch-pruning taylor` by how 1,000 training images say that the loss changes; these are
removed from the same weights, to no more multiply-accumulates, and the network is trained by the
same recipe. Every network is then tested once on the run's test split and exported as litert and
litert_int8, whose latency at batch 1 is measured. DIR gets pruned.json, pruned.png and a Markdown
table, with the networks of earlier calls of the same RUN too. Repeat the command after an
interruption.

Measured with a half and a quarter of the multiply-accumulates; training/README.md has the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import hardware
from keras_vgg.files import sha256_of, write_json

FORMATS = ("litert", "litert_int8")
# An importance of torch-pruning -> what ends the name of a network with its filters.
TORCH_PRUNING = {"l2": "torch-pruning", "taylor": "torch-pruning-taylor"}


def chosen_by_torch_pruning(
    model: Any, limit: float, macs: Any, examples: tuple[np.ndarray, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Return the filters that torch-pruning keeps: layer -> their numbers, ascending.

    Args:
        model: A VGG of this package with `head="gap"`.
        limit: The most multiply-accumulates allowed.
        macs: A function from the number of filters of each layer to the multiply-accumulates.
        examples: Training images and their classes, for the importance by the loss. None: by the
            L2 norm.
    """
    import torch
    import torch_pruning  # pyright: ignore[reportMissingImports]

    from keras_vgg.export import prune

    twin, convolutions = as_torch(model)
    numbers = {c: np.arange(c.out_channels) for c in convolutions}
    names = dict(
        zip(convolutions, (layer.name for layer in prune.convolutions(model)), strict=True)
    )
    side = model.input_shape[1]
    importances, batches = torch_pruning.importance, []
    if examples is not None:
        inputs = preprocessed(model, examples[0])
        batches = [torch.tensor(a).split(100) for a in (inputs, np.asarray(examples[1], np.int64))]
    pruner = torch_pruning.pruner.BasePruner(
        twin,
        torch.zeros(1, convolutions[0].in_channels, side, side),
        importance=importances.GroupTaylorImportance()
        if batches
        else importances.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.95,
        iterative_steps=200,
        ignored_layers=[twin[-1]],
    )
    while macs([len(kept) for kept in numbers.values()]) > limit:
        twin.zero_grad()
        for pictures, labels in zip(*batches, strict=True):
            loss = torch.nn.functional.cross_entropy(twin(pictures), labels, reduction="sum")
            loss.backward()
        for group in pruner.step(interactive=True):
            dependency, indices = group[0]
            layer = dependency.target.module
            numbers[layer] = np.delete(numbers[layer], indices)
            group.prune()
    return {names[layer]: kept for layer, kept in numbers.items()}


def preprocessed(model: Any, pictures: np.ndarray) -> np.ndarray:
    """Return what the first convolution of a VGG gets: [n, channels, side, side] float32.

    The network that PyTorch sees begins there. NumPy has no bfloat16, and PyTorch refuses the type
    that stands for it.

    Args:
        pictures: [n, side, side, channels] in [0, 255].
    """
    import keras

    inside = keras.Model(model.inputs[0], model.get_layer("block1_conv1").input)
    return np.asarray(inside(pictures)).astype(np.float32).transpose(0, 3, 1, 2)


def as_torch(model: Any) -> tuple[Any, list[Any]]:
    """Return a VGG as a PyTorch network, and the convolutions in it.

    torch-pruning reads the weights and how the layers hang together, so the preprocessing is left
    out.
    """
    import keras
    import torch
    from torch import nn

    stack, convolutions = [], []
    for layer in model.layers:
        weights = [torch.tensor(np.asarray(values)) for values in layer.get_weights()]
        if isinstance(layer, keras.layers.Conv2D):
            kernel = weights[0].permute(3, 2, 0, 1)
            twin: Any = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding="same")
            state = {"weight": kernel, "bias": weights[1]}
            convolutions.append(twin)
            stack.append(twin)
            if layer.activation is keras.activations.relu:
                stack.append(nn.ReLU())
        elif isinstance(layer, keras.layers.BatchNormalization):
            twin = nn.BatchNorm2d(len(weights[0]))
            names = ("weight", "bias", "running_mean", "running_var")
            state = {
                **dict(zip(names, weights, strict=True)),
                "num_batches_tracked": torch.tensor(0),
            }
            stack.append(twin)
        elif isinstance(layer, keras.layers.Dense):
            twin = nn.Linear(weights[0].shape[0], weights[0].shape[1])
            state = {"weight": weights[0].T, "bias": weights[1]}
            stack += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), twin]
        else:
            if isinstance(layer, keras.layers.MaxPooling2D):
                stack.append(nn.MaxPool2d(2))
            elif re.fullmatch(r"block\d_conv\d_relu", layer.name):
                stack.append(nn.ReLU())
            continue
        twin.load_state_dict(state)
    return nn.Sequential(*stack).eval(), convolutions


def with_torch_prunings_filters(run: Any, reference: Any, folder: Path, importance: str) -> Any:
    """Train the run without the filters that torch-pruning removes, by the recipe of `reference`.

    Args:
        run: The original run.
        reference: The run of `keras-vgg prune`, which gives the recipe and the cost.
        folder: Where to write.
        importance: A key of TORCH_PRUNING.
    """
    from keras_vgg import train
    from keras_vgg.export import prune
    from keras_vgg.files import write_atomically
    from keras_vgg.fit import evaluation_transform
    from keras_vgg.runs.images import as_arrays, open_split
    from keras_vgg.runs.pruning import macs_of

    macs = partial(macs_of, run.recipe, len(run.class_names))
    path = folder / "network.keras"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model, examples = run.model(), None
        if importance == "taylor":
            few = open_split(run, "train").spread(1000)
            examples = as_arrays(few, evaluation_transform(run.recipe))
        kept = chosen_by_torch_pruning(model, macs(reference.recipe.filters), macs, examples)
        write_atomically(path, prune.remove_filters(model, kept).save)
    import keras

    small: Any = keras.saving.load_model(path)
    widths = tuple(layer.filters for layer in prune.convolutions(small))
    recipe = reference.recipe.replace(filters=widths, init=str(path.resolve()))
    return train(recipe, folder / "run", verbose=2)


def measured(name: str, run: Any, folder: Path, images: int) -> dict[str, Any]:
    """Test a run and export it to a folder; return its row."""
    from keras_vgg import architecture
    from keras_vgg.run import read_fields
    from keras_vgg.runs import evaluate_run, export_run

    if "test" not in run.results:
        evaluate_run(run, "test", verbose=False)
    record, digest = folder / "export.json", sha256_of(run.model_path)
    # An export of an earlier network of this run is replaced.
    if not record.is_file() or read_fields(record).get("model_sha256") != digest:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The table shows what a file loses.
        export_run(run, folder, formats=FORMATS, images=images, tolerance=2.0, overwrite=True)
    recipe = run.recipe
    totals = architecture.totals(recipe.layers(len(run.class_names)))
    test = run.results["test"]
    files = {file["format"]: file for file in read_fields(record)["artifacts"]}
    return {
        "network": name,
        "filters": [
            *architecture.widths(recipe.configuration, recipe.width_multiplier, recipe.filters)
        ],
        "macs": totals.macs,
        "parameters": totals.parameters,
        "validation": run.results["validation_accuracy"],
        "test": test["top1"],
        "test_interval": test["top1_interval"],
        "files": files,
    }


def require_same(path: Path, record: Mapping[str, Any], identity: Mapping[str, str | int]) -> None:
    """Raise ValueError if pruned.json holds figures of another network or other images.

    A file of an earlier version states neither, and is accepted.
    """
    words = {"model_sha256": "another RUN", "images": "another number of --images"}
    for name, value in identity.items():
        if name in record and record[name] != value:
            raise ValueError(
                f"{path} holds figures of {words[name]} ({name} {record[name]}, not {value}):"
                " repeat what was named then, or name another --out"
            )


def together(
    earlier: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the rows of earlier calls and of this one, the network with the most work first."""
    by_name = {row["network"]: row for row in (*earlier, *rows)}
    return sorted(by_name.values(), key=lambda row: row["macs"], reverse=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table.

    Of each file: the latency at two threads, also as a share of the first row's, and the accuracy
    on the validation images that verified the file.
    """
    titles = (f"{name}: latency, validation accuracy" for name in FORMATS)
    lines = [
        "| network | MACs | parameters | test accuracy | " + " | ".join(titles) + " |",
        "|---|---|---|---|" + "---|" * len(FORMATS),
    ]
    for row in rows:
        cells = []
        for name in FORMATS:
            latency, first = (latency_of(r, name) for r in (row, rows[0]))
            accuracy = row["files"][name]["top1"]
            cells.append(f"{latency:.2f} ms, {latency / first:.2f}; {accuracy:.2%}")
        low, high = row["test_interval"]
        lines.append(
            f"| {row['network']} | {row['macs'] / 1e6:,.1f} million,"
            f" {row['macs'] / rows[0]['macs']:.2f} | {row['parameters']:,} |"
            f" {row['test']:.2%} ({low:.2%} to {high:.2%}) | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def latency_of(row: Mapping[str, Any], name: str) -> float:
    """Return the median latency in ms of a file at batch 1 with two threads."""
    return row["files"][name]["latency_ms"]["2"][0]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each file's accuracy against its size and its latency.

    The accuracy is that on the validation images that verified the file. Numbers are shares of the
    MACs.
    """
    from keras_vgg import plotting
    from keras_vgg.plotting import INK, SERIES

    figure, (left, right) = plotting.new_figure(10, 4.2, columns=2, sharey=True)
    original = rows[0]
    # What ends a name, or "" for keras-vgg prune -> the original and the networks of that name.
    ways: dict[str, list[Mapping[str, Any]]] = {"": [original]}
    for row in rows[1:]:
        _, comma, way = row["network"].partition(",")
        ways.setdefault(comma + way, [original]).append(row)
    for number, name in enumerate(FORMATS):
        for (suffix, series), style in zip(ways.items(), ("o-", "o:", "o--"), strict=False):
            accuracies = [100 * row["files"][name]["top1"] for row in series]
            sizes = [row["files"][name]["bytes"] / 1e6 for row in series]
            latencies = [latency_of(row, name) for row in series]
            for axes, values in ((left, sizes), (right, latencies)):
                label = f"{name}{suffix}"
                axes.plot(values, accuracies, style, color=SERIES[number], label=label)
                for row, x, y in zip(series, values, accuracies, strict=True):
                    share = f"{row['macs'] / original['macs']:.2f}"
                    axes.annotate(share, (x, y), (5, 4), textcoords="offset points", fontsize=7)
    left.set_xlabel("file (MB)")
    right.set_xlabel("latency at batch 1, two threads (ms)")
    left.set_ylabel("validation accuracy of the file (%)")
    for axes in (left, right):
        axes.set_xlim(0)
    lines = left.get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=4, frameon=False, labelcolor=INK)
    plotting.save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--criterion", default="taylor")
    parser.add_argument("--images", type=int, default=1000, help="images that verify an export")
    parser.add_argument("--torch-pruning", nargs="?", const="l2", choices=TORCH_PRUNING)
    arguments = parser.parse_args()
    if arguments.torch_pruning and importlib.util.find_spec("torch_pruning") is None:
        sys.exit("error: --torch-pruning needs `pip install torch-pruning`")
    hardware.prepare_environment()
    from keras_vgg.run import Run, read_fields
    from keras_vgg.runs import prune_run

    run, record = Run.open(arguments.run), arguments.out / "pruned.json"
    run.require_finished()
    run.require_model()
    identity = {"model_sha256": sha256_of(run.model_path), "images": arguments.images}
    before = read_fields(record) if record.is_file() else {}
    require_same(record, before, identity)
    earlier = before.get("rows", [])
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(record, {**identity, "rows": earlier})  # DIR is this run's from now on
    exports, images = arguments.out / "exports", arguments.images
    rows = [measured("original", run, exports / "original", images)]
    for share in arguments.shares:
        name = f"{share:g} of the MACs"
        pruned = prune_run(
            run,
            arguments.out / f"share-{share:g}",
            macs=share,
            criterion=arguments.criterion,
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            verbose=2,
        ).run
        rows.append(measured(name, pruned, exports / f"share-{share:g}", images))
        if arguments.torch_pruning:
            way = TORCH_PRUNING[arguments.torch_pruning]
            folder = arguments.out / f"{way}-{share:g}"
            other = with_torch_prunings_filters(run, pruned, folder, arguments.torch_pruning)
            rows.append(measured(f"{name}, {way}", other, exports / folder.name, images))
        all_rows = together(earlier, rows)
        write_json(record, {**identity, "rows": all_rows})
        (arguments.out / "pruned.md").write_text(table(all_rows), encoding="utf-8")
        draw(all_rows, arguments.out / "pruned.png")
    print(table(together(earlier, rows)))


if __name__ == "__main__":
    main()

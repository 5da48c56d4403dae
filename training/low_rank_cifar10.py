"""Factorise the convolutions of a finished run to the latency of its pruned network, and compare.

    python training/low_rank_cifar10.py RUN PRUNED --out DIR

RUN is a finished run with batch norm, PRUNED a run that `keras-vgg prune` made of it. Each 3x3
convolution but the first becomes two: 3x3 with fewer filters, and 1x1 to the old number of them.
The ranks are those that keep most of the answers' energy on training images (Zhang et al.,
arXiv:1505.06798), at the largest share of the multiply-accumulates whose LiteRT file is at most as
slow as that of PRUNED. The factorised network is then trained as PRUNED was: as many epochs, the
same learning rate, the same teacher, the same images. DIR gets low_rank.json and the network.

Measured at half of the multiply-accumulates: the factorised network is smaller and faster, and its
accuracy is equal within chance. training/README.md has the figures, and why it was left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import hardware
from keras_vgg.files import write_json
from keras_vgg.recipe import Recipe

SHARES = (0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # of the multiply-accumulates, tried in this order
STEP = 8  # ranks are multiples of it
FORMATS = ("litert", "litert_int8")


def require_plain(recipe: Recipe, pruned: Recipe) -> None:
    """Refuse, with a ValueError, what `factorised` and `trained` would silently do otherwise."""
    if not recipe.batch_norm:
        raise ValueError("the run must have batch norm, which stands between factors and ReLU")
    plain = Recipe()
    names = ("optimizer", "clip_norm", "ema_momentum", "class_weights", "sampling", "loss")
    names += ("gradient_accumulation", "rgb_shift", "select_by", "early_stopping")
    for name in names:
        if getattr(pruned, name) != getattr(plain, name):
            raise ValueError(f"the pruned run was trained with {name}, which is not done here")


def spectra(model: Any, images: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the principal directions of each convolution's answers, before batch norm.

    Returns:
        layer -> (energies [filters], descending; directions [filters, filters], in columns; mean
        [filters]).
    """
    import keras

    from keras_vgg.export import prune

    layers = prune.convolutions(model)[1:]
    answers: Any = keras.Model(model.input, [layer.output for layer in layers])
    sums = {layer.name: np.zeros((layer.filters + 1,) * 2) for layer in layers}
    for start in range(0, len(images), 32):
        batch: Any = answers(images[start : start + 32], training=False)
        for layer, values in zip(layers, batch, strict=True):
            rows = np.asarray(values).reshape(-1, layer.filters)
            rows = np.pad(rows, ((0, 0), (0, 1)), constant_values=1.0)
            sums[layer.name] += rows.T @ rows
    directions = {}
    for name, total in sums.items():
        mean = total[-1, :-1] / total[-1, -1]
        covariance = total[:-1, :-1] / total[-1, -1] - np.outer(mean, mean)
        energy, vectors = np.linalg.eigh(covariance)
        directions[name] = (np.maximum(energy[::-1], 1e-12), vectors[:, ::-1], mean)
    return directions


def costs(model: Any) -> dict[str, tuple[int, int, int]]:
    """Return the cost of each convolution: layer -> (multiply-accumulates, cells, inputs)."""
    from keras_vgg.export import prune

    rows = {}
    for layer in prune.convolutions(model):
        output: Any = layer.output
        _, height, width, _ = output.shape
        kernel = np.shape(layer.kernel)
        rows[layer.name] = (height * width * math.prod(kernel), height * width, kernel[2])
    return rows


def ranks_for(
    share: float, energies: Mapping[str, np.ndarray], layers: Mapping[str, tuple[int, int, int]]
) -> dict[str, int]:
    """Return the rank of each layer that is to be factorised, for a share of the cost.

    The layer loses directions next whose loss of energy is least for each multiply-accumulate of
    its two factors. A layer whose factors would be no cheaper stays whole, at no loss.

    Args:
        share: Of the multiply-accumulates of all convolutions.
        energies: layer -> energies, descending.
        layers: What `costs` returns.
    """

    def cost(name: str, rank: int) -> int:
        whole, cells, inputs = layers[name]
        return min(whole, cells * rank * (9 * inputs + len(energies[name])))

    def price(name: str) -> float:
        rank, energy, (_, cells, inputs) = ranks[name], energies[name], layers[name]
        lost = math.log(energy[:rank].sum() / energy[: rank - STEP].sum())
        return lost / (cells * STEP * (9 * inputs + len(energy)))

    ranks = {name: len(energy) for name, energy in energies.items()}
    limit = share * sum(whole for whole, *_ in layers.values())
    fixed = sum(whole for name, (whole, *_) in layers.items() if name not in ranks)
    while fixed + sum(cost(name, rank) for name, rank in ranks.items()) > limit:
        candidates = [name for name, rank in ranks.items() if rank > STEP]
        if not candidates:
            raise ValueError(f"no ranks give {share:.0%} of the multiply-accumulates")
        ranks[min(candidates, key=price)] -= STEP
    return {name: rank for name, rank in ranks.items() if cost(name, rank) < layers[name][0]}


def factorised(
    model: Any,
    ranks: Mapping[str, int],
    directions: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Any:
    """Return a copy of a network with some convolutions as two: NAME_factor, and NAME (1x1)."""
    import keras

    def called_layer(layer: Any, *arguments: Any, **options: Any) -> Any:
        if layer.name not in ranks:
            return layer(*arguments, **options)
        config = layer.get_config()
        inner = config | {"use_bias": False, "filters": ranks[layer.name]}
        inner["name"] = f"{layer.name}_factor"
        x = keras.layers.Conv2D.from_config(inner)(arguments[0])
        return keras.layers.Conv2D.from_config(config | {"kernel_size": 1})(x)

    copy = keras.models.clone_model(model, call_function=called_layer)
    for layer in model.layers:
        if layer.name in ranks:
            kernel, bias = layer.get_weights()
            _, vectors, mean = directions[layer.name]
            kept = vectors[:, : ranks[layer.name]]
            # On the mean answer, the network answers as before.
            bias = kept @ (kept.T @ (bias - mean)) + mean
            copy.get_layer(f"{layer.name}_factor").set_weights([kernel @ kept])
            copy.get_layer(layer.name).set_weights([kept.T[np.newaxis, np.newaxis], bias])
        elif layer.weights:
            copy.get_layer(layer.name).set_weights(layer.get_weights())
    return copy


def exported(model: Any, class_names: Sequence[str], images: np.ndarray, folder: Path) -> Any:
    """Export a network, whatever its accuracy; return format -> (median ms of two threads, bytes).

    Returns:
        format -> {"1": milliseconds with one thread, "2": with two, "bytes": of the file}.
    """
    from keras_vgg.export import export

    artifacts = export(
        model,
        class_names,
        folder,
        images=images,
        calibration=images,
        formats=FORMATS,
        tolerance=100.0,
        overwrite=True,
    )
    return {
        artifact.format: {str(threads): times[0] for threads, times in artifact.latency_ms.items()}
        | {"bytes": artifact.bytes}
        for artifact in artifacts
    }


def trained(model: Any, pruned: Any, source: Any, path: Path) -> list[float]:
    """Train as the pruned run was trained; return the validation accuracy of each epoch.

    Args:
        model: The network to train.
        pruned: The run whose recipe is followed.
        source: Its data.
        path: Where the network of the best validation epoch goes.
    """
    import keras

    from keras_vgg import data
    from keras_vgg.fit import distillation, inputs

    recipe = pruned.recipe
    steps = data.steps_per_epoch(source.train, recipe.batch_size)
    rate: Any = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps * recipe.epochs)
    model.compile(
        keras.optimizers.SGD(rate, momentum=recipe.momentum, nesterov=recipe.nesterov),
        keras.losses.CategoricalCrossentropy(label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    teachers = distillation.load_teachers(recipe.teachers, source.class_names)
    distillation.teach(model, teachers, recipe)
    best = keras.callbacks.ModelCheckpoint(
        path, monitor="val_accuracy", mode="max", save_best_only=True
    )
    history = model.fit(
        inputs.training_data(recipe, source, data.ChannelStatistics.unknown()),
        epochs=recipe.epochs,
        steps_per_epoch=steps,
        validation_data=inputs.validation_data(recipe, source),
        callbacks=[best],
        verbose=2,  # pyright: ignore[reportArgumentType]  # Keras documents 2, and annotates text
    )
    return history.history["val_accuracy"]


def accuracy(model: Any, recipe: Any, split: Any) -> float:
    """Return the top-1 accuracy of a network on a split's centre crops."""
    from keras_vgg.fit import evaluation_transform
    from keras_vgg.runs.images import as_arrays

    images, labels = as_arrays(split, evaluation_transform(recipe))
    answers = model.predict(images, batch_size=100, verbose=0)
    return float(np.mean(answers.argmax(axis=-1) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    hardware.prepare_environment()
    import keras

    from keras_vgg.fit import evaluation_transform, load_source
    from keras_vgg.run import Run
    from keras_vgg.runs.images import as_arrays

    run, pruned = Run.open(arguments.run), Run.open(arguments.pruned)
    require_plain(run.recipe, pruned.recipe)
    arguments.out.mkdir(parents=True, exist_ok=True)
    recipe, model = run.recipe, run.model()
    source = load_source(recipe)
    images, _ = as_arrays(source.train.spread(1000), evaluation_transform(recipe))
    directions, layers = spectra(model, images), costs(model)
    energies = {name: energy for name, (energy, *_) in directions.items()}
    few = images[::5]

    def measure(network: Any) -> dict[str, Any]:
        return exported(network, run.class_names, few, arguments.out / "export")

    record: dict[str, Any] = {"original": measure(model), "pruned": measure(pruned.model())}
    limit, small = record["pruned"]["litert"]["1"], None
    for share in SHARES:
        ranks = ranks_for(share, energies, layers)
        small = factorised(model, ranks, directions)
        files = measure(small)
        record[f"{share:g}"] = {"ranks": ranks, "parameters": small.count_params(), **files}
        print(f"{share:.0%} of the MACs: {files}, the pruned network: {record['pruned']}")
        if files["litert"]["1"] <= limit:
            break
    write_json(arguments.out / "low_rank.json", record)
    if small is None or record[f"{share:g}"]["litert"]["1"] > limit:
        raise SystemExit(f"no share of {SHARES} is as fast as the pruned network")
    record["validation_untrained"] = accuracy(small, recipe, source.validation)
    path = arguments.out / "low_rank.keras"
    record["validation"] = trained(small, pruned, source, path)
    network: Any = keras.saving.load_model(path)
    record["test"] = accuracy(network, recipe, source.test)
    write_json(arguments.out / "low_rank.json", record)
    print({key: record[key] for key in ("validation_untrained", "validation", "test")})


if __name__ == "__main__":
    main()

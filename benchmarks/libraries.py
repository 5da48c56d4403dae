"""The networks of other libraries, and the processes that take turns: for training.py and
evaluation.py beside this file."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from keras_vgg import hardware
from keras_vgg.architecture import get_configuration, scaled_width
from keras_vgg.recipe import Recipe

CLASSES = 10
OURS, APPLICATIONS, TORCH = "keras_vgg", "keras.applications", "PyTorch"

Steps = Callable[[int], Any]  # takes the given number of steps, each of one batch
Engine = Callable[[Recipe], Steps]

# --- images and networks ----------------------------------------------------------------------


def random_batch(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images [batch, size, size, 3], and labels."""
    generator = np.random.default_rng(0)
    shape = (recipe.batch_size, recipe.image_size, recipe.image_size, 3)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    return images, generator.integers(0, CLASSES, recipe.batch_size)


def channel_statistics():
    """Return numbers for the preprocessing of this package's networks."""
    from keras_vgg import data

    return data.ChannelStatistics(np.full(3, 120.0), np.full(3, 60.0), np.ones(3), np.eye(3), 1)


def repeated_batch(recipe: Recipe):
    """Return a data set that repeats one batch, with labels one-hot."""
    import tensorflow as tf

    from keras_vgg import data

    images, labels = random_batch(recipe)
    batch = (tf.constant(images), tf.one_hot(labels, CLASSES))
    return data.untuned(tf.data.Dataset.from_tensors(batch).repeat().prefetch(2))


def applications_vgg16(recipe: Recipe, precision: str) -> Any:
    import keras

    keras.config.set_dtype_policy(precision)
    return keras.applications.VGG16(
        weights=None,  # pyright: ignore[reportArgumentType]  # Keras says str
        input_shape=(recipe.image_size, recipe.image_size, 3),
        classes=CLASSES,
    )


def torch_vgg(recipe: Recipe) -> Any:
    """Return the recipe's network as a PyTorch module."""
    from torch import nn

    layers: list[nn.Module] = []
    channels, side = 3, recipe.image_size
    for block in get_configuration(recipe.configuration).blocks:
        for kernel, filters in block:
            width = scaled_width(filters, recipe.width_multiplier)
            layers.append(nn.Conv2d(channels, width, kernel, padding="same"))
            layers += [nn.BatchNorm2d(width)] if recipe.batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
        layers.append(nn.MaxPool2d(2))
        side //= 2
    layers.append(nn.Flatten())
    units = channels * side * side
    for _ in range(2):
        layers += [nn.Linear(units, recipe.hidden_units), nn.ReLU(inplace=True)]
        layers.append(nn.Dropout(recipe.dropout))
        units = recipe.hidden_units
    layers.append(nn.Linear(units, CLASSES))
    return nn.Sequential(*layers)


# --- turns ------------------------------------------------------------------------------------

_take: Steps  # set by _load in an engine's process


def _load(engine: Engine, recipe: Recipe) -> None:
    global _take
    _take = engine(recipe)
    _take(2)


def _measure(batch_size: int, seconds: float) -> float:
    """Return images a second, measured for about the given seconds."""
    start = time.perf_counter()
    _take(2)
    steps = max(1, round(2 * seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    _take(steps)
    return batch_size * steps / (time.perf_counter() - start)


def libraries_for(recipe: Recipe, only: Sequence[str] | None = None) -> list[str]:
    """Return the libraries to compare with, as far as they are installed and have the network."""
    names = [name for name in (APPLICATIONS, TORCH) if only is None or name in only]
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if name != TORCH]
    is_vgg16 = recipe.configuration == "D" and recipe.width_multiplier == 1
    is_published = is_vgg16 and not recipe.batch_norm  # keras.applications has only this network
    return names if is_published else [name for name in names if name != APPLICATIONS]


def _best_way(engines: Mapping[str, Engine], library: str, recipe: Recipe, seconds: float) -> str:
    """Time each way in which a library can run, and return the name of the fastest."""
    has_bfloat16 = hardware.find_machine("cpu").half is not None
    rates: dict[str, float] = {}
    for name, engine in engines.items():
        if not name.startswith(library) or ("bfloat16" in name and not has_bfloat16):
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_load, engine, recipe).result()
            rates[name] = pool.submit(_measure, recipe.batch_size, seconds).result()
        print(f"    {name}: {rates[name]:.3g} images/s", file=sys.stderr)
    return max(rates, key=lambda name: rates[name])


def _rates(
    engines: Mapping[str, Engine], recipe: Recipe, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return the images a second of each engine in each round. Engines take turns."""
    context = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, context) for name in engines}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    try:
        for name, pool in pools.items():
            pool.submit(_load, engines[name], recipe).result()
        for _ in range(rounds):
            for name, pool in pools.items():
                job = pool.submit(_measure, recipe.batch_size, seconds)
                rates[name].append(job.result())
    finally:
        for pool in pools.values():
            pool.shutdown()
    return rates


def table(case: str, rates_by_name: Mapping[str, Sequence[float]]) -> str:
    """Return rates, of the same rounds, as a Markdown table."""
    lines = [f"| {case} | images/s | {OURS} is faster by |", "|---|---|---|"]
    own_rates = rates_by_name[OURS]
    for name, rates in rates_by_name.items():
        ratios = sorted(own / rate for own, rate in zip(own_rates, rates, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        lines.append(
            f"| {name} | {statistics.median(rates):.3g} | {'' if name == OURS else spread} |"
        )
    return "\n".join(lines)


def compare(
    description: str,
    cases: Mapping[str, Recipe],
    engines: Mapping[str, Engine],
    own_engines: Callable[[Recipe, Sequence[str]], Sequence[str]],
) -> None:
    """Run a benchmark from the command line, and print a table for each case.

    Args:
        description: The benchmark's docstring.
        cases: The networks, images and batches.
        engines: What runs. The names of a library's engines begin with the library's name.
        own_engines: Maps a recipe and the libraries to the names of this package's engines.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds for each engine in a round"
    )
    parser.add_argument("--only", nargs="+", choices=(APPLICATIONS, TORCH), metavar="LIBRARY")
    arguments = parser.parse_args()
    for case in arguments.cases:
        recipe = cases[case]
        libraries = libraries_for(recipe, arguments.only)
        names = [*own_engines(recipe, libraries)]
        for library in libraries:
            best = _best_way(engines, library, recipe, arguments.seconds)
            names += dict.fromkeys((library, best))
        chosen = {name: engines[name] for name in names}
        rates = _rates(chosen, recipe, arguments.rounds, arguments.seconds)
        print(f"\n{table(case, rates)}", flush=True)

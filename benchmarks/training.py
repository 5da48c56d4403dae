"""Measure the speed of training: keras_vgg, keras.applications and PyTorch.

python benchmarks/training.py [--cases NAME ...] [--rounds 3] [--seconds 20] [--only LIBRARY ...]

All train the same network on the same random images, with SGD and momentum:

- this package: `build_model` and `compile_model` with the choices of `choose_engine`, then
  `model.fit`, with dropout and weight decay; and without both, to compare with the next;
- keras.applications' model, which has neither, with `compile` and `fit`: as it is (Keras then uses
  XLA), and at its best on this machine, the fastest of float32 and bfloat16, with and without XLA;
- a plain PyTorch module with both: as it is, and at its best, the faster of channels_last and
  channels_last with bfloat16 autocast.

bfloat16 is tried if the processor has it; without it, a step of VGG-16 took minutes. Before the
rounds, each way of a library is timed once in a process that then ends, and the fastest takes part
in the rounds. Each has its own process with all cores. The processes take turns, so that other work
on the machine slows all of them. The output is images a second (the median of the rounds), and how
many times as fast keras_vgg was in the same round, with the spread. PyTorch is left out if it is
not installed.
Both Keras models use a data set without tf.data's autotuner, because the autotuner's thread can
delay the end of a `fit`, and double the time of a round (`keras_vgg.data.untuned`).
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Literal

import numpy as np

from keras_vgg import hardware
from keras_vgg.architecture import get_configuration, scaled_width
from keras_vgg.recipe import Recipe

CLASSES = 10
CASES = {
    "VGG-16, 224x224, batch 4": Recipe(
        configuration="D",
        width_multiplier=1.0,
        batch_norm=False,
        hidden_units=4096,
        image_size=224,
        batch_size=4,
    ),
    "VGG-16, 32x32, batch 64": Recipe(
        configuration="D", width_multiplier=1.0, batch_norm=False, hidden_units=4096, batch_size=64
    ),
    "VGG-11, quarter width, batch norm, 32x32, batch 128": Recipe(batch_size=128),
}
OURS = "keras_vgg"
BARE = f"{OURS}, without dropout and weight decay"

Steps = Callable[[int], None]  # takes the given number of training steps


def _keras_vgg(recipe: Recipe) -> Steps:
    hardware.prepare_environment()
    from keras_vgg import data, fit

    engine = hardware.choose_engine(recipe)
    print(f"    {OURS}: {engine}", file=sys.stderr)
    channels = data.ChannelStatistics(np.full(3, 120.0), np.full(3, 60.0), np.ones(3), np.eye(3), 1)
    model = fit.build_model(recipe, CLASSES, channels, engine.precision)
    fit.compile_model(model, recipe, engine)
    return _fit(model, recipe)


def _keras_applications(
    recipe: Recipe, precision: str = "float32", jit: bool | Literal["auto"] = "auto"
) -> Steps:
    import keras

    keras.config.set_dtype_policy(precision)
    model = keras.applications.VGG16(
        weights=None,  # pyright: ignore[reportArgumentType]  # Keras says str
        input_shape=(recipe.image_size, recipe.image_size, 3),
        classes=CLASSES,
    )
    optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum)
    model.compile(
        optimizer,
        "categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit,  # pyright: ignore[reportArgumentType]  # Keras documents True and False
    )
    return _fit(model, recipe)


def _fit(model, recipe: Recipe) -> Steps:
    import tensorflow as tf

    from keras_vgg import data

    images, labels = _batch(recipe)
    batch = (tf.constant(images), tf.one_hot(labels, CLASSES))
    dataset = data.untuned(tf.data.Dataset.from_tensors(batch).repeat().prefetch(2))
    return lambda steps: model.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False)


def _torch(recipe: Recipe, channels_last: bool = False, bfloat16: bool = False) -> Steps:
    import torch
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
    model = nn.Sequential(*layers)
    images, labels = _batch(recipe)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    # PyTorch's overloads of `to` lack memory_format alone.
    model = model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)

    def step() -> None:
        batch = x.contiguous(memory_format=memory_format).float() / 255
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(model(batch), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def take(steps: int) -> None:
        for _ in range(steps):
            step()

    return take


APPLICATIONS, TORCH = "keras.applications", "PyTorch"
ENGINES: dict[str, Callable[[Recipe], Steps]] = {
    OURS: _keras_vgg,
    BARE: lambda recipe: _keras_vgg(recipe.replace(dropout=0.0, weight_decay=0.0)),
    APPLICATIONS: _keras_applications,
    f"{APPLICATIONS}, without XLA": partial(_keras_applications, jit=False),
    f"{APPLICATIONS}, bfloat16": partial(_keras_applications, precision="mixed_bfloat16"),
    f"{APPLICATIONS}, bfloat16, without XLA": partial(
        _keras_applications, precision="mixed_bfloat16", jit=False
    ),
    TORCH: _torch,
    f"{TORCH}, channels_last": partial(_torch, channels_last=True),
    f"{TORCH}, channels_last, bfloat16": partial(_torch, channels_last=True, bfloat16=True),
}

_take: Steps  # set by _load in an engine's process


def _load(name: str, recipe: Recipe) -> None:
    global _take
    _take = ENGINES[name](recipe)
    _take(2)


def _measure(batch_size: int, seconds: float) -> float:
    """Return images a second, measured for about the given seconds."""
    start = time.perf_counter()
    _take(2)
    steps = max(1, round(2 * seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    _take(steps)
    return batch_size * steps / (time.perf_counter() - start)


def _batch(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (recipe.batch_size, recipe.image_size, recipe.image_size, 3)
    images = generator.integers(0, 256, shape, dtype=np.uint8)
    return images, generator.integers(0, CLASSES, recipe.batch_size)


def _libraries(recipe: Recipe, only: list[str] | None) -> list[str]:
    """Return the libraries to compare with, as far as they are installed and have the network."""
    names = [name for name in (APPLICATIONS, TORCH) if only is None or name in only]
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if name != TORCH]
    is_vgg16 = recipe.configuration == "D" and recipe.width_multiplier == 1
    is_published = is_vgg16 and not recipe.batch_norm  # keras.applications has only this network
    return names if is_published else [name for name in names if name != APPLICATIONS]


def _best_way(library: str, recipe: Recipe, seconds: float) -> str:
    """Time each way in which a library can train, and return the name of the fastest."""
    has_bfloat16 = hardware.find_machine("cpu").half is not None
    rates: dict[str, float] = {}
    for name in ENGINES:
        if not name.startswith(library) or ("bfloat16" in name and not has_bfloat16):
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_load, name, recipe).result()
            rates[name] = pool.submit(_measure, recipe.batch_size, seconds).result()
        print(f"    {name}: {rates[name]:.3g} images/s", file=sys.stderr)
    return max(rates, key=lambda name: rates[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="seconds for each engine in a round"
    )
    parser.add_argument("--only", nargs="+", choices=(APPLICATIONS, TORCH), metavar="LIBRARY")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for case in arguments.cases:
        recipe = CASES[case]
        libraries = _libraries(recipe, arguments.only)
        names = [OURS, BARE] if APPLICATIONS in libraries else [OURS]
        for library in libraries:
            names += dict.fromkeys((library, _best_way(library, recipe, arguments.seconds)))
        pools = {name: ProcessPoolExecutor(1, context) for name in names}
        rates_by_name: dict[str, list[float]] = {name: [] for name in names}
        try:
            for name, pool in pools.items():
                pool.submit(_load, name, recipe).result()
            for _ in range(arguments.rounds):
                for name, pool in pools.items():
                    job = pool.submit(_measure, recipe.batch_size, arguments.seconds)
                    rates_by_name[name].append(job.result())
        finally:
            for pool in pools.values():
                pool.shutdown()
        print(f"\n| {case} | images/s | {OURS} is faster by |\n|---|---|---|")
        own_rates = rates_by_name[OURS]
        for name, rates in rates_by_name.items():
            ratios = sorted(own / rate for own, rate in zip(own_rates, rates, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {name} | {statistics.median(rates):.3g} | {'' if name == OURS else spread} |")


if __name__ == "__main__":
    main()

"""Measure the cost of the paper's test protocols (section 3.2): one crop, whole image, 150 crops.

python benchmarks/testing.py DIR [--configuration D] [--images 4] [--rounds 3]

DIR holds photographs (JPEG files, at any depth); --images of them are selected, evenly spaced by
name. The network has full width, 1000 classes, random weights and 224x224 images. Three protocols
are measured: the central crop at scale 256; the whole image and its mirror image at 256, 384 and
512; and 50 crops at each of these scales. Crops use the first image only, because they cost the
same for every image.

The time is from the file to the probabilities, on the CPU, with the parts of the library that
`keras-vgg evaluate` uses. Each protocol has its own process, which is warmed up first. In each
round, the protocols are measured one after another; the images are repeated for at least --seconds
at each scale. The figures are for one image, as medians over the rounds. CPU seconds (of all cores)
vary less than time if other programs run. Multiply-accumulates (GMAC) are for the measured shapes,
and memory is the peak of resident memory. Three networks are in memory at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline  # the other benchmark, beside this one

from keras_vgg import architecture

SIZE, CLASSES, SCALES = 224, 1000, (256, 384, 512)
# Protocol -> its scales, and the views of an image at one scale.
PROTOCOLS = {"center": (SCALES[:1], 1), "dense": (SCALES, 2), "multi-crop": (SCALES, 50)}
Setup = tuple[str, str, tuple[str, ...]]  # protocol, configuration, files


@dataclass(frozen=True)
class Cost:
    """One image's seconds, CPU seconds and multiply-accumulates; peak memory so far in bytes."""

    seconds: float
    cpu: float
    macs: float
    peak: int

    def __add__(self, other: Cost) -> Cost:
        peak = max(self.peak, other.peak)
        seconds, cpu = self.seconds + other.seconds, self.cpu + other.cpu
        return Cost(seconds, cpu, self.macs + other.macs, peak)


def some_files(directory: Path, count: int) -> tuple[str, ...]:
    if not directory.is_dir():
        raise SystemExit(f"there is no folder {directory}")
    files = pipeline.files_in(directory)
    count = min(count, len(files))
    return tuple(files[i * len(files) // count] for i in range(count))


# --- in the process of a protocol ------------------------------------------------------------


@functools.cache
def prepared(setup: Setup) -> tuple[Callable, dict[int, Any]]:
    """Return a warmed-up function that runs a protocol, and the images of each scale."""
    import numpy as np

    from keras_vgg import augment, data, evaluation, hardware

    hardware.prepare_environment()
    import keras_vgg

    name, configuration, files = setup
    model = keras_vgg.vgg(configuration, weights=None, include_preprocessing=True)
    run = evaluation.runner(model, evaluation.Protocol(name), CLASSES)
    split = data.Split(
        "test",
        len(files),
        labels=np.zeros(len(files), np.int32),
        paths=np.array(files, dtype=object),
    )
    transform = {
        "center": augment.eval_image,
        "dense": augment.whole_image,
        "multi-crop": augment.grid_crops,
    }[name]
    scales = PROTOCOLS[name][0]
    images = {
        scale: data.evaluation_dataset(
            split, None, functools.partial(transform, size=SIZE, scale=scale)
        )
        for scale in scales
    }
    # With a second shape, the network is traced again for any shape.
    square = (SIZE, SIZE, 3)
    shapes = {
        "center": [(1, *square), (2, *square)],
        "dense": [(1, scales[0], scales[0], 3), (2, scales[0], scales[0] + 64, 3)],
        "multi-crop": [(1, PROTOCOLS[name][1], *square)],
    }[name]
    for shape in shapes:
        run(np.zeros(shape, np.float32))
    with data.bad_images_named(split):
        for dataset in images.values():
            for _ in dataset:
                pass
    return run, images


def measured(setup: Setup, scale: int, seconds: float) -> Cost:
    """Evaluate the images at a scale until the time is up, and return the cost of one image."""
    run, images = prepared(setup)
    from keras_vgg import evaluation

    shapes: list[tuple[int, ...]] = []

    def with_noted_shapes() -> Iterator:
        for image, label in images[scale].as_numpy_iterator():
            shapes.append(image.shape)
            yield image, label

    start, cpu_start = time.perf_counter(), time.process_time()
    while (elapsed_seconds := time.perf_counter() - start) < seconds or not shapes:
        for _ in evaluation.posteriors(run, with_noted_shapes(), classes=CLASSES):
            pass
    macs = statistics.fmean(macs_of(*setup[:2], shape) for shape in shapes)
    cpu = time.process_time() - cpu_start
    return Cost(elapsed_seconds / len(shapes), cpu / len(shapes), macs, peak_memory())


def macs_of(protocol: str, configuration: str, shape: tuple[int, ...]) -> int:
    """Return the multiply-accumulates for an image that is an array of this shape."""
    if protocol == "dense":
        options = {"head": "conv", "input_shape": shape, "train_size": SIZE}
        return PROTOCOLS["dense"][1] * architecture.macs(configuration, **options)
    crops = 1 if protocol == "center" else shape[0]
    return crops * architecture.macs(configuration, input_shape=shape[-3:])


def peak_memory() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- in the first process --------------------------------------------------------------------


def rounds_of(arguments: argparse.Namespace, files: tuple[str, ...]) -> list[dict]:
    """Return each round's costs by (protocol, scale)."""
    # Spawned processes do not share this process's memory, so that their peaks are their own.
    spawn = multiprocessing.get_context("spawn")
    rounds: list[dict[tuple[str, int], Cost]] = []
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn))
            for name in PROTOCOLS
        }
        setups = {
            name: (name, arguments.configuration, files[:1] if name == "multi-crop" else files)
            for name in PROTOCOLS
        }
        for name, pool in pools.items():
            pool.submit(prepare, setups[name]).result()
            print(f"{name}: ready", file=sys.stderr)
        for number in range(arguments.rounds):
            costs = {}
            for name, (scales, _) in PROTOCOLS.items():
                for scale in scales:
                    task = pools[name].submit(measured, setups[name], scale, arguments.seconds)
                    costs[name, scale] = cost = task.result()
                    text = f"round {number + 1}, {name} {scale}: {cost.seconds:.2f} s for an image"
                    text += f", {cost.cpu:.2f} s of CPU"
                    print(text, file=sys.stderr)
            rounds.append(costs)
    return rounds


def prepare(setup: Setup) -> None:
    prepared(setup)


def table(rounds: list[dict], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    printed = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    printed.add_column("protocol", no_wrap=True)
    for header in ("views", "images/s", "s for an image", "CPU s", "GMAC", "time / center", "MB"):
        printed.add_column(header, justify="right", no_wrap=True)
    center = costs_of("center", rounds)
    rows = [("center", SCALES[:1]), *(("dense", (scale,)) for scale in SCALES)]
    rows += [("dense", SCALES), ("multi-crop", SCALES)]
    for name, scales in rows:
        costs = costs_of(name, rounds, scales)
        seconds = statistics.median(cost.seconds for cost in costs)
        printed.add_row(
            f"{name} {', '.join(map(str, scales))}",
            str(PROTOCOLS[name][1] * len(scales)),
            f"{1 / seconds:.3g}",
            spread([cost.seconds for cost in costs]),
            f"{statistics.median(cost.cpu for cost in costs):.3g}",
            f"{costs[0].macs / 1e9:.1f}",
            spread(ratios(costs, center)),
            f"{costs[0].peak / 2**20:,.0f}",
        )
    # A pipe states no width.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(printed)
    dense, crops = costs_of("dense", rounds), costs_of("multi-crop", rounds)
    cpu = [crop.cpu / whole.cpu for crop, whole in zip(crops, dense, strict=True)]
    console.print(
        f"dense : multi-crop = 1 : {spread(ratios(crops, dense))} in time, 1 : {spread(cpu)} in "
        f"CPU seconds, 1 : {crops[0].macs / dense[0].macs:.2f} in multiply-accumulates",
        soft_wrap=True,
    )


def costs_of(name: str, rounds: list[dict], scales: tuple[int, ...] | None = None) -> list[Cost]:
    """Return the cost of a protocol in each round, at some scales or at all of its scales."""
    scales = scales or PROTOCOLS[name][0]
    return [
        functools.reduce(Cost.__add__, (costs[name, scale] for scale in scales)) for costs in rounds
    ]


def ratios(costs: list[Cost], others: list[Cost]) -> list[float]:
    """Return a ratio of times for each round, because the machine's speed drifts."""
    return [cost.seconds / other.seconds for cost, other in zip(costs, others, strict=True)]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="a folder of JPEG photographs")
    parser.add_argument(
        "--configuration", default="D", help="configuration of the paper's Table 1 (D)"
    )
    parser.add_argument("--images", type=int, default=4, help="photographs to test (4)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (3)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="least seconds for each measurement (2)"
    )
    arguments = parser.parse_args()
    for name in ("images", "rounds"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"--{name} must be 1 or more, not {getattr(arguments, name)}")
    try:
        configuration = architecture.get_configuration(arguments.configuration)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    arguments.configuration = configuration.name
    files = some_files(arguments.directory, arguments.images)
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        rounds = rounds_of(arguments, files)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    except BrokenProcessPool:
        raise SystemExit("a process was killed; three networks need more memory") from None
    cores = len(os.sched_getaffinity(0))
    title = f"{configuration.builder}, {len(files)} images, {cores} cores: median (range) of "
    table(rounds, f"{title}{arguments.rounds} rounds")


if __name__ == "__main__":
    main()

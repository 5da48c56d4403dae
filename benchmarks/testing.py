"""What the paper's ways of testing cost (section 3.2): one crop, the whole image, 150 crops.

python benchmarks/testing.py DIR [--configuration D] [--images 4] [--rounds 3]

DIR holds photographs (JPEG files, at any depth), of which some are taken evenly spaced by name. The
network has full width, 1000 classes, random weights and images of 224 x 224. It sees each image as
its central crop at scale 256; whole at 256, 384 and 512, with its mirror image; and as 50 crops at
each of these scales, of the first image only, for crops cost the same whatever the photograph.
Time is from the file to the posteriors, on the CPU, with the library's own parts as `keras-vgg
evaluate` uses them. Each way has a process of its own, which is warmed up and then measured in turn
with the others, round after round; in a round the images are repeated for at least --seconds at
each scale. Figures are of one image, medians over rounds. CPU seconds, of all cores together, are
steadier than time where other programs run. Multiply-accumulates (GMAC) are those of the shapes
that were run; memory is the peak that is resident. Three networks are in memory at a time.
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
# What is tested, at which scales; the views of an image at a scale.
PROTOCOLS = {"center": (SCALES[:1], 1), "dense": (SCALES, 2), "multi-crop": (SCALES, 50)}
Setup = tuple[str, str, tuple[str, ...]]  # protocol, configuration, files


@dataclass(frozen=True)
class Cost:
    """One image's cost: seconds, those of all cores, multiply-accumulates; peak bytes so far."""

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
    found = pipeline.files_in(directory)
    count = min(count, len(found))
    return tuple(found[i * len(found) // count] for i in range(count))


# --- in the process of a protocol ------------------------------------------------------------


@functools.cache
def prepared(setup: Setup) -> tuple[Callable, dict[int, Any]]:
    """What runs a protocol, warm, and the images of each scale."""
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
    # Two shapes, so that the network is traced for one and then for any.
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
    """All images at a scale, over and over until the time is up."""
    run, images = prepared(setup)
    from keras_vgg import evaluation

    shapes: list[tuple[int, ...]] = []

    def noted() -> Iterator:
        for image, label in images[scale].as_numpy_iterator():
            shapes.append(image.shape)
            yield image, label

    start, cpu_start = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - start) < seconds or not shapes:
        for _ in evaluation.posteriors(run, noted(), classes=CLASSES):
            pass
    macs = statistics.fmean(macs_of(*setup[:2], shape) for shape in shapes)
    cpu = time.process_time() - cpu_start
    return Cost(passed / len(shapes), cpu / len(shapes), macs, peak_memory())


def macs_of(protocol: str, configuration: str, shape: tuple[int, ...]) -> int:
    """The cost of an image that is run as an array of this shape."""
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
    """(protocol, scale) -> Cost, for each round."""
    # New processes, not copies of this one, so that their memory is their own.
    spawn = multiprocessing.get_context("spawn")
    found: list[dict[tuple[str, int], Cost]] = []
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
                    text = f"round {number + 1}, {name} {scale}: {cost.seconds:.2f} s an image"
                    text += f", {cost.cpu:.2f} of CPU"
                    print(text, file=sys.stderr)
            found.append(costs)
    return found


def prepare(setup: Setup) -> None:
    prepared(setup)


def table(rounds: list[dict], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column("testing", no_wrap=True)
    for header in ("views", "images/s", "s an image", "CPU s", "GMAC", "time / center", "MB"):
        shown.add_column(header, justify="right", no_wrap=True)
    center = one("center", rounds)
    rows = [("center", SCALES[:1]), *(("dense", (scale,)) for scale in SCALES)]
    rows += [("dense", SCALES), ("multi-crop", SCALES)]
    for name, scales in rows:
        costs = one(name, rounds, scales)
        seconds = statistics.median(cost.seconds for cost in costs)
        shown.add_row(
            f"{name} {', '.join(map(str, scales))}",
            str(PROTOCOLS[name][1] * len(scales)),
            f"{1 / seconds:.3g}",
            spread([cost.seconds for cost in costs]),
            f"{statistics.median(cost.cpu for cost in costs):.3g}",
            f"{costs[0].macs / 1e9:.1f}",
            spread(ratios(costs, center)),
            f"{costs[0].peak / 2**20:,.0f}",
        )
    # A pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(shown)
    dense, crops = one("dense", rounds), one("multi-crop", rounds)
    cpu = [many.cpu / whole.cpu for many, whole in zip(crops, dense, strict=True)]
    console.print(
        f"dense : multi-crop = 1 : {spread(ratios(crops, dense))} in time, 1 : {spread(cpu)} in "
        f"CPU seconds, 1 : {crops[0].macs / dense[0].macs:.2f} in multiply-accumulates",
        soft_wrap=True,
    )


def one(name: str, rounds: list[dict], scales: tuple[int, ...] | None = None) -> list[Cost]:
    """The cost of a protocol over some scales, by default all of its own, in each round."""
    scales = scales or PROTOCOLS[name][0]
    return [
        functools.reduce(Cost.__add__, (costs[name, scale] for scale in scales)) for costs in rounds
    ]


def ratios(costs: list[Cost], others: list[Cost]) -> list[float]:
    """Each round's own, for the machine's speed drifts from round to round."""
    return [cost.seconds / other.seconds for cost, other in zip(costs, others, strict=True)]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="a folder of JPEG photographs")
    parser.add_argument("--configuration", default="D", help="of the paper's Table 1 (D)")
    parser.add_argument("--images", type=int, default=4, help="photographs to test (4)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each (3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of each (2)")
    arguments = parser.parse_args()
    for name in ("images", "rounds"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"--{name} must be 1 or more, not {getattr(arguments, name)}")
    try:
        found = architecture.get_configuration(arguments.configuration)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    arguments.configuration = found.name
    files = some_files(arguments.directory, arguments.images)
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        rounds = rounds_of(arguments, files)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    except BrokenProcessPool:
        raise SystemExit("a process was killed: is there memory for three networks?") from None
    cores = len(os.sched_getaffinity(0))
    title = f"{found.builder}, {len(files)} images, {cores} cores: median (range) of "
    table(rounds, f"{title}{arguments.rounds} rounds")


if __name__ == "__main__":
    main()

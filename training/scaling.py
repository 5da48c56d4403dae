"""Calculate what training VGG-16 on ImageNet costs on 1, 8 and 64 GPUs, without training.

command:  python training/scaling.py [--tflops 100] [--gbytes 100] [--batch 32] [--pipeline 467]
hardware: any; the options state the assumed speed of a GPU and of a processor core
result:   the table of docs/scaling.md
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_vgg import architecture
from keras_vgg.recipe import Recipe, load_recipe

IMAGES = 1_281_167  # in ILSVRC-2012's training set
JPEG_KILOBYTES = 110  # mean size of a file; the training images have 138 GB
FLOAT = 4  # bytes
PAPERS_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Assumed:
    """The assumptions of the calculation.

    Attributes:
        tflops: Sustained speed of one GPU, in 1e12 floating-point operations a second.
        gbytes: Speed at which one GPU sends in an all-reduce, in 1e9 bytes a second.
        batch: Images of one GPU in a step.
        pipeline: Images that one processor core decodes and augments in a second.
        disk: Speed of writing to disk, in 1e9 bytes a second.
    """

    tflops: float = 100.0
    gbytes: float = 100.0
    batch: int = 32
    pipeline: float = 467.0
    disk: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The times of a step and of all epochs on some GPUs, without overlap."""

    gpus: int
    computing: float  # seconds of a step
    exchanging: float
    images_per_second: float
    hours: float
    cores: float  # processor cores that the input pipeline needs
    megabytes_per_second: float  # of JPEG files

    @property
    def efficiency(self) -> float:
        return self.computing / (self.computing + self.exchanging)


def network(recipe: Recipe) -> tuple[int, float]:
    """Return the parameters, and the floating-point operations of training on one image."""
    totals = architecture.totals(recipe.layers())
    # A multiply-accumulate is 2 operations. There are 3 passes: forward, and backward to the inputs
    # and to the weights.
    return totals.parameters, 2 * 3 * totals.macs


def cost(recipe: Recipe, gpus: int, assumed: Assumed) -> Cost:
    """Return the cost on some GPUs; each takes `assumed.batch` images, so the batch grows."""
    parameters, flop = network(recipe)
    computing = assumed.batch * flop / (assumed.tflops * 1e12)
    # In a ring, each GPU sends every gradient twice, except its own share.
    exchanging = 2 * (gpus - 1) / gpus * FLOAT * parameters / (assumed.gbytes * 1e9)
    rate = gpus * assumed.batch / (computing + exchanging)
    return Cost(
        gpus=gpus,
        computing=computing,
        exchanging=exchanging,
        images_per_second=rate,
        hours=recipe.epochs * IMAGES / rate / 3600,
        cores=rate / assumed.pipeline,
        megabytes_per_second=rate * JPEG_KILOBYTES / 1e3,
    )


def smallest_batch(recipe: Recipe, assumed: Assumed, efficiency: float = 0.9) -> float:
    """Return the images of each GPU in a step for which computing takes this share of the time."""
    parameters, flop = network(recipe)
    exchanging = 2 * FLOAT * parameters / (assumed.gbytes * 1e9)
    return exchanging * efficiency / (1 - efficiency) / (flop / (assumed.tflops * 1e12))


def checkpoint_bytes(recipe: Recipe) -> int:
    """Return the bytes of the weights and the momentum."""
    return 2 * FLOAT * network(recipe)[0]


def markdown(recipe: Recipe, assumed: Assumed, gpus: Sequence[int] = (1, 8, 64)) -> str:
    costs = [cost(recipe, count, assumed) for count in gpus]
    rows = [
        ("GPUs", lambda c: f"{c.gpus}"),
        ("images a step", lambda c: f"{c.gpus * assumed.batch:,}"),
        ("computing, ms a step", lambda c: f"{1e3 * c.computing:.1f}"),
        ("all-reduce, ms a step", lambda c: f"{1e3 * c.exchanging:.1f}"),
        ("share of the time computing", lambda c: f"{c.efficiency:.0%}"),
        ("images/s", lambda c: f"{c.images_per_second:,.0f}"),
        (f"hours, {recipe.epochs} epochs", lambda c: f"{c.hours:,.1f}"),
        ("cores that decode and augment", lambda c: f"{c.cores:.1f}"),
        ("JPEG files read, MB/s", lambda c: f"{c.megabytes_per_second:,.0f}"),
    ]
    lines = ["| " + " | ".join([name, *map(show, costs)]) + " |" for name, show in rows]
    lines.insert(1, "|" + "---|" * (len(costs) + 1))
    parameters, flop = network(recipe)
    size = checkpoint_bytes(recipe) / 1e9
    last = gpus[-1]
    shared = cost(recipe, last, dataclasses.replace(assumed, batch=max(1, PAPERS_BATCH // last)))
    return "\n".join(
        [
            f"The network has {parameters:,} parameters. It takes {flop / 1e9:.1f} GFLOP an image, "
            f"and {FLOAT * parameters / 1e6:.0f} MB of gradients a step.",
            "",
            *lines,
            "",
            f"If each GPU takes at least {smallest_batch(recipe, assumed):.0f} images a step, it "
            "computes for nine tenths of the time.",
            f"With the paper's batch of {PAPERS_BATCH} images in all, {last} GPUs compute for "
            f"{shared.efficiency:.0%} of the time and",
            f"process {shared.images_per_second:,.0f} images/s. A checkpoint has {size:.2f} GB on "
            f"any number of GPUs: {size / assumed.disk:.1f} s at {assumed.disk:g} GB/s.",
        ]
    )


def parse(arguments: Sequence[str] | None = None) -> tuple[Recipe, Assumed]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = Path(__file__).parent
    parser.add_argument("--recipe", type=Path, default=here / "recipes" / "imagenet_d.py")
    for field in dataclasses.fields(Assumed):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args(arguments))
    recipe = load_recipe(options.pop("recipe"))
    not_positive = [f"--{name} {value}" for name, value in options.items() if not value > 0]
    if not_positive:
        raise ValueError(f"must be more than 0: {', '.join(not_positive)}")
    return recipe, Assumed(**options)


if __name__ == "__main__":
    try:
        print(markdown(*parse()))
    except (ValueError, OSError) as error:
        sys.exit(f"scaling: {error}")

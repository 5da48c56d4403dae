"""Run the paper's chain of trainings (sections 3.1 and 4); each stage has a run directory.

command:  python training/paper.py --data-dir DIR --workdir runs/paper
          python training/paper.py --plan        (print the stages and their costs; train nothing)
hardware: needs GPUs for ImageNet; not run. For a small chain: --recipe, --scales, --jitter

A is trained at the smaller scale S. The deeper networks begin from A's first four convolutions and
its classifier. C, D and E continue at the larger S, and then with jittered S. Each of these stages
begins from the one before, at a tenth of the learning rate (the paper states this for the larger S
only). If the command is repeated, it skips finished stages and resumes an interrupted stage.

The paper draws A's weights from a normal distribution of variance 1e-2. In float32 at full width,
this gives a loss of 6e8 on 16 photographs, and NaN two steps later. So A begins from Glorot's
initialisation, which the paper names as well; --initialization normal is the paper's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keras_vgg import architecture, hardware, report
from keras_vgg.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.table import Table

NETS = ("A", "A-LRN", "B", "C", "D", "E")
FINE_TUNED = ("C", "D", "E")  # also trained at the larger scale and with jitter, as in Table 3
IMAGENET_IMAGES = 1_268_355  # 99 % of the training images; the others select the model


@dataclass(frozen=True)
class Stage:
    """One training; `begins` names the stage or the initialisation that it begins from."""

    name: str
    begins: str
    recipe: Recipe


def chain(
    base: Recipe,
    workdir: Path,
    nets: Sequence[str] = NETS,
    scales: tuple[int, int] = (256, 384),
    jitter: tuple[int, int] = (256, 512),
) -> list[Stage]:
    """Return the stages in order.

    Args:
        base: The recipe of all stages: data, width, schedule.
        workdir: Folder of the run directories.
        nets: The configurations; A comes first if a deeper network needs it.
        scales: S of the first and the second training.
        jitter: Range of S of the third training.

    Raises:
        ValueError: a configuration is unknown, scales are below the image size, or `base` has
            `init`.
    """
    low, high = scales
    if min(low, high, *jitter) < base.image_size:
        raise ValueError(f"scales {scales} and jitter {jitter} are below {base.image_size}")
    if base.init is not None:
        raise ValueError(
            f"the chain begins from random weights, so the recipe must not have init={base.init!r}"
        )
    nets = list(dict.fromkeys(architecture.get_configuration(net).name for net in nets))
    if set(nets) - {"A", "A-LRN"}:
        nets = ["A", *(net for net in nets if net != "A")]
    first = workdir / f"a-{low}"
    stages = []
    for net in nets:
        name = net.lower()
        recipe = base.replace(configuration=net, train_scale=(low, low), eval_scale=low)
        begins = base.initialization
        if net not in ("A", "A-LRN"):
            recipe, begins = recipe.replace(initialization=str(first)), first.name
        stages.append(Stage(f"{name}-{low}", begins, recipe))
        if net not in FINE_TUNED:
            continue
        for label, scale in ((str(high), (high, high)), ("jitter", jitter)):
            before = stages[-1].name
            recipe = base.replace(
                configuration=net,
                train_scale=scale,
                eval_scale=sum(scale) // 2,
                init=str(workdir / before),
                init_head="all",
                learning_rate=base.learning_rate / 10,
                warmup_epochs=0.0,
            )
            stages.append(Stage(f"{name}-{label}", before, recipe))
    return stages


def training_flop(recipe: Recipe, images: int, classes: int = 1000) -> float:
    """Return the floating-point operations of all epochs.

    A multiply-accumulate is two operations, and backward takes twice as many as forward.
    """
    return 6.0 * architecture.totals(recipe.layers(classes)).macs * images * recipe.epochs


def hours(
    recipe: Recipe, images: int, gpus: int, tflops: float, gbytes: float, classes: int = 1000
) -> tuple[float, float]:
    """Return the hours of computing and of exchanging gradients, which can partly overlap.

    Args:
        tflops: Sustained speed of one GPU, in 1e12 floating-point operations a second.
        gbytes: Speed at which one GPU sends in an all-reduce, in 1e9 bytes a second. In a ring of
            n GPUs, each sends 2 (n - 1) / n of the float32 gradients.
    """
    computing = training_flop(recipe, images, classes) / (tflops * 1e12 * gpus)
    parameters = architecture.totals(recipe.layers(classes)).parameters
    steps = images // recipe.batch_size * recipe.epochs
    exchanging = steps * 4 * parameters * 2 * (gpus - 1) / gpus / (gbytes * 1e9)
    return computing / 3600, exchanging / 3600


def plan(stages: Sequence[Stage], images: int, tflops: float, gbytes: float) -> Table:
    """Return a table of the stages with their start and their largest cost."""
    rows = []
    for stage in stages:
        recipe = stage.recipe
        alone, _ = hours(recipe, images, 1, tflops, gbytes)
        computing, exchanging = hours(recipe, images, 8, tflops, gbytes)
        rows.append(
            (
                stage.name,
                stage.begins,
                f"{recipe.learning_rate:g}",
                f"{training_flop(recipe, images):.2e}",
                f"{alone:.1f}",
                f"{computing:.1f} + {exchanging:.1f}",
            )
        )
    return report.table(
        rows,
        ("stage", "begins from", "learning rate", "FLOP", "hours, 1 GPU", "8 GPUs"),
        f"{images:,} images, 1000 classes, at most {stages[0].recipe.epochs} epochs in each stage, "
        f"{tflops:g} TFLOP/s for each GPU; 8 GPUs: computing + all-reduce at {gbytes:g} GB/s",
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/paper"))
    parser.add_argument("--recipe", type=Path, default=here / "recipes" / "imagenet_a.py")
    parser.add_argument("--source", help="source of images, instead of the recipe's")
    parser.add_argument("--data-dir", help="folder of TFDS's prepared data sets")
    parser.add_argument(
        "--initialization", help="initialisation of A: normal, glorot, or a Keras initializer"
    )
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--scales", nargs=2, type=int, default=(256, 384))
    parser.add_argument("--jitter", nargs=2, type=int, default=(256, 512))
    parser.add_argument("--plan", action="store_true", help="print the stages and stop")
    parser.add_argument("--tflops", type=float, default=100.0, help="TFLOP/s that one GPU sustains")
    parser.add_argument(
        "--gbytes", type=float, default=100.0, help="GB/s of one GPU in an all-reduce"
    )
    parser.add_argument(
        "--images", type=int, default=IMAGENET_IMAGES, help="number of training images, for --plan"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    base = load_recipe(options.recipe)
    for field in ("source", "data_dir", "initialization"):
        if getattr(options, field) is not None:
            base = base.replace(**{field: getattr(options, field)})
    scales, jitter = tuple(options.scales), tuple(options.jitter)
    stages = chain(base, options.workdir, options.nets, scales, jitter)
    if options.plan:
        from rich.console import Console

        Console().print(plan(stages, options.images, options.tflops, options.gbytes))
        return
    hardware.prepare_environment()  # before TensorFlow is imported
    from keras_vgg.fit import train

    for number, stage in enumerate(stages, 1):
        print(f"stage {number} of {len(stages)}: {stage.name}, from {stage.begins}", flush=True)
        train(stage.recipe, options.workdir / stage.name)
    last = {stage.recipe.configuration: stage.name for stage in stages}
    directories = " ".join(str(options.workdir / name) for name in last.values())
    print(f"next: keras-vgg evaluate {directories} --tables")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"paper: {error}")

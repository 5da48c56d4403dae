"""The paper's chain of trainings (sections 3.1 and 4), one run directory a stage.

command:  python training/paper.py --data-dir DIR --workdir runs/paper
          python training/paper.py --plan        (the stages and what they cost, nothing is run)
hardware: needs GPUs for ImageNet; not run. Small: see --recipe, --scales and --jitter

A is trained at the smaller scale S; the deeper nets begin from A, its first four convolutions and
its classifier; C, D and E go on at the larger S and then with jittered S, each from the stage
before, at a tenth of the learning rate (which the paper says of the larger S only). Repeating the
command skips what is finished and resumes what was interrupted.

The paper draws A's weights from a normal distribution of variance 1e-2. In float32 at full width
that gives a loss of 6e8 on 16 photographs and NaN two steps later, so A begins from Glorot's, which
the paper names as well; --initialization normal does it by the letter.
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
FINE_TUNED = ("C", "D", "E")  # at the larger scale and with jitter, as in Table 3
IMAGENET_IMAGES = 1_268_355  # 99 % of the training images: the rest selects the model


@dataclass(frozen=True)
class Stage:
    """One training: `begins` says from what."""

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
    """The stages in order.

    Args:
        base: What all stages share: data, width, schedule.
        workdir: Where the run directories go.
        nets: Which configurations; A comes first where a deeper one needs it.
        scales: S of the first training, and of the second.
        jitter: Range of S of the third.

    Raises:
        ValueError: an unknown configuration, scales below the image size, a base with `init`.
    """
    low, high = scales
    if min(low, high, *jitter) < base.image_size:
        raise ValueError(f"scales {scales} and jitter {jitter} are below {base.image_size}")
    if base.init is not None:
        raise ValueError(f"the chain begins at random, not from init={base.init!r}")
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
    """Floating-point operations of all epochs.

    A multiply-accumulate is two; backward takes two for each of forward's.
    """
    return 6.0 * architecture.totals(recipe.layers(classes)).macs * images * recipe.epochs


def hours(
    recipe: Recipe, images: int, gpus: int, tflops: float, gbytes: float, classes: int = 1000
) -> tuple[float, float]:
    """(computing, exchanging gradients) in hours; a trainer hides part of the second in the first.

    Args:
        tflops: What one GPU sustains, in 1e12 floating-point operations a second.
        gbytes: What one GPU sends in an all-reduce, in 1e9 bytes a second; in a ring each sends
            2 (n - 1) / n of the gradients, float32.
    """
    computing = training_flop(recipe, images, classes) / (tflops * 1e12 * gpus)
    parameters = architecture.totals(recipe.layers(classes)).parameters
    steps = images // recipe.batch_size * recipe.epochs
    exchanging = steps * 4 * parameters * 2 * (gpus - 1) / gpus / (gbytes * 1e9)
    return computing / 3600, exchanging / 3600


def plan(stages: Sequence[Stage], images: int, tflops: float, gbytes: float) -> Table:
    """A table of the stages: what each begins from, and at most costs."""
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
        f"{images:,} images, 1000 classes, at most {stages[0].recipe.epochs} epochs a stage; GPUs "
        f"that sustain {tflops:g} TFLOP/s; 8 of them: computing + all-reduce at {gbytes:g} GB/s",
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/paper"))
    parser.add_argument("--recipe", type=Path, default=here / "recipes" / "imagenet_a.py")
    parser.add_argument("--source", help="instead of the recipe's")
    parser.add_argument("--data-dir", help="where TFDS's prepared data sets live")
    parser.add_argument("--initialization", help="of A: normal, glorot, a Keras initializer")
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--scales", nargs=2, type=int, default=(256, 384))
    parser.add_argument("--jitter", nargs=2, type=int, default=(256, 512))
    parser.add_argument("--plan", action="store_true", help="print the stages and stop")
    parser.add_argument("--tflops", type=float, default=100.0, help="sustained by one GPU")
    parser.add_argument("--gbytes", type=float, default=100.0, help="all-reduce of one GPU")
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES, help="for --plan")
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
    from keras_vgg.fit import fit

    for number, stage in enumerate(stages, 1):
        print(f"stage {number} of {len(stages)}: {stage.name}, from {stage.begins}", flush=True)
        fit(stage.recipe, options.workdir / stage.name)
    last = {stage.recipe.configuration: stage.name for stage in stages}
    directories = " ".join(str(options.workdir / name) for name in last.values())
    print(f"next: keras-vgg evaluate {directories} --tables")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"paper: {error}")

"""The paper's claims, tested again on CIFAR-10: which net, scale, test and start is better.

command:  python training/claims.py DIR --workdir runs/claims
          (DIR holds CIFAR-10's images as <class>/<image>)
hardware: 2 CPU cores; the figures are in training/README.md

Every run of every seed is a run directory, and every posterior is kept, so an interrupted command
goes on. The test images are read when all runs are trained; nothing is selected on them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported below

from keras_vgg.fit import Run, fit  # noqa: E402
from keras_vgg.recipe import Recipe, load_recipe  # noqa: E402

NETS = ("A", "A-LRN", "B", "C", "D", "E")


def recipes(base: Recipe, workdir: Path, seed: int) -> dict[str, Recipe]:
    """The runs of one seed by name, those that others begin from first."""
    base = base.replace(seed=seed)
    low, high = base.train_scale
    step = base.image_size // 8
    found = {net: base.replace(configuration=net) for net in NETS}
    d = found["D"]
    found["D jitter"] = d.replace(train_scale=(low - step, high + step))
    found["D from A"] = d.replace(initialization=str(directory(workdir, "A", seed)))
    found["D Glorot"] = d.replace(initialization="glorot")
    return found


def directory(workdir: Path, name: str, seed: int) -> Path:
    return workdir / f"{name.lower().replace(' ', '_')}-{seed}"


def train(base: Recipe, workdir: Path, seeds: int) -> dict[tuple[str, int], Run]:
    """Every run, trained. Each seed also draws another split of the images."""
    planned = {
        (name, seed): recipe
        for seed in range(seeds)
        for name, recipe in recipes(base, workdir, seed).items()
    }
    runs = {}
    # The start that may fail comes last.
    for name, seed in sorted(planned, key=lambda key: ("Glorot" in key[0], key[1])):
        print(f"{name}, seed {seed}", flush=True)
        runs[name, seed] = fit(planned[name, seed], directory(workdir, name, seed), verbose=2)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent
    parser.add_argument("data", help="CIFAR-10's images, as <class>/<image>")
    parser.add_argument("--workdir", type=Path, default=Path("runs/claims"))
    parser.add_argument("--recipe", type=Path, default=here / "recipes" / "cifar10_claims.py")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    base = load_recipe(arguments.recipe).replace(source=f"folder:{arguments.data}")
    train(base, arguments.workdir, arguments.seeds)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"claims: {error}")

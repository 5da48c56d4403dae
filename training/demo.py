"""Train, evaluate, export and verify a small VGG on embedded data.

command:  make demo (or: python training/demo.py)
hardware: 2 CPU cores; the figures are in training/README.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from keras_vgg import hardware, report

hardware.prepare_environment()  # before TensorFlow is imported below

from rich.console import Console  # noqa: E402

from keras_vgg.fit import train  # noqa: E402
from keras_vgg.recipe import load_recipe  # noqa: E402
from keras_vgg.runs import evaluate_run, export_run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, evaluate, export and verify a small VGG.")
    here = Path(__file__).parent
    parser.add_argument("--recipe", type=Path, default=here / "recipes" / "digits.py")
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()

    run = train(load_recipe(arguments.recipe), arguments.workdir)
    model = run.model()
    test = evaluate_run(run, "test", verbose=True)
    artifacts = export_run(run, model=model, overwrite=True)

    results = run.results
    rows: list[tuple[str, str]] = [
        ("test images", f"{test.count:,}"),
        ("top-1 accuracy", f"{test.top1:.2%}"),
        ("top-5 accuracy", "-" if test.top5 is None else f"{test.top5:.2%}"),
        ("parameters", f"{results['parameters']:,}"),
        ("training time", f"{results['training_seconds']:.0f} s, {results['epochs']} epochs"),
        ("model.keras", f"{run.model_path.stat().st_size / 1e6:.2f} MB"),
    ]
    rows += [
        (
            artifact.format,
            f"{artifact.bytes / 1e6:.2f} MB, same class on {artifact.agreement:.2%} of "
            f"{artifact.images} images, largest difference {artifact.max_difference:.1e}",
        )
        for artifact in artifacts
    ]
    console = Console(soft_wrap=True, markup=False)
    title = f"configuration {run.recipe.configuration} on {run.recipe.source}"
    console.print(report.table(rows, ("", "measured"), title))
    for path in (
        run.model_path,
        run.directory / "training_curve.png",
        run.directory / "confusion_test.png",
        *(artifact.path for artifact in artifacts),
    ):
        console.print(str(path), highlight=False)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"demo: {error}")

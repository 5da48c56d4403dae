"""Measure training on a GPU, the most important figures first, within a number of minutes.

python benchmarks/gpu.py --out DIR [--minutes 25] [--only PART ...] [--cifar DIR]
                         [--fashion-mnist DIR] [--tiny]

The parts, in this order:

- step: VGG-16 at 224x224 on images that are on the device: `model.fit` here, and torchvision's
  vgg16 (compiled, channels_last, bfloat16), for several batches; images a second, and the share of
  the device's bfloat16 matrix rate;
- pipeline: `benchmarks/pipeline.py` on JPEG files of ImageNet's size, made from CIFAR-10's images:
  what all cores decode and augment;
- cifar10: VGG-16 with batch norm, three seeds, accuracy on 5,000 held-out images;
- claims: `training/claims.py`, 40 epochs, three seeds;
- fashion_mnist: the textbook's run at 224x224, and the best recipe, accuracy on the test images.

Every job has a process of its own and a limit. DIR gets figures.json and table.md after every job,
so that nothing is lost, and the output of each job. Repeat the command to go on: finished jobs are
kept, and trainings resume. --cifar names a folder with CIFAR-10's images as <class>/<image>,
--fashion-mnist one with the four official .gz files; without them, their parts are left out.
Keras runs on JAX unless KERAS_BACKEND says otherwise. --tiny goes through every part on a CPU in
minutes, to test this script. The package need not be installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package may not be installed

from keras_vgg.architecture import totals  # noqa: E402
from keras_vgg.files import write_atomically, write_json  # noqa: E402
from keras_vgg.recipe import Recipe  # noqa: E402
from keras_vgg.run import Run  # noqa: E402

PARTS = ("step", "pipeline", "cifar10", "claims", "fashion_mnist")
BATCHES, SEEDS = (64, 128, 256), (0, 1, 2)
_PATIENCE = 60  # seconds that a training has after SIGTERM to keep its step
_PYTHON = [sys.executable, "-u"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One process, or several one after another.

    Attributes:
        name: Its name, which begins with its part.
        commands: What to run; the job ends with the first command that fails.
        minutes: The limit for all commands together, in one call of this script.
        figures: Returns the figures, or None while there are none.
        progress: Returns what an unfinished job has reached, in words.
    """

    name: str
    commands: list[list[str]]
    minutes: float
    figures: Callable[[], dict[str, Any] | None]
    progress: Callable[[], str] = lambda: ""

    @property
    def part(self) -> str:
        return self.name.partition(":")[0]


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the command line."""

    out: Path
    minutes: float
    only: tuple[str, ...]
    cifar: Path | None
    fashion_mnist: Path | None
    tiny: bool


def jobs_of(options: Options) -> Iterator[Job]:
    """Yield the jobs of all parts, in their order."""
    yield from _step_jobs(options)
    if options.cifar is not None:
        yield from _pipeline_jobs(options, options.cifar)
        yield from _cifar_jobs(options, options.cifar)
        yield from _claims_jobs(options, options.cifar)
    if options.fashion_mnist is not None:
        yield from _fashion_jobs(options, options.fashion_mnist)


def _step_jobs(options: Options) -> Iterator[Job]:
    script = str(ROOT / "benchmarks" / "gpu_step.py")
    tiny = ["--tiny"] if options.tiny else []
    batches = (2,) if options.tiny else BATCHES
    kinds = [("matrix", 0)] + [(k, b) for b in batches for k in ("keras_vgg", "torchvision")]
    for kind, batch in kinds:
        name = f"step:{kind}" + (f":{batch}" if batch else "")
        file = options.out / "measured" / f"{name.replace(':', '_')}.json"
        command = [*_PYTHON, script, kind, "--batch", str(batch), "--json", str(file), *tiny]
        yield Job(name, [command], 3, lambda file=file: _read(file))


def _pipeline_jobs(options: Options, cifar: Path) -> Iterator[Job]:
    folder, file = options.out / "photographs", options.out / "measured" / "pipeline.json"
    count, timing = ("8", ["--rounds", "1", "--seconds", "0.5"]) if options.tiny else ("512", [])
    make = [
        *_PYTHON,
        str(ROOT / "benchmarks" / "gpu_step.py"),
        "photographs",
        "--json",
        str(folder),
    ]
    make += ["--cifar", str(cifar), "--count", count]
    measure = [*_PYTHON, str(ROOT / "benchmarks" / "pipeline.py"), str(folder), "--json", str(file)]
    yield Job("pipeline:all", [make, [*measure, *timing]], 4, lambda: _read(file))


def _cifar_jobs(options: Options, cifar: Path) -> Iterator[Job]:
    recipe = [str(ROOT / "training" / "recipes" / "cifar10.py"), "--source", f"folder:{cifar}"]
    recipe += ["--test-fraction", "0.1", "--validation-fraction", str(1 / 45)]
    recipe += ["--head", "gap", "--dropout", "0", "--label-smoothing", "0.1", "--epochs", "60"]
    recipe += ["--batch-size", "256", "--learning-rate", "0.2", "--random-erasing", "0.25"]
    for seed in SEEDS[:1] if options.tiny else SEEDS:
        yield _training(options, f"cifar10:{seed}", [*recipe, "--seed", str(seed)], 5)


def _claims_jobs(options: Options, cifar: Path) -> Iterator[Job]:
    folder, base = options.out / "claims", ROOT / "training" / "recipes" / "cifar10_claims.py"
    recipe = options.out / "claims_recipe.py"
    changes = "epochs=1, width_multiplier=1 / 16, hidden_units=8" if options.tiny else "epochs=40"
    text = (
        '"""The recipe of training/claims.py, trained for longer."""\n\n'
        "from keras_vgg.recipe import load_recipe\n\n"
        f"RECIPE = load_recipe({str(base)!r}).replace({changes})\n"
    )
    write_atomically(recipe, lambda path: path.write_text(text, encoding="utf-8"))
    command = [*_PYTHON, str(ROOT / "training" / "claims.py"), str(cifar)]
    command += ["--workdir", str(folder), "--recipe", str(recipe)]
    tiny = ["--seeds", "0", "--nets", "A", "--train-only"]

    def figures() -> dict[str, Any] | None:
        if options.tiny:
            trained = [run for run in [folder / "a-0"] if (run / "results.json").exists()]
            return {"claims": []} if trained else None
        return None if (rows := _read(folder / "claims.json")) is None else {"claims": rows}

    def progress() -> str:
        return f"{len(list(folder.glob('*/results.json')))} of 27 trainings"

    yield Job("claims:all", [[*command, *(tiny if options.tiny else [])]], 12, figures, progress)


def _fashion_jobs(options: Options, folder: Path) -> Iterator[Job]:
    for name in ("fashion_mnist_224", "fashion_mnist_half_width"):
        recipe = [str(ROOT / "training" / "recipes" / f"{name}.py"), "--source", f"idx:{folder}"]
        yield _training(options, f"fashion_mnist:{name}", recipe, 6)


def _training(options: Options, name: str, recipe: list[str], minutes: float) -> Job:
    """Return the job that trains a recipe and evaluates the run on its test images."""
    directory = options.out / "runs" / name.replace(":", "_")
    command = [*_PYTHON, "-m", "keras_vgg.cli"]
    if options.tiny:
        recipe = [*recipe, "--configuration", "A", "--epochs", "1"]
        recipe += ["--width-multiplier", str(1 / 16)]
        recipe += ["--hidden-units", "8", "--image-size", "32", "--train-scale", "None"]
        recipe += ["--eval-scale", "None", "--warmup-epochs", "0", "--batch-size", "32"]

    def figures() -> dict[str, Any] | None:
        results = _read(directory / "results.json") or {}
        if "test" not in results:
            return None
        history = Run.open(directory).history
        return {
            "test_top1": results["test"]["top1"],
            "test_images": results["test"]["count"],
            "validation_accuracy": results["validation_accuracy"],
            "training_seconds": results["training_seconds"],
            "images_per_second": statistics.median(row["images_per_second"] for row in history),
            "epochs": len(history),
        }

    def progress() -> str:
        if not (directory / "recipe.json").exists():
            return "not begun"
        run = Run.open(directory)
        return f"epoch {len(run.history)} of {run.recipe.epochs}"

    commands = [
        [*command, "train", *recipe, "--workdir", str(directory), "--quiet"],
        [*command, "evaluate", str(directory)],
    ]
    return Job(name, commands, minutes, figures, progress)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_job(job: Job, out: Path, deadline: float) -> str:
    """Run a job's commands up to its limit and return "done", or why there are no figures."""
    environment = os.environ | {"KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "jax")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    end = min(deadline, time.monotonic() + 60 * job.minutes)
    log = out / "output" / f"{job.name.replace(':', '_')}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    for command in job.commands:
        with log.open("a", encoding="utf-8") as output:
            print("$", *command, file=output, flush=True)
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _stop(process)
                return f"stopped at its limit; {job.progress() or 'no figures yet'}"
            except BaseException:  # Ctrl-C: no process stays behind
                _stop(process)
                raise
        if status:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
            return f"failed with exit status {status}: {last}"
    return "done" if job.figures() is not None else "ended without figures"


def _stop(process: subprocess.Popen) -> None:
    """End a process and what it started: first with SIGTERM, on which a training keeps its step."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_PATIENCE)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def write_report(out: Path, jobs: list[Job], states: dict[str, str]) -> None:
    """Write figures.json and table.md."""
    rows = {job.name: {"state": states[job.name], "figures": job.figures()} for job in jobs}
    write_json(out / "figures.json", rows)
    text = markdown(rows)
    write_atomically(out / "table.md", lambda path: path.write_text(text, encoding="utf-8"))


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return the figures as Markdown tables; `rows` is the content of figures.json."""
    lines = [*_step_table(rows), "| job | state | figures |", "|---|---|---|"]
    for name, row in rows.items():
        figures = row["figures"] or {}
        if name.startswith(("cifar10", "fashion_mnist")) and figures:
            text = (
                f"{100 * figures['test_top1']:.2f} % of {figures['test_images']:,} test images, "
                f"{figures['epochs']} epochs, {figures['training_seconds']:,.0f} s, "
                f"{figures['images_per_second']:,.0f} images/s"
            )
        elif name.startswith("pipeline") and figures:
            speeds = figures["images_per_second"]
            text = ", ".join(f"{k} {statistics.median(v):,.0f} images/s" for k, v in speeds.items())
        elif name.startswith("claims") and figures:
            text = "; ".join(f"{c['claim']}: {c['verdict']}" for c in figures["claims"])
        else:
            text = "see above" if figures else ""
        lines.append(f"| {name} | {row['state']} | {text} |")
    return "\n".join(lines) + "\n"


def _step_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that compare the speed of a training step, if it was measured."""
    matrix = (rows.get("step:matrix") or {}).get("figures")
    if not matrix:
        return []
    recipe = Recipe(configuration="D", width_multiplier=1.0, batch_norm=False, hidden_units=4096)
    # Forward, and twice as much backward; two operations for each multiplication.
    image_flops = 6 * totals(recipe.replace(image_size=224).layers(1000)).macs
    lines = [
        f"{matrix['device']}, {matrix['versions']}; bfloat16 matrix rate "
        f"{matrix['tflops']:,.1f} TFLOP/s. VGG-16, 224x224, bfloat16: median (range).",
        "",
        "| batch | keras_vgg, images/s | of the matrix rate | torchvision, images/s | ratio |",
        "|---|---|---|---|---|",
    ]
    batches = [name.rpartition(":")[2] for name in rows if name.startswith("step:keras_vgg")]
    for batch in batches:
        ours = (rows[f"step:keras_vgg:{batch}"]["figures"] or {}).get("images_per_second")
        peer = (rows[f"step:torchvision:{batch}"]["figures"] or {}).get("images_per_second")
        share = statistics.median(ours) * image_flops / matrix["tflops"] / 1e12 if ours else None
        ratio = statistics.median(ours) / statistics.median(peer) if ours and peer else None
        lines.append(
            f"| {batch} | {_spread(ours)} | {'' if share is None else f'{share:.0%}'} "
            f"| {_spread(peer)} | {'' if ratio is None else f'{ratio:.2f}'} |"
        )
    return [*lines, ""]


def _spread(values: list[float] | None) -> str:
    if not values:
        return "not measured"
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--minutes", type=float, default=25.0, help="of all jobs together (25)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10's images, as <class>/<image>")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of the four official .gz files")
    parser.add_argument("--tiny", action="store_true", help="test the script on a CPU")
    options = Options(**vars(parser.parse_args(arguments)))
    for path in filter(None, (options.cifar, options.fashion_mnist)):
        if not path.is_dir():
            sys.exit(f"gpu: {path} is not a folder")
    if options.minutes <= 0:
        sys.exit(f"gpu: --minutes must be more than 0, not {options.minutes:g}")
    options = dataclasses.replace(
        options,
        out=options.out.resolve(),
        cifar=options.cifar and options.cifar.resolve(),
        fashion_mnist=options.fashion_mnist and options.fashion_mnist.resolve(),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    jobs = list(jobs_of(options))
    before = _read(options.out / "figures.json") or {}
    states = {job.name: before.get(job.name, {}).get("state", "not begun") for job in jobs}
    for job in jobs:
        if job.part not in options.only or job.figures() is not None:
            continue
        if time.monotonic() > deadline:
            print(f"{options.minutes:g} minutes are over; repeat the command to go on")
            break
        states[job.name] = run_job(job, options.out, deadline)
        print(f"{job.name}: {states[job.name]}", flush=True)
        write_report(options.out, jobs, states)
    write_report(options.out, jobs, states)
    print((options.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""keras-vgg train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from keras_vgg.console import show
from keras_vgg.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network: keras-vgg train [RECIPE.py] --workdir RUN [--field value ...]

    Without a recipe, the network learns scikit-learn's handwritten digits. With --source and no
    recipe, the defaults are those for photographs: mirror images, and a size by the images. Every
    field of the recipe is an option below, and options win. The run directory gets the recipe, the
    environment, metrics.csv, TensorBoard logs, checkpoints and model.keras, the best epoch by
    validation accuracy. Repeat the command to resume an interrupted training. On SIGTERM (exit
    status 143) and Ctrl-C (130), the current step is finished and saved first.
    """

    workdir: Path
    """The run directory: new, empty, or an earlier run of the same recipe."""
    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")] = (
        dataclasses.field(default_factory=Recipe)
    )
    quiet: bool = False
    """Print one line for each epoch instead of a progress bar."""
    backend: Literal["tensorflow", "jax"] | None = None
    """Keras backend. On JAX, several hosts can train together (default: KERAS_BACKEND, or
    tensorflow)."""
    coordinator: str | None = None
    """To train with several processes: HOST:PORT of the first process, the same for all, or auto
    for SLURM and Open MPI."""
    processes: int | None = None
    """Number of processes that train together."""
    process: int | None = None
    """Number of this process, from 0 (default: JOB_COMPLETION_INDEX, which Kubernetes sets)."""
    defaults: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The recipe's fields that the source decides, because neither a recipe nor an option does."""

    def __call__(self) -> None:
        from keras_vgg.fit import describe_defaults, hosts, recipe_for, train

        if self.coordinator is not None:
            hosts.join(self.coordinator, self.processes, self.process)
        elif (self.processes, self.process) != (None, None):
            raise ValueError("--processes and --process need --coordinator HOST:PORT")
        recipe = self.recipe
        if self.defaults and recipe.source != "digits":
            fields = dataclasses.asdict(recipe)
            options = {name: value for name, value in fields.items() if name not in self.defaults}
            recipe = recipe_for(workdir=self.workdir, **options)
            if not hosts.index():
                show(describe_defaults(recipe, self.defaults))
        run = train(recipe, self.workdir, verbose=2 if self.quiet else "auto")
        if hosts.index():
            return
        results = run.results
        balanced = results.get("validation_balanced_accuracy")
        balanced_note = "" if balanced is None else f", balanced {balanced:.2%}"
        peak = results.get("peak_memory")
        memory = f", peak memory {peak / 1e9:.2f} GB" if peak else ""
        show(
            f"best epoch {results['best_epoch']} of {results['epochs']}: validation accuracy "
            f"{results['validation_accuracy']:.2%}{balanced_note}, "
            f"{results['training_seconds']:.0f} s{memory}\n"
            f"{run.model_path}\n{run.directory / 'training_curve.png'}\n"
            f"next: keras-vgg evaluate {run.directory}"
        )

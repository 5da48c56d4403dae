"""keras-vgg train."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from keras_vgg.cli.arguments import command_line
from keras_vgg.console import show
from keras_vgg.recipe import Recipe

if TYPE_CHECKING:
    from keras_vgg.run import Run


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network: keras-vgg train [RECIPE.py] --workdir RUN [--field value ...]

    Without a recipe, the network learns scikit-learn's handwritten digits. With --source and no
    recipe, the defaults are those for photographs: mirror images, and a size by the images. Every
    field of the recipe is an option below, and options win. The run directory gets the recipe, the
    environment, metrics.csv, TensorBoard logs, checkpoints and model.keras, the best epoch by
    validation accuracy. Repeat the command to resume an interrupted training. On SIGTERM (exit
    status 143) and Ctrl-C (130), the current step is finished and saved first. A finished run goes
    on with --extend, and an interrupted one ends early with --finish.
    """

    workdir: Path
    """The run directory: new, empty, or an earlier run of the same recipe. With --folds, the
    directory of the runs fold-1, fold-2, ..."""
    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")] = (
        dataclasses.field(default_factory=Recipe)
    )
    extend: int | None = None
    """Train the finished run in --workdir for this many epochs more. The schedule of its recipe
    begins again from --extend-rate, without warm-up, and ends with the last new epoch. The best
    epoch of all is kept; the results so far go to extensions.json."""
    extend_rate: float | None = None
    """Learning rate where --extend begins (default: a tenth of the recipe's)."""
    finish: bool = False
    """End the interrupted run in --workdir with the epochs that it has: its best epoch becomes the
    result."""
    find_learning_rate: bool = False
    """Do not train the run. Train 100 steps with a rising learning rate instead, and write the plot
    of the loss and a recipe with the suggested rate to the folder WORKDIR-learning-rate."""
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
        from keras_vgg.fit import hosts

        self._check()
        if self.coordinator is not None:
            hosts.join(self.coordinator, self.processes, self.process)
        verbose = 2 if self.quiet else "auto"
        if self.extend is not None:
            self._extend(self.extend, verbose)
            return
        if self.finish:
            from keras_vgg.fit import finish

            run = finish(self.workdir, verbose)
        else:
            from keras_vgg.fit import train

            recipe = self._recipe()
            if self.find_learning_rate:
                self._find_learning_rate(recipe)
                return
            if recipe.folds and not recipe.fold:
                self._cross_validate(recipe, verbose)
                return
            run = train(recipe, self.workdir, verbose)
        if not hosts.index():
            _show_results(run)

    def _find_learning_rate(self, recipe: Recipe) -> None:
        from keras_vgg.fit import find_learning_rate

        workdir = self.workdir if self.workdir.name.strip(".") else self.workdir.resolve()
        folder = workdir.with_name(f"{workdir.name}-learning-rate")
        sweep, suggested = find_learning_rate(recipe, folder, verbose=not self.quiet)
        lowest = sweep.rates[sweep.lowest]
        show(
            f"the loss was lowest at a learning rate of {lowest:.2g}; suggested is a tenth of it, "
            f"{suggested.learning_rate:g}\n{folder / 'learning_rate.png'}\n"
            f"next: {command_line('train', folder / 'recipe.json', '--workdir', self.workdir)}"
        )

    def _cross_validate(self, recipe: Recipe, verbose: int | str) -> None:
        from keras_vgg.cli.folds import show_cross_validation
        from keras_vgg.runs import cross_validate

        show_cross_validation(cross_validate(recipe, self.workdir, verbose))
        compared = command_line("evaluate", self.workdir, "OTHER")
        show(f"next: {compared}, to compare with another recipe")

    def _check(self) -> None:
        if self.coordinator is None and (self.processes, self.process) != (None, None):
            raise ValueError("--processes and --process need --coordinator HOST:PORT")
        if self.extend is None and self.extend_rate is not None:
            raise ValueError("--extend-rate needs --extend N, the number of epochs more")
        if self.find_learning_rate and (self.extend is not None or self.finish):
            raise ValueError(
                "--find-learning-rate is for a training that has not begun: leave out --extend and "
                "--finish"
            )
        if self.extend is None and not self.finish:
            return
        if self.extend is not None and self.finish:
            raise ValueError("--extend goes on with a run, and --finish ends it: choose one")
        from keras_vgg.run import Run

        if self.recipe not in (Recipe(), Run.open(self.workdir).recipe):
            raise ValueError(
                f"--extend and --finish use the recipe of {self.workdir}: leave out the recipe and "
                "its options"
            )

    def _recipe(self) -> Recipe:
        """Return the recipe, with the defaults that its source decides."""
        from keras_vgg.fit import describe_defaults, hosts, recipe_for

        if not self.defaults or self.recipe.source == "digits":
            return self.recipe
        fields = dataclasses.asdict(self.recipe)
        options = {name: value for name, value in fields.items() if name not in self.defaults}
        recipe = recipe_for(workdir=self.workdir, **options)
        if not hosts.index():
            show(describe_defaults(recipe, self.defaults))
        return recipe

    def _extend(self, epochs: int, verbose: int | str) -> None:
        from keras_vgg.fit import extend, hosts

        report = self.workdir / "report.html"
        run = extend(self.workdir, epochs, learning_rate=self.extend_rate, verbose=verbose)
        if hosts.index():
            return
        _show_results(run)
        if report.is_file():
            from keras_vgg.runs import report_runs

            show(f"{report_runs([run], verbose=True)} is written again")


def _show_results(run: Run) -> None:
    from keras_vgg.run import validation_text

    results = run.results
    balanced = results.get("validation_balanced_accuracy")
    balanced_note = "" if balanced is None else f", balanced {balanced:.2%}"
    peak = results.get("peak_memory")
    memory = f", peak memory {peak / 1e9:.2f} GB" if peak else ""
    early = results.get("finished_early_at_epoch")
    early_note = (
        "" if early is None else f"finished early, after epoch {early} of {run.recipe.epochs}\n"
    )
    show(
        f"{early_note}best epoch {results['best_epoch']} of {results['epochs']}: "
        f"{validation_text(results)}{balanced_note}, "
        f"{results['training_seconds']:.0f} s{memory}\n"
        f"{run.model_path}\n{run.directory / 'training_curve.png'}\n"
        f"next: {command_line('evaluate', run.directory)}"
    )

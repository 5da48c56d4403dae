"""Prune the filters of a run's network, and train the narrower network with the run as teacher."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import architecture, plotting
from keras_vgg.console import progress_bars, show
from keras_vgg.export import prune
from keras_vgg.export.answers import answers
from keras_vgg.export.reconstruction import fitted_layers, reconstruct
from keras_vgg.files import sha256_of, write_atomically, write_json
from keras_vgg.fit import evaluation_transform, train
from keras_vgg.fit.preparation import require_same_networks
from keras_vgg.plotting import INK, LINE, SERIES
from keras_vgg.recipe import Recipe
from keras_vgg.run import (
    Run,
    directory_of_run,
    holds_something,
    locked,
    read_fields,
    require_same_recipe,
)
from keras_vgg.runs.images import as_arrays, open_split, recipe_of
from keras_vgg.runs.sensitivity import as_fields, run_sensitivities, sensitivity_file

if TYPE_CHECKING:
    import keras
    from matplotlib.axes import Axes

FILE, PICTURE = "pruning.json", "pruning.png"
FITTED_ON = 1000  # training images, without their labels
EPOCHS, RATE = 1 / 3, 1 / 10  # of the run's epochs and learning rate, for the training of a step


@dataclasses.dataclass(frozen=True)
class Stage:
    """A network of a pruning: the original, or that of a step.

    Attributes:
        filters: Number of filters of each convolution.
        macs: Multiply-accumulates for one image.
        parameters: Number of parameters.
        validation: Validation accuracy, or the area under the precision-recall curves for several
            labels an image. None: the training has not finished.
    """

    filters: tuple[int, ...]
    macs: int
    parameters: int
    validation: float | None


@dataclasses.dataclass(frozen=True)
class Pruning:
    """A pruning on disk.

    Attributes:
        directory: It holds step-1, step-2, ..., which are runs, pruning.json and pruning.png.
        figure: The validation figure in words.
        original: The network that was pruned.
        steps: The network of each step.
    """

    directory: Path
    figure: str
    original: Stage
    steps: tuple[Stage, ...]

    @property
    def run(self) -> Run:
        """The run of the last step."""
        return Run.open(self.directory / f"step-{len(self.steps)}")


def prune_run(
    run: Run,
    workdir: str | Path,
    *,
    macs: float = 0.5,
    steps: int = 1,
    criterion: str = "taylor",
    images: int = 1000,
    epochs: int | None = None,
    learning_rate: float | None = None,
    verbose: int | str = "auto",
    source: str | None = None,
    **fields: Any,
) -> Pruning:
    """Prune a run's network to a share of its multiply-accumulates, and train it again.

    In each step, validation images say how many filters each layer can lose (see
    `keras_vgg.export.prune`); these are removed; the weights that are left are fitted to what the
    network computed before (see `keras_vgg.export.reconstruction`); and the narrower network is
    trained on the run's data, with the run as teacher (`Recipe.teachers`). Every step is an
    ordinary run, whose recipe has `filters`. The test split is not read.

    Repeat the call to resume after a kill; the run and the directory may be at other paths then.
    The sensitivity of each layer is kept in step-N.sensitivity.json until its step has its filters.

    Args:
        run: A finished run.
        workdir: A directory for the steps: new, empty, or of the same pruning.
        macs: Share of the multiply-accumulates to keep, in (0, 1).
        steps: In how many steps, each of which removes the same share of what is left.
        criterion: As in `keras_vgg.export.prune.importance`.
        images: At most so many validation images give the sensitivity, and training images the
            importance; evenly spread. The fit takes 1,000 training images.
        epochs: Of the training in each step. None: a third of the run's.
        learning_rate: Where the training of each step begins. None: a tenth of the run's.
        verbose: As in `keras_vgg.train`.
        source: Where the run's images are now; None: where they were.
        fields: Other fields of the recipe of each step, but for `filters`, `init` and `teachers`,
            which the pruning decides.

    Returns:
        The pruning. pruning.json holds its figures and the sensitivity of each layer.

    Raises:
        ValueError, OSError, MemoryError: as `keras_vgg.train`; an argument is out of range; the run
            has not finished; the directory holds another pruning; the share cannot be reached; the
            criterion does not fit the network or Keras' backend; `source` does not hold the run's
            own images.
        RunInUse: another process is at work in the directory.
    """
    workdir = directory_of_run(workdir)
    _check(macs, steps, criterion, images)
    if decided := {"filters", "init", "teachers"} & fields.keys():
        raise ValueError(f"the pruning decides {', '.join(sorted(decided))}; leave it out")
    run.require_finished()
    _require_criterion(run, criterion)
    _require_share(run, macs, steps)
    if source is not None:
        open_split(run, "validation", source)  # refuses other images than the run's own
        run = _in_place(run, source)
    epochs = max(1, round(run.recipe.epochs * EPOCHS)) if epochs is None else epochs
    rate = run.recipe.learning_rate * RATE if learning_rate is None else learning_rate
    if verbose and learning_rate is None and run.recipe.freeze_until == "all":
        print(
            f"{run.directory} trained its classifier alone, and each step trains the whole "
            f"network: learning_rate {rate:g}, a tenth of the run's, may be far too small for it"
        )
    changes = {**_TRAINING, "epochs": epochs, "learning_rate": rate}
    changes["unmixed_epochs"] = min(run.recipe.unmixed_epochs, epochs)
    changes |= fields
    changes["teachers"] = (str(run.directory.resolve()),)
    # Wrong values are refused before anything is computed.
    run.recipe.replace(**changes, init=str(workdir / "step-1.keras"))
    settings = {"macs": macs, "steps": steps, "criterion": criterion, "images": images}
    if not (workdir / FILE).is_file() and holds_something(workdir):
        raise ValueError(f"{workdir} exists and holds no pruning; choose another workdir")
    with locked(workdir):
        record = _begin(run, workdir, settings)
        current = run
        for number in range(1, steps + 1):
            name = f"step-{number}"
            if len(record["steps"]) < number:
                limit = record["original"]["macs"] * macs ** (number / steps)
                record["steps"].append(_remove(current, limit, settings, workdir, number, verbose))
                _write(workdir, record)
            sensitivity_file(workdir, number).unlink(missing_ok=True)
            widths = tuple(record["steps"][number - 1]["filters"])
            recipe = run.recipe.replace(
                **changes, filters=widths, init=str((workdir / f"{name}.keras").resolve())
            )
            current = _trained(recipe, workdir / name, verbose, has_moved=source is not None)
            record["steps"][number - 1]["validation"] = _validation(current)
            _write(workdir, record)
    return open_pruning(workdir)


def open_pruning(workdir: str | Path) -> Pruning:
    """Read a pruning.

    Raises:
        FileNotFoundError: the directory holds no pruning.json.
        ValueError: the file cannot be read.
    """
    workdir = directory_of_run(workdir)
    record = read_fields(workdir / FILE)
    original, steps = record["original"], record["steps"]
    return Pruning(workdir, record["figure"], _stage(original), tuple(map(_stage, steps)))


def stand_ins(run: Run, workdir: str | Path) -> dict[str, Run]:
    """Return the runs of a run's pruning, the widest network first: name -> the run of a step.

    Raises:
        FileNotFoundError, ValueError: as `open_pruning`; the pruning is not of this run's network,
            or has not finished; the network of a step is missing or damaged.
    """
    pruning = open_pruning(workdir)
    record = read_fields(pruning.directory / FILE)
    if record["model_sha256"] != sha256_of(run.model_path):
        raise ValueError(f"{workdir} is not a pruning of the network of {run.directory}")
    steps = record["settings"]["steps"]
    if len(pruning.steps) < steps:
        raise ValueError(
            f"{workdir} has {len(pruning.steps)} of {steps} steps; repeat the pruning to resume it"
        )
    networks: dict[str, Run] = {}
    for number, stage in enumerate(pruning.steps, 1):
        step = Run.open(pruning.directory / f"step-{number}")
        step.require_finished()
        step.require_sound_model()
        share = stage.macs / pruning.original.macs
        name = f"pruned to {share:.0%}"
        if name in networks:
            name = f"{name}, step {number}"
        networks[name] = step
    return networks


# What the training of a step changes in the run's recipe, besides what the pruning decides.
_TRAINING: dict[str, Any] = {
    "init_head": "all",
    "initialization": Recipe().initialization,
    "freeze_until": "none",
    "layer_decay": 1.0,
    "mean_rgb": None,  # the weights state both
    "std_rgb": None,
    "schedule": "cosine",
    "step_epochs": (),
    "warmup_epochs": 0.0,
    "restart_epochs": (),
    "restart_rates": (),
}


def _check(macs: float, steps: int, criterion: str, images: int) -> None:
    if not 0 < macs < 1:
        raise ValueError(
            f"macs must be the share of the multiply-accumulates to keep, in (0, 1), not {macs:g}"
        )
    for name, value in (("steps", steps), ("images", images)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, not {value}")
    if criterion not in prune.CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(prune.CRITERIA)}, not {criterion!r}")


def _require_criterion(run: Run, criterion: str) -> None:
    """Raise ValueError if a criterion does not fit a run's network, or this backend of Keras."""
    prune.require_backend(criterion)
    if criterion == "batch_norm" and not run.recipe.batch_norm:
        raise ValueError(
            f"criterion 'batch_norm' needs batch normalisation, and the network of {run.directory}"
            " has none; use 'taylor' or 'l1'"
        )


def _require_share(run: Run, macs: float, steps: int) -> None:
    """Raise ValueError if a share of the multiply-accumulates is out of reach.

    The limits of later steps depend on what the first step removes; `_remove` looks at them.
    """
    recipe, classes = run.recipe, len(run.class_names)
    original = _figures(recipe, classes)
    widths, whole = original["filters"], original["macs"]
    narrowest = [1] * len(widths)
    if _first_stays(recipe):
        narrowest[0] = widths[0]
    least = macs_of(recipe, classes, narrowest)
    if least > macs * whole:
        raise ValueError(
            f"macs={macs:g} cannot be reached: with one filter in each convolution,"
            f" {math.ceil(1000 * least / whole) / 1000:g} of the multiply-accumulates are left; ask"
            " for at least that share"
        )
    limit = whole * macs ** (1 / steps)
    prune.require_reachable(
        widths, partial(macs_of, recipe, classes), limit, first_stays=_first_stays(recipe)
    )


def _first_stays(recipe: Recipe) -> bool:
    """Return whether the first convolution keeps all filters, which normalise each other."""
    return architecture.get_configuration(recipe.configuration).lrn


def _in_place(run: Run, source: str) -> Run:
    """Return a run whose images are now at another source."""
    return Run(run.directory, recipe_of(run, source))


def _trained(recipe: Recipe, directory: Path, verbose: int | str, *, has_moved: bool) -> Run:
    """Train a step. One that began before something moved is the same run in a new place.

    `has_moved`: the images have; whether networks have is in the step's recipe.
    """
    if Run(directory, recipe).begun:
        step = _with_networks_in_place(Run.open(directory), recipe)
        if has_moved:
            step = _in_place(step, recipe.source)
            if step.finished:
                require_same_recipe(Run(directory, recipe), step.recipe)
                return step
            # `prune_run` has compared the images, and `train` compares the rest.
            step.write_recipe()
    return train(recipe, directory, verbose)


def _with_networks_in_place(step: Run, recipe: Recipe) -> Run:
    """Return a step whose first weights and teacher are where a recipe of it says.

    Raises:
        ValueError, OSError: they are not the networks that the step began with.
    """
    places = {"init": recipe.init, "teachers": recipe.teachers}
    placed = Run(step.directory, step.recipe.replace(**places))
    begins_again = not step.finished and not step.checkpoints  # with what the recipe says
    if placed.recipe == step.recipe or begins_again:
        return step
    require_same_networks(placed)
    placed.write_recipe()
    return placed


def _begin(run: Run, workdir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of pruning.json, which is that of the same pruning or new.

    The network and the settings make it the same, wherever the run is now.
    """
    identity = {"model_sha256": sha256_of(run.model_path), "settings": dict(settings)}
    place = {"run": str(run.directory.resolve())}
    if (workdir / FILE).is_file():
        record = read_fields(workdir / FILE)
        differ = [name for name, value in identity.items() if record[name] != value]
        if not differ:
            record |= place
            return record
        if record["steps"]:  # otherwise nothing is lost
            earlier = record["settings"]
            changed = [name for name in settings if earlier.get(name) != settings[name]]
            what = "with " + ", ".join(f"{n} {earlier.get(n)}, not {settings[n]}" for n in changed)
            if "model_sha256" in differ:
                what = f"of the network that {record['run']} had"
            raise ValueError(f"{workdir} holds another pruning, {what}; choose another workdir")
    original = _figures(run.recipe, len(run.class_names)) | {"validation": _validation(run)}
    name = "validation pr_auc" if run.several_labels else "validation accuracy"
    record = {**place, **identity, "figure": name, "original": original, "steps": []}
    write_json(workdir / FILE, record)  # so that a kill in the first step leaves a pruning
    return record


def _remove(
    run: Run,
    limit: float,
    settings: Mapping[str, Any],
    workdir: Path,
    number: int,
    verbose: int | str,
) -> dict[str, Any]:
    """Write step-`number`.keras, a run's network with fewer filters; return the step's entry."""
    classes = len(run.class_names)
    count_macs = partial(macs_of, run.recipe, classes)
    widths = _figures(run.recipe, classes)["filters"]
    prune.require_reachable(widths, count_macs, limit, first_stays=_first_stays(run.recipe))
    model = run.model()
    file = sensitivity_file(workdir, number)
    layers = run_sensitivities(run, model, settings["criterion"], settings["images"], file, verbose)
    kept = prune.plan(layers, count_macs, limit)
    small = prune.remove_filters(model, kept)
    divergences = _fit_weights(run, model, small, kept, settings["images"], verbose)
    write_atomically(workdir / f"step-{number}.keras", small.save)
    widths = tuple(map(len, kept.values()))
    entry = _figures(run.recipe.replace(filters=widths), classes) | {
        "validation": None,
        "divergences": divergences,
        "sensitivity": {layer.layer: as_fields(layer) for layer in layers},
    }
    del model, small
    gc.collect()
    return entry


def _fit_weights(
    run: Run,
    model: keras.Model,
    small: keras.Model,
    kept: Mapping[str, np.ndarray],
    count: int,
    verbose: int | str,
) -> dict[str, float]:
    """Fit a pruned network's weights, unless its answers to validation images get worse by it.

    `count`: at most so many validation images decide.

    Returns the mean divergence of its answers to these images from the whole network's: with the
    filters removed, and with the weights fitted.
    """
    transform = evaluation_transform(run.recipe)
    pictures, _ = as_arrays(open_split(run, "validation").spread(count), transform)
    own, before = answers(model, pictures), small.get_weights()

    def change() -> float:
        return prune.divergence(own, answers(small, pictures), run.several_labels)

    removed = change()
    images, _ = as_arrays(open_split(run, "train").spread(FITTED_ON), transform)
    with progress_bars(verbose not in (0, 2)) as bars:
        task = bars.add_task("reconstruction, layers", total=len(fitted_layers(small)))
        reconstruct(model, small, kept, images, lambda name: bars.advance(task))
    fitted = change()
    if verbose != 0:
        show(
            f"divergence of the answers to {len(pictures):,} validation images: {removed:.3g} with"
            f" the filters removed, {fitted:.3g} with the weights fitted"
        )
    if not fitted < removed:  # or not a number
        small.set_weights(before)
    return {"removed": removed, "fitted": fitted}


def macs_of(recipe: Recipe, classes: int, widths: Sequence[int]) -> int:
    """Return the multiply-accumulates of a recipe's network with other widths."""
    rows = recipe.replace(filters=tuple(widths)).layers(classes)
    return architecture.totals(rows).macs


def _figures(recipe: Recipe, classes: int) -> dict[str, Any]:
    widths = architecture.widths(recipe.configuration, recipe.width_multiplier, recipe.filters)
    totals = architecture.totals(recipe.layers(classes))
    return {"filters": list(widths), "macs": totals.macs, "parameters": totals.parameters}


def _validation(run: Run) -> float:
    return run.results["validation_pr_auc" if run.several_labels else "validation_accuracy"]


def _stage(entry: Mapping[str, Any]) -> Stage:
    return Stage(tuple(entry["filters"]), entry["macs"], entry["parameters"], entry["validation"])


def _write(workdir: Path, record: Mapping[str, Any]) -> None:
    """Write pruning.json and pruning.png."""
    write_json(workdir / FILE, record)
    original, steps = _stage(record["original"]), [_stage(entry) for entry in record["steps"]]
    figure, (left, right) = plotting.new_figure(10, 4.5, columns=2)
    _draw_accuracy(left, [original, *steps], record["figure"])
    _draw_widths(right, original, steps[-1])
    plotting.save_png(figure, workdir / PICTURE)


def _draw_accuracy(axes: Axes, stages: Sequence[Stage], figure: str) -> None:
    done = [stage for stage in stages if stage.validation is not None]
    x, y = [stage.macs / 1e6 for stage in done], [100 * (s.validation or 0.0) for s in done]
    axes.plot(x, y, "o-", color=SERIES[0], label="pruned and trained")
    axes.plot(x[0], y[0], "s", color=INK, markersize=8, label="original")
    axes.set_xlim(0, None)
    axes.set_xlabel("million multiply-accumulates an image")
    axes.set_ylabel(f"{figure} (%)")
    axes.margins(y=0.12)
    plotting.show_legend(axes)


def _draw_widths(axes: Axes, original: Stage, pruned: Stage) -> None:
    places = np.arange(len(original.filters))
    axes.bar(places, original.filters, color=LINE, label="original")
    axes.bar(places, pruned.filters, color=SERIES[0], label="pruned")
    axes.set_xlabel("convolution")
    axes.set_xticks(places, [str(place + 1) for place in places])
    axes.set_ylabel("filters")
    plotting.show_legend(axes)

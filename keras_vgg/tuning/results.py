"""The trials of a search: read from their folders, compared, written as a recipe and plots."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vgg.files import write_atomically
from keras_vgg.fit.schedule import compared_column
from keras_vgg.recipe import Recipe, load_recipe
from keras_vgg.run import Run, read_fields
from keras_vgg.tuning.plots import plot_parallel, plot_search

BEST = "best_recipe.py"
PRUNED = "pruned"  # an empty file in a trial's folder


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A trial.

    Attributes:
        folder: The trial's folder. If training began, the folder run/ inside is a run directory.
        values: Searched field -> the trial's value, a pair as text.
        parameters: Parameters of the network.
        epochs: Epochs that the trial trains if nothing ends it early.
        curve: Validation accuracy of each epoch so far.
        seconds: Seconds of training.
        at: Seconds of the search when the trial ended; None: it has not.
        val_accuracy: That of the best epoch; None: the trial failed or has not ended.
        reason: Why the trial failed or was refused.
        pruned: Whether the median rule ended the trial early.
    """

    folder: Path
    values: Mapping[str, Any]
    parameters: int
    epochs: int
    curve: tuple[float, ...] = ()
    seconds: float = 0.0
    at: float | None = None
    val_accuracy: float | None = None
    reason: str | None = None
    pruned: bool = False

    @property
    def number(self) -> int:
        return int(self.folder.name.removeprefix("trial_"))

    @property
    def ended(self) -> bool:
        """Whether the trial is over, also by a failure."""
        return self.at is not None

    @property
    def finished(self) -> bool:
        """Whether the trial is over and has an accuracy."""
        return self.val_accuracy is not None

    @property
    def final_accuracy(self) -> float:
        """Return val_accuracy of a finished trial."""
        assert self.val_accuracy is not None, f"trial {self.number} is not finished"
        return self.val_accuracy

    @property
    def state(self) -> str:
        if self.reason:
            return "refused" if self.reason.startswith("refused") else "failed"
        return ("pruned" if self.pruned else "done") if self.finished else "running"


def attempts(workdir: Path) -> list[Attempt]:
    """Return the trials of a search by number, each as far as it is trained."""
    trials = []
    for path in workdir.glob("trial_*/facts.json"):
        folder = path.parent
        plan = dict(read_fields(path))
        outcome = {}
        if (folder / "outcome.json").is_file():
            outcome = dict(read_fields(folder / "outcome.json"))
        rows = Run(folder / "run", Recipe()).history
        curve = tuple(row[compared_column(row)] for row in rows)
        seconds = outcome.pop("seconds", sum(row["seconds"] for row in rows))
        pruned = (folder / PRUNED).exists()
        trials.append(
            Attempt(folder, curve=curve, seconds=seconds, pruned=pruned, **plan, **outcome)
        )
    return sorted(trials, key=lambda trial: trial.number)


def best(trials: Sequence[Attempt]) -> Attempt | None:
    """Return the first trial with the highest validation accuracy; None: no trial is finished."""
    return max((a for a in trials if a.finished), key=lambda a: a.final_accuracy, default=None)


def pareto(trials: Sequence[Attempt]) -> list[Attempt]:
    """Return the trials more accurate than all smaller networks, from the smallest on."""
    front: list[Attempt] = []
    finished = [a for a in trials if a.finished]
    for trial in sorted(finished, key=lambda a: (a.parameters, -a.final_accuracy)):
        if not front or trial.final_accuracy > front[-1].final_accuracy:
            front.append(trial)
    return front


def importances(trials: Sequence[Attempt]) -> dict[str, float]:
    """Return field -> share of the differences in accuracy, the largest first; the sum is 1.

    This is permutation importance in a random forest (scikit-learn). If trials were pruned, all
    trials are compared up to the last epoch that every pruned trial has. The result is empty for
    fewer than eight finished trials, or if all accuracies are equal.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.utils import Bunch

    finished = [a for a in trials if a.finished]
    names = searched_names(trials)
    common = min((len(a.curve) for a in finished if a.pruned), default=None)  # epochs
    scores = np.array(
        [a.final_accuracy if common is None else max(a.curve[:common]) for a in finished]
    )
    if len(finished) < 8 or np.ptp(scores) == 0:
        return {}
    rows = np.array([[numeric_value(trials, name, a) for name in names] for a in finished])
    forest = RandomForestRegressor(200, random_state=0).fit(rows, scores)
    result = permutation_importance(forest, rows, scores, n_repeats=20, random_state=0)
    assert isinstance(result, Bunch)  # several scores would give a dict of them
    shares = np.maximum(result.importances_mean, 0)
    shares = shares / shares.sum() if shares.sum() else shares
    order = np.argsort(shares)[::-1]
    return {names[i]: float(shares[i]) for i in order}


def searched_names(trials: Sequence[Attempt]) -> list[str]:
    """Return the searched fields, and epochs if hyperband varies them."""
    return [*{name: None for a in trials for name in a.values}]


def numeric_value(trials: Sequence[Attempt], name: str, trial: Attempt) -> float:
    """Return a trial's value as a number: for a text the index among all texts, -1 for no value."""
    value = trial.values.get(name)
    if value is None:
        return -1.0
    if isinstance(value, str):
        return float(sorted({str(a.values.get(name)) for a in trials}).index(value))
    return float(value)


def write_results(workdir: Path, trials: Sequence[Attempt], tuner: str) -> None:
    """Write best_recipe.py, trials.csv, search.png and parallel_coordinates.png."""
    winner = best(trials)
    assert winner is not None, "no trial is finished"
    recipe = Run.open(winner.folder / "run").recipe
    source = recipe_source(
        recipe,
        f"The best of {len(trials)} trials of a search by {tuner}.\n\n"
        f"command:  keras-vgg train {BEST} --workdir RUN\n"
        f"result:   {winner.final_accuracy:.2%} on the validation images in the search (trial "
        f"{winner.number}, {winner.seconds:.0f} s); the test images have not been read\n",
    )
    write_atomically(workdir / BEST, lambda file: file.write_text(source, encoding="utf-8"))
    if load_recipe(workdir / BEST) != recipe:
        raise AssertionError(f"{workdir / BEST} is not the recipe of {winner.folder}")
    names = searched_names(trials)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    # A search may have a field "epochs".
    columns = ("trial", "state", "val_accuracy", "parameters", "trained_epochs", "seconds")
    writer.writerow([*columns, *names, "reason"])
    for a in trials:
        row = [a.number, a.state, a.val_accuracy, a.parameters, len(a.curve), round(a.seconds, 1)]
        writer.writerow([*row, *(a.values.get(name) for name in names), a.reason])
    text = table.getvalue()
    write_atomically(workdir / "trials.csv", lambda file: file.write_text(text, encoding="utf-8"))
    plot_search(trials, pareto(trials), importances(trials), workdir / "search.png")
    plot_parallel(
        [name for name in names if len({a.values.get(name) for a in trials}) > 1],
        [a for a in trials if a.finished],
        workdir / "parallel_coordinates.png",
    )


def recipe_source(recipe: Recipe, record: str) -> str:
    """Return a recipe file's text: a docstring, and the fields that differ from `Recipe()`."""
    default = Recipe()
    lines = [
        f"    {field.name}={getattr(recipe, field.name)!r},"
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != getattr(default, field.name)
    ]
    head = f'"""{record}"""\n\nfrom keras_vgg.recipe import Recipe\n\n'
    return head + "\n".join(["RECIPE = Recipe(", *lines, ")"]) + "\n"

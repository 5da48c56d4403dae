"""What a search found: its trials, read from their folders, as a recipe, a table and plots."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vgg.files import write_atomically
from keras_vgg.recipe import Recipe, load_recipe
from keras_vgg.run import Run, read_fields
from keras_vgg.tuning.plots import plot_parallel, plot_search

BEST = "best_recipe.py"
PRUNED = "pruned"  # an empty file in a trial's folder


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A trial.

    Attributes:
        folder: The trial's folder; its run directory is run/ in it, where training began.
        values: Field -> what was tried, a pair as text.
        parameters: Parameters of the network.
        epochs: That it was to have.
        curve: Validation accuracy of each epoch so far.
        seconds: Seconds of training.
        at: Seconds of the search when it ended, None before.
        val_accuracy: The best epoch's, None before the end or where it failed.
        reason: Why it failed or was refused.
        pruned: Ended early, because it was hopeless.
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
    def finished(self) -> bool:
        return self.val_accuracy is not None

    @property
    def final_accuracy(self) -> float:
        """val_accuracy of a finished trial."""
        assert self.val_accuracy is not None, f"trial {self.number} is not finished"
        return self.val_accuracy

    @property
    def state(self) -> str:
        if self.reason:
            return "refused" if self.reason.startswith("refused") else "failed"
        return ("pruned" if self.pruned else "done") if self.finished else "running"


def attempts(workdir: Path) -> list[Attempt]:
    """The trials of a search, by number, as far as they have come."""
    found = []
    for path in sorted(workdir.glob("trial_*/facts.json")):
        folder = path.parent
        facts = dict(read_fields(path))
        outcome = {}
        with_outcome = folder / "outcome.json"
        if with_outcome.is_file():
            outcome = dict(read_fields(with_outcome))
        rows = Run(folder / "run", Recipe()).history
        curve = tuple(row["val_accuracy"] for row in rows)
        seconds = outcome.pop("seconds", sum(row["seconds"] for row in rows))
        pruned = (folder / PRUNED).exists()
        found.append(
            Attempt(folder, curve=curve, seconds=seconds, pruned=pruned, **facts, **outcome)
        )
    return sorted(found, key=lambda attempt: attempt.number)


def best(found: Sequence[Attempt]) -> Attempt | None:
    """The trial of the highest validation accuracy, of several the first."""
    return max((a for a in found if a.finished), key=lambda a: a.final_accuracy, default=None)


def pareto(found: Sequence[Attempt]) -> list[Attempt]:
    """The trials that no smaller or equal network equals in accuracy, from the smallest on."""
    front: list[Attempt] = []
    finished = [a for a in found if a.finished]
    for attempt in sorted(finished, key=lambda a: (a.parameters, -a.final_accuracy)):
        if not front or attempt.final_accuracy > front[-1].final_accuracy:
            front.append(attempt)
    return front


def importances(found: Sequence[Attempt]) -> dict[str, float]:
    """How much of the differences in accuracy each field explains, the largest first; the sum is 1.

    By shuffling one at a time in a random forest's answers (scikit-learn). Where trials were
    pruned, all are compared at the epoch that every one of them has seen. Empty for fewer than
    eight finished trials, or where all are equal.
    """
    import numpy as np
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.utils import Bunch

    finished = [a for a in found if a.finished]
    names = searched_names(found)
    seen = min((len(a.curve) for a in finished if a.pruned), default=None)
    scores = np.array([a.final_accuracy if seen is None else max(a.curve[:seen]) for a in finished])
    if len(finished) < 8 or np.ptp(scores) == 0:
        return {}
    rows = np.array([[code(found, name, a) for name in names] for a in finished])
    forest = RandomForestRegressor(200, random_state=0).fit(rows, scores)
    result = permutation_importance(forest, rows, scores, n_repeats=20, random_state=0)
    assert isinstance(result, Bunch)  # a dict of them where several scores are asked for
    shares = np.maximum(result.importances_mean, 0)
    shares = shares / shares.sum() if shares.sum() else shares
    order = np.argsort(shares)[::-1]
    return {names[i]: float(shares[i]) for i in order}


def searched_names(found: Sequence[Attempt]) -> list[str]:
    """The fields that were searched, and epochs where hyperband varies them."""
    return [*{name: None for a in found for name in a.values}]


def code(found: Sequence[Attempt], name: str, attempt: Attempt) -> float:
    """A value as a number: a text is its place among all texts, what is not there -1."""
    value = attempt.values.get(name)
    if value is None:
        return -1.0
    if isinstance(value, str):
        return float(sorted({str(a.values.get(name)) for a in found}).index(value))
    return float(value)


def write_results(workdir: Path, found: Sequence[Attempt], tuner: str) -> None:
    """best_recipe.py, trials.csv, search.png and parallel_coordinates.png, in the search's."""
    winner = best(found)
    assert winner is not None, "no trial is finished"
    recipe = Run.open(winner.folder / "run").recipe
    text = recipe_source(
        recipe,
        f"The best of {len(found)} trials of a search by {tuner}.\n\n"
        f"command:  keras-vgg train {BEST} --workdir RUN\n"
        f"result:   {winner.final_accuracy:.2%} on the validation images in the search (trial "
        f"{winner.number}, {winner.seconds:.0f} s); the test images have not been read\n",
    )
    write_atomically(workdir / BEST, lambda file: file.write_text(text, encoding="utf-8"))
    if load_recipe(workdir / BEST) != recipe:
        raise AssertionError(f"{workdir / BEST} is not the recipe of {winner.folder}")
    names = searched_names(found)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    facts = ("trial", "state", "val_accuracy", "parameters", "epochs", "seconds")
    writer.writerow([*facts, *names, "reason"])
    for a in found:
        row = [a.number, a.state, a.val_accuracy, a.parameters, len(a.curve), round(a.seconds, 1)]
        writer.writerow([*row, *(a.values.get(name) for name in names), a.reason])
    write_atomically(workdir / "trials.csv", lambda file: file.write_text(table.getvalue()))
    plot_search(found, pareto(found), importances(found), workdir / "search.png")
    plot_parallel(
        [name for name in names if len({a.values.get(name) for a in found}) > 1],
        [a for a in found if a.finished],
        workdir / "parallel_coordinates.png",
    )


def recipe_source(recipe: Recipe, record: str) -> str:
    """A recipe file: a docstring, and the fields that differ from `Recipe()`."""
    default = Recipe()
    lines = [
        f"    {field.name}={getattr(recipe, field.name)!r},"
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != getattr(default, field.name)
    ]
    head = f'"""{record}"""\n\nfrom keras_vgg.recipe import Recipe\n\n'
    return head + "\n".join(["RECIPE = Recipe(", *lines, ")"]) + "\n"

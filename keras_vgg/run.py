"""The run directory: training writes it, and all other commands read it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from keras_vgg.containers import require_archive, require_hdf5
from keras_vgg.files import remove_leftovers, whole_names, write_atomically, write_json
from keras_vgg.image_paths import expanded, unless_literal
from keras_vgg.recipe import Recipe

_LOCK = ".lock"
_NUMBER = (int, float)

# The types of the fields that this package reads from the files of a run.
_FIELD_TYPES: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "data.json": {"class_names": list, "splits": dict},
    "environment.json": {"precision": str, "engine": str},
    "init.json": {"source": str, "sha256": str},
    "teachers.json": {"teachers": list},
    "results.json": {
        "epochs": int,
        "best_epoch": int,
        "parameters": int,
        "validation_accuracy": _NUMBER,
        "validation_pr_auc": _NUMBER,
        "validation_loss": _NUMBER,
        "training_seconds": _NUMBER,
        "remarks": list,
    },
    "thresholds.json": {"model_sha256": str, "thresholds": dict},
}


def validation_text(results: Mapping[str, Any]) -> str:
    """Return the validation figure of results.json in words, such as "validation accuracy 98 %"."""
    if "validation_pr_auc" in results:
        return f"validation pr_auc {results['validation_pr_auc']:.4f}"
    return f"validation accuracy {results['validation_accuracy']:.2%}"


class RunInUse(OSError):
    """Another process is training in the run directory."""


class UnfinishedRun(UserWarning):
    """A run has not finished training, and its best network so far is used."""


class Fields(dict[str, Any]):
    """An object of a JSON file. A missing field raises a ValueError that names the file."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self._path} cannot be read: it has no {name!r}")


def read_fields(path: Path) -> Fields:
    """Return the object that a JSON file holds.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON, holds no object, or a known field has a wrong type. The
            error names the file and the fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text, object_hook=lambda values: Fields(path, values))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: it is not JSON ({error})") from error
    if not isinstance(fields, Fields):
        raise ValueError(f"{path} cannot be read: it holds {text.strip()[:20]!r} instead of fields")
    for name, kind in _FIELD_TYPES.get(path.name, {}).items():
        value = fields.get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{path} cannot be read: its {name!r} is {str(value)[:40]!r}")
    return fields


def why_no_run(path: Path) -> str:
    """Return why there is no run at a path."""
    if path.is_dir():
        return "it has no recipe.json"
    return "it is a file" if path.exists() else "it does not exist"


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run on disk. An error about a file of the run names that file."""

    directory: Path
    recipe: Recipe

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """Open a run that exists; its path may begin with ~, the home folder.

        Raises:
            FileNotFoundError: the directory does not exist, or holds no run.
            ValueError: the run's recipe cannot be read.
        """
        directory = directory_of_run(directory)
        path = directory / "recipe.json"
        if holds_folds(directory):
            raise FileNotFoundError(
                f"{directory} holds the runs of a cross-validation: name one of them, such as "
                f"{directory / 'fold-1'}; `keras-vgg evaluate {directory}` shows the figures of all"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{directory} is not a run directory: {why_no_run(directory)}")
        try:
            return cls(directory, Recipe.from_json(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    @property
    def model_path(self) -> Path:
        return self.directory / "model.keras"

    @property
    def class_names(self) -> tuple[str, ...]:
        names = self.read_json("data.json")["class_names"]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self.directory / 'data.json'} cannot be read: it names no classes")
        return tuple(names)

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.directory.glob("checkpoints/epoch-*.npz"))

    @property
    def begun(self) -> bool:
        return (self.directory / "recipe.json").is_file()

    @property
    def finished(self) -> bool:
        return (self.directory / "results.json").is_file()

    @property
    def results(self) -> dict[str, Any]:
        """The results of training, and of later evaluations; empty while training."""
        return self.read_json("results.json") if self.finished else {}

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, one for each epoch."""
        path = self.directory / "metrics.csv"
        if not path.is_file():
            return []
        try:
            with path.open(newline="", encoding="utf-8") as file:
                return [
                    Fields(path, {k: int(v) if k == "epoch" else float(v) for k, v in row.items()})
                    for row in csv.DictReader(file)
                ]
        except (ValueError, TypeError, csv.Error) as error:  # a line too short or too long
            raise ValueError(f"{path} cannot be read: {error}") from error

    def model(self):
        """Load the best model by validation accuracy, without compiling it.

        A run that has not finished training gives its best model so far, and an `UnfinishedRun`
        warning.

        Raises:
            ValueError: no epoch of the run has ended, or the model's file is damaged.
            FileNotFoundError: the model's file is missing.
        """
        from keras_vgg.layers import load_keras_file

        self.require_sound_model()
        return load_keras_file(self.model_path)

    def require_sound_model(self) -> None:
        """Look at results.json and at the model's file, before anything is computed from them.

        Warns and raises: as `require_model`; ValueError also if one of the files is damaged.
        """
        if self.finished:
            self.read_json("results.json")
        self.require_model()
        require_archive(self.model_path)
        require_hdf5(self.model_path, "model.weights.h5")

    def require_model(self) -> None:
        """Look whether there is a model, and warn if it is the best one so far.

        Raises:
            ValueError: no epoch of the run has ended.
            FileNotFoundError: the model of a finished run is missing.
        """
        exists = self.model_path.is_file()
        if not self.finished and not exists:
            raise ValueError(
                f"{self.directory} has not finished training, and has no network yet, as no epoch "
                "has ended; resume it first"
            )
        if not self.finished:
            warnings.warn(self.progress_note(), UnfinishedRun, stacklevel=1)
        if not exists:
            raise FileNotFoundError(
                f"{self.model_path} is missing: copy it back, or train in another workdir"
            )

    def require_finished(self) -> None:
        """Raise ValueError if the run has not finished training."""
        if not self.finished:
            raise ValueError(
                f"{self.directory} has not finished training; resume it first, or end it with "
                f"keras-vgg train --workdir {shlex.quote(str(self.directory))} --finish"
            )

    def progress_note(self) -> str:
        """Return a line on a run that has not finished training."""
        return (
            f"{self.directory} has not finished training (epoch {len(self.history)} of "
            f"{self.recipe.epochs}): its best network so far is used, and no result is final"
        )

    def read_json(self, name: str) -> Fields:
        """Read one of the run's JSON files; see `read_fields`."""
        return read_fields(self.directory / name)

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.directory / name, value)

    def write_recipe(self) -> None:
        self._write_text("recipe.json", self.recipe.to_json())

    @property
    def several_labels(self) -> bool:
        """Whether an image of the run's data may have several labels, or none."""
        return bool(self.read_json("data.json").get("several_labels", False))

    def add_results(self, **values: Any) -> None:
        """Add values to results.json."""
        self.write_json("results.json", {**self.results, **values})

    def write_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Replace metrics.csv, so a resume neither loses nor repeats a line."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write_text("metrics.csv", text.getvalue())

    def _write_text(self, name: str, text: str) -> None:
        write_atomically(
            self.directory / name, lambda path: path.write_text(text, encoding="utf-8")
        )


def directory_of_run(path: str | Path) -> Path:
    """Return the path of a run, or of a directory for one, with ~ replaced by the home folder.

    What is at the path as it is comes first (`keras_vgg.image_paths.unless_literal`), but for a
    folder without a run where the home folder has one.
    """
    home = expanded(path)
    is_at_home = (home / "recipe.json").is_file() and not (Path(path) / "recipe.json").is_file()
    return home if is_at_home else unless_literal(path)


def holds_folds(directory: str | Path) -> bool:
    """Return whether a directory holds the runs of a cross-validation, finished or not."""
    path = directory_of_run(directory)
    return (path / "fold-1" / "recipe.json").is_file() and not (path / "recipe.json").is_file()


def holds_something(directory: Path) -> bool:
    """Return whether a path is a file, or a directory with more than a lock and leftovers."""
    if directory.is_dir():
        return bool(whole_names(directory) - {_LOCK})
    return directory.exists()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory and lock it for this process alone.

    The operating system holds the lock on a file of the directory, and releases it when the process
    ends, also after a kill. If this function made the directory and nothing was written, it removes
    the directory.

    Raises:
        RunInUse: another process has the lock.
        OSError: the directory cannot be made or written.
    """
    made = not directory.exists()
    lock = FileLock(directory / _LOCK, timeout=0)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunInUse(
            f"{directory} is in use: another process is training there; wait until it ends, or "
            "choose another workdir"
        ) from None
    except OSError as error:
        raise OSError(f"the run directory {directory} cannot be written: {error}") from error
    try:
        yield
    finally:
        try:
            if made and whole_names(directory) == {_LOCK}:
                with contextlib.suppress(PermissionError):  # Windows does not delete an open file
                    (directory / _LOCK).unlink()
                    directory.rmdir()
        finally:
            lock.release()


@contextlib.contextmanager
def claim(directory: str | Path, recipe: Recipe) -> Iterator[tuple[Run, bool]]:
    """Give the run of `recipe` in `directory`, for this process alone, and whether the run is new.

    A run without checkpoints counts as new: it has nothing to lose, and may begin again with
    another recipe. The directory is `locked`.

    Raises:
        ValueError: the directory holds a run of another recipe, or other files.
        RunInUse: another process trains in the directory.
        OSError: the directory cannot be made or written.
    """
    directory = directory_of_run(directory)
    run = Run(directory, recipe)
    if not run.begun and holds_something(directory):
        raise ValueError(f"{directory} exists and is not a run directory; choose another workdir")
    with locked(directory):
        is_new = not run.begun or (not run.finished and not run.checkpoints)
        if not is_new:
            stored = Run.open(directory).recipe
            require_same_recipe(run, stored)
            if run.recipe != stored:  # only storage fields differ, such as the folder of the data
                run.write_recipe()
        remove_leftovers(directory)
        yield run, is_new


def require_same_recipe(run: Run, stored: Recipe) -> None:
    """Raise ValueError if a run's recipe trains otherwise than the one that its directory has."""
    # A run of an earlier version may hold relative paths.
    differences = run.recipe.with_absolute_paths().differences(stored.with_absolute_paths())
    if differences:
        listed = ", ".join(
            f"{name} {theirs!r}, not {ours!r}" for name, (ours, theirs) in differences.items()
        )
        hint, more = "", run.recipe.epochs - stored.epochs
        if [*differences] == ["epochs"] and more > 0 and run.finished:
            hint = f", or train it for more epochs with --extend {more}"
        if stored.restart_epochs and not run.recipe.restart_epochs:
            hint = f", which has been extended: {run.directory / 'recipe.json'}"
        raise ValueError(
            f"{run.directory} holds a run of another recipe ({listed}); "
            f"choose another workdir, or use the recipe of that run to resume it{hint}"
        )

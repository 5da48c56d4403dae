"""The run directory: the unit that training writes and everything else reads."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from keras_vgg.atomic import PARTIAL, write_atomically
from keras_vgg.recipe import Recipe

_LOCK = ".lock"


class RunInUse(OSError):
    """Another process is training in the run directory."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run on disk."""

    directory: Path
    recipe: Recipe

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        """A run that exists.

        Raises:
            FileNotFoundError: there is no such directory, or it holds no run.
            ValueError: its recipe cannot be read.
        """
        directory = Path(directory)
        path = directory / "recipe.json"
        if not path.is_file():
            raise FileNotFoundError(f"{directory} is not a run directory: it has no recipe.json")
        return cls(directory, Recipe.from_json(path.read_text()))

    @property
    def model_path(self) -> Path:
        return self.directory / "model.keras"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.read_json("data.json")["class_names"])

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
        """What training (and later evaluation) found; empty while training."""
        return self.read_json("results.json") if self.finished else {}

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, one an epoch."""
        path = self.directory / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            return [
                {k: int(v) if k == "epoch" else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)
            ]

    def model(self):
        """The best model by validation accuracy, uncompiled.

        Raises:
            ValueError: the run has not finished training.
        """
        import keras

        import keras_vgg.layers  # noqa: F401  registers what model.keras may hold

        if not self.finished:
            raise ValueError(f"{self.directory} has not finished training; resume it first")
        return keras.saving.load_model(self.model_path, compile=False)

    def read_json(self, name: str) -> Any:
        return json.loads((self.directory / name).read_text())

    def write_json(self, name: str, value: Any) -> None:
        self._write_text(name, json.dumps(value, indent=2) + "\n")

    def write_recipe(self) -> None:
        self._write_text("recipe.json", self.recipe.to_json())

    def add_results(self, **values: Any) -> None:
        """Merge into results.json."""
        self.write_json("results.json", {**self.results, **values})

    def write_history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Replace metrics.csv, so that a resume neither loses nor doubles a line."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._write_text("metrics.csv", text.getvalue())

    def _write_text(self, name: str, text: str) -> None:
        write_atomically(self.directory / name, lambda path: path.write_text(text))


@contextlib.contextmanager
def claim(directory: str | Path, recipe: Recipe) -> Iterator[tuple[Run, bool]]:
    """The run of `recipe` in `directory`, for this process alone, and whether it is new.

    A run that has no checkpoint yet counts as new: it has nothing to lose, and may be begun again
    with another recipe. Of a directory that was made for it nothing stays if nothing was written.

    The lock is the operating system's, on a file of the directory: it ends with the process,
    however that ends.

    Raises:
        ValueError: the directory holds a run of another recipe, or other files.
        RunInUse: another process has it.
        OSError: the directory cannot be made or written.
    """
    directory = Path(directory)
    run = Run(directory, recipe)
    made = not directory.exists()
    is_folder = made or directory.is_dir()
    if not is_folder or (not made and not run.begun and _names(directory) - {_LOCK}):
        raise ValueError(f"{directory} exists and is not a run directory; choose another workdir")
    lock = FileLock(directory / _LOCK, timeout=0)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RunInUse(
            f"{directory} is in use: another process is training there; wait for its end, or "
            "choose another workdir"
        ) from None
    except OSError as error:
        raise OSError(f"the run directory {directory} cannot be written: {error}") from error
    try:
        is_new = not run.begun or (not run.finished and not run.checkpoints)
        if not is_new:
            _require_same_recipe(run)
        for leftover in directory.rglob(f"{PARTIAL}*"):
            leftover.unlink()
        yield run, is_new
    finally:
        try:
            if made and _names(directory) == {_LOCK}:
                with contextlib.suppress(PermissionError):  # Windows keeps a file that is open
                    (directory / _LOCK).unlink()
                    directory.rmdir()
        finally:
            lock.release()


def _names(directory: Path) -> set[str]:
    """Of what is in it; a kill's half-written files are nothing."""
    names = {path.name for path in directory.iterdir()}
    return {name for name in names if not name.startswith(PARTIAL)}


def _require_same_recipe(run: Run) -> None:
    stored = Run.open(run.directory).recipe
    differences = run.recipe.differences(stored)
    if differences:
        listed = ", ".join(f"{k} {b!r} there, {a!r} here" for k, (a, b) in differences.items())
        raise ValueError(
            f"{run.directory} holds a run of another recipe ({listed}); "
            "choose another workdir, or repeat its recipe to resume it"
        )
    if run.recipe != stored:  # the data has moved
        run.write_recipe()

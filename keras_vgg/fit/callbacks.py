"""What happens around each step and epoch: learning rate, records, checkpoints, a stop on NaN."""

from __future__ import annotations

import json
import math
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vgg.atomic import write_atomically
from keras_vgg.fit.run import Run
from keras_vgg.fit.schedule import best_row, is_over, learning_rate, plateau_drops


class TrainingDiverged(ArithmeticError):
    """The loss is not a number any more."""


class Recorder(keras.callbacks.Callback):
    """Sets the learning rate, and after each epoch keeps what a resume and a report need.

    A checkpoint holds every variable of the model and the optimiser, dropout's seeds included,
    and the history: a run that is resumed from it ends as if it had not been interrupted.

    Args:
        run: Where to write.
        steps_per_epoch: Steps that an epoch takes.
        whole: The network to keep, where only its head is trained.
    """

    def __init__(self, run: Run, steps_per_epoch: int, whole: keras.Model | None = None) -> None:
        super().__init__()
        self._whole = whole
        self.run = run
        self.steps_per_epoch = steps_per_epoch
        self.history: list[dict[str, float]] = []
        self._epoch = 0
        self._drops = 0

    def restore(self, model: keras.Model) -> int:
        """Load the newest readable checkpoint, if there is one; returns the epochs done.

        Raises:
            ValueError: there are checkpoints, and none can be read.
        """
        unreadable = []
        for path in reversed(self.run.checkpoints):
            try:
                self.history = load_checkpoint(path, model)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                warnings.warn(
                    f"checkpoint {path} cannot be read, trying an older: {error}", stacklevel=2
                )
                unreadable.append(path)
                continue
            for newer in unreadable:
                newer.unlink()
            self.run.write_history(self.history)
            return len(self.history)
        if unreadable:
            raise ValueError(
                f"none of the checkpoints of {self.run.directory} can be read; "
                "train in another workdir"
            )
        return 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self._drops = plateau_drops(self.run.recipe, self.history)
        self._started = time.perf_counter()
        self._last_step = self._started

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = self._epoch * self.steps_per_epoch + batch
        self.model.optimizer.learning_rate = learning_rate(
            self.run.recipe, step, self.steps_per_epoch, self._drops
        )

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._last_step = time.perf_counter()
        self._require_finite(logs, f"at step {batch + 1} of epoch {self._epoch + 1}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        recipe = self.run.recipe
        # The last step may have ruined the weights; validation is the first to see it.
        self._require_finite(logs, f"after epoch {epoch + 1}")
        images = self.steps_per_epoch * recipe.batch_size
        row: dict[str, float] = {"epoch": epoch + 1}
        row |= {name: float(value) for name, value in (logs or {}).items()}
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        row["images_per_second"] = round(images / (self._last_step - self._started), 1)
        row["seconds"] = round(time.perf_counter() - self._started, 3)
        self.history.append(row)
        if best_row(self.history) is row:
            whole = self._whole or self.model
            bare = keras.Model(whole.inputs[0], whole.outputs[0], name=whole.name)
            write_atomically(self.run.model_path, bare.save)
        checkpoints = self.run.directory / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        save_checkpoint(checkpoints / f"epoch-{epoch + 1:06d}.npz", self.model, self.history)
        for old in self.run.checkpoints[: -recipe.keep_checkpoints]:
            old.unlink()
        self.run.write_history(self.history)
        if is_over(recipe, self.history):
            self.model.stop_training = True

    def _require_finite(self, logs: dict[str, Any] | None, when: str) -> None:
        if all(map(math.isfinite, (logs or {}).values())):
            return
        rate = float(self.model.optimizer.learning_rate)
        kept = (
            f"The checkpoints in {self.run.directory} are from before"
            if self.history
            else "No checkpoint had been written"
        )
        raise TrainingDiverged(
            f"the loss is not a number {when}, learning rate {rate:g}. Try a lower "
            "--learning-rate, a longer --warmup-epochs"
            + ("" if self.run.recipe.batch_norm else ", or --batch-norm True")
            + f". {kept}"
        )


def _variables(model: keras.Model) -> list:
    return [*model.variables, *model.optimizer.variables]


def save_checkpoint(path: Path, model: keras.Model, history: list[dict[str, float]]) -> None:
    """Write every variable of a compiled model and the history to one file, atomically."""
    arrays = {
        f"{i:04d} {v.path}": keras.ops.convert_to_numpy(v) for i, v in enumerate(_variables(model))
    }

    def write(target: Path) -> None:
        with target.open("wb") as file:
            np.savez(file, history=np.array(json.dumps(history)), **arrays)

    write_atomically(path, write)


def load_checkpoint(path: Path, model: keras.Model) -> list[dict[str, float]]:
    """Set every variable from a checkpoint; returns its history.

    Raises:
        OSError, KeyError, ValueError, zipfile.BadZipFile: it is damaged or of another model;
            nothing has been set.
    """
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        history = json.loads(str(file["history"]))
        values = [file[name] for name in sorted(set(file.files) - {"history"})]
    variables = _variables(model)
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        raise ValueError(f"{path} is of another model")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return history

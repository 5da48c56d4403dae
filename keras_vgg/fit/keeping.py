"""The files of a training: its checkpoints and its best model. Written by one host, for all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_vgg.files import write_atomically
from keras_vgg.fit import checkpoint, hosts
from keras_vgg.fit.distribution import portable
from keras_vgg.run import Run


class Keeper:
    """Writes the checkpoints and the best model of a run, and finds where a run goes on.

    Args:
        run: Where to write.
        whole: The network to keep as the best model, where only its head is trained.
    """

    def __init__(self, run: Run, whole: keras.Model | None = None) -> None:
        self.run = run
        self.writes = hosts.index() == 0
        self._whole = whole

    def restore(self, model: keras.Model) -> checkpoint.Progress:
        """Load the newest readable checkpoint, if there is one, and return how far it is.

        Raises:
            ValueError: there are checkpoints, and none can be read.
        """
        unreadable = []
        for path in reversed(self.run.checkpoints):
            try:
                progress = checkpoint.load(path, model)
            except (OSError, ValueError) as error:
                warnings.warn(
                    f"checkpoint {path} cannot be read, trying an older: {error}", stacklevel=2
                )
                unreadable.append(path)
                continue
            if self.writes:
                for newer in unreadable:
                    newer.unlink()
                self.write_history(progress.history)
            return progress
        if unreadable:
            raise ValueError(
                f"none of the checkpoints of {self.run.directory} can be read; "
                "train in another workdir"
            )
        return checkpoint.Progress()

    def write_checkpoint(self, model: keras.Model, progress: checkpoint.Progress) -> None:
        """Write a checkpoint, and delete those that are older than the newest few."""
        if not self.writes:
            return
        name = checkpoint.file_name(progress.epoch, progress.step)
        path = self.run.directory / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        self._write(path, lambda target: checkpoint.save(target, model, progress))
        for old in self.run.checkpoints[: -self.run.recipe.keep_checkpoints]:
            old.unlink()

    def write_model(self, model: keras.Model) -> None:
        """Write the network as the run's best, without its optimiser."""
        if not self.writes:
            return
        whole = self._whole or model
        bare = keras.Model(whole.inputs[0], whole.outputs[0], name=whole.name)
        with portable(bare):
            self._write(self.run.model_path, bare.save)

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write metrics.csv, if an epoch has ended."""
        if self.writes and history:
            self.run.write_history(history)

    def what_is_kept(self) -> str:
        """Return a sentence for an error: from when the checkpoints are."""
        if self.run.checkpoints:
            return f"The checkpoints in {self.run.directory} are from before"
        return "No checkpoint had been written"

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        try:
            write_atomically(path, write)
        except OSError as error:
            message = f"{path} cannot be written: {error}. {self.what_is_kept()}"
            raise OSError(message) from error

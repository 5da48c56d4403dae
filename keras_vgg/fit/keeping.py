"""The files of a training: checkpoints and the best model. The first host writes them for all.

A checkpoint of VGG-16 has 1.1 GB. Training waits only until its arrays are copied; a thread writes
the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_vgg.files import write_atomically
from keras_vgg.fit import checkpoint, hosts
from keras_vgg.fit.background import BackgroundWriter
from keras_vgg.fit.distribution import portable
from keras_vgg.run import Run

_BEST = "best-"  # and its epoch: the name of a best model until its checkpoint is written


class Keeper:
    """Write the checkpoints and the best model of a run; load the checkpoint to resume from.

    Args:
        run: The run to write.
        full_model: The network to save if only its head is trained; None: the trained one.

    Attributes:
        writer: What writes a checkpoint while training goes on. As a context, it waits at the end
            for the last one.
    """

    def __init__(self, run: Run, full_model: keras.Model | None = None) -> None:
        self.run = run
        self.writes = hosts.index() == 0
        self.writer = BackgroundWriter()
        self._full_model = full_model

    def restore(self, model: keras.Model, ends: bool = False) -> checkpoint.Progress:
        """Load the newest readable checkpoint, if there is one, and return its progress.

        Args:
            model: The compiled model.
            ends: Whether the run ends with it. The best model may be of a damaged checkpoint's
                epoch; a run that goes on trains that epoch again.

        Raises:
            ValueError: there are checkpoints, but all are damaged; one of a whole epoch is damaged,
                and the run ends.
            OSError: a checkpoint cannot be read. It is kept, since it may be sound.
        """
        unreadable = []
        for path in reversed(self.run.checkpoints):
            try:
                progress = checkpoint.load(path, model)
            except ValueError as error:
                if ends and not checkpoint.is_within_epoch(path):
                    raise ValueError(
                        f"{path} cannot be read, and the best network may be of its epoch: resume "
                        f"the run instead of ending it ({error})"
                    ) from error
                warnings.warn(
                    f"checkpoint {path} cannot be read, trying an older: {error}", stacklevel=2
                )
                unreadable.append(path)
                continue
            if self.writes:
                for newer in unreadable:
                    newer.unlink()
                self._settle(progress.epoch)
                self.write_history(progress.history)
            return progress
        if unreadable:
            raise ValueError(
                f"none of the checkpoints of {self.run.directory} can be read; "
                "train in another workdir"
            )
        if self.writes:
            self._settle(0)
        return checkpoint.Progress()

    def write_checkpoint(self, model: keras.Model, progress: checkpoint.Progress) -> None:
        """Begin to write a checkpoint: when this returns, the variables may change.

        At its end, checkpoints older than the newest `keep_checkpoints` are deleted, but for the
        newest of a whole epoch: a run that is ended here is extended from it. An error of the
        writing is raised by the next call, or by the next of `writer`.
        """
        if not self.writes:
            return
        self.writer.wait()  # so that only one copy is in memory
        name = checkpoint.file_name(progress.epoch, progress.step)
        path = self.run.directory / "checkpoints" / name
        path.parent.mkdir(exist_ok=True)
        arrays = checkpoint.copied(model, progress)

        def write() -> None:
            self._write(path, lambda target: checkpoint.save(target, arrays))
            self._settle(progress.epoch)
            checkpoints = self.run.checkpoints
            whole = [one for one in checkpoints if not checkpoint.is_within_epoch(one)]
            for old in checkpoints[: -self.run.recipe.keep_checkpoints]:
                if old not in whole[-1:]:
                    old.unlink()

        self.writer.start(write)

    def write_model(self, model: keras.Model, epoch: int) -> None:
        """Write the network of an epoch, without the optimiser, to be the run's best model.

        It becomes that with the next checkpoint, so that a killed run never has the network of an
        epoch that its checkpoints do not know.
        """
        if not self.writes:
            return
        self.writer.wait()
        full_model = self._full_model or model
        bare = keras.Model(full_model.inputs[0], full_model.outputs[0], name=full_model.name)
        path = self.run.directory / "checkpoints" / f"{_BEST}{epoch:06d}.keras"
        path.parent.mkdir(exist_ok=True)
        with portable(bare):
            self._write(path, bare.save)

    def _settle(self, epoch: int) -> None:
        """Make a best model the run's if a checkpoint has its epoch; else a kill has left it."""
        for path in (self.run.directory / "checkpoints").glob(f"{_BEST}*.keras"):
            if int(path.stem.removeprefix(_BEST)) <= epoch:
                path.replace(self.run.model_path)
            else:
                path.unlink()

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write metrics.csv if an epoch has ended."""
        if self.writes and history:
            self.run.write_history(history)

    def checkpoints_note(self) -> str:
        """Return a sentence for an error about the checkpoints."""
        if self.run.checkpoints:
            return f"The checkpoints in {self.run.directory} are from before this error"
        return "No checkpoint had been written"

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        try:
            write_atomically(path, write)
        except OSError as error:
            message = f"{path} cannot be written: {error}. {self.checkpoints_note()}"
            raise OSError(message) from error

"""Callbacks around each step and epoch: learning rate, records, checkpoints, a stop."""

from __future__ import annotations

import math
import time
from typing import Any

import keras
import numpy as np

from keras_vgg.fit import checkpoint, hosts
from keras_vgg.fit.averages import Averages
from keras_vgg.fit.keeping import Keeper
from keras_vgg.fit.schedule import best_row, is_over, learning_rate, plateau_drops
from keras_vgg.fit.step_state import carries_learning_rate, leaves_steps_alone
from keras_vgg.fit.stopping import StopRequest
from keras_vgg.fit.verdict import Baseline, Commonest
from keras_vgg.run import Run

_LOOKED_AT = 50  # on JAX, the losses of so many steps are looked at together


class TrainingDiverged(ArithmeticError):
    """The loss or a weight became NaN or infinite."""


class Recorder(keras.callbacks.Callback):
    """Set the learning rate, and write what a resume and a report need.

    A checkpoint holds every variable of the model and the optimiser (with dropout's seeds), the
    history, and the steps and metric sums of an unfinished epoch. So a resumed run ends as if it
    had not been interrupted. A checkpoint is written after each epoch, within an epoch as the
    recipe says, and before a stop. A thread writes it while training goes on: train in the context
    of `writer`, which waits for the last one.

    Args:
        run: The run to write.
        steps_per_epoch: Steps of the optimiser in an epoch.
        full_model: The network to save if only its head is trained; None: the trained one.
        stop: The request to stop, from a signal.
        commonest: What answers without looking at an image have right; None: nothing to compare
            with.
    """

    def __init__(
        self,
        run: Run,
        steps_per_epoch: int,
        full_model: keras.Model | None = None,
        stop: StopRequest | None = None,
        commonest: Baseline | None = None,
    ) -> None:
        super().__init__()
        self._keeper = Keeper(run, full_model)
        self.writer = self._keeper.writer
        self._stop = stop or StopRequest()
        self.averages: Averages | None = None  # for validations
        self.commonest = commonest or Commonest(None, 0.0, 1)
        self.run = run
        self.steps_per_epoch = steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.learning_rate = 0.0  # of the current or the last step
        self.first_step = 0  # of this epoch in this process; an earlier process took those before
        self._resumed = checkpoint.Progress()
        self._epoch = 0
        self._drops = 0
        self._parts = 0  # batches of this epoch in this process
        self._sums: tuple[np.ndarray, ...] = ()
        self._saved_at = time.perf_counter()
        # On JAX, what is to do after a step is done before the next one; the losses are looked at
        # more rarely.
        self._is_late = leaves_steps_alone(self)
        self._rate_is_carried = False
        self.losses: dict[str, float] = {}  # on JAX, when they were last looked at

    def restore(self, model: keras.Model, ends: bool = False) -> checkpoint.Progress:
        """Resume from the newest readable checkpoint; see `Keeper.restore`."""
        self._resumed = self._keeper.restore(model, ends)
        self.history = [*self._resumed.history]
        return self._resumed

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._rate_is_carried = carries_learning_rate(self._trained(), lambda: self.learning_rate)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self.losses = {}
        self._drops = plateau_drops(self.run.recipe, self.history)
        if epoch != self._resumed.epoch:
            self._resumed = checkpoint.Progress()
        self.first_step = self._resumed.step
        if self.first_step:
            sums = zip(self._trained().metrics_variables, self._resumed.metrics, strict=True)
            for variable, value in sums:
                variable.assign(value)
        self.learning_rate = self._rate_of(-1 if self.first_step else 0)
        self._parts = 0
        self._started = time.perf_counter()
        self._last_step = self._started

    def _rate_of(self, step: int) -> float:
        """Return the learning rate of a step, counted from this process's first of the epoch."""
        step += self._epoch * self.steps_per_epoch + self.first_step
        return learning_rate(self.run.recipe, step, self.steps_per_epoch, self._drops)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if self._is_late and batch:
            if batch % _LOOKED_AT == 0:
                self._look_at_losses()
            self._end_step(batch - 1, self.losses)
        self._parts = batch + 1
        self.learning_rate = self._rate_of(batch // self.run.recipe.gradient_accumulation)
        if not self._rate_is_carried:
            self._trained().optimizer.learning_rate = self.learning_rate

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._end_step(batch, logs)

    def _look_at_losses(self) -> None:
        results = self._trained().get_metrics_result()
        self.losses = {name: float(value) for name, value in results.items()}

    def _end_step(self, batch: int, logs: dict | None) -> None:
        self._last_step = time.perf_counter()
        self.writer.require_success()
        steps, part = divmod(batch + 1, self.run.recipe.gradient_accumulation)
        done = self.first_step + steps
        place = f"{'by' if self._is_late else 'at'} step {done + bool(part)}"
        self._require_finite(logs, f"{place} of epoch {self._epoch + 1}")
        if part:
            return
        # After the last step, the callbacks of the validation write the checkpoint.
        step = self._epoch * self.steps_per_epoch + done
        stops = self._stop.made_at(step) and done < self.steps_per_epoch
        if stops or (done < self.steps_per_epoch and self._is_due(done)):
            self._save_steps(done, checkpoint.metric_values(self._trained()), stops)

    def on_test_begin(self, logs: dict | None = None) -> None:
        self._sums = checkpoint.metric_values(self._trained())  # the validation resets the metrics
        if self._is_late:
            self._last_step = time.perf_counter()
            self._look_at_losses()
            self._require_finite(self.losses, f"in epoch {self._epoch + 1}")
        if self._is_due(self.steps_per_epoch):
            self._save_steps(self.steps_per_epoch, self._sums, stops=False)
        if self.averages is not None:
            steps = (self._epoch + 1) * self.steps_per_epoch
            batches = steps * self.run.recipe.gradient_accumulation
            self.averages.enter(self._trained(), self._epoch, batches)

    def on_test_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        # Not on_test_batch_end: with that method, Keras fetches the losses of every batch.
        if self._stop.made:
            self._save_steps(self.steps_per_epoch, self._sums, stops=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        recipe = self.run.recipe
        # The last step may have made weights NaN, and a ReLU may hide NaN from the validation.
        self._require_finite(logs, f"after epoch {epoch + 1}")
        self._require_finite_variables(f"after epoch {epoch + 1}")
        row: dict[str, float] = {"epoch": epoch + 1}
        row |= {name: float(value) for name, value in (logs or {}).items()}
        row["learning_rate"] = self.learning_rate
        row["images_per_second"] = round(self._images_per_second(), 1)
        row["seconds"] = round(self._seconds(), 3)
        self.history.append(row)
        is_best = best_row(self.history, recipe) is row
        if is_best:
            self._keeper.write_model(self._trained(), epoch + 1)
        self._save(checkpoint.Progress(self.history))
        if is_best:
            self.writer.wait()  # The model is there before metrics.csv names its epoch.
        self._keeper.write_history(self.history)
        if is_over(recipe, self.history):
            self._trained().stop_training = True

    def _images_per_second(self) -> float:
        """Return the speed of this epoch's steps, which another callback may have ended early."""
        recipe = self.run.recipe
        training_seconds, parts = self._last_step - self._started, self._parts
        if not parts:  # A process that ended in the validation took all steps.
            training_seconds = self._resumed.seconds
            parts = self.steps_per_epoch * recipe.gradient_accumulation
        images = parts * recipe.part_size
        return images / training_seconds if training_seconds else 0.0

    def _seconds(self) -> float:
        """Return the seconds of this epoch so far, in this process and earlier ones."""
        return self._resumed.seconds + time.perf_counter() - self._started

    def _is_due(self, done: int) -> bool:
        recipe = self.run.recipe
        if recipe.checkpoint_steps and done % recipe.checkpoint_steps == 0:
            return True
        return time.perf_counter() - self._saved_at >= 60 * recipe.checkpoint_minutes

    def _save_steps(self, done: int, sums: tuple[np.ndarray, ...], stops: bool) -> None:
        """Write a checkpoint of this epoch's steps; end training if `stops`."""
        # The loss of a step comes from the weights before the step.
        self._require_finite_variables(f"after step {done} of epoch {self._epoch + 1}")
        self._save(checkpoint.Progress(self.history, done, self._seconds(), sums))
        if stops:
            self.writer.wait()
            hosts.wait("kept")
            self._stop.obey(f"kept step {done} of epoch {self._epoch + 1} in {self.run.directory}")

    def _save(self, progress: checkpoint.Progress) -> None:
        self._saved_at = time.perf_counter()
        if self.averages is not None:
            self.averages.leave()
        self._keeper.write_checkpoint(self._trained(), progress)

    def _trained(self) -> keras.Model:
        assert self.model is not None, "Keras gives a callback its model before it trains"
        return self.model

    def _require_finite(self, logs: dict[str, Any] | None, when: str) -> None:
        if not all(map(math.isfinite, (logs or {}).values())):
            raise self._diverged("the loss is not a number", when)

    def _require_finite_variables(self, when: str) -> None:
        if not checkpoint.holds_finite_values(self._trained()):
            raise self._diverged("weights are not numbers", when)

    def _diverged(self, what: str, when: str) -> TrainingDiverged:
        # Several devices of TensorFlow cannot clip: see `keras_vgg.fit.preparation`.
        strategy = getattr(self._trained(), "distribute_strategy", None)
        clips = bool(self.run.recipe.clip_norm) or (
            strategy is not None and strategy.num_replicas_in_sync > 1
        )
        return TrainingDiverged(
            f"{what} {when}, learning rate {self.learning_rate:g}. Try a lower "
            "--learning-rate, a longer --warmup-epochs"
            + ("" if clips else ", --clip-norm 5")
            + ("" if self.run.recipe.batch_norm else ", or --batch-norm True")
            + f". {self._keeper.checkpoints_note()}"
        )

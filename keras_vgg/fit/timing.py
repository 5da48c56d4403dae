"""Estimate how long a training run will still take, from its steps and validations so far."""

from __future__ import annotations

SLOW_STEPS = 2  # first steps, in which functions are traced, kernels chosen, buffers filled
ENOUGH_STEPS = 3  # measured steps that an estimate needs


def seconds_left(
    *,
    steps: int,
    step_seconds: float,
    epochs: int,
    steps_per_epoch: int,
    rest_seconds: float,
    rests: float,
) -> float:
    """Return the seconds until the last epoch ends.

    Args:
        steps: Remaining steps of this epoch.
        step_seconds: Seconds of a training step.
        epochs: Epochs after this one.
        steps_per_epoch: Steps of each epoch.
        rest_seconds: Seconds of an epoch after its last step: validation and files.
        rests: Remaining share of this epoch's rest, in [0, 1].
    """
    rest_of_epoch = steps * step_seconds + rests * rest_seconds
    return rest_of_epoch + epochs * (steps_per_epoch * step_seconds + rest_seconds)


class Timing:
    """Measure the steps and validations of a run, and estimate the remaining time.

    The caller gives the time as `now`, in seconds. The first steps of a run and the first
    validation batch are slow and do not count. The estimate for a step is the mean of this epoch
    and the one before. The estimate for the rest of an epoch is the last measured rest; before the
    first validation, a validation batch counts as much as a step.

    Args:
        epochs: Epochs of the run, with those of an earlier process.
        steps: Steps in an epoch.
        validation_steps: Batches of a validation.
    """

    def __init__(self, epochs: int, steps: int, validation_steps: int) -> None:
        self.epochs, self.steps, self.validation_steps = epochs, steps, validation_steps
        self.epoch = self.step = self.validated = 0
        self._slow = SLOW_STEPS
        self._measured = self._seconds = 0.0  # steps of this epoch, and their seconds
        self._measured_before = self._seconds_before = 0.0  # the same for the epoch before
        self._rest: float | None = None
        self._ended = False
        self._last = 0.0
        self._validation_begun = self._first_batch_done = 0.0
        self._excess = 0.0  # extra seconds of the first validation's first batch

    def epoch_begins(self, now: float, epoch: int, step: int = 0) -> None:
        """Note the start of an epoch (from 0), of which an earlier process took `step` steps."""
        self.epoch, self.step, self.validated, self._ended = epoch, step, 0, False
        if self._measured:
            self._measured_before, self._seconds_before = self._measured, self._seconds
        self._measured = self._seconds = 0.0
        self._last = now

    def step_ends(self, now: float, step: int) -> None:
        """Note that `step` steps of the epoch are done."""
        if self._slow > 0:
            self._slow -= step - self.step
        else:
            self._measured += step - self.step
            self._seconds += now - self._last
        self.step, self._last = step, now

    def validation_step_begins(self, now: float, step: int) -> None:
        """Note that `step` batches of the validation are done."""
        self.validated = step
        if step == 0:
            self._validation_begun = now
        elif step == 1:
            self._first_batch_done = now

    def validation_ends(self, now: float) -> None:
        self.validated = self.validation_steps
        if self._rest is None:
            first, usual = now - self._validation_begun, self.step_seconds
            if self.validation_steps > 1:
                first = self._first_batch_done - self._validation_begun
                usual = (now - self._first_batch_done) / (self.validation_steps - 1)
            self._excess = 0.0 if usual is None else max(0.0, first - usual)

    def epoch_ends(self, now: float) -> None:
        """Note that the validation and the files of the epoch are done."""
        self._rest = now - self._last - self._excess
        self._excess, self._ended = 0.0, True

    @property
    def step_seconds(self) -> float | None:
        """Return the seconds of a training step; None: too few steps are measured."""
        measured = self._measured + self._measured_before
        if measured < min(ENOUGH_STEPS, self.steps):
            return None
        return (self._seconds + self._seconds_before) / measured

    def left(self) -> float | None:
        """Return the seconds until the last epoch ends; None: too few steps are measured."""
        step_seconds = self.step_seconds
        if step_seconds is None:
            return None
        rest = self.validation_steps * step_seconds if self._rest is None else self._rest
        return seconds_left(
            steps=0 if self._ended else self.steps - self.step,
            step_seconds=step_seconds,
            epochs=self.epochs - self.epoch - 1,
            steps_per_epoch=self.steps,
            rest_seconds=rest,
            rests=0.0 if self._ended else 1 - self.validated / max(1, self.validation_steps),
        )

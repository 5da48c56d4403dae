"""A keras-tuner hypermodel whose trials are training runs of this package."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import keras_tuner
import numpy as np
from keras_tuner.errors import FailedTrialError

from keras_vgg import architecture, data, fit, hardware
from keras_vgg.fit.preparation import require_startable
from keras_vgg.recipe import Recipe
from keras_vgg.tuning.space import Space, declare, default_space, draw_values, resolve

_TIMED_PREDICTIONS = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a trial's network; None: no limit.

    Attributes:
        parameters: Parameters of the network.
        memory_mb: Memory of training in units of 10^6 bytes: three float32 numbers a parameter
            (weight, gradient, momentum; one more each with adamw, an average of the weights, and
            gradient accumulation) and two an activation of a batch. This is a lower bound: the
            engine needs more in between.
        latency_ms: Milliseconds of a prediction for one image, before training, on this machine.

    Raises:
        ValueError: a limit is not positive.
    """

    parameters: int | None = None
    memory_mb: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"a limit of {name} must be more than 0, not {value}")

    def require_small(self, recipe: Recipe, classes: int) -> None:
        """Raise FailedTrialError if a network is too large, without building the network."""
        parameters, memory_mb = cost(recipe, classes)
        if self.parameters is not None and parameters > self.parameters:
            raise FailedTrialError(
                f"refused: {parameters:,} parameters, more than {self.parameters:,}"
            )
        if self.memory_mb is not None and memory_mb > self.memory_mb:
            raise FailedTrialError(
                f"refused: training needs {memory_mb:,.0f} MB, more than {self.memory_mb:,.0f}"
            )

    def require_fast(self, model: keras.Model) -> None:
        """Raise FailedTrialError if a network predicts too slowly."""
        if self.latency_ms is None:
            return
        latency = latency_ms(model)
        if latency > self.latency_ms:
            raise FailedTrialError(
                f"refused: {latency:.1f} ms an image, more than {self.latency_ms:g}"
            )


def cost(recipe: Recipe, classes: int) -> tuple[int, float]:
    """Return (parameters, megabytes of training as in `Limits`) of a recipe's network."""
    totals = architecture.totals(recipe.layers(classes))
    activations = recipe.part_size * totals.activations
    # Weight, gradient, momentum; and what some recipes need besides.
    additional = (recipe.gradient_accumulation > 1, recipe.optimizer == "adamw")
    copies = 3 + sum(additional) + bool(recipe.ema_momentum)
    return totals.parameters, 4 * (copies * totals.parameters + 2 * activations) / 1e6


def latency_ms(model: keras.Model) -> float:
    """Return milliseconds of a prediction for one image: the median of 20, after a first one."""
    image = np.zeros((1, *model.input_shape[1:]), np.float32)
    model.predict_on_batch(image)
    seconds = []
    for _ in range(_TIMED_PREDICTIONS):
        start = time.perf_counter()
        model.predict_on_batch(image)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


class VGGHyperModel(keras_tuner.HyperModel):
    """A recipe with some open fields, for any tuner of keras-tuner.

    The hyperparameters have the names of a recipe's fields. A trial is a training run by
    `keras_vgg.train`, with its data, augmentation, schedule and resume, so batch size and
    augmentation can be searched too. A trial starts from its own initial weights, also if Hyperband
    promotes the trial: otherwise it could not be repeated. `tuner.search()` takes no data. With
    `executions_per_trial=2`, the second execution returns the first one's run: to average over
    chance, train the best recipes with other seeds.

    Args:
        recipe: The data, and the value of every field that is not searched. Default: `Recipe()`.
        space: Field of a recipe -> values to try; default: `default_space(recipe)`.
        directory: The folder of the trials' runs. A run's folder is named after its recipe.
        limits: Limits of a trial's network. A trial above a limit fails before it is built.

    Raises:
        ValueError: as `keras_vgg.tuning.space.resolve`.

    Example:
        ```python
        import keras_tuner
        from keras_vgg import Recipe
        from keras_vgg.tuning import VGGHyperModel

        hypermodel = VGGHyperModel(Recipe(epochs=5), directory="trials")
        tuner = keras_tuner.RandomSearch(hypermodel, "val_accuracy", max_trials=20)
        # tuner.search(); hypermodel.recipe(tuner.get_best_hyperparameters()[0])
        print(hypermodel.recipe(tuner.oracle.get_space()).epochs)
        ```
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        space: Space | None = None,
        *,
        directory: str | Path = "trials",
        limits: Limits | None = None,
    ) -> None:
        super().__init__(name="vgg")
        recipe = recipe or Recipe()
        self.base, self.space = resolve(recipe, default_space(recipe) if space is None else space)
        self.directory = Path(directory)
        self.limits = limits or Limits()

    @cached_property
    def classes(self) -> int:
        """Return the number of classes of the recipe's data.

        Raises:
            ValueError: an image of the data may have several labels.
        """
        return len(self._source.class_names)

    @cached_property
    def splits(self) -> dict[str, Any]:
        """Return the number of images and the fingerprint of each split, as data.json has them."""
        return fit.describe(self._source)["splits"]

    @cached_property
    def _source(self) -> data.Source:
        source = fit.load_source(self.base)
        if source.several_labels:
            raise ValueError(
                f"{source.name} gives an image several labels, and a search compares trials by "
                "accuracy, which needs one for each image; train each recipe with keras-vgg train"
            )
        return source

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        draw_values(hp, self.base, self.space)

    def recipe(self, hp: keras_tuner.HyperParameters, epochs: int | None = None) -> Recipe:
        """Return the recipe of a trial, with `epochs`, or Hyperband's, in place of the base's.

        Fewer epochs shorten the warm-up, and the epochs without mixing, in proportion; restarts
        after the last epoch are left out.

        Raises:
            ValueError: the values are impossible together, or no weights are published for them.
        """
        recipe = declare(hp, self.base, self.space)
        epochs = epochs or hp.values.get("tuner/epochs") or recipe.epochs
        share = min(1.0, epochs / recipe.epochs)
        restarts = sum(restart < epochs for restart in recipe.restart_epochs)
        recipe = recipe.replace(
            epochs=epochs,
            warmup_epochs=recipe.warmup_epochs * share,
            unmixed_epochs=round(recipe.unmixed_epochs * share),
            restart_epochs=recipe.restart_epochs[:restarts],
            restart_rates=recipe.restart_rates[:restarts],
        )
        # What a training refuses at its start would end the search.
        require_startable(recipe)
        return recipe

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Return the compiled network of a trial: the best of its run, or with initial weights.

        Raises:
            FailedTrialError: the network is above a limit.
        """
        recipe = self.recipe(hp)
        run = fit.Run(self._folder(recipe), recipe)
        if run.finished:  # for a tuner's get_best_models, which then loads `_write_checkpoints`
            return _best_of(run)
        self.limits.require_small(recipe, self.classes)
        keras.utils.set_random_seed(recipe.seed)
        # The statistics do not change the network's size or speed; training computes them.
        statistics = data.ChannelStatistics.unknown()
        engine = hardware.choose_engine(recipe)
        model = fit.build_model(recipe, self.classes, statistics, engine.precision)
        fit.compile_model(model, recipe, engine)
        # keras-tuner loads the optimiser's variables too.
        model.optimizer.build(model.trainable_variables)
        return model

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        epochs: int | None = None,
        initial_epoch: int = 0,
        verbose: int | str = 0,
    ) -> dict[str, float]:
        """Train a trial. keras-tuner calls this method.

        Args:
            hp: The trial's hyperparameters.
            model: The network from `build`, whose speed is measured if there is a limit. The run
                builds a network of its own.
            callbacks: Callbacks of keras-tuner and others; they see the run's network.
            epochs: Hyperband's number of epochs. Training always starts at the first epoch.
            verbose: As in `keras_vgg.train`.

        Returns:
            `val_accuracy` and `val_loss` of the best epoch, and `parameters`. What the recipe's
            `select_by` names is in `val_accuracy`, such as the balanced accuracy.

        Raises:
            FailedTrialError: the loss became NaN, the memory was too small, or the network is above
                a limit.
        """
        if args:
            raise ValueError("the recipe names the training data: call search() without data")
        self.limits.require_fast(model)
        recipe = self.recipe(hp, epochs)
        return self.train(recipe, self._folder(recipe), callbacks, verbose)

    def _folder(self, recipe: Recipe) -> Path:
        digest = hashlib.sha256(recipe.to_json().encode()).hexdigest()[:12]
        return self.directory / digest

    def train(
        self,
        recipe: Recipe,
        directory: Path,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int | str = 0,
    ) -> dict[str, float]:
        """Train a recipe in a run directory; otherwise as `fit`."""
        try:
            run = fit.fit(recipe, directory, verbose, callbacks=callbacks)
        except (fit.TrainingDiverged, MemoryError) as error:
            raise FailedTrialError(str(error)) from error
        _write_checkpoints(run, callbacks)
        results = run.results
        return {
            "val_accuracy": results[f"validation_{recipe.select_by}"],
            "val_loss": results["validation_loss"],
            "parameters": results["parameters"],
        }


def _best_of(run: fit.Run) -> keras.Model:
    """Return a run's network, compiled as for training."""
    model = run.model()
    fit.compile_model(model, run.recipe, hardware.choose_engine(run.recipe))
    # keras-tuner loads the optimiser's variables too.
    model.optimizer.build(model.trainable_variables)
    return model


def _write_checkpoints(run: fit.Run, callbacks: Sequence[keras.callbacks.Callback]) -> None:
    """Let keras-tuner keep the network whose accuracy it gets.

    Its own callback keeps the weights of what is trained at the end of an epoch: without the
    averages of weights, and of a frozen base only the classifier.
    """
    saver: Any
    for saver in callbacks:
        if type(saver).__name__ == "SaveBestEpoch":  # keras-tuner has no public name for it
            _best_of(run).save_weights(saver.filepath)

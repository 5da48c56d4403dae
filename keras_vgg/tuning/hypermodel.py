"""A keras-tuner hypermodel whose trials are the project's own training runs."""

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
from keras_vgg.recipe import Recipe
from keras_vgg.tuning.space import Space, declare, default_space, resolve

_TIMED_ANSWERS = 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a trial may cost; None: anything.

    Attributes:
        parameters: Parameters of the network.
        memory_mb: Memory of training, in units of 10^6 bytes: three float32 numbers a parameter
            (itself, gradient, momentum) and two an activation of a batch. An estimate, from below:
            what the engine needs in between comes on top.
        latency_ms: Time of an answer to one image, by the network before training, on this machine.
    """

    parameters: int | None = None
    memory_mb: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"a limit of {name} must be more than 0, not {value}")

    def require_small(self, recipe: Recipe, classes: int) -> None:
        """FailedTrialError for a network that is too large, without building it."""
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
        """FailedTrialError for a network that answers too slowly."""
        if self.latency_ms is None:
            return
        found = latency_ms(model)
        if found > self.latency_ms:
            raise FailedTrialError(
                f"refused: {found:.1f} ms an image, more than {self.latency_ms:g}"
            )


def cost(recipe: Recipe, classes: int) -> tuple[int, float]:
    """(parameters, megabytes of training as `Limits` has them) of a recipe's network."""
    found = architecture.totals(recipe.layers(classes))
    activations = recipe.part_size * found.activations
    copies = 3 if recipe.gradient_accumulation == 1 else 4
    return found.parameters, 4 * (copies * found.parameters + 2 * activations) / 1e6


def latency_ms(model: keras.Model) -> float:
    """Milliseconds of an answer to one image: the median of 20, after a first."""
    image = np.zeros((1, *model.input_shape[1:]), np.float32)
    model.predict_on_batch(image)
    seconds = []
    for _ in range(_TIMED_ANSWERS):
        start = time.perf_counter()
        model.predict_on_batch(image)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds))


class VGGHyperModel(keras_tuner.HyperModel):
    """A recipe with some of its fields left open, for any tuner of keras-tuner.

    The hyperparameters have the names of a recipe's fields. A trial is a training run by
    `keras_vgg.fit.fit`, with its data, augmentation, schedule and resume, so that batch size and
    augmentation are searched like everything else; it begins with its own first weights, also
    where Hyperband promotes it, for only so can it be repeated. `tuner.search()` needs no data.

    Args:
        recipe: What is not searched, and the data. Default: `Recipe()`.
        space: What is; default: `default_space(recipe)`.
        directory: Where the runs of trials go, each in a folder named after its recipe.
        limits: What a trial may cost; others fail before they are built.

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
        """How many classes the recipe's data has."""
        return len(fit.load_source(self.base).class_names)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        declare(hp, self.base, self.space)

    def recipe(self, hp: keras_tuner.HyperParameters, epochs: int | None = None) -> Recipe:
        """The recipe of a trial; `epochs`, or Hyperband's, in place of the base's.

        Of a few epochs a warm-up takes its share.
        """
        recipe = declare(hp, self.base, self.space)
        epochs = epochs or hp.values.get("tuner/epochs") or recipe.epochs
        warmup = recipe.warmup_epochs * min(1.0, epochs / recipe.epochs)
        return recipe.replace(epochs=epochs, warmup_epochs=warmup)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The compiled network of a trial, with its first weights.

        Raises:
            FailedTrialError: it is over a limit.
        """
        recipe = self.recipe(hp)
        self.limits.require_small(recipe, self.classes)
        keras.utils.set_random_seed(recipe.seed)
        # What is subtracted does not change the network's size or speed; fit computes it.
        statistics = data.ChannelStatistics(np.zeros(3), np.ones(3), np.zeros(3), np.eye(3), 0)
        engine = hardware.choose_engine(recipe)
        model = fit.build_model(recipe, self.classes, statistics, engine.precision)
        fit.compile_model(model, recipe, engine)
        # keras-tuner loads the weights of a trial with its optimiser's.
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
        """Train a trial; keras-tuner calls it.

        Args:
            hp: The trial's hyperparameters.
            model: What `build` made. Its speed is measured where that is limited; the run builds
                its own.
            callbacks: Keras-tuner's, and others; they see the run's network.
            epochs: Hyperband's; it always begins with the first.
            verbose: As `keras_vgg.fit.fit`.

        Returns:
            Of the best epoch by validation accuracy: `val_accuracy` and `val_loss`; and
            `parameters`.

        Raises:
            FailedTrialError: the loss became NaN, the memory was not enough, or the network is over
                a limit.
        """
        if args:
            raise ValueError("the recipe says what to train on: call search() without data")
        self.limits.require_fast(model)
        recipe = self.recipe(hp, epochs)
        digest = hashlib.sha256(recipe.to_json().encode()).hexdigest()[:12]
        return self.train(recipe, self.directory / digest, callbacks, verbose)

    def train(
        self,
        recipe: Recipe,
        directory: Path,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int | str = 0,
    ) -> dict[str, float]:
        """As `fit`, of a recipe in a run directory."""
        try:
            run = fit.fit(recipe, directory, verbose, callbacks=callbacks)
        except (fit.TrainingDiverged, MemoryError) as error:
            raise FailedTrialError(str(error)) from error
        found = run.results
        return {
            "val_accuracy": found["validation_accuracy"],
            "val_loss": found["validation_loss"],
            "parameters": found["parameters"],
        }

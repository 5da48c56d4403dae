"""Keras' optimizers, with a learning rate for each block, decoupled decay and weight averages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_vgg.fit import single_pass
from keras_vgg.recipe import Recipe

BLOCKS = 5
_CLASSIFIER = "predictions"


class Layerwise(keras.optimizers.Optimizer):
    """What this package adds to Keras' optimizers. Use it as the first base of one of them.

    The learning rate is `layer_decay` times lower for each block below the classifier: the factor
    is 1 for the classifier, `layer_decay` for block 5, and `layer_decay`^5 for block 1 (Howard &
    Ruder, arXiv:1801.06146, section 3.1, by block).

    `weight_decay` is decoupled (Loshchilov & Hutter, arXiv:1711.05101): learning rate x decay x
    kernel is subtracted from a kernel. Biases and batch norm do not decay. Keras' own decay knows
    one learning rate for all layers.

    With `use_ema`, the momentum of the averages is min(ema_momentum, (1 + step) / (10 + step)), as
    in tf.train.ExponentialMovingAverage: otherwise the first weights would stay in the averages of
    a short training.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        layer_decay: float = 1.0,
        weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.weight_decay = None  # Keras' own decay does nothing
        self.layer_decay = layer_decay
        self.decoupled_decay = weight_decay or 0.0

    @property
    def ema_momentum(self) -> Any:
        if not self.use_ema:
            return self._ema_momentum
        steps: Any = ops.cast(self.iterations, "float32")
        momentum = ops.minimum(self._ema_momentum, (1.0 + steps) / (10.0 + steps))
        parts = self.gradient_accumulation_steps
        if parts is None:
            return momentum
        # Keras averages after every part of a batch, but the weights change after the last one.
        is_last: Any = ops.equal((self._iterations + 1) % parts, 0)
        return ops.where(is_last, momentum, 1.0)

    @ema_momentum.setter
    def ema_momentum(self, value: float) -> None:
        self._ema_momentum = value

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        # On TensorFlow, Keras passes a tf.Variable, which has a name and no path.
        path = getattr(variable, "path", variable.name)
        if self.layer_decay != 1:
            learning_rate = learning_rate * self.layer_decay ** _depth(path)
        if self.decoupled_decay and _is_kernel(path):
            decay: Any = ops.multiply(learning_rate, self.decoupled_decay)
            self.assign_sub(variable, ops.multiply(variable, decay))
        super().update_step(gradient, variable, learning_rate)

    def finalize_variable_values(self, var_list: list) -> None:
        """Leave the weights as they are.

        At the end of every fit, Keras would replace them by the averages, and a resumed run ends
        its unfinished epoch in a fit of its own.
        """

    def averaged(self) -> Iterator[tuple[Any, Any]]:
        """Return each trainable variable with its average; nothing without `use_ema`."""
        if not self.use_ema:
            return iter(())
        return zip(self._trainable_variables, self._model_variables_moving_average, strict=True)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "layer_decay": self.layer_decay,
            "weight_decay": self.decoupled_decay,
            "ema_momentum": self._ema_momentum,
        }


@keras.saving.register_keras_serializable(package="keras_vgg")
class SGD(Layerwise, single_pass.SGD):
    """Keras' SGD."""


@keras.saving.register_keras_serializable(package="keras_vgg")
class AdamW(Layerwise, keras.optimizers.AdamW):
    """Keras' AdamW, with epsilon as in the paper's Algorithm 2 and in PyTorch.

    Keras adds epsilon before the bias of the second moment is corrected. In the first steps, that
    is as if epsilon were up to 32 times as large.
    """

    def __init__(self, learning_rate: Any, *, epsilon: float = 1e-8, **options: Any) -> None:
        super().__init__(learning_rate, epsilon=epsilon, **options)

    @property
    def epsilon(self) -> Any:
        iterations: Any = self.iterations
        power: Any = ops.power(self.beta_2, ops.cast(iterations + 1, "float32"))
        factor: Any = ops.sqrt(1.0 - power)
        return self._epsilon * factor

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = value

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"epsilon": self._epsilon}


@keras.saving.register_keras_serializable(package="keras_vgg")
class Muon(Layerwise, keras.optimizers.Muon):
    """Keras' Muon, also for the kernels of convolutions, as matrices [height x width x in, out].

    Muon is for matrices (Jordan et al., https://kellerjordan.github.io/posts/muon), and Keras takes
    AdamW for everything else, so for almost the whole of a VGG. AdamW remains for biases, batch
    norm and the classifier's last layer.
    """

    def __init__(self, learning_rate: Any, **options: Any) -> None:
        all_options: dict[str, Any] = {"adam_weight_decay": None, **options}
        super().__init__(learning_rate, **all_options)

    def _should_use_adamw(self, variable: Any) -> bool:
        layer = variable.path.split("/")[-2:-1]
        return len(variable.shape) not in (2, 4) or layer == [_CLASSIFIER]

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        return ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)

    def lr_adjust(self, x: Any) -> Any:
        rows, columns = math.prod(x.shape[:-1]), x.shape[-1]
        return x * (self.rms_rate * math.sqrt(max(rows, columns)))


def optimizer_for(recipe: Recipe) -> keras.optimizers.Optimizer:
    """Return the recipe's optimizer. SGD's weight decay is a regularizer of the network instead."""
    accumulation = recipe.gradient_accumulation
    options: dict[str, Any] = {
        "layer_decay": recipe.layer_decay,
        "gradient_accumulation_steps": accumulation if accumulation > 1 else None,
        "global_clipnorm": recipe.clip_norm or None,
    }
    if recipe.ema_momentum:
        options |= {"use_ema": True, "ema_momentum": recipe.ema_momentum}
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return AdamW(rate, beta_1=recipe.momentum, weight_decay=decay, **options)
    options |= {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    if recipe.optimizer == "muon":
        return Muon(rate, weight_decay=decay, **options)
    return SGD(rate, **options)


def averaged_weights(model: keras.Model) -> Iterator[tuple[Any, Any]]:
    """Return a compiled model's trainable variables with their averages, if it averages them."""
    # With mixed_float16, Keras wraps the optimizer in one that scales the loss.
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer.averaged() if isinstance(optimizer, Layerwise) else iter(())


def _depth(path: str) -> int:
    """Return how many blocks a variable is below the classifier."""
    block = re.search(r"(?:^|/)block(\d)_", path)
    return BLOCKS + 1 - int(block[1]) if block else 0


def _is_kernel(path: str) -> bool:
    # TensorFlow may add ":0", and on several devices "/replica_1:0".
    return re.search(r"(?:^|/)kernel(?:[/:]|$)", path) is not None

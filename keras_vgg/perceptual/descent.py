"""Minimise the loss of a picture's pixels, by L-BFGS or Adam, with a pause after each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import keras
import numpy as np
from keras import ops

from keras_vgg.backend import as_array
from keras_vgg.perceptual.style import Losses

Method = Literal["l-bfgs", "adam"]
Objective = Callable[[np.ndarray], tuple[Losses, np.ndarray]]
_PAIRS = 20  # of steps and changes of the gradient that L-BFGS remembers


class Step(NamedTuple):
    """An image after a step.

    Attributes:
        number: The steps so far, from 1.
        image: float32 [h, w, 3] in [0, 255].
        losses: Those of the image with L-BFGS; with Adam those of the image before the step.
    """

    number: int
    image: np.ndarray
    losses: Losses


def stylize(
    objective: Objective,
    image: np.ndarray,
    *,
    steps: int = 200,
    method: Method = "l-bfgs",
    learning_rate: float = 5.0,
    on_step: Callable[[Step], Any] | None = None,
) -> np.ndarray:
    """Return the image, float32 [h, w, 3] in [0, 255], after so many steps that lower its loss.

    L-BFGS ends earlier where it finds no lower loss.

    Args:
        objective: A `StyleObjective`, or another function from an image to (losses, gradient).
        image: The first image, RGB in [0, 255], such as the content.
        steps: At least 1. A step of L-BFGS computes 1 or 2 gradients, a step of Adam 1.
        method: "l-bfgs": SciPy's L-BFGS-B, as in the paper; 2 GB of memory for a megapixel. "adam":
            Keras' Adam.
        learning_rate: Adam's step in grey levels of 255. L-BFGS finds its own.
        on_step: Is called after each step.

    Raises:
        ValueError: a bad `steps`, `method` or `learning_rate`.
        ArithmeticError: the loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if method not in get_args(Method):
        raise ValueError(f"method must be l-bfgs or adam, not {method!r}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be a positive number, not {learning_rate}")
    image = np.clip(np.asarray(image, "float32"), 0, 255)
    run = _by_lbfgs if method == "l-bfgs" else _by_adam
    return run(objective, image, steps, learning_rate, on_step or (lambda step: None))


def _checked(objective: Objective, image: np.ndarray) -> tuple[Losses, np.ndarray]:
    losses, gradient = objective(image)
    if not (np.isfinite(losses.total) and np.isfinite(gradient).all()):
        raise ArithmeticError(f"the loss of the image is not finite: {losses.total}")
    return losses, gradient


def _by_lbfgs(
    objective: Objective,
    image: np.ndarray,
    steps: int,
    _: float,
    on_step: Callable[[Step], Any],
) -> np.ndarray:
    from scipy.optimize import Bounds, minimize

    computed: dict[bytes, Losses] = {}  # of the images since the last step
    scale = 1.0 / max(_checked(objective, image)[0].total, 1e-30)
    # The first step has the length 1: in this unit, a grey level for each pixel. A shorter step
    # changes the loss by less than its rounding errors.
    unit = image.size**0.5
    done = 0

    def as_image(pixels: np.ndarray) -> np.ndarray:
        return np.clip(unit * pixels, 0, 255).reshape(image.shape).astype("float32")

    def loss_and_gradient(pixels: np.ndarray) -> tuple[float, np.ndarray]:
        losses, gradient = _checked(objective, as_image(pixels))
        computed[pixels.tobytes()] = losses
        return losses.total * scale, gradient.ravel().astype("float64") * (scale * unit)

    def after_step(pixels: np.ndarray) -> None:
        nonlocal done
        done += 1
        losses = computed[pixels.tobytes()]
        computed.clear()
        on_step(Step(done, as_image(pixels), losses))

    # SciPy ends where rounding hides a decrease. Another start forgets the past steps, and goes on.
    pixels = image.ravel().astype("float64") / unit
    while done < steps:
        before = done
        # maxls: the paper's pictures need few tries for the length of a step.
        options = {"maxiter": steps - done, "maxfun": 10 * steps, "maxcor": _PAIRS, "maxls": 30}
        result = minimize(
            loss_and_gradient,
            pixels,
            jac=True,
            method="L-BFGS-B",
            bounds=Bounds(0, 255 / unit),
            callback=after_step,
            options=options | {"ftol": 0, "gtol": 0},
        )
        pixels = result.x
        if done == before:
            break
    return as_image(pixels)


def _by_adam(
    objective: Objective,
    image: np.ndarray,
    steps: int,
    learning_rate: float,
    on_step: Callable[[Step], Any],
) -> np.ndarray:
    pixels = keras.Variable(image, name="pixels")
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build([pixels])
    for number in range(1, steps + 1):
        current = as_array(pixels)
        losses, gradient = _checked(objective, current)
        optimizer.apply([ops.convert_to_tensor(gradient)], [pixels])
        pixels.assign(ops.clip(pixels, 0, 255))
        on_step(Step(number, as_array(pixels), losses))
    return np.array(ops.convert_to_numpy(pixels))

"""Refuse images and weights that are not finite, and images of another range.

The functions check the values themselves, not a network's output: a ReLU may return 0 for NaN, as
oneDNN's does on AVX-512, and then the output is finite for any input.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

# The warnings that `one_range_warning` counts; None: all are given.
_given: ContextVar[list[str] | None] = ContextVar("given", default=None)


def is_finite(values: Any) -> bool:
    """Return whether an array or a tensor of any backend holds no NaN and no infinity."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "biu" or bool(np.isfinite(values).all())
    from keras import ops

    is_jax = type(values).__module__.startswith("jax")  # it compiles a program for every shape
    if is_jax or not ops.is_tensor(values):
        return is_finite(np.asarray(values))
    return bool(ops.all(ops.isfinite(values)))


def require_finite_images(images: Any, subject: str = "the images hold") -> None:
    """Raise a ValueError if an array or a tensor holds NaN or an infinity.

    Args:
        images: Pixels of any shape and type.
        subject: The start of the error, such as "image 3 holds".
    """
    if not is_finite(images):
        raise ValueError(f"{subject} values that are not finite: NaN or infinity")


def require_finite_weights(model: Any) -> None:
    """Refuse weights that no training produces.

    Raises:
        ValueError: weights of a Keras model are not finite, or a batch normalisation has a negative
            variance. The error names them.
    """
    broken = [weight.path for weight in model.weights if not is_finite(weight.value)]
    if broken:
        raise ValueError(
            f"the weights of model {model.name!r} are not finite in {', '.join(broken)}: they hold "
            "NaN or infinity"
        )
    from keras import ops

    variances = [weight for weight in model.weights if weight.name == "moving_variance"]
    negative = [weight.path for weight in variances if bool(ops.any(weight.value < 0))]
    if negative:
        raise ValueError(
            f"the weights of model {model.name!r} hold negative variances in {', '.join(negative)}"
        )


def check_range(
    images: Any,
    value_range: tuple[float, float] = (0.0, 255.0),
    *,
    subject: str = "the images",
    advice: str = "scale them to that range",
    refuse: bool = True,
    warn: bool = True,
) -> None:
    """Refuse images that are far outside their range, and warn of [0, 1] where [0, 255] is meant.

    Only values that are known are checked: a NumPy array, an eager tensor of TensorFlow or PyTorch,
    an array of JAX. A tenth of the range may be exceeded, as resampling does. An image of one value
    is not warned of: it may be black.

    Args:
        images: Pixels of any shape and type.
        value_range: The lowest and the highest value.
        subject: The start of the message.
        advice: The end of the message.
        refuse: Whether to refuse; otherwise the function warns of [-1, 1], too.
        warn: Whether to warn.

    Raises:
        ValueError: values are outside the range by more than a tenth of it, or seem to be in
            [-1, 1] or standardised.
    """
    if not _is_known(images) or 0 in images.shape:
        return
    images = of_this_backend(images)
    if isinstance(images, np.ndarray):
        low, high = float(images.min()), float(images.max())
    else:
        from keras import ops

        values: Any = ops.stop_gradient(images)
        low, high = float(ops.min(values)), float(ops.max(values))  # pyright: ignore[reportArgumentType]
    lowest, highest = value_range
    margin = (highest - lowest) / 10
    outside = low < lowest - margin or high > highest + margin
    # Standardised images reach 2.7; a resampled black image goes a little below 0.
    signed = lowest == 0 and highest >= 32 and low <= -0.5 and high <= 4
    small = lowest == 0 and highest >= 32 and low < high <= 1
    message = (
        f"{subject} have values from {low:.4g} to {high:.4g}, but "
        f"[{lowest:g}, {highest:g}] is expected; {advice}"
    )
    if refuse and (outside or signed):
        raise ValueError(message)
    if warn and ((signed and low < high) or small):
        given = _given.get()
        if given:
            return
        if given is not None:
            given.append(message)
        warnings.warn(message, stacklevel=3)


def of_this_backend(images: Any) -> Any:
    """Return an array or a tensor of Keras' backend as it is; any other tensor as an array."""
    if isinstance(images, np.ndarray):
        return images
    from keras import ops

    return images if ops.is_tensor(images) else np.asarray(images)


def are_probabilities(low: float, high: float) -> bool:
    """Return whether values from `low` to `high` are in [0, 1]; a thousandth is rounding."""
    return low >= -1e-3 and high <= 1 + 1e-3


def require_probabilities(values: np.ndarray) -> None:
    """Raise ValueError if values are no probabilities, such as a network's scores."""
    low, high = (float(end(values)) if values.size else 0.0 for end in (np.min, np.max))
    if not are_probabilities(low, high):
        raise ValueError(
            f"values from {low:.4g} to {high:.4g} are no probabilities: end the model in a "
            "soft-max, or in sigmoids for several labels an image"
        )


@contextlib.contextmanager
def one_range_warning(given: list[str]) -> Iterator[None]:
    """Let `check_range` warn once, although the same images come in parts and as mirror images.

    Args:
        given: The warnings so far, of one call of a user; a warning is put there.
    """
    token = _given.set(given)
    try:
        yield
    finally:
        _given.reset(token)


def _is_known(images: Any) -> bool:
    """Return whether images have values: an array or an eager tensor, not one of a graph."""
    kind = type(images)
    if kind.__module__ == "torch":
        import torch

        # Keras computes shapes with tensors on the device "meta".
        return kind is torch.Tensor and not (images.is_meta or torch.compiler.is_compiling())
    return kind.__name__ in ("ndarray", "EagerTensor", "ArrayImpl")

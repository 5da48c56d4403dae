"""Refuse images and weights that are not finite.

These functions check the values themselves, not a network's output: a ReLU may return 0 for NaN, as
oneDNN's does on AVX-512, and then the output is finite for any input.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def is_finite(values: Any) -> bool:
    """Return whether an array or a tensor of any backend holds no NaN and no infinity."""
    if isinstance(values, np.ndarray):
        return values.dtype.kind in "biu" or bool(np.isfinite(values).all())
    from keras import ops

    if not ops.is_tensor(values):
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

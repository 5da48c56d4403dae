"""What every reader gives: the tensors of each layer in Keras' layout, and what they expect."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from keras_vgg.layers import ImagePreprocessing

Tensors = dict[str, list[np.ndarray]]

# The classifier's layers, as they are called in every head.
TOP = ("fc1", "fc2", "predictions")

# The arrays of a batch normalisation: gamma, beta, moving mean and, last, moving variance.
BATCH_NORM_ARRAYS = 4

_KINDS = tuple(np.dtype(kind) for kind in ("float16", "float32", "float64"))


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that were read, by layer name, each layer's in its order in Keras.

    `preprocessing` is what the network was trained on, or None where the file does not say.
    `note` explains in errors what is peculiar to the file. `lrn` and `logits` are what a file that
    holds the network says of it: response normalisation, and no soft-max at the end.
    """

    tensors: Tensors
    source: str
    preprocessing: ImagePreprocessing | None = None
    note: str = ""
    lrn: bool = False
    logits: bool = False

    def sha256(self) -> str:
        """Return the hash of the numbers, whatever file they came in."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            for value in self.tensors[name]:
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    def without(self, layers: tuple[str, ...]) -> Weights:
        kept = {name: values for name, values in self.tensors.items() if name not in layers}
        return dataclasses.replace(self, tensors=kept)


def check(weights: Weights) -> None:
    """Refuse weights that cannot be a network's.

    Raises:
        ValueError: there are none, or values that are not finite or not floating-point numbers;
            an array is empty; a variance of batch normalisation is negative.
    """
    if not weights.tensors:
        raise ValueError(f"{weights.source} holds no layer weights")
    wrong = {
        f"{name} ({value.dtype})"
        for name, values in weights.tensors.items()
        for value in values
        if value.dtype not in _KINDS
    }
    if wrong:
        raise ValueError(
            f"{weights.source} holds values that are not floating-point numbers in "
            f"{', '.join(sorted(wrong))}; a file may hold float16, float32 or float64"
        )
    bad = [
        name
        for name, values in weights.tensors.items()
        if not all(np.isfinite(v).all() for v in values)
    ]
    if bad:
        raise ValueError(f"{weights.source} holds values that are not finite in {', '.join(bad)}")
    empty = [n for n, values in weights.tensors.items() if not all(v.size for v in values)]
    if empty:
        raise ValueError(f"{weights.source} holds arrays without values in {', '.join(empty)}")
    negative = [
        name
        for name, values in weights.tensors.items()
        if len(values) == BATCH_NORM_ARRAYS and (values[-1] < 0).any()
    ]
    if negative:
        raise ValueError(f"{weights.source} holds negative variances in {', '.join(negative)}")

"""The result of every reader: each layer's tensors in Keras' layout, and their preprocessing."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from keras_vgg.layers import ImagePreprocessing

Tensors = dict[str, list[np.ndarray]]

# The names of the classifier's layers in every head.
TOP = ("fc1", "fc2", "predictions")

# A batch normalisation has gamma, beta, moving mean and moving variance, in this order.
BATCH_NORM_ARRAYS = 4

_KINDS = tuple(np.dtype(kind) for kind in ("float16", "float32", "float64"))


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a file by layer name; each layer's weights are in Keras' order.

    `preprocessing` is that of the training images, or None if the file does not state it. `note`
    says what is unusual in the file and what was done about it; commands print it, and errors end
    with it. `lrn`, `logits` and `grey` are known only from a file that holds the network: whether
    it has response normalisation, whether it ends without soft-max, and whether it takes images of
    one channel, which its preprocessing repeats.
    """

    tensors: Tensors
    source: str
    preprocessing: ImagePreprocessing | None = None
    note: str = ""
    lrn: bool = False
    logits: bool = False
    grey: bool = False

    def with_note(self, note: str) -> Weights:
        """Return the weights with one more note."""
        return dataclasses.replace(self, note="; ".join(filter(None, (self.note, note))))

    def sha256(self) -> str:
        """Return the hash of the numbers, which does not depend on the file's format."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            for value in self.tensors[name]:
                digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    def without(self, layers: tuple[str, ...]) -> Weights:
        kept = {name: values for name, values in self.tensors.items() if name not in layers}
        return dataclasses.replace(self, tensors=kept)


def check(weights: Weights) -> None:
    """Refuse weights that no trained network has.

    Raises:
        ValueError: there are no weights, an array is empty, values are not finite or not
            floating-point numbers, or a variance of batch normalisation is negative.
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

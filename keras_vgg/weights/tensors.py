"""The result of every reader: each layer's tensors in Keras' layout, and their preprocessing."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras_vgg.layers import ImagePreprocessing

Tensors = dict[str, list[np.ndarray]]
Pooling = Literal["avg", "max"]

# The names of the classifier's layers in every head.
TOP = ("fc1", "fc2", "predictions")

_BASE = re.compile(r"block\d_conv\d+(_bn)?")

# A batch normalisation has gamma, beta, moving mean and moving variance, in this order.
BATCH_NORM_ARRAYS = 4

_KINDS = tuple(np.dtype(kind) for kind in ("float16", "float32", "float64"))


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a file by layer name; each layer's weights are in Keras' order.

    `preprocessing` is that of the training images, or None if the file does not state it. It is
    `assumed` if the file does not state it, and most files of that kind have it. `note` says what
    is unusual in the file and what was done about it; commands print it, and errors end with it.
    `lrn`, `logits`, `grey`, `pooling` and `side` are known only from a file that holds the network:
    whether it has response normalisation, whether it ends without soft-max, whether it takes images
    of one channel, which its preprocessing repeats, how it pools the whole map (see `pooling_of`),
    and the side in pixels of the images that it takes, if they are square and of one size. So are
    `several_labels`, whether it ends in sigmoids in place of a soft-max, and `unlike`, what its
    convolutions or pools do that those of a VGG with a classifier do not. `other_function` is that
    part of it that no network of this package does, and `epsilon_note` says if batch norm adds
    another epsilon. A .safetensors file of
    this package states `lrn`, `logits`, `several_labels`, `grey` and `side` too.
    """

    tensors: Tensors
    source: str
    preprocessing: ImagePreprocessing | None = None
    note: str = ""
    lrn: bool = False
    logits: bool = False
    several_labels: bool = False
    grey: bool = False
    assumed: bool = False
    pooling: Pooling | None = None
    side: int | None = None
    unlike: str = ""
    other_function: str = ""
    epsilon_note: str = ""

    def with_note(self, note: str) -> Weights:
        """Return the weights with one more note."""
        return dataclasses.replace(self, note="; ".join(filter(None, (self.note, note))))

    def input_advice(self, include_top: bool) -> str:
        """Return what to do about a file that does not state the input of its network."""
        option = "" if include_top else " --no-include-top"
        return (
            f"{self.source} does not say which input its network was trained on: state it once "
            f"with keras-vgg convert {shlex.quote(self.source)} FILE.keras{option} "
            "--preprocessing caffe (as keras.applications) or torchvision, and use FILE.keras"
        )

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

    def base(self) -> Weights:
        """Return the weights of the convolutions and their batch normalisation, without any head.

        The note names the layers that are left out.
        """
        head = tuple(name for name in self.tensors if not is_base(name))
        return self.without(head).with_note(f"left out: {listed(head)}") if head else self


def pooling_of(classes: Container[str], weights: Mapping[str, Sequence[Any]]) -> Pooling | None:
    """Return how a network pools the whole map in front of its classifier; None: it does not.

    Args:
        classes: The classes of the network's layers.
        weights: The weights of each layer by its name. A classifier of convolutions has the average
            of its scores behind it.
    """
    if "GlobalMaxPooling2D" in classes:
        return "max"
    is_convolutional = "fc1" in weights and len(weights["fc1"][0].shape) == 4
    is_pooled = "GlobalAveragePooling2D" in classes and "Flatten" not in classes
    return "avg" if is_pooled and not is_convolutional else None


def is_base(layer: str) -> bool:
    """Return whether a layer of this name is a convolution of VGG, or its batch normalisation."""
    return _BASE.fullmatch(layer) is not None


def listed(names: Iterable[str]) -> str:
    """Return at most twelve names, and the number of the others."""
    names = sorted(names)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def unnested(tensors: Tensors, source: str) -> tuple[Tensors, str]:
    """Return the tensors with VGG's layers under VGG's names, and a note; "" if they were.

    A VGG that is a layer of another network has the names of both, such as vgg16/block1_conv1. The
    other network's layers keep their names; one that is called like a layer of VGG gets a mark.

    Raises:
        ValueError: there are several VGGs.
    """
    first = "block1_conv1"
    prefixes = [n.removesuffix(first) for n in tensors if n == first or n.endswith(f"/{first}")]
    if len(prefixes) > 1:
        places = ", ".join(prefix.rstrip("/") or "the network itself" for prefix in prefixes)
        raise ValueError(f"{source} holds several VGGs: {places}; save one of them alone")
    if not prefixes or not prefixes[0]:
        return tensors, ""
    prefix = prefixes[0]
    inner = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    outer = {n: v for n, v in tensors.items() if not n.startswith(prefix)}
    outer = {f"{n} (outside)" if n in inner else n: v for n, v in outer.items()}
    return {**inner, **outer}, f"the VGG is the layer {prefix.rstrip('/')} of a larger network"


def require_one_piece(tensors: Tensors, order: Sequence[str], source: str) -> None:
    """Raise a ValueError if layers with weights lie between VGG's convolutions.

    Args:
        tensors: From `unnested`.
        order: The layers' names in the network's order, at least those of `tensors`.
        source: The file.
    """
    places = {name: place for place, name in enumerate(order)}
    base = [places[name] for name in tensors if is_base(name) and name in places]
    if not base:
        return
    between = [
        name
        for name in tensors
        if not is_base(name) and min(base) < places.get(name.rsplit("/", 1)[-1], -1) < max(base)
    ]
    if between:
        raise ValueError(f"{source} is no VGG: {listed(between)} lie between the convolutions")


def check(weights: Weights) -> None:
    """Refuse weights that no trained network has. A single integer is a counter, and is allowed.

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
        if value.dtype not in _KINDS and not (value.ndim == 0 and value.dtype.kind in "iu")
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

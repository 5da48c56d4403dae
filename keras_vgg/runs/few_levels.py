"""Say which 16-bit image files become almost one grey as they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from keras_vgg.data import BitDepth, Split
from keras_vgg.data.sides import few_levels_text, sizes_of
from keras_vgg.image_paths import expanded

_DEPTHS = (10, 12, 14)

# What to do, with {} for a depth that fits; of a run, the recipe decides.
ADVICE = "set bit_depth (--bit-depth), such as {}"
ADVICE_FOR_A_RUN = (
    "a run reads them by the bit_depth of its recipe: train with another, such as {}, or make 8-bit"
    " files of them"
)


def few_levels_line(
    paths: Sequence[str | os.PathLike[str]],
    bit_depth: BitDepth = "16",
    advice: str = ADVICE,
) -> str | None:
    """Return a line on files that become almost one grey with this `bit_depth`; None if none do.

    As at the start of a training, at most 200 files are looked at, and ten 16-bit ones are decoded.

    Args:
        paths: Image files; those that cannot be read are passed over.
        bit_depth: As `keras_vgg.data.decode`.
        advice: ADVICE or ADVICE_FOR_A_RUN.
    """
    if not paths:
        return None
    files = np.array([str(expanded(path)) for path in paths])
    labels = np.zeros(len(files), "int32")
    split = Split("photographs", len(files), labels=labels, paths=files, bit_depth=bit_depth)
    sizes = sizes_of(split)
    if sizes is None or not sizes.few_levels:
        return None
    largest = max(row[2] for row in sizes.few_levels)
    fitting = next((str(depth) for depth in _DEPTHS if largest < 2**depth), "stretch")
    text = few_levels_text(sizes.few_levels, sizes.deep)
    return f"{text}; {advice.format(fitting)}"

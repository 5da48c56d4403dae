"""What an export writes, or chooses among for a target, and why it leaves out the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keras_vgg import export
from keras_vgg.runs.compressing import why_not_compressible
from keras_vgg.runs.export_targets import Target

if TYPE_CHECKING:
    import keras

SLOWEST = "litert_int16"  # A small network took about a hundred times as long as in litert_int8.


@dataclass(frozen=True)
class Candidates:
    """What is written, or tried for a target.

    Attributes:
        formats: The formats of each network.
        last: A format of the unchanged network to try when all else has failed, or none.
        compressed: Whether the network is compressed, or a compressed network is a candidate.
        left_out: Why other formats and networks are no candidates.
    """

    formats: tuple[str, ...]
    last: tuple[str, ...] = ()
    compressed: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def are_calibrated(self) -> bool:
        """Whether a format needs training images for the ranges of its values."""
        return not set(export.INTEGER_FORMATS).isdisjoint((*self.formats, *self.last))

    def without_training_images(self, error: Exception) -> Candidates:
        """Return the candidates that need no training images, which cannot be opened."""
        formats = tuple(f for f in self.formats if f not in export.INTEGER_FORMATS)
        reason = f"integer formats and compressed networks need training images: {error}"
        return Candidates(formats, left_out=(*self.left_out, reason))


def candidates_of(
    model: keras.Model,
    formats: Sequence[str] | None,
    target: Target | None,
    *,
    compress: bool,
    fine_tune_steps: int,
    labelled: bool,
    several_labels: bool,
) -> Candidates:
    """Return what an export writes or tries.

    Args:
        model: The network.
        formats, compress, fine_tune_steps: As `keras_vgg.runs.export_run`.
        target: None: everything is written.
        labelled: Whether the images that verify the export have the network's classes.
        several_labels: Whether an image has any number of labels.

    Raises:
        ValueError: there are `fine_tune_steps` for a target, and nothing can be compressed.
    """
    if target is None:
        return Candidates(tuple(formats or export.DEFAULT_FORMATS), compressed=compress)
    last: tuple[str, ...] = ()
    left_out: list[str] = []
    if formats is None:
        formats, left_out = installed_formats()
        reason = _why_no_slowest(model, target, compress)
        if reason is None:
            last = (SLOWEST,)
        else:
            left_out.append(f"{SLOWEST} is left out: {reason}")
    reason = None if compress else why_not_compressible(model, labelled, several_labels)
    if reason is not None:
        if fine_tune_steps:
            raise ValueError(
                f"fine_tune_steps={fine_tune_steps} trains a compressed network, and there is none:"
                f" {reason}; leave fine_tune_steps out"
            )
        left_out.append(f"compressed networks are left out: {reason}")
    return Candidates(tuple(formats), last, reason is None, tuple(left_out))


def installed_formats() -> tuple[list[str], list[str]]:
    """Return the formats whose packages are installed, and why others are left out.

    SLOWEST is in neither.
    """
    installed, missing = [], []
    for format in export.FORMATS:
        if format == SLOWEST:
            continue
        try:
            export.check_formats([format])
        except ValueError as error:
            missing.append(str(error))
        else:
            installed.append(format)
    return installed, missing


def _why_no_slowest(model: keras.Model, target: Target, compress: bool) -> str | None:
    """Return why SLOWEST is no candidate for a target; None: it may be the last one."""
    if target.latency_ms is not None:
        return "LiteRT has no fast code for it on processors"
    if compress:
        return "it is so slow that only the unchanged network is tried in it"
    weights = sum(math.prod(w.shape) for w in model.weights if len(w.shape) > 1)
    if target.size_mb is not None and weights > 1e6 * target.size_mb:
        return f"its weights, of one byte each, have {weights / 1e6:.3g} MB"
    return None

"""Compress the network of an export, and show the networks that were tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import report
from keras_vgg.export import compress as compression
from keras_vgg.export.exporting import own_answers
from keras_vgg.files import write_json

if TYPE_CHECKING:
    import keras


def why_not_compressible(model: keras.Model, labelled: bool, several_labels: bool) -> str | None:
    """Return why a network cannot be compressed on images; None: it can.

    Args:
        labelled: Whether the images have the network's classes.
        several_labels: Whether an image has any number of labels.
    """
    import keras

    if not labelled:
        return "ranks are chosen by accuracy, and these images have other classes than the network"
    if several_labels:
        return "ranks are chosen by top-1 accuracy, which needs one label an image"
    layers = {layer.name: layer for layer in model.layers}
    if not all(isinstance(layers.get(n), keras.layers.Dense) for n in compression.LAYERS):
        return f"the network has no dense layers {' and '.join(compression.LAYERS)}"
    return None


def compressed_options(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    training: Callable[[], np.ndarray],
    tolerance: float,
    fine_tune_steps: int,
    network: Callable[[], keras.Model] | None = None,
) -> dict[str, Any]:
    """Return the options of `export.export` that factorise fc1 and fc2 first.

    Every other image chooses the ranks, which may cost half of the tolerance. The remaining images
    verify the export. The first export chooses the ranks and computes the model's own answers; both
    are kept for others.

    Args:
        model: The model of the export.
        images, labels: The validation images and their labels.
        training: Returns training images for the spectra.
        tolerance: As `export.export`.
        fine_tune_steps: As `keras_vgg.export.compress.compress`.
        network: Returns the network to factorise, such as a pruned one. None: `model`.
    """

    @cache
    def compressed() -> compression.Compression:
        return compression.compress(
            model if network is None else network(),
            images[::2],
            labels[::2],
            training=training(),
            max_drop=tolerance / 2,
            fine_tune_steps=fine_tune_steps,
        )

    def stand_in(folder: Path) -> keras.Model:
        result = compressed()
        _write(result, tolerance / 200, folder)
        return result.model

    verification = images[1::2]
    return {
        "images": verification,
        "labels": labels[1::2],
        "answers": cache(partial(own_answers, model, verification)),
        "stand_in": stand_in,
    }


def _write(result: compression.Compression, drop: float, folder: Path) -> None:
    """Write compression.json and compression.png, which show the networks that were tried."""
    chosen = result.points.index(result.chosen)
    figures = {
        "original": asdict(result.original),
        "points": [asdict(point) for point in result.points],
        "chosen": chosen,
    }
    write_json(folder / "compression.json", figures)
    report.plot_sizes(
        [
            (p.parameters, p.top1, ", ".join(f"{n} rank {r}" for n, r in p.ranks.items()))
            for p in result.points
        ],
        chosen,
        folder / "compression.png",
        original=(result.original.parameters, result.original.top1),
        allowed=result.original.top1 - drop,
    )

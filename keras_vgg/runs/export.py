"""Exports of trained runs and of weight files, proved on the images of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import augment, convert, data, export, report
from keras_vgg.export import compress as compression
from keras_vgg.files import write_json
from keras_vgg.fit import evaluation_transform
from keras_vgg.imagenet import class_names as imagenet_names
from keras_vgg.models import DEFAULT_SIZE
from keras_vgg.run import Run
from keras_vgg.runs.evaluate import open_split
from keras_vgg.weights import read_weights

if TYPE_CHECKING:
    import keras

CALIBRATION_IMAGES = 200
COMPRESSION_IMAGES = 3000


def export_run(
    run: Run,
    directory: str | Path | None = None,
    *,
    images: int | None = None,
    model: keras.Model | None = None,
    formats: Sequence[str] = export.DEFAULT_FORMATS,
    compress: bool = False,
    fine_tune_steps: int = 0,
    **options: Any,
) -> list[export.Artifact]:
    """Export a run's best model, verified on images of its validation split.

    The ranges of litert_int8 are taken from images of its training split, as evaluation sees them.
    With `compress`, fc1 and fc2 are factorised first (`keras_vgg.export.compress`): every other
    validation image, and 3,000 training images, choose the ranks, which may cost half of the
    tolerance; the other validation images verify what was made of them. compression.json and
    compression.png in the export show what was tried.

    Args:
        run: A finished run.
        directory: Default: export/ in the run directory.
        images: How many validation images to verify with, evenly spaced; default: all of them.
            They are held in memory, 12 bytes a pixel.
        model: The run's model where it is loaded already.
        compress, fine_tune_steps: As above, and as `keras_vgg.export.compress.compress`.
        formats, options: As `keras_vgg.export.export`.

    Raises:
        ValueError, OSError: as `keras_vgg.export.export` and `evaluate_run`, or `images` is not
            positive.
    """
    _check(images, formats, compress, fine_tune_steps)
    model = model or run.model()
    directory = run.directory / "export" if directory is None else Path(directory)
    validation, train = (open_split(run, name) for name in ("validation", "train"))
    return _export(
        model,
        run.class_names,
        directory,
        _taken(validation, images),
        train,
        evaluation_transform(run.recipe),
        compress=compress,
        fine_tune_steps=fine_tune_steps,
        formats=formats,
        **options,
    )


def export_weights(
    path: str | Path,
    source: data.Source,
    directory: str | Path,
    *,
    images: int | None = None,
    formats: Sequence[str] = export.DEFAULT_FORMATS,
    compress: bool = False,
    fine_tune_steps: int = 0,
    **options: Any,
) -> list[export.Artifact]:
    """Export the network of a weight file, verified on the validation images of a source.

    The images' smallest side is rescaled to 256 for a network of 224x224, the paper's, and else to
    its own size; then the centre is taken. Accuracy is stated where the source has as many classes
    as the network, which are then taken to be the same, in the same order. If not, a network of
    1000 classes is ImageNet's, and only agreement is stated.

    Args:
        path: A weight file in any format of `keras_vgg.weights.read_weights`, with its classifier.
        source: As `keras_vgg.data.load_source` gives it.
        directory, images, formats, compress, fine_tune_steps, options: As `export_run`.

    Raises:
        ValueError: as `keras_vgg.export.export`; the file has no classifier, or does not say which
            input it expects; the source has no validation images, or other classes.
        OSError: no such file.
    """
    _check(images, formats, compress, fine_tune_steps)
    weights = read_weights(path)
    network = convert.recognise(weights)
    if not network.include_top:
        raise ValueError(f"{path} has no classifier, so there is nothing to verify an export by")
    names = source.class_names
    same = len(names) == network.classes
    if not same:
        if network.classes != len(imagenet_names()):
            raise ValueError(
                f"{path} tells {network.classes} classes apart, source {source.name} has"
                f" {len(names)}"
            )
        names = imagenet_names()
    if source.validation is None:
        raise ValueError(f"source {source.name} has no validation split to verify an export on")
    side = network.side or DEFAULT_SIZE
    scale = 256 if side == DEFAULT_SIZE else side
    return _export(
        _probabilities(convert.build(weights, include_preprocessing=True), weights.logits),
        names,
        directory,
        _taken(source.validation, images),
        source.train,
        partial(augment.eval_image, size=side, scale=scale),
        labelled=same,
        compress=compress,
        fine_tune_steps=fine_tune_steps,
        formats=formats,
        **options,
    )


def _export(
    model: keras.Model,
    names: Sequence[str],
    directory: str | Path,
    verified: data.Split,
    train: data.Split,
    transform: Callable,
    *,
    labelled: bool = True,
    compress: bool,
    fine_tune_steps: int,
    **options: Any,
) -> list[export.Artifact]:
    images, labels = _arrays(verified, transform)
    if "litert_int8" in options["formats"]:
        options["calibration"], _ = _arrays(_taken(train, CALIBRATION_IMAGES), transform)
    if compress:
        if not labelled:
            raise ValueError("ranks are chosen by accuracy, and these images have other classes")
        chosen_by = images[::2], labels[::2]
        images, labels = images[1::2], labels[1::2]
        tolerance = options.setdefault("tolerance", export.TOLERANCE)

        def smaller(folder: Path) -> keras.Model:
            found = compression.compress(
                model,
                *chosen_by,
                training=_arrays(_taken(train, COMPRESSION_IMAGES), transform)[0],
                max_drop=tolerance / 2,
                fine_tune_steps=fine_tune_steps,
            )
            _show(found, tolerance / 200, folder)
            return found.model

        options["stand_in"] = smaller
    return export.export(
        model,
        names,
        directory,
        images=images,
        labels=labels if labelled else None,
        transform=transform,
        **options,
    )


def _show(found: compression.Compression, drop: float, folder: Path) -> None:
    """compression.json and compression.png: what was tried."""
    chosen = found.points.index(found.chosen)
    figures = {
        "original": asdict(found.original),
        "points": [asdict(point) for point in found.points],
        "chosen": chosen,
    }
    write_json(folder / "compression.json", figures)
    report.plot_sizes(
        [
            (p.parameters, p.top1, ", ".join(f"{n} rank {r}" for n, r in p.ranks.items()))
            for p in found.points
        ],
        chosen,
        folder / "compression.png",
        original=(found.original.parameters, found.original.top1),
        allowed=found.original.top1 - drop,
    )


def _check(
    images: int | None, formats: Sequence[str], compress: bool, fine_tune_steps: int
) -> None:
    """Before data is read and a network built."""
    export.check_formats(formats)
    if fine_tune_steps < 0 or (fine_tune_steps and not compress):
        raise ValueError(
            f"{fine_tune_steps} steps of fine tuning: 0 or more, and only with compress"
        )
    if images is not None and images < 1:
        raise ValueError(f"an export is verified on at least 1 image, not {images}")


def _taken(split: data.Split, count: int | None) -> data.Split:
    return split if count is None else split.spread(count)


def _arrays(split: data.Split, transform: Callable) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, float32 [n, size, size, 3], and their labels."""
    with data.bad_images_named(split):
        batches = list(data.evaluation_dataset(split, 64, transform).as_numpy_iterator())
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _probabilities(model: keras.Model, logits: bool) -> keras.Model:
    import keras

    if not logits:
        return model
    outputs = keras.layers.Softmax(name="probabilities")(model.outputs[0])
    return keras.Model(model.inputs[0], outputs, name=model.name)

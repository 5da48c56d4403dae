"""Export trained runs and weight files, each verified on the images of a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import augment, convert, data, export
from keras_vgg.builder_checks import DEFAULT_SIZE
from keras_vgg.console import note_once
from keras_vgg.export.checks import check_calibration_method, check_tolerance, check_top
from keras_vgg.export.exporting import NAMES, RECORD, own_answers
from keras_vgg.export.fold import with_temperature
from keras_vgg.export.folder import require_replaceable
from keras_vgg.files import sha256_of
from keras_vgg.fit import evaluation_transform
from keras_vgg.image_paths import expanded
from keras_vgg.imagenet import class_names as imagenet_names
from keras_vgg.run import Run
from keras_vgg.runs.calibration import read_calibration, require_calibration
from keras_vgg.runs.compressing import compressed_options
from keras_vgg.runs.export_candidates import candidates_of
from keras_vgg.runs.export_targets import (
    UNCHANGED,
    Group,
    Target,
    export_for_target,
    groups_of,
    target_of,
)
from keras_vgg.runs.images import (
    UnknownClasses,
    as_arrays,
    open_images,
    open_split,
    require_labels_alike,
)
from keras_vgg.runs.pruning import stand_ins
from keras_vgg.runs.several_labels import read_thresholds
from keras_vgg.weights import read_weights

if TYPE_CHECKING:
    import keras

CALIBRATION_IMAGES = 200
COMPRESSION_IMAGES = 3000
# Options of `export.export` that an export of a weight file decides, and of a run.
_DECIDED_OF_FILES = frozenset(
    {"answers", "calibration", "labels", "notes", "stand_in", "transform"}
)
_DECIDED_OF_RUNS = _DECIDED_OF_FILES | {"bit_depth", "temperature", "thresholds", "unknown_below"}


def export_run(
    run: Run,
    directory: str | Path | None = None,
    *,
    images: int | None = None,
    model: keras.Model | None = None,
    formats: Sequence[str] | None = None,
    compress: bool = False,
    fine_tune_steps: int = 0,
    target_latency: float | None = None,
    target_size: float | None = None,
    pruned: str | Path | None = None,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
    calibrated: bool = False,
    **options: Any,
) -> list[export.Artifact]:
    """Export a run's best model, verified on images of its validation split.

    If the run gives an image several labels, the files state the thresholds of thresholds.json, and
    0.5 for each label if the run has not been evaluated.

    Images come to the network as the run's recipe says (`eval_scale`, `resize`, `bit_depth`), also
    those of another source. Each file states this, and the thresholds of calibration.json.
    litert_int8 and litert_int16 are calibrated on images of the training split, transformed as for
    evaluation.
    `compress` factorises fc1 and fc2 first (`keras_vgg.export.compress`). Every other validation
    image and 3,000 training images choose the ranks, which may cost half of the tolerance. The
    remaining validation images verify the export. compression.json and compression.png in the
    export show the networks that were tried.

    With `target_latency` or `target_size`, the export is one file: the most accurate one that meets
    both, of all formats that are installed. If none does, the networks of `pruned` are tried, the
    widest first; then fc1 and fc2 are compressed; and then those of the networks of `pruned` that
    keep the accuracy. Without `target_latency`, litert_int16, which is very slow, comes last. Each
    file is measured on this machine; export.json has the figures of all of them under "target": see
    `keras_vgg.runs.export_targets`. A file of `pruned` states the thresholds of its own step, if
    that has been calibrated or evaluated.

    A run that has not finished training gives its best network so far, with a notice
    (`UnfinishedRun`), and export.json says so under "unfinished". It also states the hash of the
    network's file, by which the report knows an export of an earlier network, and the images.

    Args:
        run: The run.
        directory: The folder to make. None: export/ in the run directory.
        images: How many validation images to verify with, evenly spaced. None: all of them. They
            are held in memory, 12 bytes a pixel.
        model: The run's model, if it is loaded already.
        formats: Which of `export.FORMATS` to write. None: `export.DEFAULT_FORMATS`. With a target,
            the formats to choose among. None: all that are installed.
        compress: Factorise fc1 and fc2 first. With a target, only such files are candidates.
        target_latency: The most milliseconds that one image may take at batch 1 with two threads
            (the median).
        target_size: The most megabytes (1,000,000 bytes) of the file or folder.
        pruned: The directory of a pruning of this run (`prune_run`), for a target.
        fine_tune_steps: As `keras_vgg.export.compress.compress`.
        source: Verify on other images: those of the run in their new place, or the test images of
            another set, or all if it has no splits; its classes are matched by name.
        unknown_classes: If another set has classes that the run does not know: "error", or "skip"
            their images.
        calibrated: Divide the scores by the temperature of calibration.json.
        options: As `keras_vgg.export.export`: `tolerance`, `calibration_method`, `top`, `overwrite`
            and `verbose`.

    Raises:
        TargetError: no file meets the target. Nothing is written.
        ValueError, OSError: as `keras_vgg.export.export` and `evaluate_run`; `images` is not
            positive; an option that the run decides; `fine_tune_steps` with a network or images
            that do not allow to compress.
    """
    target = target_of(target_latency, target_size)
    directory = run.directory / "export" if directory is None else expanded(directory)
    _check(directory, images, formats, compress, fine_tune_steps, target, options, _DECIDED_OF_RUNS)
    if pruned is not None and (target is None or compress or calibrated):
        raise ValueError(
            f"pruned={str(pruned)!r} gives candidates for target_latency or target_size, without"
            " compress or calibrated; to export one pruned network, export its run"
        )
    narrower = {} if pruned is None else stand_ins(run, pruned)
    notes: dict[str, Any] = {}
    if run.model_path.is_file():  # Before it is loaded: a training may replace it.
        notes["model_sha256"] = sha256_of(run.model_path)
    if not run.finished:
        notes["unfinished"] = run.progress_note()
    model = model or run.model()
    if run.several_labels:
        options |= _label_options(run, compress, calibrated)
    else:
        options |= _calibration_options(run, calibrated)
    if calibrated:
        model = with_temperature(model, options["temperature"])
    verification, train, notes["images"] = _verification_images(run, source, unknown_classes)
    return _export(
        model,
        run.class_names,
        directory,
        _selected(verification, images),
        train,
        evaluation_transform(run.recipe),
        several_labels=run.several_labels,
        bit_depth=run.recipe.bit_depth,
        compress=compress,
        fine_tune_steps=fine_tune_steps,
        formats=formats,
        target=target,
        narrower={name: _stand_in_options(step) for name, step in narrower.items()},
        notes=notes,
        **options,
    )


def _label_options(run: Run, compress: bool, calibrated: bool) -> dict[str, Any]:
    """Return what files of a run with several labels an image state of them."""
    for name, wrong in (("compress", compress), ("calibrated", calibrated)):
        if wrong:
            raise ValueError(_one_label_only(name, run.directory))
    thresholds = read_thresholds(run)
    return {"thresholds": None if thresholds is None else thresholds.tolist()}


def _one_label_only(option: str, path: str | Path) -> str:
    return f"{option} needs one label an image, and {path} gives several; leave it out"


def _calibration_options(run: Run, calibrated: bool) -> dict[str, Any]:
    """Return what files of a run state of its calibration, as options of `export.export`."""
    if calibrated:
        calibration = require_calibration(run, "calibrated=True (--calibrated)")
    else:
        calibration = read_calibration(run)
    if calibration is None:
        return {"unknown_below": None}
    return {
        "temperature": calibration.temperature if calibrated else None,
        "unknown_below": {
            share: calibration.threshold(share, calibrated) for share in calibration.thresholds
        },
    }


def _stand_in_options(step: Run) -> dict[str, Any]:
    """Return the options of `export.export` that write a pruned network, with its thresholds."""
    if step.several_labels:
        stated = _label_options(step, compress=False, calibrated=False)
    else:
        stated = _calibration_options(step, calibrated=False)
    return {**stated, "stand_in": lambda folder: step.model()}


def _verification_images(
    run: Run, source: str | None, unknown_classes: UnknownClasses
) -> tuple[data.Split, Callable[[], data.Split], str]:
    """Return what verifies an export, what opens the training images, and the first in words."""
    own = "validation images"
    if source is None and unknown_classes == "error":
        return open_split(run, "validation"), partial(open_split, run, "train"), own
    images = open_images(run, None, source, unknown_classes, default_split="validation")
    if images.source is None:  # the run's own images, in a new place
        train = partial(open_split, run, "train", source)
        return open_split(run, "validation", source), train, own
    return images.split, partial(open_split, run, "train"), images.title


def export_weights(
    path: str | Path,
    source: data.Source,
    directory: str | Path,
    *,
    images: int | None = None,
    formats: Sequence[str] | None = None,
    compress: bool = False,
    fine_tune_steps: int = 0,
    target_latency: float | None = None,
    target_size: float | None = None,
    **options: Any,
) -> list[export.Artifact]:
    """Export the network of a weight file, verified on the validation images of a source.

    The images have the size that Keras' files with a network state (.keras, or its members in a
    folder or a repository; a .safetensors converted from one), or that the classifier fits; else
    224x224.
    An image's smallest side is rescaled to 256 for a network of 224x224, as in the paper, and to
    the network's own size for any other; then the centre is cropped. If the source has as many
    classes as the network, they are assumed to be the same, in the same order, and accuracy is
    stated. Otherwise a network of 1000 classes is assumed to be ImageNet's, and only agreement is
    stated.

    Args:
        path: A weight file in any format of `keras_vgg.weights.read_weights`, with its classifier.
        source: A source as `keras_vgg.data.load_source` returns it.
        directory, images, formats, compress, fine_tune_steps, target_latency, target_size:
            As `export_run`.
        options: As `export_run`; also `bit_depth`, `temperature`, `unknown_below` and `thresholds`.

    Raises:
        TargetError: no file meets the target. Nothing is written.
        ValueError: as `keras_vgg.export.export`; the file has no classifier, or does not state the
            preprocessing; the source has no validation images, or other classes; the file gives an
            image several labels and the source one, or the other way round.
        OSError: the file does not exist.
    """
    target = target_of(target_latency, target_size)
    directory = expanded(directory)
    _check(
        directory, images, formats, compress, fine_tune_steps, target, options, _DECIDED_OF_FILES
    )
    weights = read_weights(path)
    path = weights.source
    network = convert.recognise(weights)
    if weights.note:
        note_once(f"{path}: {weights.note}")
    if not network.include_top:
        raise ValueError(f"{path} has no classifier, which an export is verified by")
    class_names = source.class_names
    same_classes = len(class_names) == network.classes
    if not same_classes:
        if network.classes != len(imagenet_names()):
            raise ValueError(
                f"{path} has {network.classes} classes, source {source.name} has"
                f" {len(class_names)}; choose a source with the network's classes"
            )
        class_names = imagenet_names()
    else:
        require_labels_alike(source.name, source, path, weights.several_labels)
    if compress and weights.several_labels:
        raise ValueError(_one_label_only("compress", path))
    if source.validation is None:
        raise ValueError(
            f"source {source.name} has no validation split to verify an export on; choose another"
        )
    options.setdefault("bit_depth", source.validation.bit_depth)
    side = _side(weights.side, network)
    scale = 256 if side == DEFAULT_SIZE else side
    return _export(
        _with_softmax(
            convert.build(weights, include_preprocessing=True, side=side), weights.logits
        ),
        class_names,
        directory,
        _selected(source.validation, images),
        lambda: source.train,
        partial(augment.eval_image, size=side, scale=scale),
        labelled=same_classes,
        several_labels=weights.several_labels,
        compress=compress,
        fine_tune_steps=fine_tune_steps,
        formats=formats,
        target=target,
        **options,
    )


def _side(stated: int | None, network: convert.Network) -> int:
    """Return the side of a network's images: that of its file, else that of its classifier.

    A convolutional head becomes dense layers, which fit the size that they were trained on alone.
    """
    trained = network.side  # a multiple of 32: fc1 does not show more
    if stated is None or (trained is not None and stated // 32 * 32 != trained):
        return trained or DEFAULT_SIZE
    return stated


def _export(
    model: keras.Model,
    class_names: Sequence[str],
    directory: Path,
    validation: data.Split,
    open_train: Callable[[], data.Split],
    transform: Callable,
    *,
    labelled: bool = True,
    several_labels: bool,
    compress: bool,
    fine_tune_steps: int,
    formats: Sequence[str] | None,
    target: Target | None,
    narrower: Mapping[str, dict[str, Any]] | None = None,
    **options: Any,
) -> list[export.Artifact]:
    """Export a network with its images, as they are or for a target.

    `narrower` holds the options of `export.export` for networks that may stand in for it, by what
    was done to it.
    """
    if model.input_shape[-1] == 1 and transform(np.zeros((64, 64, 3), np.uint8)).shape[-1] == 3:
        transform = augment.in_grey(transform)
    if compress and not labelled:
        raise ValueError(
            "compress chooses ranks by accuracy, and the images of this source have other"
            " classes than the network; choose a source with the network's classes"
        )
    candidates = candidates_of(
        model,
        formats,
        target,
        compress=compress,
        fine_tune_steps=fine_tune_steps,
        labelled=labelled,
        several_labels=several_labels,
    )
    train = cache(open_train)
    if candidates.are_calibrated or candidates.compressed:
        try:
            train()  # An error about these images comes before any image is read.
        except (OSError, ValueError) as error:
            # For a target, integer formats and compressed networks are candidates unasked.
            asked = compress or fine_tune_steps or set(export.INTEGER_FORMATS) & {*(formats or ())}
            if target is None or asked:
                raise
            candidates = candidates.without_training_images(error)
    images, labels = as_arrays(validation, transform)
    if candidates.are_calibrated:
        options["calibration"], _ = as_arrays(_selected(train(), CALIBRATION_IMAGES), transform)
    tolerance = options.setdefault("tolerance", export.TOLERANCE)
    networks: dict[str, dict[str, Any]] = {}  # what is done to the network -> options
    if not compress:
        networks = _uncompressed(model, images, labels if labelled else None, narrower or {})
    bases: dict[str, str] = {}  # a compressed network -> the pruned one that it is made from
    if candidates.compressed:
        compressed = partial(
            compressed_options,
            model,
            images,
            labels,
            training=lambda: as_arrays(_selected(train(), COMPRESSION_IMAGES), transform)[0],
            tolerance=tolerance,
            fine_tune_steps=fine_tune_steps,
        )
        networks["compressed"] = compressed()
        answers = networks["compressed"]["answers"]
        for pruned, changes in (narrower or {}).items():
            both = compressed(network=partial(changes["stand_in"], directory))
            networks[f"{pruned} and compressed"] = {**changes, **both, "answers": answers}
            bases[f"{pruned} and compressed"] = pruned
    write = partial(export.export, model, class_names, transform=transform, **options)
    if target is None:
        (changes,) = networks.values()
        return write(directory, formats=candidates.formats, **changes)
    groups = [
        group
        for network, changes in networks.items()
        for group in groups_of(
            candidates.formats, network, partial(write, **changes), bases.get(network)
        )
    ]
    if candidates.last:
        groups.append(Group(UNCHANGED, candidates.last, partial(write, **networks[UNCHANGED])))
    return export_for_target(
        groups,
        target,
        directory,
        tolerance=tolerance,
        overwrite=options.get("overwrite", False),
        verbose=options.get("verbose", False),
        left_out=candidates.left_out,
    )


def _uncompressed(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray | None,
    narrower: Mapping[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Return the options of `export.export` for a model and for networks that may stand in.

    The first export computes the model's own answers, and the others use them.
    """
    answers = cache(partial(own_answers, model, images))
    unchanged = {"images": images, "labels": labels, "answers": answers}
    return {
        UNCHANGED: unchanged,
        **{name: {**unchanged, **changes} for name, changes in narrower.items()},
    }


def _check(
    directory: Path,
    images: int | None,
    formats: Sequence[str] | None,
    compress: bool,
    fine_tune_steps: int,
    target: Target | None,
    options: Mapping[str, Any],
    decided: frozenset[str],
) -> None:
    """Check the arguments before any data is read or a network is built."""
    if excess := sorted(decided & options.keys()):
        raise ValueError(
            f"the export decides {', '.join(excess)}; leave it out, or use keras_vgg.export.export"
        )
    if formats is not None:
        export.check_formats(formats)
    if fine_tune_steps < 0:
        raise ValueError(f"fine_tune_steps must be 0 or more, not {fine_tune_steps}")
    if fine_tune_steps and not compress and target is None:
        raise ValueError(f"fine_tune_steps={fine_tune_steps} needs compress; set both or neither")
    if images is not None and images < 1:
        raise ValueError(f"an export is verified on at least 1 image, not {images}")
    for name, check in (
        ("top", check_top),
        ("tolerance", check_tolerance),
        ("calibration_method", check_calibration_method),
    ):
        if name in options:
            check(options[name])
    if directory.exists():  # What a killed process moved aside is put back later.
        require_replaceable(directory, RECORD, options.get("overwrite", False), NAMES)


def _selected(split: data.Split, count: int | None) -> data.Split:
    return split if count is None else split.spread(count)


def _with_softmax(model: keras.Model, logits: bool) -> keras.Model:
    """Return a model that gives probabilities; one with logits gets a soft-max layer."""
    import keras

    if not logits:
        return model
    outputs = keras.layers.Softmax(name="probabilities")(model.outputs[0])
    return keras.Model(model.inputs[0], outputs, name=model.name)

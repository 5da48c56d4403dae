"""The export itself: write the formats, verify each one, and put the folder in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg import augment
from keras_vgg.backend import require_tensorflow_for_files
from keras_vgg.console import progress_bars
from keras_vgg.data.decode import BitDepth
from keras_vgg.export import description as descriptions
from keras_vgg.export.checks import (
    activation_name,
    check_calibration_method,
    check_images,
    check_model,
    check_thresholds,
    check_tolerance,
    check_top,
    square_side,
)
from keras_vgg.export.fold import folded, in_float32
from keras_vgg.export.folder import whole_folder
from keras_vgg.export.formats import (
    DEFAULT_FORMATS,
    FILES,
    FLOAT32_FORMATS,
    INTEGER_FORMATS,
    check_formats,
    quantisation_errors,
    write_format,
)
from keras_vgg.export.packages import PACKAGES
from keras_vgg.export.ranges import CalibrationMethod
from keras_vgg.export.saved_model import CLASS_NAMES
from keras_vgg.export.verify import TOLERANCE, Artifact, Reference, verified_artifact
from keras_vgg.files import write_json
from keras_vgg.finite import require_probabilities
from keras_vgg.image_paths import expanded
from keras_vgg.versions import package_versions

if TYPE_CHECKING:
    import keras

RECORD = "export.json"
QUANTISATION = "quantisation.json"
# All that an export's folder may hold; the last two show what a compression tried.
NAMES = frozenset(
    [*FILES.values(), RECORD, QUANTISATION, CLASS_NAMES, "compression.json", "compression.png"]
)
_BATCH = 32  # images


def export(
    model: keras.Model,
    class_names: Sequence[str],
    directory: str | Path,
    *,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    calibration_method: CalibrationMethod = "minmax",
    formats: Sequence[str] = DEFAULT_FORMATS,
    tolerance: float = TOLERANCE,
    transform: Callable[[Any], Any] | None = None,
    bit_depth: BitDepth = "16",
    top: int = 5,
    temperature: float | None = None,
    unknown_below: Mapping[float, float] | None = None,
    thresholds: Sequence[float] | None = None,
    stand_in: Callable[[Path], keras.Model] | None = None,
    answers: Callable[[], np.ndarray] | None = None,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    verbose: bool = False,
) -> list[Artifact]:
    """Write a model in serving formats, verify each file on images, then put all in place.

    The folder gets these files, as far as `formats` names them:

    - `saved_model/`, for TensorFlow Serving, with the signatures `serving_default` and
      `serving_uint8` (images -> probabilities), `classify` (encoded files -> names of the most
      probable classes) and `features`: see `keras_vgg.export.saved_model`;
    - `saved_model_bfloat16/`, the same in bfloat16: see `keras_vgg.export.bfloat16`;
    - `model.tflite`, `model_float16.tflite`, `model_dynamic.tflite`, `model_int8.tflite` and
      `model_int16.tflite`, for LiteRT, with the signature `serving_default`: see
      `keras_vgg.export.litert`. For the last two, `quantisation.json` states the error of each
      layer: see `keras_vgg.export.quantisation`;
    - `model.onnx`, opset 18;
    - `openvino/`, model.xml and model.bin: see `keras_vgg.export.openvino`.

    Each maps `images` [batch, size, size, 3] RGB in [0, 255] (float32; uint8 for int8) to
    `probabilities` float32 [batch, classes]. Each file states how to bring an image to its input,
    and the class names: see `keras_vgg.export.description`. The folder also gets `class_names.txt`
    (one name a line, in the order of the outputs) and `export.json`: the same statement, the
    artifacts with their figures, and the versions of the packages. Batch normalisation is folded
    into the convolutions. A model that computes in lower precision is exported, and compared, in
    float32.

    A model may answer with a map, [batch, height, width, classes], as `keras_vgg.dense.fcn` does:
    probabilities for each pixel. Its SavedModel has no `classify`, and its pixels are compared, and
    counted for `tolerance`, as the images of a classifier are.

    The folder appears whole or not at all. If a process is killed, the earlier export stays, or
    the next export puts it back.

    Args:
        model: A model with one input [batch, size, size, 3] RGB in [0, 255] and one output
            [batch, classes] or [batch, height, width, classes].
        class_names: One name for each output, without line breaks.
        directory: The folder to make, with its parents. A failure leaves it as it was.
        images: [n, size, size, 3] RGB in [0, 255], n >= 1: real images, such as the validation
            split.
        labels: [n] integers, the classes of the images; of a map, [n, height, width]; for a model
            that ends in sigmoids, uint8 of the output's shape, 1 for each label. None, or no
            image with a label: no accuracy is stated.
        calibration: [n, size, size, 3], some hundred images of the training split. Only
            litert_int8 and litert_int16 need them.
        calibration_method: How the calibration images give the range of each layer's values in
            litert_int8: "minmax", the least and the greatest value; "percentile", without one value
            in 100,000 at either end; "mse", the range with the least squared error.
        formats: Which of FORMATS to write.
        tolerance: How many percentage points of top-1 accuracy a format of less than float32 may
            lose (without labels: on how many of the images it may differ from the model). A
            float32 format must answer like the model: probabilities within 1e-3, and the same most
            probable class unless the model's two best are tied (nearer than 1e-5). For a model that
            ends in sigmoids, percentage points of mean average precision; a float32 format must
            give the same labels, unless a probability is within 1e-5 of its threshold.
        transform: What `classify` does with a decoded image, uint8 [h, w, 3] -> [size, size, 3] in
            [0, 255], or [size, size, 1] for a model of grey images. None: rescale the smallest side
            to the model's size and take the centre, in grey for such a model.
        bit_depth: How `classify` decodes a 16-bit PNG: which of its bits carry the image, as
            `Recipe.bit_depth`.
        top: How many classes `classify` names, 1 or more; all, for a model that ends in sigmoids.
        temperature: The number by which the model's scores are divided, for the files to state.
            The model must do that itself: see `keras_vgg.export.fold.with_temperature`.
        unknown_below: Share of the validation images -> the probability that this share reaches,
            for the files to state.
        thresholds: For a model that ends in sigmoids, which gives an image any number of labels:
            the probability from which on an image has each label, for the files to state. None: 0.5
            for all.
        stand_in: Returns a model to write instead, such as a compressed one. It is compared with
            `model`, and `tolerance` holds for every format. It is called with the folder that is
            being made, into which it may write more files.
        answers: Returns the model's own answers to `images`, as `own_answers` does, so that several
            exports can share them. None: they are computed.
        notes: More fields for export.json, such as where the model comes from.
        overwrite: Replace an earlier export. Any other folder is refused all the same.
        verbose: Show a progress bar on stderr.

    Returns:
        One Artifact for each format, in the order of `formats`.

    Raises:
        ExportError: a format cannot represent the model, or does not answer like the model within
            the tolerance.
        ValueError: an unknown or repeated format, no format, a model with other inputs or outputs,
            class names or images that do not fit the model, images that are not in [0, 255],
            images or weights that are not finite, a model that does not give probabilities,
            a package that is not installed, no calibration images for a format that needs them, an
            unknown calibration method, another backend than TensorFlow.
        FileExistsError: the directory exists and is not an export that `overwrite` may replace, or
            holds more than an export.
        OSError: the disk is full, or another process exports to the same directory.
    """
    require_tensorflow_for_files()
    formats = tuple(formats)
    images = np.asarray(images, dtype=np.float32)
    directory = Path(os.path.abspath(expanded(directory)))
    check_formats(formats)
    check_model(model, class_names)
    check_calibration_method(calibration_method)
    needs_calibration = next((f for f in INTEGER_FORMATS if f in formats), None)
    check_images(model, images, labels, calibration, needs_calibration)
    check_tolerance(tolerance)
    check_top(top)
    label_thresholds = check_thresholds(model, thresholds, len(class_names))
    if label_thresholds is not None:
        top = len(class_names)
        if labels is not None and not np.any(labels):  # then average precision is not defined
            labels = None
    transform = _default_transform(model) if transform is None else transform
    description = descriptions.describe(
        class_names,
        transform,
        input_shape=model.input_shape[1:],
        bit_depth=bit_depth,
        temperature=temperature,
        unknown_below=unknown_below,
        activation=activation_name(model),
        thresholds=None if label_thresholds is None else label_thresholds.tolist(),
        output_sides=model.output_shape[1:-1],
    )
    write = partial(
        write_format,
        class_names=class_names,
        transform=transform,
        bit_depth=bit_depth,
        top=top,
        calibration=calibration,
        calibration_method=calibration_method,
        description=description,
    )
    with (
        whole_folder(directory, RECORD, overwrite, NAMES) as new_folder,
        progress_bars(verbose) as progress,
        _full_precision(),
    ):
        task = progress.add_task("model", total=len(formats) + 1)
        model = in_float32(model)
        scratch = new_folder.parent / "scratch"
        probabilities = own_answers(model, images) if answers is None else answers()
        images_file = _save_images(images, scratch)
        reference = Reference(probabilities, labels, class_names, images_file, label_thresholds)
        written = folded(model if stand_in is None else in_float32(stand_in(new_folder)))
        must_be_equal = FLOAT32_FORMATS if stand_in is None else ()
        artifacts, errors = [], {}
        for format in formats:
            progress.update(task, advance=1, description=format)
            path = new_folder / FILES[format]
            write(format, written, path, scratch)
            allowed_loss = None if format in must_be_equal else tolerance
            artifacts.append(verified_artifact(format, path, scratch, reference, allowed_loss))
            if format in INTEGER_FORMATS:
                errors[format] = quantisation_errors(written, path, scratch, images)
        progress.update(task, advance=1)
        record = _record(model, artifacts, reference, tolerance)
        record = {**(notes or {}), "description": description, **record}
        _write_records(new_folder, class_names, record, errors)
    return [replace(artifact, path=directory / artifact.path.name) for artifact in artifacts]


def _default_transform(model: keras.Model) -> Callable[[Any], Any]:
    """Return a resize of the smallest side to the model's, and a centre crop."""
    side = square_side(model)
    transform = partial(augment.eval_image, size=side, scale=side)
    return augment.in_grey(transform) if model.input_shape[-1] == 1 else transform


def own_answers(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Return the probabilities that a model gives images in float32.

    Raises:
        ValueError: the answers are not finite, or no probabilities.
    """
    images = np.asarray(images, dtype=np.float32)
    with _full_precision():
        # Keras annotates `verbose` as text, and documents 0.
        answers = in_float32(model).predict(images, batch_size=_BATCH, verbose=0)  # pyright: ignore[reportArgumentType]
    probabilities = np.asarray(answers)
    if not np.isfinite(probabilities).all():
        raise ValueError("the model's own probabilities are not finite on these images")
    require_probabilities(probabilities)
    return probabilities


def _save_images(images: np.ndarray, scratch: Path) -> Path:
    """Save the images in a new folder for the processes that run the artifacts; return the path."""
    scratch.mkdir()
    path = scratch / "images.npy"
    try:
        np.save(path, images)
    except OSError as error:  # NumPy's message names no file.
        raise OSError(f"{scratch} cannot be written; is the disk full? ({error})") from error
    return path


def _record(
    model: keras.Model, artifacts: Sequence[Artifact], reference: Reference, tolerance: float
) -> dict[str, Any]:
    """Return the content of export.json."""
    packages = ["keras", "tensorflow", "ai-edge-litert"]
    for artifact in artifacts:
        packages += PACKAGES.get(artifact.format, ())
    return {
        "model": {
            "parameters": model.count_params(),
            "bytes": 4 * model.count_params(),
            **reference.accuracy(reference.probabilities),
        },
        "tolerance": tolerance,
        "artifacts": [{**asdict(artifact), "path": artifact.path.name} for artifact in artifacts],
        "versions": package_versions(packages),
    }


def _write_records(
    folder: Path,
    class_names: Sequence[str],
    record: Mapping[str, Any],
    quantisation: Mapping[str, Any],
) -> None:
    """Write class_names.txt, export.json and, with integer formats, quantisation.json."""
    text = "".join(f"{name}\n" for name in class_names)
    (folder / CLASS_NAMES).write_text(text, encoding="utf-8")
    if quantisation:
        write_json(folder / QUANTISATION, quantisation)
    write_json(folder / RECORD, record)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TensorFloat-32 off: its 10-bit products on a GPU would count as a difference."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)

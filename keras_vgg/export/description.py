"""What an exported file expects of an image, and what its answers mean: JSON inside each file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from keras_vgg import augment

NAME = "keras_vgg.json"  # in a LiteRT file's archive, and in the folder assets.extra
KEY = "keras_vgg"  # in the metadata_props of an ONNX file, and the rt_info of an OpenVINO file
LABELS = "labels.txt"  # the name by which LiteRT's own tools look for class names

_STEPS = {
    "crop": "Rescale the image so that its smallest side has {scale} pixels: bilinear, with"
    " antialiasing, the other side in proportion and rounded to the nearest pixel.",
    "squash": "Rescale both sides to {scale} pixels, whatever the shape: bilinear, with"
    " antialiasing.",
    "pad": "Rescale the image so that its largest side has {scale} pixels: bilinear, with"
    " antialiasing, the other side in proportion and rounded to the nearest pixel. Pad the other"
    " side evenly with zeros to {scale} pixels.",
}


def describe(
    class_names: Sequence[str],
    transform: Callable,
    *,
    input_shape: Sequence[int | None],
    bit_depth: str = "16",
    temperature: float | None = None,
    unknown_below: Mapping[float, float] | None = None,
    activation: str | None = "softmax",
    thresholds: Sequence[float] | None = None,
    output_sides: Sequence[int] = (),
) -> dict[str, Any]:
    """Return what files of a model expect and answer, as plain values for JSON.

    Args:
        class_names: One name for each output.
        transform: What brings a decoded image to the model. Other functions than
            `augment.eval_image` and what `augment.in_grey` makes of it have no `resize`.
        input_shape: The model's, without the batch.
        bit_depth: As `keras_vgg.data.decode`.
        temperature: The number by which the scores are divided inside the file; None: the
            network's own probabilities.
        unknown_below: Share of the validation images -> the probability that this share reaches.
        activation: What the probabilities come from: "softmax", one label an image; "sigmoid", any
            number of labels, each with a probability of its own; None: not known.
        thresholds: For "sigmoid": an image has a label from this probability on, one for each.
        output_sides: Height and width of a map, with probabilities for each pixel.
    """
    height, width, channels = input_shape
    grey = channels == 1
    options = _options(transform)
    resize, scale = options.get("resize", "crop"), options.get("scale")
    size = options.get("size")
    height, width = height or size or "H", width or size or "W"  # the model may take any size
    steps = ["Decode the image to 8 bits a channel in RGB, and turn it upright as Exif says."]
    if not options:
        resize = None
        steps.append("Bring it to the size of the input as the program that made this file does.")
    else:
        if scale is not None:
            steps.append(_STEPS[resize].format(scale=scale))
        steps.append(
            f"Take the central {height} x {width} pixels, the offsets rounded down. Pad a smaller"
            " image evenly with zeros."
        )
    if grey:
        steps.append("Take the luma: 0.299 R + 0.587 G + 0.114 B, one channel.")
    steps.append(
        "Pass the values in [0, 255] as they are. The file contains the mean, the scale and the"
        " order of colours that the network was trained with."
    )
    return {
        "input": {
            "name": "images",
            "shape": [None, *input_shape],
            "colors": "grey" if grey else "RGB",
            "range": [0, 255],
        },
        "resize": resize,
        "scale": scale,
        **({"size": size} if None in input_shape else {}),
        "interpolation": None if scale is None else "bilinear, antialiased",
        "bit_depth": bit_depth,
        "steps": steps,
        "output": {
            "name": "probabilities",
            "shape": [None, *output_sides, len(class_names)],
            "activation": activation,
            **({} if thresholds is None else {"thresholds": [float(t) for t in thresholds]}),
        },
        "temperature": temperature,
        "unknown_below": {f"{s:g}": value for s, value in (unknown_below or {}).items()},
        "class_names": list(class_names),
    }


def add_to_litert(path: Path, description: Mapping[str, Any]) -> None:
    """Append a zip archive with the description and the class names to a LiteRT file.

    LiteRT's own metadata keeps its files like this: the runtime does not look behind the model, and
    any program for zip archives reads the file. Writing the model anew instead would not keep how
    its weights are aligned.
    """
    names = "".join(f"{name}\n" for name in description["class_names"])
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in ((NAME, _json(description)), (LABELS, names)):
            # A fixed time: the same model gives the same file.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)


def add_to_saved_model(path: Path, description: Mapping[str, Any]) -> None:
    """Write the description into assets.extra, which TensorFlow does not read."""
    extra = path / "assets.extra"
    extra.mkdir(exist_ok=True)
    (extra / NAME).write_text(_json(description), encoding="utf-8")


def properties(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the description as key and text, for the metadata of an ONNX or OpenVINO file."""
    return {KEY: _json(description)}


def with_dtype(description: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a description whose input has a data type."""
    return {**description, "input": {**description["input"], "dtype": dtype}}


def _json(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def _options(transform: Callable) -> dict[str, Any]:
    """Return the options of `augment.eval_image` in a transform; {} for another function."""
    if not isinstance(transform, partial):
        return {}
    is_eval_image = augment.eval_image in (transform.func, *transform.args)
    return dict(transform.keywords) if is_eval_image else {}

"""Convert weight files from one format to another."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vgg import architecture
from keras_vgg import weights as weight_files
from keras_vgg.architecture import CONFIGURATIONS, convolutions, scaled_width
from keras_vgg.files import write_atomically
from keras_vgg.imagenet import MODES
from keras_vgg.models import vgg
from keras_vgg.weights import TOP, Weights, keras_format, torch_format, torch_naming

SUFFIXES = (".weights.h5", ".h5", ".keras", ".safetensors", ".pth")
_STATING_SUFFIXES = (".keras", ".safetensors")  # which state more of a network than its tensors


@dataclasses.dataclass(frozen=True)
class Network:
    """The network that a file's tensors belong to, as far as the tensors show it.

    A has the same tensors as A-LRN. `filters` holds the number of filters of each convolution if no
    `width_multiplier` gives them, as in a pruned network; otherwise it is empty. `side` is the side
    in pixels of the images that the classifier was trained on. Without the classifier, `side`,
    `hidden_units` and `classes` are None. `note` is that of the weights.
    """

    configuration: str
    width_multiplier: float
    filters: tuple[int, ...]
    batch_norm: bool
    include_top: bool
    head: str | None
    channels: int
    hidden_units: int | None
    classes: int | None
    side: int | None
    note: str = ""


def recognise(weights: Weights) -> Network:
    """Return the VGG that the weights belong to.

    Raises:
        ValueError: none of the paper's configurations has these layers, or its classifier
            pools the map in another way than the head of the same layers.
    """
    tensors = weights.tensors
    kernels = {
        name: values[0].shape
        for name, values in tensors.items()
        if re.fullmatch(r"block\d_conv\d", name) and values[0].ndim == 4
    }
    for name in ["A-LRN"] if weights.lrn else CONFIGURATIONS:
        expected = list(convolutions(name))
        if {n: s[0] for n, s in kernels.items()} != {n: kernel for n, kernel, _ in expected}:
            continue
        all_widths = tuple(kernels[n][3] for n, _, _ in expected)
        width = _width([filters for _, _, filters in expected], all_widths)
        top = [n for n in TOP if n in tensors]
        if top not in ([], ["predictions"], list(TOP)):
            raise ValueError(f"{weights.source} has only {', '.join(top)} of the classifier")
        if top == ["predictions"] and weights.pooling == "max":
            raise ValueError(
                f"{weights.source} pools by the maximum, and the gap head by the average"
            )
        has_all = len(top) == len(TOP)
        if has_all and weights.pooling:
            raise ValueError(
                f"{weights.source} pools the whole map in front of fc1, and the fc head flattens it"
            )
        _check_shapes(weights, [n for n, _, _ in expected])
        return Network(
            configuration=name,
            width_multiplier=width or 1.0,
            filters=() if width else all_widths,
            batch_norm="block1_conv1_bn" in tensors,
            include_top=bool(top),
            head=("fc" if has_all else "gap") if top else None,
            channels=1 if weights.grey else kernels["block1_conv1"][2],
            hidden_units=tensors["fc1"][1].shape[0] if has_all else None,
            classes=tensors["predictions"][1].shape[0] if top else None,
            side=_side(weights, all_widths[-1]) if has_all else None,
            note=weights.note,
        )
    listed = ", ".join(sorted(tensors)[:12])
    note = f" ({weights.note})" if weights.note else ""
    raise ValueError(
        f"{weights.source} is none of the paper's configurations; it holds {listed}{note}"
    )


def _check_shapes(weights: Weights, convolution_names: list[str]) -> None:
    """Raise a ValueError that lists tensors that are missing, left over or of a wrong shape."""
    tensors = weights.tensors
    has_norm = "block1_conv1_bn" in tensors
    channels = tensors["block1_conv1"][0].shape[2]
    expected: dict[str, list[tuple[int, ...]]] = {}
    for name in convolution_names:
        kernel = tensors[name][0].shape
        filters = kernel[3]
        expected[name] = [(*kernel[:2], channels, filters), (filters,)]
        if has_norm:
            expected[f"{name}_bn"] = [(filters,)] * 4
        channels = filters
    problems = []
    inputs = channels
    for name in (n for n in TOP if n in tensors):
        kernel = tensors[name][0].shape
        if len(kernel) not in (2, 4):
            raise ValueError(
                f"{weights.source} is not a complete VGG: {name} is {kernel}, which is no kernel"
            )
        kernel_inputs = int(np.prod(kernel[:-1]))
        # fc1 sees a feature map of any size. A convolution's kernel states its channels.
        fits = kernel_inputs % inputs == 0 if name == "fc1" else kernel_inputs == inputs
        if not fits or (len(kernel) == 4 and kernel[2] != inputs):
            problems.append(f"{name} is {kernel}, for {inputs} channels")
        expected[name] = [kernel, (kernel[-1],)]
        inputs = kernel[-1]
    problems += [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"left over {name}" for name in tensors if name not in expected]
    for name in expected.keys() & tensors.keys():
        shapes = [tuple(value.shape) for value in tensors[name]]
        if shapes != [tuple(shape) for shape in expected[name]]:
            problems.append(f"{name} is {shapes}, should be {expected[name]}")
    if problems:
        raise ValueError(f"{weights.source} is not a complete VGG: {'; '.join(sorted(problems))}")


def _side(weights: Weights, filters: int) -> int | None:
    """Return the side of the images that the classifier is for; None if they are not square."""
    kernel = weights.tensors["fc1"][0].shape
    if len(kernel) == 4:
        cells, is_square = kernel[0], kernel[0] == kernel[1]
    else:
        cells = math.isqrt(kernel[0] // filters)
        is_square = cells * cells * filters == kernel[0]
    if not is_square:
        return None
    # A side of 250 has as many cells as one of 224; only a file with its network states which.
    stated = weights.side
    return stated if stated is not None and stated // 32 == cells else 32 * cells


def _width(paper: Sequence[int], all_widths: Sequence[int]) -> float | None:
    """Return the multiplier of the paper's widths that gives these, in few digits; None if none.

    Widths are rounded, so several multipliers fit.
    """
    exact = all_widths[paper.index(512)] / 512
    is_short = round(exact, 4) == exact
    for width in (*([exact] if is_short else []), round(exact, 2), round(exact, 3), exact):
        scaled = [scaled_width(base, width) for base in paper] if width else []
        if scaled == list(all_widths):
            return width
    return None


def build(
    weights: Weights, include_preprocessing: bool = False, side: int | None = None
) -> keras.Model:
    """Return the network that the weights belong to.

    Args:
        weights: The weights.
        include_preprocessing: As in `vgg`.
        side: The side of the images in pixels. None: that of the classifier; without one, any.
    """
    network = recognise(weights)
    if network.head == "fc" and network.side is None:
        raise ValueError(
            f"the classifier of {weights.source} is not for square images, so no network can be "
            "built for it: write .safetensors or .h5"
        )
    if weights.unlike:
        raise ValueError(
            f"{weights.source} has {weights.unlike}, so another network than this package's: keep "
            "the .keras file, or write the weights alone as .safetensors or .h5"
        )
    side = side or network.side  # None means any size
    preprocessing = include_preprocessing and weights.preprocessing
    if preprocessing is None:
        raise ValueError(weights.input_advice(network.include_top))
    # Without the preprocessing, the network for grey images takes three channels.
    channels = network.channels
    if preprocessing is False:
        channels = weights.tensors["block1_conv1"][0].shape[2]
    options = {}
    if network.hidden_units:
        options["hidden_units"] = network.hidden_units
    if network.include_top:
        options |= {"head": network.head, "classes": network.classes}
        activation = "sigmoid" if weights.several_labels else "softmax"
        options["classifier_activation"] = None if weights.logits else activation
    model = vgg(
        network.configuration,
        weights=None,
        include_top=network.include_top,
        input_shape=(side, side, channels),
        batch_norm=network.batch_norm,
        width_multiplier=network.width_multiplier,
        filters=network.filters,
        include_preprocessing=preprocessing,
        **options,
    )
    weight_files.assign(model, weights)
    return model


def convert_weights(
    source: str | Path,
    target: str | Path,
    naming: str = "torchvision",
    overwrite: bool = False,
    preprocessing: str | None = None,
    include_top: bool = True,
) -> Network:
    """Write a weight file's tensors in another format; every weight stays the same, bit by bit.

    Keras 3's formats hold float32. PyTorch's counters of batch normalisation are no weights: they
    become 0. In Keras' formats, a convolutional head becomes the same head of dense layers. Only
    `.keras` and `.safetensors` state that a network ends in sigmoids, as one of several labels an
    image, or that it has local response normalisation; for another format, the note of the result
    says so.

    Args:
        source: As `keras_vgg.weights.read_weights`.
        target: The file to write. Its suffix decides the format: `.weights.h5` (Keras 3), `.keras`
            (Keras 3, with the network, and its preprocessing if the source states one), `.h5` (the
            layout of keras.applications' files), `.safetensors` or `.pth` (PyTorch's).
        naming: Names of the tensors in PyTorch's formats, "torchvision" or "timm".
        overwrite: Replace an existing file.
        preprocessing: The input that the network expects, "caffe" or "torchvision", for a source
            that does not state it: Keras' `.h5` and `.weights.h5`, and PyTorch's files, for which
            torchvision's is assumed. Only `.keras` and `.safetensors` keep it.
        include_top: False leaves out all layers but the convolutions and their batch normalisation,
            whatever head the source has.

    Returns:
        The network that the weights belong to.

    Raises:
        FileNotFoundError, ValueError: as `read_weights` and `recognise`, or the target exists or
            has none of the suffixes. Then nothing is written.
    """
    target = Path(target)
    suffix = next((s for s in SUFFIXES if target.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{target} must end in one of {', '.join(SUFFIXES)}")
    if naming not in torch_naming.NAMINGS:
        raise ValueError(f"naming must be one of {', '.join(torch_naming.NAMINGS)}, not {naming!r}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; pass overwrite=True (--overwrite) to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    weights = weight_files.read_weights(source, include_top)
    if preprocessing is not None:
        weights = _with_preprocessing(weights, preprocessing)
    try:
        network = recognise(weights)
    except ValueError as error:
        if include_top and len(weights.base().tensors) < len(weights.tensors):
            raise ValueError(
                f"{error}; include_top=False (--no-include-top) converts the convolutions alone"
            ) from error
        raise
    several_labels = weights.several_labels and network.include_top
    has_logits = weights.logits and network.include_top
    activation = "sigmoid" if several_labels else "linear" if has_logits else None
    stated = {"activation": activation} if activation else {}
    stated |= {"lrn": "true"} if weights.lrn else {}
    stated |= {"color": "grey"} if weights.grey else {}
    stated |= {"side": str(weights.side)} if weights.side else {}
    write_atomically(target, lambda path: _save(weights, path, suffix, naming, stated))
    if suffix in _STATING_SUFFIXES:
        return network
    if several_labels:
        weights = weights.with_note(
            f"{target} does not state that the network ends in sigmoids: a network that is built "
            "from the file gives an image one label; .keras and .safetensors state it"
        )
    if weights.lrn:
        weights = weights.with_note(
            f"{target} does not state that the network has local response normalisation: build "
            "configuration A-LRN for the file; .keras and .safetensors state it"
        )
    return dataclasses.replace(network, note=weights.note)


def _with_preprocessing(weights: Weights, preprocessing: str) -> Weights:
    if preprocessing not in MODES:
        raise ValueError(f"preprocessing must be one of {', '.join(MODES)}, not {preprocessing!r}")
    weight_files.check_preprocessing(MODES[preprocessing](), weights, 3)
    if weights.preprocessing is not None and not weights.assumed:
        return weights
    kernels = weights.tensors.get("block1_conv1", [])
    if kernels and kernels[0].ndim == 4 and kernels[0].shape[2] != 3:
        raise ValueError(
            f"{weights.source} is for images of {kernels[0].shape[2]} channels, and preprocessing "
            f"{preprocessing} for three; omit preprocessing"
        )
    return dataclasses.replace(weights, preprocessing=MODES[preprocessing](), assumed=False)


def _save(
    weights: Weights, path: Path, suffix: str, naming: str, stated: Mapping[str, str]
) -> None:
    if suffix == ".h5":
        keras_format.write_legacy(weights.tensors, path)
    elif suffix == ".weights.h5":
        build(weights).save_weights(path)
    elif suffix == ".keras":
        build(weights, weights.preprocessing is not None).save(path)
    elif suffix == ".safetensors":
        torch_format.write_safetensors(weights.tensors, path, naming, weights.preprocessing, stated)
    else:
        torch_format.write_pth(weights.tensors, path, naming, weights.preprocessing)


def describe(network: Network) -> str:
    """Return a description such as "VGG16 (configuration D), batch norm, 1000 classes"."""
    body = architecture.describe(
        network.configuration, network.width_multiplier, network.filters, network.batch_norm
    )
    classes = f"{network.classes} classes" if network.include_top else "no classifier"
    return f"{body}, {classes}"

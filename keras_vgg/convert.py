"""A weight file in one format -> the same weights in another."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import keras
import numpy as np

from keras_vgg import weights as weight_files
from keras_vgg.architecture import CONFIGURATIONS, convolutions, get_configuration, scaled_width
from keras_vgg.files import write_atomically
from keras_vgg.imagenet import MODES
from keras_vgg.models import vgg
from keras_vgg.weights import TOP, Weights, keras_format, torch_format

SUFFIXES = (".weights.h5", ".h5", ".keras", ".safetensors", ".pth")


@dataclasses.dataclass(frozen=True)
class Network:
    """What a file's tensors are the weights of, as far as they tell.

    A has the same tensors as A-LRN. `side` is the classifier's training image, in pixels, and like
    `hidden_units` and `classes` None without the classifier.
    """

    configuration: str
    width_multiplier: float
    batch_norm: bool
    include_top: bool
    head: str | None
    channels: int
    hidden_units: int | None
    classes: int | None
    side: int | None


def recognise(weights: Weights) -> Network:
    """Which VGG the weights are.

    Raises:
        ValueError: none of the paper's configurations has these layers.
    """
    tensors = weights.tensors
    found = {n: v[0].shape for n, v in tensors.items() if re.fullmatch(r"block\d_conv\d", n)}
    for name in ["A-LRN"] if weights.lrn else CONFIGURATIONS:
        expected = list(convolutions(name))
        if {n: s[0] for n, s in found.items()} != {n: kernel for n, kernel, _ in expected}:
            continue
        width = _width({filters: found[n][3] for n, _, filters in expected})
        if width is None:
            continue
        top = [n for n in TOP if n in tensors]
        if top not in ([], ["predictions"], list(TOP)):
            raise ValueError(f"{weights.source} has only {', '.join(top)} of the classifier")
        full = len(top) == len(TOP)
        filters = found[expected[-1][0]][3]
        _check_shapes(weights, [n for n, _, _ in expected])
        return Network(
            configuration=name,
            width_multiplier=width,
            batch_norm="block1_conv1_bn" in tensors,
            include_top=bool(top),
            head=("fc" if full else "gap") if top else None,
            channels=found["block1_conv1"][2],
            hidden_units=tensors["fc1"][1].shape[0] if full else None,
            classes=tensors["predictions"][1].shape[0] if top else None,
            side=_side(weights, filters) if full else None,
        )
    listed = ", ".join(sorted(tensors)[:12])
    raise ValueError(f"{weights.source} is none of the paper's configurations; it holds {listed}")


def _check_shapes(weights: Weights, convolutions: list[str]) -> None:
    """Every tensor that the network has, in its shape, and no other; ValueError lists the rest."""
    tensors = weights.tensors
    norm = "block1_conv1_bn" in tensors
    channels = tensors["block1_conv1"][0].shape[2]
    wanted: dict[str, list[tuple[int, ...]]] = {}
    for name in convolutions:
        kernel = tensors[name][0].shape
        filters = kernel[3]
        wanted[name] = [(*kernel[:2], channels, filters), (filters,)]
        if norm:
            wanted[f"{name}_bn"] = [(filters,)] * 4
        channels = filters
    problems = []
    inputs = channels
    for name in (n for n in TOP if n in tensors):
        kernel = tensors[name][0].shape
        given = int(np.prod(kernel[:-1]))
        # fc1 sees a map of any size; a convolution's channels stand by themselves.
        fits = given % inputs == 0 if name == "fc1" else given == inputs
        if not fits or len(kernel) not in (2, 4) or (len(kernel) == 4 and kernel[2] != inputs):
            problems.append(f"{name} is {kernel}, for {inputs} channels")
        wanted[name] = [kernel, (kernel[-1],)]
        inputs = kernel[-1]
    problems += [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"left over {name}" for name in tensors if name not in wanted]
    for name in wanted.keys() & tensors.keys():
        shapes = [tuple(value.shape) for value in tensors[name]]
        if shapes != [tuple(shape) for shape in wanted[name]]:
            problems.append(f"{name} is {shapes}, should be {wanted[name]}")
    if problems:
        raise ValueError(f"{weights.source} is no whole VGG: {'; '.join(sorted(problems))}")


def _side(weights: Weights, filters: int) -> int | None:
    """Side of the images that the classifier is for; None where they are not square."""
    kernel = weights.tensors["fc1"][0].shape
    if len(kernel) == 4:
        return 32 * kernel[0] if kernel[0] == kernel[1] else None
    side = math.isqrt(kernel[0] // filters)
    return 32 * side if side * side * filters == kernel[0] else None


def _width(filters: dict[int, int]) -> float | None:
    """The multiplier that makes these filters of the paper's, in few digits; widths are rounded."""
    exact = filters[512] / 512
    short = [exact] if round(exact, 4) == exact else []
    for width in (*short, round(exact, 2), round(exact, 3), exact):
        if all(width and scaled_width(base, width) == f for base, f in filters.items()):
            return width
    return None


def build(weights: Weights, include_preprocessing: bool = False) -> keras.Model:
    """The network that the weights are of, with them; `include_preprocessing` as in `vgg`."""
    network = recognise(weights)
    if network.head == "fc" and network.side is None:
        raise ValueError(
            f"the classifier of {weights.source} is not for square images; no network can be built "
            "for it here: write .safetensors or .h5"
        )
    side = network.side  # None: any size will do
    preprocessing = include_preprocessing and weights.preprocessing
    if preprocessing is None:
        raise ValueError(f"{weights.source} does not say which input its network was trained on")
    options = {}
    if network.hidden_units:
        options["hidden_units"] = network.hidden_units
    if network.include_top:
        options |= {"head": network.head, "classes": network.classes}
        options["classifier_activation"] = None if weights.logits else "softmax"
    model = vgg(
        network.configuration,
        weights=None,
        include_top=network.include_top,
        input_shape=(side, side, network.channels),
        batch_norm=network.batch_norm,
        width_multiplier=network.width_multiplier,
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
) -> Network:
    """Write a weight file's tensors in another format; every weight stays the same, bit by bit.

    PyTorch's counters of batch normalisation, which are no weights, become 0, and Keras 3's
    formats hold float32. A head of convolutions becomes the same one of dense layers in Keras'.

    Args:
        source: As `keras_vgg.weights.read_weights`.
        target: Its suffix decides the format: `.weights.h5` and `.keras` (Keras 3; the latter with
            the network, and its preprocessing where the source says which), `.h5` (the layout of
            keras.applications' files), `.safetensors` or `.pth` (PyTorch's).
        naming: For PyTorch's, "torchvision" or "timm".
        overwrite: Replace a file that is there.
        preprocessing: "caffe" or "torchvision", what the network expects where the source does not
            say, as Keras' `.h5` and `.weights.h5` do not. Only `.keras` and `.safetensors` keep it.

    Returns:
        Which network it is.

    Raises:
        FileNotFoundError, ValueError: as `read_weights` and `recognise`, or a target that exists
            or has none of the suffixes. Nothing is written then.
    """
    target = Path(target)
    suffix = next((s for s in SUFFIXES if target.name.endswith(s)), None)
    if suffix is None:
        raise ValueError(f"{target} must end in one of {', '.join(SUFFIXES)}")
    if naming not in torch_format.NAMINGS:
        raise ValueError(f"naming must be one of {', '.join(torch_format.NAMINGS)}, not {naming!r}")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; pass overwrite to replace it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    weights = weight_files.read_weights(source)
    if preprocessing is not None:
        weights = _told(weights, preprocessing)
    network = recognise(weights)
    write_atomically(target, lambda path: _save(weights, path, suffix, naming))
    return network


def _told(weights: Weights, preprocessing: str) -> Weights:
    if preprocessing not in MODES:
        raise ValueError(f"preprocessing must be one of {', '.join(MODES)}, not {preprocessing!r}")
    if weights.preprocessing is not None:
        raise ValueError(f"{weights.source} says itself what its network expects")
    return dataclasses.replace(weights, preprocessing=MODES[preprocessing]())


def _save(weights: Weights, path: Path, suffix: str, naming: str) -> None:
    if suffix == ".h5":
        keras_format.write_legacy(weights.tensors, path)
    elif suffix == ".weights.h5":
        build(weights).save_weights(path)
    elif suffix == ".keras":
        build(weights, weights.preprocessing is not None).save(path)
    elif suffix == ".safetensors":
        torch_format.write_safetensors(weights.tensors, path, naming, weights.preprocessing)
    else:
        torch_format.write_pth(weights.tensors, path, naming, weights.preprocessing)


def describe(network: Network) -> str:
    """Such as "VGG16 (configuration D), batch norm, 1000 classes"."""
    found = get_configuration(network.configuration)
    parts = [f"{found.builder} (configuration {found.name})"]
    if network.width_multiplier != 1:
        parts.append(f"width {network.width_multiplier:g}")
    if network.batch_norm:
        parts.append("batch norm")
    parts.append(f"{network.classes} classes" if network.include_top else "no classifier")
    return ", ".join(parts)

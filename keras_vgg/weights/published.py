"""The published ImageNet checkpoints of VGG: their files, accuracies and preprocessing."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from keras_vgg.architecture import get_configuration, layers

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One published file.

    `top1` and `top5` are the published accuracies in percent (centre crop, single model). A file
    without the classifier has the accuracies of the network with the classifier.
    """

    source: str
    """"keras" or "torchvision"."""
    configuration: str
    batch_norm: bool
    include_top: bool
    location: str
    """URL of the file, or the repository on the Hugging Face hub."""
    file: str
    """Name of the file at its location and in the cache."""
    hash: str | None
    """"md5:..." or "sha256:..."; None if the hub's own hash is compared."""
    licence: str
    preprocessing: str
    """Preprocessing of the training images, "caffe" or "torchvision"; see `ImagePreprocessing`."""
    top1: float
    top5: float
    classes: int = 1000

    @property
    def on_hub(self) -> bool:
        return not self.location.startswith("http")

    @property
    def parameters(self) -> int:
        rows = layers(self.configuration, include_top=self.include_top, batch_norm=self.batch_norm)
        return sum(row.parameters for row in rows)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors, 4 for each number; the file is some kilobytes larger."""
        return 4 * self.parameters

    @property
    def network(self) -> str:
        """The network's name, such as "VGG16, batch norm"."""
        builder = get_configuration(self.configuration).builder
        return f"{builder}{', batch norm' if self.batch_norm else ''}"

    @property
    def name(self) -> str:
        """The checkpoint's name, such as "VGG16, batch norm, from torchvision"."""
        return f"{self.network}, from {self.source}"


def _keras(configuration: str, number: int, top1: float, top5: float, *md5: str):
    for top, digest in zip((True, False), md5, strict=True):
        kernels = "weights_tf_dim_ordering_tf_kernels" + ("" if top else "_notop")
        file = f"vgg{number}_{kernels}.h5"
        yield Checkpoint(
            source="keras",
            configuration=configuration,
            batch_norm=False,
            include_top=top,
            location=f"{_KERAS}vgg{number}/{file}",
            file=file,
            hash=f"md5:{digest}",
            licence="CC BY 4.0 (University of Oxford)",
            preprocessing="caffe",
            top1=top1,
            top5=top5,
        )


def _torchvision(
    configuration: str, name: str, top1: float, top5: float, sha256: str | None = None
) -> Checkpoint:
    return Checkpoint(
        source="torchvision",
        configuration=configuration,
        batch_norm=name.endswith("_bn"),
        include_top=True,
        location=f"timm/{name}.tv_in1k",
        file="model.safetensors",
        hash=f"sha256:{sha256}" if sha256 else None,
        licence="BSD-3-Clause (torchvision)",
        preprocessing="torchvision",
        top1=top1,
        top5=top5,
    )


# The accuracies are from keras.applications' and torchvision's tables (centre crop, 224 of 256).
CHECKPOINTS: tuple[Checkpoint, ...] = (
    *_keras(
        *("D", 16, 71.3, 90.1),
        "64373286793e3c8b2b4e3219cbf3544b",
        "6d6bbae143d832006294945121d1f1fc",
    ),
    *_keras(
        *("E", 19, 71.3, 90.0),
        "cbe5617147190e668d6c5d5026f83318",
        "253f8cb515780f3b799900260a226db6",
    ),
    _torchvision(
        *("A", "vgg11", 69.020, 88.628),
        "682c023808812148d4e60c76d80ad83dbeaf5d50eb1a952a0b836895003151e5",
    ),
    _torchvision("A", "vgg11_bn", 70.370, 89.810),
    _torchvision("B", "vgg13", 69.928, 89.246),
    _torchvision(
        *("B", "vgg13_bn", 71.586, 90.374),
        "7dae235e35772693cd527e7ac9ef8f6594707a14a8d26aabdb83c0baa6847861",
    ),
    _torchvision(
        *("D", "vgg16", 71.592, 90.382),
        "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",
    ),
    _torchvision(
        *("D", "vgg16_bn", 73.360, 91.516),
        "88bbedbc8e780413736db38ac4efd41b06fc0e93fd5b8879b584bba63a950129",
    ),
    _torchvision(
        *("E", "vgg19", 72.376, 90.876),
        "11aea017b543ff59233749d8f1cf544cda749378f5790d2fedab841fb86b7669",
    ),
    _torchvision(
        *("E", "vgg19_bn", 74.218, 91.842),
        "f8249087e63bae61c6166bb23d7c26efe1b2a43fd9fb5cd60ac6ce00535ba312",
    ),
)

# The names that `weights=` accepts, and the sources of each name, best known first.
NAMES = {"imagenet": ("keras", "torchvision"), "torchvision": ("torchvision",)}


def find(name: str, configuration: str, batch_norm: bool, include_top: bool) -> Checkpoint:
    """Return the published checkpoint that `weights=name` means for a network.

    Args:
        name: "imagenet" or "torchvision".
        configuration: "A" ... "E", or a builder's name.
        batch_norm: Whether the network has batch normalisation.
        include_top: Whether the classifier is needed. If not, and only a file with the classifier
            is published, that file is returned, and the caller ignores its classifier.

    Raises:
        ValueError: no checkpoint of the network is published, or the name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"weights must be one of {', '.join(map(repr, NAMES))}, not {name!r}")
    architecture = get_configuration(configuration)
    for source in NAMES[name]:
        fitting = [
            c
            for c in CHECKPOINTS
            if (c.source, c.configuration, c.batch_norm) == (source, architecture.name, batch_norm)
            and (c.include_top or not include_top)
        ]
        if fitting:
            return min(fitting, key=lambda c: c.bytes)
    norm = " with batch normalisation" if batch_norm else ""
    raise ValueError(
        f"no ImageNet weights of {architecture.builder} (configuration {architecture.name}){norm} "
        f"are published for weights={name!r}; A, B, D and E have weights (`keras-vgg "
        "weights` lists them). Pass weights=None and train the network"
    )


def hub_repository(path: str | Path) -> str | None:
    """Return OWNER/NAME for hf://OWNER/NAME; None for a path.

    A Path has one slash where the text has two.
    """
    match = re.fullmatch("hf://?(.*)", str(path), re.DOTALL)
    return match[1] if match else None

"""The perceptual losses of well-known papers: which layers, which weights, which distance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Setting:
    """A published perceptual loss.

    Attributes:
        network: The configuration of the paper's VGG: "D" is VGG-16, "E" is VGG-19.
        layers: Name of a layer -> weight of the distance of its features.
        style_layers: Name of a layer -> weight of the distance of its Gram matrices.
        distance: "l2" (squared) or "l1" (absolute).
        source: The paper, and the part of it.
        note: What others do, or what the paper leaves open.
    """

    network: str
    layers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    style_layers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    distance: Literal["l2", "l1"] = "l2"
    source: str = ""
    note: str = ""


_SRGAN = "Ledig et al., arXiv:1609.04802, section 2.2.1, equation 5 (VGG54)"
_JOHNSON = "Johnson et al., arXiv:1603.08155, sections 3 and 4"

SETTINGS: dict[str, Setting] = {
    "srgan": Setting(
        "E",
        # The paper divides the features by 12.75, which the square makes 0.00615.
        layers={"block5_conv4:post": 1 / 12.75**2},
        source=_SRGAN,
        note="After the ReLU, as the paper says ('after activation'). Implementations differ: "
        "several take the values before the ReLU, as ESRGAN; the setting srgan_pre does so. The "
        "paper sums over the channels or leaves them out; like most code, this takes the mean.",
    ),
    "srgan_pre": Setting(
        "E",
        layers={"block5_conv4:pre": 1 / 12.75**2},
        source=_SRGAN,
        note="Before the ReLU, as several implementations read the paper.",
    ),
    "esrgan": Setting(
        "E",
        layers={"block5_conv4:pre": 1.0},
        distance="l1",
        source="Wang et al., arXiv:1809.00219, section 3.3 (VGG19-54 before activation)",
        note="The paper does not name the distance; the authors' code takes L1.",
    ),
    "pix2pixhd": Setting(
        "E",
        layers={
            "block1_conv1:post": 1 / 32,
            "block2_conv1:post": 1 / 16,
            "block3_conv1:post": 1 / 8,
            "block4_conv1:post": 1 / 4,
            "block5_conv1:post": 1.0,
        },
        distance="l1",
        source="Wang et al., arXiv:1711.11585, section 3.5; the weights are in the authors' code",
        note="relu1_1 to relu5_1 with 1/32, 1/16, 1/8, 1/4 and 1. The authors multiply the loss by "
        "10, and feed images in [-1, 1] to torchvision's network without its normalisation; here "
        "images are preprocessed as the network expects.",
    ),
    "johnson": Setting(
        "D",
        layers={"block2_conv2:post": 1.0},
        source=_JOHNSON,
        note="The feature reconstruction loss at relu2_2, for super-resolution and for the content "
        "of a style transfer. The authors' released code takes relu3_3 for the content.",
    ),
    "johnson_style": Setting(
        "D",
        style_layers={
            "block1_conv2:post": 1.0,
            "block2_conv2:post": 1.0,
            "block3_conv3:post": 1.0,
            "block4_conv3:post": 1.0,
        },
        source=_JOHNSON,
        note="The style reconstruction loss at relu1_2, relu2_2, relu3_3 and relu4_3: the squared "
        "Frobenius norm of the difference of the Gram matrices. y_true is the style image.",
    ),
}

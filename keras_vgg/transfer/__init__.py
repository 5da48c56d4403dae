"""Transfer learning: features, image descriptors, frozen blocks, probes, perceptual losses."""

from keras_vgg.transfer.descriptors import embed
from keras_vgg.transfer.features import feature_extractor, freeze
from keras_vgg.transfer.perceptual import PerceptualLoss
from keras_vgg.transfer.probe import LinearProbe, linear_probe

__all__ = [
    "LinearProbe",
    "PerceptualLoss",
    "embed",
    "feature_extractor",
    "freeze",
    "linear_probe",
]

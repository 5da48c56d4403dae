"""Transfer learning: features, image descriptors, frozen blocks, probes."""

from keras_vgg.features import feature_extractor
from keras_vgg.perceptual import PerceptualLoss as PerceptualLoss  # its home until 0.2
from keras_vgg.transfer.descriptors import embed, region_descriptors
from keras_vgg.transfer.freezing import freeze
from keras_vgg.transfer.pooling import generalized_mean, region_maxima, regions
from keras_vgg.transfer.probe import LinearProbe, linear_probe

__all__ = [
    "LinearProbe",
    "embed",
    "feature_extractor",
    "freeze",
    "generalized_mean",
    "linear_probe",
    "region_descriptors",
    "region_maxima",
    "regions",
]

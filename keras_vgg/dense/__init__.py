"""Dense networks on a VGG: feature pyramids, segmentation, edges, and detectors' backbones.

`pyramid` names the feature maps of a VGG by their strides.
"""

from keras_vgg.dense.pyramid import FeaturePyramid, pyramid

__all__ = ["FeaturePyramid", "pyramid"]

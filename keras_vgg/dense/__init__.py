"""Dense networks on a VGG: feature pyramids, segmentation, edges, and detectors' backbones.

`pyramid` names the feature maps of a VGG by their strides. `fcn` and `unet` name the class of every
pixel. `hed` draws edges. `reduced_fc` and `ssd300` build what DeepLab and SSD detect with.
"""

from keras_vgg.dense.detection import (
    L2Normalization,
    decimated,
    reduced_fc,
    ssd300,
    ssd300_tensors,
)
from keras_vgg.dense.edges import hed
from keras_vgg.dense.pyramids import FeaturePyramid, pyramid
from keras_vgg.dense.resampling import BilinearInitializer, CropLike, Enlarge, ResizeLike
from keras_vgg.dense.segmentation import fcn, unet

__all__ = [
    "BilinearInitializer",
    "CropLike",
    "Enlarge",
    "FeaturePyramid",
    "L2Normalization",
    "ResizeLike",
    "decimated",
    "fcn",
    "hed",
    "pyramid",
    "reduced_fc",
    "ssd300",
    "ssd300_tensors",
    "unet",
]

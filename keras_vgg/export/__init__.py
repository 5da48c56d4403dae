"""Write a Keras model as files that serve without Keras, and verify each file on images.

Every file takes what the model takes, RGB images in [0, 255], and answers what the model answers,
because preprocessing is the model's first layer. A file is kept only if it ran on real images in a
process of its own and answered like the model.
"""

from keras_vgg.export.exporting import export
from keras_vgg.export.formats import DEFAULT_FORMATS, FORMATS, INTEGER_FORMATS, check_formats
from keras_vgg.export.verify import TOLERANCE, Artifact, ExportError

__all__ = [
    "DEFAULT_FORMATS",
    "FORMATS",
    "INTEGER_FORMATS",
    "TOLERANCE",
    "Artifact",
    "ExportError",
    "check_formats",
    "export",
]

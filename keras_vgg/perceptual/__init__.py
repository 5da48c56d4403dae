"""How alike two images look, and style: perceptual losses, LPIPS, DISTS, style transfer.

Everything here runs on TensorFlow, JAX and PyTorch, and gives gradients.
"""

from keras_vgg.perceptual.descent import Step, stylize
from keras_vgg.perceptual.dists import DISTS
from keras_vgg.perceptual.fast_style import StyleTransferLoss, style_network
from keras_vgg.perceptual.gram import gram_matrix
from keras_vgg.perceptual.loss import PerceptualLoss
from keras_vgg.perceptual.lpips import LPIPS
from keras_vgg.perceptual.settings import SETTINGS, Setting
from keras_vgg.perceptual.style import Losses, StyleObjective, content_loss, style_loss

__all__ = [
    "DISTS",
    "LPIPS",
    "SETTINGS",
    "Losses",
    "PerceptualLoss",
    "Setting",
    "Step",
    "StyleObjective",
    "StyleTransferLoss",
    "content_loss",
    "gram_matrix",
    "style_loss",
    "style_network",
    "stylize",
]

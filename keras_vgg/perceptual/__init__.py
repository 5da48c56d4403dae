"""How alike two images look: perceptual losses, LPIPS and DISTS, arrays or tensors in.

Everything here runs on TensorFlow, JAX and PyTorch, and gives gradients.
"""

from keras_vgg.perceptual.dists import DISTS
from keras_vgg.perceptual.gram import gram_matrix
from keras_vgg.perceptual.loss import PerceptualLoss
from keras_vgg.perceptual.lpips import LPIPS
from keras_vgg.perceptual.settings import SETTINGS, Setting

__all__ = ["DISTS", "LPIPS", "SETTINGS", "PerceptualLoss", "Setting", "gram_matrix"]

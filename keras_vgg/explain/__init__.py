"""Explanations of a model's answers: heat maps, feature maps, images for filters.

No function trains or changes a model. All run on TensorFlow, JAX and PyTorch.
"""

from keras_vgg.explain.cam import grad_cam
from keras_vgg.explain.features import activation_maximization, feature_maps
from keras_vgg.explain.gradient_maps import saliency
from keras_vgg.explain.heat import overlay
from keras_vgg.explain.occlusion import occlusion_sensitivity

__all__ = [
    "activation_maximization",
    "feature_maps",
    "grad_cam",
    "occlusion_sensitivity",
    "overlay",
    "saliency",
]

"""Why a model says what it says: heat on images, feature maps, what filters look for.

Nothing here trains or changes a model; TensorFlow, JAX and PyTorch all do.
"""

from keras_vgg.explain.cam import grad_cam
from keras_vgg.explain.heat import overlay

__all__ = ["grad_cam", "overlay"]

"""A local page that classifies the pictures dropped there with a run's network, and says why."""

from keras_vgg.demo.answer import Answer, Answerer
from keras_vgg.demo.server import serve, serving

__all__ = ["Answer", "Answerer", "serve", "serving"]

"""A page on which one drops a picture and sees what a run's network makes of it, and why."""

from keras_vgg.demo.answer import Answer, Answerer
from keras_vgg.demo.server import serve, serving

__all__ = ["Answer", "Answerer", "serve", "serving"]

"""What the server of tests/processes.py imports: all that train, tune and export import late."""

from keras_vgg import hardware

hardware.prepare_environment()  # imports TensorFlow

import keras_tuner  # noqa: E402, F401
import sklearn.datasets  # noqa: E402, F401

import keras_vgg.cli.train  # noqa: E402
import keras_vgg.export  # noqa: E402
import keras_vgg.fit  # noqa: E402
import keras_vgg.tuning  # noqa: E402, F401

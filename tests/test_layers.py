"""Response normalisation and preprocessing; this file runs on TensorFlow and on JAX."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg.layers import ImagePreprocessing, LocalResponseNormalization

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 3, 5, 64])
@pytest.mark.parametrize("depth_radius", [0, 2, 7])
def test_lrn_equals_tensorflows(channels, depth_radius):
    x = RNG.normal(0, 100, (2, 4, 5, channels)).astype("float32")
    y = keras.ops.convert_to_numpy(LocalResponseNormalization(depth_radius)(x))
    expected = tf.nn.lrn(x, depth_radius=depth_radius, bias=2, alpha=1e-4, beta=0.75).numpy()
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-6)


def test_lrn_other_constants_and_channels_first():
    x = RNG.normal(0, 10, (2, 4, 5, 6)).astype("float32")
    layer = LocalResponseNormalization(1, 1.5, 0.3, 0.5, data_format="channels_first")
    y = keras.ops.convert_to_numpy(layer(np.moveaxis(x, -1, 1)))
    expected = tf.nn.lrn(x, depth_radius=1, bias=1.5, alpha=0.3, beta=0.5).numpy()
    np.testing.assert_allclose(np.moveaxis(y, 1, -1), expected, rtol=2e-5, atol=1e-6)


def test_lrn_computes_in_float32_under_mixed_precision():
    # 1000^2 overflows float16.
    y = LocalResponseNormalization(dtype="mixed_float16")(np.full((1, 1, 1, 5), 1000, "float16"))
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    expected = 1000 * (2 + 1e-4 * 5e6) ** -0.75
    np.testing.assert_allclose(keras.ops.convert_to_numpy(y)[0, 0, 0, 2], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "layer",
    [
        LocalResponseNormalization(3, 1.0, 2e-4, 0.5, name="n"),
        ImagePreprocessing((1, 2, 3), (4, 5, 6), "bgr", name="p"),
    ],
    ids=["lrn", "preprocessing"],
)
def test_serialisation(layer):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    x = RNG.uniform(0, 255, (1, 2, 2, 3)).astype("float32")
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(layer(x)), keras.ops.convert_to_numpy(again(x))
    )


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_caffe_preprocessing(dtype):
    x = np.full((1, 1, 1, 3), 200, dtype)
    y = keras.ops.convert_to_numpy(ImagePreprocessing.caffe()(x))
    np.testing.assert_allclose(y[0, 0, 0], [96.061, 83.221, 76.32], rtol=1e-6)


def test_caffe_preprocessing_equals_keras_applications():
    x = RNG.uniform(0, 255, (2, 3, 4, 3)).astype("float32")
    expected = keras.applications.vgg16.preprocess_input(x.copy(), data_format="channels_last")
    y = keras.ops.convert_to_numpy(ImagePreprocessing.caffe(data_format="channels_last")(x))
    np.testing.assert_allclose(y, keras.ops.convert_to_numpy(expected), atol=1e-4)


def test_torchvision_preprocessing():
    x = np.array([[[[255, 0, 127.5]]]], "float32")
    y = keras.ops.convert_to_numpy(ImagePreprocessing.torchvision()(x))
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.5 - 0.406) / 0.225]
    np.testing.assert_allclose(y[0, 0, 0], expected, rtol=1e-5)


def test_preprocessing_channels_first():
    x = RNG.uniform(0, 255, (1, 4, 5, 3)).astype("float32")
    last = ImagePreprocessing((1, 2, 3), (4, 5, 6), "bgr", data_format="channels_last")
    first = ImagePreprocessing((1, 2, 3), (4, 5, 6), "bgr", data_format="channels_first")
    y = keras.ops.convert_to_numpy(first(np.moveaxis(x, -1, 1)))
    np.testing.assert_array_equal(np.moveaxis(y, 1, -1), keras.ops.convert_to_numpy(last(x)))


def test_preprocessing_of_another_number_of_channels():
    with pytest.raises(ValueError, match="is for 3 channels, but the input has 4"):
        ImagePreprocessing()(np.zeros((1, 2, 2, 4), "float32"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImagePreprocessing(channel_order="gbr"), "'rgb' or 'bgr', not 'gbr'"),
        (lambda: ImagePreprocessing(std=(1, 0, 1)), "std must be positive"),
        (lambda: LocalResponseNormalization(-1), "depth_radius must be 0 or more, not -1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()

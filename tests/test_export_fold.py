"""Folding batch normalisation and preprocessing into the kernels changes no answer."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from keras_vgg.export.fold import folded, in_float32
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.models import vgg

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.float32)


def randomised(model: keras.Model) -> keras.Model:
    """Statistics and biases other than those that do nothing."""
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 2, w.shape) for w in layer.get_weights()])
        elif layer.weights:
            values = [w + generator.normal(0, 0.05, w.shape) for w in layer.get_weights()]
            layer.set_weights(values)
    return model


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "configuration", ["A-LRN", *(pytest.param(c, marks=pytest.mark.slow) for c in "CD")]
)
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    "preprocessing",
    [ImagePreprocessing.torchvision(), True, ImagePreprocessing((9.0,), (50.0,), "bgr")],
    ids=["torchvision", "caffe", "one value"],
)
def test_outputs_are_equal(
    configuration: str, batch_norm: bool, preprocessing: bool | ImagePreprocessing
) -> None:
    keras.utils.set_random_seed(0)
    if preprocessing is not True:
        preprocessing = ImagePreprocessing.from_config(preprocessing.get_config())
    model = randomised(
        vgg(
            configuration,
            weights=None,
            input_shape=(32, 32, 3),
            classes=7,
            classifier_activation=None,
            width_multiplier=1 / 16,
            hidden_units=16,
            batch_norm=batch_norm,
            include_preprocessing=preprocessing,
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )
    )
    before = [w.copy() for w in model.get_weights()]

    lean = folded(model)

    kinds = {type(layer) for layer in lean.layers}
    assert layers.BatchNormalization not in kinds
    assert lean.layers[1].channel_order == "rgb"
    assert lean.layers[1].std == (1.0,)
    expected = np.asarray(model(IMAGES, training=False))
    scale = np.abs(expected).max()
    assert np.std(expected, axis=0).min() > 1e-4 * scale  # they depend on the image
    np.testing.assert_allclose(lean(IMAGES, training=False), expected, atol=1e-5 * scale)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the model is as it was


def test_a_convolution_without_bias_gets_one() -> None:
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(scale=False, center=False)(x)
    model = randomised(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))

    lean = folded(model)

    assert lean.get_layer("conv").use_bias
    np.testing.assert_allclose(lean(IMAGES), model(IMAGES, training=False), rtol=1e-4, atol=1e-4)


def used_twice(x):
    norm = layers.BatchNormalization()
    return layers.add([norm(layers.Conv2D(4, 3)(x)), norm(layers.Conv2D(4, 3)(x))])


def read_by_two(x):
    x = layers.Conv2D(4, 3)(x)
    return layers.add([layers.BatchNormalization()(x), x])


def after_an_activation(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))


def of_another_axis(x):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x))


@pytest.mark.parametrize("make", [used_twice, read_by_two, after_an_activation, of_another_axis])
def test_what_cannot_be_folded_stays(make) -> None:
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, make(inputs))

    assert folded(model) is model


def test_an_output_that_is_read_from_outside_stays() -> None:
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3)(inputs)
    model = keras.Model(inputs, [x, layers.BatchNormalization()(x)])

    assert folded(model) is model


def test_a_model_of_lower_precision_is_copied() -> None:
    inputs = keras.Input((32, 32, 3))
    inner_inputs = keras.Input((32, 32, 3))
    inner = layers.Conv2D(4, 3, dtype="mixed_bfloat16")(inner_inputs)
    inner = keras.Model(inner_inputs, layers.GlobalAveragePooling2D(dtype="bfloat16")(inner))
    mixed = keras.Model(inputs, layers.Dense(3, dtype="float32")(inner(inputs)))

    full = in_float32(mixed)

    assert full.layers[1].layers[1].compute_dtype == "float32"
    assert mixed.layers[1].layers[1].compute_dtype == "bfloat16"
    for new, old in zip(full.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert in_float32(full) is full


def test_operations_in_the_graph_stay() -> None:
    """x / 255, a + b and a ReLU are no layers."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(image / 255.0)
    x = keras.ops.relu(layers.BatchNormalization()(x))
    x = x + layers.Conv2D(4, 3, padding="same")(x)
    model = keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    model = randomised(model)
    lean = folded(model)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in lean.layers)
    np.testing.assert_allclose(lean(IMAGES), model(IMAGES), atol=1e-5)
    np.testing.assert_allclose(in_float32(model)(IMAGES), model(IMAGES), atol=1e-6)

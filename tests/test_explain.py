"""Heat: against gradients worked out by hand, in nested models, of nets that were trained."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_vgg import explain, vgg
from keras_vgg.explain import heat as heats
from keras_vgg.explain.network import opened


def small(configuration="A", head="gap", size=32, **options):
    options = {"classes": 5, "width_multiplier": 1 / 16, "hidden_units": 8, **options}
    return vgg(
        configuration,
        weights=None,
        input_shape=(size, size, 3),
        head=head,
        include_preprocessing=True,
        **options,
    )


def noise(count=3, size=64, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype("float32")


def values(tensor):
    return ops.convert_to_numpy(tensor)


def nested(model_of):
    """A base in a model, in a model."""
    base = vgg(
        "A", include_top=False, weights=None, input_shape=(64, 64, 3), width_multiplier=1 / 16
    )
    base.name = "base"
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(4, "softmax")]
    if model_of == "sequential":
        return keras.Sequential([keras.Input((64, 64, 3)), base, *head])
    if model_of == "functional":
        image = keras.Input((64, 64, 3))
        x = base(image)
        for layer in head:
            x = layer(x)
        return keras.Model(image, x)
    image = keras.Input((64, 64, 3))
    inner = keras.Sequential([keras.Input((64, 64, 3)), layers.Rescaling(1 / 255), base])
    inner.name = "inner"
    x = inner(image)
    for layer in head:
        x = layer(x)
    return keras.Model(image, x)


def test_grad_cam_is_cam_before_global_average_pooling():
    model, images = small("D", batch_norm=True, size=64), noise()
    found = explain.grad_cam(model, images, classes=[0, 3, 4], layer="block5_pool")
    maps = values(keras.Model(model.inputs, model.get_layer("block5_pool").output)([images]))
    weights = values(model.get_layer("predictions").kernel)[:, [0, 3, 4]]
    cam = np.maximum(np.einsum("nhwc,cn->nhw", maps, weights), 0)
    expected = [heats.scaled(heats.resized(one, (64, 64))) for one in cam]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    assert found.max() == 1
    assert len({one.tobytes() for one in found}) == 3


@pytest.mark.parametrize("model_of", ["sequential", "functional", "two levels"])
def test_a_layer_of_a_model_in_a_model(model_of):
    model, images = nested(model_of), noise()
    flat_image = keras.Input((64, 64, 3))
    base = model.get_layer("inner").get_layer("base") if model_of == "two levels" else None
    x = layers.Rescaling(1 / 255)(flat_image) if base else flat_image
    for layer in (base or model.get_layer("base")).layers[1:]:
        x = layer(x)
    for layer in model.layers[-3:]:
        x = layer(x)
    flat = keras.Model(flat_image, x)
    for layer in ("block5_conv1", "block3_pool"):
        path = f"base/{layer}"
        for method in ("grad-cam", "grad-cam++"):
            expected = explain.grad_cam(flat, images, layer=layer, method=method)
            found = explain.grad_cam(model, images, layer=path, method=method)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            assert found.max() == 1


def test_the_model_is_left_alone():
    model = nested("sequential")
    model.get_layer("base").trainable = False
    model.compile("sgd", "categorical_crossentropy")
    before = [values(w) for w in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.get_layer("base").layers]
    trainable = [layer.trainable for layer in model.layers]
    first = explain.grad_cam(model, noise())
    np.testing.assert_array_equal(explain.grad_cam(model, noise()), first)  # no dropout
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, values(new))
    assert [len(layer._inbound_nodes) for layer in model.get_layer("base").layers] == nodes
    assert [layer.trainable for layer in model.layers] == trainable
    model.fit(noise(), np.eye(4, dtype="float32")[:3], verbose=0)  # still compiled
    assert np.abs(explain.grad_cam(model, noise(), classes=1) - first).max() > 0  # new weights


def test_a_model_that_was_explained_is_freed():
    model = small()
    explain.grad_cam(model, noise(size=32))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_overlay():
    image = np.full((4, 6, 3), 100, "uint8")
    heat = np.zeros((4, 6), "float32")
    heat[0, 0], heat[3, 5] = 1, np.nan
    found = explain.overlay(image, heat, alpha=0.5)
    assert found.shape == (4, 6, 3)
    assert found.dtype == np.uint8
    lightness = found.astype(int).sum(-1)
    assert lightness[0, 0] > lightness[1, 1]
    assert found[3, 5].tolist() == [50, 50, 50]
    np.testing.assert_array_equal(explain.overlay(image[..., :1], heat), found)  # grey
    assert explain.overlay(image, heat[:2, :2]).shape == (4, 6, 3)
    np.testing.assert_array_equal(explain.overlay(image, np.zeros((2, 2)), alpha=0), image)


def test_default_layers():
    names = {
        "block5_conv2": small("A"),
        "block5_conv3": small("C", head="conv"),
        "block5_conv3_relu": small("D", head="fc", batch_norm=True),
        "base/block5_conv2": nested("sequential"),
    }
    for name, model in names.items():
        assert opened(model).place(None).path == name

"""Keras weight files, whole or not at all; this file runs on TensorFlow and on JAX."""

import h5py
import keras
import numpy as np
import pytest

import keras_vgg
from keras_vgg import models, weights

SMALL = {"width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7, "input_shape": (32, 32, 3)}


def small(configuration="A", **options):
    return models.vgg(configuration, weights=None, **(SMALL | options))


def save_legacy(model, path):
    """The layout in which keras.applications' files are published."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0".encode() for w in layer.weights]
            group.attrs["weight_names"] = names
            for name, w in zip(names, layer.weights, strict=True):
                group[name.decode()] = keras.ops.convert_to_numpy(w)


SAVE = {
    "vgg.h5": save_legacy,
    "vgg.weights.h5": lambda model, path: model.save_weights(path),
    "vgg.keras": lambda model, path: model.save(path),
}


@pytest.mark.parametrize("name", SAVE)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_format_loads_exactly(tmp_path, name, batch_norm):
    model = small(batch_norm=batch_norm)
    SAVE[name](model, tmp_path / name)
    again = small(batch_norm=batch_norm)
    keras_vgg.load_weights(again, tmp_path / name)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_optimiser_state_in_a_file_is_not_a_layer(tmp_path):
    model = small()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "a.weights.h5")
    keras_vgg.load_weights(small(), tmp_path / "a.weights.h5")


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"configuration": "B"}, ["missing block1_conv2", "missing block2_conv2"]),
        ({"include_top": False}, ["left over fc1", "left over predictions"]),
        ({"classes": 5}, [r"predictions is \[\(8, 7\), \(7,\)\], the model wants \[\(8, 5\)"]),
        ({"batch_norm": True}, ["missing block1_conv1_bn"]),
        ({"input_shape": (64, 64, 3)}, [r"fc1 is \[\(32, 8\)"]),
    ],
    ids=str,
)
def test_another_architecture_is_refused_and_nothing_is_loaded(tmp_path, options, messages):
    small().save_weights(tmp_path / "a.weights.h5")
    other = small(**options)
    before = other.get_weights()
    for message in [*messages, "nothing was loaded"]:
        with pytest.raises(ValueError, match=message):
            keras_vgg.load_weights(other, tmp_path / "a.weights.h5")
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_damaged_files(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("not weights")
    with pytest.raises(ValueError, match=r"text.h5 is not a readable Keras weight file"):
        weights.read_keras_weights(text)
    whole = tmp_path / "whole.weights.h5"
    small().save_weights(whole)
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes(whole.read_bytes()[:3000])
    with pytest.raises(ValueError, match="is not a readable Keras weight file"):
        weights.read_keras_weights(cut)
    empty = tmp_path / "empty.h5"
    h5py.File(empty, "w").close()
    with pytest.raises(ValueError, match="holds no layer weights"):
        weights.read_keras_weights(empty)
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        weights.read_keras_weights(tmp_path / "nowhere.h5")


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = small()
    model.get_layer("fc2").bias.assign(np.full(8, np.nan, "float32"))
    model.save_weights(tmp_path / "nan.weights.h5")
    with pytest.raises(ValueError, match="not finite in fc2"):
        keras_vgg.load_weights(small(), tmp_path / "nan.weights.h5")


def test_published_imagenet_convolutions(data_folder):
    """Oxford's VGG-16 convolutions give what keras.applications gives with them."""
    path = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ours = keras_vgg.VGG16(include_top=False, weights=path)
    theirs = keras.applications.VGG16(include_top=False, weights=path)
    x = np.random.default_rng(0).uniform(-120, 150, (1, 64, 96, 3)).astype("float32")
    expected = theirs.predict(x, verbose=0)
    assert expected.max() > 1  # trained features, not zeros
    np.testing.assert_allclose(ours.predict(x, verbose=0), expected, atol=1e-5)

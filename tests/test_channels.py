"""Weights for RGB in networks for grey images and for more channels; also run on JAX."""

import gc
import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_vgg
from keras_vgg import ImagePreprocessing, convert, models, weights
from keras_vgg.layers import bgr_order

BASE = {"include_top": False, "width_multiplier": 1 / 16}
SMALL = {"width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7}
RNG = np.random.default_rng(0)
ROOT = Path(__file__).parents[1]


def timms_rule(kernel, channels):
    """timm's documented rule, on [h, w, in, out]: sum for one channel, else repeat, cut, scale."""
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * math.ceil(channels / 3), axis=2)[:, :, :channels]
    return repeated * 3 / channels


@pytest.fixture(scope="module", params=["caffe", "torchvision"])
def rgb(request, tmp_path_factory):
    """A network for RGB with biases, of either preprocessing, and its file."""
    keras.utils.set_random_seed(1)
    preprocessing = getattr(ImagePreprocessing, request.param)(name="preprocessing")
    model = models.vgg(
        *("A", True, None),
        input_shape=(48, 32, 3),
        include_preprocessing=preprocessing,
        **SMALL,
    )
    model.get_layer("block1_conv1").bias.assign(RNG.normal(0, 1, 4))
    path = tmp_path_factory.mktemp("rgb") / "rgb.keras"
    model.save(path)
    return model, path


def kernel_of(model):
    return keras.ops.convert_to_numpy(model.get_layer("block1_conv1").kernel)


def grey_images(n=3, height=48, width=32):
    return RNG.integers(0, 256, (n, height, width, 1)).astype("float32")


def test_grey_equals_repeated_grey(rgb, tmp_path):
    model, path = rgb
    grey = models.vgg(
        "A", weights=path, input_shape=(48, 32, 1), include_preprocessing=True, **SMALL
    )
    assert grey.input_shape == (None, 48, 32, 1)
    images = grey_images()
    repeated = np.repeat(images, 3, axis=-1)
    np.testing.assert_allclose(grey(images), model(repeated), atol=1e-6)
    # The whole map, borders too: the mean is subtracted before zeros are padded.
    maps = [
        keras_vgg.feature_extractor(m, ["block1_conv1"])(x)["block1_conv1"]
        for m, x in ((grey, images), (model, repeated))
    ]
    ours, expected = map(keras.ops.convert_to_numpy, maps)
    np.testing.assert_allclose(ours, expected, atol=1e-6 * abs(expected).max())
    grey.save(tmp_path / "grey.keras")
    again = keras.saving.load_model(tmp_path / "grey.keras")
    np.testing.assert_array_equal(again(images), grey(images))
    loaded = weights.read_weights(tmp_path / "grey.keras")
    assert convert.recognise(loaded).channels == 1
    np.testing.assert_allclose(
        models.vgg(
            *("A", True, tmp_path / "grey.keras"),
            input_shape=(48, 32, 1),
            include_preprocessing=True,
            **SMALL,
        )(images),
        grey(images),
        atol=1e-7,
    )


def test_a_grey_network_is_rebuilt_from_its_file(tmp_path):
    """Conversion keeps the one channel in .keras; a file of tensors holds the three kernels."""
    source = models.vgg(
        "A", weights=None, input_shape=(32, 32, 3), include_preprocessing=True, **SMALL
    )
    source.save(tmp_path / "rgb.keras")
    grey = models.vgg(
        *("A", True, tmp_path / "rgb.keras"),
        input_shape=(32, 32, 1),
        include_preprocessing=True,
        **SMALL,
    )
    grey.save(tmp_path / "grey.keras")
    convert.convert_weights(tmp_path / "grey.keras", tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    images = grey_images(height=32)
    np.testing.assert_array_equal(again(images), grey(images))
    convert.convert_weights(tmp_path / "grey.keras", tmp_path / "tensors.weights.h5")
    kernel = weights.read_weights(tmp_path / "tensors.weights.h5").tensors["block1_conv1"][0]
    np.testing.assert_array_equal(kernel, kernel_of(source))


def test_grey_without_preprocessing_sums_the_kernels(rgb):
    _, path = rgb
    three = models.vgg("A", weights=path, **BASE)
    one = models.vgg("A", weights=path, input_shape=(None, None, 1), **BASE)
    np.testing.assert_allclose(kernel_of(one), timms_rule(kernel_of(three), 1), atol=1e-6)
    images = RNG.normal(0, 100, (2, 40, 56, 1)).astype("float32")
    expected = keras.ops.convert_to_numpy(three(np.repeat(images, 3, axis=-1)))
    np.testing.assert_allclose(one(images), expected, atol=1e-5 * expected.max())


@pytest.mark.fast_cases(8)
@pytest.mark.filterwarnings("ignore:images usually have")
@pytest.mark.parametrize("channels", [2, 4, 5, 6, 7])
@pytest.mark.parametrize("inside", [False, True])
def test_more_channels_repeat_the_kernels(rgb, channels, inside):
    model, path = rgb
    shape = (None, None, channels)
    base = models.vgg("A", weights=path, input_shape=shape, include_preprocessing=inside, **BASE)
    kernel = kernel_of(base)
    np.testing.assert_allclose(kernel, timms_rule(kernel_of(model), channels), atol=1e-6)
    np.testing.assert_array_equal(
        base.get_layer("block5_conv2").get_weights()[0],
        model.get_layer("block5_conv2").get_weights()[0],
    )
    if inside and channels == 6:  # twice the same picture is that picture
        images = RNG.uniform(0, 255, (2, 48, 32, 3)).astype("float32")
        three = models.vgg("A", weights=path, include_preprocessing=True, **BASE)
        expected = keras.ops.convert_to_numpy(three(images))
        twice = np.concatenate([images, images], axis=-1)
        np.testing.assert_allclose(base(twice), expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("mode", ["caffe", "torchvision"])
def test_each_channel_has_the_mean_of_its_kernel(mode):
    of_three = getattr(ImagePreprocessing, mode)()
    of_five = weights.preprocessing_for(of_three, 5)
    x = RNG.uniform(0, 255, (1, 2, 3, 5)).astype("float32")
    y = keras.ops.convert_to_numpy(of_five(x))
    # What each kernel of the three would see.
    swapped = mode == "caffe"
    for place, source in enumerate([2, 1, 0, 3, 4] if swapped else range(5)):
        plane = np.repeat(x[..., source : source + 1], 3, axis=-1)
        expected = keras.ops.convert_to_numpy(of_three(plane))[..., place % 3]
        np.testing.assert_allclose(y[..., place], expected, rtol=1e-6)


def test_bgr_reverses_each_three_channels():
    assert [bgr_order(n) for n in (1, 2, 3, 4)] == [[0], [0, 1], [2, 1, 0], [2, 1, 0, 3]]
    assert bgr_order(8) == [2, 1, 0, 5, 4, 3, 6, 7]
    x = np.arange(4.0, dtype="float32").reshape(1, 1, 1, 4)
    y = ImagePreprocessing((0,), (1,), "bgr")(x)
    np.testing.assert_array_equal(np.ravel(keras.ops.convert_to_numpy(y)), [2, 1, 0, 3])


def test_preprocessing_repeats_one_channel():
    layer = ImagePreprocessing.caffe()
    grey = RNG.integers(0, 256, (2, 3, 5, 1)).astype("uint8")
    expected = layer(np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(ImagePreprocessing.caffe()(grey), expected)
    first = ImagePreprocessing.caffe(data_format="channels_first")
    assert first.compute_output_shape((None, 1, 3, 5)) == (None, 3, 3, 5)
    np.testing.assert_array_equal(
        np.moveaxis(keras.ops.convert_to_numpy(first(np.moveaxis(grey, -1, 1))), 1, -1), expected
    )
    # One mean keeps one channel.
    assert ImagePreprocessing((127.5,), (127.5,))(grey).shape == (2, 3, 5, 1)
    with pytest.raises(ValueError, match="is for 3 channels, but the input has 1"):
        ImagePreprocessing((127.5,), (1, 2, 3))(grey)


def test_weights_for_one_channel_do_not_become_weights_for_three(tmp_path):
    one = models.vgg("A", weights=None, input_shape=(None, None, 1), **BASE)
    one.save(tmp_path / "one.keras")
    with pytest.raises(ValueError, match=r"block1_conv1 is \[\(3, 3, 1, 4\).*model wants"):
        models.vgg("A", weights=tmp_path / "one.keras", **BASE)
    loaded = weights.read_weights(tmp_path / "one.keras")
    assert weights.for_channels(loaded, 4) is loaded


def test_a_file_is_loaded_into_a_model_of_other_channels_as_a_builder_does(tmp_path):
    models.vgg("A", weights=None, **BASE).save_weights(tmp_path / "rgb.weights.h5")
    grey = BASE | {"input_shape": (None, None, 1)}
    expected = models.vgg("A", weights=tmp_path / "rgb.weights.h5", **grey)
    model = models.vgg("A", weights=None, **grey)
    loaded = weights.load_weights(model, tmp_path / "rgb.weights.h5")
    assert loaded.note.endswith("for 1 channel, block1_conv1 is the sum of the three kernels")
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_half_precision_is_summed_in_float32():
    kernel = RNG.normal(0, 1, (3, 3, 3, 8)).astype("float16")
    loaded = weights.Weights({"block1_conv1": [kernel, np.zeros(8, "float16")]}, "half")
    adapted = weights.for_channels(loaded, 1)
    assert adapted.tensors["block1_conv1"][0].dtype == "float32"
    assert adapted.note == "for 1 channel, block1_conv1 is the sum of the three kernels"
    assert loaded.note == ""


@pytest.mark.slow
def test_photographs_in_grey(data_folder):
    """Oxford's convolutions: grey photographs, and the same in three channels."""
    from keras_vgg import data

    path = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    files = sorted((data_folder / "imagenet_samples").glob("*.JPEG"))[:3]
    grey = models.vgg(*("D", False, path), input_shape=(None, None, 1), include_preprocessing=True)
    three = models.vgg("D", False, path, include_preprocessing=True)
    for file in files:
        image = data.load_image(file).astype("float32") @ np.float32([0.299, 0.587, 0.114])
        image = image[np.newaxis, :256, :320, np.newaxis]
        expected = three.predict(np.repeat(image, 3, axis=-1), verbose=0)
        difference = abs(grey.predict(image, verbose=0) - expected).max()
        assert difference <= 1e-5 * expected.max()
    del grey, three
    gc.collect()
    kernel = weights.read_weights(path).tensors["block1_conv1"][0]
    four = models.vgg("D", False, path, input_shape=(None, None, 4))
    np.testing.assert_allclose(kernel_of(four), timms_rule(kernel, 4), atol=1e-6)


TIMM = """
import numpy as np, torch
from tests.torchvision_names import import_beside
adapt_input_conv = import_beside("timm.models._manipulate").adapt_input_conv
kernel = torch.tensor(np.load("kernel.npy")).permute(3, 2, 0, 1)
for channels in (1, 2, 4, 5, 6, 7):
    np.save(f"{channels}.npy", adapt_input_conv(channels, kernel).permute(2, 3, 1, 0).numpy())
"""


@pytest.mark.slow
def test_the_rule_is_that_of_timm_itself(tmp_path):
    folder = Path(os.environ.get("KERAS_VGG_PACKAGES", ROOT / ".packages"))
    if not (folder / "timm").is_dir():
        pytest.skip(f"timm is not installed at {folder} (KERAS_VGG_PACKAGES)")
    kernel = RNG.normal(size=(3, 3, 3, 8)).astype("float32")
    np.save(tmp_path / "kernel.npy", kernel)
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    subprocess.run([sys.executable, "-c", TIMM], cwd=tmp_path, env=variables, check=True)
    for channels in (1, 2, 4, 5, 6, 7):
        theirs = np.load(tmp_path / f"{channels}.npy")
        np.testing.assert_allclose(timms_rule(kernel, channels), theirs, atol=1e-6)

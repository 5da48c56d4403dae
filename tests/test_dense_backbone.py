"""A denser feature map against the ordinary network, and the pyramid's names.

`tests/test_dense_backends.py` runs this file on JAX and PyTorch too.
"""

import keras
import numpy as np
import pytest

from keras_vgg import copy_weights, dense, vgg
from keras_vgg.layers import DilatedMaxPooling2D
from tests.dense_networks import values

SMALL = {"weights": None, "include_top": False, "width_multiplier": 1 / 16}


def images(*sides, channels=3):
    return np.random.default_rng(1).normal(0, 50, (2, *sides, channels)).astype("float32")


def pair(configuration, stride, **options):
    """The ordinary network and the dense one, with the same weights; biases are not zero."""
    ordinary = vgg(configuration, **SMALL, kernel_initializer="he_normal", **options)
    random = np.random.default_rng(0)
    for weight in ordinary.weights:
        if weight.path.endswith(("bias", "beta", "moving_mean")):
            weight.assign(random.normal(0, 1, weight.shape))
    denser = vgg(configuration, **SMALL, output_stride=stride, **options)
    copy_weights(ordinary, denser)
    return ordinary, denser


@pytest.mark.parametrize(
    ("configuration", "stride", "sides", "options"),
    [
        pytest.param("D", 16, (64, 96), {}, marks=pytest.mark.slow),
        ("D", 8, (64, 96), {}),
        pytest.param("C", 8, (64, 64), {"batch_norm": True}, marks=pytest.mark.slow),
        pytest.param("A-LRN", 8, (96, 64), {}, marks=pytest.mark.slow),
    ],
)
def test_every_second_cell_is_the_ordinary_networks(configuration, stride, sides, options):
    ordinary, denser = pair(configuration, stride, **options)
    x = images(*sides)
    expected, actual = values(ordinary(x)), values(denser(x))
    step = 32 // stride
    assert actual.shape == (2, *(side // stride for side in sides), 32)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(actual[:, ::step, ::step], expected, atol=1e-5 * scale)
    # The cells between are new.
    assert np.abs(actual[:, 1::step, ::step] - expected).max() > 0.01 * scale


def test_odd_sides_differ_at_the_border_only():
    ordinary, denser = pair("A", 8)
    x = images(328, 328)  # maps of 41 cells, of which the ordinary pool drops the last one
    expected, actual = values(ordinary(x)), values(denser(x))
    assert actual.shape[1:3] == (41, 41)
    difference = np.abs(actual[:, :-1:4, :-1:4][:, :10, :10] - expected).max((0, 3))
    assert difference[:7, :7].max() <= 1e-5 * np.abs(expected).max()
    assert difference.max() > 0


def test_a_dilated_pool_is_the_largest_of_four_places(tmp_path):
    layer = DilatedMaxPooling2D(2)
    x = images(6, 5)
    padded = np.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=-np.inf)
    expected = np.max([padded[:, i : i + 6, j : j + 5] for i in (0, 2) for j in (0, 2)], axis=0)
    np.testing.assert_array_equal(values(layer(x)), expected)
    first = DilatedMaxPooling2D(2, data_format="channels_first")(np.moveaxis(x, -1, 1))
    np.testing.assert_array_equal(np.moveaxis(values(first), 1, -1), expected)
    copy = DilatedMaxPooling2D.from_config(layer.get_config())
    np.testing.assert_array_equal(values(copy(x)), expected)
    np.testing.assert_array_equal(values(layer(x[:, :1, :1])), x[:, :1, :1])


@pytest.mark.parametrize("stride", [4, 64, "8", None])
def test_an_unknown_output_stride(stride):
    with pytest.raises(ValueError, match=r"output_stride must be 8, 16 or 32, not"):
        vgg("A", **SMALL, output_stride=stride)


def test_a_classifier_has_the_ordinary_stride():
    with pytest.raises(ValueError, match=r"output_stride=16 is for a feature map: pass include_to"):
        vgg("A", weights=None, width_multiplier=1 / 16, output_stride=16)


def test_a_pyramid_names_the_last_map_of_each_stride():
    model = vgg("D", **SMALL)
    levels = dense.pyramid(model)
    maps = levels(images(64, 96))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        f"P{n}": (2, 64 // 2**n, 96 // 2**n, [4, 8, 16, 32, 32, 32][n]) for n in range(6)
    }
    assert levels.pyramid_outputs["P4"] is model.get_layer("block5_conv3").output
    assert levels.pyramid_outputs["P5"] is model.get_layer("block5_pool").output
    assert model.weights[0] is levels.weights[0]


def test_levels_of_a_dense_network_with_batch_norm_and_of_a_classifier():
    denser = vgg("A", **SMALL, batch_norm=True, output_stride=8)
    outputs = dense.pyramid(denser).pyramid_outputs
    assert list(outputs) == ["P0", "P1", "P2", "P3"]
    assert outputs["P2"] is denser.get_layer("block3_conv2_relu").output
    assert outputs["P3"] is denser.get_layer("block5_pool").output
    classifier = vgg("A", weights=None, width_multiplier=1 / 16, hidden_units=4)
    assert list(dense.pyramid(classifier, "P3", name="p")(images(224, 224))) == ["P3"]


def test_a_pyramid_of_ssd_takes_the_map_before_its_normalisation():
    net = dense.ssd300(weights=None, width_multiplier=1 / 16)
    maps = dense.pyramid(net).output
    sides = {name: tuple(value.shape[1:3]) for name, value in maps.items()}
    assert (sides["P3"], sides["P4"]) == ((38, 38), (19, 19))


def test_a_pyramid_is_saved_whole(tmp_path):
    levels = dense.pyramid(vgg("A", **SMALL), ["P3", "P5"])
    levels.save(tmp_path / "pyramid.keras")
    again = keras.saving.load_model(tmp_path / "pyramid.keras")
    assert list(again.pyramid_outputs) == ["P3", "P5"]
    x = images(32, 32)
    np.testing.assert_array_equal(values(again(x)["P5"]), values(levels(x)["P5"]))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ("P6", r"vgg11 has the levels P0, P1, P2, P3, P4, P5, not P6"),
        (["P2", "p3"], r"not p3"),
        (["P2", "P2"], r"levels must be one or more different names, not \['P2', 'P2'\]"),
        ([], r"levels must be one or more different names, not \[\]"),
    ],
)
def test_wrong_levels(levels, message):
    with pytest.raises(ValueError, match=message):
        dense.pyramid(vgg("A", **SMALL), levels)


def test_a_model_that_is_no_vgg():
    image = keras.Input((32, 32, 3))
    nested = keras.Model(image, vgg("A", **SMALL)(image), name="mine")
    with pytest.raises(ValueError, match=r"'mine' has no layers block1_...: pass the VGG itself"):
        dense.pyramid(nested)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="once is enough")
def test_kerashub_takes_a_pyramid_as_an_image_encoder():
    hub = pytest.importorskip("keras_hub")
    encoder = dense.pyramid(vgg("A", **SMALL, input_shape=(128, 128, 3)))
    detector = hub.models.RetinaNetBackbone(encoder, min_level=3, max_level=7, use_p5=False)
    maps = detector(images(128, 128))
    assert {name: x.shape[1] for name, x in maps.items()} == {
        "P3": 16,
        "P4": 8,
        "P5": 4,
        "P6": 2,
        "P7": 1,
    }


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16])
def test_with_imagenets_weights(data_folder, stride):
    file = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    x = images(224, 224)
    ordinary = vgg("D", include_top=False, weights=file)
    denser = vgg("D", include_top=False, weights=file, output_stride=stride)
    expected, actual = values(ordinary(x)), values(denser(x))
    step = 32 // stride
    difference = np.abs(actual[:, ::step, ::step] - expected).max()
    assert difference <= 1e-5 * np.abs(expected).max()

"""Reduced fc layers, and the maps of SSD300 against PyTorch's layers and torchvision.

`tests/test_dense_backends.py` runs this file on JAX and PyTorch too.
"""

import importlib.util
import os
import re
import sys

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from keras_vgg import ImagePreprocessing, copy_weights, dense, vgg
from keras_vgg.dense.detection import L2Normalization
from keras_vgg.transfer import freeze
from keras_vgg.weights import Weights, assign
from tests.dense_networks import randomized, values
from tests.torchvision_names import import_beside

SMALL = {"weights": None, "width_multiplier": 1 / 16}
SIDES = {"block4_conv3": 38, "fc7": 19, "conv8_2": 10, "conv9_2": 5, "conv10_2": 3, "conv11_2": 1}


def test_freezing_vgg_leaves_what_ssd_adds():
    model = dense.ssd300(**SMALL)
    frozen = freeze(model, "all")
    assert {name.partition("_")[0] for name in frozen} == {f"block{i}" for i in range(1, 6)}
    assert model.get_layer("block4_conv3_norm").trainable


def images(*sides):
    return np.random.default_rng(1).normal(0, 50, (1, *sides, 3)).astype("float32")


def classifier(head="fc", hidden_units=8):
    return randomized(vgg("A", head=head, classes=3, hidden_units=hidden_units, **SMALL))


def test_decimated_weights_are_every_third_cell_and_every_second_unit():
    source = classifier()
    backbone = vgg("A", include_top=False, output_stride=8, **SMALL)
    model = dense.reduced_fc(backbone, source, filters=4)
    kernel, bias = map(values, source.get_layer("fc1").weights)
    wanted = kernel.reshape(7, 7, -1, 8)[np.ix_([0, 3, 6], [0, 3, 6])][..., [0, 2, 4, 6]]
    np.testing.assert_array_equal(values(model.get_layer("fc6").kernel), wanted)
    np.testing.assert_array_equal(values(model.get_layer("fc6").bias), bias[[0, 2, 4, 6]])
    kernel = values(source.get_layer("fc2").kernel)
    wanted = kernel[np.ix_([0, 2, 4, 6], [0, 2, 4, 6])]
    np.testing.assert_array_equal(values(model.get_layer("fc7").kernel)[0, 0], wanted)
    assert model.get_layer("fc6").dilation_rate == (12, 12)
    convolutional = dense.decimated(
        {layer.name: layer.get_weights() for layer in classifier("conv").layers}, 4
    )
    np.testing.assert_array_equal(convolutional["fc6"][0], values(model.get_layer("fc6").kernel))


def test_denser_maps_hold_the_ordinary_maps_fc7():
    source = classifier()
    ordinary = randomized(vgg("A", include_top=False, **SMALL))
    expected = values(dense.reduced_fc(ordinary, source, filters=4)(images(128, 192)))
    scale = np.abs(expected).max()
    denser = vgg("A", include_top=False, output_stride=8, **SMALL)
    copy_weights(ordinary, denser)
    actual = values(dense.reduced_fc(denser, source, filters=4)(images(128, 192)))
    np.testing.assert_allclose(actual[:, ::4, ::4], expected, atol=1e-5 * scale)


def test_fc6_on_stride_8_is_pytorchs_convolution_of_dilation_12():
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    backbone = randomized(vgg("A", include_top=False, output_stride=8, **SMALL))
    model = randomized(dense.reduced_fc(backbone, filters=4))
    x = images(160, 200)  # a map of 20x25 cells: the taps lie 12 cells apart, some outside
    y = torch.tensor(values(backbone(x))).permute(0, 3, 1, 2)
    assert y.shape[2:] == (20, 25)
    for name, options in (("fc6", {"padding": 12, "dilation": 12}), ("fc7", {})):
        kernel, bias = (torch.tensor(values(w)) for w in model.get_layer(name).weights)
        y = F.conv2d(y, kernel.permute(3, 2, 0, 1), bias, **options).relu()
    expected = y.permute(0, 2, 3, 1).numpy()
    assert expected.max() > 0
    np.testing.assert_allclose(values(model(x)), expected, atol=1e-4 * expected.max())


def test_dropout_only_trains():
    model = dense.reduced_fc(vgg("A", include_top=False, **SMALL), filters=4, dropout=0.5)
    assert [layer.name for layer in model.layers][-4:] == [
        "fc6",
        "fc6_dropout",
        "fc7",
        "fc7_dropout",
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dense.reduced_fc(classifier()), r"vgg11 must end in block5_pool: pass a VGG with"),
        (lambda: dense.reduced_fc(keras.Sequential(name="s")), "'s' has no layers block1_"),
        (
            lambda: dense.reduced_fc(vgg("A", include_top=False, **SMALL), filters=0),
            "filters must be a whole number above 0, not 0",
        ),
        (
            lambda: dense.reduced_fc(vgg("A", include_top=False, **SMALL), classifier(), filters=3),
            r"the widths of fc1 and fc2 must be equal, and a multiple of filters=3; the kernels",
        ),
        (lambda: dense.decimated({}), "there is no fc1 and no fc2: a VGG with head='fc' has both"),
        (
            lambda: dense.decimated(
                {"fc1": [np.zeros((512, 8)), np.zeros(8)], "fc2": [np.zeros((8, 8)), np.zeros(8)]}
            ),
            r"fc1 must be for 7x7 cells \(images of 224x224\); it is \(512, 8\)",
        ),
        (
            lambda: dense.ssd300(input_shape=(267, 300, 3), **SMALL),
            r"SSD300 needs images of at least 268x268 pixels, not input_shape=\(267, 300, 3\)",
        ),
        (
            lambda: dense.ssd300_tensors({"backbone.features.0.weight": np.zeros(1)}),
            "these are no weights of ssd300_vgg16: missing extra.0.1.bias",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="take images with channels last"):
            dense.ssd300(**SMALL)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.slow
def test_the_smallest_image():
    model = dense.ssd300(input_shape=(268, 268, 3), **SMALL)
    assert model.output["conv11_2"].shape[1:3] == (1, 1)


def test_normalization_gives_every_cell_its_scale():
    layer = L2Normalization(5.0)
    x = images(4, 4)
    np.testing.assert_allclose(np.linalg.norm(values(layer(x)), axis=-1), 5, rtol=1e-5)
    np.testing.assert_array_equal(values(layer(0 * x)), 0)
    copy = L2Normalization.from_config(layer.get_config())
    np.testing.assert_allclose(values(copy(x)), values(layer(x)))


@pytest.mark.slow
def test_a_saved_backbone(tmp_path):
    model = dense.ssd300(**SMALL)
    model.save(tmp_path / "ssd.keras")
    again = keras.saving.load_model(tmp_path / "ssd.keras")
    x = images(300, 300)
    expected = {name: values(y) for name, y in model(x).items()}
    for name, y in again(x).items():
        np.testing.assert_allclose(values(y), expected[name], atol=1e-5)


def torch_maps(arrays, x):
    """The same maps by PyTorch's layers, from Keras' weights."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    def conv(name, y, padding=0, stride=1, dilation=1):
        kernel, bias = (torch.tensor(a) for a in arrays[name])
        options = {"padding": padding, "stride": stride, "dilation": dilation}
        return F.conv2d(y, kernel.permute(3, 2, 0, 1), bias, **options).relu()

    y, maps = torch.tensor(x).permute(0, 3, 1, 2), {}
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, depth + 1):
            y = conv(f"block{block}_conv{i}", y, 1)
        if block == 4:
            scale = torch.tensor(arrays["block4_conv3_norm"][0]).reshape(1, -1, 1, 1)
            maps["block4_conv3"] = scale * F.normalize(y)
        if block < 5:
            y = F.max_pool2d(y, 2, ceil_mode=block == 3)
    y = F.max_pool2d(y, 3, 1, 1)
    y = maps["fc7"] = conv("fc7", conv("fc6", y, 6, dilation=6))
    for extra, stride in (("conv8", 2), ("conv9", 2), ("conv10", 1), ("conv11", 1)):
        y = maps[f"{extra}_2"] = conv(f"{extra}_2", conv(f"{extra}_1", y), stride - 1, stride)
    return {name: y.permute(0, 2, 3, 1).numpy() for name, y in maps.items()}


def require_equal(actual, expected):
    assert set(actual) == set(expected) == set(SIDES)
    for name, y in actual.items():
        assert y.shape[1:3] == (SIDES[name],) * 2
        difference = np.abs(values(y) - expected[name]).max() / np.abs(expected[name]).max()
        assert difference < 1e-4, name


def test_maps_are_those_of_pytorchs_layers():
    model = randomized(dense.ssd300(include_preprocessing=False, **SMALL))
    arrays = {layer.name: layer.get_weights() for layer in model.layers}
    x = images(300, 300)
    require_equal(model(x), torch_maps(arrays, x))


@pytest.fixture(scope="module")
def detection():
    """torchvision.models.detection, installed or where KERAS_VGG_TORCHVISION says."""
    pytest.importorskip("torch")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("once is enough")
    folder = os.environ.get("KERAS_VGG_TORCHVISION")
    with pytest.MonkeyPatch.context() as patch:
        if folder:
            patch.setattr(sys, "path", [*sys.path, folder])
        if importlib.util.find_spec("torchvision") is None:
            pytest.skip("torchvision is not installed; KERAS_VGG_TORCHVISION may name its folder")
        yield import_beside("torchvision.models.detection")


def random_detector(detection):
    """torchvision's SSD300 with random weights, biases and scales."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    detector = detection.ssd300_vgg16(weights=None, weights_backbone=None).eval()
    with torch.no_grad():
        detector.backbone.scale_weight.uniform_(5, 30)
        for name, weight in detector.backbone.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.1)
            elif weight.ndim == 4:
                torch.nn.init.kaiming_normal_(weight)
    return detector


def torchvision_maps(detector, x):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        maps = detector.backbone(torch.tensor(x).permute(0, 3, 1, 2)).values()
    maps = [y.permute(0, 2, 3, 1).numpy() for y in maps]
    return dict(zip(SIDES, maps, strict=True))


@pytest.mark.slow
def test_maps_are_torchvisions(detection):
    detector = random_detector(detection)
    model = dense.ssd300(weights=None, include_preprocessing=False)
    assign(model, Weights(dense.ssd300_tensors(detector.state_dict()), "torchvision"))
    x = images(300, 300)
    require_equal(model(x), torchvision_maps(detector, x))


@pytest.mark.slow
def test_maps_of_a_photograph_with_imagenets_convolutions_are_torchvisions(detection, data_folder):
    torch = pytest.importorskip("torch")
    file = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    model = dense.ssd300(file, include_preprocessing=False)
    real = {
        layer.name: layer.get_weights()
        for layer in model.layers
        if re.fullmatch(r"block\d_conv\d", layer.name)
    }
    assert len(real) == 13
    detector = random_detector(detection)
    backbone = detector.backbone
    modules = (*backbone.features, *backbone.extra[0])  # to conv5_3
    theirs = [module for module in modules if isinstance(module, torch.nn.Conv2d)]
    with torch.no_grad():
        for module, (kernel, bias) in zip(theirs, real.values(), strict=True):
            module.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1)))
            module.bias.copy_(torch.tensor(bias))
    # fc6, fc7 and the extra layers are random, and the same in both.
    assign(model, Weights(dense.ssd300_tensors(detector.state_dict()), "torchvision"))
    for name, weights in real.items():
        for ours, read in zip(model.get_layer(name).get_weights(), weights, strict=True):
            np.testing.assert_array_equal(ours, read)
    photo = load_sample_images().images[0][60:360, 100:400]
    x = values(ImagePreprocessing.caffe()(photo[np.newaxis].astype("float32")))
    require_equal(model(x), torchvision_maps(detector, x))

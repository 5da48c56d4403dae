"""FCN and U-Net: sizes, interpolation, weights, training.

`tests/test_dense_backends.py` runs this file on JAX and PyTorch too.
"""

import re

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from keras_vgg import ImagePreprocessing, convert_weights, dense, models, transfer
from keras_vgg.dense.resampling import BilinearInitializer, ResizeLike
from tests.dense_networks import randomized, values

SMALL = {"weights": None, "width_multiplier": 1 / 16}
BARE = {"width_multiplier": 1 / 16, "include_preprocessing": False}
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
once_is_enough = pytest.mark.skipif(not ON_TENSORFLOW, reason="once is enough")
TINY_UNET = {**SMALL, "decoder_filters": (8, 8, 4, 4, 4)}


def images(*sides, n=2):
    return np.random.default_rng(1).uniform(0, 255, (n, *sides, 3)).astype("float32")


@pytest.mark.parametrize(
    ("stride", "shape"),
    [
        pytest.param(32, None, marks=pytest.mark.slow),
        pytest.param(16, (75, 64, 3), marks=pytest.mark.slow),
        (8, None),
    ],
)
def test_an_fcn_scores_every_pixel_of_any_size(stride, shape):
    model = dense.fcn("A", 5, stride=stride, hidden_units=8, input_shape=shape, **SMALL)
    probabilities = values(randomized(model)(images(75, 64)))
    assert probabilities.shape == (2, 75, 64, 5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    assert probabilities.std(axis=(1, 2)).min() > 0
    assert model.name == f"fcn{stride}s_vgg11"
    # A size that the pools divide needs no crop.
    names = [layer.name for layer in dense.fcn("A", 5, input_shape=(64, 64, 3), **SMALL).layers]
    assert [name for name in names if "crop" in name] == []


def test_a_unet_scores_every_pixel_of_any_size():
    model = dense.unet("A", 3, **TINY_UNET)
    for sides in [(64, 64), (45, 70)]:
        assert model(images(*sides)).shape == (2, *sides, 3)
    assert dense.unet("A", 3, input_shape=(45, 70, 3), **TINY_UNET).output_shape == (
        None,
        45,
        70,
        3,
    )


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("network", ["fcn", "unet", "hed"])
def test_one_size_after_another(network):
    """TensorFlow compiles a function of unknown sides when it sees a second size."""
    model = {
        "fcn": lambda: dense.fcn("A", 3, stride=8, hidden_units=8, **SMALL),
        "unet": lambda: dense.unet("A", 3, **TINY_UNET),
        "hed": lambda: dense.hed(**SMALL),
    }[network]()
    randomized(model)
    for sides in ((33, 47), (64, 40), (40, 35)):
        x = images(*sides)
        expected, found = model(x), model.predict(x, verbose=0)
        for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
            np.testing.assert_allclose(b, values(a), rtol=1e-4, atol=1e-5)


def test_new_scores_are_zero_so_that_every_class_is_as_probable():
    model = dense.fcn("A", 4, hidden_units=None, **SMALL)
    np.testing.assert_allclose(values(model(images(32, 32))), 0.25, rtol=1e-6)


def test_a_bilinear_kernel_interpolates():
    x = images(5, 6)
    for factor in (2, 4):
        up = keras.layers.Conv2DTranspose(
            3,
            2 * factor,
            strides=factor,
            padding="same",
            use_bias=False,
            kernel_initializer=BilinearInitializer(),
        )(x)
        expected = keras.layers.UpSampling2D(factor, interpolation="bilinear")(x)
        assert up.shape == expected.shape
        inner = np.s_[:, factor:-factor, factor:-factor]  # zeros surround the map
        np.testing.assert_allclose(values(up)[inner], values(expected)[inner], rtol=1e-5)
    with pytest.raises(ValueError, match="interpolation keeps the channels; 4 cannot become 3"):
        BilinearInitializer()((4, 4, 3, 4))


def test_a_resize_has_half_pixel_centres():
    x = np.array([0.0, 1.0], "float32").reshape(1, 1, 2, 1)
    like = np.zeros((1, 3, 8, 2), "float32")
    expected = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)
    actual = values(ResizeLike()([x, like]))
    np.testing.assert_allclose(actual[0, :, :, 0], np.tile(expected, (3, 1)), atol=1e-6)


def test_fc_layers_are_the_classifiers(tmp_path):
    options = {"width_multiplier": 1 / 16, "hidden_units": 6}
    classifier = models.vgg("A", weights=None, classes=7, **options)
    file = tmp_path / "classifier.weights.h5"
    classifier.save_weights(file)
    model = dense.fcn("A", 5, weights=file, hidden_units=6, **BARE)
    kernel = values(classifier.get_layer("fc1").kernel).reshape(7, 7, -1, 6)
    np.testing.assert_array_equal(values(model.get_layer("fc1").kernel), kernel)
    name = "block5_conv2"
    expected = values(classifier.get_layer(name).kernel)
    np.testing.assert_array_equal(values(model.get_layer(name).kernel), expected)
    # At the middle of its map, fc1 sees what the classifier sees.
    x = images(224, 224, n=1)
    fc1 = keras.Model(model.inputs[0], model.get_layer("fc1").output)(x)
    wanted = keras.Model(classifier.inputs[0], classifier.get_layer("fc1").output)(x)
    np.testing.assert_allclose(values(fc1)[:, 3, 3], values(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({}, (1e-2, 1e-4)),
        ({"batch_norm": True}, (1, 1)),
        ({"include_preprocessing": ImagePreprocessing.torchvision()}, (1, 1)),
    ],
)
def test_the_scales_of_the_skips_suit_the_activations(options, scales):
    model = dense.fcn("A", 2, hidden_units=None, **SMALL, **options)
    assert tuple(model.get_layer(name).scale for name in ("scale4", "scale3")) == scales


@once_is_enough
@pytest.mark.parametrize(("preprocessing", "scale"), [("caffe", 1e-4), ("torchvision", 1)])
def test_a_file_states_the_scales_of_the_skips(tmp_path, preprocessing, scale):
    """The network without preprocessing too."""
    source, file = tmp_path / "base.weights.h5", tmp_path / "base.safetensors"
    models.vgg("A", include_top=False, **SMALL).save_weights(source)
    convert_weights(source, file, preprocessing=preprocessing)
    model = dense.fcn("A", 2, weights=file, hidden_units=None, **BARE)
    assert model.get_layer("scale3").scale == scale


@pytest.mark.slow
def test_weights_without_a_classifier(tmp_path):
    file = tmp_path / "convolutions.weights.h5"
    base = models.vgg("A", include_top=False, **SMALL)
    base.save_weights(file)
    options = {"weights": file, **BARE}
    with pytest.raises(ValueError, match=r"does not say which input its network was trained on"):
        dense.unet("A", 5, weights=file, width_multiplier=1 / 16)
    with pytest.raises(ValueError, match=r"has no fc1 and no fc2: pass fc_weights=False, so that"):
        dense.fcn("A", 5, hidden_units=6, **options)
    for model in (
        dense.fcn("A", 5, hidden_units=6, fc_weights=False, **options),
        dense.fcn("A", 5, hidden_units=None, **options),
        dense.unet("A", 5, **options),
    ):
        for name in ("block1_conv1", "block5_conv2"):
            expected = values(base.get_layer(name).kernel)
            np.testing.assert_array_equal(values(model.get_layer(name).kernel), expected)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (dense.fcn, {"stride": 4}, "stride must be 32, 16 or 8, not 4"),
        (dense.fcn, {"classes": 0}, "classes must be a positive whole number, not 0"),
        (dense.fcn, {"hidden_units": 0}, "hidden_units must be a positive whole number, not 0"),
        (dense.fcn, {"skip_scales": (1,)}, r"skip_scales must be two numbers, not \(1,\)"),
        (dense.fcn, {"skip_scales": (1, 1, 1)}, "skip_scales must be two numbers"),
        (dense.fcn, {"dropout": 1}, r"dropout must be in \[0, 1\), not 1"),
        (dense.fcn, {"input_shape": (16, 64, 3)}, "input must be at least 32x32, not"),
        (dense.unet, {"classes": 1}, "a soft-max over a single class is always 1: pass classif"),
        (dense.unet, {"classifier_activation": "relu"}, "classifier_activation must be 'softmax',"),
        (dense.unet, {"decoder_filters": (8, 4)}, r"decoder_filters must be five whole numbers ab"),
        (dense.unet, {"configuration": "F"}, "unknown VGG configuration 'F'"),
    ],
)
def test_wrong_arguments(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**{**SMALL, **options})


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match="take images with channels last; call keras"):
            dense.unet(**SMALL)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.slow
def test_mixed_precision_keeps_probabilities_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = dense.fcn("A", 3, hidden_units=None, **SMALL)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("score").compute_dtype == "bfloat16"
    assert values(model(images(32, 32))).dtype == np.float32


@pytest.mark.slow
def test_two_compiled_steps_of_fit_change_every_kernel():
    model = dense.fcn("A", 2, hidden_units=32, skip_scales=(1, 1), **SMALL)
    # A copy: on PyTorch, the array of a weight changes with the weight.
    before = {weight.path: values(weight).copy() for weight in model.trainable_weights}
    # Small steps: where the probabilities are exactly 0 and 1, there is no gradient.
    model.compile(keras.optimizers.Adam(1e-4), "categorical_crossentropy")
    masks = np.random.default_rng(0).integers(0, 2, (4, 32, 32))
    history = model.fit(images(32, 32, n=4), np.eye(2)[masks], batch_size=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    kernels = [w for w in model.trainable_weights if w.path.endswith("kernel")]
    still = [w.path for w in kernels if np.array_equal(values(w), before[w.path])]
    assert (len(kernels), still) == (15, [])


def test_a_step_changes_the_decoder_and_no_frozen_encoder():
    model = dense.fcn("A", 2, hidden_units=None, **SMALL)
    transfer.freeze(model, "all")
    before = {weight.path: values(weight) for weight in model.weights}
    model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy", run_eagerly=True)
    model.train_on_batch(images(32, 32), np.eye(2)[np.zeros((2, 32, 32), int)])
    changed = [w.path for w in model.weights if not np.array_equal(values(w), before[w.path])]
    assert changed
    assert not [path for path in changed if path.startswith("block")]


@pytest.mark.slow
def test_a_unet_learns_and_its_frozen_encoder_stays(tmp_path):
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    masks = np.zeros((16, 32, 32), "int32")
    for mask in masks:
        top, left = random.integers(0, 16, 2)
        mask[top : top + 16, left : left + 16] = 1
    x = (200 * masks[..., np.newaxis] + random.uniform(0, 50, (16, 32, 32, 3))).astype("float32")
    model = dense.unet("A", 2, **TINY_UNET)
    frozen = transfer.freeze(model, "all")
    assert len(frozen) == 8
    before = values(model.get_layer("block1_conv1").kernel)
    # Keras' sparse loss of a map has no gradient on PyTorch.
    model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
    history = model.fit(x, np.eye(2)[masks], epochs=12, batch_size=8, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    np.testing.assert_array_equal(values(model.get_layer("block1_conv1").kernel), before)
    model.save(tmp_path / "unet.keras")
    again = keras.saving.load_model(tmp_path / "unet.keras")
    np.testing.assert_allclose(values(again(x[:1])), values(model(x[:1])), rtol=1e-5)


class TorchLayers:
    """PyTorch's layers with a model's weights, by our names; maps are [n, c, h, w]."""

    def __init__(self, model):
        self.torch = pytest.importorskip("torch")
        self.functional = self.torch.nn.functional
        self.arrays = {
            layer.name: [self.torch.tensor(np.array(w)) for w in layer.get_weights()]
            for layer in model.layers
        }

    def conv(self, name, y, padding=0):
        kernel, *bias = self.arrays[name]
        return self.functional.conv2d(y, kernel.permute(3, 2, 0, 1), *bias, padding=padding)

    def up(self, name, y, like, padding):
        """A transposed convolution with stride 2, cut to another map's sides."""
        kernel, *bias = self.arrays[name]
        kernel, options = kernel.permute(3, 2, 0, 1), {"stride": 2, "padding": padding}
        y = self.functional.conv_transpose2d(y, kernel, *bias, **options)
        return y[..., : like.shape[2], : like.shape[3]]

    def norm(self, name, y):
        gamma, beta, mean, variance = self.arrays.get(name) or [None] * 4
        if mean is None:  # the network has no such layer
            return y
        return self.functional.batch_norm(y, mean, variance, gamma, beta, eps=1e-3)

    def encoder(self, x):
        """The last map and the pool of each block."""
        y, maps, pools = self.torch.tensor(x).permute(0, 3, 1, 2), [], []
        for block in range(1, 6):
            for name in self.arrays:
                if re.fullmatch(rf"block{block}_conv\d", name):
                    y = self.conv(name, y, 1).relu()
            maps.append(y)
            y = self.functional.max_pool2d(y, 2, ceil_mode=True)
            pools.append(y)
        return maps, pools

    def fcn(self, x, stride, scales):
        _, pools = self.encoder(x)
        y = self.conv("fc2", self.conv("fc1", pools[4], 3).relu()).relu()
        y = self.conv("score", y)
        for block, scale in list(zip((4, 3), scales, strict=True))[: {32: 0, 16: 1, 8: 2}[stride]]:
            skip = self.conv(f"score{block}", scale * pools[block - 1])
            y = self.up(f"upscore{block}", y, skip, 1) + skip
        y = self.functional.interpolate(y, scale_factor=stride, mode="bilinear")
        return y[..., : x.shape[1], : x.shape[2]]

    def unet(self, x):
        maps, pools = self.encoder(x)
        y = self.norm("decoder5_skip_bn", pools[4])
        for number in (4, 3, 2, 1, 0):
            stage, skip = f"decoder{number}", maps[number]
            y = self.up(f"{stage}_up", y, skip, 0)
            y = self.torch.cat([y, self.norm(f"{stage}_skip_bn", skip)], 1)
            for i in (1, 2):
                y = self.conv(f"{stage}_conv{i}", y, 1)
                y = self.norm(f"{stage}_conv{i}_bn", y).relu()
        return self.conv("score", y)


def randomize_averages(model):
    """Give batch norm averages that it would have after training."""
    random = np.random.default_rng(0)
    for weight in model.non_trainable_weights:
        if weight.path.rpartition("/")[2].startswith("moving"):
            weight.assign(random.uniform(0.5, 1.5, weight.shape))


def require_equal(actual, expected):
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(values(actual), expected, atol=1e-4 * np.abs(expected).max())


SKIP_SCALES = 0.5, 0.25  # so large that a skip which is left out shows


@once_is_enough
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_an_fcn_is_that_of_pytorchs_layers(stride):
    options = {"hidden_units": 8, "classifier_activation": None, "skip_scales": SKIP_SCALES}
    model = randomized(dense.fcn("A", 5, stride=stride, **options, **BARE, weights=None))
    x = images(75, 60)
    require_equal(model(x), TorchLayers(model).fcn(x, stride, SKIP_SCALES))


@once_is_enough
@pytest.mark.parametrize("batch_norm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_unet_is_that_of_pytorchs_layers(batch_norm):
    options = {"decoder_batch_norm": batch_norm, "classifier_activation": None}
    model = dense.unet("A", 3, include_preprocessing=False, **options, **TINY_UNET)
    randomize_averages(randomized(model))
    x = images(45, 70)
    require_equal(model(x), TorchLayers(model).unet(x))


@pytest.mark.slow
@once_is_enough
@pytest.mark.parametrize("network", [32, 16, 8, "U-Net"])
def test_with_imagenets_convolutions_too(network, data_folder):
    options = {
        "weights": data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "classifier_activation": None,
        "include_preprocessing": False,
    }
    if network == "U-Net":
        model = dense.unet("D", 5, **options)
    else:
        options |= {"stride": network, "fc_weights": False, "hidden_units": 64}
        model = dense.fcn("D", 5, skip_scales=SKIP_SCALES, **options)
    real = {
        layer.name: layer.get_weights()
        for layer in model.layers
        if re.fullmatch(r"block\d_conv\d", layer.name)
    }
    assert len(real) == 13
    randomize_averages(randomized(model))
    for name, arrays in real.items():
        model.get_layer(name).set_weights(arrays)
    photo = load_sample_images().images[0][100:250, 200:410]
    x = values(ImagePreprocessing.caffe()(photo[np.newaxis].astype("float32")))
    layers = TorchLayers(model)
    expected = layers.unet(x) if network == "U-Net" else layers.fcn(x, network, SKIP_SCALES)
    require_equal(model(x), expected)

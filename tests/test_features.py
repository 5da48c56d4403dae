"""Features by name: against PyTorch's own layers, in nested models, before and after the ReLU."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

import keras_vgg
from keras_vgg.features import L2Pooling, feature_extractor
from keras_vgg.perceptual import SETTINGS, PerceptualLoss, gram_matrix

NAMES = ("block1_conv1:pre", "block1_conv2:post", "block3_conv3:pre", "block3_conv3:post")
NAMES += ("block4_pool", "block5_conv1:pre")


def base(configuration="D", **options):
    options = {"weights": None, "width_multiplier": 1 / 32, "include_top": False, **options}
    return keras_vgg.vgg(configuration, **options)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


@pytest.fixture(scope="module")
def network():
    return base(include_preprocessing=True)


def torch_features(model, images, average):
    """The layers of PyTorch with the model's weights, by our names; images as [n, c, h, w]."""
    import torch
    from torch.nn import functional

    arrays = {w.path.split("/", 1)[-1]: ops.convert_to_numpy(w) for w in model.weights}
    arrays |= {w.path: ops.convert_to_numpy(w) for w in model.weights}
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    features = {}
    for layer in model.layers:
        name = layer.name
        if name.endswith("_pool"):
            x = functional.avg_pool2d(x, 2) if average else functional.max_pool2d(x, 2)
            features[name] = x
        elif isinstance(layer, keras.layers.Conv2D):
            kernel = tensors[f"{name}/kernel"].permute(3, 2, 0, 1)
            x = functional.conv2d(x, kernel, tensors[f"{name}/bias"], padding="same")
            if f"{name}_bn/gamma" in tensors:
                parts = ("moving_mean", "moving_variance", "gamma", "beta")
                values = [tensors[f"{name}_bn/{part}"] for part in parts]
                x = functional.batch_norm(x, *values, eps=1e-5)
            features[f"{name}:pre"] = x
            x = functional.relu(x)
            features[f"{name}:post"] = x
    return {name: value.numpy().transpose(0, 2, 3, 1) for name, value in features.items()}


@pytest.mark.parametrize(
    ("configuration", "batch_norm", "pooling_layers", "normalize"),
    [("D", False, None, False), ("E", False, "avg", True), ("D", True, "avg", False)],
)
def test_features_are_those_of_pytorchs_layers(
    configuration, batch_norm, pooling_layers, normalize
):
    pytest.importorskip("torch")
    model = base(configuration, batch_norm=batch_norm)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if "conv" in weight.path and "kernel" not in weight.path:  # biases and statistics
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    images = generator.normal(0, 1, (2, 53, 70, 3)).astype("float32")
    options = {"pooling_layers": pooling_layers, "normalize": normalize}
    found = feature_extractor(model, NAMES, **options)(images)
    found = {name: ops.convert_to_numpy(values) for name, values in found.items()}
    expected = torch_features(model, images, pooling_layers == "avg")
    assert set(found) == set(NAMES)
    for name in NAMES:
        values = expected[name]
        if normalize:
            length = np.linalg.norm(values, axis=-1, keepdims=True)
            values = values / np.where(length > 0, length, 1)
        scale = max(1, np.abs(values).max())
        np.testing.assert_allclose(found[name] / scale, values / scale, atol=1e-4)
    assert any((found[n] < 0).any() for n in NAMES if n.endswith(":pre"))


def test_a_network_in_a_network_gives_the_same_features(network):
    images, names = noise(2, 32, 40, 3), ["block2_conv1:pre", "block2_conv1:post", "block3_pool"]
    arrays, equal = ops.convert_to_numpy, partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    expected = feature_extractor(network, names)(images)
    image = keras.Input((None, None, 3))
    functional = keras.Model(image, keras.layers.Conv2D(1, 1)(network(image)))
    outer = keras.Sequential([keras.Input((None, None, 3)), functional])
    for model in (functional, outer):
        found = feature_extractor(model, names)(images)
        for name in names:
            equal(arrays(found[name]), arrays(expected[name]))
    whole = feature_extractor(functional, network.name)(images)[network.name]
    equal(arrays(whole), arrays(network(images)))
    (path,) = (name for name in [f"{functional.name}/{network.name}/block2_conv1:pre"])
    by_path = feature_extractor(outer, path)(images)[path]
    equal(arrays(by_path), arrays(expected[names[0]]))


def test_an_extractor_shares_its_weights_leaves_the_model_alone_and_is_saved(tmp_path):
    model = base()
    images, before = noise(1, 32, 32, 3), model.to_json()
    extractor = feature_extractor(model, "block2_conv1:pre", pooling_layers="avg", pooling="avg")
    first = extractor(images)["block2_conv1:pre"]
    assert model.to_json() == before
    model.set_weights([2 * w for w in model.get_weights()])
    second = extractor(images)["block2_conv1:pre"]
    assert np.abs(second - first).max() > 1
    extractor.save(tmp_path / "extractor.keras")
    again = keras.saving.load_model(tmp_path / "extractor.keras")
    np.testing.assert_array_equal(again(images)["block2_conv1:pre"], second)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("block1_conv1", {"pooling_layers": "max"}, "pooling_layers must be 'avg', 'l2' or None"),
        ("block1_pool:pre", {}, "needs a layer with an activation"),
        ("block2_pol:pre", {}, "has no layer 'block2_pol'; did you mean 'block2_pool'"),
        ("relu3_3", {}, "has no layer 'relu3_3'; did you mean 'block3_conv3:post'"),
        ("conv5_3", {}, "has no layer 'conv5_3'; did you mean 'block5_conv3:pre'"),
        (["block1_conv1:pre"] * 2, {}, "one or more different names"),
    ],
)
def test_features_that_cannot_be_had(network, names, options, message):
    with pytest.raises(ValueError, match=message):
        feature_extractor(network, names, **options)


def test_a_layer_in_two_places_needs_a_path(network):
    other = base(name="other")
    image = keras.Input((32, 32, 3))
    both = keras.Model(image, keras.layers.Concatenate()([network(image), other(image)]))
    message = "block1_conv1' is in 2 places of .*: other/block1_conv1, vgg16/block1_conv1; give a"
    with pytest.raises(ValueError, match=message):
        feature_extractor(both, "block1_conv1")
    path = "other/block1_conv1"
    assert feature_extractor(both, path)(noise(1, 32, 32, 3))[path].shape == (1, 32, 32, 2)
    shared = keras.layers.Conv2D(3, 1, name="shared")
    twice = keras.Model(image, shared(shared(image)))
    with pytest.raises(ValueError, match="calls layer 'shared' 2 times"):
        feature_extractor(twice, "shared")
    inputs = [keras.Input((2,)), keras.Input((2,))]
    two = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match="with one input, not"):
        feature_extractor(two, "x")


@pytest.mark.parametrize("side", [7, 8])
def test_l2_pooling_by_hand(side):
    x = noise(1, side, side, 2)
    padded = np.pad(x.astype(float) ** 2, ((0, 0), (1, 1), (1, 1), (0, 0)))
    hann = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])[None, :, :, None]
    rows = [
        [(padded[:, i : i + 3, j : j + 3] * hann).sum((1, 2)) for j in range(0, side, 2)]
        for i in range(0, side, 2)
    ]
    expected = np.sqrt(np.transpose(rows, (2, 0, 1, 3)))
    layer = L2Pooling()
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)
    assert layer.compute_output_shape((None, side, None, 2)) == (None, (side + 1) // 2, None, 2)


def test_gram_matrix():
    maps = noise(2, 5, 6, 3)
    expected = np.einsum("nhwa,nhwb->nab", maps, maps) / (5 * 6 * 3)
    np.testing.assert_allclose(gram_matrix(maps), expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"needs a map \[n, h, w, c\], not \(2, 3\)"):
        gram_matrix(np.zeros((2, 3)))


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("configuration", ["D", "E"])
def test_published_losses(configuration):
    model = base(configuration, include_preprocessing=True)
    settings = {n: s for n, s in SETTINGS.items() if s.network == configuration}
    names = {name: 0 for s in settings.values() for name in [*s.layers, *s.style_layers]}
    a, b = noise(2, 32, 32, 3), noise(2, 32, 32, 3, seed=1)
    extractor = feature_extractor(model, names)
    maps = [{n: ops.convert_to_numpy(m) for n, m in extractor(x).items()} for x in (a, b)]
    for name, setting in settings.items():
        expected = 0
        for layer, weight in setting.layers.items():
            power = {"l1": 1, "l2": 2}[setting.distance]
            expected += weight * (np.abs(maps[0][layer] - maps[1][layer]) ** power).mean()
        for layer, weight in setting.style_layers.items():
            grams = [
                np.einsum("nhwa,nhwb->nab", m[layer], m[layer]) / m[layer][0].size for m in maps
            ]
            expected += weight * ((grams[0] - grams[1]) ** 2).sum((1, 2)).mean()
        found = ops.convert_to_numpy(PerceptualLoss(model, name)(a, b))
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert "arXiv:" in setting.source


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch computes all gradients")
def test_published_losses_have_gradients_by_the_images_alone():
    model = base("E", include_preprocessing=True)
    images = ops.convert_to_tensor(noise(2, 32, 32, 3), "float32").requires_grad_()
    PerceptualLoss(model, "esrgan")(noise(2, 32, 32, 3, seed=1), images).backward()
    assert abs(images.grad).max() > 0
    assert all(weight.value.grad is None for weight in model.weights)


def test_settings_as_published():
    found = {
        name: (s.network, dict(s.layers), dict(s.style_layers), s.distance)
        for name, s in SETTINGS.items()
    }
    pix2pixhd = {f"block{i + 1}_conv1:post": 2.0 ** -(5 - i) for i in range(4)}
    gram = ("block1_conv2:post", "block2_conv2:post", "block3_conv3:post", "block4_conv3:post")
    assert found == {
        "srgan": ("E", {"block5_conv4:post": 1 / 12.75**2}, {}, "l2"),
        "srgan_pre": ("E", {"block5_conv4:pre": 1 / 12.75**2}, {}, "l2"),
        "esrgan": ("E", {"block5_conv4:pre": 1.0}, {}, "l1"),
        "pix2pixhd": ("E", {**pix2pixhd, "block5_conv1:post": 1.0}, {}, "l1"),
        "johnson": ("D", {"block2_conv2:post": 1.0}, {}, "l2"),
        "johnson_style": ("D", {}, dict.fromkeys(gram, 1.0), "l2"),
    }


def test_published_losses_of_another_network(network):
    message = r"'esrgan' is a loss on VGG19; vgg16 has no layer block5_conv4. Pass layers=\{'block5"
    with pytest.raises(ValueError, match=message):
        PerceptualLoss(network, "esrgan")
    for configuration in ("B", "C"):  # without a third convolution in block 3; with one of 1x1
        with pytest.raises(ValueError, match="has no 3x3 convolution block3_conv3"):
            PerceptualLoss(base(configuration, include_preprocessing=True), "johnson")
    with pytest.raises(ValueError, match="'johnson' states its layers: pass no style_layers"):
        PerceptualLoss(network, "johnson", style_layers=["block1_conv1"])
    with pytest.raises(ValueError, match="has no layer 'johnsen'"):
        PerceptualLoss(network, "johnsen")


def test_a_loss_finds_the_preprocessing_of_a_network_in_a_network(network):
    outer = keras.Sequential([keras.Input((32, 32, 3)), network])
    a, b = noise(1, 32, 32, 3), noise(1, 32, 32, 3, seed=1)
    options = {"pooling_layers": "avg", "style_layers": {"block2_conv1:pre": 2.0}}
    found = PerceptualLoss(outer, "block1_conv1:pre", **options)(a, b)
    expected = PerceptualLoss(network, "block1_conv1:pre", **options)(a, b)
    found, expected = (float(ops.convert_to_numpy(x)) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("pooling_layers", ["avg", "l2"])
@pytest.mark.parametrize("pooling", [None, "avg", "max", 2])
def test_the_global_policy_does_not_round_features(pooling_layers, pooling):
    network = base(include_preprocessing=True, input_shape=(32, 32, 3))
    names, images = ["block2_conv1:post", "block2_pool", "block5_conv1:pre"], noise(1, 32, 32, 3)
    options = {"pooling_layers": pooling_layers, "pooling": pooling}
    expected = feature_extractor(network, names, **options)(images)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = feature_extractor(network, names, **options)(images)
    finally:
        keras.config.set_dtype_policy(before)
    for name in names:
        assert keras.backend.standardize_dtype(found[name].dtype) == "float32"
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (found[name], expected[name])))


@pytest.mark.parametrize("setting", ["channels_last", "channels_first"])
@pytest.mark.parametrize("pooling", [None, "avg", "max", 2])
def test_the_axes_are_those_of_the_model_whatever_the_setting(setting, pooling):
    images = noise(2, 8, 12, 3)  # TensorFlow pools channels first on a CPU, and does not convolve

    def features(data_format, images):
        image = keras.Input(images.shape[1:])
        pool = keras.layers.MaxPooling2D(2, data_format=data_format, name="pool")
        inner = keras.Model(image, pool(image))
        outer = keras.Sequential([keras.Input(images.shape[1:]), inner])
        return feature_extractor(outer, "pool", pooling, normalize=True)(images)["pool"]

    maps = images.reshape(2, 4, 2, 6, 2, 3).max((2, 4))
    expected = maps / np.linalg.norm(maps, axis=-1, keepdims=True)
    if pooling == 2:
        expected = expected.reshape(2, 2, 2, 2, 3, 3).mean((2, 4)).reshape(2, -1)
    elif pooling is not None:
        expected = {"avg": np.mean, "max": np.max}[pooling](expected, axis=(1, 2))
    keras.config.set_image_data_format(setting)
    try:
        last = features("channels_last", images)
        first = features("channels_first", np.moveaxis(images, -1, 1))
    finally:
        keras.config.set_image_data_format("channels_last")
    if pooling is None:
        first = ops.moveaxis(first, 1, -1)
    for found in (last, first):
        np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_unit_features_in_float16_do_not_overflow():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        image = keras.Input((2, 2, 3))
        kernel = keras.initializers.Constant(np.eye(3)[None, None])
        layer = keras.layers.Conv2D(3, 1, kernel_initializer=kernel, name="c")
        features = feature_extractor(keras.Model(image, layer(image)), "c", normalize=True)
        found = features(np.full((1, 2, 2, 3), 300.0, "float32"))["c"]
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(ops.convert_to_numpy(found), 3**-0.5, rtol=1e-2)

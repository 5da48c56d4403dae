"""LPIPS and DISTS: against the formulas of their papers, as functions, losses and metrics.

The networks here are thin, with learned weights of their width. test_perceptual_packages.py
compares the real ones with the published packages.
"""

import json
import re
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

import keras_vgg
from keras_vgg import DISTS, LPIPS
from keras_vgg.layers import ImagePreprocessing, load_keras_file
from keras_vgg.perceptual import distance, dists, gram_matrix, lpips
from keras_vgg.perceptual.distance import LAYERS, learned

KINDS = {"LPIPS": LPIPS, "DISTS": DISTS}
WIDTHS = (4, 8, 16, 32, 32)
RANDOM = np.random.default_rng(0)
LEARNED = {
    "lpips_vgg.safetensors": {
        f"lin{i}": RANDOM.uniform(0, 1, width).astype("float32") for i, width in enumerate(WIDTHS)
    },
    "dists.safetensors": {
        part: RANDOM.uniform(0, 1, 3 + sum(WIDTHS)).astype("float32") for part in ("alpha", "beta")
    },
}


def thin(**options):
    keras.utils.set_random_seed(0)
    return keras_vgg.VGG16(
        include_top=False,
        weights=None,
        width_multiplier=1 / 16,
        kernel_initializer="he_normal",
        **options,
    )


def test_another_width_is_refused():
    network = thin(include_preprocessing=True)
    for kind in KINDS.values():
        with pytest.raises(
            ValueError, match=r"needs VGG-16's channels.*, not \[4, 8, 16, 32, 32\]"
        ):
            kind(network)


@pytest.mark.parametrize(
    ("configuration", "batch_norm", "message"),
    [
        ("D", True, "is defined for VGG-16 without batch norm, and vgg16.* has batch norm: pass"),
        ("E", False, "and vgg19 is VGG-19: pass such a VGG16"),
        ("C", False, "is the paper's network C"),
    ],
)
def test_another_vgg_is_refused(configuration, batch_norm, message):
    network = keras_vgg.vgg(
        configuration,
        include_top=False,
        weights=None,
        width_multiplier=1 / 16,
        batch_norm=batch_norm,
        include_preprocessing=True,
    )
    for kind in KINDS.values():
        with pytest.raises(ValueError, match=message):
            kind(network)


def test_learned_weights():
    layers = learned("lpips_vgg.safetensors")
    assert [len(layers[f"lin{i}"]) for i in range(5)] == [64, 128, 256, 512, 512]
    assert min(values.min() for values in layers.values()) > 0
    dists = learned("dists.safetensors")
    assert [len(dists[part]) for part in ("alpha", "beta")] == [1475, 1475]
    assert min(values.min() for values in dists.values()) >= 0


@pytest.fixture(scope="module")
def trunk():
    """A thin VGG-16, for whose channels LPIPS and DISTS get learned weights."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (lpips, dists):
            patch.setattr(module, "learned", LEARNED.get)
        yield thin(include_preprocessing=ImagePreprocessing.torchvision())


@pytest.fixture(scope="module")
def metrics(trunk):
    return {name: kind(trunk) for name, kind in KINDS.items()}


@pytest.fixture(scope="module")
def spatial(trunk):
    return LPIPS(trunk, spatial=True)


def pair(height=33, width=47, count=2):
    generator = np.random.default_rng(0)
    a = generator.integers(0, 256, (count, height, width, 3)).astype("uint8")
    return a, np.clip(a + generator.normal(0, 40, a.shape), 0, 255).astype("uint8")


def torch_maps(trunk, x, l2):
    """The five maps of images [n, 3, h, w] in [0, 1], by PyTorch's functions."""
    import torch
    from torch.nn import functional

    mean, deviation = (
        torch.tensor(values, dtype=x.dtype).reshape(1, 3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x, maps = (x - mean) / deviation, []
    for layer in trunk.layers[:-1]:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = (torch.tensor(w).to(x.dtype) for w in layer.get_weights())
            x = functional.relu(functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
            maps += [x] if layer.name in LAYERS else []
        elif layer.name.endswith("_pool") and not l2:
            x = functional.max_pool2d(x, 2)
        elif layer.name.endswith("_pool"):
            hann = torch.outer(*[torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)] * 2)
            kernel = hann.expand(x.shape[1], 1, 3, 3)
            squares = functional.conv2d(x**2, kernel, stride=2, padding=1, groups=x.shape[1])
            x = torch.sqrt(squares + 1e-12)
    return maps


def torch_lpips(trunk, a, b, spatial=False):
    from torch.nn import functional

    maps = zip(torch_maps(trunk, a, False), torch_maps(trunk, b, False), strict=True)
    total = 0
    for i, (x, y) in enumerate(maps):
        x, y = (m / (m.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for m in (x, y))
        weights = a.new_tensor(LEARNED["lpips_vgg.safetensors"][f"lin{i}"])
        distance = ((x - y) ** 2 * weights.reshape(1, -1, 1, 1)).sum(1, keepdim=True)
        if spatial:
            distance = functional.interpolate(distance, a.shape[2:], mode="bilinear")
            total = total + distance[:, 0]
        else:
            total = total + distance.mean((1, 2, 3))
    return total


def torch_dists(trunk, a, b):
    import torch

    maps = [[x, *torch_maps(trunk, x, True)] for x in (a, b)]
    alpha, beta = (a.new_tensor(LEARNED["dists.safetensors"][part]) for part in ("alpha", "beta"))
    rows = [[m.flatten(2) for m in features] for features in maps]
    textures, structures = [], []
    for x, y in zip(*rows, strict=True):
        x_mean, y_mean = x.mean(2), y.mean(2)
        textures.append((2 * x_mean * y_mean + 1e-6) / (x_mean**2 + y_mean**2 + 1e-6))
        covariance = ((x - x_mean[..., None]) * (y - y_mean[..., None])).mean(2)
        variances = x.var(2, correction=0) + y.var(2, correction=0)
        structures.append((2 * covariance + 1e-6) / (variances + 1e-6))
    similar = (alpha * torch.cat(textures, 1) + beta * torch.cat(structures, 1)).sum(1)
    return 1 - similar / (alpha.sum() + beta.sum())


@pytest.mark.parametrize("name", KINDS)
def test_values_and_gradients_are_those_of_the_papers_formulas(trunk, metrics, name):
    torch = pytest.importorskip("torch")
    a, b = pair()
    first, second = (torch.tensor(x.transpose(0, 3, 1, 2) / 255.0) for x in (a, b))  # float64
    second.requires_grad_()
    expected = {"LPIPS": torch_lpips, "DISTS": torch_dists}[name](trunk, first, second)
    (slope,) = torch.autograd.grad(expected.sum(), second)
    found = metrics[name](a, b)
    assert (found.shape, found.dtype) == ((2,), np.float32)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)
    assert found.min() > 0.01
    gradient = gradient_of(metrics[name], a, b).ravel()
    slope = slope.numpy().transpose(0, 2, 3, 1).ravel()
    cosine = gradient @ slope / np.linalg.norm(gradient) / np.linalg.norm(slope)
    assert cosine > 0.9999
    np.testing.assert_allclose(np.linalg.norm(gradient), np.linalg.norm(slope) / 255, rtol=1e-3)
    if keras.backend.backend() == "torch":
        assert all(weight.value.grad is None for weight in trunk.weights)


@pytest.mark.parametrize("name", KINDS)
def test_equal_images_and_black_ones_have_finite_gradients(metrics, name):
    a, _ = pair()
    for image in (a, 0 * a):
        assert np.isfinite(gradient_of(metrics[name], image, image)).all()


def gradient_of(metric, a, b):
    a, b = (ops.convert_to_tensor(x, "float32") for x in (a, b))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(b)
            total = tf.reduce_sum(metric(a, b))
        return np.asarray(tape.gradient(total, b))
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda b: metric(a, b).sum())(b))
    b.requires_grad_()
    metric(a, b).sum().backward()
    return b.grad.numpy()


def test_spatial_map(trunk, spatial):
    torch = pytest.importorskip("torch")
    a, b = pair(21, 40)
    found = spatial(a, b)
    assert found.shape == (2, 21, 40)
    first, second = (torch.tensor(x.transpose(0, 3, 1, 2) / 255.0) for x in (a, b))
    expected = torch_lpips(trunk, first, second, spatial=True)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tensors", [False, True])
def test_the_global_dtype_policy_does_not_matter(trunk, metrics, tensors):
    convert = ops.convert_to_tensor if tensors else np.asarray
    a, b = (convert(x.astype("float32")) for x in pair())
    expected = {name: ops.convert_to_numpy(metric(a, b)) for name, metric in metrics.items()}
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = {name: ops.convert_to_numpy(kind(trunk)(a, b)) for name, kind in KINDS.items()}
    finally:
        keras.config.set_dtype_policy(before)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_channels_first_give_the_same_values(trunk, metrics, spatial):
    a, b = pair(16, 33)
    expected = {name: metric(a, b) for name, metric in metrics.items()}
    expected["map"] = spatial(a, b)
    first = [np.moveaxis(x, -1, 1) for x in (a, b)]
    keras.config.set_image_data_format("channels_first")
    try:
        network = thin(include_preprocessing=ImagePreprocessing.torchvision())
        network.set_weights(trunk.get_weights())
        found = {name: kind(network)(*first) for name, kind in KINDS.items()}
        found["map"] = LPIPS(network, spatial=True)(*first)
        grams = gram_matrix(first[0] / 255)
        with pytest.raises(
            ValueError, match=r"images of shape \(2, 16, 33, 3\) must be axis 1, as"
        ):
            LPIPS(network)(a, b)
    finally:
        keras.config.set_image_data_format("channels_last")
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6, err_msg=name)
    rows = a.reshape(2, -1, 3) / 255
    expected = np.einsum("npi,npj->nij", rows, rows) / (16 * 33 * 3)
    np.testing.assert_allclose(ops.convert_to_numpy(grams), expected, rtol=1e-5)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["LPIPS", pytest.param("DISTS", marks=pytest.mark.slow)])
def test_equal_images_ranges_tensors_grey_and_one_image(trunk, metrics, name):
    metric, (a, b) = metrics[name], pair(16, 16)
    np.testing.assert_allclose(metric(a, a), 0, atol=1e-6)
    values = metric(a, b)
    np.testing.assert_allclose(metric(a[0], b[0]), values[0], rtol=1e-4)
    tensors = [ops.convert_to_tensor(x, "float32") for x in (a, b)]
    np.testing.assert_allclose(ops.convert_to_numpy(metric(*tensors)), values, rtol=1e-3)
    signed = KINDS[name](trunk, value_range=(-1, 1))
    np.testing.assert_allclose(signed(a / 127.5 - 1, b / 127.5 - 1), values, rtol=1e-3)
    grey = [x[..., :1] for x in (a, b)]
    three = [np.repeat(x, 3, -1) for x in grey]
    np.testing.assert_allclose(metric(*grey), metric(*three), rtol=1e-4)
    broken = a.astype("float32")
    broken[1, 0, 0, 0] = np.nan
    assert np.isnan(metric(broken, b)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((0, 1), (0, 255), r"y_true have values from -1 to 1, but \[0, 255\] is expected; scale"),
        ((0, 255), (0, 1), "the images y_pred have values from -1 to 1, but"),
        ((0, 1000), (0, 255), "y_true have values from 0 to 1000"),
    ],
)
def test_another_range_is_refused(metrics, a, b, message):
    images = []
    for low, high in (a, b):
        image = np.random.default_rng(0).uniform(low, high, (1, 16, 16, 3))
        image.flat[:2] = (-1 if high == 1 else low), high
        images.append(image)
    with pytest.raises(ValueError, match=message):
        metrics["LPIPS"](*images)


@pytest.mark.slow
def test_images_of_0_to_1_are_warned_of(metrics):
    a, b = pair(16, 16)
    with pytest.warns(UserWarning, match=r"y_true have values from 0 to 1, but \[0, 255\]"):
        metrics["DISTS"](a / 255, b)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((1, 16, 16, 3), (1, 17, 16, 3), "of one size, not"),
        ((1, 15, 40, 3), (1, 15, 40, 3), "images must be at least 16x16 for lpips, not 15x40"),
        ((16, 16), (16, 16), r"\[n, h, w, channels\] of one size, not \(\(16, 16\)"),
        ((1, 3, 64, 64), (1, 3, 64, 64), r"images of shape \(1, 3, 64, 64\) must be axis 3"),
    ],
)
def test_images_that_cannot_be_compared(metrics, a, b, message):
    with pytest.raises(ValueError, match=message):
        metrics["LPIPS"](np.zeros(a), np.zeros(b))


@pytest.mark.slow
def test_a_loss_and_a_metric_in_one_training(metrics):
    metric, (a, b) = metrics["LPIPS"], pair(16, 16, count=5)
    a, b = a.astype("float32"), b.astype("float32")
    image = keras.Input((16, 16, 3))
    identity = keras.initializers.Constant(np.eye(3)[None, None])
    layer = keras.layers.Conv2D(3, 1, kernel_initializer=identity)
    generator = keras.Model(image, layer(image))
    generator.compile(keras.optimizers.SGD(0.01), loss=metric, metrics=[metric])
    values = metric(a, b)
    scores = generator.evaluate(b, a, batch_size=2, verbose=0, return_dict=True)
    # Uneven batches: the mean over the pairs, not over the batches.
    np.testing.assert_allclose(scores["lpips"], values.mean(), rtol=1e-3)
    np.testing.assert_allclose(scores["loss"], values.mean(), rtol=1e-3)
    before = generator.get_weights()[0]
    generator.fit(b, a, batch_size=5, verbose=0)
    assert np.abs(generator.get_weights()[0] - before).max() > 0


@pytest.mark.slow
def test_a_metric_and_data_sets(metrics):
    metric, (a, b) = metrics["DISTS"], pair(16, 16, count=3)
    values = metric(a, b)
    mean = metric.metric()
    mean.update_state(a[:2].astype("float32"), b[:2].astype("float32"))
    mean.update_state(a[2:].astype("float32"), b[2:].astype("float32"))
    np.testing.assert_allclose(float(mean.result()), values.mean(), rtol=1e-3)
    assert mean.name == "dists"
    import tensorflow as tf

    pairs = tf.data.Dataset.from_tensor_slices((a, b)).batch(2)
    np.testing.assert_allclose(metric.evaluate(pairs), values, rtol=1e-3)
    np.testing.assert_allclose(metric.evaluate([(a, b)]), values, rtol=1e-3)
    with pytest.raises(ValueError, match="there are no pairs"):
        metric.evaluate([])
    with pytest.raises(ValueError, match="pairs must give batches"):
        metric.evaluate([a])


def test_saving_with_a_model(trunk, tmp_path, monkeypatch):
    path = tmp_path / "trunk.keras"
    trunk.save(path)
    monkeypatch.setattr(distance, "VGG16", lambda weights, **_: keras.saving.load_model(weights))
    metric = LPIPS(path, preprocessing=ImagePreprocessing.torchvision(), value_range=(-1, 1))
    config = keras.saving.serialize_keras_object(metric)
    assert config["config"]["weights"] == str(path)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == metric.get_config()
    with pytest.raises(ValueError, match=r"lpips held a network .*: load the model with compile=F"):
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(LPIPS(trunk)))


def test_a_strangers_file_reads_no_other_weights(tmp_path, monkeypatch):
    """Keras makes any object that a layer's configuration names, and a distance reads weights."""
    thin(include_preprocessing=True).save(tmp_path / "a.keras")
    read = []
    monkeypatch.setattr(distance, "VGG16", lambda **options: read.append(options["weights"]))
    metric = {"weights": "hf://owner/name", "preprocessing": None, "value_range": [0, 255]}
    module = {"module": "keras_vgg.perceptual.lpips", "registered_name": "keras_vgg>LPIPS"}
    with (
        zipfile.ZipFile(tmp_path / "a.keras") as source,
        zipfile.ZipFile(tmp_path / "b.keras", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                (layer,) = [x for x in config["config"]["layers"] if x["name"] == "block1_conv1"]
                layer["config"]["activation"] = {**module, "class_name": "LPIPS", "config": metric}
                content = json.dumps(config)
            target.writestr(name, content)
    with pytest.raises(ValueError, match=r"b.keras cannot be read"):
        load_keras_file(tmp_path / "b.keras")
    assert read == []


def test_a_file_keeps_the_preprocessing_that_it_states(tmp_path):
    thin(include_preprocessing=ImagePreprocessing.torchvision()).save(tmp_path / "a.keras")
    with pytest.raises(
        ValueError, match=r"a.keras already states what its network expects, RGB wi"
    ):
        LPIPS(tmp_path / "a.keras", preprocessing=ImagePreprocessing.caffe())


def test_networks_that_do_not_fit(trunk):
    with pytest.raises(ValueError, match="vgg16 has no preprocessing inside: build it with"):
        LPIPS(thin())
    with pytest.raises(ValueError, match="has its preprocessing inside: pass none"):
        DISTS(trunk, preprocessing=ImagePreprocessing.caffe())
    with pytest.raises(ValueError, match=re.escape("value_range must rise, not (1, 1)")):
        LPIPS(trunk, value_range=(1, 1))
    with pytest.raises(FileNotFoundError, match=r"no file 'absent.h5'"):
        LPIPS("absent.h5")

"""Features put to another use; this file runs on TensorFlow and on JAX."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

import keras_vgg
from keras_vgg import transfer
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.transfer import descriptors

SMALL = {"weights": None, "width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7}


def small(configuration="A", **options):
    return keras_vgg.vgg(configuration, **(SMALL | {"input_shape": (32, 32, 3)} | options))


@pytest.fixture(scope="module")
def network():
    """A network for tests that leave it as it is."""
    return small()


def images(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


def output_of(model, name, x):
    part = keras.Model(model.inputs[0], model.get_layer(name).output)
    return ops.convert_to_numpy(part(x, training=False))


def test_several_layers_in_one_pass(network):
    model, x = network, images(2, 32, 32, 3)
    names = ["block1_pool", "block3_conv2", "fc1"]
    found = transfer.feature_extractor(model, names)(x)
    assert list(found) == names
    for name in names:
        np.testing.assert_allclose(found[name], output_of(model, name, x), rtol=1e-5, atol=1e-5)


def test_an_extractor_shares_its_weights():
    model, x = small(), images(2, 32, 32, 3)
    extractor = transfer.feature_extractor(model, "block2_pool")
    model.set_weights([0.5 * w for w in model.get_weights()])
    np.testing.assert_allclose(
        extractor(x)["block2_pool"], output_of(model, "block2_pool", x), rtol=1e-5, atol=1e-5
    )


def test_pooling(network):
    model, x = network, images(2, 32, 32, 3)
    feature_map = output_of(model, "block2_pool", x)  # 8 x 8
    for pooling, expected in (
        ("avg", feature_map.mean((1, 2))),
        ("max", feature_map.max((1, 2))),
        (2, feature_map.reshape(2, 2, 4, 2, 4, -1).mean((2, 4)).reshape(2, -1)),
    ):
        found = transfer.feature_extractor(model, ["block2_pool", "fc1"], pooling=pooling)(x)
        np.testing.assert_allclose(found["block2_pool"], expected, rtol=1e-4, atol=1e-4)
        assert found["fc1"].shape == (2, 8)


@pytest.mark.parametrize(
    ("layers", "pooling", "message"),
    [
        ("block1_convl", None, "has no layer 'block1_convl'; did you mean 'block1_conv1'"),
        ([], None, "one or more different names"),
        (["fc1", "fc1"], None, "one or more different names"),
        ("fc1", "mean", "pooling must be None, 'avg', 'max' or a number, not 'mean'"),
        ("fc1", 0, "pooling must be"),
        (
            "block5_pool",
            2,
            "a map of known size, at least as large as the grid; block5_pool gives 1 x 1",
        ),
        ("block2_pool", 3, "gives 8 x 8, which 3 x 3 parts do not divide"),
    ],
)
def test_features_that_cannot_be_had(network, layers, pooling, message):
    with pytest.raises(ValueError, match=message):
        transfer.feature_extractor(network, layers, pooling=pooling)


@pytest.mark.parametrize("grid", [2, 3])
def test_a_grid_leaves_out_no_row(grid):
    model = small(input_shape=(56, 56, 3), include_top=False)
    with pytest.raises(ValueError, match=rf"gives 7 x 7, which {grid} x {grid} parts do not div"):
        transfer.feature_extractor(model, "block3_pool", pooling=grid)


@pytest.mark.parametrize(
    ("until", "first"), [("none", 1), ("block2", 2), ("block5", 5), ("all", 6)]
)
def test_freeze(until, first):
    model = small(batch_norm=True)
    names = transfer.freeze(model, until)
    for layer in model.layers:
        if layer.weights:
            frozen = layer.name.startswith("block") and int(layer.name[5]) < first
            assert layer.trainable != frozen
            assert (layer.name in names) == frozen
    assert transfer.freeze(model, "none") == ()
    assert all(layer.trainable for layer in model.layers)
    with pytest.raises(ValueError, match="until must be one of none, all, block1"):
        transfer.freeze(model, "fc1")


def test_freeze_decides_alone_what_is_trained():
    model = small()
    model.trainable = False  # the usual idiom; it would outlast the layers' own
    assert transfer.freeze(model, "block1") == ()
    assert len(model.trainable_weights) == len(model.weights)
    outer = keras.Sequential([small(include_top=False), keras.layers.GlobalMaxPooling2D()])
    with pytest.raises(ValueError, match=r"no layers block1_.*: freeze the VGG that it holds"):
        transfer.freeze(outer, "all")


def test_frozen_batch_norm_keeps_its_statistics_and_uses_them():
    model = small(batch_norm=True)
    transfer.freeze(model, "block3")
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    before = {w.path: ops.convert_to_numpy(w) for w in model.weights}
    model.fit(images(8, 32, 32, 3), np.arange(8) % 7, verbose=0, batch_size=8)
    changed = {w.path for w in model.weights if not np.array_equal(before[w.path], w)}
    for w in model.weights:
        frozen = w.path.startswith(("block1", "block2"))
        if frozen or "moving" in w.path:
            assert (w.path in changed) != frozen, w.path
    x = images(2, 32, 32, 3)
    part = keras.Model(model.inputs[0], model.get_layer("block2_pool").output)
    np.testing.assert_array_equal(part(x, training=True), part(x, training=False))


@pytest.fixture(scope="module")
def base():
    return keras_vgg.vgg("A", weights=None, include_top=False, width_multiplier=1 / 16)


def unit(v):
    return v / np.linalg.norm(v)


def by_hand(model, image, layer="block5_pool"):
    """The paper's descriptor of one image, one view after the other."""
    values = [
        output_of(model, layer, view[None]).mean((0, 1, 2)) for view in (image, image[:, ::-1])
    ]
    return unit(np.mean(values, 0))


def test_embed_is_the_papers_descriptor(base):
    mixed = [images(40, 64, 3), images(64, 40, 3, seed=1), images(40, 64, 3, seed=2)]
    found = transfer.embed(base, mixed, batch_size=2)
    assert (found.shape, found.dtype) == ((3, 32), np.float32)
    for image, descriptor in zip(mixed, found, strict=True):
        np.testing.assert_allclose(descriptor, by_hand(base, image), rtol=1e-4, atol=1e-5)
    flipped = transfer.embed(base, [image[:, ::-1] for image in mixed])
    np.testing.assert_allclose(found, flipped, rtol=1e-4, atol=1e-5)
    once = transfer.embed(base, mixed[:1], flip=False)[0]
    one_view = output_of(base, "block5_pool", mixed[0][None]).mean((0, 1, 2))
    np.testing.assert_allclose(once, unit(one_view), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch alone keeps a record")
def test_descriptors_keep_no_record_for_gradients(base):
    layer = "block5_pool"
    extractor = transfer.feature_extractor(base, layer)
    outputs = descriptors._outputs(extractor, images(1, 64, 64, 3), layer, flip=True)
    assert [output.requires_grad for output in outputs] == [False, False]


def test_embed_at_several_scales(base):
    image = images(50, 75, 3)
    scaled = [
        ops.convert_to_numpy(ops.image.resize(image[None], shape, antialias=True))[0]
        for shape in ((32, 48), (64, 96))
    ]
    single = [by_hand(base, s) for s in scaled]
    stacked = transfer.embed(base, image[None], sizes=(32, 64))[0]
    np.testing.assert_allclose(stacked, unit(np.concatenate(single)), rtol=1e-3, atol=1e-5)
    average = transfer.embed(base, image[None], sizes=(32, 64), combine="average")[0]
    np.testing.assert_allclose(average, unit(np.mean(single, 0)), rtol=1e-3, atol=1e-5)


def test_embed_takes_bytes_and_one_size_and_shows_progress(base, capsys):
    few = images(3, 32, 48, 3).astype("uint8")
    found = transfer.embed(base, few, batch_size=2, verbose=1)
    assert "3/3" in capsys.readouterr().out
    np.testing.assert_array_equal(found, transfer.embed(base, few.astype("float32"), batch_size=2))
    assert capsys.readouterr().out == ""
    same = transfer.embed(base, few, sizes=32)  # already of that size
    np.testing.assert_allclose(same, found, rtol=1e-4, atol=1e-5)


def test_embed_in_half_precision(base):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = keras_vgg.vgg("A", weights=None, include_top=False, width_multiplier=1 / 16)
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(base.get_weights())
    few = images(2, 32, 32, 3)
    found = transfer.embed(half, few)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, transfer.embed(base, few), atol=0.05)


def test_embed_with_channels_first():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels-first convolution on a CPU; JAX runs this")
    options = {"weights": None, "include_top": False, "width_multiplier": 1 / 16}
    last = keras_vgg.vgg("A", **options)
    few = images(2, 40, 64, 3)
    expected = transfer.embed(last, few, sizes=(32,))
    keras.config.set_image_data_format("channels_first")
    try:
        first = keras_vgg.vgg("A", **options)
        first.set_weights(last.get_weights())
        found = transfer.embed(first, few, sizes=(32,))
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_a_model_of_one_size_takes_no_other(network):
    message = r"image 0 comes as \(32, 51, 3\), vgg11 takes \(32, 32, 3\)"
    with pytest.raises(ValueError, match=message):
        transfer.embed(network, images(1, 40, 64, 3), sizes=(32,))
    with pytest.raises(ValueError, match=r"image 1 comes as \(32, 32, 1\)"):
        transfer.embed(network, [images(32, 32, 3), images(32, 32, 1)])


def test_embed_takes_the_fc_layers_as_convolutions():
    """The paper's 4096-D descriptor: the penultimate layer, over the whole image."""
    model = small(head="conv", input_shape=(None, None, 3), train_size=32)
    image = images(64, 96, 3)
    found = transfer.embed(model, image[None])[0]
    np.testing.assert_allclose(found, by_hand(model, image, "fc2"), rtol=1e-4, atol=1e-5)
    assert found.shape == (8,)


def test_a_descriptor_of_nothing_is_not_nan(base):
    zero = keras_vgg.vgg("A", weights=None, include_top=False, width_multiplier=1 / 16)
    zero.set_weights([0 * w for w in zero.get_weights()])
    assert np.all(transfer.embed(zero, images(2, 32, 32, 3)) == 0)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ([], {}, "no images"),
        (np.zeros((2, 32, 32)), {}, r"image 0 has shape \(32, 32\)"),
        (np.full((1, 32, 32, 3), np.nan), {}, "image 0 holds values that are not finite"),
        (np.zeros((1, 32, 32, 3)), {"combine": "sum"}, "combine must be"),
        (np.zeros((1, 32, 32, 3)), {"sizes": (16,)}, "sizes must be whole numbers of 32 or more"),
        (np.zeros((1, 32, 32, 3)), {"sizes": ()}, "sizes must be whole numbers"),
        (np.zeros((1, 32, 32, 3)), {"sizes": (32.5,)}, "sizes must be whole numbers"),
        (np.zeros((1, 32, 32, 3)), {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (np.zeros((1, 32, 32, 3)), {"layer": "fc2"}, "has no layer 'fc2'"),
        (np.zeros((1, 16, 32, 3)), {}, r"image 0 is \(16, 32\), smaller than 32x32"),
    ],
)
def test_images_that_cannot_be_embedded(base, what, options, message):
    with pytest.raises(ValueError, match=message):
        transfer.embed(base, what, **options)


def clusters(n, seed):
    """Three classes, which two of ten features tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    x = rng.normal(size=(n, 10))
    x[:, 0] += 3 * (labels == 1)
    x[:, 1] += 3 * (labels == 2)
    return x * 10.0 ** np.arange(-2, 3).repeat(2), labels


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_linear_probe_chooses_on_validation(kind):
    x, y = clusters(300, 0)
    vx, vy = clusters(200, 1)
    found = transfer.linear_probe(x, y, vx, vy, C=(1, 1e-9, 1e-2), kind=kind, max_iter=5000)
    assert [c for c, _ in found.tried] == [1e-9, 1e-2, 1]
    assert found.validation_accuracy == max(a for _, a in found.tried)
    assert found.validation_accuracy > 0.85
    assert min(c for c, a in found.tried if a == found.validation_accuracy) == found.C
    assert found.score(vx, vy) == found.validation_accuracy
    assert np.mean(found.predict(vx) == vy) == found.validation_accuracy
    assert found.converged
    again = transfer.linear_probe(x, y, vx, vy, C=(found.C,), kind=kind, max_iter=5000)
    np.testing.assert_array_equal(again.classifier.predict(vx), found.classifier.predict(vx))
    one = transfer.linear_probe(x, y, vx, vy, C=(1.0,), max_iter=1)
    assert not one.converged


@pytest.mark.parametrize("standardize", [True, False])
def test_linear_probe_is_scikit_learns(standardize):
    """Standardised by hand, on the training features' statistics alone."""
    x, y = clusters(300, 0)
    vx, vy = clusters(200, 1)
    mean, deviation = (x.mean(0), x.std(0)) if standardize else (0, 1)
    for kind, classifier in (
        ("logistic", LogisticRegression(C=1e-3, max_iter=5000)),
        ("svm", LinearSVC(C=1e-3, max_iter=5000, random_state=0)),
    ):
        options = {"C": (1e-3,), "kind": kind, "standardize": standardize, "max_iter": 5000}
        found = transfer.linear_probe(x, y, vx, vy, **options)
        expected = classifier.fit((x - mean) / deviation, y).predict((vx - mean) / deviation)
        np.testing.assert_array_equal(found.predict(vx), expected)


def test_a_probe_fitted_to_its_end_does_not_depend_on_rounding():
    digits = load_digits()
    x = np.tanh(digits.data @ np.random.default_rng(0).normal(size=(64, 32)) / 100)
    other = x.astype(np.float32).astype(float)

    def probabilities(features, **options):
        probe = transfer.linear_probe(
            features[:300], digits.target[:300], x[300:400], digits.target[300:400],
            C=(1.0,), max_iter=1000, **options,
        )  # fmt: skip
        assert probe.converged
        return probe.classifier.predict_proba(x[300:400])

    best = probabilities(x, tol=1e-8)
    assert np.abs(probabilities(other, tol=1e-8) - best).max() < 1e-5
    assert np.abs(probabilities(x) - best).max() > 1e-4


def test_a_probe_hides_no_other_warning(monkeypatch):
    x, y = clusters(50, 0)
    fit = LogisticRegression.fit

    def warns(self, *args, **kwargs):
        warnings.warn("look here", UserWarning, stacklevel=1)
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(LogisticRegression, "fit", warns)
    with pytest.warns(UserWarning, match="look here"):
        assert transfer.linear_probe(x, y, x, y, C=(0.1,), max_iter=1000).converged


def test_features_that_no_probe_can_learn():
    x, y = clusters(20, 0)
    with pytest.raises(ValueError, match="C must be one or more positive numbers"):
        transfer.linear_probe(x, y, x, y, C=())
    with pytest.raises(ValueError, match="kind must be one of logistic, svm"):
        transfer.linear_probe(x, y, x, y, kind="forest")
    with pytest.raises(
        ValueError, match=r"training features must be .* not \(20, 10\) with \(5,\)"
    ):
        transfer.linear_probe(x, y[:5], x, y)
    with pytest.raises(ValueError, match=r"with \[n\] labels, not \(20, 10\) with \(20, 1\)"):
        transfer.linear_probe(x, y, x, y[:, None])
    with pytest.raises(
        ValueError, match="training features have 10 columns, validation features 4"
    ):
        transfer.linear_probe(x, y, x[:, :4], y)
    with pytest.raises(ValueError, match="C must be one or more positive numbers"):
        transfer.linear_probe(x, y, x, y, C=(1.0, float("nan")))
    with pytest.raises(ValueError, match="validation features hold values that are not finite"):
        transfer.linear_probe(x, y, x * np.nan, y)
    with pytest.raises(ValueError, match="the training labels are all the same"):
        transfer.linear_probe(x, 0 * y, x, y)


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_perceptual_loss_is_the_distance_of_features(distance):
    net = small(include_preprocessing=True)
    a, b = images(3, 32, 32, 3), images(3, 32, 32, 3, seed=1)
    layers = {"block1_conv1": 0.5, "block3_conv2": 2.0}
    loss = transfer.PerceptualLoss(net, layers, distance=distance)
    expected = 0
    for name, weight in layers.items():
        difference = output_of(net, name, a) - output_of(net, name, b)
        difference = difference**2 if distance == "l2" else np.abs(difference)
        expected = expected + weight * difference.mean((1, 2, 3))
    np.testing.assert_allclose(loss.call(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(loss(a, b), expected.mean(), rtol=1e-4)
    assert float(loss(a, a)) == 0
    weighted = loss(a, b, sample_weight=np.float32([1, 0, 0]))
    np.testing.assert_allclose(weighted, expected[0] / 3, rtol=1e-4)


def test_perceptual_loss_maps_ranges_channels_and_preprocesses():
    inside, plain = small(include_preprocessing=True), small()
    plain.set_weights(inside.get_weights())
    a, b = images(2, 32, 32, 3), images(2, 32, 32, 3, seed=1)
    expected = float(transfer.PerceptualLoss(inside, "block2_pool")(a, b))
    caffe = ImagePreprocessing.caffe()
    found = transfer.PerceptualLoss(plain, "block2_pool", preprocessing=caffe)(a, b)
    np.testing.assert_allclose(float(found), expected, rtol=1e-4)
    signed = transfer.PerceptualLoss(inside, "block2_pool", value_range=(-1, 1))
    np.testing.assert_allclose(float(signed(a / 127.5 - 1, b / 127.5 - 1)), expected, rtol=1e-3)
    already = transfer.PerceptualLoss(plain, "block2_pool", preprocessing=False)
    np.testing.assert_allclose(float(already(caffe(a), caffe(b))), expected, rtol=1e-4)
    gray = transfer.PerceptualLoss(inside, "block2_pool")
    three = [np.repeat(x[..., :1], 3, -1) for x in (a, b)]
    np.testing.assert_allclose(float(gray(a[..., :1], b[..., :1])), float(gray(*three)), rtol=1e-5)
    for name in ("block2_pool", "fc1"):
        units = []
        for x in (a, b):
            values = output_of(inside, name, x)
            length = np.linalg.norm(values, axis=-1, keepdims=True)
            units.append(values / np.where(length > 0, length, 1))
        found = transfer.PerceptualLoss(inside, name, normalize=True)(a, b)
        np.testing.assert_allclose(
            float(found), np.mean((units[0] - units[1]) ** 2), rtol=1e-3, atol=1e-7
        )


def test_a_model_learns_by_perceptual_loss_and_the_vgg_does_not():
    net = small(include_preprocessing=True)
    before = net.get_weights()
    image = keras.Input((32, 32, 3))
    start = keras.initializers.Constant(0.1)
    generator = keras.Model(image, keras.layers.Conv2D(3, 1, kernel_initializer=start)(image))
    loss = transfer.PerceptualLoss(net, {"block1_conv1": 1.0, "block2_pool": 1.0})
    generator.compile(keras.optimizers.Adam(0.02), loss=loss)
    x = images(16, 32, 32, 3)
    history = generator.fit(x, x, epochs=15, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    for a, b in zip(before, net.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all("block" not in w.path for w in generator.trainable_weights)


@pytest.mark.slow
def test_pixels_without_features_give_a_finite_gradient():
    """x / |x| has no derivative at 0, where a ReLU often is."""
    net = small(include_preprocessing=True)
    first = net.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    first.set_weights([0 * kernel + 0.01, bias])  # nothing where the image is darker than the mean
    x = np.zeros((4, 32, 32, 3), "float32")
    x[:2] = 200
    image = keras.Input((32, 32, 3))
    generator = keras.Model(image, keras.layers.Conv2D(3, 1)(image))
    loss = transfer.PerceptualLoss(net, ["block1_conv1", "block5_pool"], normalize=True)
    generator.compile("sgd", loss=loss)
    history = generator.fit(x, x, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert all(np.isfinite(w).all() for w in generator.get_weights())


def test_perceptual_loss_of_a_half_precision_network():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = small(include_preprocessing=True)
    finally:
        keras.config.set_dtype_policy("float32")
    full = small(include_preprocessing=True)
    full.set_weights(half.get_weights())
    a, b = np.zeros((1, 32, 32, 3), "float32"), np.full((1, 32, 32, 3), 255, "float32")
    # Features that differ by more than 256: their squares are infinite in float16.
    expected, found = (
        float(transfer.PerceptualLoss(net, "block1_conv1", value_range=(0, 40))(a, b))
        for net in (full, half)
    )
    assert expected > 65504
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_perceptual_loss_knows_channels_first():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels-first convolution on a CPU; JAX runs this")
    last = small(include_preprocessing=True)
    a, b = images(2, 32, 32, 1), images(2, 32, 32, 1, seed=1)
    expected = float(transfer.PerceptualLoss(last, "block2_pool", normalize=True)(a, b))
    keras.config.set_image_data_format("channels_first")
    try:
        first = small(include_preprocessing=True, input_shape=(3, 32, 32))
        first.set_weights(last.get_weights())
        loss = transfer.PerceptualLoss(first, "block2_pool", normalize=True)
        found = float(loss(np.moveaxis(a, -1, 1), np.moveaxis(b, -1, 1)))
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_perceptual_loss_names_the_least_size():
    net = small(include_top=False, input_shape=(None, None, 3), include_preprocessing=True)
    a = images(1, 20, 20, 3)
    with pytest.raises(ValueError, match=r"at least 32x32 for the layers block5_pool, not 20x20"):
        transfer.PerceptualLoss(net, "block5_pool")(a, a)
    wide = images(1, 40, 15, 3)
    with pytest.raises(ValueError, match=r"at least 16x16 .*, not 40x15"):
        transfer.PerceptualLoss(net, ["block1_conv1", "block5_conv2"])(wide, wide)
    assert float(transfer.PerceptualLoss(net, "block5_conv2")(a, a)) == 0
    assert float(transfer.PerceptualLoss(net, "block5_pool")(*[images(1, 32, 33, 3)] * 2)) == 0


@pytest.mark.parametrize(
    ("scale", "shift", "options", "message"),
    [
        (1 / 127.5, -1, {}, r"from -1 to 1, but \[0, 255\] is expected; .* value_range=\(-1, 1\)"),
        (1 / 64, -2, {}, "from -2 to"),
        (1, -123, {}, r"\[0, 255\] is expected"),
        (1, 0, {"value_range": (0, 1)}, r"to 255, but \[0, 1\] is expected"),
        (1, 0, {"value_range": (-1, 1)}, r"but \[-1, 1\] is expected"),
    ],
)
def test_perceptual_loss_refuses_another_range(scale, shift, options, message):
    loss = transfer.PerceptualLoss(small(include_preprocessing=True), "block1_conv1", **options)
    x = images(1, 32, 32, 3)
    x.flat[:2] = 0, 255
    with pytest.raises(ValueError, match=message):
        loss(x * scale + shift, x)
    with pytest.raises(ValueError, match=message):
        loss(keras.ops.convert_to_tensor(x * scale + shift), x)


def test_perceptual_loss_warns_of_small_values():
    net = small(include_preprocessing=True)
    x, zeros = images(1, 32, 32, 3) / 255, np.zeros((1, 32, 32, 3), "float32")
    loss = transfer.PerceptualLoss(net, "block1_conv1")
    with pytest.warns(UserWarning, match=r"the images have values from .* name their range"):
        loss(x, zeros)
    assert np.isfinite(loss(zeros, zeros))  # black
    assert np.isfinite(loss(images(1, 32, 32, 3) - 9, zeros))  # resampled
    assert np.isfinite(transfer.PerceptualLoss(net, "block1_conv1", value_range=(0, 1))(x, zeros))


def test_perceptual_loss_compares_images_of_one_size():
    net = small(include_top=False, input_shape=(None, None, 3), include_preprocessing=True)
    loss = transfer.PerceptualLoss(net, "block5_pool")  # 1 x 1 against 2 x 2 would broadcast
    with pytest.raises(ValueError, match=r"images must be .* of one size"):
        loss(images(1, 32, 32, 3), images(1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"images must be .* of one size"):
        loss(images(32, 32, 3), images(32, 32, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": {}}, "one or more different names"),
        ({"layers": ["fc1", "fc1"]}, "one or more different names"),
        ({"layers": {"fc1": 0.0}}, "layers need positive weights"),
        ({"layers": "fc9"}, "has no layer 'fc9'; did you mean 'fc"),
        ({"distance": "cosine"}, "distance must be 'l2' or 'l1'"),
        ({"value_range": (1, 1)}, "value_range must rise"),
        ({"preprocessing": None}, "no preprocessing inside: pass that of its training"),
        ({"preprocessing": True}, "no preprocessing inside: pass that of its training"),
    ],
)
def test_perceptual_losses_that_make_no_sense(network, options, message):
    options = {"layers": "fc1", "preprocessing": False} | options
    with pytest.raises(ValueError, match=message):
        transfer.PerceptualLoss(network, **options)


def test_a_perceptual_loss_preprocesses_once_and_is_not_loaded_with_a_model(tmp_path):
    net = small(include_preprocessing=True)
    with pytest.raises(ValueError, match="has its preprocessing inside: pass none"):
        transfer.PerceptualLoss(net, "fc1", preprocessing=ImagePreprocessing.caffe())
    image = keras.Input((32, 32, 3))
    generator = keras.Model(image, keras.layers.Conv2D(3, 1)(image))
    generator.compile("sgd", loss=transfer.PerceptualLoss(net, "fc1"))
    generator.save(tmp_path / "generator.keras")
    again = keras.saving.load_model(tmp_path / "generator.keras", compile=False)
    for a, b in zip(generator.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="load the model with compile=False"):
        keras.saving.load_model(tmp_path / "generator.keras")
    keras.Model(generator.inputs, generator.outputs).save(tmp_path / "bare.keras")
    bare = keras.saving.load_model(tmp_path / "bare.keras")
    for a, b in zip(generator.get_weights(), bare.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # The file of the compiled model has the weights of the loss' network, too.
    sizes = [(tmp_path / name).stat().st_size for name in ("generator.keras", "bare.keras")]
    assert sizes[0] > 4 * net.count_params() > 2 * sizes[1]

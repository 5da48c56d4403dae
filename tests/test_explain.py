"""Heat: against gradients worked out by hand, in nested models, of nets that were trained."""

import gc
import tracemalloc
import weakref

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_vgg import explain, vgg
from keras_vgg.explain import heat as heats
from keras_vgg.explain.network import opened
from keras_vgg.gradient import answer_of


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


@pytest.mark.slow
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


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "model_of",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sequential", "functional")),
        "two levels",
    ],
)
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
    for layer, method in (("block5_conv1", "grad-cam"), ("block3_pool", "grad-cam++")):
        expected = explain.grad_cam(flat, images, layer=layer, method=method)
        found = explain.grad_cam(model, images, layer=f"base/{layer}", method=method)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.max() == 1


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_overlay_of_some_pixels_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (200, 300, 3), "uint8")
    heat = rng.uniform(0, 1, (200, 300)).astype("float32")
    heat[50:100, 200:] = np.nan
    small_heat = heat[::50, ::50]
    monkeypatch.setattr(heats, "_PIXELS", image.size)
    whole = [explain.overlay(image, one) for one in (heat, small_heat)]
    monkeypatch.setattr(heats, "_PIXELS", 1234)
    for expected, one in zip(whole, (heat, small_heat), strict=True):
        tracemalloc.start()
        found = explain.overlay(image, one)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        np.testing.assert_array_equal(found, expected)
        assert peak < 20 * heat.size  # bytes; all at once it is over 100 a pixel


def test_overlay_takes_what_rounding_leaves_outside_the_range():
    heat = np.zeros((2, 2))
    image = np.full((2, 2, 3), 255.00002, "float32")
    np.testing.assert_array_equal(explain.overlay(image, heat, alpha=0), np.full((2, 2, 3), 255))
    with pytest.raises(ValueError, match=r"an image in \[0, 255\]"):
        explain.overlay(image + 1, heat)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the warning is TensorFlow's")
def test_many_layers_of_many_models_raise_no_warning(caplog):
    for _ in range(3):
        model = small("A")
        for layer in ("block1_conv1", "block2_conv1", "block3_conv2"):
            explain.grad_cam(model, noise(size=32), layer=layer)
    assert "retracing" not in caplog.text


def test_default_layers():
    names = {
        "block5_conv2": small("A"),
        "block5_conv3": small("C", head="conv"),
        "block5_conv3_relu": small("D", head="fc", batch_norm=True),
        "base/block5_conv2": nested("sequential"),
    }
    for name, model in names.items():
        assert opened(model).place(None).path == name


def linear(weights, side=4):
    """Scores are weights times pixels: the gradient is the weights."""
    model = keras.Sequential(
        [keras.Input((side, side, 2)), layers.Flatten(), layers.Dense(weights.shape[1], "softmax")]
    )
    model.layers[-1].set_weights([weights, np.zeros(weights.shape[1])])
    return model


def test_saliency_of_a_linear_model_is_its_weights():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(32, 3)).astype("float32")
    images = rng.uniform(0, 255, (2, 4, 4, 2)).astype("float32")
    expected = np.abs(weights.T.reshape(3, 4, 4, 2)).max(-1)[[2, 0]]
    expected /= expected.max((1, 2), keepdims=True)
    found = explain.saliency(linear(weights), images, classes=[2, 0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # The same whatever the noise, for the gradient is the same everywhere.
    smooth = explain.saliency(linear(weights), images, classes=[2, 0], samples=3, noise=0.2)
    np.testing.assert_allclose(smooth, expected, rtol=1e-5)


def smooth(activation):
    """Without a kink, so that a finite difference is a gradient."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(4, 3, activation="tanh", name="conv"),
            layers.BatchNormalization(),
            layers.AveragePooling2D(2),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3, activation, name="predictions"),
        ]
    )


def test_gradients_are_finite_differences_in_inference():
    # Dropout and batch norm as in use; the class's score before the soft-max.
    model, scores = smooth("softmax"), smooth(None)
    rng = np.random.default_rng(0)
    scores.set_weights([rng.uniform(0.1, 1, w.shape) - 0.3 * (w.ndim > 1) for w in scores.weights])
    model.set_weights(scores.get_weights())
    network = opened(model)
    place = network.place("conv")
    images = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    maps = values(network.maps(place)([images], training=False))
    chosen = ops.convert_to_tensor(np.array([1, 2], "int32"))
    after = keras.Model(scores.get_layer("conv").output, scores.outputs[0])
    for at, inputs, wanted, function in (
        (images, [images], None, scores),
        (maps, [images, maps], place, after),
    ):
        gradient = network.score_gradient(wanted)
        found = values(gradient([ops.convert_to_tensor(x) for x in inputs], chosen)[1])
        direction = rng.normal(size=at.shape).astype("float32")
        up, down = (values(function(at + h * direction, training=False)) for h in (0.01, -0.01))
        expected = (up - down)[[0, 1], [1, 2]] / 0.02
        np.testing.assert_allclose((found * direction).sum((1, 2, 3)), expected, rtol=1e-2)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("head", ["fc", pytest.param("conv", marks=pytest.mark.slow), "gap"])
def test_scores_are_those_before_the_softmax(head):
    model, scores = small(head=head), small(head=head, classifier_activation=None)
    scores.set_weights(model.get_weights())
    np.testing.assert_allclose(
        values(opened(model).scores([noise(2, 32)])), values(scores(noise(2, 32))), rtol=1e-5
    )
    for method in ("grad-cam", "grad-cam++"):
        options = {"classes": 2, "method": method, "layer": "block4_conv1"}
        np.testing.assert_allclose(
            explain.grad_cam(model, noise(2, 32), **options),
            explain.grad_cam(scores, noise(2, 32), **options),
            atol=1e-5,
        )


def _own_softmax(x):
    """As a backend's own function, such as tf.nn.softmax, it is none of Keras' activations."""
    powers = ops.exp(x - ops.max(x, -1, keepdims=True))
    return powers / ops.sum(powers, -1, keepdims=True)


def _soft(*last):
    return keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(6, 2, name="map"), *last])


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "last",
    [
        lambda: [layers.Dense(3, "softmax"), layers.Activation("linear", dtype="float32")],
        lambda: [layers.Dense(3, "softmax"), layers.Identity(), layers.Dropout(0.5)],
        lambda: [layers.Dense(3, "softmax"), layers.Flatten(), layers.Reshape((3,))],
        lambda: [layers.Dense(3, layers.Softmax())],
        lambda: [layers.Dense(3, ops.softmax)],
        lambda: [layers.Dense(3, _own_softmax)],
        lambda: [layers.Dense(3), layers.Activation(_own_softmax)],
        lambda: [layers.Dense(3), layers.Softmax(), layers.Identity()],
        lambda: [layers.Dense(3), layers.Activation(layers.Softmax())],
        lambda: [
            layers.Reshape((1, 1, 54)),
            layers.Conv2D(3, 1, activation="softmax"),
            layers.Flatten(),
        ],
    ],
)
def test_scores_are_those_before_the_softmax_where_layers_follow_it(last):
    model, scores = _soft(layers.Flatten(), *last()), _soft(layers.Flatten(), layers.Dense(3))
    kernel, bias, *end = model.get_weights()
    scores.set_weights([kernel, bias, end[0].reshape(54, 3), end[1]])
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype("float32")
    network = opened(model)
    np.testing.assert_allclose(
        values(network.scores([images])), values(scores(images)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        network.probabilities(images, 2), values(model(images)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        explain.grad_cam(model, images, classes=1, layer="map"),
        explain.grad_cam(scores, images, classes=1, layer="map"),
        atol=1e-4,
    )


def test_what_is_no_softmax_of_scores_stays_as_it_is():
    # Of a layer that changes the probabilities these are the scores.
    model = _soft(layers.Flatten(), layers.Dense(3, "softmax"), layers.Rescaling(2.0))
    assert opened(model).activation is None
    model = _soft(layers.Conv2D(3, 1, activation="softmax"), layers.GlobalAveragePooling2D())
    assert opened(model).activation is None  # a mean of several


def test_one_score_is_that_of_the_second_of_two_classes():
    model = _soft(layers.Flatten(), layers.Dense(1))
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype("float32")
    expected = 1 / (1 + np.exp(-values(model(images))))
    np.testing.assert_allclose(opened(model).probabilities(images, 2), expected, rtol=1e-5)
    assert explain.occlusion_sensitivity(model, images, window=2, stride=2).any()


def _of(operations, build):
    """A model whose graph has operations, or the layers that do the same."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    return keras.Model(image, build(image, operations))


def _scaled(image, operations):
    x = image / 255.0 if operations else layers.Rescaling(1 / 255)(image)
    return _head(layers.Conv2D(4, 3, name="map")(x))


def _added(image, operations):
    x = layers.Conv2D(4, 3, padding="same", name="map")(image)
    y = layers.Conv2D(4, 3, padding="same")(x)
    return _head(x + y if operations else layers.Add()([x, y]))


def _rectified(image, operations):
    x = layers.Conv2D(4, 3, name="map")(image)
    return _head(ops.relu(x) if operations else layers.ReLU()(x))


def _cut(image, operations):
    x = image[:, 2:-2, 2:-2] if operations else layers.Cropping2D(2)(image)
    return _head(layers.Conv2D(4, 3, name="map")(x))


def _classified(image, operations):
    x = _head(layers.Conv2D(4, 3, name="map")(image), None)
    return keras.activations.softmax(x) if operations else layers.Softmax()(x)


def _head(x, activation="softmax"):
    return layers.Dense(3, activation)(layers.GlobalAveragePooling2D()(x))


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("build", [_scaled, _added, _rectified, _cut, _classified])
def test_operations_in_the_graph_are_as_layers(build):
    found, expected = _of(True, build), _of(False, build)
    found.set_weights(expected.get_weights())
    images = noise(2, 16)
    np.testing.assert_allclose(
        opened(found).probabilities(images, 2), values(expected(images)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        explain.grad_cam(found, images, classes=1, layer="map"),
        explain.grad_cam(expected, images, classes=1, layer="map"),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("of_input", "of_output"),
    [
        (lambda x: [x], lambda y: [y]),
        (lambda x: {"image": x}, lambda y: y),
        (lambda x: x, lambda y: {"classes": y}),
    ],
)
def test_models_of_lists_and_dictionaries(of_input, of_output):
    def answer(image):
        base = keras.Model(of_input(image), of_output(layers.Conv2D(4, 3, name="map")(image)))
        base.name = "base"
        other = keras.Input((16, 16, 3), name="image")
        (x,) = keras.tree.flatten(base(of_input(other)))
        return keras.Model(of_input(other), of_output(_head(x)))

    structured = answer(keras.Input((16, 16, 3), name="image"))
    plain = _of(False, lambda image, _: _head(layers.Conv2D(4, 3, name="map")(image)))
    structured.set_weights(plain.get_weights())
    np.testing.assert_allclose(
        explain.grad_cam(structured, noise(2, 16), classes=1, layer="base/map"),
        explain.grad_cam(plain, noise(2, 16), classes=1, layer="map"),
        atol=1e-5,
    )


def test_layers_that_are_called_by_keyword():
    def of(call):
        keras.utils.set_random_seed(0)
        image, part = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
        base = keras.Model(part, call(layers.Conv2D(4, 3, name="conv"), part), name="base")
        more = keras.Sequential(
            [keras.Input((6, 6, 4)), layers.Conv2D(4, 3, name="conv")], name="more"
        )
        x = call(layers.Flatten(), call(more, call(base, image)))
        return keras.Model(image, call(layers.Dense(3, "softmax"), x))

    by_keyword, by_place = of(lambda layer, x: layer(inputs=x)), of(lambda layer, x: layer(x))
    for layer in ("base/conv", "more/conv"):
        options = {"classes": 1, "layer": layer}
        np.testing.assert_array_equal(
            explain.grad_cam(by_keyword, noise(1, 8), **options),
            explain.grad_cam(by_place, noise(1, 8), **options),
        )
    scores = opened(by_keyword)
    assert scores.activation is keras.activations.softmax


def test_a_map_that_the_score_does_not_use():
    image, part = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    outputs = [layers.Conv2D(2, 3, name=name)(part) for name in ("used", "unused")]
    x, _ = keras.Model(part, outputs, name="base")(image)
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    assert explain.grad_cam(model, noise(1, 8), layer="base/unused").max() == 0
    assert explain.saliency(model, noise(1, 8)).max() == 1


def test_a_frozen_model_has_gradients_and_answers_keep_none():
    model = small()
    first = explain.grad_cam(model, noise(size=32), layer="block3_conv2")
    assert not getattr(answer_of(model, noise(1, 32)), "requires_grad", False)
    model.trainable = False
    np.testing.assert_allclose(
        explain.grad_cam(model, noise(size=32), layer="block3_conv2"), first, atol=1e-5
    )


def test_grad_cam_plus_plus_by_its_formula():
    model, images = small(size=64), ops.convert_to_tensor(noise(1))
    network = opened(model)
    place = network.place("block4_conv2")
    maps = network.maps(place)([images], training=False)
    chosen = ops.convert_to_tensor(np.array([3], "int32"))
    slope = values(network.score_gradient(place)([images, maps], chosen)[1])[0].astype("float64")
    a = values(maps)[0].astype("float64")
    heat = np.zeros(a.shape[:2])
    for k in range(a.shape[-1]):
        weight = 0.0
        for g in slope[..., k].ravel():
            if g > 0:
                alpha = g**2 / (2 * g**2 + a[..., k].sum() * g**3)
                weight += alpha * max(g, 0)
        heat += weight * a[..., k]
    expected = heats.scaled(heats.resized(np.maximum(heat, 0), (64, 64)))
    options = {"classes": 3, "layer": "block4_conv2", "method": "grad-cam++"}
    np.testing.assert_allclose(explain.grad_cam(model, noise(1), **options)[0], expected, atol=1e-4)


def test_nothing_speaks_for_a_class():
    model = small()
    kernel, bias = model.get_layer("predictions").get_weights()
    model.get_layer("predictions").set_weights([-np.abs(kernel), bias])
    assert explain.grad_cam(model, noise(size=32), layer="block5_pool").max() == 0


def test_occlusion_by_hand():
    weights = np.random.default_rng(0).normal(size=(32, 3)).astype("float32") / 100
    images = np.random.default_rng(1).uniform(0, 255, (1, 4, 4, 2)).astype("float32")

    def probability(image):
        scores = image.ravel() @ weights
        return (np.exp(scores) / np.exp(scores).sum())[1]

    total, covers = np.zeros((4, 4)), np.zeros((4, 4))
    for top in (0, 2):  # of windows of 2
        for left in (0, 2):
            covered = images[0].copy()
            covered[top : top + 2, left : left + 2] = images[0].mean((0, 1))
            total[top : top + 2, left : left + 2] += probability(images[0]) - probability(covered)
            covers[top : top + 2, left : left + 2] += 1
    found = explain.occlusion_sensitivity(linear(weights), images, classes=1, window=2, stride=2)
    np.testing.assert_allclose(found[0], total / covers, atol=1e-6)
    # Windows of 3 overlap: the middle is covered by all four.
    found = explain.occlusion_sensitivity(
        linear(weights), images, classes=1, window=3, stride=1, fill=0.0, batch_size=3
    )
    corners = [(top, left) for top in (0, 1) for left in (0, 1)]
    drops = []
    for top, left in corners:
        covered = images[0].copy()
        covered[top : top + 3, left : left + 3] = 0
        drops.append(probability(images[0]) - probability(covered))
    assert found[0, 1, 1] == pytest.approx(np.mean(drops), abs=1e-6)
    assert found[0, 0, 0] == pytest.approx(drops[0], abs=1e-6)


def test_smoothgrad_is_seeded():
    model, images = small(), noise(2, 32)
    options = {"samples": 2, "noise": 0.2}
    first = explain.saliency(model, images, **options)
    np.testing.assert_array_equal(explain.saliency(model, images, **options), first)
    assert np.abs(explain.saliency(model, images, seed=1, **options) - first).max() > 0
    # An image's noise does not depend on the batch.
    np.testing.assert_allclose(
        explain.saliency(model, images, batch_size=1, **options), first, atol=1e-4
    )


def test_feature_maps():
    model = small("D", batch_norm=True)
    image = noise(1, 32)[0]
    found = explain.feature_maps(model, image)
    assert list(found) == [f"block{b}_conv{2 if b < 3 else 3}_relu" for b in range(1, 6)]
    assert found["block3_conv3_relu"].shape == (8, 8, 16)
    pooled = values(keras.Model(model.inputs, model.get_layer("block1_pool").output)([image[None]]))
    maps = explain.feature_maps(model, image, ["block1_pool", "block1_conv2_relu"])
    np.testing.assert_allclose(maps["block1_pool"], pooled[0], rtol=1e-5, atol=1e-5)
    blocks = maps["block1_conv2_relu"].reshape(16, 2, 16, 2, -1)
    np.testing.assert_allclose(blocks.max((1, 3)), pooled[0], rtol=1e-5, atol=1e-5)
    (alone,) = explain.feature_maps(model, image, ["block1_pool"]).values()
    np.testing.assert_allclose(alone, pooled[0], rtol=1e-5, atol=1e-5)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("layer", "options"),
    [
        ("block2_conv1", {"size": 40}),
        pytest.param("block3_conv1", {}, marks=pytest.mark.slow),
        ("predictions", {}),
        ("base/block2_conv1", {"size": 32}),
    ],
)
def test_filters_answer_more(layer, options):
    model = nested("sequential") if "/" in layer else small(head="fc")
    found = explain.activation_maximization(model, layer, [0, 2], steps=12, **options)
    side = options.get("size", 32)
    assert found.shape == (2, side, side, 3)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255
    again = explain.activation_maximization(model, layer, [2], steps=12, **options)
    np.testing.assert_allclose(again[0], found[1], atol=2)
    if not options:
        network = opened(model)
        place = network.find(layer)
        answer = keras.Model([network.image], network.output_before_activation(place))
        grey = np.full((1, 32, 32, 3), 127.5, "float32")
        for image, k in zip(found, (0, 2), strict=True):
            more, less = (values(answer([x]))[..., k].mean() for x in (image[None], grey))
            assert more > less


def test_filters_of_a_size_too_small():
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(2, 1, name="second")(layers.MaxPooling2D()(layers.Conv2D(2, 3)(image)))
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    for size, message in (
        (0, "size must be 1 or more, not 0"),
        (1, "layer 'second' takes no image of size 1: give a larger size$"),
        (3, "layer 'second' takes no image of size 3: give a larger size$"),  # of the pooling
    ):
        with pytest.raises(ValueError, match=message):
            explain.activation_maximization(model, "second", [0], size=size)
    with pytest.raises(ValueError, match=r"of size 16: .* or the model's own, 32 x 32"):
        explain.activation_maximization(small(head="fc"), "fc1", [0], size=16)


def test_filters_of_what_is_neither_map_nor_units():
    image = keras.Input((8, 8, 3))
    x = layers.Dense(4, name="tokens")(layers.Reshape((64, 3))(image))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    with pytest.raises(ValueError, match=r"'tokens' has no filters.* but \(None, 64, 4\)"):
        explain.activation_maximization(model, "tokens", [0])


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", [pytest.param("grad-cam", marks=pytest.mark.slow), "grad-cam++"])
def test_half_precision_says_the_same(method):
    full = small("A", head="fc", size=64)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = small("A", head="fc", size=64)
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(full.get_weights())
    a, b = (
        explain.grad_cam(model, noise(2), classes=1, layer="block3_conv2", method=method)
        for model in (full, half)
    )
    assert np.isfinite(b).all()
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_a_sequential_model_that_gets_other_layers():
    """The gradient of what it is now, not of what it was when it was first asked."""
    weights = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    model, images = linear(weights), np.ones((1, 4, 4, 2), "float32")
    first = explain.saliency(model, images, classes=0)
    model.pop()
    model.add(layers.Dense(5))
    kernel = np.random.default_rng(1).normal(size=(32, 5)).astype("float32")
    model.layers[-1].set_weights([kernel, np.zeros(5, "float32")])
    changed = explain.saliency(model, images, classes=4)
    for found, column in ((first, weights[:, 0]), (changed, kernel[:, 4])):
        expected = np.abs(column.reshape(1, 4, 4, 2)).max(-1)
        np.testing.assert_allclose(found, expected / expected.max(), rtol=1e-5)


def test_a_model_whose_activation_or_kernels_change():
    model = _of(False, _scaled)
    images = noise(2, 16)
    assert opened(model).activation is keras.activations.softmax
    model.layers[-1].activation = keras.activations.linear
    assert opened(model).activation is None
    model.layers[-1].activation = keras.activations.softmax
    np.testing.assert_allclose(
        opened(model).probabilities(images, 2), values(model(images)), rtol=1e-4
    )
    if keras.backend.backend() == "tensorflow":
        model.layers[-1].quantize("int8")
        with pytest.raises(ValueError, match=r"softmax of layer 'dense.*' are not known: .*quanti"):
            explain.grad_cam(model, images)


@pytest.fixture(scope="module")
def plain():
    """For calls that are refused."""
    return small()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "block5_conv9"}, r"no layer 'block5_conv9'; did you mean .*block5_conv2"),
        ({"layer": "nonsense"}, "no layer 'nonsense'. Those with maps are .*block1_conv1, block1"),
        ({"layer": "predictions"}, r"'predictions' of 'vgg11' gives no map .*\(None, 5\)"),
        ({"classes": 5}, "whole numbers from 0 to 4, not 5"),
        ({"classes": [0, 1]}, "one for each of 3 images"),
        ({"classes": 1.5}, "whole numbers"),
        ({"method": "cam"}, "method must be one of grad-cam"),
        ({"images": noise(1, 16)}, r"takes images \[n, 32, 32, 3\], not \(1, 16, 16, 3\)"),
        ({"images": noise(1, 32)[0]}, r"not \(32, 32, 3\)"),
        ({"images": noise(1, 32) * np.nan}, "not finite"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_bad_input(plain, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain.grad_cam(plain, **{"images": noise(size=32), **arguments})


def test_a_layer_in_several_places():
    base = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3, name="conv")], name="base")
    twin = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3, name="conv")], name="twin")
    image = keras.Input((8, 8, 3))
    x = layers.Concatenate()([base(image), twin(image), base(layers.ReLU()(image))])
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    with pytest.raises(ValueError, match=r"in 3 places .*give its path: base/conv, twin/conv"):
        explain.grad_cam(model, noise(1, 8), layer="conv")
    with pytest.raises(ValueError, match=r"in 2 places .*choose another"):
        explain.grad_cam(model, noise(1, 8), layer="base/conv")
    assert explain.grad_cam(model, noise(1, 8), layer="twin/conv").shape == (1, 8, 8)


def test_other_bad_input():
    model, images = small(), noise(1, 32)
    for call, message in (
        (lambda: explain.saliency(model, images, samples=0), "samples must be 1 or more"),
        (lambda: explain.saliency(model, images, samples=2), "are all the same"),
        (lambda: explain.occlusion_sensitivity(model, images, window=33), "window must be 1 to 32"),
        (lambda: explain.occlusion_sensitivity(model, images, window=4, stride=5), "no window"),
        (lambda: explain.activation_maximization(model, None, [32]), "filters 0 to 31"),
        (lambda: explain.activation_maximization(model, None, [0], steps=0), "steps must be"),
        (lambda: explain.activation_maximization(model, "fc9", [0]), "no layer 'fc9'"),
        (lambda: explain.feature_maps(model, images), "takes images"),
        (lambda: explain.overlay(images[0], np.full((2, 2), 2.0)), r"heat in \[0, 1\]"),
        (lambda: explain.overlay(images[0], images[0]), r"heat \[h, w\]"),
        (lambda: explain.overlay(images[0] + 9, np.zeros((2, 2))), r"image in \[0, 255\]"),
        (lambda: explain.overlay(images[0], np.zeros((2, 2)), 2), "alpha must be"),
        (lambda: explain.grad_cam(vgg("A", False, None), images), "class scores"),
        (lambda: explain.grad_cam(keras.Sequential(), images), "built"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_one_layer_by_its_name():
    model, image = small(), noise(1)[0, :32, :32]
    one = explain.feature_maps(model, image, "block3_conv1")
    (listed,) = explain.feature_maps(model, image, ["block3_conv1"]).values()
    np.testing.assert_array_equal(one["block3_conv1"], listed)


def test_a_layer_that_needs_more_than_the_default_side_has_the_models():
    model = small(head="conv", size=160)  # fc1 takes 5x5 of the last map
    assert explain.activation_maximization(model, "fc1", [0], steps=2).shape == (1, 160, 160, 3)

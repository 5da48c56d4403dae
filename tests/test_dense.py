"""Dense evaluation against the classifier slid over the feature map by hand."""

import gc

import keras
import numpy as np
import pytest

from keras_vgg import models
from keras_vgg.evaluation import dense_network
from keras_vgg.export.compress import factorise, spectrum
from tests.dense_networks import answers
from tests.test_models import FULL, keras_applications

CLASSES = 7
SMALL = {"weights": None, "classes": CLASSES, "width_multiplier": 1 / 16, "hidden_units": 12}


def network(configuration="D", size=64, **options):
    """A small network whose biases are not zero and whose scores are of moderate size."""
    built = models.vgg(
        configuration, input_shape=(size, size, 3), include_preprocessing=True, **SMALL | options
    )
    random = np.random.default_rng(0)
    for layer in built.layers:
        if layer.name.endswith("_bn"):
            shape = layer.gamma.shape
            layer.set_weights([random.uniform(0.5, 1.5, shape) for _ in range(4)])
        elif layer.weights:
            kernel, bias = layer.get_weights()
            gain = (2 / np.prod(kernel.shape[:-1])) ** 0.5
            kernel = random.normal(0, gain, kernel.shape)
            if layer.name == "block1_conv1":
                kernel /= 60  # of pixels in [0, 255]
            layer.set_weights([kernel, random.normal(0, 0.1, bias.shape)])
    return built


def images(*shape):
    return np.random.default_rng(1).uniform(0, 255, shape).astype("float32")


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slid(model, image):
    """The score map, window by window: fc1, fc2 and predictions as matrix products."""
    size = model.inputs[0].shape[1:3]
    pool = model.get_layer("block5_pool").output
    trunk = keras.models.clone_model(
        keras.Model(model.inputs[0], pool), input_tensors=keras.Input(image.shape[1:])
    )
    trunk.set_weights(keras.Model(model.inputs[0], pool).get_weights())
    features = np.asarray(answers(trunk, image), np.float64)
    rows, columns = (side // 32 for side in size)
    names = [layer.name for layer in model.layers]
    if "fc1" not in names:  # gap: each feature by itself
        kernel, bias = model.get_layer("predictions").get_weights()
        return features @ kernel + bias
    result = []
    for top in range(features.shape[1] - rows + 1):
        for left in range(features.shape[2] - columns + 1):
            x = features[:, top : top + rows, left : left + columns].reshape(len(image), -1)
            for name in ("fc1", "fc2", "predictions"):
                kernel, bias = model.get_layer(name).get_weights()
                x = x @ kernel.reshape(-1, kernel.shape[-1]) + bias
                x = x if name == "predictions" else np.maximum(x, 0)
            result.append(x)
    down = features.shape[1] - rows + 1
    return np.stack(result, 1).reshape(len(image), down, -1, CLASSES)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("head", "sides"),
    [
        ("fc", (64, 64)),
        ("fc", (128, 160)),
        ("fc", (127, 65)),
        ("conv", (64, 96)),
        ("conv", (101, 150)),
        ("gap", (127, 65)),
        ("gap", (128, 160)),
    ],
)
def test_every_cell_is_the_classifier_on_its_window(head, sides):
    model = network("A", head=head, batch_norm=head == "conv")
    image = images(2, *sides, 3)

    scores = answers(dense_network(model), image)

    wanted = slid(model, image)
    assert scores.shape == wanted.shape
    assert np.ptp(wanted) > 1  # there is something to get wrong
    np.testing.assert_allclose(scores, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("configuration", "head"),
    [
        ("A", "fc"),
        ("A-LRN", "conv"),
        ("B", "gap"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("C", "conv"), ("D", "fc"), ("E", "gap"))
        ),
    ],
)
def test_at_the_training_size_it_is_the_network(configuration, head):
    model = network(configuration, head=head)
    image = images(3, 64, 64, 3)

    scores = answers(dense_network(model), image)

    assert scores.shape[1:3] == ((2, 2) if head == "gap" else (1, 1))
    plain = answers(model, image)
    np.testing.assert_allclose(softmax(scores.mean((1, 2))), plain, atol=1e-5)


def test_a_compressed_network_has_layers_of_two_factors():
    model = network("A")
    rng = np.random.default_rng(0)
    spectra, ranks = {}, {"fc1": 3, "fc2": 2}
    for name in ranks:
        layer = model.get_layer(name)
        spectra[name] = spectrum(layer, rng.normal(size=(50, layer.kernel.shape[0])))
    small = factorise(model, ranks, spectra)
    dense = dense_network(small)
    image = images(3, 64, 64, 3)
    scores = answers(dense, image)
    np.testing.assert_allclose(softmax(scores[:, 0, 0]), answers(small, image), atol=1e-5)
    # The window of the first factor slides over the map, as that of fc1 does.
    whole = answers(keras.Model(dense.input, dense.get_layer("fc1").output), images(1, 128, 96, 3))
    assert whole.shape[1:3] == (3, 2)
    assert dense.get_layer("fc1_factor").kernel_size == (2, 2)


def test_oblong_training_images_and_scores_instead_of_probabilities():
    model = models.vgg("A", input_shape=(64, 96, 1), classifier_activation=None, **SMALL)
    image = images(2, 64, 96, 1)
    scores = answers(dense_network(model), image)
    np.testing.assert_allclose(scores[:, 0, 0], answers(model, image), rtol=1e-4)
    assert answers(dense_network(model), images(1, 96, 160, 1)).shape == (1, 2, 3, 7)


@pytest.mark.parametrize("width", [1 / 16, FULL])
def test_networks_of_keras_applications(monkeypatch, width):
    options = {"weights": None, "classes": 5, "input_shape": (32, 32, 3)}
    model = keras_applications(monkeypatch, "VGG16", width, **options)
    image = images(1, 32, 32, 3)
    plain = answers(model, image)
    scores = answers(dense_network(model), image)
    np.testing.assert_allclose(softmax(scores[:, 0, 0]), plain, rtol=1e-4)


def test_the_network_itself_stays_as_it_was(tmp_path):
    model = network("A")
    image = images(2, 64, 64, 3)
    before = answers(model, image)
    dense = dense_network(model)
    answers(dense, images(1, 96, 96, 3))
    model.save(tmp_path / "after.keras")
    again = keras.saving.load_model(tmp_path / "after.keras", compile=False)
    assert again.input_shape == (None, 64, 64, 3)
    np.testing.assert_array_equal(answers(again, image), before)


def test_half_precision_keeps_its_policy_and_scores_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.vgg("A", input_shape=(32, 32, 3), **SMALL)
    finally:
        keras.config.set_dtype_policy("float32")
    dense = dense_network(model)
    assert dense.get_layer("fc1").compute_dtype == "bfloat16"
    assert dense.output.dtype == "float32"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: models.vgg("A", include_top=False, **SMALL), "no layer 'predictions'"),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
            "no layer 'block5_pool'",
        ),
        (
            lambda: models.vgg("A", input_shape=(32, 32, 3), classifier_activation="tanh", **SMALL),
            "ends in a soft-max, in sigmoids or in its scores; the last layer of 'vgg11'",
        ),
    ],
)
def test_what_has_no_score_map(model, message):
    with pytest.raises(ValueError, match=message):
        dense_network(model())


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(224, 224), (256, 341), (300, 231)])
def test_at_full_width(sides):
    model = network(size=224, width_multiplier=1.0, hidden_units=4096, classes=CLASSES)
    image = images(1, *sides, 3)
    scores = answers(dense_network(model), image)
    wanted = slid(model, image)
    assert scores.shape == wanted.shape
    np.testing.assert_allclose(scores, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))
    del model
    keras.utils.clear_session()
    gc.collect()

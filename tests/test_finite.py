"""NaN is found where it is, though a network may hide it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_vgg import evaluation, explain, export, localization, transfer
from keras_vgg.finite import is_finite, require_finite_weights
from keras_vgg.layers import ImagePreprocessing
from tests.dense_networks import answers

NAN_IMAGES = np.full((2, 32, 32, 3), np.nan, np.float32)
IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
NAMES = ("a", "b", "c")


@keras.saving.register_keras_serializable("tests")
def hides_nan(x):
    """A ReLU as oneDNN's on AVX-512, on every processor."""
    return ops.where(x > 0, x, ops.zeros_like(x))


def network(broken: bool = False) -> keras.Model:
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, padding="same", activation=hides_nan, name="block1_conv1")(image)
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(32, name="block1_pool")(x))
    model = keras.Model(image, layers.Dense(3, activation="softmax", name="predictions")(x))
    if broken:
        bias = model.get_layer("block1_conv1").bias
        bias.assign([np.nan, 0, 0, 0])
        assert is_finite(answers(model, IMAGES))  # the output tells nothing
    return model


CALLS = {
    "export": lambda model, images, folder: export.export(model, NAMES, folder, images=images),
    "calibrate": lambda model, images, folder: export.export(
        model, NAMES, folder, images=IMAGES, calibration=images, formats=["litert_int8"]
    ),
    "evaluate": lambda model, images, _: evaluation.evaluate(
        model, [(images, np.array([0, 1]))], expected=2, class_names=NAMES
    ),
    "predict": lambda model, images, _: evaluation.predict(model, images, NAMES),
    "center": lambda model, images, _: evaluation.runner(model, evaluation.Protocol(), 3)(images),
    "explain": lambda model, images, _: explain.grad_cam(model, images),
    "embed": lambda model, images, _: transfer.embed(model, images, layer="block1_conv1"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_images_and_weights_that_are_not_finite_are_refused(call, tmp_path):
    with pytest.raises(ValueError, match=r"hold(s)? values that are not finite"):
        call(network(), NAN_IMAGES, tmp_path / "out")
    with pytest.raises(ValueError, match=r"weights of model .* not finite in block1_conv1/bias"):
        call(network(broken=True), IMAGES, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_localization_looks_at_images_and_weights():
    from keras_vgg import vgg

    options = {"weights": None, "input_shape": (32, 32, 3), "width_multiplier": 1 / 16}
    classifier = vgg("A", classes=3, hidden_units=8, **options)
    boxes = localization.localizer(classifier)
    with pytest.raises(ValueError, match="image 1 holds values that are not finite"):
        localization.predict_boxes(boxes, classifier, np.stack([IMAGES[0], NAN_IMAGES[0]]))
    classifier.get_layer("block5_conv1").bias.assign(np.full(32, np.inf))
    with pytest.raises(ValueError, match="not finite in block5_conv1/bias"):
        localization.predict_boxes(boxes, classifier, IMAGES)


def test_a_perceptual_loss_of_nan_is_nan():
    loss = transfer.PerceptualLoss(network(), ["block1_conv1"], preprocessing=False)
    half = np.stack([IMAGES[0], NAN_IMAGES[0]])
    values = transfer.PerceptualLoss(
        network(), ["block1_conv1"], preprocessing=False, reduction="none"
    )(IMAGES, half)
    np.testing.assert_array_equal(np.isnan(ops.convert_to_numpy(values)), [False, True])
    assert np.isnan(float(loss(half, IMAGES)))
    assert float(loss(IMAGES, IMAGES)) == 0


def test_what_is_finite():
    assert is_finite(np.array([1, 2], np.uint8))
    assert is_finite([1.0, 2.0])
    assert is_finite(ops.ones(3))
    for value in (np.nan, np.inf, -np.inf):
        assert not is_finite(np.array([0, value]))
        assert not is_finite(ops.convert_to_tensor([0.0, value]))
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), layers.Dense(2)])
    require_finite_weights(model)  # a dropout's seed is an integer


SMALL = IMAGES / 255


def test_predict_looks_at_the_range():
    with pytest.raises(ValueError, match=r"values from -0\.9.* \[0, 255\] is expected"):
        evaluation.predict(network(), 2 * SMALL - 1, NAMES)
    with pytest.raises(ValueError, match=r"\[0, 255\] is expected"):
        evaluation.predict(network(), 2 * IMAGES, NAMES)
    with pytest.warns(UserWarning, match=r"from .* to 1, but \[0, 255\] is expected"):
        evaluation.predict(network(), SMALL, NAMES)
    evaluation.predict(network(), np.zeros_like(IMAGES), NAMES)  # black
    evaluation.predict(network(), 4 * SMALL, NAMES)  # nearly black


def test_evaluate_looks_at_the_range():
    labels = np.array([0, 1])

    def evaluate(*images):
        batches = [(array, labels) for array in images]
        return evaluation.evaluate(network(), batches, expected=2 * len(images), class_names=NAMES)

    with pytest.raises(ValueError, match=r"values from -0\.9.* \[0, 255\] is expected"):
        evaluate(2 * SMALL - 1)
    with pytest.raises(ValueError, match=r"\[0, 255\] is expected"):
        evaluate(IMAGES, 2 * IMAGES)
    with pytest.warns(UserWarning, match=r"from .* to 1, but \[0, 255\] is expected"):
        evaluate(SMALL)
    evaluate(IMAGES, SMALL)  # a batch may be nearly black


def with_preprocessing() -> keras.Model:
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, name="conv")(ImagePreprocessing.caffe()(image))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3, activation="softmax")(x))


def test_explanations_look_at_the_range_if_the_preprocessing_is_inside():
    with pytest.raises(ValueError, match=r"\[0, 255\] is expected"):
        explain.grad_cam(with_preprocessing(), 2 * SMALL - 1)
    with pytest.warns(UserWarning, match=r"\[0, 255\] is expected"):
        explain.saliency(with_preprocessing(), SMALL)
    explain.grad_cam(network(), 2 * SMALL - 1)  # another network may take it


def test_the_preprocessing_layer_warns_of_eager_images():
    model = with_preprocessing()
    for images in (SMALL, 2 * SMALL - 1, ops.convert_to_tensor(SMALL)):
        with pytest.warns(UserWarning, match=r"\[0, 255\] is expected"):
            model(images)
    model(IMAGES)
    model(3 * IMAGES)  # an optimised image may be anything
    model(np.zeros_like(IMAGES))
    if keras.backend.backend() != "torch":
        model.predict(SMALL, verbose=0)  # inside a graph, nothing is known

"""Boxes by hand, the loss and its gradient by hand, dense predictions against the plain network."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vgg import models
from keras_vgg.localization import (
    EuclideanLoss,
    Localization,
    boxes_of,
    intersection_over_union,
    localization_error,
    localizer,
    located,
    match_score,
    merge_boxes,
    predict_boxes,
    to_corners,
    to_relative,
)
from tests.dense_networks import answers

CLASSES = 3
SOME_HEADS = ("fc", pytest.param("conv", marks=pytest.mark.slow), "gap")
# Each head, one box and many.
PAIRS = (
    ("fc", None),
    pytest.param("conv", CLASSES, marks=pytest.mark.slow),
    ("gap", CLASSES),
)


def classifier(head="fc", size=64, **options):
    """A small classifier whose weights are no zeros, so that a weight lost is seen."""
    small = {"weights": None, "classes": CLASSES, "width_multiplier": 1 / 16, "hidden_units": 8}
    built = models.vgg(
        "A",
        input_shape=(size, size, 3),
        head=head,
        include_preprocessing=True,
        **small | options,
    )
    random = np.random.default_rng(0)
    for layer in built.layers:
        if layer.name.endswith("_bn"):
            layer.set_weights([random.uniform(0.5, 1.5, layer.gamma.shape) for _ in range(4)])
        elif layer.weights:
            kernel, bias = layer.get_weights()
            kernel = random.normal(0, (2 / np.prod(kernel.shape[:-1])) ** 0.5, kernel.shape)
            kernel /= 60 if layer.name == "block1_conv1" else 1  # of pixels in [0, 255]
            layer.set_weights([kernel, random.normal(0, 0.1, bias.shape)])
    return built


def images(*shape):
    return np.random.default_rng(1).uniform(0, 255, shape).astype("float32")


def weights(model, but="predictions"):
    return {x.name: x.get_weights() for x in model.layers if x.weights and x.name != but}


def random_boxes(*shape):
    low = np.random.default_rng(2).uniform(-10, 50, (*shape, 2))
    return np.concatenate([low, low + np.random.default_rng(3).uniform(1, 40, low.shape)], -1)


# --- boxes -----------------------------------------------------------------------------------


def test_a_relative_box_in_pixels_by_hand():
    # 100 high, 200 wide, 32 down and 64 right in the image: x counts in widths, y in heights.
    corners = to_corners([0.5, 0.25, 0.1, 0.3], (100, 200), (32, 64))
    np.testing.assert_allclose(corners, [64 + 90, 32 + 10, 64 + 110, 32 + 40])
    np.testing.assert_allclose(to_corners([0.5, 0.5, 1, 1], 64), [0, 0, 64, 64])


def test_boxes_there_and_back():
    corners = random_boxes(4, 5)
    offset = (np.arange(4.0)[:, None] * 32, np.arange(5.0) * 32)
    relative = to_relative(corners, (96, 64), offset)
    np.testing.assert_allclose(to_corners(relative, (96, 64), offset), corners)
    np.testing.assert_allclose(
        relative[2, 3], to_relative(corners[2, 3] - [96, 64, 96, 64], (96, 64))
    )


def test_a_width_below_zero_is_none():
    np.testing.assert_allclose(to_corners([0.5, 0.5, -0.2, 0.5], 64), [32, 16, 32, 48])


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ([0, 0, 4, 2], 1),
        ([2, 0, 6, 2], 1 / 3),  # 4 shared of 12
        ([0, 1, 4, 3], 1 / 3),
        ([1, 0, 3, 1], 1 / 4),  # inside: 2 of 8
        ([4, 0, 8, 2], 0),  # an edge in common
        ([5, 5, 6, 6], 0),
        ([-1, -1, 7, 3], 8 / 32),
        ([2, 1, 2, 1], 0),  # a point
        ([4, 2, 0, 0], 0),  # inside out
        ([0, 0, np.nan, 2], 0),
    ],
)
def test_intersection_over_union_by_hand(other, wanted):
    assert intersection_over_union([0, 0, 4, 2], other) == pytest.approx(wanted)
    assert intersection_over_union(other, [0, 0, 4, 2]) == pytest.approx(wanted)


def test_nothing_agrees_with_a_box_without_area_not_even_itself():
    assert intersection_over_union([3, 3, 3, 3], [3, 3, 3, 3]) == 0
    assert intersection_over_union([4, 4, 1, 1], [4, 4, 1, 1]) == 0


def test_intersection_over_union_in_any_unit_and_place():
    one, other = random_boxes(30)[:, None], random_boxes(40)[::-1]
    found = intersection_over_union(one, other)
    assert found.shape == (30, 40)
    assert found.min() == 0
    assert 0.3 < found.max() <= 1
    np.testing.assert_allclose(found, intersection_over_union(other, one))
    moved = [box * 7 + [3, -5, 3, -5] for box in (one, other)]
    np.testing.assert_allclose(found, intersection_over_union(*moved), atol=1e-12)


def test_half_is_not_enough():
    truth = [0, 0, 4, 2]
    half, more = [0, 0, 2, 2], [0, 0, 2.1, 2]
    np.testing.assert_array_equal(located([half, more], truth), [False, True])
    assert localization_error([half, more, truth, half], truth) == 0.5
    assert localization_error([half, more, truth, half], truth, threshold=0.6) == 0.75


def test_boxes_that_are_none():
    with pytest.raises(ValueError, match="there are no boxes to judge"):
        localization_error(np.empty((0, 4)), np.empty((0, 4)))
    with pytest.raises(ValueError, match=r"boxes must be \[..., 4\], not \(2, 3\)"):
        intersection_over_union(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), not 1"):
        located([[0, 0, 1, 1]], [0, 0, 1, 1], threshold=1)
    with pytest.raises(ValueError, match="a height and width above 0, not 0"):
        to_corners([0.5, 0.5, 1, 1], 0)


# --- merging ---------------------------------------------------------------------------------


def test_match_scores_by_hand():
    box = np.array([0, 0, 3, 4.0])
    # A third aside: half shared; the centres 1 apart, the box around both 4 x 4.
    assert match_score(box, box + np.array([1, 0, 1, 0])) == pytest.approx(0.5 + 1 / 32**0.5)
    assert match_score(box, box) == 0
    # Of one size, nothing shared, centres 30 and 40 apart, 33 x 44 around.
    assert match_score(box, box + np.array([30, 40, 30, 40])) == pytest.approx(1 + 50 / 55)
    assert match_score([2, 2, 2, 2], [2, 2, 2, 2]) == 1


def test_match_scores_have_no_unit_and_no_order():
    one, other = random_boxes(20)[:, None], random_boxes(20)[::-1]
    found = match_score(one, other)
    np.testing.assert_allclose(found, match_score(other, one))
    np.testing.assert_allclose(found, match_score(5 * one + 2, 5 * other + 2), atol=1e-12)
    assert found.min() >= 0
    assert 1.2 < found.max() <= 2


def test_two_heaps_become_two_boxes():
    left = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [2, 0, 12, 10]])
    right = np.array([[50, 50, 60, 60], [50, 52, 60, 62]])
    mixed = [left[0], right[0], left[1], right[1], left[2]]

    boxes, ratings = merge_boxes(mixed, [0.1, 0.5, 0.2, 0.5, 0.3])

    # The mean of all members, whatever the order of merging; the best rated first.
    np.testing.assert_allclose(boxes, [[50, 51, 60, 61], [1, 0, 11, 10]])
    np.testing.assert_allclose(ratings, [1, 0.6])


def test_the_best_pair_comes_first():
    # b is nearer to c than to a; merged with c it is too far away for a.
    a, b, c = [0, 0, 10, 10], [4, 0, 14, 10], [7, 0, 17, 10]
    limit = float(match_score(np.array(a), np.array(b))) + 1e-9
    boxes, ratings = merge_boxes([a, b, c], [1, 2, 4], match=limit)
    np.testing.assert_allclose(boxes, [[5.5, 0, 15.5, 10], a])
    np.testing.assert_allclose(ratings, [6, 1])


def test_merging_goes_on_with_what_was_merged():
    # Each alone matches its neighbour only; together they draw the next one in.
    boxes = np.array([[i, 0, i + 10, 10] for i in (0, 0.5, 3)])
    limit = float(match_score(boxes[1], boxes[2])) + 0.1
    assert match_score(boxes[0], boxes[2]) > limit - 0.1
    merged, _ = merge_boxes(boxes, np.ones(3), match=limit)
    np.testing.assert_allclose(merged, [boxes.mean(0)])


def test_merging_nothing_and_everything():
    boxes = random_boxes(6)
    alone, ratings = merge_boxes(boxes, np.arange(6), match=0)
    np.testing.assert_array_equal(alone, boxes[::-1])
    np.testing.assert_array_equal(ratings, [5, 4, 3, 2, 1, 0])
    together, ratings = merge_boxes(boxes, np.arange(6), match=2)
    np.testing.assert_allclose(together, [boxes.mean(0)])
    assert ratings == [15]


def test_merging_leaves_its_arguments_alone():
    boxes, scores = np.tile([0, 0, 1, 1.0], (3, 1)), np.ones(3)
    merge_boxes(boxes, scores)
    np.testing.assert_array_equal(scores, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.empty((0, 4)), []), r"n >= 1, not \(0, 4\)"),
        (([[0, 0, 1, 1]], [1, 2]), r"1 boxes need as many scores, not \(2,\)"),
        (([[0, 0, 1, np.nan]], [1]), "must be finite"),
        (([[0, 0, 1, 1]], [1], 3), r"match must be in \[0, 2\], not 3"),
    ],
)
def test_what_cannot_be_merged(arguments, message):
    with pytest.raises(ValueError, match=message):
        merge_boxes(*arguments)


# --- the loss --------------------------------------------------------------------------------


def loss_of(labels, outputs):
    return float(ops.convert_to_numpy(EuclideanLoss()(labels, outputs)))


def gradient(labels, outputs, step=2.0**-6):
    """By differences, exact for a square but for rounding; on every backend."""
    found = np.zeros_like(outputs)
    for index in np.ndindex(outputs.shape):
        change = np.zeros_like(outputs)
        change[index] = step
        found[index] = (loss_of(labels, outputs + change) - loss_of(labels, outputs - change)) / (
            2 * step
        )
    return found


def test_one_box_for_all_classes_loss_by_hand():
    labels = np.array([[2, 0.5, 0.5, 1, 1], [0, 0, 0, 0.5, 0.25]], "float32")
    outputs = np.array([[0.5, 0.25, 0.5, 1], [1, 0, 0.5, 0.25]], "float32")
    # 0.0625 + 0.25 and 1: halves of them, and their mean.
    assert loss_of(labels, outputs) == pytest.approx((0.15625 + 0.5) / 2)
    np.testing.assert_allclose(gradient(labels, outputs), (outputs - labels[:, 1:]) / 2, atol=1e-4)


def test_a_box_for_each_class_only_the_true_one_counts():
    labels = np.array([[2, 0.5, 0.5, 1, 1], [0, 0, 0, 0.5, 0.25]], "float32")
    outputs = np.random.default_rng(0).uniform(0, 1, (2, 12)).astype("float32")
    difference = np.stack([outputs[0, 8:], outputs[1, :4]]) - labels[:, 1:]
    assert loss_of(labels, outputs) == pytest.approx((difference**2).sum() / 4, rel=1e-5)
    wanted = np.zeros((2, 12))
    wanted[0, 8:], wanted[1, :4] = difference / 2
    found = gradient(labels, outputs)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert (found[wanted == 0] == 0).all()
    np.testing.assert_allclose(
        ops.convert_to_numpy(boxes_of(labels, outputs)), difference + labels[:, 1:], rtol=1e-5
    )


def test_training_moves_the_true_class_alone():
    kernel = np.random.default_rng(0).normal(size=(5, 12)).astype("float32")
    layer = keras.layers.Dense(12)
    net = keras.Sequential([keras.Input((5,)), layer])
    layer.set_weights([kernel, np.zeros(12)])
    net.compile(keras.optimizers.SGD(0.1), EuclideanLoss())
    x = np.ones((1, 5), "float32")
    labels = np.array([[1, 0.5, 0.5, 1, 1]], "float32")
    outputs = net.predict_on_batch(x)
    net.train_on_batch(x, labels)
    moved = layer.get_weights()[0] - kernel
    np.testing.assert_allclose(
        moved[:, 4:8], np.tile(-0.1 * (outputs[:, 4:8] - labels[:, 1:]), (5, 1)), atol=1e-5
    )
    assert (moved[:, :4] == 0).all()
    assert (moved[:, 8:] == 0).all()


@pytest.mark.slow
def test_the_loss_is_saved_with_its_model(tmp_path):
    net = localizer(classifier(size=32), CLASSES)
    net.compile("sgd", EuclideanLoss(reduction="sum"))
    x = images(2, 32, 32, 3)
    labels = np.array([[0, 0.5, 0.5, 1, 1], [2, 0.5, 0.5, 1, 1]], "float32")
    before = net.evaluate(x, labels, verbose=0)
    net.save(tmp_path / "boxes.keras")
    again = keras.saving.load_model(tmp_path / "boxes.keras")
    assert isinstance(again.loss, EuclideanLoss)
    assert again.evaluate(x, labels, verbose=0) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "outputs", "message"),
    [
        ((2, 4), (2, 4), r"labels must be \[n, 5\], class and box, not \(2, 4\)"),
        ((2, 5), (2, 7), r"outputs must be \[n, 4 \* boxes\], not \(2, 7\)"),
    ],
)
def test_labels_and_outputs_that_do_not_fit(labels, outputs, message):
    with pytest.raises(ValueError, match=message):
        loss_of(np.zeros(labels, "float32"), np.zeros(outputs, "float32"))


# --- the localiser ---------------------------------------------------------------------------


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("head", "classes"), PAIRS)
def test_it_has_the_classifiers_weights_and_leaves_it_alone(head, classes):
    model = classifier(head, batch_norm=True)
    x = images(4, 64, 64, 3)
    before, probabilities = model.get_weights(), answers(model, x)

    net = localizer(model, classes)

    assert net.output_shape == (None, 4 * (classes or 1))
    assert [x.name for x in net.layers[1:]] == [x.name for x in model.layers[1:]]
    for name, values in weights(model).items():
        for own, given in zip(weights(net)[name], values, strict=True):
            np.testing.assert_array_equal(own, given)
    last = net.get_layer("predictions")
    assert last.kernel.shape[-1] == net.output_shape[-1]
    assert np.ptp(last.kernel) > 0
    boxes = answers(net, x)
    assert abs(boxes.sum(1) - 1).max() > 1e-3  # no soft-max is left

    net.compile(keras.optimizers.SGD(0.1), EuclideanLoss(), run_eagerly=True)
    net.fit(x, np.tile([1, 0.5, 0.5, 1, 1.0], (4, 1)), verbose=0)
    assert np.abs(weights(net)["block1_conv1"][0] - weights(model)["block1_conv1"][0]).max() > 0
    for own, given in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(own, given)
    np.testing.assert_allclose(answers(model, x), probabilities, atol=1e-6)


@pytest.mark.parametrize("head", SOME_HEADS)
def test_only_the_fully_connected_layers(head):
    model = classifier(head, batch_norm=True)
    net = localizer(model, trainable="fc")
    trained = {"fc1", "fc2", "predictions"} if head != "gap" else {"predictions"}
    assert {layer.name for layer in net.layers if layer.trainable_weights} == trained

    net.compile(keras.optimizers.SGD(0.1), EuclideanLoss(), run_eagerly=True)
    before = weights(net, but=None)
    net.fit(images(4, 64, 64, 3), np.tile([1, 0.5, 0.5, 1, 1.0], (4, 1)), verbose=0)

    after = weights(net, but=None)
    moved = {
        name
        for name, values in before.items()
        if any((a != b).any() for a, b in zip(values, after[name], strict=True))
    }
    assert moved == trained  # nor the statistics of batch normalisation
    assert all(layer.trainable for layer in model.layers)


def test_it_is_not_compiled_as_the_classifier_was():
    model = classifier(size=32)
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    net = localizer(model)
    assert not net.compiled
    net.compile("sgd", EuclideanLoss(), run_eagerly=True)
    labels = np.tile([1, 0.5, 0.5, 1, 1.0], (2, 1))
    history = net.fit(images(2, 32, 32, 3), labels, verbose=0).history
    assert set(history) == {"loss"}


@pytest.mark.slow
def test_of_a_network_of_keras_applications():
    model = keras.applications.VGG16(weights=None, classes=5, input_shape=(32, 32, 3))
    net = localizer(model, 5, name="boxes")
    assert (net.name, net.output_shape) == ("boxes", (None, 20))
    kernels = [m.get_layer("fc1").kernel for m in (net, model)]
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, kernels))


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (classifier, {"classes": 0}, "a whole number above 0, not 0"),
        (classifier, {"classes": 2.0}, "a whole number above 0, not 2.0"),
        (classifier, {"trainable": "none"}, "one of all, fc, not 'none'"),
        (
            lambda: models.vgg("A", include_top=False, weights=None),
            {},
            "'vgg11' has no layer 'predictions'",
        ),
        (
            lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="other"),
            {},
            "'other' has no layer 'block5_pool'",
        ),
        (
            lambda: classifier("conv", 96, train_size=64),
            {},
            r"takes images of \(96, 96\), but the window of its fc1 is \(64, 64\)",
        ),
    ],
)
def test_what_no_localiser_is_made_of(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        localizer(build(), **arguments)


# --- whole images ----------------------------------------------------------------------------


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("head", "classes"), PAIRS)
def test_at_the_training_size_it_is_the_plain_localiser(head, classes):
    model = classifier(head, batch_norm=True)
    net = localizer(model, classes)
    x = images(3, 64, 64, 3)

    found = predict_boxes(net, model, x, batch_size=2)

    with pytest.raises(ValueError, match="batch_size must be at least 1, not -1"):
        predict_boxes(net, model, x, batch_size=-1)

    plain = answers(net, x).reshape(3, -1, 4)
    for one, boxes, image in zip(found, plain, x, strict=True):
        assert one.boxes.shape == (1, 1, classes or 1, 4)
        assert one.scores.shape == (1, 1, CLASSES)
        np.testing.assert_allclose(one.boxes[0, 0], to_corners(boxes, 64), atol=1e-3)
        wanted = answers(model, image[np.newaxis])[0]
        np.testing.assert_allclose(one.probabilities, wanted, atol=1e-5)


@pytest.mark.parametrize("head", SOME_HEADS)
def test_elsewhere_it_is_the_localiser_slid_over_the_features_by_hand(head):
    model = classifier(head)
    net = localizer(model, CLASSES)
    image = images(96, 130, 3)

    found = predict_boxes(net, model, [image])[0]

    assert found.boxes.shape == (2, 3, CLASSES, 4)
    names = [name for name in ("fc1", "fc2", "predictions") if name in weights(net, None)]
    for network in (net, model):
        pooled = pool_features(network, image)
        for row, column in np.ndindex(2, 3):
            window = pooled[row : row + 2, column : column + 2]
            y = window.mean((0, 1)) if head == "gap" else window.ravel()
            for name in names:
                kernel, bias = network.get_layer(name).get_weights()
                y = y @ kernel.reshape(-1, kernel.shape[-1]) + bias
                y = y if name == "predictions" else np.maximum(y, 0)
            if network is model:
                np.testing.assert_allclose(found.scores[row, column], y, atol=1e-4)
                continue
            for (x, down, width, height), box in zip(
                y.reshape(-1, 4), found.boxes[row, column], strict=True
            ):
                width, height = max(width, 0), max(height, 0)
                wanted = [x - width / 2, down - height / 2, x + width / 2, down + height / 2]
                start = [32 * column, 32 * row] * 2
                np.testing.assert_allclose(box, 64 * np.array(wanted) + start, atol=1e-2)


def pool_features(model, image):
    """[rows, columns, channels] float64 of an image of any size, in copies of the layers."""
    pool = keras.Model(model.inputs[0], model.get_layer("block5_pool").output)
    trunk = keras.models.clone_model(pool, input_tensors=keras.Input(image.shape))
    trunk.set_weights(pool.get_weights())
    return np.asarray(answers(trunk, image[np.newaxis])[0], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fc", "conv", "gap"])
def test_not_dense_it_is_the_localiser_on_what_is_cut_out(head):
    model = classifier(head, batch_norm=True)
    net = localizer(model, CLASSES)
    x = [images(96, 130, 3), images(96, 130, 3) / 2, images(64, 96, 3)]

    found = predict_boxes(net, model, x, dense=False, batch_size=4)

    assert [one.boxes.shape[:2] for one in found] == [(2, 3), (2, 3), (1, 2)]
    for one, image in zip(found, x, strict=True):
        for row, column in np.ndindex(one.boxes.shape[:2]):
            top, left = 32 * row, 32 * column
            window = image[np.newaxis, top : top + 64, left : left + 64]
            boxes = to_corners(answers(net, window).reshape(-1, 4), 64, (top, left))
            np.testing.assert_allclose(one.boxes[row, column], boxes, atol=1e-3)
            scores = one.scores[row, column]
            shares = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(shares, answers(model, window)[0], atol=1e-5)
    dense = predict_boxes(net, model, x[:1])[0]
    assert np.abs(dense.boxes - found[0].boxes).max() > 0.1  # of the neighbours


@pytest.mark.parametrize("head", ["fc", "gap"])
def test_every_place_has_its_window_inside_the_image(head):
    """A window of 80 pixels covers two cells of the map and a half."""
    model = classifier(head, size=80)
    net = localizer(model)
    for dense in (True, False):
        (found,) = predict_boxes(net, model, images(1, 128, 160, 3), dense=dense)
        assert (found.boxes.shape[:2], found.scores.shape[:2]) == ((2, 3), (2, 3))


def test_images_of_many_sizes_come_back_in_order():
    model = classifier()
    net = localizer(model)
    x = [images(64, 96, 3), images(64, 64, 3), 0 * images(64, 64, 3), images(64, 96, 3) / 2]

    found = predict_boxes(net, model, x)

    assert [one.boxes.shape[:2] for one in found] == [(1, 2), (1, 1), (1, 1), (1, 2)]
    for one, image in zip(found[2:], x[2:], strict=True):  # the second of each size
        alone = predict_boxes(net, model, [image])[0]
        np.testing.assert_allclose(one.boxes, alone.boxes, atol=1e-3)


def test_a_head_that_takes_any_size_needs_its_window_said():
    model = classifier("gap", size=None)
    net = localizer(model)
    with pytest.raises(ValueError, match="'vgg11_boxes' takes any size: give the window"):
        predict_boxes(net, model, images(1, 96, 64, 3))
    found = predict_boxes(net, model, images(1, 96, 64, 3), window=64)[0]
    assert found.boxes.shape == (2, 1, 1, 4)


def test_models_and_images_that_do_not_fit():
    model, net = classifier(), localizer(classifier(classes=5), 5)
    with pytest.raises(ValueError, match="has 20 outputs; 3 classes need 4 or 12"):
        predict_boxes(net, model, images(1, 64, 64, 3))
    with pytest.raises(ValueError, match="have different windows"):
        predict_boxes(localizer(classifier(size=32)), model, images(1, 64, 64, 3))
    with pytest.raises(ValueError, match=r"window is \(32, 32\), but 'vgg11_boxes' was made for"):
        predict_boxes(net, model, images(1, 64, 64, 3), window=32)
    with pytest.raises(ValueError, match="there are no images"):
        predict_boxes(localizer(model), model, [])
    with pytest.raises(ValueError, match=r"image 1 must be .* at least \(64, 64\), not \(64, 40"):
        predict_boxes(localizer(model), model, [images(64, 64, 3), images(64, 40, 3)])


def test_guesses_by_hand():
    # Two places agree on class 1's box and one does not; class 0 is less probable, 2 hardly.
    boxes = np.tile([0, 0, 10, 10.0], (1, 3, 3, 1))
    boxes[0, :, 1] = [[20, 20, 40, 40], [22, 20, 42, 40], [80, 80, 90, 90]]
    scores = np.log([[[0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1]]]).astype("float32")
    one = Localization(boxes, scores)

    first, second, third = one.guesses(top=2, count=2)

    assert [first.label, second.label, third.label] == [1, 1, 0]
    np.testing.assert_allclose(first.box, [21, 20, 41, 40])
    np.testing.assert_allclose(second.box, [80, 80, 90, 90])
    np.testing.assert_allclose(third.box, [0, 0, 10, 10])
    ratings = [first.rating, second.rating, third.rating]
    np.testing.assert_allclose(ratings, [1.3, 0.8, 0.6], rtol=1e-5)
    means = np.array([0.006, 0.336, 0.001]) ** (1 / 3)  # of the scores
    assert first.probability == pytest.approx((means / means.sum())[1], rel=1e-5)
    # With one box for all classes the classes differ in nothing but their ratings.
    single = Localization(boxes[:, :, 1:2], scores)
    np.testing.assert_allclose(single.merged(0)[0], [[21, 20, 41, 40], [80, 80, 90, 90]])
    np.testing.assert_allclose(single.merged(0)[1], [0.5, 0.1], rtol=1e-5)
    several = Localization(boxes, scores, several_labels=True)
    np.testing.assert_allclose(several.probabilities[1], 1 / (1 + 1 / np.cbrt(0.336)), rtol=1e-5)
    np.testing.assert_allclose(several.merged(0)[1], [1 / 6 + 3 / 13 + 1 / 11], rtol=1e-5)
    with pytest.raises(ValueError, match=r"label 3 is not in \[0, 3\)"):
        one.merged(3)
    with pytest.raises(ValueError, match="top and count must be at least 1, not 0 and 1"):
        one.guesses(top=0)


@pytest.mark.slow
def test_it_learns_where_a_bright_square_is():
    random = np.random.default_rng(0)
    x = random.uniform(0, 60, (192, 32, 32, 3)).astype("float32")
    corners = []
    for image in x:
        side = random.integers(10, 18)
        top, left = random.integers(0, 33 - side, 2)
        image[top : top + side, left : left + side] = 255
        corners.append([left, top, left + side, top + side])
    truth = np.array(corners)
    labels = np.concatenate([np.zeros((192, 1)), to_relative(truth, 32)], 1)
    model = models.vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=CLASSES,
        width_multiplier=1 / 8,
        hidden_units=32,
        dropout=0.0,
        batch_norm=True,
        include_preprocessing=True,
    )
    net = localizer(model)
    net.compile(keras.optimizers.Adam(3e-3), EuclideanLoss())

    net.fit(x[:160], labels[:160], epochs=14, batch_size=32, verbose=0)

    found = to_corners(net.predict(x[160:], verbose=0), 32)
    constant = to_corners(labels[:160, 1:].mean(0), 32)
    error = localization_error(found, truth[160:])
    assert error < localization_error(constant, truth[160:]) - 0.2

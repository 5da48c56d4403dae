"""Protocols against crops, averages and soft-maxes made by hand."""

import keras
import numpy as np
import pytest

from keras_vgg.evaluation import Protocol, posteriors, runner
from tests.dense_networks import answers
from tests.test_dense import CLASSES, images, network, slid, softmax


@pytest.fixture(scope="module")
def model():
    return network("A", size=32)


def test_center_is_the_model(model):
    x = images(3, 32, 32, 3)
    found = runner(model, Protocol("center"), CLASSES)(x)
    np.testing.assert_allclose(found, answers(model, x), atol=1e-6)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("average", ["scores", "posteriors"])
def test_dense_by_hand(model, average, mirror):
    x = images(2, 64, 101, 3)
    found = runner(model, Protocol("dense", average, mirror), CLASSES)(x)
    views = []
    for view in (x, x[:, :, ::-1]) if mirror else (x,):
        scores = slid(model, view).reshape(2, -1, CLASSES)
        views.append(softmax(scores.mean(1)) if average == "scores" else softmax(scores).mean(1))
    np.testing.assert_allclose(found, np.mean(views, 0), atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("average", ["scores", "posteriors"])
def test_multi_crop_by_hand(model, average, mirror):
    crops = images(2, 6, 32, 32, 3)
    if mirror:
        crops = np.concatenate([crops, crops[:, :, :, ::-1]], axis=1)
    found = runner(model, Protocol("multi-crop", average, mirror), CLASSES)(crops)
    bare = keras.Model(model.inputs[0], model.get_layer("fc2").output)
    kernel, bias = model.get_layer("predictions").get_weights()
    scores = answers(bare, crops.reshape(-1, 32, 32, 3)) @ kernel + bias
    scores = scores.reshape(2, 1 + mirror, 6, CLASSES)
    wanted = softmax(scores.mean(2)) if average == "scores" else softmax(scores).mean(2)
    np.testing.assert_allclose(found, wanted.mean(1), atol=1e-5)


def test_the_two_averages_differ(model):
    x = images(2, 96, 96, 3)
    one, other = (runner(model, Protocol("dense", a), CLASSES)(x) for a in ("scores", "posteriors"))
    assert np.abs(one - other).max() > 1e-3


def test_defaults_are_the_papers():
    assert Protocol("dense").average == "scores"
    assert Protocol("multi-crop").average == "posteriors"
    assert Protocol("dense").mirror


def mean_of(batches):
    """A run whose posteriors name the image: [mean, 1 - mean]; notes its batches."""

    def run(x):
        batches.append(x.shape)
        mean = x.reshape(len(x), -1).mean(1)
        return np.stack([mean, 1 - mean], 1)

    return run


def mixed(count):
    """Images of three sizes in turn, their mean saying which one it is."""
    for i in range(count):
        yield np.full((4 + i % 3, 5, 3), i / count, np.float32), i % 2


@pytest.mark.parametrize("seconds", [0.0, 60.0])
@pytest.mark.parametrize("pixels", [1, 60, 10**6])
def test_posteriors_come_in_order_whatever_the_sizes(pixels, seconds):
    batches = []
    blocks = list(
        posteriors(mean_of(batches), mixed(20), classes=2, pixels=pixels, seconds=seconds)
    )
    assert len(blocks) == (20 if seconds == 0 else 1)
    labels, found = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    np.testing.assert_array_equal(labels, np.arange(20) % 2)
    np.testing.assert_allclose(found[:, 0], np.arange(20) / 20, atol=1e-6)
    assert sum(shape[0] for shape in batches) == 20
    for shape in batches:
        assert shape[0] == 1 or np.prod(shape[:3]) <= pixels
    if seconds and pixels == 10**6:
        assert len(batches) == 3  # one for each size


def test_images_that_wait_do_not_fill_the_memory(monkeypatch):
    from keras_vgg.evaluation import protocols

    monkeypatch.setattr(protocols, "_WAITING", 100)
    batches = []
    blocks = list(posteriors(mean_of(batches), mixed(20), classes=2, pixels=10**6))
    assert len(batches) > 3
    np.testing.assert_allclose(blocks[0][1][:, 0], np.arange(20) / 20, atol=1e-6)


def test_no_image_gives_no_block():
    assert not list(posteriors(mean_of([]), [], classes=2))


@pytest.mark.parametrize("label", [2, -1, 0.5])
def test_labels_that_do_not_fit(label):
    with pytest.raises(ValueError, match=r"label 2 is not|label -1 is not|labels must be 1 int"):
        list(posteriors(mean_of([]), [(np.zeros((4, 4, 3)), label)], classes=2))


def test_outputs_and_images_that_do_not_fit(model):
    with pytest.raises(ValueError, match="3 class names"):
        runner(model, Protocol("center"), 3)(images(1, 32, 32, 3))
    with pytest.raises(ValueError, match="3 class names"):
        runner(model, Protocol("dense"), 3)(images(1, 32, 32, 3))
    with pytest.raises(ValueError, match=r"at least \(32, 32\).*not \(31, 40\)"):
        runner(model, Protocol("dense"), CLASSES)(images(1, 31, 40, 3))
    broken = network("A", size=32)
    broken.get_layer("predictions").bias.assign(np.full(CLASSES, np.nan))
    for name in ("center", "dense"):
        with pytest.raises(ValueError, match="not finite"):
            runner(broken, Protocol(name), CLASSES)(images(1, 32, 32, 3))
    with pytest.raises(ValueError, match="protocol must be one of center, dense, multi-crop"):
        Protocol("sparse")
    with pytest.raises(ValueError, match="average must be one of scores, posteriors"):
        Protocol("dense", "logits")

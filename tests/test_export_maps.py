"""A model whose answer is a map is exported and verified like a classifier."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import dense
from keras_vgg.export import ExportError, export
from keras_vgg.export.checks import check_images, check_model
from keras_vgg.export.model_files import open_model_file
from keras_vgg.export.verify import Reference, _compared
from tests.dense_networks import randomized

NAMES = ["background", "cat", "dog"]
IMAGES = np.random.default_rng(1).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
MASKS = np.random.default_rng(2).integers(0, 3, (3, 32, 32))
SMALL = {"weights": None, "width_multiplier": 1 / 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "options"),
    [(dense.fcn, {"hidden_units": None}), (dense.unet, {"decoder_filters": (8, 8, 4, 4, 4)})],
)
def test_a_dense_network_as_saved_model_and_litert(builder, options, tmp_path):
    model = randomized(builder("A", 3, input_shape=(32, 32, 3), **options, **SMALL), gain=1.0)
    artifacts = export(model, NAMES, tmp_path / "export", images=IMAGES, labels=MASKS)
    answers = np.asarray(model.predict(IMAGES, verbose=0))
    assert answers.std(axis=(0, 1, 2)).min() > 1e-3
    accuracy = np.mean(answers.argmax(-1) == MASKS)
    assert [artifact.format for artifact in artifacts] == ["saved_model", "litert"]
    for artifact in artifacts:
        assert (artifact.images, artifact.agreement) == (3, 1.0)
        assert artifact.max_difference < 1e-4
        assert artifact.top1 == pytest.approx(accuracy, abs=1e-3)
    loaded = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    assert set(loaded.signatures) == {"serving_default", "serving_uint8", "features"}
    given = loaded.signatures["serving_default"](images=tf.constant(IMAGES))["probabilities"]
    np.testing.assert_allclose(given, answers, atol=1e-4)
    record = json.loads((tmp_path / "export" / "export.json").read_text())
    assert record["description"]["output"]["shape"] == [None, 32, 32, 3]
    network, _, _ = open_model_file(tmp_path / "export" / "model.tflite")
    with pytest.raises(ValueError, match=r"the model answers with \(1, 32, 32, 3\), a map"):
        network(IMAGES[:1])


def maps(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(0, 1, (2, 4, 4, 3))
    return values / values.sum(-1, keepdims=True)


def test_pixels_are_compared_like_images():
    reference = Reference(maps(0), maps(0).argmax(-1), NAMES, None)
    assert reference.accuracy(maps(0))["top1"] == 1
    assert _compared("litert", maps(0), reference, None) == (1, 0)
    with pytest.raises(ExportError, match="does not answer like the model on 32 pixels"):
        _compared("litert", maps(1), reference, None)
    with pytest.raises(ExportError, match=r"gives \(2, 16, 3\) where the model gives \(2, 4, 4, 3"):
        _compared("litert", maps(0).reshape(2, 16, 3), reference, None)
    with pytest.raises(ExportError, match=r"is less accurate by .* on 32 pixels"):
        _compared("litert_int8", maps(1), reference, 0.5)


def test_pixels_with_labels_of_their_own():
    labels = (maps(0) > 0.3).astype("uint8")
    reference = Reference(maps(0), labels, NAMES, None, np.full(3, 0.3))
    assert reference.accuracy(maps(0))["mean_average_precision"] == 1
    assert _compared("litert", maps(0), reference, None) == (1, 0)
    with pytest.raises(ExportError, match=r"the labels of \d+.\d+% of the pixels agree"):
        _compared("litert", maps(1), reference, None)


def test_wrong_maps_and_masks():
    options = {"hidden_units": None, **SMALL}
    model = dense.fcn("A", 3, input_shape=(32, 32, 3), **options)
    with pytest.raises(ValueError, match="2 class names call for"):
        check_model(model, NAMES[:2])
    with pytest.raises(ValueError, match=r"gives maps of any size, .* a file needs one size"):
        check_model(dense.fcn("A", 3, **options), NAMES)
    with pytest.raises(ValueError, match=r"labels are \(3,\) for 3 images; they must be"):
        check_images(model, IMAGES, MASKS[:, 0, 0], None, False)
    check_images(model, IMAGES, MASKS, None, False)

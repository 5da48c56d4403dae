"""A SavedModel in bfloat16 answers almost like the model, from half of the bytes."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg.export import export
from keras_vgg.export.bfloat16 import in_bfloat16
from keras_vgg.export.fold import folded
from keras_vgg.models import vgg

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=7,
        width_multiplier=1 / 16,
        hidden_units=64,
        head="fc",
        kernel_initializer="he_normal",
        include_preprocessing=True,
    )
    scores = model.get_layer("predictions")
    scores.set_weights([0.02 * w for w in scores.get_weights()])  # no probability is nearly 1
    return model


def test_convolutions_and_dense_layers_alone_are_in_bfloat16(model: keras.Model) -> None:
    before = [np.array(w) for w in model.get_weights()]

    lower = in_bfloat16(model)

    dtypes = {layer.name: layer.compute_dtype for layer in lower.layers}
    assert dtypes["preprocessing"] == dtypes["predictions"] == "float32"
    assert {dtypes[name] for name in ("block1_conv1", "block5_pool", "fc1", "fc2")} == {"bfloat16"}
    assert lower.get_layer("fc1").kernel.dtype == "bfloat16"
    answers, expected = (np.asarray(m(IMAGES, training=False)) for m in (lower, model))
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-6)
    assert 0 < np.abs(answers - expected).max() < 0.05
    assert np.std(expected, axis=0).max() > 1e-3  # they depend on the image
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)  # the model is as it was


def test_a_model_inside_a_model_is_rewritten_too(model: keras.Model) -> None:
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Dense(3, activation="softmax")(model(inputs))

    lower = in_bfloat16(keras.Model(inputs, outputs))

    inner = lower.layers[1]
    assert inner.get_layer("block1_conv1").compute_dtype == "bfloat16"
    assert lower.layers[-1].compute_dtype == "float32"
    assert np.asarray(lower(IMAGES)).dtype == np.float32


@pytest.mark.parametrize(
    ("head", "scores", "later"),
    [
        ("gap", ("predictions",), ()),
        ("conv", ("predictions", "probabilities"), ("fc1", "fc2")),
    ],
)
def test_the_scores_are_in_float32_and_every_layer_before_them_is_not(
    head: str, scores: tuple[str, ...], later: tuple[str, ...]
) -> None:
    network = vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=3,
        width_multiplier=1 / 16,
        hidden_units=8,
        head=head,
        batch_norm=True,
        include_preprocessing=True,
    )
    lower = in_bfloat16(folded(network))

    dtypes = {layer.name: layer.compute_dtype for layer in lower.layers}
    assert {dtypes[name] for name in ("preprocessing", *scores)} == {"float32"}
    blocks = {name for name in dtypes if name.startswith("block")}
    assert "block5_conv2_relu" in blocks
    assert {dtypes[name] for name in (*blocks, *later)} == {"bfloat16"}
    assert np.asarray(lower(IMAGES)).dtype == np.float32


def test_scores_before_a_soft_max_of_its_own_are_in_float32() -> None:
    inputs = keras.Input((32, 32, 3))
    scores = keras.layers.Dense(3, name="scores")(keras.layers.Flatten(name="flat")(inputs))
    lower = in_bfloat16(keras.Model(inputs, keras.layers.Softmax(name="probabilities")(scores)))
    dtypes = {layer.name: layer.compute_dtype for layer in lower.layers}
    assert dtypes["flat"] == "bfloat16"
    assert dtypes["scores"] == dtypes["probabilities"] == "float32"


@pytest.mark.slow
def test_the_file_has_half_of_the_bytes_and_the_same_signatures(
    model: keras.Model, tmp_path: Path
) -> None:
    large = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), **({"units": 2048} if layer.name in ("fc1", "fc2") else {})}
        ),
    )
    formats = ("saved_model", "saved_model_bfloat16")

    full, half = export(
        large, list("abcdefg"), tmp_path / "export", images=IMAGES, formats=formats, tolerance=34
    )

    assert 0.45 < half.bytes / full.bytes < 0.6
    assert half.path.name == "saved_model_bfloat16"
    assert 0 < half.max_difference < 0.05
    loaded = [tf.saved_model.load(str(artifact.path)).signatures for artifact in (full, half)]
    assert set(loaded[0]) == set(loaded[1])
    features = loaded[1]["features"](images=tf.constant(IMAGES))["features"]
    assert features.dtype == tf.float32
    expected = loaded[0]["features"](images=tf.constant(IMAGES))["features"]
    np.testing.assert_allclose(features, expected, atol=0.03 * np.abs(expected).max())

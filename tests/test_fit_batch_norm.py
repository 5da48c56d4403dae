"""Batch norm in one operation while training, against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg.fit.batch_norm import fuse

RNG = np.random.default_rng(0)


def network(policy="float32", axis=-1, **options):
    inputs = keras.Input((6, 5, 7))
    # A layer before it, whose gradient goes through.
    x = keras.layers.EinsumDense("bhwc,cd->bhwd", (6, 5, 7), dtype=policy)(inputs)
    norm = keras.layers.BatchNormalization(
        axis=axis, momentum=0.7, epsilon=1e-4, dtype=policy, name="norm", **options
    )
    model = keras.Model(inputs, norm(x))
    model.layers[1].set_weights([np.eye(7) + 0.1])
    return model


def operations(model, training=True):
    """The types of a step's operations."""
    graph = tf.function(lambda x: model(x, training=training)).get_concrete_function(
        tf.TensorSpec((4, 6, 5, 7))
    )
    return {op.type for op in graph.graph.get_operations()}


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [
        ("float32", False),
        ("float32", True),
        ("mixed_bfloat16", False),
        pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_what_keras_makes_of_it(policy, jit_compile):
    x = RNG.normal(3, 5, (4, 6, 5, 7)).astype("float32")
    target = RNG.normal(0, 1, x.shape).astype("float32")
    found = []
    for fused in (False, True):
        model = network(policy)
        if fused:
            fuse(model)
        assert ("FusedBatchNormV3" in operations(model)) == fused
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        model.train_on_batch(x, target)
        found.append([*model.get_weights(), model.predict(x, verbose=0)])
    assert len(found[0]) == 6  # kernel, gamma, beta, two averages, outputs
    tolerance = 2e-2 if policy == "mixed_bfloat16" else 1e-5
    for as_keras, fused in zip(*found, strict=True):
        np.testing.assert_allclose(fused, as_keras, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options", [{"axis": 1}, {"policy": "float64"}, {"scale": False}, {"synchronized": True}]
)
def test_what_cannot_be_fused_is_as_it_was(options):
    model = network(**options)
    fuse(model)
    if "synchronized" not in options:  # that one wants a strategy's scope
        assert "FusedBatchNormV3" not in operations(model)
    x = RNG.normal(3, 5, (4, 6, 5, 7)).astype("float32")
    expected = network(**options)
    np.testing.assert_array_equal(
        np.asarray(model(x, training=True)), np.asarray(expected(x, training=True))
    )


def test_inference_and_frozen_layers_are_keras_own():
    model = network()
    fuse(model)
    assert "FusedBatchNormV3" not in operations(model, training=False)
    model.get_layer("norm").trainable = False
    assert "FusedBatchNormV3" not in operations(model)


def test_a_saved_model_says_nothing_of_it(tmp_path):
    model = network()
    config = model.get_config()
    fuse(model)
    assert model.get_config() == config
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.get_layer("norm")) is keras.layers.BatchNormalization
    assert "FusedBatchNormV3" not in operations(again)
    assert "FusedBatchNormV3" not in operations(keras.models.clone_model(model))

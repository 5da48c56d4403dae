"""Class weights: scikit-learn's, in the loss of training alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from keras_vgg import data
from keras_vgg.fit import fit, load_source, preparation
from keras_vgg.fit.class_weights import class_weights, weighted
from keras_vgg.recipe import Recipe

pytestmark = pytest.mark.usefixtures("blank_plots")

BALANCED = Recipe(
    width_multiplier=1 / 16,
    hidden_units=8,
    test_fraction=0.8,
    epochs=1,
    dropout=0.0,
    train_scale=(32, 32),
    eval_scale=32,
    class_weights="balanced",
)


def split_of(labels):
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    return data.Split("train", len(labels), np.array(labels, np.int32), images)


def test_they_are_scikit_learns():
    labels = [0] * 120 + [1] * 24 + [2] * 7
    weights = class_weights(BALANCED, split_of(labels), "abc")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert np.mean(weights[labels]) == pytest.approx(1)
    assert class_weights(Recipe(), split_of(labels), "abc") is None
    # A class without an image takes no part.
    weights = class_weights(BALANCED, split_of([0, 0, 2]), "abc")
    np.testing.assert_allclose(weights, [0.75, 0, 1.5])


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("cat=2,dog=0.5", [2, 0.5, 1]),
        (" dog = 1e1 ", [1, 10, 1]),
        ("a=b, c=3", [1, 1, 3]),
        ("cat=0", [0, 1, 1]),
    ],
)
def test_weights_by_name_are_taken_as_they_are(text, weights):
    recipe = Recipe(class_weights=text)
    assert Recipe.from_json(recipe.to_json()) == recipe
    found = class_weights(recipe, split_of([0, 1, 2]), ("cat", "dog", "a=b, c"))
    np.testing.assert_allclose(found, weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cta=2,dog=1", "no class is 'cta'; did you mean 'cat'"),
        ("emu=2", "no class is 'emu'; the classes are cat, dog"),
        ("cat=0,dog=0", "gives every class weight 0"),
    ],
)
def test_weights_of_unknown_classes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        class_weights(Recipe(class_weights=text), split_of([0, 1]), ("cat", "dog"))


@pytest.mark.parametrize(
    "text", ["equal", "", "cat", "cat=", "cat=two", "cat=1,cat=2", "cat=1,dog", "=2"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="must be none, balanced, or a weight for each of some"):
        Recipe(class_weights=text)


@pytest.mark.parametrize("number", ["-1", "nan", "inf", "1e7"])
def test_weights_out_of_range_are_refused(number):
    with pytest.raises(ValueError, match=rf"must be in \[0, 1e\+06\], not {number} for 'cat'"):
        Recipe(class_weights=f"dog=1,cat={number}")


def test_labels_of_records_are_counted(tmp_path):
    split = load_source(BALANCED).train
    data.pack(data.Source("digits", tuple("0123456789"), split, None, None), tmp_path / "packed")
    packed = data.load_source(f"records:{tmp_path / 'packed'}").train
    assert packed.labels is None
    np.testing.assert_allclose(
        class_weights(BALANCED, packed, "0123456789"),
        class_weights(BALANCED, split, "0123456789"),
    )


def test_a_mixed_target_has_the_mixed_weight():
    targets = np.array([[1, 0], [0.25, 0.75]], np.float32)
    batches = tf.data.Dataset.from_tensors((np.zeros((2, 1)), targets))
    ((_, _, weights),) = weighted(batches, np.array([2, 0.5], np.float32))
    np.testing.assert_allclose(weights, [2, 0.875])
    assert weighted(batches, None) is batches


@pytest.mark.slow
@pytest.mark.parametrize("base", [False, True])
def test_the_loss_of_training_is_weighted_and_that_of_validation_is_not(
    tmp_path, base, monkeypatch, tiny_run
):
    """With a learning rate of almost 0, the first epoch's loss is that of the first weights."""
    source = load_source(BALANCED)
    labels = source.train.labels
    uneven = source.train.take(np.flatnonzero((labels < 3) | (np.arange(len(labels)) % 5 == 0)))
    uneven = uneven.take(np.arange(uneven.size // 32 * 32))
    source = data.Source("digits", source.class_names, uneven, source.validation, None)
    monkeypatch.setattr(preparation, "load_source", lambda recipe: source)
    recipe = BALANCED.replace(learning_rate=1e-12, batch_size=32, weight_decay=0, batch_norm=False)
    if base:
        first = fit(recipe.replace(class_weights="none"), tmp_path / "first", verbose=0)
        recipe = recipe.replace(init=str(first.directory), freeze_until="all")
    run = fit(recipe, tmp_path / "run", verbose=0)
    (row,) = run.history
    model = run.model()
    losses = {}
    for split in (uneven, source.validation):
        images = np.repeat(np.repeat(split.images, 4, 1), 4, 2)
        images = np.stack([tf.image.resize(i, (32, 32)).numpy() for i in split.images])
        probabilities = model.predict(images.round(), verbose=0)
        each = keras.losses.sparse_categorical_crossentropy(split.labels, probabilities)
        losses[split.name] = keras.ops.convert_to_numpy(each)
    weights = class_weights(recipe, uneven, "0123456789")[uneven.labels]
    assert abs(losses["train"].mean() - (weights * losses["train"]).mean()) > 1e-4
    assert row["loss"] == pytest.approx((weights * losses["train"]).mean(), rel=2e-3)
    assert row["val_loss"] == pytest.approx(losses["validation"].mean(), rel=2e-3)


@pytest.mark.slow
def test_class_weights_are_stated(tmp_path, capsys):
    run = fit(BALANCED, tmp_path / "run", verbose=2)
    assert "class weights in the loss: from " in capsys.readouterr().out
    assert run.results["training_accuracy"] <= 1
    assert fit(BALANCED, tmp_path / "run", verbose=0).finished
    with pytest.raises(ValueError, match="class_weights 'balanced', not 'none'"):
        fit(BALANCED.replace(class_weights="none"), tmp_path / "run", verbose=0)

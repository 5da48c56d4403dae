"""The recipe's fields of augmentation: what is refused, and what reaches the images."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_vgg import Recipe, augment
from keras_vgg.fit import frozen, training_transform

FIELDS = {
    "crop_area": (0.2, 0.9), "vertical_flip": True, "rotation": 15.0, "shear": 0.1,
    "translation": 0.2, "auto_augment": "rand", "rand_operations": 3, "rand_magnitude": 12,
    "cutout": 0.5, "crop_ratio": (0.5, 2.0),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("crop_area", (0.0, 1.0), r"crop_area must be two rising shares .* not \(0.0, 1.0\)"),
        ("crop_area", (0.9, 0.2), r"crop_area must be two rising shares"),
        ("crop_area", (0.5,), r"crop_area must be two rising shares"),
        ("crop_area", (0.5, 1.5), r"in \(0, 1\]"),
        ("crop_area", 0.5, "crop_area must be"),
        ("crop_ratio", (0.0, 1.0), r"crop_ratio must be two rising numbers"),
        ("crop_ratio", (2.0, 1.0), r"crop_ratio must be two rising numbers"),
        ("crop_ratio", (1.0, 2.0, 3.0), r"crop_ratio must be two rising numbers"),
        ("vertical_flip", 1, "vertical_flip must be True or False"),
        ("vertical_flip", "yes", "vertical_flip must be True or False"),
        ("vertical_flip", None, "vertical_flip must be True or False"),
        ("rotation", -5.0, r"rotation must be in \[0, 180\]"),
        ("rotation", 181, r"rotation must be in \[0, 180\]"),
        ("rotation", float("nan"), r"rotation must be in \[0, 180\]"),
        ("shear", 2.0, r"shear must be in \[0, 1\]"),
        ("shear", -0.1, r"shear must be in \[0, 1\]"),
        ("shear", "0.1", "shear must be float"),
        ("translation", 1.5, r"translation must be in \[0, 1\]"),
        ("translation", -0.5, r"translation must be in \[0, 1\]"),
        ("translation", (0.1, 0.1), "translation must be float"),
        ("auto_augment", "randaugment", "auto_augment must be one of none, trivial, rand"),
        ("auto_augment", True, "auto_augment must be one of none, trivial, rand"),
        ("auto_augment", None, "auto_augment must be one of none, trivial, rand"),
        ("rand_operations", 0, r"rand_operations must be in \[1, 8\]"),
        ("rand_operations", 9, r"rand_operations must be in \[1, 8\]"),
        ("rand_operations", 2.0, "rand_operations must be int"),
        ("rand_magnitude", 31, r"rand_magnitude must be in \[0, 30\]"),
        ("rand_magnitude", -1, r"rand_magnitude must be in \[0, 30\]"),
        ("rand_magnitude", 9.5, "rand_magnitude must be int"),
        ("cutout", 1.5, r"cutout must be in \[0, 1\]"),
        ("cutout", -0.5, r"cutout must be in \[0, 1\]"),
        ("cutout", "half", "cutout must be float"),
    ],
)
def test_wrong_values_are_refused_in_words(name: str, wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{name: wrong})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_area": (0.1, 1.0), "train_scale": (32, 40)}, r"train_scale \(\(32, 40\)\)"),
        ({"crop_area": (0.1, 1.0), "train_scale": None}, r"train_scale \(None\) would have no"),
        ({"crop_area": (0.1, 1.0), "crop_padding": 2}, r"crop_padding \(2\) would have no effect"),
        ({"rand_augment": 0.3, "auto_augment": "trivial"}, "augment an image twice; choose one"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_a_recipe_of_an_earlier_version_loads_and_means_the_same() -> None:
    values = json.loads(Recipe(horizontal_flip=True).to_json())
    for name in FIELDS:
        del values[name]
    recipe = Recipe.from_json(json.dumps(values))
    assert recipe == Recipe(horizontal_flip=True)
    options = training_transform(recipe, None).keywords
    assert options["policy"] is None
    assert options["crop_area"] is None
    assert not any(options[k] for k in ("rotation", "shear", "translation", "cutout"))
    assert options["vertical_flip"] is False


def test_every_field_reaches_the_images_and_a_file() -> None:
    recipe = Recipe(**FIELDS)
    assert Recipe.from_json(recipe.to_json()) == recipe
    options = training_transform(recipe, None).keywords
    assert options["policy"] == augment.rand_augment(3, 12)
    for name in set(FIELDS) - {"auto_augment", "rand_operations", "rand_magnitude"}:
        assert options[name] == FIELDS[name]
    trivial = training_transform(Recipe(auto_augment="trivial"), None).keywords
    assert trivial["policy"] == augment.trivial_augment()


@pytest.mark.parametrize(
    "name",
    ["crop_area", "vertical_flip", "rotation", "shear", "translation", "auto_augment", "cutout"],
)
def test_a_frozen_base_computes_no_features_once_where_images_change(name: str) -> None:
    fixed = {} if name == "crop_area" else {"train_scale": (32, 32)}
    assert frozen.varies(Recipe(**fixed, eval_scale=32, **{name: FIELDS[name]})) == [name]


def test_the_benchmark_compares_the_maps_that_are_documented(monkeypatch) -> None:
    """Rotation, shear, translation and mirror images, in NumPy and from the same draws."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import augmentation

    flipped, fields = set(), augmentation.FIELDS["all of these, and scale"]
    for number in range(6):
        view = augment.train_window(
            [224, 224], [number, 0], size=augmentation.SIZE, flip=False, **fields
        ).view
        places = augmentation.inverse_map(number, **fields)
        np.testing.assert_allclose(places, view.map, atol=1e-3)
        flipped.add(bool(view.mirrored[0]))
    assert flipped == {False, True}

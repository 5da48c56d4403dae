"""A recipe whose defaults fit its source: a photographer's for all but the digits."""

import dataclasses
import gzip

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_vgg
from keras_vgg import cli, data, recipe_for
from keras_vgg.data import sides
from keras_vgg.data.sides import Sizes, sizes_of
from keras_vgg.fit import Run, describe_defaults, fit
from keras_vgg.fit.defaults import size_for
from keras_vgg.fit.training import _note_frames
from keras_vgg.recipe import Recipe


def write_photos(root, sides, classes=("cat", "dog")):
    """A folder of a class for each name, with an image of each (width, height)."""
    rng = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i, side in enumerate(sides):
            pixels = rng.integers(0, 255, (*side[::-1], 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root


@pytest.fixture
def trained(monkeypatch):
    """The recipes that train is called with; nothing is trained."""
    recipes = []

    def train(recipe, workdir, verbose):
        recipes.append(recipe)
        raise ValueError("enough")

    monkeypatch.setattr("keras_vgg.fit.train", train)
    return recipes


@pytest.mark.parametrize(("image_size", "share"), [(224, "98%"), (44, "60%"), (36, None)])
def test_frames_of_images_that_are_not_rescaled_are_said(image_size, share, capsys):
    _note_frames(image_size, Sizes(9, (20, 28, 90), (20, 28, 90)))
    out = capsys.readouterr().out
    if share is None:
        assert out == ""
    else:
        assert f"{share} of the network's input is a black frame around the median image" in out


def test_the_digits_keep_their_defaults():
    assert recipe_for("digits") == Recipe()
    assert recipe_for("digits", epochs=3) == Recipe(epochs=3)


@pytest.mark.parametrize(
    ("side", "size"),
    [(8, 32), (32, 32), (63, 32), (64, 64), (100, 96), (223, 192), (224, 224), (4000, 224)],
)
def test_the_size_is_a_multiple_of_32_up_to_imagenets(side, size):
    assert size_for(side) == size


def test_photographs_have_a_photographers_defaults(tmp_path):
    source = f"folder:{write_photos(tmp_path / 'photos', [(100, 140)] * 5 + [(300, 70)] * 2)}"
    recipe = recipe_for(source)
    assert recipe == Recipe(source=source, image_size=96, horizontal_flip=True)
    assert (recipe.train_scale_range, recipe.eval_scale_side) == ((96, 120), 108)
    line = describe_defaults(recipe)
    assert "image_size 96" in line
    assert "horizontal_flip True" in line
    assert "resize crop; train_scale (96, 120), eval_scale 108" in line
    # What is given wins.
    recipe = recipe_for(source, image_size=64, horizontal_flip=False, epochs=2)
    assert recipe == Recipe(source=source, image_size=64, epochs=2)
    # Any field can be given that fits photographs, though not the digits' size.
    assert recipe_for(source, crop_padding=40).crop_padding == 40


def test_an_earlier_run_of_the_source_gives_its_own_defaults(tmp_path, monkeypatch):
    source = f"folder:{write_photos(tmp_path / 'photos', [(100, 140)] * 5)}"
    (tmp_path / "run").mkdir()
    Run(tmp_path / "run", Recipe(source=source)).write_recipe()
    assert recipe_for(source, workdir=tmp_path / "run").image_size == 96  # it never began
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "epoch-000001.npz").touch()
    assert recipe_for(source, workdir=tmp_path / "run") == Recipe(source=source)
    monkeypatch.chdir(tmp_path)  # a training writes the absolute path
    relative = "folder:photos"
    assert recipe_for(relative, workdir=tmp_path / "run") == Recipe(source=relative)
    Run(tmp_path / "run", Recipe()).write_recipe()  # of another source
    assert recipe_for(source, workdir=tmp_path / "run").image_size == 96


def test_the_sides_come_from_the_heads_of_files_and_records(tmp_path):
    root = write_photos(tmp_path / "photos", [(40, 90), (120, 50), (60, 61)])
    (root / "cat" / "3.jpg").write_bytes((root / "cat" / "2.jpg").read_bytes()[:9])  # no size
    split = data.load_source(f"folder:{root}", validation_fraction=0, test_fraction=0).train
    assert data.median_smallest_side(split) == 50
    assert data.median_smallest_side(split, limit=1) == 40
    (root / "cat" / "3.jpg").unlink()
    split = data.load_source(f"folder:{root}", validation_fraction=0, test_fraction=0).train
    data.pack(data.Source("photos", ("cat", "dog"), split, None, None), tmp_path / "packed")
    packed = data.load_source(f"records:{tmp_path / 'packed'}").train
    assert data.median_smallest_side(packed) == 50
    assert data.median_smallest_side(data.load_source("digits").train) == 8
    # A comment before the size, longer than what is read first.
    long = tmp_path / "long.jpg"
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    encoded = (root / "dog" / "1.jpg").read_bytes()
    long.write_bytes(encoded[:2] + comment * 2 + encoded[2:])
    tf.io.decode_jpeg(long.read_bytes())
    paths = np.array([str(long)], dtype=object)
    assert data.median_smallest_side(data.Split("x", 1, np.zeros(1, np.int32), paths=paths)) == 50
    empty = tmp_path / "empty.jpg"
    empty.touch()
    paths = np.array([str(empty), str(tmp_path / "gone.jpg")], dtype=object)
    with pytest.raises(ValueError, match="no image of split 'x' states its size"):
        data.median_smallest_side(data.Split("x", 2, np.zeros(2, np.int32), paths=paths))


def test_idx_files_are_photographs_too(tmp_path):
    for prefix in ("train", "t10k"):
        images = np.zeros((20, 28, 28), np.uint8)
        head = np.array([0x0803, 20, 28, 28], ">u4").tobytes()
        with gzip.open(tmp_path / f"{prefix}-images-idx3-ubyte.gz", "wb") as file:
            file.write(head + images.tobytes())
        labels = np.arange(20, dtype=np.uint8) % 2
        path = tmp_path / f"{prefix}-labels-idx1-ubyte"
        path.write_bytes(np.array([0x0801, 20], ">u4").tobytes() + labels.tobytes())
    recipe = recipe_for(f"idx:{tmp_path}")
    assert (recipe.image_size, recipe.horizontal_flip) == (32, True)


PHOTOGRAPHS = {"image_size": 96, "horizontal_flip": True}


@pytest.mark.parametrize(
    ("options", "changed", "stated"),
    [
        ([], PHOTOGRAPHS, True),
        (["--image-size", "32"], {"horizontal_flip": True}, True),
        (["--horizontal-flip", "False", "--image-size=64"], {"image_size": 64}, False),
        (["--horizontal_flip", "True", "--epochs", "3"], PHOTOGRAPHS | {"epochs": 3}, True),
    ],
)
def test_the_command_takes_defaults_by_the_source_and_options_win(
    tmp_path, options, changed, stated, trained, capsys
):
    source = f"folder:{write_photos(tmp_path / 'photos', [(100, 140)] * 5)}"
    arguments = ["train", "--source", source, "--workdir", str(tmp_path / "run"), *options]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert trained == [Recipe(source=source, **changed)]
    assert capsys.readouterr().out.count("defaults for photographs") == stated


def test_a_recipe_of_a_file_is_taken_as_it_is(tmp_path, trained, capsys):
    recipe = Recipe(source=f"folder:{tmp_path}")
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    arguments = ["train", str(tmp_path / "recipe.json"), "--workdir", str(tmp_path / "run")]
    assert cli.main(arguments) == cli.BAD_INPUT
    assert trained == [recipe]
    assert keras_vgg.recipe_for is recipe_for
    assert capsys.readouterr().out == ""


SMALL = Recipe(width_multiplier=1 / 16, hidden_units=8, test_fraction=0.8, epochs=1)


def test_scales_that_would_leave_a_frame_are_refused_for_new_runs(tmp_path):
    for changes in ({"train_scale": (32, 40)}, {"eval_scale": 48}):
        recipe = SMALL.replace(image_size=64, **changes)
        with pytest.raises(ValueError, match="a frame of zeros around every image"):
            fit(recipe, tmp_path / "run", verbose=0)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_with_scales_that_leave_a_frame(tmp_path, monkeypatch):
    recipe = SMALL.replace(train_scale=(24, 40), eval_scale=24)
    with monkeypatch.context() as patch:
        patch.setattr("keras_vgg.recipe_checks.require_no_frames", lambda *_: None)
        fit(recipe, tmp_path / "run", verbose=0)
    (tmp_path / "run" / "results.json").unlink()
    assert fit(recipe, tmp_path / "run", verbose=0).finished


def test_sizes_are_upright_and_say_what_was_looked_at(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=turned)
    Image.new("RGB", (20, 70)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no image")
    paths = np.array([str(tmp_path / name) for name in ("a.jpg", "b.png", "c.png", "gone.png")])
    split = data.Split("train", 4, np.zeros(4, np.int32), paths=paths)
    sizes = sizes_of(split)
    assert sizes == Sizes(2, height=(40, 55, 70), width=(20, 25, 30))
    assert str(sizes) == "images 20 to 30 pixels wide and 40 to 70 high"
    nothing = dataclasses.replace(split, size=1, labels=split.labels[:1], paths=paths[2:3])
    assert sizes_of(nothing) is None
    digits = data.load_source("digits").train
    assert str(sizes_of(digits)) == "images of 8x8 pixels"
    assert sizes_of(digits).images == digits.size


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(("bit_depth", "named"), [("16", 2), ("12", 1), ("10", 3), ("stretch", 0)])
def test_few_levels_are_held_against_the_bit_depth(tmp_path, bit_depth, named):
    """With 10 bits, what is above 1023 is white."""
    for name, high in (("a", 1200), ("b", 1700), ("c", 60_000)):
        values = np.linspace(1000, high, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    paths = np.array([str(tmp_path / f"{name}.png") for name in "abc"])
    split = data.Split("train", 3, np.zeros(3, np.int32), paths=paths, bit_depth=bit_depth)
    sizes = sizes_of(split)
    assert sizes is not None
    assert sizes.deep == 3
    assert [name[-5] for name, _, _ in sizes.few_levels] == list("abc")[:named]
    described = data.check(data.Source("x", ("y",), split, None, None))["splits"]["train"]
    assert [tuple(row) for row in described["few_levels"]] == list(sizes.few_levels)


def test_16_bit_files_are_looked_at_in_records_but_not_many_and_none_too_large(
    tmp_path, monkeypatch
):
    for number in range(4):
        folder = tmp_path / "dark" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.linspace(1000, 1200 + number, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    source = data.load_source(f"folder:{tmp_path / 'dark'}", validation_fraction=0, test_fraction=0)
    data.pack(source, tmp_path / "packed")
    packed = data.load_source(f"records:{tmp_path / 'packed'}").train
    for split in (source.train, packed):
        sizes = sizes_of(split)
        assert (sizes.images, sizes.deep, len(sizes.few_levels)) == (4, 4, 4)
    assert "record 0" in sizes.few_levels[0][0]
    with monkeypatch.context() as patch:
        patch.setattr(sides, "_DECODED", 3)
        assert sizes_of(packed).deep == 3
    monkeypatch.setattr(sides, "MAX_PIXELS", 63)
    assert sizes_of(source.train).deep == 0

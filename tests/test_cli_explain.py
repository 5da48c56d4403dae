"""keras-vgg explain, as a user types it; where its heat comes to lie."""

import os
import shutil
import weakref

import numpy as np
import pytest
from PIL import Image

from keras_vgg import augment, cli, data
from keras_vgg.augment.geometry import central_window
from keras_vgg.demo.answer import Answerer
from keras_vgg.explain import draw, overlay
from keras_vgg.explain.heat import resized
from keras_vgg.fit import Run, build_model
from keras_vgg.models import vgg
from keras_vgg.runs import explain as explaining
from keras_vgg.runs import explain_files, predict_files
from keras_vgg.runs.calibration import Calibration
from keras_vgg.runs.explain import place_heat
from tests.test_cli import error_of


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A run like `tiny_run`, of head gap and with random weights."""
    folder = shutil.copytree(tiny_run.directory, tmp_path_factory.mktemp("cli") / "run")
    run = Run(folder, tiny_run.recipe.replace(head="gap"))
    run.write_recipe()
    options = {"include_preprocessing": True, "kernel_initializer": "he_normal"}
    vgg("A", weights=None, classes=10, **run.recipe.network_options(), **options).save(
        run.model_path
    )
    return run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_explain(run, photo, tmp_path, capsys):
    arguments = ["explain", run.directory, photo, "--out", tmp_path / "out"]
    methods = "grad-cam,grad-cam++,occlusion,saliency,smoothgrad,features"
    assert cli.main([*map(str, arguments), "--method", methods]) == cli.OK
    paths = capsys.readouterr().out.split()
    together = "grad-cam_grad-cam++_occlusion_saliency_smoothgrad"
    assert paths == [
        str(tmp_path / "out" / f"{name}.png") for name in (f"photo_{together}", "photo_features")
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("RGB")).std() > 1
    assert len(list((tmp_path / "out").iterdir())) == 2
    # The picture, and beside it five heats over it, no two of which are alike.
    picture = explaining._resized_to_draw(data.load_image(photo))
    height, width = picture.shape[:2]
    rows = np.asarray(Image.open(paths[0]).convert("RGB"))[-24 - height : -24]
    panels = [rows[:, left : left + width] for left in 24 + (width + 18) * np.arange(6)]
    np.testing.assert_array_equal(panels[0], picture)
    assert len({panel.tobytes() for panel in panels}) == 6


@pytest.mark.slow
def test_explain_two_pictures(run, photo, tmp_path, capsys):
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((8, 12), 128, np.uint8)).save(grey)
    arguments = ["explain", run.directory, photo, grey, "--method", "saliency"]
    assert cli.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == cli.OK
    paths = [tmp_path / "out" / f"{name}_saliency.png" for name in ("photo", "grey")]
    assert capsys.readouterr().out.split() == [*map(str, paths)]
    assert np.asarray(Image.open(paths[1]).convert("RGB")).std() > 1


@pytest.mark.slow
def test_explain_a_layer_a_class_and_filters(run, photo, capsys):
    arguments = ["explain", run.directory, photo, "--layer", "block3_conv2", "--class", "7"]
    assert cli.main([*map(str, arguments), "--method", "grad-cam,filters"]) == cli.OK
    folder = run.directory / "explain"
    assert capsys.readouterr().out.split() == [
        str(folder / "photo_grad-cam.png"),
        str(folder / "filters_block3_conv2.png"),
    ]
    strange = photo.with_name(os.fsdecode(b"c\xe9.png"))
    shutil.copy(photo, strange)
    assert cli.main(["explain", str(run.directory), str(strange), "--method", "saliency"]) == cli.OK
    assert capsys.readouterr().out.split() == [str(folder / r"c\xe9_saliency.png")]
    # No image is needed for filters; of the last layer they are the classes.
    arguments = ["explain", str(run.directory), "--method", "filters", "--layer", "predictions"]
    assert cli.main(arguments) == cli.OK
    assert capsys.readouterr().out.split() == [str(folder / "filters_predictions.png")]


def test_bad_input_to_explain(run, photo, tmp_path, capsys):
    text = tmp_path / "text.png"
    text.write_text("no image")
    out = tmp_path / "out"
    for arguments, message in (
        ([photo, "--layer", "block9"], "has no layer 'block9'"),
        ([photo, "--layer", "predictions"], "gives no map"),
        ([photo, "--class", "seven"], "the run has no class 'seven'; the classes are 0, 1, 2"),
        ([photo, "--method", "magic"], "method must be one of grad-cam, grad-cam++"),
        ([photo, "--method", ""], "method must be one of"),
        ([photo, text], f"{text}: not a JPEG"),
        ([tmp_path / "none.png"], "no such image file"),
        ([], "grad-cam needs an image file"),
    ):
        said = error_of(capsys, "explain", run.directory, *arguments, "--out", out)
        assert message in said
    assert not out.exists()


@pytest.mark.slow
def test_images_of_one_name_do_not_overwrite_each_other(run, photo, tmp_path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "photo.png"
    Image.open(photo).save(other)
    written = explain_files(run, [photo, other], methods=["saliency"], out=tmp_path / "out")
    assert [path.name for path in written] == ["photo_saliency.png", "photo_2_saliency.png"]


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        (["x", "x", "x_2"], ["x_a", "x_2_a", "x_2_2_a"]),
        (["A", "a", "c"], ["A_a", "a_2_a", "c_a"]),
        (["x_2", "x", "x"], ["x_2_a", "x_a", "x_3_a"]),
    ],
)
def test_no_two_images_have_a_name(stems, names, tmp_path):
    written = {}
    for number, stem in enumerate(stems):
        path = explaining._free_path(tmp_path, stem, "a", str(number), written)
        path.touch()
        written[path] = str(number)
    assert [path.stem for path in written] == names


@pytest.mark.slow
def test_no_picture_is_overwritten_but_by_itself(run, photo, tmp_path):
    for name, seed in (("cat", 1), ("dog", 2)):
        (tmp_path / name).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "0000.jpg")
    cat, dog = (tmp_path / name / "0000.jpg" for name in ("cat", "dog"))
    out = tmp_path / "out"

    def explain(*images, **options):
        written = explain_files(run, images, methods=["saliency"], out=out, **options)
        return [path.name for path in written]

    assert explain(cat) == ["0000_saliency.png"]
    first = (out / "0000_saliency.png").read_bytes()
    assert explain(dog) == ["0000_2_saliency.png"]
    assert (out / "0000_saliency.png").read_bytes() == first
    # The same picture has the same name again, and is drawn once.
    assert explain(dog, cat) == ["0000_2_saliency.png", "0000_saliency.png"]
    assert explain(cat, cat) == ["0000_saliency.png"]
    assert (out / "0000_saliency.png").read_bytes() == first
    # Another class, and another image in the same file.
    assert explain(cat, class_name="7") == ["0000_3_saliency.png"]
    dog.replace(cat)
    assert explain(cat) == ["0000_4_saliency.png"]
    # A file that is not ours.
    (out / "photo_saliency.png").write_text("notes")
    assert explain(photo) == ["photo_2_saliency.png"]
    assert (out / "photo_saliency.png").read_text() == "notes"
    assert len(list(out.iterdir())) == 6


def test_a_title_names_folder_file_and_class(run, photo, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(draw, "draw_heats", lambda path, *rest, title, **more: titles.append(title))
    # All ten classes are nearly as probable as each other then, as `predict` would say.
    monkeypatch.setattr(explaining, "read_calibration", lambda run: Calibration(1e6, {}))
    explain_files(run, [photo], methods=["saliency"], out=tmp_path, class_name="7")
    assert titles[0].startswith(f"{photo.parent.name}/photo.jpg: 7 10.0%")


def test_a_class_that_the_font_cannot_write_has_its_number():
    cat = "\N{CJK UNIFIED IDEOGRAPH-732B}"
    names, shares = ("dog", cat, cat), np.array([0.1, 0.2, 0.7])
    assert explaining._title(names, shares, [2]) == "2 70.0%"
    assert explaining._title(names, shares, [0, 1]) == "dog 10.0%, 1 20.0% (2 70.0%)"
    assert explaining._heat_name(names, "grad-cam", 1, [1, 2]) == "1: grad-cam"


@pytest.mark.slow
def test_images_are_not_held_together(run, tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(np.full((8, 8, 3), 100, "uint8")).save(path)
    load, held = data.load_image, []

    def load_image(path, **options):
        assert sum(one() is not None for one in held) <= 1  # the one before
        image = np.array(load(path, **options))
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr(data, "load_image", load_image)
    assert len(explain_files(run, paths, methods=["saliency"], out=tmp_path / "out")) == 3
    with pytest.raises(
        ValueError, match=r"0\.png plays no part with --method filters; leave out i"
    ):
        explain_files(run, paths, methods=["filters"], out=tmp_path)


@pytest.mark.parametrize(
    ("sides", "drawn"),
    [
        ((40, 2000), (32, 1600)),
        pytest.param((2000, 1200), (1600, 960), marks=pytest.mark.slow),
        ((1, 3000), (1, 1600)),
        ((300, 200), (300, 200)),
        ((10, 40), (70, 280)),
    ],
)
def test_a_picture_keeps_its_aspect(tmp_path, sides, drawn):
    rng = np.random.default_rng(0)
    picture = explaining._resized_to_draw(rng.integers(0, 200, (*sides, 3), "uint8"))
    assert picture.shape == (*drawn, 3)
    heat = rng.uniform(0, 1, drawn).astype("float32")
    draw.draw_heats(tmp_path / "x.png", picture, {"smoothgrad: empty": heat, "b": heat}, title="x")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("RGB"))
    # One dot a pixel, at the page's lower edge, but for its margin.
    rows = slice(len(pixels) - 24 - drawn[0], len(pixels) - 24)
    assert (pixels[rows.stop :] == 255).all()
    np.testing.assert_array_equal(pixels[rows, 24 : 24 + drawn[1]], picture)
    left = 24 + drawn[1] + 18
    np.testing.assert_array_equal(pixels[rows, left : left + drawn[1]], overlay(picture, heat))


@pytest.mark.parametrize(
    ("sides", "scale"), [((300, 200), 64), ((90, 200), 80), ((64, 64), 64), ((100, 80), None)]
)
def test_heat_lies_where_the_crop_was(sides, scale):
    # The picture itself as heat, cropped as evaluation does, comes back to its place.
    y, x = np.mgrid[: sides[0], : sides[1]]
    picture = (127 + 60 * np.sin(y / 25) + 60 * np.cos(x / 20)).astype("uint8")
    picture = np.repeat(picture[..., np.newaxis], 3, -1)
    seen = augment.eval_image(picture, size=64, scale=scale).numpy()[..., 0]
    window = central_window(np.array(sides), size=64, scale=scale)
    found = place_heat(seen, window, sides)
    assert found.shape == sides
    inside = ~np.isnan(found)
    assert np.abs(found - picture[..., 0])[inside].mean() < 3
    part = np.prod([min(64, s) / s for s in window.scaled.numpy()])
    assert inside.mean() == pytest.approx(part, abs=0.02)
    # What is inside is a rectangle in the middle.
    rows, columns = np.where(inside.any(1))[0], np.where(inside.any(0))[0]
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert abs(rows[0] - (sides[0] - 1 - rows[-1])) <= max(sides) / 64 + 1


def test_heat_of_a_small_padded_picture():
    # 28 x 28 in a frame of 32: heat on the frame is not shown.
    heat = np.zeros((32, 32), "float32")
    heat[:2] = 9
    heat[2:30, 2:30] = resized(np.arange(4.0).reshape(2, 2), (28, 28))
    window = central_window(np.array((28, 28)), size=32)
    np.testing.assert_array_equal(place_heat(heat, window, (28, 28)), heat[2:30, 2:30])


@pytest.mark.slow
def test_a_turned_photograph_is_explained_upright(run, photo, tmp_path):
    with Image.open(photo) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.jpg", exif=exif)
    upright = data.load_image(tmp_path / "turned.jpg")
    assert upright.shape[:2] == (60, 40)
    (path,) = explain_files(run, [tmp_path / "turned.jpg"], out=tmp_path / "out")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rows, _ = np.where((pixels < 250).any(-1))
    assert rows.max() - rows.min() > 300  # higher than a panel is wide
    assert pixels.shape[1] < 2 * 300 + 250


def test_what_plays_no_part_is_refused(run, photo, tmp_path, capsys):
    for words, message in (
        (
            ["--method", "occlusion", "--layer", "block3_conv2"],
            "layer='block3_conv2' plays no part",
        ),
        (["--method", "filters", "--class", "3"], "class_name='3' plays no part with filters"),
    ):
        pictures = [] if "filters" in words else [photo]
        command = ["explain", run.directory, *pictures, *words, "--out", tmp_path / "out"]
        assert message in error_of(capsys, *command)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_file_is_not_read_letter_by_letter(run, photo, tmp_path):
    with pytest.raises(ValueError, match=r"files must be a list: put '.*photo.jpg' into one"):
        explain_files(run, str(photo), out=tmp_path / "out")
    with pytest.raises(ValueError, match="files must be a list"):
        predict_files(run, photo)
    written = explain_files(run, [photo], methods="saliency", out=tmp_path / "out")
    assert [path.name for path in written] == ["photo_saliency.png"]


@pytest.mark.slow
def test_the_probabilities_are_those_of_predict(run, photo, tmp_path, monkeypatch):
    """In bfloat16 with batch norm, which `predict` folds."""
    shutil.copytree(run.directory, tmp_path / "run")
    run = Run(tmp_path / "run", run.recipe)
    statistics = data.ChannelStatistics.unknown()
    model = build_model(run.recipe.replace(batch_norm=True), 10, statistics, "mixed_bfloat16")
    model.save(run.model_path)
    titles = []
    monkeypatch.setattr(explaining.draw, "draw_heats", lambda *_, title, **__: titles.append(title))
    explain_files(run, [photo], methods=["saliency"], out=tmp_path / "out")
    ((name, probability),) = predict_files(run, [photo], top=1)[0]
    assert titles == [f"{photo.parent.name}/photo.jpg: {name} {probability:.1%}"]
    answerer = Answerer(run)
    assert answerer.of_file(photo).classes[0] == (name, pytest.approx(probability, rel=1e-6))

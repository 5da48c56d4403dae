"""keras-vgg stylize: the files it writes, a resume after a kill, and what is refused."""

import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_vgg import cli, vgg
from keras_vgg.perceptual.style import Losses, StyleObjective
from keras_vgg.runs import stylizing
from keras_vgg.runs.stylizing import Stylisation, stylize_files
from tests import processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two photographs and a weight file."""
    folder = tmp_path_factory.mktemp("style")
    for name, image in zip(("temple", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(image[:400, :600]).save(folder / f"{name}.jpg")
    keras.utils.set_random_seed(0)
    options = {"weights": None, "include_top": False, "include_preprocessing": True}
    vgg("B", width_multiplier=1 / 16, kernel_initializer="he_normal", **options).save(
        folder / "base.keras"
    )
    return folder


def arguments(folder, out, *more):
    start = ["stylize", str(folder / "temple.jpg"), str(folder / "flower.jpg"), "--out", str(out)]
    return [*start, "--weights", str(folder / "base.keras"), "--size", "48", *map(str, more)]


class Towards:
    """The squared distance to the style in grey, in place of the network's loss."""

    def __init__(self, model, content, style, **options):
        self.wanted = style.mean((0, 1), keepdims=True) + 0 * content

    def __call__(self, image):
        difference = image - self.wanted
        loss = float((difference**2).sum() * self.wanted.size**-0.5)
        return Losses(loss, loss, 0.0), 2 * difference


@pytest.fixture
def cheap(monkeypatch):
    """No network is built: the loss is `Towards`."""
    monkeypatch.setattr(stylizing, "StyleObjective", Towards)
    monkeypatch.setattr(stylizing, "base_network", lambda *_: None)


@pytest.mark.slow
def test_a_killed_stylisation_resumes(cheap, folder, tmp_path, capfd, monkeypatch):
    out = tmp_path / "result.png"
    command = arguments(folder, out, "--steps", "6", "--every", "2", "--method", "adam")
    saved = stylizing.save_picture

    def killed(image, path):
        saved(image, path)
        if path.name == "00004.png":
            raise KeyboardInterrupt

    monkeypatch.setattr(stylizing, "save_picture", killed)
    assert cli.main(command) == 130
    assert not out.exists()
    monkeypatch.setattr(stylizing, "save_picture", saved)
    assert cli.main([*command, "--style-weight", "7"]) == 2
    assert "state of a stylisation with other settings: name another" in capfd.readouterr().err
    assert cli.main(command) == 0
    text = capfd.readouterr()
    assert "resumed after step 4 of 6" in text.err
    assert f"{out}: loss " in text.out
    assert "after 6 steps, " in text.out
    with Image.open(out) as picture:
        assert picture.size == (48, 32)
    steps = tmp_path / "result_steps"
    assert sorted(path.name for path in steps.iterdir()) == ["00002.png", "00004.png", "losses.csv"]
    rows = np.loadtxt(steps / "losses.csv", delimiter=",", skiprows=1)
    assert rows[:, 0].tolist() == list(range(7))
    assert rows[6, 1] < rows[4, 1] < rows[0, 1]
    assert cli.main(command) == 2
    assert "result.png exists: name another file, or pass overwrite" in capfd.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0


def test_an_interrupted_stylisation_with_overwrite_resumes(cheap, folder, tmp_path, capfd):
    out, state = tmp_path / "result.png", tmp_path / "result_steps" / "state.npz"
    command = arguments(folder, out, "--steps", "4", "--every", "2", "--method", "adam")
    command.append("--overwrite")

    def interrupted(line):
        if line.startswith("step 2"):
            raise KeyboardInterrupt

    files = folder / "temple.jpg", folder / "flower.jpg"
    settings = Stylisation(str(folder / "base.keras"), size=48, method="adam")
    options = {"steps": 4, "every": 2, "overwrite": True, "on_line": interrupted}
    out.write_bytes(b"an old PNG")
    for more, resumes in (([], True), (["--style-weight", "7"], False)):
        with pytest.raises(KeyboardInterrupt):
            stylize_files(*files, out, settings, **options)
        assert state.exists()
        assert cli.main([*command, *more]) == 0
        assert ("resumed after step 2 of 4" in capfd.readouterr().err) == resumes
    # A state of more steps than are asked for.
    pictures = state.parent / "00002.png", state.parent / "00001.png"
    with pytest.raises(KeyboardInterrupt):
        stylize_files(*files, out, settings, **options)
    out.unlink()
    with pytest.raises(ValueError, match="is of step 2, and steps is 1: ask for as many steps"):
        stylize_files(*files, out, settings, steps=1)
    stylize_files(*files, out, settings, steps=1, every=1, overwrite=True)
    assert [path.exists() for path in pictures] == [False, False]
    state.write_bytes(b"cut")
    assert cli.main(command) == 0
    assert "resumed" not in capfd.readouterr().err


def test_pictures_of_the_user_are_not_removed(cheap, folder, tmp_path):
    (tmp_path / "a_steps").mkdir()
    (tmp_path / "a_steps" / "00001.png").write_bytes(b"mine")
    files = (folder / "temple.jpg", folder / "flower.jpg")
    with pytest.raises(ValueError, match="a_steps is in the way: it holds pictures of yours"):
        stylize_files(*files, tmp_path / "a.png", steps=1)
    assert (tmp_path / "a_steps" / "00001.png").read_bytes() == b"mine"


def test_the_bits_of_a_16_bit_photograph(cheap, folder, tmp_path, capfd):
    values = np.random.default_rng(0).integers(0, 1024, (64, 96), "uint16")
    Image.fromarray(values).save(tmp_path / "scan.png")
    command = ["stylize", str(tmp_path / "scan.png"), str(folder / "flower.jpg"), "--size", "48"]
    command += ["--weights", str(folder / "base.keras"), "--steps", "1", "--overwrite"]
    command += ["--out", str(tmp_path / "a.png")]
    assert cli.main(command) == 0
    assert "1 of 1 16-bit files that were looked at use few of their" in capfd.readouterr().err
    assert cli.main([*command, "--bit-depth", "10"]) == 0
    assert "16-bit" not in capfd.readouterr().err
    deep = stylizing.scaled_picture(tmp_path / "scan.png", None, "10")
    np.testing.assert_array_equal(deep[..., 0], values // 4)


def test_too_little_memory_is_one_line(cheap, folder, tmp_path, capfd, monkeypatch):
    def too_large(self, image):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating\nmore")

    monkeypatch.setattr(Towards, "__call__", too_large)
    assert cli.main(arguments(folder, tmp_path / "a.png")) == 2
    assert capfd.readouterr().err == (
        "keras-vgg: error: the memory is too small: choose a smaller size (--size), or tiles "
        "(--tile) (OOM when allocating)\n"
    )


@pytest.mark.parametrize("start", ["content", "style", "noise"])
def test_the_first_image(cheap, folder, tmp_path, start):
    settings = Stylisation(str(folder / "base.keras"), size=48, start=start)
    files = folder / "temple.jpg", folder / "flower.jpg"
    (tmp_path / start).mkdir()
    losses = stylize_files(*files, tmp_path / start / "a.png", settings, steps=2)
    assert losses[-1].total < 0.01 * losses[0].total  # one step of L-BFGS: the loss is a square
    assert 2 <= len(losses) <= 3


@pytest.mark.slow
def test_a_run_with_a_network(folder, tmp_path, capfd):
    assert cli.main(arguments(folder, tmp_path / "a.png", "--steps", "3", "--start", "noise")) == 0
    text = capfd.readouterr().out
    assert "after 3 steps, " in text
    assert (tmp_path / "a.png").is_file()


@pytest.mark.slow
def test_tiles_give_the_same_picture(folder, tmp_path, monkeypatch):
    tiles = []

    class Recorded(StyleObjective):
        def __init__(self, *pictures, **options):
            tiles.append(options["tile"])
            super().__init__(*pictures, **options)

    monkeypatch.setattr(stylizing, "StyleObjective", Recorded)
    pictures = []
    for name, more in (("whole", ()), ("tiles", ("--tile", 64))):
        out = tmp_path / f"{name}.png"
        assert cli.main(arguments(folder, out, "--size", 192, "--steps", 3, *more)) == 0
        losses = rows_of(tmp_path / f"{name}_steps")[:, 1]
        assert losses[-1] < 0.9 * losses[0]
        with Image.open(out) as picture:
            pictures.append(np.asarray(picture, int))
    assert tiles == [None, 64]
    assert pictures[0].shape == (128, 192, 3)
    np.testing.assert_allclose(*pictures, atol=1)


def rows_of(folder):
    return np.loadtxt(folder / "losses.csv", delimiter=",", skiprows=1)


@pytest.mark.slow
def test_a_kill_during_lbfgs_costs_its_memory_of_past_steps_only(folder, tmp_path):
    output = tmp_path / "output.txt"
    names = ("killed", "whole")
    killed, whole = (
        arguments(folder, tmp_path / f"{name}.png", "--steps", 150, "--every", 10) for name in names
    )
    kept = tmp_path / "killed_steps"
    process = processes.start(output, killed)
    while not (kept / "00020.png").exists():
        assert process.is_alive(), output.read_text()
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed.png").exists()
    assert (kept / "state.npz").is_file()
    with np.load(kept / "state.npz") as state:  # losses.csv is written after it
        before = np.column_stack([np.arange(len(state["losses"])), state["losses"]])
    process = processes.start(output, killed, whole)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert f"resumed after step {len(before) - 1} of 150" in output.read_text()
    after, expected = rows_of(kept), rows_of(tmp_path / "whole_steps")
    # The steps before the kill are computed once, and are those of a run without one.
    np.testing.assert_allclose(after[: len(before)], before, rtol=1e-6)
    np.testing.assert_allclose(before, expected[: len(before)], rtol=1e-2)
    assert after[:, 0].tolist() == expected[:, 0].tolist() == list(range(151))
    assert after[len(before), 1] < after[len(before) - 1, 1]
    assert expected[-1, 1] < 0.5 * expected[0, 1]
    assert after[-1, 1] == pytest.approx(expected[-1, 1], rel=0.1)
    assert not (kept / "state.npz").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out", "{tmp}/a.jpg"], "the result must be a .png file, not 'a.jpg'"),
        (["--out", "{tmp}/none/a.png"], "there is no folder"),
        (["--steps", "0"], "steps must be at least 1, not 0"),
        (["--every", "0"], "every must be at least 1, not 0"),
        (["--size", "16"], "size must be at least 32 pixels, not 16"),
        (["--size", "40"], "temple.jpg is 27 x 40 pixels at a longer side of 40"),
        (["--style-size", "8"], "style_size must be at least 32 pixels, not 8"),
        (["--style-layers", "fc1"], "not 'fc1'"),
        (["--method", "sgd"], "invalid choice"),
        (["--weights", "no.h5"], "no weight file at no.h5"),
        (["--configuration", "E"], "base.keras, whose network is found; leave it out"),
        (["--learning-rate", "3"], "--learning-rate plays no part with --method l-bfgs; leave it"),
        (["--seed", "1"], "--seed plays no part with --start content; leave it out"),
    ],
)
def test_stylisations_that_make_no_sense(folder, tmp_path, capfd, more, message):
    more = [word.format(tmp=tmp_path) for word in more]
    assert cli.main(arguments(folder, tmp_path / "result.png", *more)) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("keras-vgg: error")]
    assert message in line
    assert list(tmp_path.glob("*.png")) == []


def test_what_plays_no_part_does_not_tell_stylisations_apart(folder):
    def identity(**options):
        settings = Stylisation(str(folder / "base.keras"), **options)
        return stylizing._identity(settings, folder / "temple.jpg", folder / "flower.jpg")

    idle = {"learning_rate": 1.0, "seed": 1, "configuration": "E"}
    assert identity(**idle) == identity()
    assert identity(method="adam", learning_rate=1.0) != identity(method="adam")
    assert identity(start="noise", seed=1) != identity(start="noise")


@pytest.mark.parametrize("name", ["none.jpg", "base.keras"])
def test_pictures_that_cannot_be_read(folder, tmp_path, capfd, name):
    command = ["stylize", str(folder / name), str(folder / "flower.jpg")]
    assert cli.main([*command, "--out", str(tmp_path / "a.png")]) == 2
    assert f"{folder / name}: " in capfd.readouterr().err


@pytest.mark.slow
def test_the_loss_falls_by_90_percent_in_200_steps(data_folder, tmp_path):
    """With the real ImageNet convolutions, on two photographs at 128 pixels."""
    photographs = data_folder / "imagenet_samples"
    weights = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    losses = stylize_files(
        photographs / "n03743016_megalith.JPEG",
        photographs / "n01917289_brain_coral.JPEG",
        tmp_path / "result.png",
        Stylisation(str(weights), size=128, style_weight=100),
        steps=200,
    )
    assert losses[-1].total < 0.1 * losses[0].total

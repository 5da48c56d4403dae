"""Commands as a user types them, on JAX and PyTorch."""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import VGG16, ImagePreprocessing, cli, vgg
from keras_vgg.perceptual.fast_style import style_network
from keras_vgg.run import Run
from keras_vgg.runs import evaluate_run
from tests.other_backends import command_on

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it starts the others"),
]
BACKENDS = ["jax", "torch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photographs, a small base, VGG-16 of full width with random weights, a style network."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), "uint8")
        picture = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
        picture.save(folder / "photos" / f"{number}.png")
    keras.utils.set_random_seed(0)
    options = {"include_top": False, "weights": None, "kernel_initializer": "he_normal"}
    vgg("A", width_multiplier=1 / 16, include_preprocessing=True, **options).save(
        folder / "base.keras"
    )
    trunk = VGG16(include_preprocessing=ImagePreprocessing.torchvision(), **options)
    trunk.save_weights(folder / "trunk.weights.h5")
    style_network(4, 1).save(folder / "net.keras")
    return folder


def words_of(folder, command):
    return command.format(photos=folder / "photos", folder=folder).split()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compare(folder, backend, capsys):
    command = "compare {photos}/0.png {photos}/1.png --format jsonl --metrics psnr ssim dists lpips"
    command += " --weights {folder}/trunk.weights.h5 --preprocessing torchvision"
    words = words_of(folder, command)
    (there,) = map(json.loads, command_on(backend, *words).splitlines())
    assert cli.main(words) == cli.OK
    (here,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(there) == list(here)
    for name in ("psnr", "ssim", "dists", "lpips"):
        assert there[name] == pytest.approx(here[name], rel=1e-4), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_search(folder, backend, tmp_path, capsys):
    command = "search {photos} {photos}/1.png --size 32 --weights {folder}/base.keras"
    words = [*words_of(folder, command), "--format", "jsonl", "--index"]
    there = command_on(backend, *words, str(tmp_path / "there.npz")).splitlines()
    assert cli.main([*words, str(tmp_path / "here.npz")]) == cli.OK
    here = capsys.readouterr().out.splitlines()
    assert len(there) == len(here) >= 1
    for row, expected in zip(map(json.loads, there), map(json.loads, here), strict=True):
        assert row == {
            name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            for name, value in expected.items()
        }


@pytest.mark.parametrize("backend", BACKENDS)
def test_stylize(folder, backend, tmp_path):
    out = tmp_path / "out.png"
    command = "stylize {photos}/0.png {photos}/1.png --size 64 --steps 3 --style-size 64"
    command += " --weights {folder}/base.keras"
    command_on(backend, *words_of(folder, command), "--out", str(out))
    with Image.open(out) as image:
        assert image.size == (64, 48)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_style_network(folder, backend, tmp_path):
    words = words_of(folder, "stylize {photos}/0.png --network {folder}/net.keras --out")
    command_on(backend, *words, str(tmp_path / "there.png"))
    assert cli.main([*words, str(tmp_path / "here.png")]) == cli.OK
    there, here = (
        np.asarray(Image.open(tmp_path / f"{name}.png"), float) for name in ("there", "here")
    )
    assert np.abs(there - here).max() <= 1
    # A file for LiteRT is written by TensorFlow, whatever the backend.
    command_on(backend, *words, str(tmp_path / "net.tflite"), "--size", "64")
    assert (tmp_path / "net.tflite").stat().st_size > 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_is_used(varied_run, folder, backend, tmp_path, capsys):
    """Trained on TensorFlow, evaluated and calibrated elsewhere."""
    run = Run.open(shutil.copytree(varied_run.directory, tmp_path / "run"))
    words = ["predict", str(run.directory), str(folder / "photos" / "0.png"), "--format", "jsonl"]
    assert cli.main(words) == cli.OK
    here = json.loads(capsys.readouterr().out)
    there = json.loads(command_on(backend, *words))
    assert there["class"] == here["class"]
    assert there["probability"] == pytest.approx(here["probability"], abs=1e-4)
    command_on(backend, "evaluate", str(run.directory), "--split", "validation")
    command_on(backend, "calibrate", str(run.directory))
    accuracy = run.results["validation"]["top1"]
    assert accuracy == pytest.approx(evaluate_run(varied_run, "validation").top1)
    assert (run.directory / "calibration.json").is_file()


def test_training_says_which_backends_it_takes(tmp_path):
    for options in ([], ["--find-learning-rate"]):
        words = ["train", "--workdir", str(tmp_path / "run"), *options]
        with pytest.raises(AssertionError, match="runs on Keras' tensorflow or jax backend, not"):
            command_on("torch", *words)

"""LPIPS, DISTS and features with the real weights: against the published packages and PyTorch.

The tests by hand also run on other backends.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from keras_vgg import VGG16, ImagePreprocessing, feature_extractor
from keras_vgg.perceptual import gram_matrix
from keras_vgg.perceptual.style import CONTENT_LAYER, STYLE_LAYERS, StyleObjective
from tests.dense_networks import values
from tests.other_backends import passes_on
from tests.test_features import torch_features

ROOT = Path(__file__).parents[1]
WEIGHTS = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
BY_HAND = "formulas or spatial or equal_images or pytorchs_layers or published_losses or l2_pooling"
BY_HAND += (
    " or one_training or data_sets or range or compared or network_in_a_network or channels_first"
)


def run(*command, **variables):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the script names TensorFlow")
def test_the_packages_give_the_same_values_and_gradients(data_folder):
    """All 2,400 pairs take longer: benchmarks/perceptual.py says how to compare them."""
    folder = Path(os.environ.get("KERAS_VGG_PACKAGES", ROOT / ".packages"))
    names = ("lpips", "DISTS_pytorch", "torchvision")
    if not all((folder / name).is_dir() for name in names):
        pytest.skip(f"no packages {', '.join(names)} at {folder}; see benchmarks/perceptual.py")
    printed = run(
        *("benchmarks/perceptual.py", "agreement", data_folder / "imagenet_samples"),
        *(data_folder / WEIGHTS, "--packages", folder, "--first", 3, "--every", 1),
    )
    rows = re.findall(r"(\w+): 36 pairs, .* difference (\S+), .* gradients (\S+)", printed)
    assert [name for name, *_ in rows] == ["LPIPS", "DISTS"]
    for _, difference, cosine in rows:
        assert float(difference) <= 1e-5
        assert float(cosine) >= 0.9999


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_tests_pass_on(backend):
    files = ("tests/test_features.py", "tests/test_perceptual.py")
    assert "passed" in passes_on(backend, "-k", BY_HAND, *files)


@pytest.mark.slow
@pytest.mark.parametrize("pooling_layers", [None, "avg"])
def test_features_of_a_photograph_are_those_of_pytorchs_layers(data_folder, pooling_layers):
    """At full width, with the ImageNet convolutions: all 13, before and after the ReLU."""
    pytest.importorskip("torch")
    model = VGG16(include_top=False, weights=data_folder / WEIGHTS)
    photo = load_sample_images().images[0][200:300, 200:340].astype("float32")
    images = values(ImagePreprocessing.caffe()(photo[np.newaxis]))
    expected = torch_features(model, images, pooling_layers == "avg")
    assert len(expected) == 13 * 2 + 5
    found = feature_extractor(model, list(expected), pooling_layers=pooling_layers)(images)
    for name, wanted in expected.items():
        assert wanted.shape[-1] == model.get_layer(name.partition(":")[0]).output.shape[-1]
        difference = np.abs(values(found[name]) - wanted).max() / np.abs(wanted).max()
        assert difference < 1e-4, name


@pytest.mark.slow
def test_the_style_loss_of_a_photograph_is_that_of_pytorchs_layers(data_folder):
    """With the default layers and the ImageNet convolutions; all terms by the paper's equations."""
    pytest.importorskip("torch")
    model = VGG16(include_top=False, weights=data_folder / WEIGHTS, include_preprocessing=True)
    temple, flower = load_sample_images().images
    content, style = temple[200:300, 200:340], flower[150:270, 200:310]
    image = 0.6 * content + 0.4 * content[::-1]
    names = (*STYLE_LAYERS, CONTENT_LAYER)
    extractor = feature_extractor(model, names, pooling_layers="avg")

    def maps_and_grams(picture):
        batch = picture[np.newaxis].astype("float32")
        features = torch_features(model, values(model.get_layer("preprocessing")(batch)), True)
        maps = {name: features[f"{name}:post"][0].astype("float64") for name in names}
        grams = {}
        for name, output in extractor(batch).items():
            rows = maps[name].reshape(-1, maps[name].shape[-1])
            grams[name] = rows.T @ rows / rows.size
            found = values(gram_matrix(output))[0]
            assert np.abs(found - grams[name]).max() < 1e-4 * grams[name].max(), name
        return maps, grams

    (own, _), (other, style_grams), (image_maps, grams) = map(
        maps_and_grams, (content, style, image)
    )
    scales = {name: 2 / (own[name].mean() + other[name].mean()) for name in names}
    style_terms = [
        scales[name] ** 4 * np.square(grams[name] - style_grams[name]).sum() / 4
        for name in STYLE_LAYERS
    ]
    difference = scales[CONTENT_LAYER] * (image_maps[CONTENT_LAYER] - own[CONTENT_LAYER])
    expected = np.mean(style_terms), np.square(difference).mean() / 2
    losses, _ = StyleObjective(model, content, style, style_weight=70)(image.astype("float32"))
    assert (losses.style, losses.content) == pytest.approx(expected, rel=1e-4)
    assert losses.total == pytest.approx(70 * expected[0] + expected[1], rel=1e-4)

"""LPIPS and DISTS with the real weights: against the published packages, and on other backends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.other_backends import passes_on

ROOT = Path(__file__).parents[1]
WEIGHTS = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
BY_HAND = "formulas or spatial or equal_images or pytorchs_layers or published_losses or l2_pooling"
BY_HAND += " or one_training or data_sets or range or compared or network_in_a_network"


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

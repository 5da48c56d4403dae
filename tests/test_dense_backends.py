"""The same dense networks on JAX and PyTorch: the files of their tests, there too."""

from pathlib import Path

import keras
import pytest

from tests.other_backends import passes_on

HERE = Path(__file__).parent
FILES = ("test_dense_backbone.py", "test_segmentation.py", "test_hed.py", "test_ssd.py")


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_tests_pass_on(backend):
    files = [str(HERE / name) for name in FILES]
    assert "passed" in passes_on(backend, "-m", "not slow", *files)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_output_stride_8_and_16_hold_the_ordinary_maps_on(backend):
    """All cases, of which the run above has one."""
    file = str(HERE / "test_dense_backbone.py")
    assert "4 passed" in passes_on(backend, "-m", "", "-k", "every_second_cell", file)

"""The same explanations on JAX and PyTorch: what is worked out by hand, there too."""

from pathlib import Path

import keras
import pytest

from tests.other_backends import passes_on

HERE = Path(__file__).parent
BY_HAND = (
    "cam_before or formula or linear_model or finite_differences or (two and levels) "
    "or occlusion_by_hand or operations_in or lists_and or one_score or left_alone or freed "
    "or does_not_use or frozen or too_small"
)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this is that run")
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_tests_pass_on(backend):
    assert "passed" in passes_on(backend, "-k", BY_HAND, str(HERE / "test_explain.py"))

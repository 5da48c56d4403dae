"""On JAX, the features of a frozen base are computed once, as on TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from keras_vgg.fit import Run, fit
from tests.other_backends import on_jax
from tests.test_fit import TINY

# 319 images of training; no dropout, whose numbers are a backend's own.
FIXED = TINY.replace(
    batch_norm=True,
    train_scale=(32, 32), eval_scale=32, brightness=0.0, rgb_shift=0.0, horizontal_flip=True,
    dropout=0.0, precision="float32", learning_rate=0.2, warmup_epochs=0.0, checkpoint_steps=2,
)  # fmt: skip

SCRIPT = """
import json
import sys

import keras

from keras_vgg.fit import fit, frozen
from keras_vgg.recipe import Recipe
from tests.test_optimizer import Killed
from tests.test_survive import assert_same

folder, text, devices = sys.argv[1:]
recipe = Recipe.from_json(text).replace(devices=devices)
computed = []
compute = frozen.Features._compute


def counted(self, *arguments):
    computed.append(self.size)
    compute(self, *arguments)


frozen.Features._compute = counted
whole = fit(recipe, f"{folder}/whole", verbose=2)
try:
    fit(recipe, f"{folder}/cut", verbose=0, callbacks=[Killed(4)])
except InterruptedError:
    before = len(computed)
    assert_same(fit(recipe, f"{folder}/cut", verbose=0), whole)
    print(json.dumps([keras.backend.backend(), before, len(computed)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "head", "init_head"), [(1, "fc", "all"), (2, "gap", "probe")])
def test_a_head_is_trained_on_features_as_on_tensorflow(
    tmp_path: Path, devices: int, head: str, init_head: str
) -> None:
    pytest.importorskip("jax")
    init = str(fit(FIXED.replace(epochs=1), tmp_path / "init", verbose=0).directory)
    recipe = FIXED.replace(init=init, head=head, init_head=init_head, freeze_until="all")
    expected = fit(recipe, tmp_path / "tensorflow", verbose=0)
    arguments = ("-c", SCRIPT, str(tmp_path), recipe.to_json(), str(devices))
    lines = on_jax(*arguments, devices=devices).splitlines()
    assert "the frozen base's features are computed once" in lines
    # Training and validation, in two directories; the resumed run reads what is there.
    assert json.loads(lines[-1]) == ["jax", 4, 4]
    run = Run.open(tmp_path / "whole")
    for mine, theirs in zip(run.history, expected.history, strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    for mine, theirs in zip(run.model().weights, expected.model().weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5, err_msg=theirs.path)

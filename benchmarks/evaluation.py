"""Measure the speed of evaluation and prediction: keras_vgg, keras.applications and PyTorch.

python benchmarks/evaluation.py [--cases NAME ...] [--rounds 3] [--seconds 20] [--only LIBRARY ...]

All run the same network on the same random images:

- this package: the network of a run as `keras-vgg evaluate` opens and runs it, on decoded images.
  The run's precision is what `choose_engine` chooses for a training on this machine; if that is not
  float32, a run in float32 takes part too. And `Predictor`, from uint8 arrays of the network's size
  to answers, in the run's precision;
- keras.applications' model with `predict`, which builds its data pipeline once for a whole round:
  as it is (Keras then uses XLA), and at its best on this machine, the fastest of float32, bfloat16
  (`mixed_bfloat16`, and weights in bfloat16), with and without XLA;
- a plain PyTorch module with `eval` and `inference_mode`: as it is, and at its best, the fastest of
  channels_last and channels_last with weights in bfloat16, both with batch norm folded into the
  convolutions.

bfloat16 is tried if the processor has it. The processes take turns, as in training.py. The output
is images a second (the median of the rounds), and how many times as fast `keras-vgg evaluate` was
in the same round, with the spread. PyTorch is left out if it is not installed.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

# The other benchmarks' part, beside this one.
from libraries import (
    APPLICATIONS,
    CLASSES,
    OURS,
    TORCH,
    Engine,
    Steps,
    applications_vgg16,
    channel_statistics,
    compare,
    random_batch,
    repeated_batch,
    torch_vgg,
)

from keras_vgg import hardware
from keras_vgg.recipe import Recipe

_VGG16 = Recipe(
    configuration="D",
    width_multiplier=1.0,
    batch_norm=False,
    hidden_units=4096,
    batch_size=64,
    eval_scale=None,  # The images have the network's size.
)
CASES = {
    "VGG-16, 224x224, batch 8": _VGG16.replace(image_size=224, batch_size=8),
    "VGG-16, 224x224, batch 1": _VGG16.replace(image_size=224, batch_size=1),
    "VGG-16, 32x32, batch 64": _VGG16,
    "VGG-11, quarter width, batch norm, 32x32, batch 128": Recipe(batch_size=128, eval_scale=None),
}
FLOAT32 = f"{OURS}, a run in float32"
PREDICTOR = f"{OURS}, Predictor"


def _write_run(recipe: Recipe, directory: Path):
    """Write what the commands read of a run that was trained here, with random weights."""
    hardware.prepare_environment()
    from keras_vgg import fit
    from keras_vgg.run import Run

    engine = hardware.choose_engine(recipe)
    print(f"    {OURS}: a run in {engine.precision}", file=sys.stderr)
    run = Run(directory, recipe)
    run.write_recipe()
    run.write_json("data.json", {"class_names": [str(number) for number in range(CLASSES)]})
    run.write_json("results.json", {})
    fit.build_model(recipe, CLASSES, channel_statistics(), engine.precision).save(run.model_path)
    return run


def _evaluate(recipe: Recipe) -> Steps:
    hardware.prepare_environment()
    from keras_vgg import evaluation
    from keras_vgg.runs.classifier import open_classifier

    with tempfile.TemporaryDirectory() as folder:
        network = open_classifier(_write_run(recipe, Path(folder))).run
    images, labels = random_batch(recipe)
    pairs = list(zip(images.astype(np.float32), labels, strict=True))
    pixels = recipe.batch_size * recipe.image_size**2

    def take(steps: int) -> None:
        repeated = itertools.chain.from_iterable(itertools.repeat(pairs, steps))
        blocks = evaluation.posteriors(network, repeated, classes=CLASSES, pixels=pixels)
        deque(blocks, maxlen=0)

    return take


def _evaluate_float32(recipe: Recipe) -> Steps:
    return _evaluate(recipe.replace(precision="float32"))


def _predictor(recipe: Recipe) -> Steps:
    hardware.prepare_environment()
    from keras_vgg import Predictor

    with tempfile.TemporaryDirectory() as folder:
        run = _write_run(recipe, Path(folder))
        predictor = Predictor(run, batch_size=recipe.batch_size)
    images = list(random_batch(recipe)[0])

    def take(steps: int) -> None:
        repeated = itertools.chain.from_iterable(itertools.repeat(images, steps))
        deque(predictor.stream(repeated), maxlen=0)

    return take


def _keras_applications(
    recipe: Recipe, precision: str = "float32", jit: bool | Literal["auto"] = "auto"
) -> Steps:
    model = applications_vgg16(recipe, precision)
    model.compile(jit_compile=jit)
    dataset = repeated_batch(recipe)
    return lambda steps: model.predict(dataset, steps=steps, verbose=0)


def _torch(recipe: Recipe, at_best: bool = False, bfloat16: bool = False) -> Steps:
    import torch

    dtype = torch.bfloat16 if bfloat16 else torch.float32
    memory_format = torch.channels_last if at_best else torch.contiguous_format
    model: Any = torch_vgg(recipe).eval()
    if at_best:
        model = _with_folded_norms(model)
    model = model.to(dtype=dtype, memory_format=memory_format)
    x = torch.from_numpy(random_batch(recipe)[0]).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def take(steps: int) -> None:
        for _ in range(steps):
            batch = (x.contiguous(memory_format=memory_format).float() / 255).to(dtype)
            model(batch).float().softmax(1).numpy()

    return take


def _with_folded_norms(model: Any) -> Any:
    """Return a PyTorch Sequential without its batch norms, which become part of convolutions."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    layers: list[Any] = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


_PRECISIONS = {"bfloat16": "mixed_bfloat16", "weights in bfloat16": "bfloat16"}
ENGINES: dict[str, Engine] = {
    OURS: _evaluate,
    FLOAT32: _evaluate_float32,
    PREDICTOR: _predictor,
    APPLICATIONS: _keras_applications,
    f"{APPLICATIONS}, without XLA": partial(_keras_applications, jit=False),
    **{
        f"{APPLICATIONS}, {words}{end}": partial(_keras_applications, precision=policy, jit=jit)
        for words, policy in _PRECISIONS.items()
        for end, jit in {"": "auto", ", without XLA": False}.items()
    },
    TORCH: _torch,
    f"{TORCH}, channels_last": partial(_torch, at_best=True),
    f"{TORCH}, channels_last, bfloat16": partial(_torch, at_best=True, bfloat16=True),
}


def _own_engines(recipe: Recipe, libraries: Sequence[str]) -> list[str]:
    chosen = hardware.choose_engine(recipe).precision
    return [OURS, PREDICTOR] if chosen == "float32" else [OURS, FLOAT32, PREDICTOR]


if __name__ == "__main__":
    compare(__doc__ or "", CASES, ENGINES, _own_engines)

"""Measure the speed of training: keras_vgg, keras.applications and PyTorch.

python benchmarks/training.py [--cases NAME ...] [--rounds 3] [--seconds 20] [--only LIBRARY ...]

All train the same network on the same random images, with SGD and momentum:

- this package: `build_model` and `compile_model` with the choices of `choose_engine`, then
  `model.fit`, with dropout and weight decay; and without both, to compare with the next;
- keras.applications' model, which has neither, with `compile` and `fit`: as it is (Keras then uses
  XLA), and at its best on this machine, the fastest of float32 and bfloat16, with and without XLA;
- a plain PyTorch module with both: as it is, and at its best, the faster of channels_last and
  channels_last with bfloat16 autocast.

bfloat16 is tried if the processor has it; without it, a step of VGG-16 took minutes. Before the
rounds, each way of a library is timed once in a process that then ends, and the fastest takes part
in the rounds. Each has its own process with all cores. The processes take turns, so that other work
on the machine slows all of them. The output is images a second (the median of the rounds), and how
many times as fast keras_vgg was in the same round, with the spread. PyTorch is left out if it is
not installed.
Both Keras models use a data set without tf.data's autotuner, because the autotuner's thread can
delay the end of a `fit`, and double the time of a round (`keras_vgg.data.untuned`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Literal

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

CASES = {
    "VGG-16, 224x224, batch 4": Recipe(
        configuration="D",
        width_multiplier=1.0,
        batch_norm=False,
        hidden_units=4096,
        image_size=224,
        batch_size=4,
    ),
    "VGG-16, 32x32, batch 64": Recipe(
        configuration="D", width_multiplier=1.0, batch_norm=False, hidden_units=4096, batch_size=64
    ),
    "VGG-11, quarter width, batch norm, 32x32, batch 128": Recipe(batch_size=128),
}
BARE = f"{OURS}, without dropout and weight decay"


def _keras_vgg(recipe: Recipe) -> Steps:
    hardware.prepare_environment()
    from keras_vgg import fit

    engine = hardware.choose_engine(recipe)
    print(f"    {OURS}: {engine}", file=sys.stderr)
    model = fit.build_model(recipe, CLASSES, channel_statistics(), engine.precision)
    fit.compile_model(model, recipe, engine)
    return _fit(model, recipe)


def _bare(recipe: Recipe) -> Steps:
    return _keras_vgg(recipe.replace(dropout=0.0, weight_decay=0.0))


def _keras_applications(
    recipe: Recipe, precision: str = "float32", jit: bool | Literal["auto"] = "auto"
) -> Steps:
    import keras

    model = applications_vgg16(recipe, precision)
    optimizer = keras.optimizers.SGD(recipe.learning_rate, momentum=recipe.momentum)
    model.compile(
        optimizer,
        "categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=jit,  # pyright: ignore[reportArgumentType]  # Keras documents True and False
    )
    return _fit(model, recipe)


def _fit(model, recipe: Recipe) -> Steps:
    dataset = repeated_batch(recipe)
    return lambda steps: model.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False)


def _torch(recipe: Recipe, channels_last: bool = False, bfloat16: bool = False) -> Steps:
    import torch
    from torch import nn

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_vgg(recipe).to(memory_format=memory_format)
    images, labels = random_batch(recipe)
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)

    def step() -> None:
        batch = x.contiguous(memory_format=memory_format).float() / 255
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = nn.functional.cross_entropy(model(batch), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def take(steps: int) -> None:
        for _ in range(steps):
            step()

    return take


ENGINES: dict[str, Engine] = {
    OURS: _keras_vgg,
    BARE: _bare,
    APPLICATIONS: _keras_applications,
    f"{APPLICATIONS}, without XLA": partial(_keras_applications, jit=False),
    f"{APPLICATIONS}, bfloat16": partial(_keras_applications, precision="mixed_bfloat16"),
    f"{APPLICATIONS}, bfloat16, without XLA": partial(
        _keras_applications, precision="mixed_bfloat16", jit=False
    ),
    TORCH: _torch,
    f"{TORCH}, channels_last": partial(_torch, channels_last=True),
    f"{TORCH}, channels_last, bfloat16": partial(_torch, channels_last=True, bfloat16=True),
}


def _own_engines(recipe: Recipe, libraries: Sequence[str]) -> list[str]:
    return [OURS, BARE] if APPLICATIONS in libraries else [OURS]


if __name__ == "__main__":
    compare(__doc__ or "", CASES, ENGINES, _own_engines)

"""Measure precisions and XLA in training on this CPU, as `auto` does before a long training.

python benchmarks/engines.py [--cases NAME ...]

Each case has a process of its own, in which every precision and compiler trains the network on
random images for about two seconds after its first steps, and again in a second turn, if the memory
has room. The output is images a second, of the better turn.
"""

from __future__ import annotations

import argparse

from keras_vgg import hardware

hardware.prepare_environment()

from keras_vgg.architecture import totals  # noqa: E402
from keras_vgg.fit import engine_timing  # noqa: E402
from keras_vgg.recipe import Recipe  # noqa: E402

CLASSES = 10
_VGG16 = Recipe(configuration="D", width_multiplier=1.0, batch_norm=False, hidden_units=4096)
CASES = {
    "VGG-11, 1/8 width, batch norm, 32x32, batch 64": Recipe(width_multiplier=1 / 8),
    "VGG-11, 1/4 width, batch norm, 32x32, batch 128": Recipe(batch_size=128),
    "VGG-16, 1/2 width, batch norm, 32x32, batch 128": Recipe(
        configuration="D", width_multiplier=0.5, head="gap", batch_size=128
    ),
    "VGG-16, 32x32, batch 64": _VGG16,
    "VGG-16, 224x224, batch 8": _VGG16.replace(image_size=224, batch_size=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure precisions and XLA on this CPU.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    machine = hardware.find_machine("cpu")
    print(hardware.processor_name().partition(" [")[0])
    for name in parser.parse_args().cases:
        recipe = CASES[name]
        candidates = engine_timing.candidates_of(recipe, machine)
        speeds = engine_timing.measure(recipe, CLASSES, candidates)
        macs = totals(recipe.layers(CLASSES)).macs
        print(f"{name}, {macs / 1e6:,.0f} MMAC: {', '.join(map(str, speeds))}", flush=True)


if __name__ == "__main__":
    main()

"""Keep the network of a run as a small file, and make a run of such a file again.

    python training/kept_network.py keep RUN FILE.safetensors
    python training/kept_network.py open FILE.safetensors RUN --source folder:DIR
    keras-vgg evaluate RUN

The file holds the weights in float16, by PyTorch's names, the preprocessing, the recipe, the
classes, the splits' fingerprints and the validation accuracy. The new run is the network in
float32, for `keras-vgg evaluate`, `predict`, `export`, `prune` and `train --init RUN`; it cannot be
resumed. Its splits are drawn as the recipe says, and `evaluate` says if they are not those of the
first run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

from keras_vgg import Run, hardware
from keras_vgg.files import PARTIAL, write_atomically
from keras_vgg.recipe import Recipe

ACCURACY = "validation_accuracy"


def keep(directory: Path, file: Path) -> None:
    """Write the best network of a run in float16.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the file exists or is no .safetensors, the run has not finished, an image of it
            may have several labels, or a weight is too large for float16.
    """
    from keras_vgg.weights import read_weights
    from keras_vgg.weights.torch_format import write_safetensors

    _require_new(file)
    run = Run.open(directory)
    run.require_finished()
    _require_safetensors(file)
    if run.several_labels:
        raise ValueError(f"{directory} has several labels an image, which the file cannot state")
    weights = read_weights(directory)
    tensors = {name: _in_float16(name, values) for name, values in weights.tensors.items()}
    recipe = run.recipe.without_folders().replace(source="folder:DIR")
    data = run.read_json("data.json")
    data = {name: data[name] for name in ("class_names", "splits")}
    results = {ACCURACY: run.results[ACCURACY]}
    stated = {
        "recipe": recipe.to_json(),
        "data": json.dumps(data),
        "results": json.dumps(results),
    }
    write_atomically(
        file,
        lambda path: write_safetensors(tensors, path, "torchvision", weights.preprocessing, stated),
    )


def _in_float16(name: str, values: list[np.ndarray]) -> list[np.ndarray]:
    if any(np.abs(value).max() > np.finfo(np.float16).max for value in values):
        raise ValueError(f"{name} is too large for float16")
    return [value.astype(np.float16) for value in values]


def open_kept(file: Path, directory: Path, source: str) -> None:
    """Write a run that holds the network of a kept file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the directory exists, or the file is none that `keep` wrote.
    """
    from keras_vgg import vgg
    from keras_vgg.weights import assign, read_weights

    _require_new(directory)
    _require_safetensors(file)
    weights = read_weights(file)
    with safe_open(file, "np") as opened:
        metadata = opened.metadata() or {}
    missing = [name for name in ("recipe", "data", "results") if name not in metadata]
    if missing or weights.preprocessing is None:
        raise ValueError(f"{file} is not a file of `kept_network.py keep`: it lacks {missing}")
    recipe = Recipe.from_json(metadata["recipe"]).replace(source=source).with_absolute_paths()
    data = json.loads(metadata["data"])
    if not (isinstance(data, dict) and data.keys() >= {"class_names", "splits"}):
        raise ValueError(f"{file} does not state its classes and splits")
    results = json.loads(metadata["results"])
    model = vgg(
        recipe.configuration,
        weights=None,
        classes=len(data["class_names"]),
        **recipe.network_options(),
        include_preprocessing=weights.preprocessing,
    )
    assign(model, dataclasses.replace(weights, logits=False))
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=directory.parent) as folder:
        run = Run(Path(folder) / directory.name, recipe)
        run.directory.mkdir()
        model.save(run.model_path)
        run.write_recipe()
        run.write_json("data.json", data)
        run.write_json("results.json", {"kept": file.name, **results})
        os.replace(run.directory, directory)  # the run is whole, or there is none


def _require_safetensors(file: Path) -> None:
    if file.suffix != ".safetensors":
        raise ValueError(f"{file} must end in .safetensors")


def _require_new(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists; name a new one")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep", help="write the network of RUN to FILE")
    keeping.add_argument("run", type=Path)
    keeping.add_argument("file", type=Path)
    opening = commands.add_parser("open", help="make RUN of FILE")
    opening.add_argument("file", type=Path)
    opening.add_argument("run", type=Path)
    opening.add_argument("--source", required=True, help="the images, as keras-vgg train takes it")
    options = parser.parse_args(arguments)
    hardware.prepare_environment()
    try:
        if options.command == "keep":
            keep(options.run, options.file)
            print(f"{options.file}: {options.file.stat().st_size / 1e6:.1f} MB")
        else:
            open_kept(options.file, options.run, options.source)
            print(f"next: keras-vgg evaluate {options.run}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

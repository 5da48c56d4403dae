"""Name the right order where a command's arguments are swapped, or one is given twice."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from keras_vgg.image_paths import expanded

_MODEL_SUFFIXES = (".keras", ".tflite", ".onnx")
_SOURCE = re.compile(r"(folder|csv|records|idx):|digits$")


def is_run(path: Path) -> bool:
    return (expanded(path) / "recipe.json").is_file()


def is_model(path: Path) -> bool:
    """Return whether a path is what `predict` takes as a model: a run or a file of a network."""
    path = expanded(path)
    suffix = path.suffix.lower()
    # OpenVINO writes two files. An .xml file alone may be the annotation of a photograph.
    is_network = suffix in _MODEL_SUFFIXES or (
        suffix == ".xml" and path.with_suffix(".bin").is_file()
    )
    return (is_network and path.is_file()) or is_run(path) or (path / "saved_model.pb").is_file()


def looks_like_source(text: str) -> bool:
    """Return whether a text begins like a source of images, such as folder:PATH."""
    return _SOURCE.match(text) is not None


def command_line(command: str, *arguments: Path | str) -> str:
    """Return a command as one types it."""
    return shlex.join(["keras-vgg", *command.split(), *map(str, arguments)])


def require_model_first(command: str, model: Path, images: Sequence[Path]) -> None:
    """Raise ValueError if a model stands among the images.

    A run directory holds plots, which would otherwise be classified.
    """
    models = [path for path in images if is_model(path)]
    if models and not is_model(model):
        raise ValueError(f"the model comes first: {command_line(command, models[0], model)}")
    if models:
        raise ValueError(
            f"{models[0]} is a model and not an image: {command} takes one model, here {model}, "
            "and then images"
        )


def require_recipe(text: str) -> None:
    """Raise ValueError if the first argument of train is a source of images, and no recipe."""
    is_folder = expanded(text).is_dir() and not is_run(Path(text))
    if is_folder or looks_like_source(text):
        source = f"folder:{text}" if is_folder else text
        advice = command_line("train", "--source", source, "--workdir", "RUN")
        raise ValueError(f"{text} is no recipe; to train on these images: {advice}")


def require_suffix(option: str, path: Path, *suffixes: str) -> None:
    """Raise ValueError if a file's name says that it has another format."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} {path} must end in {suffixes[0]}, the format that is written")


def require_runs(command: str, runs: Sequence[Path], *, folds: bool = False) -> None:
    """Check that all arguments are run directories, and no run is named twice.

    Args:
        command: The command.
        runs: Its arguments.
        folds: Whether directories of a cross-validation are taken, too.

    Raises:
        ValueError: there is no argument, or a run is named twice.
        FileNotFoundError: an argument is no run.
    """
    from keras_vgg.run import Run, holds_folds, why_no_run

    if not runs:
        raise ValueError(f"{command} needs at least one run directory")
    some_folds = folds and any(map(holds_folds, runs))  # then the command checks the others
    for path in [] if some_folds else runs:
        if is_run(path):
            continue
        if holds_folds(path):
            Run.open(path)  # this raises, and names a fold
        if not path.is_dir():
            raise FileNotFoundError(f"{path} is not a run directory: {why_no_run(path)}")
        other = next(filter(is_run, runs), Path("RUN"))
        hint = command_line(command, other, "--source", f"folder:{path}")
        raise FileNotFoundError(
            f"{path} is not a run directory: {why_no_run(path)}; for images in another place: "
            f"{hint}"
        )
    resolved = [path.resolve() for path in runs]
    for path, place in zip(runs, resolved, strict=True):
        if resolved.count(place) > 1:
            raise ValueError(f"{path} is given twice; name each run once")

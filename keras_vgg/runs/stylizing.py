"""Stylise a photograph: files in, a PNG out, with pictures on the way; repeated, it resumes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from keras_vgg.console import progress_bars
from keras_vgg.data import BitDepth, load_image
from keras_vgg.files import read_arrays, sha256_of, write_atomically
from keras_vgg.image_paths import expanded
from keras_vgg.perceptual.descent import Method, Step, stylize
from keras_vgg.perceptual.style import CONTENT_LAYER, STYLE_LAYERS, Losses, StyleObjective
from keras_vgg.runs.few_levels import few_levels_line
from keras_vgg.runs.memory import memory_error_explained
from keras_vgg.runs.trained_base import base_network, weights_identity
from keras_vgg.weights import NAMES

_STATE = "state.npz"
_LOSSES = "losses.csv"

Start = Literal["content", "style", "noise"]


@dataclass(frozen=True)
class Stylisation:
    """What decides the result of a stylisation, besides the two photographs.

    Attributes:
        weights: "imagenet", "torchvision", a weight file or a run directory, as `read_weights`.
        configuration: As for `base_network`.
        size: The longer side of the result in pixels. None: that of the content.
        style_size: The longer side of the style in pixels. None: that of the result.
        style_weight: As for `StyleObjective`.
        style_layers: As for `StyleObjective`.
        content_layer: As for `StyleObjective`.
        pooling_layers: As for `StyleObjective`.
        start: The first image: the content, the style in the content's size, or noise.
        method: As for `stylize`.
        learning_rate: As for `stylize`; Adam's.
        seed: Of the noise, if the first image is noise.
        bit_depth: Which bits of a 16-bit PNG file carry the image, as `keras_vgg.data.decode`.
    """

    weights: str = "imagenet"
    configuration: str = "D"
    size: int | None = 512
    style_size: int | None = None
    style_weight: float = 5.0
    style_layers: tuple[str, ...] = STYLE_LAYERS
    content_layer: str = CONTENT_LAYER
    pooling_layers: Literal["avg"] | None = "avg"
    start: Start = "content"
    method: Method = "l-bfgs"
    learning_rate: float = 5.0
    seed: int = 0
    bit_depth: BitDepth = "16"


@memory_error_explained("choose a smaller size (--size), or tiles (--tile)")
def stylize_files(
    content: str | os.PathLike[str],
    style: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: Stylisation | None = None,
    *,
    steps: int = 200,
    every: int = 50,
    tile: int | None = None,
    overwrite: bool = False,
    verbose: bool = False,
    on_line: Callable[[str], None] = lambda line: None,
) -> list[Losses]:
    """Write a photograph in the style of another as a PNG.

    Beside it, the folder NAME_steps gets a picture every so many steps, the losses of all steps as
    losses.csv, and the state, which is removed at the end. If the computation was ended before, it
    resumes at the last saved step; L-BFGS and Adam then begin their averages anew.

    Args:
        content: The photograph to stylise.
        style: The photograph or picture whose style it gets.
        out: The PNG; its folder must exist.
        settings: What decides the result.
        steps: The number of steps.
        every: Steps between two pictures, and two saves of the state.
        tile: The side of a tile in pixels, a multiple of 16, for images that memory does not hold.
        overwrite: Whether to replace a PNG that exists, and the state of another stylisation. A
            state of this one is resumed.
        verbose: Show a progress bar.
        on_line: Is called with a line for each picture on the way, and for 16-bit files that become
            almost one grey.

    Returns:
        The losses of the first image and after each step, those before a resume included. With
        Adam, those of a step are the losses before it.

    Raises:
        FileNotFoundError: there is no such photograph, weight file or folder.
        FileExistsError: the PNG exists.
        ValueError: a photograph is damaged or too small; an option does not fit; the state is of
            another stylisation.
        ArithmeticError: the loss is not finite.
        MemoryError: the memory does not hold the image's maps.
    """
    settings, out = settings or Stylisation(), expanded(out)
    content, style = expanded(content), expanded(style)
    _check(settings, out, steps, every, overwrite)
    pictures = _pictures(settings, content, style)
    if line := few_levels_line([content, style], settings.bit_depth):
        on_line(line)
    identity = _identity(settings, content, style)
    folder = out.with_name(f"{out.stem}_steps")
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"{folder} is in the way: pictures on the way go into a folder of that name"
        )
    state = _state(folder / _STATE, identity, overwrite, steps)
    objective = _objective(settings, *pictures, tile)
    if state is None:
        pictures_there = [*folder.glob(f"{5 * '[0-9]'}.png")]
        if pictures_there and not (folder / _LOSSES).is_file():
            raise ValueError(
                f"{folder} is in the way: it holds pictures of yours, and pictures on the way go "
                "into a folder of that name"
            )
        for picture in pictures_there:  # of an earlier stylisation
            picture.unlink()
        image = _first_image(settings, *pictures)
        losses = [objective(image)[0]]
    else:
        image, losses = state
        on_line(f"resumed after step {len(losses) - 1} of {steps}")
    done = len(losses) - 1
    with progress_bars(verbose) as progress:
        task = progress.add_task("loss", total=steps, completed=done)

        def after_step(step: Step) -> None:
            losses.append(step.losses)
            number = done + step.number
            share = step.losses.total / losses[0].total
            progress.update(task, completed=number, description=f"loss {share:.1%}")
            if number % every and number != steps:
                return
            folder.mkdir(exist_ok=True)
            _save(folder, identity, step.image, losses)
            if number != steps:
                path = folder / f"{number:05d}.png"
                save_picture(step.image, path)
                on_line(f"step {number}: {share:.2%} of the first image's loss, {path}")

        if done < steps:
            image = stylize(
                objective,
                image,
                steps=steps - done,
                method=settings.method,
                learning_rate=settings.learning_rate,
                on_step=after_step,
            )
    if len(losses) <= steps:
        on_line(f"ended after {len(losses) - 1} steps: L-BFGS finds no lower loss")
        folder.mkdir(exist_ok=True)
        _write_losses(folder / _LOSSES, losses)
    save_picture(image, out)
    (folder / _STATE).unlink(missing_ok=True)
    return losses


def save_picture(image: np.ndarray, path: Path) -> None:
    """Write an image, [h, w, 3] in [0, 255], as a PNG, whole or not at all."""
    pixels = Image.fromarray(np.rint(np.clip(image, 0, 255)).astype("uint8"))
    write_atomically(path, lambda partial: pixels.save(partial, format="PNG"))


def check_target(out: Path, suffix: str, overwrite: bool) -> None:
    """Raise an error unless a file with this suffix may be written."""
    if out.suffix.lower() != suffix:
        raise ValueError(f"the result must be a {suffix} file, not {out.name!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} for {out.name}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists: name another file, or pass overwrite (--overwrite)")


def _check(settings: Stylisation, out: Path, steps: int, every: int, overwrite: bool) -> None:
    check_target(out, ".png", overwrite)
    for name, count in (("steps", steps), ("every", every)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count}")
    for name, side in (("size", settings.size), ("style_size", settings.style_size)):
        if side is not None and side < 32:
            raise ValueError(f"{name} must be at least 32 pixels, not {side}")
    if settings.start not in ("content", "style", "noise"):
        raise ValueError(f"start must be content, style or noise, not {settings.start!r}")


def _pictures(
    settings: Stylisation, content: str | os.PathLike[str], style: str | os.PathLike[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the content and the style, uint8 [h, w, 3], in their sizes."""
    photograph = scaled_picture(content, settings.size, settings.bit_depth)
    side = settings.style_size or max(photograph.shape[:2])
    return photograph, scaled_picture(style, side, settings.bit_depth)


def _objective(
    settings: Stylisation, content: np.ndarray, style: np.ndarray, tile: int | None
) -> StyleObjective:
    return StyleObjective(
        base_network(settings.weights, settings.configuration),
        content,
        style,
        style_layers=settings.style_layers,
        content_layer=settings.content_layer,
        pooling_layers=settings.pooling_layers,
        style_weight=settings.style_weight,
        tile=tile,
    )


def scaled_picture(
    path: str | os.PathLike[str], longer: int | None, bit_depth: BitDepth = "16"
) -> np.ndarray:
    """Return a photograph as uint8 [h, w, 3], with the longer side as given."""
    image = load_image(path, bit_depth=bit_depth)
    if longer is None:
        return image
    scale = longer / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if min(height, width) < 32:
        raise ValueError(
            f"{path} is {height} x {width} pixels at a longer side of {longer}; both sides must "
            "have at least 32"
        )
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def _first_image(settings: Stylisation, content: np.ndarray, style: np.ndarray) -> np.ndarray:
    if settings.start == "content":
        return content.astype("float32")
    if settings.start == "noise":
        rng = np.random.default_rng(settings.seed)
        return rng.uniform(0, 255, content.shape).astype("float32")
    size = content.shape[1], content.shape[0]
    return np.asarray(Image.fromarray(style).resize(size, Image.Resampling.LANCZOS), "float32")


def _identity(settings: Stylisation, content: Any, style: Any) -> str:
    """Return what two stylisations with the same result have in common."""
    described = asdict(settings) | {
        "weights": weights_identity(settings.weights),
        "pictures": [sha256_of(content), sha256_of(style)],
    }
    if settings.method != "adam":
        del described["learning_rate"]
    if settings.start != "noise":
        del described["seed"]
    if settings.weights not in NAMES:
        del described["configuration"]
    return json.dumps(described, sort_keys=True)


def _save(folder: Path, identity: str, image: np.ndarray, losses: list[Losses]) -> None:
    """Write the state, from which a stylisation resumes, and the losses."""

    def write(target: Path) -> None:
        with target.open("wb") as file:
            text = np.frombuffer(identity.encode(), np.uint8)
            np.savez(file, identity=text, image=image, losses=np.array(losses))

    write_atomically(folder / _STATE, write)
    _write_losses(folder / _LOSSES, losses)


def _state(
    path: Path, identity: str, overwrite: bool, steps: int
) -> tuple[np.ndarray, list[Losses]] | None:
    """Return the image and the losses that a file keeps; None: no file.

    A file of another stylisation, of a later step, or a damaged one, is removed with `overwrite`.

    Raises:
        ValueError: without `overwrite`, the file is of another stylisation, of a later step than
            the last of `steps`, or damaged.
    """
    if not path.is_file():
        return None
    try:
        return _checked_state(path, identity, steps)
    except ValueError:
        if not overwrite:
            raise
        path.unlink()
        return None


def _checked_state(path: Path, identity: str, steps: int) -> tuple[np.ndarray, list[Losses]]:
    arrays = read_arrays(path)
    advice = "name another file, or pass overwrite (--overwrite) to begin anew"
    if set(arrays) != {"identity", "image", "losses"}:
        raise ValueError(f"{path} is no state of a stylisation: {advice}")
    if arrays["identity"].tobytes() != identity.encode():
        raise ValueError(f"{path} is the state of a stylisation with other settings: {advice}")
    losses = [Losses(*map(float, row)) for row in arrays["losses"]]
    if len(losses) - 1 > steps:
        raise ValueError(
            f"{path} is of step {len(losses) - 1}, and steps is {steps}: ask for as many steps or "
            "more, or pass overwrite (--overwrite) to begin anew"
        )
    return arrays["image"], losses


def _write_losses(path: Path, losses: list[Losses]) -> None:
    def write(target: Path) -> None:
        with target.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", *Losses._fields])
            writer.writerows([number, *row] for number, row in enumerate(losses))

    write_atomically(path, write)

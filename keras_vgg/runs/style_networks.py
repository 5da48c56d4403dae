"""Fast style networks: train one on a folder, apply one to a photograph, write one for LiteRT."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_vgg import augment, data
from keras_vgg.backend import as_array, require_tensorflow_for_files
from keras_vgg.console import progress_bars
from keras_vgg.data.inspection import without_bad_images
from keras_vgg.data.listing import image_files
from keras_vgg.export import ExportError, verify
from keras_vgg.export.litert import write_litert, write_source
from keras_vgg.files import write_atomically
from keras_vgg.image_paths import expanded
from keras_vgg.layers import load_keras_file
from keras_vgg.perceptual.fast_style import StyleTransferLoss, style_network
from keras_vgg.perceptual.style import CONTENT_LAYER, STYLE_LAYERS
from keras_vgg.runs.few_levels import few_levels_line
from keras_vgg.runs.memory import memory_error_explained
from keras_vgg.runs.stylizing import check_target, save_picture, scaled_picture
from keras_vgg.runs.trained_base import base_network

_LEAST_SIDE = 16  # pixels of a photograph that a style network takes
_FLOAT32_DIFFERENCE = 0.5  # grey levels of 255 by which a LiteRT file may differ anywhere


@dataclass(frozen=True)
class StyleTraining:
    """What decides a style network, besides the photographs and the style.

    Attributes:
        weights: "imagenet", "torchvision", a weight file or a run directory, as `read_weights`.
        configuration: As for `base_network`.
        size: The side of the crops of the photographs, in pixels.
        style_size: The longer side of the style in pixels. None: `size`.
        style_weight: As for `StyleTransferLoss`.
        style_layers: As for `StyleTransferLoss`.
        content_layer: As for `StyleTransferLoss`.
        pooling_layers: As for `StyleTransferLoss`.
        width: As for `style_network`.
        residual_blocks: As for `style_network`.
        batch_size: Photographs in a batch. Fewer, if there are fewer photographs.
        learning_rate: That of Adam.
        seed: Of the first weights and the crops.
        bit_depth: Which bits of a 16-bit PNG file carry the image, as `keras_vgg.data.decode`.
    """

    weights: str = "imagenet"
    configuration: str = "D"
    size: int = 256
    style_size: int | None = None
    style_weight: float = 5.0
    style_layers: tuple[str, ...] = STYLE_LAYERS
    content_layer: str = CONTENT_LAYER
    pooling_layers: Literal["avg"] | None = "avg"
    width: int = 32
    residual_blocks: int = 5
    batch_size: int = 4
    learning_rate: float = 1e-3
    seed: int = 0
    bit_depth: data.BitDepth = "16"


@memory_error_explained("choose a smaller size (--size)")
def train_style_network(
    folder: str | os.PathLike[str],
    style: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: StyleTraining | None = None,
    *,
    steps: int = 2000,
    every: int = 50,
    overwrite: bool = False,
    verbose: bool = False,
    on_line: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train a network to give photographs the style of a picture, and write it as a .keras file.

    The photographs are the images below the folder, at any depth. Each is scaled at random, cropped
    and mirrored, as a classifier's training images are. An interrupted training begins anew.

    Args:
        folder: A folder of photographs. Each is decoded once before the training; files that do not
            decode are left out and named on stderr, if they are at most a tenth.
        style: The picture whose style the network learns.
        out: The .keras file; its folder must exist.
        settings: What decides the network.
        steps: The number of batches, a multiple of `every`.
        every: Batches over which a loss is averaged. Fewer, if there are fewer steps.
        overwrite: Whether to replace a file that exists.
        verbose: Show a progress bar.
        on_line: Is called with a line for each average, and for files that are not read.

    Returns:
        The mean losses of each `every` batches.

    Raises:
        FileNotFoundError: there is no such folder, picture or weight file.
        FileExistsError: the file exists.
        ValueError: more than a tenth of the photographs are damaged; an option does not fit.
        ArithmeticError: the loss is not finite.
        MemoryError: the memory does not hold the maps of a batch.
    """
    settings, out, every = settings or StyleTraining(), Path(out), min(every, steps)
    check_target(out, ".keras", overwrite)
    _check(settings, steps, every)
    split = _photographs(folder, settings.bit_depth, on_line)
    if line := few_levels_line([style], settings.bit_depth):
        on_line(line)
    picture = scaled_picture(style, settings.style_size or settings.size, settings.bit_depth)
    loss = StyleTransferLoss(
        base_network(settings.weights, settings.configuration),
        picture,
        style_layers=settings.style_layers,
        content_layer=settings.content_layer,
        pooling_layers=settings.pooling_layers,
        style_weight=settings.style_weight,
    )
    split = without_bad_images(split)
    if split.size < settings.batch_size:
        on_line(f"batches of {split.size}, for there are no more photographs")
        settings = replace(settings, batch_size=split.size)
    keras.utils.set_random_seed(settings.seed)
    model = style_network(settings.width, settings.residual_blocks)
    # XLA takes minutes to compile both networks on a CPU.
    model.compile(keras.optimizers.Adam(settings.learning_rate), loss, jit_compile=False)  # pyright: ignore[reportArgumentType]
    losses: list[float] = []
    with progress_bars(verbose) as progress, data.bad_images_named(split):
        task = progress.add_task("loss", total=steps)

        def after_batches(_: int, logs: Any) -> None:
            losses.append(float(logs["loss"]))
            if not np.isfinite(losses[-1]):
                raise ArithmeticError(
                    f"the loss is {losses[-1]} before step {every * len(losses)}: lower the "
                    "learning rate"
                )
            progress.update(task, completed=every * len(losses), description=f"{losses[-1]:.4g}")
            on_line(f"step {every * len(losses)} of {steps}: loss {losses[-1]:.4g}")

        model.fit(
            _batches(split, settings),
            epochs=steps // every,
            steps_per_epoch=every,
            shuffle=False,  # the data set is shuffled
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=after_batches)],
            verbose=0,  # pyright: ignore[reportArgumentType]  # Keras annotates it as text.
        )
    # A compiled model would store the optimizer, and the network of the loss.
    result = style_network(settings.width, settings.residual_blocks)
    result.set_weights(model.get_weights())
    write_atomically(out, result.save)
    return losses


@memory_error_explained("choose a smaller size (--size)")
def apply_style_network(
    content: str | os.PathLike[str],
    network: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int | None = None,
    bit_depth: data.BitDepth = "16",
    overwrite: bool = False,
    on_line: Callable[[str], None] = lambda line: None,
) -> np.ndarray:
    """Write a photograph in a network's style as a PNG, and return it, float32 [h, w, 3].

    Args:
        content: The photograph.
        network: A .keras file of `train_style_network`.
        out: The PNG; its folder must exist.
        size: The longer side of the result in pixels. None: that of the photograph.
        bit_depth: Which bits of a 16-bit PNG file carry the image, as `keras_vgg.data.decode`.
        overwrite: Whether to replace a PNG that exists.
        on_line: Is called with a line if the photograph becomes almost one grey.

    Raises:
        FileNotFoundError: there is no such photograph, network or folder.
        FileExistsError: the PNG exists.
        ValueError: a file is damaged, or no style network; the photograph is too small.
        ArithmeticError: the network's picture is not finite.
        MemoryError: the memory does not hold the photograph's maps.
    """
    out = Path(out)
    check_target(out, ".png", overwrite)
    photograph = _sized_photograph(content, size, bit_depth, on_line)
    model = load_style_network(network)
    image = as_array(model(photograph[np.newaxis].astype("float32"), training=False))[0]
    if not np.isfinite(image).all():
        raise ArithmeticError(f"{network} gives a picture that is not finite")
    save_picture(image, out)
    return image


def export_style_network(
    content: str | os.PathLike[str],
    network: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size: int = 256,
    bit_depth: data.BitDepth = "16",
    overwrite: bool = False,
    on_line: Callable[[str], None] = lambda line: None,
) -> tuple[float, float]:
    """Write a style network for LiteRT, in float32, once a photograph shows that both agree.

    The file's signature `serving_default` maps `images` [n, h, w, 3] RGB in [0, 255] to `stylized`
    of the same shape. It has the sides of the photograph; another size needs another file.

    Args:
        content: A photograph. The file is run on it in a process of its own.
        network: A .keras file of `train_style_network`.
        out: The .tflite file; its folder must exist.
        size: The longer side of the photograph in pixels.
        bit_depth: As for `apply_style_network`.
        overwrite: Whether to replace a file that exists.
        on_line: As for `apply_style_network`.

    Returns:
        The mean and the greatest difference of the two pictures, in grey levels of 255.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `apply_style_network`; Keras runs on
            another backend than TensorFlow.
        ExportError: the file does not run, or differs by more than 0.5 grey levels.
    """
    out = Path(out)
    check_target(out, ".tflite", overwrite)
    require_tensorflow_for_files()
    images = _sized_photograph(content, size, bit_depth, on_line)[np.newaxis].astype("float32")
    model = load_style_network(network)
    fixed = keras.Input(images.shape[1:], name="images")
    sized = keras.Model(fixed, model(fixed))
    expected = as_array(model(images, training=False))

    def write(partial_file: Path) -> None:
        write_litert(scratch / "source", partial_file, "float32")
        answers = verify.run("litert", partial_file, scratch / "images.npy", scratch)
        differences.append(np.abs(answers.probabilities - expected))
        if not differences[0].max() <= _FLOAT32_DIFFERENCE:
            raise ExportError(
                f"litert: the picture differs from the model's by up to {differences[0].max():.3g} "
                f"grey levels (tolerance {_FLOAT32_DIFFERENCE})"
            )

    differences: list[np.ndarray] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        np.save(scratch / "images.npy", images)
        write_source(sized, scratch / "source", "stylized")
        write_atomically(out, write)
    return float(differences[0].mean()), float(differences[0].max())


def _sized_photograph(
    path: str | os.PathLike[str],
    size: int | None,
    bit_depth: data.BitDepth,
    on_line: Callable[[str], None],
) -> np.ndarray:
    """Return a photograph for a style network. ValueError: it is too small."""
    photograph = scaled_picture(path, size, bit_depth)
    if line := few_levels_line([path], bit_depth):
        on_line(line)
    height, width = photograph.shape[:2]
    if min(height, width) < _LEAST_SIDE:
        raise ValueError(
            f"{path} is {height} x {width} pixels; a style network needs at least {_LEAST_SIDE} in "
            "height and width: enlarge it, or pass a size (--size)"
        )
    return photograph


def load_style_network(path: str | os.PathLike[str]) -> keras.Model:
    """Return the network of a .keras file. ValueError: it is damaged, or maps no image to one."""
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no style network at {path}")
    if path.suffix.lower() != ".keras":
        raise ValueError(f"a style network is a .keras file, not {path.name!r}")
    model = load_keras_file(path)
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if shapes != ((None, None, None, 3),) * 2:
        raise ValueError(
            f"{path} is no style network: it maps {shapes[0]} to {shapes[1]}, not images of any "
            "size to images"
        )
    return model


def _check(settings: StyleTraining, steps: int, every: int) -> None:
    for name, number, least in (
        ("steps", steps, 1),
        ("every", every, 1),
        ("size", settings.size, 32),
        ("batch_size", settings.batch_size, 1),
    ):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, not {number}")
    if steps % every:
        raise ValueError(f"steps must be a multiple of every, {every}, not {steps}")
    if not 0 < settings.learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be a positive number, not {settings.learning_rate}")


def _photographs(
    folder: str | os.PathLike[str],
    bit_depth: data.BitDepth,
    on_line: Callable[[str], None],
) -> data.Split:
    """Return the images below a folder. Say what is not read."""
    if not expanded(folder).is_dir():
        raise FileNotFoundError(f"there is no folder of photographs at {folder}")
    files = image_files([folder])
    for left_out in files.left_out:
        on_line(f"not read: {left_out}")
    count = len(files.paths)
    paths = np.array(files.paths)
    if line := few_levels_line(files.paths, bit_depth):
        on_line(line)
    labels = np.zeros(count, "int32")
    return data.Split("photographs", count, labels=labels, paths=paths, bit_depth=bit_depth)


def _batches(split: data.Split, settings: StyleTraining) -> Any:
    """Return endless batches (photographs, the same photographs), uint8 in [0, 255]."""
    scale = settings.size, round(1.5 * settings.size)
    return data.training_dataset(
        split,
        settings.batch_size,
        partial(augment.train_image, size=settings.size, scale=scale),
        seed=settings.seed,
        batch_transform=lambda images, labels, seed: (images, images),
    )

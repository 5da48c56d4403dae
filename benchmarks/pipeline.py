"""Measure how many training images a second input pipelines make from the same files.

python benchmarks/pipeline.py DIR [--stages | --variants] [--rounds 5] [--json OUT]

DIR holds photographs (JPEG files, at any depth). Each pipeline rescales an image to a smallest side
drawn from [256, 512], takes a random 224x224 crop, mirrors half of the crops, jitters brightness,
contrast, saturation (0.4 each) and hue (0.1), and makes uint8 batches of 128. "keras_vgg" is what
keras-vgg train feeds a network: it draws the amounts of the jitter, and leaves the colours to the
training step. In "keras_vgg whole" the pipeline colours the images, as the others do. In each
round, the pipelines run one after another for some seconds, each in a new process. The figures are
the median and the range over the rounds. --stages measures the steps of keras_vgg instead; the last
one is the colours of whole batches alone, as a training step on this processor computes them.
--variants compares it with itself: the photographs packed with a longest side of 512, in grey, and
with JPEGs' colours repeated instead of interpolated (which keras_vgg does not do). "pillow" needs
PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_vgg import data

SIZE, BATCH, SCALE, JITTER, HUE = 224, 128, (256, 512), 0.4, 0.1
STRENGTHS = {"brightness": JITTER, "contrast": JITTER, "saturation": JITTER, "hue": HUE}
COMPARED = ("keras_vgg", "keras_vgg whole", "tf.image", "keras layers", "pillow", "decode only")
VARIANTS = ("keras_vgg", "packed at 512", "grey", "colours repeated")
STAGES = (
    "read", "decode whole", "decode window", "+ resample", "+ flip", "+ colour = all",
    "colours in the step",
)  # fmt: skip


def files_in(directory: Path) -> list[str]:
    files = sorted(
        str(path)
        for path in directory.rglob("*")
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file()
    )
    if not files:
        raise SystemExit(f"there are no JPEG files in {directory}")
    return files


# --- keras_vgg, and its stages ---------------------------------------------------------------


def repetitions(files: list[str]) -> int:
    """Return how often files are repeated, so that an epoch has batches enough."""
    return -(-max(4096, len(files)) // len(files))


def training_batches(split: data.Split, color: str = "rgb", color_apart: bool = True) -> Iterator:
    from functools import partial

    from keras_vgg import augment, data

    function: Any = augment.train_image_uncolored if color_apart else augment.train_image
    transform = partial(function, size=SIZE, scale=SCALE, **STRENGTHS)
    transform = augment.in_grey(transform) if color == "grey" else transform
    return iter(data.training_dataset(split, BATCH, transform, seed=0))


def split_of(files: list[str]) -> data.Split:
    import numpy as np

    from keras_vgg import data

    labels = np.zeros(len(files), np.int32)
    return data.Split("train", len(files), labels=labels, paths=np.array(files, dtype=object))


def ours(files: list[str]) -> Iterator:
    return training_batches(split_of(files * repetitions(files)))


def whole(files: list[str]) -> Iterator:
    return training_batches(split_of(files * repetitions(files)), color_apart=False)


def colors_of_batches(files: list[str]) -> Iterator:
    from keras_vgg.fit.color_step import colored

    pair = next(ours(files))[0]
    while True:
        yield colored(pair)


def grey(files: list[str]) -> Iterator:
    return training_batches(split_of(files * repetitions(files)), "grey")


def packed(files: list[str]) -> Iterator:
    import dataclasses
    import tempfile

    from keras_vgg import data

    source = data.Source("photographs", ("any",), split_of(files), None, None)
    with tempfile.TemporaryDirectory() as folder:
        data.pack(source, folder, max_side=512)
        split = data.load_source(f"records:{folder}").train
        assert split.records is not None
        shards = split.records.shards * repetitions(files)
        records = dataclasses.replace(split.records, shards=shards)
        split = dataclasses.replace(split, size=records.size, records=records)
        yield from training_batches(split)


def colours_repeated(files: list[str]) -> Iterator:
    from functools import partial

    import tensorflow as tf

    # The stub lacks both names.
    decode = tf.io.decode_and_crop_jpeg  # pyright: ignore[reportAttributeAccessIssue]
    decode = partial(decode, fancy_upscaling=False)
    tf.io.decode_and_crop_jpeg = decode  # pyright: ignore[reportAttributeAccessIssue]
    return ours(files)


def mapped(files: list[str], of_image: Callable) -> Iterator:
    """Return the usual tf.data pipeline around a function of (path, seed)."""
    import tensorflow as tf

    paths = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    images = tf.data.Dataset.zip(paths, tf.data.Dataset.random(seed=0).batch(2))
    images = images.map(of_image, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(images.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def stage(name: str) -> Callable[[list[str]], Iterator]:
    """Return the usual pipeline with keras_vgg's work up to a stage."""

    def run(files: list[str]) -> Iterator:
        import tensorflow as tf

        from keras_vgg import augment
        from keras_vgg.data.decode import decode, transform_encoded

        def window_only(image: tf.Tensor | augment.Picture, seed: tf.Tensor) -> tf.Tensor:
            image = augment.picture_of(image)
            draws = tf.random.stateless_uniform([3], seed)
            window = augment.random_window(image.sides, draws, size=SIZE, scale=SCALE)
            return tf.shape(augment.source_window(image, window))

        def of_image(path: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
            encoded = tf.io.read_file(path)
            if name == "read":
                return tf.strings.length(encoded)
            if name == "decode whole":
                return tf.shape(decode(encoded))
            if name == "decode window":
                return transform_encoded(encoded, lambda image: window_only(image, seed))
            options = {"size": SIZE, "scale": SCALE, "flip": name != "+ resample"}
            if name == "+ colour = all":
                options |= STRENGTHS
            return transform_encoded(
                encoded, lambda image: augment.train_image(image, seed, **options)
            )

        return mapped(files, of_image)

    return run


# --- the others ------------------------------------------------------------------------------


def rescaled(path, seed):
    """Decode a whole file and resize the whole image, as the two TensorFlow peers do first."""
    import tensorflow as tf

    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    side = tf.random.uniform([], SCALE[0], SCALE[1] + 1, tf.int32)
    sides = tf.math.ceil(sides * tf.cast(side, tf.float32) / tf.reduce_min(sides))
    return tf.image.resize(image, tf.cast(sides, tf.int32))


def tf_image(files: list[str]) -> Iterator:
    import tensorflow as tf

    def of_image(path, seed):
        image = tf.image.random_crop(rescaled(path, seed), [SIZE, SIZE, 3])
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_brightness(image / 255.0, JITTER)
        image = tf.image.random_contrast(image, 1 - JITTER, 1 + JITTER)
        image = tf.image.random_saturation(image, 1 - JITTER, 1 + JITTER)
        image = tf.image.random_hue(image, HUE)
        return tf.cast(tf.clip_by_value(255.0 * image, 0.0, 255.0), tf.uint8)

    return mapped(files, of_image)


def keras_layers(files: list[str]) -> Iterator:
    import keras
    import tensorflow as tf

    layers = [
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomColorJitter(
            value_range=(0, 255),
            brightness_factor=JITTER,
            contrast_factor=JITTER,
            # In these two options, 0.5 changes nothing.
            saturation_factor=(0.5 - JITTER / 2, 0.5 + JITTER / 2),
            hue_factor=HUE,
        ),
    ]

    def of_image(path, seed):
        # RandomCrop needs known sides, so tf.image takes the crop.
        image = tf.image.random_crop(rescaled(path, seed), [SIZE, SIZE, 3])
        for layer in layers:
            image = layer(image, training=True)
        return tf.cast(tf.clip_by_value(image, 0.0, 255.0), tf.uint8)

    return mapped(files, of_image)


def pillow(files: list[str]) -> Iterator:
    """torchvision's way: Pillow in the worker processes of PyTorch's DataLoader, one a core."""
    import random

    import numpy as np
    import torch
    from PIL import Image, ImageEnhance

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> torch.Tensor:
            image = Image.open(files[index % len(files)]).convert("RGB")
            ratio = random.randint(*SCALE) / min(image.size)
            width, height = (max(SIZE, round(side * ratio)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = random.randint(0, width - SIZE), random.randint(0, height - SIZE)
            image = image.crop((left, top, left + SIZE, top + SIZE))
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(random.uniform(1 - JITTER, 1 + JITTER))
            hue, saturation, value = image.convert("HSV").split()
            turned = np.asarray(hue) + np.uint8(round(255 * random.uniform(-HUE, HUE)) % 256)
            bands = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
            return torch.from_numpy(np.array(Image.merge("HSV", bands).convert("RGB")))

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(Images(), BATCH, num_workers=cores(), shuffle=True)
    return iter(loader)


def decode_only(files: list[str]) -> Iterator:
    import tensorflow as tf

    def of_image(path, seed):
        return tf.shape(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))

    return mapped(files, of_image)


PIPELINES: dict[str, Callable[[list[str]], Iterator]] = {
    "keras_vgg": ours,
    "keras_vgg whole": whole,
    "tf.image": tf_image,
    "keras layers": keras_layers,
    "pillow": pillow,
    "decode only": decode_only,
    "packed at 512": packed,
    "grey": grey,
    "colours repeated": colours_repeated,
    **{name: stage(name) for name in STAGES[:-1]},
    STAGES[-1]: colors_of_batches,
}


# --- measuring -------------------------------------------------------------------------------


def cores() -> int:
    return len(os.sched_getaffinity(0))


def images_per_second(batches: Iterator, seconds: float) -> float:
    """Return the images a second of batches of BATCH, after the first few."""
    for _ in range(4):  # these trace, compile, fill buffers and start AUTOTUNE
        next(batches)
    count, start = 0, time.perf_counter()
    while (elapsed_seconds := time.perf_counter() - start) < seconds:
        next(batches)
        count += BATCH
    return count / elapsed_seconds


def in_new_process(script: str, only: list[str], arguments: argparse.Namespace) -> float:
    """Return the number that `script DIR --only ...` prints last."""
    command = [sys.executable, script, str(arguments.directory), "--only", *only]
    command += ["--seconds", str(arguments.seconds)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if process.returncode:
        raise SystemExit(f"{', '.join(only)} failed:\n{process.stderr}")
    return float(process.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="a folder of JPEG photographs")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each pipeline (5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of a run (6)")
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--stages", action="store_true", help="measure keras_vgg's steps, not its peers"
    )
    others.add_argument(
        "--variants", action="store_true", help="measure keras_vgg packed, in grey and so on"
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--only", choices=PIPELINES, help="run one pipeline once in this process")
    arguments = parser.parse_args()
    files = files_in(arguments.directory)
    if arguments.only:
        print(images_per_second(PIPELINES[arguments.only](files), arguments.seconds))
        return
    names = STAGES if arguments.stages else VARIANTS if arguments.variants else COMPARED
    runs: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        for name in names:
            runs[name].append(in_new_process(__file__, [name], arguments))
            print(f"round {number + 1}, {name}: {runs[name][-1]:.0f} images/s", file=sys.stderr)
    (stage_table if arguments.stages else table)(runs)
    if arguments.json:
        environment = {"cores": cores(), "machine": platform.platform(), "files": len(files)}
        arguments.json.write_text(json.dumps({**environment, "images_per_second": runs}, indent=2))


def table(runs: dict[str, list[float]]) -> None:
    print(f"{cores()} cores; images/s: median (range) of {len(runs['keras_vgg'])} runs\n")
    print("| pipeline | images/s | per core | keras_vgg is faster by |\n|---|---|---|---|")
    for name in runs:
        median = statistics.median(runs[name])
        # A ratio for each round, because the machine's speed drifts.
        ratios = [own / other for own, other in zip(runs["keras_vgg"], runs[name], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        spread = f"{median:.0f} ({min(runs[name]):.0f} to {max(runs[name]):.0f})"
        print(f"| {name} | {spread} | {median / cores():.0f} | {ratio} |")


def stage_table(runs: dict[str, list[float]]) -> None:
    print(f"{cores()} cores; median of {len(runs[STAGES[0]])} runs\n")
    print("| up to this stage | images/s | ms for an image on a core |\n|---|---|---|")
    for name in STAGES:
        median = statistics.median(runs[name])
        print(f"| {name} | {median:.0f} | {1000 * cores() / median:.2f} |")


if __name__ == "__main__":
    main()

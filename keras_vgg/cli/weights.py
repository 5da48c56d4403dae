"""keras-vgg weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Weights:
    """List the published ImageNet checkpoints, or print what a weight file holds.

    Without a file, the command lists each checkpoint's network, size, preprocessing, published
    accuracy, licence, source and hash. weights="imagenet" means Keras' checkpoint for VGG16 and
    VGG19 without batch norm, and torchvision's for the other networks.
    """

    file: tyro.conf.Positional[Path | None] = None
    """A weight file, the folder of a KerasHub preset, a run directory or hf://OWNER/NAME."""

    def __call__(self) -> None:
        if self.file is None:
            self._list()
            return
        from keras_vgg import convert
        from keras_vgg.weights import read_weights
        from keras_vgg.weights.tensors import is_base

        weights = read_weights(self.file)
        try:
            network = convert.recognise(weights)
        except ValueError:
            # The file may have a head that is not VGG's.
            if not any(map(is_base, weights.tensors)):
                raise
            weights = weights.base()
            network = convert.recognise(weights)
        print(f"{self.file}: {convert.describe(network)}")
        if weights.preprocessing is None:
            print("input: the file does not state the preprocessing of its network")
        else:
            config = weights.preprocessing.get_config()
            mean, std = (tuple(round(v, 3) for v in config[name]) for name in ("mean", "std"))
            origin = " (assumed: the file does not state it)" if weights.assumed else ""
            print(f"input: {config['channel_order'].upper()}, minus {mean}, over {std}{origin}")
        if weights.note:
            print(weights.note)

    def _list(self) -> None:
        from keras_vgg.weights import CHECKPOINTS

        headers = ("network", "top", "MB", "top-1", "top-5", "preprocessing", "licence")
        table = new_table("published ImageNet checkpoints, 1000 classes, 224x224", *headers)
        for c in CHECKPOINTS:
            table.add_row(
                c.network,
                "yes" if c.include_top else "no",
                f"{c.bytes / 1e6:.1f}",
                f"{c.top1:.2f}",
                f"{c.top5:.2f}",
                c.preprocessing,
                c.licence,
            )
        show(table)
        for c in CHECKPOINTS:
            source = f"the Hugging Face hub, {c.location}, {c.file}" if c.on_hub else c.location
            print(f"{c.name}: {source}; {c.hash or 'SHA-256 as the hub states it'}")

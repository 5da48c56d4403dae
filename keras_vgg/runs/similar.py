"""Find the photographs of a folder that are most like others: near-duplicates, then neighbours."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_vgg import retrieval
from keras_vgg.architecture import MINIMUM_SIZE
from keras_vgg.augment import to_grey
from keras_vgg.data import BitDepth
from keras_vgg.data.image_loader import ImageLoader
from keras_vgg.features import channel_axis
from keras_vgg.files import cache_folder
from keras_vgg.hardware import own_cores
from keras_vgg.image_paths import expanded, require_list
from keras_vgg.runs.memory import memory_error_explained
from keras_vgg.runs.photo_index import open_index, update_index
from keras_vgg.runs.trained_base import base_network, weights_identity
from keras_vgg.transfer import embed
from keras_vgg.transfer.descriptors import Pooling

_LONGEST = 4  # times the smallest side; of a longer image the middle part is described
_FROM_FOLDER = "folder"
_BATCH, _BATCH_SIZE = 16, 224  # so many images of so many pixels have room; of larger ones fewer


@dataclass(frozen=True)
class Description:
    """How an image becomes a descriptor.

    Attributes:
        weights: "imagenet", "torchvision", a weight file or a run directory, as `read_weights`.
        configuration: As for `base_network`.
        pooling: As for `embed`.
        layer: As for `embed`.
        size: The smallest side to which an image is rescaled.
        bit_depth: Which bits of a 16-bit PNG file carry the image, as `keras_vgg.data.decode`.
    """

    weights: str = "imagenet"
    configuration: str = "D"
    pooling: Pooling = "gem"
    layer: str | None = None
    size: int = 224
    bit_depth: BitDepth = "16"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers; a weight file by its content."""
        settings = asdict(self) | {"weights": weights_identity(self.weights)}
        if self.bit_depth == "16":  # indexes of earlier versions do not state it
            del settings["bit_depth"]
        return settings


@dataclass(frozen=True)
class Match:
    """A photograph that was found.

    Attributes:
        path: The file.
        similarity: The cosine similarity of the descriptors, at most 1.
        bits: The number of bits in which the perceptual hashes differ; 256 without structure.
        near_duplicate: Whether the two look the same: `keras_vgg.retrieval.NEAR` bits at most.
    """

    path: str
    similarity: float
    bits: int
    near_duplicate: bool


@dataclass(frozen=True)
class SearchAnswer:
    """What was found for one query.

    Attributes:
        query: The query's file.
        matches: Near-duplicates first, then by similarity. Without the query's own file.
        reason: Why the query cannot be read; empty for an answer.
    """

    query: str
    matches: tuple[Match, ...]
    reason: str = ""


class PhotoSearch:
    """A search in a folder of photographs, with an index on disk.

    The folder is read when the search is made: only files that are new, or have another size or
    time than in the index, are described.

    Args:
        folder: The folder; images at any depth are found.
        description: How an image becomes a descriptor.
        whitening: "folder": learnt on the folder's descriptors. A path: the file of a
            `keras_vgg.retrieval.Whitening`. None: none.
        index: The index's file. None: in the user's cache, one for each folder and description.
        verbose: Show a progress bar.

    Attributes:
        index: The index of the folder.
        update: What the search did to the index.
        index_path: The index's file.

    Raises:
        FileNotFoundError: there is no such folder, weight file or whitening.
        ValueError: the folder has no image that can be read; a file is damaged; the index is of
            other settings; an option does not fit.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        description: Description | None = None,
        *,
        whitening: str | os.PathLike[str] | None = None,
        index: str | os.PathLike[str] | None = None,
        verbose: bool = False,
    ) -> None:
        folder = expanded(folder)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "there is no such folder"
            raise FileNotFoundError(f"{folder}: {what}")
        self._folder = folder
        self._description = Description() if description is None else description
        if self._description.size < MINIMUM_SIZE:
            raise ValueError(
                f"size must be at least {MINIMUM_SIZE} pixels, not {self._description.size}"
            )
        loaded = None
        if whitening is not None and os.fspath(whitening) != _FROM_FOLDER:
            loaded = retrieval.load_whitening(os.fspath(whitening))
        settings = self._description.settings
        self.index_path = _default_index(folder, settings) if index is None else expanded(index)
        known = open_index(self.index_path, folder, settings)
        self.index, self.update = update_index(known, self.index_path, self._describe, verbose)
        if self.index.descriptors is None:
            first = self.index.bad[0]
            raise ValueError(
                f"none of the {len(self.index.bad):,} files of {folder} can be read as an image; "
                f"the first is {first.path}: {first.reason}"
            )
        if whitening is not None and loaded is None:
            loaded = retrieval.learn_whitening(self.index.descriptors)
        self._whitening = loaded
        descriptors = self.index.descriptors
        self._descriptors = descriptors if loaded is None else loaded(descriptors)

    def __call__(self, queries: Sequence[str], count: int = 10) -> Iterator[SearchAnswer]:
        """Yield what is most like each query: at most `count` photographs.

        A query that cannot be read gets an answer with a reason.

        Raises:
            ValueError: `count` is smaller than 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        require_list(queries)
        for query in queries:
            descriptors, hashes, reasons = self._describe([query])
            if reasons:
                yield SearchAnswer(query, (), reasons[query])
                continue
            mirrored = self._mirrored_hash(query)
            yield SearchAnswer(
                query, self._matches(query, descriptors, (hashes[0], mirrored), count)
            )

    def _matches(
        self, query: str, descriptors: np.ndarray, hashes: Sequence[np.ndarray], count: int
    ) -> tuple[Match, ...]:
        """Return the matches of a query; its hashes are its own and its mirror image's."""
        if self._whitening is not None:
            descriptors = self._whitening(descriptors)
        similarities = self._descriptors @ descriptors[0]
        assert self.index.hashes is not None, "the constructor checks it"
        bits = np.min([retrieval.hash_distances(self.index.hashes, h) for h in hashes], axis=0)
        near = bits <= retrieval.NEAR
        matches = []
        for row in np.lexsort((-similarities, ~near)):
            path = os.path.join(self._folder, *self.index.files[row].path.split("/"))
            if len(matches) == count:
                break
            if os.path.realpath(path) != os.path.realpath(query):
                similarity = float(similarities[row])
                matches.append(Match(path, similarity, int(bits[row]), bool(near[row])))
        return tuple(matches)

    def _mirrored_hash(self, query: str) -> np.ndarray:
        return retrieval.perceptual_hash(self._image(query)[:, ::-1])

    def _describe(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        """Return the descriptors and hashes of files, and the reason for each bad one."""
        with ThreadPoolExecutor(min(8, own_cores())) as pool:
            loaded = list(pool.map(self._image_or_reason, paths))
        reasons = {
            path: image for path, image in zip(paths, loaded, strict=True) if type(image) is str
        }
        images = [image for image in loaded if isinstance(image, np.ndarray)]
        if not images:
            return np.zeros((0, 0), "float32"), np.zeros((0, 32), "uint8"), reasons
        hashes = np.stack([retrieval.perceptual_hash(image) for image in images])
        if self._network.inputs[0].shape[channel_axis()] == 1:
            images = [np.asarray(to_grey(image)) for image in images]
        size = self._description.size
        with memory_error_explained("choose a smaller size (--size)"):
            descriptors = embed(
                self._network,
                images,
                layer=self._description.layer,
                pooling=self._description.pooling,
                flip=False,
                batch_size=max(1, min(_BATCH, _BATCH * _BATCH_SIZE**2 // size**2)),
            )
        return descriptors, hashes, reasons

    def _image_or_reason(self, path: str) -> np.ndarray | str:
        try:
            return self._image(path)
        except (OSError, ValueError) as error:
            return str(error)

    def _image(self, path: str) -> np.ndarray:
        return _fitted(self._loader.of_file(path), self._description.size)

    @cached_property
    def _loader(self) -> ImageLoader:
        return ImageLoader(lambda image: image, self._description.bit_depth)

    @cached_property
    def _network(self) -> keras.Model:
        return base_network(self._description.weights, self._description.configuration)


def _fitted(image: np.ndarray, size: int) -> np.ndarray:
    """Return an image whose smallest side is `size`: uint8 [h, w, 3] -> uint8 [h', w', 3]."""
    sides = np.array(image.shape[:2])
    kept = np.minimum(sides, _LONGEST * sides.min())
    top, left = (sides - kept) // 2
    part = image[top : top + kept[0], left : left + kept[1]]
    height, width = np.maximum(size, np.rint(kept * (size / kept.min()))).astype(int).tolist()
    resized = Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _default_index(folder: Path, settings: dict[str, Any]) -> Path:
    text = json.dumps([os.path.realpath(folder), settings], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    name = folder.resolve().name or "root"
    if len(os.fsencode(name)) > 200:  # a file's name may have 255 bytes
        name = "folder"
    return cache_folder() / "search" / f"{name}-{digest}.npz"

"""Classify many images with one network: decoded in threads, in batches of few shapes."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vgg.console import progress_bars
from keras_vgg.data.image_loader import ImageLoader
from keras_vgg.finite import check_range, require_finite_images
from keras_vgg.hardware import own_cores
from keras_vgg.run import Run
from keras_vgg.runs.classifier import Overrides, open_classifier
from keras_vgg.runs.memory import memory_error_explained

if TYPE_CHECKING:
    from keras_vgg.augment import Resize
    from keras_vgg.data import BitDepth

UNKNOWN = "unknown"
_PIXELS = 2**21  # in a batch at most, as in an evaluation
_READ_AHEAD = 2  # batches of images in memory


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one image.

    Attributes:
        path: The image's file; None: it was an array or a picture.
        class_names: One name for each class.
        probabilities: [classes] float32; None: the file could not be read.
        reason: Why the file could not be read; empty for an answer.
        threshold: The least probability of the best class of an image that is known; None: every
            image is known.
        label_thresholds: With several labels an image, [classes]: the image has a label from here
            on. None: an image has one label.
    """

    path: str | None
    class_names: tuple[str, ...] = field(repr=False)
    probabilities: np.ndarray | None
    reason: str = ""
    threshold: float | None = None
    label_thresholds: np.ndarray | None = field(default=None, repr=False)

    @property
    def labels(self) -> list[tuple[str, float]]:
        """Return (label, probability) of all labels that the image has, the most probable first.

        Empty without `label_thresholds`.
        """
        if self.probabilities is None or self.label_thresholds is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")
        has = self.probabilities >= self.label_thresholds
        return [(self.class_names[int(i)], float(self.probabilities[i])) for i in order if has[i]]

    @property
    def name(self) -> str | None:
        """The most probable class, or "unknown"; None: the file could not be read."""
        if self.probabilities is None:
            return None
        name, probability = self.ranked(1)[0]
        return UNKNOWN if self.threshold is not None and probability < self.threshold else name

    def ranked(self, top: int | None = 5) -> list[tuple[str, float]]:
        """Return (class, probability) of the most probable classes, the best first.

        Args:
            top: How many; None: all.
        """
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:top]
        return [(self.class_names[int(i)], float(self.probabilities[i])) for i in order]


class Predictor:
    """A network that classifies images, loaded once for many calls.

    An image may be a path, a PIL image, or an array [h, w, 3] or [h, w] with values in [0, 255], of
    any size. Batches are padded to one of four sizes, so that a network is traced for no more
    shapes. Memory does not grow with the number of images or calls.

    Args:
        model: A run, or the path of a run directory, a .keras file, an exported SavedModel folder,
            .tflite, .onnx or OpenVINO .xml file.
        class_names: Of a file that does not state them.
        eval_scale: Of a file that does not state it: the smallest side to which an image is
            rescaled.
        resize: Of a file that does not state it: "crop", "squash" or "pad", as in `Recipe`.
        bit_depth: Of a file that does not state it: what becomes of 16-bit PNG files, as in
            `Recipe`.
        calibrated: Divide a run's scores by the temperature in its calibration.json. None: if there
            is one. An exported file has the temperature inside, or none.
        unknown: A share of the validation images, such as 0.95. An image is unknown if its most
            probable class is below the probability that this share reaches.
        batch_size: The most images that run together; fewer if they are large.

    Attributes:
        class_names: One name for each class.
        several_labels: Whether an image may have several labels: see `Answer.labels`.
        bit_depth: Which bits of a 16-bit PNG file carry the image.
        notes: What a user must know about the answers, such as what a file does not state.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: the path is none of these, or is damaged; no epoch of the run has ended;
            calibration.json is missing or of another model; `calibrated` is not as an exported file
            is; an argument does not fit.

    Example:
        ```python
        import numpy as np
        from keras_vgg import Predictor, vgg

        vgg(
            "A",
            weights=None,
            input_shape=(32, 32, 3),
            classes=2,
            width_multiplier=1 / 16,
            include_preprocessing=True,
        ).save("cats.keras")
        predictor = Predictor("cats.keras", class_names=["cat", "dog"])
        (answer,) = predictor([np.zeros((40, 50, 3), "uint8")])
        print(answer.name, answer.ranked())
        ```
    """

    def __init__(
        self,
        model: Run | str | os.PathLike[str],
        *,
        class_names: Sequence[str] | None = None,
        eval_scale: int | None = None,
        resize: Resize | None = None,
        bit_depth: BitDepth | None = None,
        calibrated: bool | None = None,
        unknown: float | None = None,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        classifier = open_classifier(
            model if isinstance(model, Run) else Path(model),
            Overrides(class_names, eval_scale, resize, bit_depth),
            calibrated=calibrated,
            unknown=unknown,
        )
        self.class_names, self.notes = classifier.class_names, classifier.notes
        self.bit_depth: BitDepth = classifier.bit_depth
        self._network, self._threshold = classifier.run, classifier.threshold
        self._label_thresholds = classifier.label_thresholds
        self._batch_size = min(batch_size, max(1, _PIXELS // classifier.size**2))
        # With five sizes, TensorFlow would warn of frequent tracing.
        parts = (self._batch_size // divisor for divisor in (16, 4, 1))
        self._sizes = sorted({1, *(size for size in parts if size)})
        self._loader = ImageLoader(classifier.transform, classifier.bit_depth)

    @property
    def several_labels(self) -> bool:
        return self._label_thresholds is not None

    def __call__(self, images: Iterable[Any]) -> list[Answer]:
        """Return the answers to some images, in their order; see `stream`."""
        return list(self.stream(images))

    def stream(
        self, images: Iterable[Any], *, total: int | None = None, verbose: bool = False
    ) -> Generator[Answer, None, None]:
        """Yield the answers to images one after the other, in their order.

        A file that is missing or damaged gets an answer with a reason.

        Args:
            images: Paths, PIL images and arrays, or one array [n, h, w, 3]; read as the answers
                are taken.
            total: How many there are, for the progress bar.
            verbose: Show a progress bar on stderr.

        Raises:
            ValueError: an array or a PIL image is no image of one or three channels in [0, 255].
            MemoryError: the device has too little memory for a batch.
        """
        one_array = isinstance(images, np.ndarray) and images.ndim != 4
        if one_array or isinstance(images, (str, bytes, os.PathLike)):
            raise ValueError("images must be a list of images; put the one image into a list")
        if total is None and isinstance(images, (Sequence, np.ndarray)):
            total = len(images)
        threads = min(8, own_cores())
        with ThreadPoolExecutor(threads) as pool, progress_bars(verbose) as progress:
            task = progress.add_task("classifying", total=total)
            waiting: collections.deque[Future] = collections.deque()
            with contextlib.ExitStack() as stack:
                stack.callback(pool.shutdown, wait=True, cancel_futures=True)
                for image in images:
                    waiting.append(pool.submit(self._prepared, image))
                    if len(waiting) == _READ_AHEAD * self._batch_size:
                        yield from self._answers(waiting, self._batch_size)
                        progress.advance(task, self._batch_size)
                while waiting:
                    count = min(len(waiting), self._batch_size)
                    yield from self._answers(waiting, count)
                    progress.advance(task, count)

    def _prepared(self, image: Any) -> tuple[str | None, np.ndarray | None, str]:
        """Return the path, the image for the network and the reason of a bad file."""
        if not isinstance(image, (str, bytes, os.PathLike)):
            return None, self._loader.of_array(_pixels(image)), ""
        path = os.fsdecode(image)
        try:
            return path, self._loader.of_file(path), ""
        except (OSError, ValueError) as error:
            return path, None, str(error)

    def _answers(self, waiting: collections.deque[Future], count: int) -> Iterator[Answer]:
        """Yield the answers to the first images that wait, which run as one batch."""
        prepared = [waiting.popleft().result() for _ in range(count)]
        views = [view for _, view, _ in prepared if view is not None]
        answers = iter(self._run(views))
        for path, view, why in prepared:
            probabilities = None if view is None else next(answers)
            yield Answer(
                path, self.class_names, probabilities, why, self._threshold, self._label_thresholds
            )

    @memory_error_explained(
        "end what else holds the device's memory, or in Python give a smaller batch_size"
    )
    def _run(self, views: list[np.ndarray]) -> np.ndarray | list:
        """Return the probabilities of images, [n, classes]; the batch is padded with zeros."""
        if not views:
            return []
        size = next(size for size in self._sizes if size >= len(views))
        batch = np.zeros((size, *views[0].shape), np.float32)
        batch[: len(views)] = views
        return self._network(batch)[: len(views)].copy()


def _pixels(image: Any) -> np.ndarray:
    """Return an array or a PIL image as [h, w, 3] RGB in [0, 255].

    Raises:
        ValueError: it is another thing, has other channels, or values outside the range.
    """
    if hasattr(image, "getexif") and hasattr(image, "convert"):
        from PIL import ImageOps

        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"a PIL image of mode {image.mode} has more than 8 bits; pass the path of its file,"
                " which is decoded as bit_depth says"
            )
        image = ImageOps.exif_transpose(image).convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., np.newaxis]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"an image must be a path, a PIL image, or an array [h, w, 3] or [h, w], not"
            f" {type(image).__name__} {pixels.shape}"
        )
    if pixels.dtype.kind not in "uif":
        raise ValueError(f"an image must have numbers in [0, 255], not {pixels.dtype}")
    require_finite_images(pixels, "an image holds")
    check_range(pixels, subject="an image", advice="pass values in [0, 255]")
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))

"""The page's answers: the classes of a picture, and the heat of the best class over it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_vgg import data, evaluation, explain
from keras_vgg.augment.geometry import central_window
from keras_vgg.data.decode import MAX_UPLOAD_PIXELS
from keras_vgg.data.sources import without_decoding
from keras_vgg.evaluation.temperature import apply_temperature
from keras_vgg.fit import evaluation_transform, load_source
from keras_vgg.run import Run
from keras_vgg.runs.calibration import read_calibration
from keras_vgg.runs.explain import place_heat
from keras_vgg.runs.memory import memory_error_explained
from keras_vgg.runs.network import open_network
from keras_vgg.runs.several_labels import thresholds_and_notes

_THUMBNAIL = 96  # pixels of the longer side at most


class Answer(NamedTuple):
    """The answer to one picture.

    Attributes:
        classes: (name, probability), the best first. With several labels a picture, all labels that
            it has are among them.
        heat: uint8 [h, w, 3], the picture with the heat over it.
        seen: The share of the picture that the network saw, in (0, 1].
        thresholds: With several labels a picture: the threshold of each of `classes`. The picture
            has a label whose probability reaches it. None: a picture has one class.
    """

    classes: list[tuple[str, float]]
    heat: np.ndarray
    seen: float
    thresholds: list[float] | None = None


class Answerer:
    """A run's network, loaded once, which answers one picture after another.

    Args:
        run: A finished run.
        layer: The layer for Grad-CAM, as for `explain.grad_cam`. None: the last convolution.
        top: How many classes an answer has; with several labels a picture, more if it has more.

    Attributes:
        notes: What a user must know about the answers.

    Raises:
        ValueError: no epoch of the run has ended, or its network has no such layer.
    """

    def __init__(self, run: Run, layer: str | None = None, top: int = 5) -> None:
        self._model, self._names = run.model(), run.class_names
        self._network = evaluation.runner(
            open_network(run, self._model), evaluation.Protocol("center"), len(self._names)
        )
        self._transform = evaluation_transform(run.recipe)
        self._layer, self._top = layer, top
        self._bit_depth: data.BitDepth = run.recipe.bit_depth
        self._calibration = None if run.several_labels else read_calibration(run)
        self._thresholds: np.ndarray | None = None
        self.notes: tuple[str, ...] = ()
        if run.several_labels:
            self._thresholds, self.notes = thresholds_and_notes(run)
        elif self._calibration is not None and self._calibration.few_images:
            self.notes = (self._calibration.few_images,)
        # An unknown layer must raise here, and tracing must not delay the first answer.
        self.of_image(np.zeros((run.recipe.image_size, run.recipe.image_size, 3), np.uint8))

    def of_file(self, path: str | Path) -> Answer:
        """Return the answer to an image file, decoded like the images of a data set.

        Raises:
            FileNotFoundError, ValueError: the file does not exist, is not an image, or has more
                than MAX_UPLOAD_PIXELS. The message names the file.
        """
        return self.of_image(data.load_image(path, MAX_UPLOAD_PIXELS, self._bit_depth))

    @memory_error_explained("end what else holds the device's memory, or choose a smaller picture")
    def of_image(self, image: np.ndarray) -> Answer:
        """Return the answer to uint8 [h, w, 3] RGB, with the classes of `runs.predict_files`.

        Raises:
            MemoryError: the device has too little memory.
        """
        views = self._transform(image).numpy()[np.newaxis]
        (probabilities,) = self._network(views)
        best = int(probabilities.argmax())
        if self._calibration is not None:
            probabilities = apply_temperature(probabilities, self._calibration.temperature)
        (heat,) = explain.grad_cam(self._model, views, classes=best, layer=self._layer)
        window = central_window(
            np.array(image.shape[:2]),
            size=views.shape[1],
            scale=self._transform.keywords["scale"],
            resize=self._transform.keywords["resize"],
        )
        placed_heat = place_heat(heat, window, image.shape[:2])
        seen = float(np.isfinite(placed_heat).mean())
        order = np.argsort(-probabilities, kind="stable")
        shown, thresholds = order[: self._top], None
        if self._thresholds is not None:
            has_label = (probabilities >= self._thresholds)[order]
            shown = order[has_label | (np.arange(len(order)) < self._top)]
            thresholds = self._thresholds[shown].tolist()
        classes = [(self._names[int(i)], float(probabilities[i])) for i in shown]
        return Answer(classes, explain.overlay(image, placed_heat), seen, thresholds)


class TimeLimit:
    """Answers one question at a time, in a thread of its own, within some seconds.

    Python cannot end a thread. A late answer is dropped when it comes, and until then no other
    question begins, so that at most one picture is in memory. The thread does not keep the process
    from ending.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._one_question = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """End all waiting."""
        self._closed.set()

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer, or raise what the question raises.

        Raises:
            ValueError: there is no answer in time, or an earlier question is not answered yet.
        """
        answer: Future[Answer] = Future()

        def work() -> None:
            with self._one_question:
                if answer.set_running_or_notify_cancel():
                    try:
                        answer.set_result(question())
                    except BaseException as error:  # noqa: BLE001 `result` raises it below.
                        answer.set_exception(error)

        threading.Thread(target=work, name="keras-vgg demo answer", daemon=True).start()
        end = time.monotonic() + self._seconds
        while not self._closed.is_set() and time.monotonic() < end:
            try:
                return answer.result(timeout=0.2)
            except TimeoutError:
                if answer.done():  # The question itself has raised this TimeoutError.
                    raise
        if answer.cancel():
            raise ValueError("an earlier picture is still being classified; try again later")
        raise ValueError(f"there was no answer within {self._seconds:g} seconds")


class Examples:
    """Some validation images of a run, evenly spaced, to try the page with.

    `thumbnails` holds (uint8 [h, w, 3], class name or names) for each image. It is empty if the
    run's source cannot be opened on this machine, has changed, has no validation images, or holds
    a damaged image.
    """

    def __init__(self, run: Run, count: int) -> None:
        self.thumbnails: list[tuple[np.ndarray, str]] = []
        self._split: data.Split | None = None
        if count < 1:
            return
        try:
            # The page would come late if a missing data set were downloaded or prepared, or if all
            # images were decoded to skip damaged ones.
            source = load_source(
                run.recipe.replace(download=False, manual_dir=None),
                without_decoding(run.recipe.source, run.recipe.on_bad_image),
            )
            # With damaged images, other ones may be held out: the splits have other sizes then.
            known = run.read_json("data.json")["splits"]
            sizes = {name: split.size for name, split in source.splits().items()}
            is_same = sizes == {name: split["images"] for name, split in known.items()}
            if source.validation is not None and is_same:
                self._split = source.validation.spread(count)
                self.thumbnails = [
                    (_thumbnail(image), _names(source.class_names, label))
                    for image, label in self._read(0)
                ]
        except (ValueError, OSError):
            self.thumbnails = []

    def __getitem__(self, index: int) -> np.ndarray:
        """Return one image at its full size, uint8 [h, w, 3]. IndexError: there are fewer."""
        if not 0 <= index < len(self.thumbnails):
            raise IndexError(f"example {index} of {len(self.thumbnails)}")
        return self._read(index, index + 1)[0][0]

    def _read(self, start: int, stop: int | None = None) -> list[tuple[np.ndarray, Any]]:
        assert self._split is not None  # Both callers have opened it.
        chosen = self._split.between(start, self._split.size if stop is None else stop)
        images = data.evaluation_dataset(chosen, None, lambda image: image)
        with data.bad_images_named(chosen):
            return [(image, label) for image, label in images.as_numpy_iterator()]


def _names(class_names: Sequence[str], label: Any) -> str:
    """Return the name of a label's class, or of all labels of an image that may have several."""
    if np.ndim(label) == 0:
        return class_names[int(label)]
    return ", ".join(n for n, has in zip(class_names, label, strict=True) if has) or "no label"


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """Return every n-th pixel, so that the longer side has at most _THUMBNAIL."""
    step = -(-max(image.shape[:2]) // _THUMBNAIL)
    return image[::step, ::step]

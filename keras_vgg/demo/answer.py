"""What the page answers with: the classes of a picture, and the heat of the best over it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_vgg import data, evaluation, explain
from keras_vgg.augment.geometry import central_window
from keras_vgg.data.decode import MAX_UPLOAD_PIXELS
from keras_vgg.fit import evaluation_transform, load_source
from keras_vgg.run import Run
from keras_vgg.runs.explain import placed

_THUMBNAIL = 96  # pixels of the longer side, at most


class Answer(NamedTuple):
    """What the page shows.

    Attributes:
        classes: (name, probability), best first.
        heat: uint8 [h, w, 3], the picture's size.
        seen: The share of the picture that the network saw, in (0, 1].
    """

    classes: list[tuple[str, float]]
    heat: np.ndarray
    seen: float


class Answerer:
    """A run's network, which is loaded once and asked about one picture after another.

    Args:
        run: A finished run.
        layer: Whose Grad-CAM is drawn, as `explain.grad_cam` takes it. Default: the last
            convolution's.
        top: How many classes are named.

    Raises:
        ValueError: the run has not finished training, or its network has no such layer.
    """

    def __init__(self, run: Run, layer: str | None = None, top: int = 5) -> None:
        self._model, self._names = run.model(), run.class_names
        self._transform = evaluation_transform(run.recipe)
        self._layer, self._top = layer, top
        # Before anyone waits: a layer that is not there is found, and all is traced.
        self.of_image(np.zeros((run.recipe.image_size, run.recipe.image_size, 3), np.uint8))

    def of_file(self, path: str | Path) -> Answer:
        """The answer to an image file, which is decoded as the images of a data set are.

        Raises:
            FileNotFoundError, ValueError: it is not there, no image, or one of more than
                MAX_UPLOAD_PIXELS; the message names it.
        """
        return self.of_image(data.load_image(path, MAX_UPLOAD_PIXELS))

    def of_image(self, image: np.ndarray) -> Answer:
        """The answer to uint8 [h, w, 3] RGB; the classes are `runs.predict_files`'s."""
        views = self._transform(image).numpy()[np.newaxis]
        (classes,) = evaluation.predict(self._model, views, self._names, top=self._top)
        (heat,) = explain.grad_cam(self._model, views, layer=self._layer)
        window = central_window(
            np.array(image.shape[:2]),
            size=views.shape[1],
            scale=self._transform.keywords["scale"],
        )
        whole = placed(heat, window, image.shape[:2])
        return Answer(classes, explain.overlay(image, whole), float(np.isfinite(whole).mean()))


class TimeLimit:
    """Asks one question at a time, in a thread of its own, and waits so many seconds for an answer.

    A thread cannot be ended: an answer that takes longer is thrown away when it comes, and until
    then no other is begun, so that the memory of one picture is the most that is taken. The thread
    does not keep the process from its end.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._one = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """Let nobody wait any more."""
        self._closed.set()

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer, or raise what the question raises.

        Raises:
            ValueError: there is no answer in time, or an earlier picture is still looked at.
        """
        answer: Future[Answer] = Future()

        def work() -> None:
            with self._one:
                if answer.set_running_or_notify_cancel():
                    try:
                        answer.set_result(question())
                    except BaseException as error:  # noqa: BLE001 it is raised where it is waited for
                        answer.set_exception(error)

        threading.Thread(target=work, name="keras-vgg demo answer", daemon=True).start()
        until = time.monotonic() + self._seconds
        while not self._closed.is_set() and time.monotonic() < until:
            try:
                return answer.result(timeout=0.2)
            except TimeoutError:
                if answer.done():  # the question's own
                    raise
        if answer.cancel():
            raise ValueError("an earlier picture is still looked at; try again later")
        raise ValueError(f"there was no answer within {self._seconds:g} seconds")


class Examples:
    """Some validation images of a run, evenly spaced, to try the page with.

    `thumbnails` holds (uint8 [h, w, 3], class name) of each. There are none where the run's source
    cannot be opened on this machine, has no validation images, or holds a damaged one.
    """

    def __init__(self, run: Run, count: int) -> None:
        self.thumbnails: list[tuple[np.ndarray, str]] = []
        self._split: data.Split | None = None
        if count < 1:
            return
        try:
            # What is not there is neither downloaded nor prepared before the page is up.
            source = load_source(run.recipe.replace(download=False, manual_dir=None))
            if source.validation is not None:
                self._split = source.validation.spread(count)
                self.thumbnails = [
                    (_small(image), source.class_names[label]) for image, label in self._read(0)
                ]
        except (ValueError, OSError):
            self.thumbnails = []

    def __getitem__(self, index: int) -> np.ndarray:
        """One of them, whole, uint8 [h, w, 3]. IndexError if there are fewer."""
        if not 0 <= index < len(self.thumbnails):
            raise IndexError(f"example {index} of {len(self.thumbnails)}")
        return self._read(index, index + 1)[0][0]

    def _read(self, start: int, stop: int | None = None) -> list[tuple[np.ndarray, int]]:
        assert self._split is not None  # there are thumbnails of it
        chosen = self._split.between(start, self._split.size if stop is None else stop)
        images = data.evaluation_dataset(chosen, None, lambda image: image)
        with data.bad_images_named(chosen):
            return [(image, int(label)) for image, label in images.as_numpy_iterator()]


def _small(image: np.ndarray) -> np.ndarray:
    """Every n-th pixel: at most _THUMBNAIL of the longer side."""
    step = -(-max(image.shape[:2]) // _THUMBNAIL)
    return image[::step, ::step]

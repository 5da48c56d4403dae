"""The images that tell most about a run with several labels an image, with Grad-CAM by label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_vgg import data, evaluation, explain, report
from keras_vgg.console import progress_bars
from keras_vgg.data.left_out import short_name
from keras_vgg.explain.network import opened
from keras_vgg.fit import evaluation_transform
from keras_vgg.run import Run
from keras_vgg.runs.memory import memory_error_explained

_MAPS = 3  # labels with Grad-CAM for each image
_ANSWERS = 4  # shown for each image


@memory_error_explained("end what else holds the device's memory")
def most_telling_labels(
    run: Run,
    evaluated: evaluation.MultiLabelEvaluation,
    split: data.Split,
    images: int,
    verbose: bool,
) -> tuple[list[report.Shown], list[report.Shown], str]:
    """Return the most confident mistakes, the least confident hits, and Grad-CAM's layer as text.

    A mistake is an image with a wrong label or without a right one; it is the more confident, the
    farther a wrong answer is from its threshold. A hit has all its labels and no other; it is the
    less confident, the nearer an answer is to its threshold.

    Args:
        run: The run.
        evaluated: The run's evaluation on `split`.
        split: The images, in the order of `evaluated`.
        images: How many mistakes, and how many hits, to return at most.
        verbose: Show a progress bar.

    Raises:
        MemoryError: the device has too little memory for Grad-CAM.
    """
    mistakes, hits = ranked_images(evaluated, images)
    chosen = np.concatenate([mistakes, hits])
    if not len(chosen):
        return [], [], ""
    model = run.model()
    place = opened(model).place(None)
    height, width = place.output.shape[1:3]
    chosen_images = split.take(chosen)
    batches = data.evaluation_dataset(chosen_images, 1, evaluation_transform(run.recipe))
    shown: list[report.Shown] = []
    with progress_bars(verbose) as progress:
        task = progress.add_task(f"{run.directory.name} Grad-CAM", total=len(chosen))
        for number, (batch, _) in zip(chosen, batches.as_numpy_iterator(), strict=True):
            labels = labels_to_explain(evaluated, int(number))
            heats = explain.grad_cam(
                model, np.repeat(batch, len(labels), axis=0), classes=labels, batch_size=_MAPS
            )
            path = None if chosen_images.paths is None else chosen_images.paths[len(shown)]
            shown.append(_shown_image(evaluated, int(number), path, batch[0], labels, heats))
            progress.update(task, completed=len(shown))
    layer_text = f"{place.path}, {height}x{width} places"
    return shown[: len(mistakes)], shown[len(mistakes) :], layer_text


def ranked_images(
    evaluated: evaluation.MultiLabelEvaluation, images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the most confident mistakes, and of the least confident hits."""
    margins = np.abs(evaluated.probabilities - evaluated.thresholds)
    is_wrong = evaluated.labels != evaluated.predicted
    error = np.where(is_wrong, margins, 0.0).max(axis=1)
    nearest = margins.min(axis=1)
    has_error = is_wrong.any(axis=1)
    falling, rising = np.argsort(-error, kind="stable"), np.argsort(nearest, kind="stable")
    return falling[has_error[falling]][:images], rising[~has_error[rising]][:images]


def labels_to_explain(evaluated: evaluation.MultiLabelEvaluation, number: int) -> list[int]:
    """Return the classes of an image to explain: wrong ones first, then those that it has or gets.

    An image without any gets its most probable class.
    """
    has, gets = evaluated.labels[number] > 0, evaluated.predicted[number] > 0
    probabilities = evaluated.probabilities[number]
    order = np.lexsort((-probabilities, has == gets))
    listed = [int(i) for i in order if has[i] or gets[i]]
    return listed[:_MAPS] or [int(probabilities.argmax())]


def _shown_image(
    evaluated: evaluation.MultiLabelEvaluation,
    number: int,
    path: str | None,
    image: np.ndarray,
    labels: Sequence[int],
    heats: np.ndarray,
) -> report.Shown:
    names, probabilities = evaluated.class_names, evaluated.probabilities[number]
    has, gets = evaluated.labels[number] > 0, evaluated.predicted[number] > 0
    image = np.broadcast_to(image, (*image.shape[:2], 3))  # also of one channel
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    title = ", ".join(names[i] for i in np.flatnonzero(has)) or "no label"
    wrong = [names[i] for i in np.flatnonzero(gets & ~has)]
    absent = [names[i] for i in np.flatnonzero(has & ~gets)]
    for word, listed in (("wrong", wrong), ("not found", absent)):
        if listed:
            title += f"; {word}: {', '.join(listed)}"
    pictures = [report.Picture(pixels, f"image {number}: {title}", f"image {number}")]
    for label, heat in zip(labels, heats, strict=True):
        caption = f"for {names[label]}" if heat.any() else f"empty for {names[label]}"
        alt = f"Grad-CAM on image {number}, {caption}"
        pictures.append(report.Picture(explain.overlay(pixels, heat), alt, caption))
    ranked = np.argsort(-probabilities, kind="stable")[:_ANSWERS].tolist()
    answers = [*ranked, *(int(i) for i in np.flatnonzero(has) if i not in ranked)]
    return report.Shown(
        title=title,
        file=None if path is None else short_name(path),
        answers=[(names[i], float(probabilities[i]), bool(has[i])) for i in answers],
        pictures=pictures,
    )

"""The images that tell most about a run, each with Grad-CAM of the answers."""

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

_ANSWERS = 3  # shown for each image
_BATCH = 8  # images for Grad-CAM


@memory_error_explained("end what else holds the device's memory")
def most_telling_images(
    run: Run, evaluated: evaluation.Evaluation, split: data.Split, images: int, verbose: bool
) -> tuple[list[report.Shown], list[report.Shown], str]:
    """Return the most confident mistakes, the least confident hits, and Grad-CAM's layer as text.

    Args:
        run: A finished run.
        evaluated: The run's evaluation on `split`.
        split: The images, in the order of `evaluated`.
        images: How many mistakes, and how many hits, to return at most.
        verbose: Show a progress bar.

    Raises:
        MemoryError: the device has too little memory for Grad-CAM.
    """
    confidence = evaluated.probabilities.max(axis=1)
    correct = evaluated.probabilities.argmax(axis=1) == evaluated.labels
    falling, rising = (np.argsort(values, kind="stable") for values in (-confidence, confidence))
    mistakes, hits = falling[~correct[falling]][:images], rising[correct[rising]][:images]
    chosen = np.concatenate([mistakes, hits])
    if not len(chosen):
        return [], [], ""
    chosen_images = split.take(chosen)
    transform = evaluation_transform(run.recipe)
    batches = data.evaluation_dataset(chosen_images, _BATCH, transform).as_numpy_iterator()
    model = run.model()
    place = opened(model).place(None)
    height, width = place.output.shape[1:3]
    layer_text = f"{place.path}, {height}x{width} places"
    ranked = np.argsort(-evaluated.probabilities[chosen], axis=1, kind="stable")[:, :_ANSWERS]
    labels = evaluated.labels[chosen]
    # The rival of a wrong answer is the true class; the rival of a right one is the second class.
    rivals = np.where(ranked[:, 0] == labels, ranked[:, 1], labels)
    shown: list[report.Shown] = []
    with progress_bars(verbose) as progress:
        task = progress.add_task(f"{run.directory.name} Grad-CAM", total=len(chosen))
        for batch, _ in batches:
            rows = slice(len(shown), len(shown) + len(batch))
            heats = [
                explain.grad_cam(model, batch, classes=classes[rows].tolist())
                for classes in (ranked[:, 0], rivals)
            ]
            for i, (image, *maps) in enumerate(zip(batch, *heats, strict=True), rows.start):
                name = f"image {chosen[i]}"
                image = np.broadcast_to(image, (*image.shape[:2], 3))  # also of one channel
                paths = chosen_images.paths
                file = None if paths is None else short_name(paths[i])
                shown.append(
                    _shown_image(
                        name,
                        file,
                        image,
                        maps,
                        class_names=evaluated.class_names,
                        probabilities=evaluated.probabilities[chosen[i]],
                        label=int(labels[i]),
                        ranked=ranked[i].tolist(),
                        rival=int(rivals[i]),
                    )
                )
            progress.update(task, completed=len(shown))
    return shown[: len(mistakes)], shown[len(mistakes) :], layer_text


def _shown_image(
    name: str,
    file: str | None,
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    *,
    class_names: Sequence[str],
    probabilities: np.ndarray,
    label: int,
    ranked: Sequence[int],
    rival: int,
) -> report.Shown:
    """Return an image with its answers, and Grad-CAM's heat for the best class and its rival."""
    names, best = class_names, ranked[0]
    share = f"{100 * probabilities[best]:.1f}\N{NO-BREAK SPACE}%"
    title = f"{names[best]}, {share} sure"
    if best != label:
        title = f"{names[label]}, taken for {title}"
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    pictures = [report.Picture(pixels, f"{name}, a {names[label]}", name)]
    for heat, number in zip(maps, (best, rival), strict=True):
        if heat.any():
            alt = f"Grad-CAM on {name}: where it spoke for {names[number]}"
        else:
            alt = f"Grad-CAM on {name}: empty for {names[number]}"
        caption = f"for {names[number]}" if heat.any() else f"empty for {names[number]}"
        pictures.append(report.Picture(explain.overlay(pixels, heat), alt, caption))
    answers = [*ranked, *([] if label in ranked else [label])]
    return report.Shown(
        title=title,
        file=file,
        answers=[(names[i], float(probabilities[i]), i == label) for i in answers],
        pictures=pictures,
    )

"""The images that tell most of a run, with what spoke for its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vgg import data, evaluation, explain, report
from keras_vgg.console import progress_bars
from keras_vgg.explain.network import opened
from keras_vgg.fit import evaluation_transform
from keras_vgg.run import Run

_ANSWERS = 3  # of each picture
_AT_ONCE = 8  # pictures that Grad-CAM takes


def telling_pictures(
    run: Run, found: evaluation.Evaluation, split: data.Split, images: int, verbose: bool
) -> tuple[list[report.Shown], list[report.Shown], str]:
    """The most confident mistakes, the least confident hits, and a word on Grad-CAM's layer.

    Args:
        run: A finished run.
        found: Its evaluation on `split`.
        split: The images, in the order of `found`.
        images: How many of each, at most.
        verbose: Show a progress bar.
    """
    sure = found.probabilities.max(axis=1)
    right = found.probabilities.argmax(axis=1) == found.labels
    falling, rising = (np.argsort(values, kind="stable") for values in (-sure, sure))
    mistakes, hits = falling[~right[falling]][:images], rising[right[rising]][:images]
    chosen = np.concatenate([mistakes, hits])
    if not len(chosen):
        return [], [], ""
    taken = split.take(chosen)
    transform = evaluation_transform(run.recipe)
    batches = data.evaluation_dataset(taken, _AT_ONCE, transform).as_numpy_iterator()
    model = run.model()
    place = opened(model).place(None)
    height, width = place.output.shape[1:3]
    where = f"{place.path}, {height}x{width} places"
    ranked = np.argsort(-found.probabilities[chosen], axis=1, kind="stable")[:, :_ANSWERS]
    labels = found.labels[chosen]
    # Beside the answer: what it should have been, or was next.
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
                file = None if taken.paths is None else "/".join(Path(taken.paths[i]).parts[-2:])
                answers = found.probabilities[chosen[i]]
                shown.append(
                    _picture(
                        *(name, file, image, maps, found.class_names, answers),
                        *(int(labels[i]), ranked[i].tolist(), int(rivals[i])),
                    )
                )
            progress.update(task, completed=len(shown))
    return shown[: len(mistakes)], shown[len(mistakes) :], where


def _picture(
    name: str,
    file: str | None,
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    names: Sequence[str],
    probabilities: np.ndarray,
    label: int,
    ranked: Sequence[int],
    rival: int,
) -> report.Shown:
    answer, sure = names[ranked[0]], f"{100 * probabilities[ranked[0]]:.1f}\N{NO-BREAK SPACE}%"
    title = (
        f"{answer}, {sure} sure"
        if ranked[0] == label
        else f"{names[label]}, taken for {answer}, {sure} sure"
    )
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    pictures = [report.Picture(pixels, f"{name}, a {names[label]}", name)]
    for heat, spoken_for in zip(maps, (ranked[0], rival), strict=True):
        if heat.any():
            alt = f"Grad-CAM on {name}: where it spoke for {names[spoken_for]}"
        else:
            alt = f"Grad-CAM on {name}: empty for {names[spoken_for]}"
        caption = f"for {names[spoken_for]}" if heat.any() else f"empty for {names[spoken_for]}"
        pictures.append(report.Picture(explain.overlay(pixels, heat), alt, caption))
    answers = [*ranked, *([] if label in ranked else [label])]
    return report.Shown(
        title=title,
        file=file,
        answers=[(names[i], float(probabilities[i]), i == label) for i in answers],
        pictures=pictures,
    )

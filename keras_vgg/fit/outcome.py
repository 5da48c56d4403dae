"""What a training leaves when it ends: results.json, the curve, and advice where it went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_vgg import data, hardware, report
from keras_vgg.backend import as_array, is_jax
from keras_vgg.data.split import labels_of
from keras_vgg.fit import distribution, hosts, verdict
from keras_vgg.fit.averages import unsettled
from keras_vgg.fit.callbacks import Recorder
from keras_vgg.fit.inputs import evaluation_transform
from keras_vgg.fit.metrics import metrics_for
from keras_vgg.fit.preparation import Prepared
from keras_vgg.fit.schedule import best_row, figure_column, selecting_column
from keras_vgg.run import Run

_MEASURED_IMAGES = 1000  # training images that the kept model is tested on


def write_results(
    run: Run,
    recorder: Recorder,
    prepared: Prepared,
    engine: hardware.Engine,
    verbose: int | str,
    *,
    finished_early: bool = False,
) -> None:
    """Write the curve and results.json. The run is then finished.

    If `finished_early`, results.json says so: finished_early_at_epoch.

    Raises:
        ValueError: no epoch has ended.
    """
    history = recorder.history
    if not history:
        raise ValueError(
            f"no epoch of {run.directory} has ended, so there is no network to keep; resume the run"
        )
    best = best_row(history, run.recipe)
    curve = run.directory / "training_curve.png"
    report.plot_history(history, curve, best_epoch=best["epoch"])
    selecting = selecting_column(run.recipe, history)
    columns = dict.fromkeys([figure_column(best), selecting])
    validation = {column.replace("val_", "validation_"): best[column] for column in columns}
    training = figure_column(best).replace("val_", "training_")
    evaluated = _training_figure(run, prepared)
    remarks = _remarks(run, recorder, prepared, evaluated)
    run.add_results(
        epochs=len(history),
        best_epoch=best["epoch"],
        **validation,
        validation_loss=best["val_loss"],
        **{training: evaluated},
        parameters=prepared.full_model.count_params(),
        training_seconds=round(sum(row["seconds"] for row in history), 1),
        peak_memory=hardware.peak_memory(engine),
        remarks=remarks,
        **{"finished_early_at_epoch": len(history)} if finished_early else {},
    )
    if verbose:
        for line in remarks:
            print(line)


def _training_figure(run: Run, prepared: Prepared) -> float:
    """Return the kept model's accuracy on at most 1,000 training images, in evaluation mode.

    Class weights and balanced sampling apply, as in the accuracy that training reports. With
    several labels an image, return the area under the precision-recall curve, as training does:
    a label that none of the 1,000 has counts as the mean of the others.
    """
    split = prepared.source.train.spread(_MEASURED_IMAGES)
    batches = data.evaluation_dataset(split, 32, evaluation_transform(run.recipe))
    weights = prepared.class_weights
    if weights is None:
        weights = np.ones(len(prepared.source.class_names))
    counts = prepared.source.class_counts().get("train")
    if run.recipe.sampling == "balanced" and counts is not None:
        weights = weights / np.maximum(counts, 1)
    right = total = 0.0
    with distribution.on_this_host_alone(), data.bad_images_named(split):
        model: Any = keras.saving.load_model(run.model_path, compile=False)
        # JAX compiles the network once here, and else every operation by itself.
        answer = model.predict_on_batch if is_jax() else model
        if prepared.source.several_labels:
            (metric,) = metrics_for(run.recipe, len(weights), several_labels=True)
            pairs = [(labels, answer(images)) for images, labels in batches.as_numpy_iterator()]
            labels, probabilities = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
            metric.update_state(labels.astype(np.float32), probabilities)  # once: it is traced
            # Keras counts a label that no image has as 0, and all images have more labels.
            known = labels_of(prepared.source.train).any(axis=0).sum()
            return float(metric.result()) * float(known / max(labels.any(axis=0).sum(), 1))
        for images, labels in batches.as_numpy_iterator():
            probabilities = as_array(answer(images))
            right += weights[labels[probabilities.argmax(axis=1) == labels]].sum()
            total += weights[labels].sum()
    return float(right / total)


def _remarks(run: Run, recorder: Recorder, prepared: Prepared, evaluated: float) -> list[str]:
    """Return what a user should know of a run that has ended; `evaluated`: `_training_figure`."""
    recipe, best = run.recipe, best_row(recorder.history, run.recipe)
    lines = verdict.final_lines(recipe, recorder.history, recorder.commonest)
    batches = int(best["epoch"]) * recorder.steps_per_epoch * recipe.gradient_accumulation
    images = min(prepared.source.train.size, _MEASURED_IMAGES)
    training = figure_column(best).removeprefix("val_")
    taken = 0 if recipe.ema_momentum else batches
    estimated = hosts.count() == 1 and bool(unsettled(prepared.full_model, taken))
    gap = verdict.gap_line(
        recipe, best[training], evaluated, images, batches, training, estimated=estimated
    )
    return [*lines, *filter(None, (gap, _probe_remark(run, best, prepared.validation.size)))]


def _probe_remark(run: Run, best: Mapping[str, float], images: int) -> str | None:
    """Return a line if the network is worse than the linear classifier that it began with.

    Clearly worse: on `images` validation images, chance is smaller.
    """
    if run.recipe.init_head != "probe" or not (run.directory / "probe.json").is_file():
        return None
    if run.recipe.select_by != "accuracy":  # which the classifier was not measured by
        return None
    probe, kept = run.read_json("probe.json")["validation_accuracy"], best["val_accuracy"]
    if probe - kept <= 1 / images**0.5:  # two standard deviations, at most
        return None
    return (
        f"the linear classifier that it began with had {probe:.2%} of the validation images, and "
        f"after training the network has {kept:.2%}: try more epochs, a lower --learning-rate, or "
        "the classifier alone (--freeze-until all)"
    )

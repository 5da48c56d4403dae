"""What a report shows of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_vgg import evaluation, report


def scores_of(evaluated: evaluation.Evaluation) -> report.Scores:
    """Return the content of a report about an evaluation."""
    calibrated = evaluation.calibration(evaluated)
    edges = calibrated.edges.tolist()
    scores = (evaluated.per_class, evaluated.precision, evaluated.f1)
    images = evaluated.confusion.sum(axis=1).tolist()
    figures = evaluated.figures()
    majority = figures["majority_share"].value
    assert majority is not None, "every evaluation has an image"
    return report.Scores(
        count=evaluated.count,
        top1=evaluated.top1,
        top1_interval=evaluated.interval(),
        top5=evaluated.top5,
        top5_interval=None if evaluated.top5 is None else evaluated.interval(5),
        loss=evaluated.loss,
        classes=[
            report.ClassScores(*row)
            for row in zip(evaluated.class_names, images, *map(_none_for_nan, scores), strict=True)
        ],
        confusion=evaluated.confusion,
        bins=[
            report.Bin(*row)
            for row in zip(
                edges[:-1],
                edges[1:],
                calibrated.counts.tolist(),
                _none_for_nan(calibrated.confidence),
                _none_for_nan(calibrated.accuracy),
                strict=True,
            )
        ],
        calibration_error=calibrated.error,
        balanced_accuracy=figures["balanced_accuracy"].value,
        majority=report.Majority(evaluated.majority_class, majority),
        figures=[_row(figure) for figure in figures.values()],
        curves=[
            report.ClassCurves(
                curves.name,
                curves.share,
                curves.auc,
                curves.average_precision,
                roc=np.stack([curves.false_alarms, curves.sensitivity]),
                precision_recall=np.stack([curves.recall, curves.precision]),
            )
            for curves in evaluation.class_curves(evaluated)
        ],
        over=evaluated.over,
    )


def label_scores_of(
    evaluated: evaluation.MultiLabelEvaluation, own_thresholds: bool
) -> report.LabelScores:
    """Return the content of a report about an evaluation of several labels an image.

    `own_thresholds`: the thresholds were chosen on these images.
    """
    columns = (
        evaluated.class_names,
        evaluated.images.tolist(),
        _none_for_nan(evaluated.average_precision),
        _none_for_nan(evaluated.auc),
        evaluated.thresholds.tolist(),
        *map(_none_for_nan, (evaluated.precision, evaluated.recall, evaluated.f1)),
    )
    return report.LabelScores(
        count=evaluated.count,
        figures=[_row(figure) for figure in evaluated.figures().values()],
        labels=[report.LabelRow(*row) for row in zip(*columns, strict=True)],
        own_thresholds=own_thresholds,
        over=evaluated.over,
    )


def evaluated_labels_of(results: dict[str, Any]) -> list[report.EvaluatedLabels]:
    """Return the evaluations of several labels an image in results.json."""
    return [
        report.EvaluatedLabels(
            key,
            figures["count"],
            figures["mean_average_precision"],
            figures.get("mean_average_precision_interval"),
            figures["auc"],
            figures["micro_f1"],
            figures["macro_f1"],
            figures["exact_match"],
            figures.get("source"),
        )
        for key, figures in results.items()
        if isinstance(figures, dict) and "mean_average_precision" in figures
    ]


def _row(figure: evaluation.Figure) -> report.FigureRow:
    title, threshold = figure.title, figure.threshold
    if threshold is not None:
        title = f"{title}, from a probability of {threshold:.4g} on"
    baseline = "" if figure.baseline is None else figure.number(figure.baseline)
    value, interval, baseline = (
        text.replace("%", "\N{NO-BREAK SPACE}%")
        for text in (figure.value_text(), figure.interval_text(), baseline)
    )
    return report.FigureRow(title, value, interval, baseline, figure.above_baseline)


def _none_for_nan(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]

"""The results of a run: plots as PNG, tables for a terminal, one HTML page."""

from keras_vgg.report.content import (
    Bin,
    ClassCurves,
    ClassScores,
    Comparison,
    Evaluated,
    EvaluatedLabels,
    Exported,
    FigureRow,
    LabelRow,
    LabelScores,
    Majority,
    Page,
    Picture,
    RunContent,
    Scores,
    Shown,
)
from keras_vgg.report.curves import plot_history
from keras_vgg.report.page import render, require_own, write_page
from keras_vgg.report.plots import plot_confusion, plot_layers, plot_sizes
from keras_vgg.report.tables import table

__all__ = [
    "Bin",
    "ClassCurves",
    "ClassScores",
    "Comparison",
    "Evaluated",
    "EvaluatedLabels",
    "Exported",
    "FigureRow",
    "LabelRow",
    "LabelScores",
    "Majority",
    "Page",
    "Picture",
    "RunContent",
    "Scores",
    "Shown",
    "plot_confusion",
    "plot_history",
    "plot_layers",
    "plot_sizes",
    "render",
    "require_own",
    "table",
    "write_page",
]

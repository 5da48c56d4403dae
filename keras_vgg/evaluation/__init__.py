"""The accuracy of a model: the paper's testing protocols (section 3.2), intervals, calibration.

Images are RGB in [0, 255]; a model ends in soft-max probabilities. Accuracies are fractions in
[0, 1], never per cent; losses are mean cross-entropies in nats. Every image is counted once.
"""

from keras_vgg.evaluation.curves import ClassCurves, class_curves
from keras_vgg.evaluation.dense import dense_network
from keras_vgg.evaluation.figure import SPECIFICITY, Figure, check_specificity, figures
from keras_vgg.evaluation.folds import FoldComparison, compare_folds
from keras_vgg.evaluation.multilabel import MultiLabelEvaluation, choose_thresholds
from keras_vgg.evaluation.protocols import (
    AVERAGES,
    PROTOCOLS,
    Protocol,
    evaluate,
    posteriors,
    predict,
    runner,
    softmax,
)
from keras_vgg.evaluation.reliability import Calibration, calibration
from keras_vgg.evaluation.resampling import groups_text
from keras_vgg.evaluation.result import Comparison, Evaluation, compare, fuse
from keras_vgg.evaluation.temperature import (
    Temperature,
    apply_temperature,
    fit_temperature,
    threshold_that_keeps,
)

__all__ = [
    "AVERAGES",
    "PROTOCOLS",
    "SPECIFICITY",
    "Calibration",
    "ClassCurves",
    "Comparison",
    "Evaluation",
    "Figure",
    "FoldComparison",
    "MultiLabelEvaluation",
    "Protocol",
    "Temperature",
    "apply_temperature",
    "calibration",
    "check_specificity",
    "choose_thresholds",
    "class_curves",
    "compare",
    "compare_folds",
    "dense_network",
    "evaluate",
    "figures",
    "fit_temperature",
    "fuse",
    "groups_text",
    "posteriors",
    "predict",
    "runner",
    "softmax",
    "threshold_that_keeps",
]

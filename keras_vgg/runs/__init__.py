"""Fine-tune a run; evaluate, explain and export it, report on it, and classify images with it."""

from __future__ import annotations

from keras_vgg.runs.answers import write_answers
from keras_vgg.runs.calibration import calibrate_run
from keras_vgg.runs.classifier import run_of
from keras_vgg.runs.comparison import Comparison, compare_files, pair_files
from keras_vgg.runs.evaluate import (
    PROTOCOLS,
    Recorded,
    evaluate_run,
    evaluate_runs,
    evaluation_name,
    record_evaluation,
    run_names,
)
from keras_vgg.runs.explain import explain_files
from keras_vgg.runs.export import export_run, export_weights
from keras_vgg.runs.export_targets import TargetError
from keras_vgg.runs.finetuning import finetune
from keras_vgg.runs.folds import (
    CrossValidation,
    FoldFigure,
    FoldsCompared,
    compare_cross_validations,
    cross_validate,
    open_cross_validation,
)
from keras_vgg.runs.images import RunImages, in_data_dir, open_images, with_columns
from keras_vgg.runs.paper import paper_scales, paper_tables
from keras_vgg.runs.predict import predict_files
from keras_vgg.runs.predictor import Answer, Predictor
from keras_vgg.runs.pruning import Pruning, open_pruning, prune_run
from keras_vgg.runs.push import model_card, push_run
from keras_vgg.runs.report import report_runs
from keras_vgg.runs.search_answers import draw_search, write_search_answers
from keras_vgg.runs.several_labels import RecordedLabels, evaluate_labels, read_thresholds
from keras_vgg.runs.show import show_augmentation
from keras_vgg.runs.similar import Description, Match, PhotoSearch, SearchAnswer
from keras_vgg.runs.stylizing import Stylisation, stylize_files
from keras_vgg.runs.trained_base import base_network

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Comparison",
    "CrossValidation",
    "Description",
    "FoldFigure",
    "FoldsCompared",
    "Match",
    "PhotoSearch",
    "Predictor",
    "Pruning",
    "Recorded",
    "RecordedLabels",
    "RunImages",
    "SearchAnswer",
    "Stylisation",
    "TargetError",
    "base_network",
    "calibrate_run",
    "compare_cross_validations",
    "compare_files",
    "cross_validate",
    "draw_search",
    "evaluate_labels",
    "evaluate_run",
    "evaluate_runs",
    "evaluation_name",
    "explain_files",
    "export_run",
    "export_weights",
    "finetune",
    "in_data_dir",
    "model_card",
    "open_cross_validation",
    "open_images",
    "open_pruning",
    "pair_files",
    "paper_scales",
    "paper_tables",
    "predict_files",
    "prune_run",
    "push_run",
    "read_thresholds",
    "record_evaluation",
    "report_runs",
    "run_names",
    "run_of",
    "show_augmentation",
    "stylize_files",
    "with_columns",
    "write_answers",
    "write_search_answers",
]

"""Localization (the paper's appendix A): a VGG that predicts bounding boxes.

`localizer` makes a box predictor of a trained classifier, and `EuclideanLoss` trains it.
`predict_boxes` runs both on whole images; `Localization` merges the boxes of an image's places.
"""

from keras_vgg.localization.boxes import (
    MATCH,
    THRESHOLD,
    intersection_over_union,
    localization_error,
    located,
    match_score,
    merge_boxes,
    to_corners,
    to_relative,
)
from keras_vgg.localization.network import EuclideanLoss, boxes_of, localizer
from keras_vgg.localization.predict import Guess, Localization, predict_boxes

__all__ = [
    "MATCH",
    "THRESHOLD",
    "EuclideanLoss",
    "Guess",
    "Localization",
    "boxes_of",
    "intersection_over_union",
    "localization_error",
    "localizer",
    "located",
    "match_score",
    "merge_boxes",
    "predict_boxes",
    "to_corners",
    "to_relative",
]

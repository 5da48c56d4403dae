"""Where in an image an object is: the paper's appendix A, a VGG that predicts bounding boxes.

A trained classifier becomes a `localizer`, trained with `EuclideanLoss`; `predict_boxes` runs both
over whole images and merges what their places say.
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
from keras_vgg.localization.network import (
    EuclideanLoss,
    Guess,
    Localization,
    boxes_of,
    localizer,
    predict_boxes,
)

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

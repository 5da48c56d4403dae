"""Calibration: whether a network is right as often as its probabilities say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_vgg.evaluation.result import Evaluation

BINS = 15  # as in Guo et al.


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images in bins of equal width by the probability of their most probable class.

    Guo, Pleiss, Sun and Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
    arXiv:1706.04599, section 2. A bin includes its upper edge, not its lower edge.

    Attributes:
        edges: [bins + 1] float64, from 0 to 1.
        counts: [bins] int64, the number of images in each bin.
        confidence: [bins] float64, the mean probability of a bin's answers; nan for an empty bin.
        accuracy: [bins] float64, the fraction of right answers; nan for an empty bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: mean |accuracy - confidence|, weighted by images; [0, 1]."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.counts) / self.counts.sum())


def calibration(evaluation: Evaluation, bins: int = BINS) -> Calibration:
    """Return how confident the answers of an evaluation are, and how often they are right.

    Raises:
        ValueError: bins is below 1, or the evaluation has no image.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin, not {bins}")
    if not evaluation.count:
        raise ValueError("calibration needs at least 1 image, and the evaluation has no images")
    confidence = evaluation.probabilities.max(axis=1).astype(np.float64)
    right = evaluation.probabilities.argmax(axis=1) == evaluation.labels
    edges = np.linspace(0, 1, bins + 1)
    # Rounding can give a soft-max above 1.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(places, weights=values, minlength=bins)
        return np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)

    return Calibration(edges, counts, mean(confidence), mean(right.astype(np.float64)))

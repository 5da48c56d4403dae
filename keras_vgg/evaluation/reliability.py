"""Whether probabilities mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_vgg.evaluation.result import Evaluation

BINS = 15  # as Guo et al. have them


@dataclass(frozen=True, eq=False)
class Calibration:
    """Images in bins of equal width by the probability of their most probable class.

    Guo, Pleiss, Sun and Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
    arXiv:1706.04599, section 2. A bin has its upper edge and not its lower one.

    Attributes:
        edges: [bins + 1] float64, from 0 to 1.
        counts: [bins] int64, the images of each bin.
        confidence: [bins] float64, the mean probability of a bin's answers; nan of an empty bin.
        accuracy: [bins] float64, the fraction of them that is right; nan of an empty bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of the two, weighted by images; [0, 1]."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.counts) / self.counts.sum())


def calibration(found: Evaluation, bins: int = BINS) -> Calibration:
    """How sure the answers of an evaluation are, and how often they are right.

    Raises:
        ValueError: bins is below 1, or there is no image.
    """
    if bins < 1:
        raise ValueError(f"calibration needs at least 1 bin, not {bins}")
    if not found.count:
        raise ValueError("there is no image to tell the calibration by")
    confidence = found.probabilities.max(axis=1).astype(np.float64)
    right = found.probabilities.argmax(axis=1) == found.labels
    edges = np.linspace(0, 1, bins + 1)
    # Rounding may bring a soft-max above 1.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(places, weights=values, minlength=bins)
        return np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)

    return Calibration(edges, counts, mean(confidence), mean(right.astype(np.float64)))

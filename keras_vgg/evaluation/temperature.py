"""Temperature scaling, and the probability below which a network does not know an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_vgg.evaluation.protocols import softmax
from keras_vgg.evaluation.reliability import calibration
from keras_vgg.evaluation.result import Evaluation

# A network that is right about every validation image, or guesses, has no best temperature.
LEAST, LARGEST = 0.05, 20.0

_SMALLEST = np.finfo(np.float32).tiny  # A float32 probability of 0 has no logarithm.
_ROUNDING = 1e-6  # Two computations of one probability differ by less.


@dataclass(frozen=True)
class Temperature:
    """One number by which all scores are divided before the soft-max.

    Guo, Pleiss, Sun and Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
    arXiv:1706.04599, section 4.2. The most probable class stays the same.

    Attributes:
        value: The temperature; above 1 if the network is too sure.
        nll: Mean negative log-likelihood in nats, (before, after).
        ece: Expected calibration error in [0, 1], (before, after).
        note: Why the value is 1, or at an end of its range; empty otherwise.
    """

    value: float
    nll: tuple[float, float]
    ece: tuple[float, float]
    note: str = ""


def fit_temperature(evaluation: Evaluation) -> Temperature:
    """Return the temperature that minimises the negative log-likelihood of an evaluation.

    Raises:
        ValueError: the evaluation has no images, or several labels an image.
    """
    from scipy.optimize import minimize_scalar

    labels = evaluation.labels
    if not evaluation.count or np.ndim(labels) != 1:
        raise ValueError("a temperature needs images with one label each")
    scores = _scores(evaluation.probabilities)
    note = ""
    if (scores.argmax(axis=1) == labels).all():
        value = 1.0
        note = (
            f"all {evaluation.count:,} images are classified correctly, so they do not say how sure"
            " the network should be: the temperature stays 1"
        )
    else:
        best = minimize_scalar(
            lambda logarithm: _nll(scores / np.exp(logarithm), labels),
            bounds=(np.log(LEAST), np.log(LARGEST)),
            method="bounded",
            options={"xatol": 1e-6},
        )
        value = float(np.exp(best.x))
        if min(value / LEAST, LARGEST / value) < 1.001:
            note = f"the temperature is at an end of its range, {LEAST:g} to {LARGEST:g}"
    after = apply_temperature(evaluation.probabilities, value)
    calibrated = Evaluation(labels, after, evaluation.class_names)
    return Temperature(
        value,
        (_nll(scores, labels), _nll(scores / value, labels)),
        (calibration(evaluation).error, calibration(calibrated).error),
        note,
    )


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the soft-max of the scores divided by a temperature; [n, classes] float32, as given.

    The scores are the logarithms of the probabilities, which differ from the network's own by a
    number that cancels in the soft-max.
    """
    return softmax(_scores(probabilities) / temperature).astype(np.float32)


def threshold_that_keeps(share: float, probabilities: np.ndarray) -> float:
    """Return the largest probability that at least a share of the images reach by their best class.

    It is lowered by 1e-6, so that rounding rejects none of these images.

    Args:
        share: In (0, 1].
        probabilities: [n, classes], n >= 1.

    Raises:
        ValueError: another share, or no image.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of images to keep must be above 0 and at most 1, not {share}")
    if not len(probabilities):
        raise ValueError("a threshold needs at least 1 image")
    confidence = np.sort(probabilities.max(axis=1).astype(np.float64))
    kept = int(np.ceil(share * len(confidence) - 1e-9))
    return float(confidence[len(confidence) - kept]) - _ROUNDING


def _scores(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), _SMALLEST))


def _nll(scores: np.ndarray, labels: np.ndarray) -> float:
    largest = scores.max(axis=1)
    normaliser = largest + np.log(np.exp(scores - largest[:, np.newaxis]).sum(axis=1))
    return float(np.mean(normaliser - scores[np.arange(len(labels)), labels]))

"""Linear probes: the accuracy of a linear classifier on features."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features, with the results that chose its regularisation."""

    classifier: Any
    """A scikit-learn pipeline: predict, and with kind="logistic" predict_proba."""
    C: float
    validation_accuracy: float
    tried: tuple[tuple[float, float], ...]
    """(C, validation accuracy) for each C."""
    converged: bool

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self.classifier.predict(features)

    def score(self, features: np.ndarray, labels: np.ndarray) -> float:
        return float(self.classifier.score(features, labels))


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    *,
    C: Iterable[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0),
    kind: str = "logistic",
    standardize: bool = True,
    max_iter: int = 200,
    tol: float = 1e-4,
    seed: int = 0,
    class_weight: str | dict[int, float] | None = None,
) -> LinearProbe:
    """Fit a linear classifier for each C and return the most accurate on validation.

    If several are equally accurate, the smallest C wins.

    Args:
        train_features: [n, d].
        train_labels: [n], the classes.
        validation_features: [m, d].
        validation_labels: [m].
        C: Inverse strengths of the regularisation, as in scikit-learn.
        kind: "logistic" (multinomial, L-BFGS) or "svm" (linear, one against the rest; the paper's).
        standardize: Whether to give every feature mean 0 and deviation 1 over the training images.
        max_iter: Most iterations. `LinearProbe.converged` tells whether they were enough.
        tol: Where the solver stops, as in scikit-learn. The probabilities depend on rounding by
            about ten times this; below 1e-5, give float64 features, or rounding stops the solver.
        seed: Seed of the SVM's solver.
        class_weight: "balanced": every class counts the same, as in scikit-learn. Or a weight for
            each class.

    Raises:
        ValueError: lengths or widths differ; features are not finite; there is one class, or no C.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    strengths = sorted(C)
    if not strengths or not all(0 < c < np.inf for c in strengths):
        raise ValueError(f"C must be one or more positive numbers, not {strengths}")
    makers: dict[str, Callable[[float], Any]] = {
        "logistic": lambda c: LogisticRegression(
            C=c, max_iter=max_iter, tol=tol, class_weight=class_weight
        ),
        "svm": lambda c: LinearSVC(
            C=c, max_iter=max_iter, tol=tol, random_state=seed, class_weight=class_weight
        ),
    }
    if kind not in makers:
        raise ValueError(f"kind must be one of {', '.join(makers)}, not {kind!r}")
    _check_features("training", train_features, train_labels)
    _check_features("validation", validation_features, validation_labels)
    if np.shape(train_features)[1] != np.shape(validation_features)[1]:
        raise ValueError(
            f"training features have {np.shape(train_features)[1]} columns, validation features "
            f"{np.shape(validation_features)[1]}"
        )
    if len(np.unique(train_labels)) < 2:
        raise ValueError("the training labels are all the same; a probe needs at least 2 classes")
    tried, best = [], None
    for c in strengths:
        steps = [StandardScaler()] if standardize else []
        classifier = make_pipeline(*steps, makers[kind](c))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(train_features, train_labels)
        others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
        converged = len(others) == len(caught)
        for w in others:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
        accuracy = float(classifier.score(validation_features, validation_labels))
        tried.append((c, accuracy))
        if best is None or accuracy > best[1]:
            best = (c, accuracy, classifier, converged)
    assert best is not None, "there is at least one C"
    c, accuracy, classifier, converged = best
    return LinearProbe(classifier, c, accuracy, tuple(tried), converged)


def _check_features(name: str, features: np.ndarray, labels: np.ndarray) -> None:
    shape = np.shape(features)
    if len(shape) != 2 or shape[0] == 0 or np.shape(labels) != shape[:1]:
        raise ValueError(
            f"{name} features must be [n, d] with [n] labels, not {shape} with {np.shape(labels)}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{name} features hold values that are not finite")

"""The nearest descriptors by cosine similarity, and how good a ranking is."""

from __future__ import annotations

import numpy as np

from keras_vgg.finite import is_finite

_BLOCK = 2**24  # similarities in memory at once


def nearest(
    descriptors: np.ndarray, queries: np.ndarray, count: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Return the descriptors that are nearest to each query, the nearest first.

    The search is exact: one product of matrices. See docs/similar_images.md for its time.

    Args:
        descriptors: [n, d], each of length 1, as `embed` returns them.
        queries: [m, d], each of length 1.
        count: How many to return; fewer if there are fewer.

    Returns:
        The numbers of the descriptors, int64 [m, count], and the cosine similarities, float32
        [m, count]. Equal similarities keep the order of the descriptors.

    Raises:
        ValueError: the arrays do not fit each other or are not finite; `count` is below 1.
    """
    _check(descriptors, queries)
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    count = min(count, len(descriptors))
    numbers = np.empty((len(queries), count), np.int64)
    similarities = np.empty((len(queries), count), np.float32)
    rows = max(1, _BLOCK // max(1, len(descriptors)))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ descriptors.T
        for place, row in enumerate(scores, start):
            least = np.partition(row, len(row) - count)[len(row) - count]
            candidates = np.flatnonzero(row >= least)  # more than `count` if some are equal
            best = candidates[np.argsort(-row[candidates], kind="stable")[:count]]
            numbers[place], similarities[place] = best, row[best]
    return numbers, similarities


def average_precisions(
    descriptors: np.ndarray, labels: np.ndarray, queries: np.ndarray, query_labels: np.ndarray
) -> np.ndarray:
    """Return the average precision of each query, float64 [m]; their mean is the mAP.

    All descriptors are ranked by cosine similarity. A descriptor with the query's label is
    relevant. The average precision is the mean, over the relevant ones, of the share of relevant
    ones up to this rank. It is NaN for a query without a relevant descriptor.

    Args:
        descriptors: [n, d], each of length 1.
        labels: [n].
        queries: [m, d], each of length 1; none of them among the descriptors.
        query_labels: [m].

    Raises:
        ValueError: the arrays do not fit each other, or are not finite.
    """
    _check(descriptors, queries)
    if np.shape(labels) != (len(descriptors),) or np.shape(query_labels) != (len(queries),):
        raise ValueError(
            f"{len(descriptors)} descriptors and {len(queries)} queries need a label each, not "
            f"{list(np.shape(labels))} and {list(np.shape(query_labels))} labels"
        )
    labels, query_labels = np.asarray(labels), np.asarray(query_labels)
    precisions = np.full(len(queries), np.nan)
    ranks = np.arange(1, len(descriptors) + 1)
    for i, query in enumerate(queries):
        order = np.argsort(-(descriptors @ query), kind="stable")
        relevant = labels[order] == query_labels[i]
        if relevant.any():
            precisions[i] = (np.cumsum(relevant) / ranks)[relevant].mean()
    return precisions


def _check(descriptors: np.ndarray, queries: np.ndarray) -> None:
    shapes = np.shape(descriptors), np.shape(queries)
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"descriptors and queries must be [n, d] and [m, d] with the same d, not "
            f"{list(shapes[0])} and {list(shapes[1])}"
        )
    if not shapes[0][0]:
        raise ValueError("there are no descriptors to search")
    if not (is_finite(descriptors) and is_finite(queries)):
        raise ValueError("a descriptor or a query is not finite")

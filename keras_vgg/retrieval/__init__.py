"""Retrieval from arrays: whitening, nearest descriptors, near-duplicates, average precision."""

from keras_vgg.retrieval.near_duplicates import (
    NEAR,
    NO_STRUCTURE,
    hash_distances,
    perceptual_hash,
)
from keras_vgg.retrieval.neighbours import average_precisions, nearest
from keras_vgg.retrieval.whitening import Whitening, learn_whitening, load_whitening

__all__ = [
    "NEAR",
    "NO_STRUCTURE",
    "Whitening",
    "average_precisions",
    "hash_distances",
    "learn_whitening",
    "load_whitening",
    "nearest",
    "perceptual_hash",
]

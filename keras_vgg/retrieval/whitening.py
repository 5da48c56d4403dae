"""Whitening: descriptors become uncorrelated, so that frequent patterns count no more than rare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg.containers import require_archive
from keras_vgg.files import read_arrays, write_atomically
from keras_vgg.finite import is_finite
from keras_vgg.image_paths import expanded

_FLAT = 1e-6  # the share of the largest variance below which a direction holds rounding errors


@dataclass(frozen=True, eq=False)
class Whitening:
    """A PCA whitening of descriptors (Jégou & Chum, ECCV 2012): centre, turn, scale, normalise.

    Attributes:
        mean: [d] float32, which is subtracted.
        projection: [k, d] float32: the directions, each divided by its standard deviation.
    """

    mean: np.ndarray
    projection: np.ndarray

    def __call__(self, descriptors: np.ndarray) -> np.ndarray:
        """Return the whitened descriptors, [n, d] -> float32 [n, k], each of length 1.

        Raises:
            ValueError: the descriptors have another number of columns.
        """
        values = _matrix(descriptors)
        if values.shape[1] != len(self.mean):
            raise ValueError(
                f"the whitening is for descriptors of {len(self.mean)} numbers, not of "
                f"{values.shape[1]}: learn one on descriptors that are made in the same way"
            )
        whitened = (values - self.mean) @ self.projection.T
        length = np.linalg.norm(whitened, axis=1, keepdims=True)
        return (whitened / np.where(length > 0, length, 1)).astype("float32")

    def save(self, path: str | Path) -> None:
        """Write an .npz file, whole or not at all.

        Raises:
            ValueError: the name does not end in .npz.
            OSError: the file cannot be written.
        """
        path = expanded(path)
        if path.suffix != ".npz":
            raise ValueError(f"the name of a whitening's file must end in .npz, not {path.name!r}")

        def write(target: Path) -> None:
            with target.open("wb") as file:
                np.savez(file, mean=self.mean, projection=self.projection)

        write_atomically(path, write)


def load_whitening(path: str | Path) -> Whitening:
    """Return the whitening of a file that `Whitening.save` wrote.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged, claims more memory than its size explains, or holds
            something else.
    """
    path = expanded(path)
    require_archive(path)
    arrays: dict[str, Any] = read_arrays(path)
    mean, projection = arrays.get("mean"), arrays.get("projection")
    if (
        set(arrays) != {"mean", "projection"}
        or mean is None
        or projection is None
        or mean.dtype.kind != "f"
        or projection.dtype.kind != "f"
        or mean.ndim != 1
        or projection.shape[1:] != mean.shape
        or not len(projection)
        or not (is_finite(mean) and is_finite(projection))
    ):
        raise ValueError(f"{path} holds no whitening: it has {', '.join(arrays) or 'no array'}")
    return Whitening(mean.astype("float32"), projection.astype("float32"))


def learn_whitening(descriptors: np.ndarray, dimensions: int | None = None) -> Whitening:
    """Return the whitening of a set of descriptors, [n, d].

    Take other images than those you search for; a few times as many as the descriptors have
    numbers.

    Args:
        descriptors: At least two, not all equal.
        dimensions: The number of directions to keep, those of the largest variance first. None:
            all that vary.

    Raises:
        ValueError: the descriptors are not finite, fewer than two, all equal, or vary in fewer than
            `dimensions` directions.
    """
    from sklearn.decomposition import PCA

    values = _matrix(descriptors)
    if len(values) < 2:
        raise ValueError(f"a whitening is learnt on at least 2 descriptors, not on {len(values)}")
    if (values == values[0]).all():
        raise ValueError("the descriptors are all equal: no whitening can be learnt on them")
    pca: Any = PCA(svd_solver="full").fit(values.astype("float64"))
    variances: np.ndarray = pca.explained_variance_
    varying = int((variances > _FLAT * variances.max()).sum())
    kept = varying if dimensions is None else dimensions
    if not 1 <= kept <= varying:
        raise ValueError(
            f"dimensions must be from 1 to {varying}, the number of directions in which the "
            f"{len(values):,} descriptors vary, not {dimensions}"
        )
    projection = pca.components_[:kept] / np.sqrt(variances[:kept, np.newaxis])
    return Whitening(pca.mean_.astype("float32"), projection.astype("float32"))


def _matrix(descriptors: Any) -> np.ndarray:
    values = np.asarray(descriptors)
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"descriptors must be numbers [n, d], not {values.dtype} {list(values.shape)}"
        )
    if not is_finite(values):
        raise ValueError("the descriptors hold values that are not finite: NaN or infinity")
    return values

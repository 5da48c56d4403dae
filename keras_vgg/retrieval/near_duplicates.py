"""Near-duplicates: images that look the same, by a perceptual hash of 255 bits.

Two images are near-duplicates if their hashes differ in at most `NEAR` bits. A hash is the signs of
the 255 lowest frequencies of the luma at 64 x 64 pixels, relative to their median. So it keeps the
arrangement of light and dark, and loses size, compression, brightness and colour.

training/README.md has the measurement that chose the limit: no two of 200 different photographs and
of 1,000 images of CIFAR-10 are that near, and almost all copies are that are compressed, scaled,
blurred, brighter, grey or have a caption. A crop of 5 % from each edge is not: descriptors find it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_vgg.finite import check_range

NEAR = 40  # bits
NO_STRUCTURE = 256  # the distance to an image without structure
_SIDE = 64  # pixels of the luma
_FREQUENCIES = 16  # in each direction
_STRUCTURE = 0.5  # least standard deviation of the luma, in grey levels of 255
_ROUNDING = 1e-6  # of the strongest frequency: what is weaker is 0
_LUMA = np.array([0.299, 0.587, 0.114])  # Rec. 601


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """Return the hash of an image: uint8 [32], of which each byte holds eight bits.

    An image without structure has no arrangement of light and dark: its hash is 0, and it is
    nobody's near-duplicate. Such are a white page, and a picture that varies in one direction only,
    such as a flag of three stripes: most of its frequencies are 0.

    Args:
        image: [h, w, 3] RGB in [0, 255].

    Raises:
        ValueError: the array has another shape or range.
    """
    if np.ndim(image) != 3 or np.shape(image)[2] != 3 or 0 in np.shape(image):
        raise ValueError(f"an image must be [height, width, 3], not {list(np.shape(image))}")
    check_range(image)
    from PIL import Image
    from scipy.fft import dctn

    luma = (np.asarray(image, "float64") @ _LUMA).astype("float32")
    small = Image.fromarray(luma).resize((_SIDE, _SIDE), Image.Resampling.BOX)
    luma = np.asarray(small, "float64")
    if luma.std() < _STRUCTURE:
        return np.zeros(32, np.uint8)
    frequencies: Any = dctn(luma, norm="ortho")
    low = frequencies[:_FREQUENCIES, :_FREQUENCIES].ravel()[1:]
    strength = np.abs(low)
    # Two images differ in half of these signs by chance: all would be near.
    if np.count_nonzero(strength > _ROUNDING * strength.max()) <= 2 * NEAR:
        return np.zeros(32, np.uint8)
    return np.packbits(low > np.median(low))


def hash_distances(hashes: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return the number of bits in which hashes differ from one, int64 [n].

    It is `NO_STRUCTURE` where one of the two images has no structure.

    Args:
        hashes: uint8 [n, 32].
        query: uint8 [32].
    """
    bits = np.unpackbits(np.bitwise_xor(hashes, query), axis=1).sum(1, dtype=np.int64)
    blank = ~hashes.any(1) | (not query.any())
    return np.where(blank, NO_STRUCTURE, bits)

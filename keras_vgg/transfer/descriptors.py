"""The descriptor of an image: one vector, by which images are compared or classified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.finite import require_finite_images, require_finite_weights
from keras_vgg.transfer.features import channel_axis, feature_extractor


def embed(
    model: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    layer: str | None = None,
    sizes: Sequence[int] | None = None,
    combine: str = "stack",
    flip: bool = True,
    batch_size: int = 32,
    verbose: int = 0,
) -> np.ndarray:
    """Return the paper's image descriptors (appendix B): float32 [n, d], each of length 1.

    Each image is rescaled without a crop to each smallest side Q. The layer's feature map is
    averaged over the places, then over the image and its mirror image, and divided by its length.
    Several scales are stacked or averaged, and divided by the length again.

    Args:
        model: A VGG that takes any size: without the top, or with head="conv". Or a VGG of one
            size, which all images must have.
        images: [n, h, w, 3], or a list of [h, w, 3] of any sizes, uint8 or float, in the model's
            range: RGB in [0, 255] if the preprocessing is inside.
        layer: A layer's name. Default: "fc2" with head="conv", as in the paper, else "block5_pool".
        sizes: The smallest sides Q, such as (256, 384, 512). None: do not rescale.
        combine: "stack" or "average" the scales.
        flip: Whether to use the mirror image too.
        batch_size: Images of one size at a time.
        verbose: 1 shows a progress bar.

    Raises:
        ValueError: there is no image; an image has another rank, is not finite, is too small, or
            does not fit the model's input; weights are not finite; a bad `combine`, `sizes` or
            `batch_size`.
    """
    if combine not in ("stack", "average"):
        raise ValueError(f"combine must be 'stack' or 'average', not {combine!r}")
    if len(images) == 0:
        raise ValueError("there are no images to embed")
    sides: list[int | None] = [None] if sizes is None else np.atleast_1d(sizes).tolist()
    if not sides or any(q is not None and (type(q) is not int or q < 32) for q in sides):
        raise ValueError(f"sizes must be whole numbers of 32 or more, not {sides}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    require_finite_weights(model)
    for i, image in enumerate(images):
        if np.ndim(image) != 3:
            raise ValueError(
                f"image {i} has shape {np.shape(image)}, not [height, width, channels]"
            )
        require_finite_images(np.asarray(image), f"image {i} holds")
    if layer is None:
        maps = [x.name for x in model.layers if len(np.shape(x.output)) == 4]
        layer = "fc2" if "fc2" in maps else "block5_pool"
    extractor = feature_extractor(model, layer, pooling="avg")
    groups = [_by_shape(model, images, size) for size in sides]  # raises errors before the work
    progress = keras.utils.Progbar(len(images) * len(sides), verbose=verbose, unit_name="image")
    scales = []
    for size, shapes in zip(sides, groups, strict=True):
        descriptors: dict[int, np.ndarray] = {}
        for shape, members in shapes.items():
            for start in range(0, len(members), batch_size):
                numbers = members[start : start + batch_size]
                batch = np.stack([np.asarray(images[i], "float32") for i in numbers])
                if size:
                    batch = ops.image.resize(
                        batch, shape, antialias=True, data_format="channels_last"
                    )
                rows = _descriptors(extractor, batch, layer, flip)
                descriptors.update(zip(numbers, rows, strict=True))
                progress.add(len(numbers))
        scales.append(_unit(np.stack([descriptors[i] for i in range(len(images))])))
    return _unit(np.concatenate(scales, 1) if combine == "stack" else np.mean(scales, 0))


def _by_shape(
    model: keras.Model, images: np.ndarray | Sequence[np.ndarray], size: int | None
) -> dict[tuple[int, int], list[int]]:
    """Return (height, width) after rescaling -> numbers of the images; check that they fit."""
    groups: dict[tuple[int, int], list[int]] = {}
    axis = channel_axis()
    own_shape = list(model.inputs[0].shape[1:])
    own_shape = [*own_shape[1:], own_shape[0]] if axis == 1 else own_shape
    for i, image in enumerate(images):
        shape = _rescaled(np.shape(image), size)
        if min(shape) < 32:
            raise ValueError(f"image {i} is {shape}, smaller than 32x32: give sizes")
        image_shape = (*shape, np.shape(image)[2])
        if any(own not in (None, side) for own, side in zip(own_shape, image_shape, strict=True)):
            raise ValueError(
                f"image {i} comes as {image_shape}, {model.name} takes {tuple(own_shape)}; a VGG "
                'without the top or with head="conv" takes any height and width'
            )
        groups.setdefault(shape, []).append(i)
    return groups


def _rescaled(shape: Sequence[int], size: int | None) -> tuple[int, int]:
    """Return (height, width) with the smallest side `size` and the same aspect ratio."""
    height, width = shape[:2]
    if size is None:
        return height, width
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def _descriptors(extractor: keras.Model, batch: Any, layer: str, flip: bool) -> np.ndarray:
    """Return [n, d] float32 for images [n, h, w, channels], averaged over the views of each."""
    views = [batch, ops.flip(batch, axis=2)] if flip else [batch]
    if channel_axis() == 1:
        views = [ops.moveaxis(view, -1, 1) for view in views]
    values = [extractor(ops.convert_to_tensor(view), training=False)[layer] for view in views]
    arrays: list[Any] = [ops.convert_to_numpy(ops.cast(v, "float32")) for v in values]
    return np.mean(arrays, axis=0)


def _unit(values: np.ndarray) -> np.ndarray:
    """Divide each row by its length; zeros stay zeros."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length > 0, length, 1)).astype("float32")

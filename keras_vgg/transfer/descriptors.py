"""The descriptor of an image: one vector, by which images are compared or classified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops

from keras_vgg.backend import as_array
from keras_vgg.features import channel_axis, feature_extractor
from keras_vgg.finite import one_range_warning, require_finite_images, require_finite_weights
from keras_vgg.gradient import answer_of
from keras_vgg.transfer.pooling import generalized_mean, region_maxima

Pooling = Literal["avg", "max", "gem", "rmac"]


def embed(
    model: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    layer: str | None = None,
    pooling: Pooling = "avg",
    power: float = 3.0,
    levels: int = 3,
    whitening: Callable[[np.ndarray], np.ndarray] | None = None,
    sizes: Sequence[int] | None = None,
    combine: str = "stack",
    flip: bool = True,
    batch_size: int = 32,
    verbose: int = 0,
) -> np.ndarray:
    """Return image descriptors: float32 [n, d], each of length 1.

    With the defaults they are those of the paper (appendix B): each image is rescaled without a
    crop to each smallest side Q. The layer's feature map is averaged over the places, then over the
    image and its mirror image, and divided by its length. Several scales are stacked or averaged,
    and divided by the length again.

    Args:
        model: A VGG that takes any size: without the top, or with head="conv". Or a VGG of one
            size, which all images must have.
        images: [n, h, w, 3], or a list of [h, w, 3] of any sizes, uint8 or float, in the model's
            range: RGB in [0, 255] if the preprocessing is inside.
        layer: A layer's name. Default: "fc2" with head="conv", as in the paper, else "block5_pool".
        pooling: How the map becomes a vector. "avg": the mean over the places. "max": the maximum
            (MAC). "gem": the generalised mean (Radenovic et al., arXiv:1711.02512). "rmac": the sum
            of the maxima of regions, each divided by its length (Tolias et al., arXiv:1511.05879).
        power: The power of "gem", at least 1.
        levels: The number of sizes of the regions of "rmac".
        whitening: A function from [m, c] to [m, d], such as a `keras_vgg.retrieval.Whitening`. For
            "rmac", it takes the regions' vectors before the sum: learn it on
            `region_descriptors`. Otherwise, it takes the descriptors: learn it on these.
        sizes: The smallest sides Q, such as (256, 384, 512). None: do not rescale.
        combine: "stack" or "average" the scales.
        flip: Whether to use the mirror image too.
        batch_size: Images of one size at a time.
        verbose: 1 shows a progress bar.

    Raises:
        ValueError: there is no image; an image has another rank, is not finite, is too small, or
            does not fit the model's input; weights are not finite; the layer has no map to pool; a
            bad `pooling`, `power`, `levels`, `combine`, `sizes` or `batch_size`.
    """
    if combine not in ("stack", "average"):
        raise ValueError(f"combine must be 'stack' or 'average', not {combine!r}")
    pool = _pooling(pooling, power, levels, whitening)
    descriptors: dict[int, dict[int, np.ndarray]] = {}
    for scale, numbers, views in _views(
        model, images, layer, sizes, flip, batch_size, verbose, needs_map=pooling != "avg"
    ):
        rows = np.mean([pool(view) for view in views], axis=0)
        descriptors.setdefault(scale, {}).update(zip(numbers, rows, strict=True))
    scales = [
        _unit(np.stack([rows[i] for i in range(len(images))])) for rows in descriptors.values()
    ]
    whole = _unit(np.concatenate(scales, 1) if combine == "stack" else np.mean(scales, 0))
    return whole if whitening is None or pooling == "rmac" else _unit(whitening(whole))


def region_descriptors(
    model: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    *,
    layer: str | None = None,
    levels: int = 3,
    sizes: Sequence[int] | None = None,
    flip: bool = True,
    batch_size: int = 32,
    verbose: int = 0,
) -> np.ndarray:
    """Return the vectors of all R-MAC regions of all images: float32 [m, c], each of length 1.

    A whitening for `embed(pooling="rmac")` is learnt on them. The arguments and errors are those of
    `embed`.
    """
    vectors = []
    for _, _, views in _views(
        model, images, layer, sizes, flip, batch_size, verbose, needs_map=True
    ):
        for view in views:
            maxima = as_array(region_maxima(view, levels))
            vectors.append(_unit(maxima.reshape(-1, maxima.shape[-1])))
    return np.concatenate(vectors)


def _pooling(
    pooling: str, power: float, levels: int, whitening: Callable[[np.ndarray], np.ndarray] | None
) -> Callable[[Any], np.ndarray]:
    """Return a function from a layer's output, [n, h, w, c] or [n, c], to float32 [n, d]."""
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")
    if pooling == "gem" and not 1 <= power < float("inf"):
        raise ValueError(f"power must be a number of at least 1, not {power}")
    if pooling == "rmac" and (type(levels) is not int or levels < 1):
        raise ValueError(f"levels must be a whole number of at least 1, not {levels!r}")

    def sum_of_regions(feature_map: Any) -> np.ndarray:
        maxima = as_array(region_maxima(feature_map, levels))
        vectors = _unit(maxima.reshape(-1, maxima.shape[-1]))
        if whitening is not None:
            vectors = _unit(whitening(vectors))
        return _unit(vectors.reshape(*maxima.shape[:2], -1).sum(1))

    def mean(output: Any) -> np.ndarray:
        return as_array(ops.mean(output, axis=(1, 2)) if len(output.shape) == 4 else output)

    functions: dict[str, Callable[[Any], np.ndarray]] = {
        "avg": mean,
        "max": lambda feature_map: as_array(ops.max(feature_map, axis=(1, 2))),
        "gem": lambda feature_map: as_array(generalized_mean(feature_map, power)),
        "rmac": sum_of_regions,
    }
    return functions[pooling]


def _views(
    model: keras.Model,
    images: np.ndarray | Sequence[np.ndarray],
    layer: str | None,
    sizes: Sequence[int] | None,
    flip: bool,
    batch_size: int,
    verbose: int,
    *,
    needs_map: bool,
) -> Iterator[tuple[int, list[int], list[Any]]]:
    """Yield for each scale and batch: the scale's number, the images', and the layer's outputs.

    The outputs are float32, one for each view, with the channels last.
    """
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
    extractor = feature_extractor(model, layer)
    outputs: Any = extractor.output
    shape = outputs[layer].shape
    if needs_map and len(shape) != 4:
        raise ValueError(
            f"{layer} gives {tuple(shape)}, which is no feature map: pool it by 'avg', or name a "
            "convolution or a pooling layer"
        )
    groups = [_by_shape(model, images, size) for size in sides]  # raises errors before the work
    progress = keras.utils.Progbar(len(images) * len(sides), verbose=verbose, unit_name="image")
    warned: list[str] = []
    for scale, (size, shapes) in enumerate(zip(sides, groups, strict=True)):
        for shape, members in shapes.items():
            for start in range(0, len(members), batch_size):
                numbers = members[start : start + batch_size]
                batch = np.stack([np.asarray(images[i], "float32") for i in numbers])
                if size:
                    batch = ops.image.resize(
                        batch, shape, antialias=True, data_format="channels_last"
                    )
                with one_range_warning(warned):
                    outputs = _outputs(extractor, batch, layer, flip)
                yield scale, numbers, outputs
                progress.add(len(numbers))


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


def _outputs(extractor: keras.Model, batch: Any, layer: str, flip: bool) -> list[Any]:
    """Return the layer's output for images [n, h, w, channels], and for their mirror images."""
    views = [batch, ops.flip(batch, axis=2)] if flip else [batch]
    outputs: list[Any] = []
    for view in views:
        first = channel_axis() == 1
        view = ops.convert_to_tensor(ops.moveaxis(view, -1, 1) if first else view)
        output: Any = ops.cast(answer_of(extractor, view)[layer], "float32")
        outputs.append(ops.moveaxis(output, 1, -1) if first and len(output.shape) == 4 else output)
    return outputs


def _unit(values: np.ndarray) -> np.ndarray:
    """Divide each row by its length; zeros stay zeros."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length > 0, length, 1)).astype("float32")

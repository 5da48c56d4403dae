"""Frozen blocks, the outputs of several layers in one pass, and the paper's image descriptor."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.finite import require_finite_images, require_finite_weights

BLOCKS = ("block1", "block2", "block3", "block4", "block5")


def freeze(model: keras.Model, until: str) -> tuple[str, ...]:
    """Freeze the blocks before `until`, so that training does not change them.

    Call this before `compile`. A frozen batch normalisation uses its statistics and does not change
    them.

    Args:
        model: A VGG.
        until: "none" or "block1": freeze nothing. "block2" to "block5": freeze the blocks before
            this one. "all": freeze all blocks and train only the classifier.

    Returns:
        The names of the frozen layers that have weights.

    Raises:
        ValueError: an unknown `until`; the model's own layers are not those of a VGG.
    """
    frozen_blocks = {"none": 0, "all": len(BLOCKS)} | {b: i for i, b in enumerate(BLOCKS)}
    if until not in frozen_blocks:
        raise ValueError(f"until must be one of {', '.join(frozen_blocks)}, not {until!r}")
    blocks = {layer: re.match(r"block(\d)_", layer.name) for layer in model.layers}
    if frozen_blocks[until] and not any(blocks.values()):
        raise ValueError(f"{model.name} has no layers block1_...: freeze the VGG that it holds")
    model.trainable = True  # if this is False, Keras trains none of the layers
    for layer, block in blocks.items():
        layer.trainable = not (block and int(block[1]) <= frozen_blocks[until])
    return tuple(layer.name for layer in model.layers if layer.weights and not layer.trainable)


def feature_extractor(
    model: keras.Model, layers: str | Iterable[str], pooling: str | int | None = None
) -> keras.Model:
    """Return a model from images to {layer name: output}, for several layers in one pass.

    Args:
        model: A VGG. The extractor shares its weights.
        layers: Names, such as "block4_pool".
        pooling: None: feature maps stay as they are, [n, h, w, c]. "avg" or "max": pool over the
            map, [n, c]. A number g: average over a grid of g x g parts, [n, g*g*c] in the order
            row, column, channel. Outputs that are not maps stay as they are.

    Raises:
        ValueError: there is no layer, a layer is unknown or named twice; an unknown pooling; a map
            is smaller than the grid, not divisible by it, or of unknown size.
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"layers must be one or more different names, not {names}")
    if not (pooling in (None, "avg", "max") or (type(pooling) is int and pooling > 0)):
        raise ValueError(f"pooling must be None, 'avg', 'max' or a number, not {pooling!r}")
    outputs = {}
    for name in names:
        output: Any = _layer(model, name).output
        if len(output.shape) == 4:
            output = _pooled(output, pooling, name)
        outputs[name] = output
    return keras.Model(model.inputs[0], outputs, name=f"{model.name}_features")


def channel_axis() -> int:
    """Return the axis of the channels in a batch of images or maps."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def _layer(model: keras.Model, name: str) -> keras.layers.Layer:
    known = [layer.name for layer in model.layers]
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{model.name} has no layer {name!r}{hint}")
    return model.get_layer(name)


def _pooled(feature_map: Any, pooling: str | int | None, name: str) -> Any:
    if pooling is None:
        return feature_map
    if pooling == "avg":
        return keras.layers.GlobalAveragePooling2D(name=f"{name}_avg")(feature_map)
    if pooling == "max":
        return keras.layers.GlobalMaxPooling2D(name=f"{name}_max")(feature_map)
    assert isinstance(pooling, int), "feature_extractor checks it"
    first = channel_axis() == 1
    height, width = feature_map.shape[2:] if first else feature_map.shape[1:3]
    if None in (height, width) or min(height, width) < pooling:
        raise ValueError(
            f"a grid of {pooling} x {pooling} needs a map of known size, at least as large as the "
            f"grid; {name} gives {height} x {width}"
        )
    window = (height // pooling, width // pooling)
    x = keras.layers.AveragePooling2D(window, name=f"{name}_grid")(feature_map)
    if first:
        x = keras.layers.Permute((2, 3, 1), name=f"{name}_rows")(x)
    x = keras.layers.Reshape((-1, x.shape[-1]), name=f"{name}_parts")(x)
    # A map that is not a multiple of the grid gives more parts.
    if x.shape[1] != pooling**2:
        raise ValueError(
            f"{name} gives {height} x {width}, which {pooling} x {pooling} parts do not divide"
        )
    return keras.layers.Flatten(name=f"{name}_flat")(x)


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

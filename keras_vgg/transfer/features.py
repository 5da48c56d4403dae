"""Frozen blocks, features of several layers in one pass, and the paper's image descriptor."""

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
    """Keep the blocks before `until` as they are in training; call it before `compile`.

    A frozen batch normalisation uses its statistics and does not change them.

    Args:
        model: A VGG.
        until: "none" or "block1": every layer is trained; "block2" ... "block5": the blocks before
            it are not; "all": no block is, only the classifier.

    Returns:
        The frozen layers that have weights.

    Raises:
        ValueError: another `until`; a model whose own layers are no VGG's.
    """
    frozen_blocks = {"none": 0, "all": len(BLOCKS)} | {b: i for i, b in enumerate(BLOCKS)}
    if until not in frozen_blocks:
        raise ValueError(f"until must be one of {', '.join(frozen_blocks)}, not {until!r}")
    blocks = {layer: re.match(r"block(\d)_", layer.name) for layer in model.layers}
    if frozen_blocks[until] and not any(blocks.values()):
        raise ValueError(f"{model.name} has no layers block1_...: freeze the VGG that it holds")
    model.trainable = True  # where it is False, Keras trains no layer whatever the layer says
    for layer, block in blocks.items():
        layer.trainable = not (block and int(block[1]) <= frozen_blocks[until])
    return tuple(layer.name for layer in model.layers if layer.weights and not layer.trainable)


def feature_extractor(
    model: keras.Model, layers: str | Iterable[str], pooling: str | int | None = None
) -> keras.Model:
    """Several layers' outputs in one pass, as a model of images -> {layer name: tensor}.

    Args:
        model: A VGG; the extractor shares its weights.
        layers: Names, such as "block4_pool".
        pooling: None: maps as they are, [n, h, w, c]; "avg" or "max": over the whole map, [n, c];
            a number g: averaged over a grid of g x g parts, [n, g*g*c] in the order row, column,
            channel. Outputs that are not maps stay as they are.

    Raises:
        ValueError: a layer that there is not, twice the same, or none; another pooling; a map
            that is smaller than the grid or of unknown size.
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
    assert isinstance(pooling, int), "feature_extractor has looked"
    first = channel_axis() == 1
    height, width = feature_map.shape[2:] if first else feature_map.shape[1:3]
    if None in (height, width) or min(height, width) < pooling:
        raise ValueError(
            f"a grid of {pooling} x {pooling} needs a map of known size, at least that large; "
            f"{name} gives {height} x {width}"
        )
    window = (height // pooling, width // pooling)
    x = keras.layers.AveragePooling2D(window, name=f"{name}_grid")(feature_map)
    if first:
        x = keras.layers.Permute((2, 3, 1), name=f"{name}_rows")(x)
    x = keras.layers.Reshape((-1, x.shape[-1]), name=f"{name}_parts")(x)
    # A map that is no multiple of the grid leaves more parts than asked for.
    if x.shape[1] != pooling**2:
        raise ValueError(f"{name} gives {height} x {width}, which no {pooling} x {pooling} divides")
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
    """The paper's image descriptor (appendix B): float32 [n, d], each of length 1.

    Each image, whole, is rescaled to each smallest side Q. The layer's map is averaged over the
    image, then over the image and its mirror image, and divided by its length. Several scales are
    stacked, or averaged, and divided by the length again.

    Args:
        model: A VGG for images of any size: without the top, or with head="conv". Of one size: the
            images have to fit.
        images: [n, h, w, 3], or a list of [h, w, 3] of any sizes, uint8 or float, in the model's
            range: RGB in [0, 255] if the preprocessing is inside.
        layer: A layer's name. Default: "fc2" with head="conv", as in the paper, else "block5_pool".
        sizes: The smallest sides Q, such as (256, 384, 512); None: the images as they are.
        combine: "stack" or "average" over scales.
        flip: Use the mirror image.
        batch_size: Images of one size at a time.
        verbose: 1 shows a progress bar.

    Raises:
        ValueError: no image; an image that is none, not finite, too small, or does not fit the
            model's input; weights that are not finite; another `combine`, `sizes` or `batch_size`.
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
    groups = [_by_shape(model, images, size) for size in sides]  # refuses before the work begins
    progress = keras.utils.Progbar(len(images) * len(sides), verbose=verbose, unit_name="image")
    scales = []
    for size, shapes in zip(sides, groups, strict=True):
        found: dict[int, np.ndarray] = {}
        for shape, members in shapes.items():
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                batch = np.stack([np.asarray(images[i], "float32") for i in chosen])
                if size:
                    batch = ops.image.resize(
                        batch, shape, antialias=True, data_format="channels_last"
                    )
                found.update(zip(chosen, _descriptors(extractor, batch, layer, flip), strict=True))
                progress.add(len(chosen))
        scales.append(_unit(np.stack([found[i] for i in range(len(images))])))
    return _unit(np.concatenate(scales, 1) if combine == "stack" else np.mean(scales, 0))


def _by_shape(
    model: keras.Model, images: np.ndarray | Sequence[np.ndarray], size: int | None
) -> dict[tuple[int, int], list[int]]:
    """(height, width) after rescaling -> the images that have it; each fits the model's input."""
    groups: dict[tuple[int, int], list[int]] = {}
    axis = channel_axis()
    wanted = list(model.inputs[0].shape[1:])
    wanted = [*wanted[1:], wanted[0]] if axis == 1 else wanted
    for i, image in enumerate(images):
        shape = _rescaled(np.shape(image), size)
        if min(shape) < 32:
            raise ValueError(f"image {i} is {shape}, smaller than 32x32: give sizes")
        given = (*shape, np.shape(image)[2])
        if any(w not in (None, g) for w, g in zip(wanted, given, strict=True)):
            raise ValueError(
                f"image {i} comes as {given}, {model.name} takes {tuple(wanted)}; a VGG without "
                'the top or with head="conv" takes any height and width'
            )
        groups.setdefault(shape, []).append(i)
    return groups


def _rescaled(shape: Sequence[int], size: int | None) -> tuple[int, int]:
    """(height, width) with the smallest side `size`, the aspect kept."""
    height, width = shape[:2]
    if size is None:
        return height, width
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def _descriptors(extractor: keras.Model, batch: Any, layer: str, flip: bool) -> np.ndarray:
    """[n, h, w, channels] -> [n, d] float32, averaged over the views of an image."""
    views = [batch, ops.flip(batch, axis=2)] if flip else [batch]
    if channel_axis() == 1:
        views = [ops.moveaxis(view, -1, 1) for view in views]
    values = [extractor(ops.convert_to_tensor(view), training=False)[layer] for view in views]
    arrays: list[Any] = [ops.convert_to_numpy(ops.cast(v, "float32")) for v in values]
    return np.mean(arrays, axis=0)


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length > 0, length, 1)).astype("float32")

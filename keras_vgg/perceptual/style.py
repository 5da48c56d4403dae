"""The loss of style transfer (Gatys et al., CVPR 2016; arXiv:1508.06576), and its gradient.

F is a layer's map with N channels and M places. The loss of style is the mean over the layers of
|G - A|^2 / 4, where G = F'F / (N M) is the Gram matrix of the image and A that of the style. That
is the paper's equation, with A divided by the style's own number of places, so that the two
pictures may differ in size. The loss of content is |F - P|^2 / (2 N M), where P is the content's
map: the paper's sum, divided by the number of its terms, so that a weight means the same for every
size.

The paper rescales VGG so that the mean of each map is 1 over many images. Here each layer's map is
divided by its mean over the two pictures, which does the same for any network: a map after the ReLU
has no negative values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_vgg.architecture import get_configuration
from keras_vgg.backend import as_array
from keras_vgg.features import channel_axis, feature_extractor
from keras_vgg.finite import check_range, require_finite_images, require_finite_weights
from keras_vgg.gradient import answer_of, gradient_of
from keras_vgg.graph import all_layers
from keras_vgg.perceptual.gram import gram_matrix
from keras_vgg.perceptual.images import has_preprocessing

STYLE_LAYERS = tuple(f"block{block}_conv1" for block in range(1, 6))
CONTENT_LAYER = "block4_conv2"
LEAST_SIDE = 32  # pixels: block 5 has two places
_GRID = 16  # pixels: a tile begins where a place of block 5 does


class Window(NamedTuple):
    """A tile of an image with the pixels around it. Rows and columns, the end not included."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    core_rows: tuple[int, int]
    core_columns: tuple[int, int]


class Losses(NamedTuple):
    """The losses of an image; `total` is their weighted sum."""

    total: float
    style: float
    content: float


def style_loss(feature_map: Any, style_gram: Any) -> Any:
    """Return the loss of style of maps [n, h, w, c], [n]; `style_gram` is [c, c] or [n, c, c]."""
    difference: Any = ops.square(ops.subtract(gram_matrix(feature_map), style_gram))
    total: Any = ops.sum(difference, axis=(1, 2))
    return total / 4


def content_loss(feature_map: Any, content_map: Any) -> Any:
    """Return the loss of content of maps [n, h, w, c], [n]."""
    difference: Any = ops.square(ops.subtract(ops.cast(feature_map, "float32"), content_map))
    mean: Any = ops.mean(difference, axis=(1, 2, 3))
    return mean / 2


def halo_of(names: Sequence[str]) -> int:
    """Return the pixels that layers of VGG see beyond a tile, rounded up to a multiple of 16.

    Pooling begins at multiples of 16, as tiles do, and sees nothing beyond its cell. So these are
    the pixels that the 3x3 convolutions of VGG-19 up to the deepest layer see beyond their places.

    Raises:
        ValueError: a name is not that of a convolution of VGG.
    """
    depths = [len(block) for block in get_configuration("E").blocks]
    pixels = 0
    for block, number in map(_place_of, names):
        convolutions = [*depths[: block - 1], number]
        pixels = max(pixels, sum(count * 2**i for i, count in enumerate(convolutions)))
    return math.ceil(pixels / _GRID) * _GRID


def windows(height: int, width: int, tile: int | None = None, halo: int = 0) -> list[Window]:
    """Return the tiles of an image, each with `halo` pixels around it where there are any.

    Args:
        height: Pixels.
        width: Pixels.
        tile: The side of a tile. None: one tile, the image.
        halo: A multiple of 16.

    Raises:
        ValueError: the side is not a multiple of 16, or smaller than 64.
    """
    if tile is None:
        whole = (0, height), (0, width)
        return [Window(*whole, *whole)]
    if tile % _GRID or tile < 4 * _GRID:
        raise ValueError(f"tile must be a multiple of {_GRID}, at least {4 * _GRID}, not {tile}")

    def parts(side: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        cores = [(start, min(start + tile, side)) for start in range(0, side, tile)]
        return [((max(0, a - halo), min(side, b + halo)), (a, b)) for a, b in cores]

    return [
        Window(rows, columns, core_rows, core_columns)
        for rows, core_rows in parts(height)
        for columns, core_columns in parts(width)
    ]


class StyleObjective:
    """The loss of an image against the content of one picture and the style of another.

    Call it with an image, float32 [h, w, 3] RGB in [0, 255], of the content's size: it returns the
    `Losses` and the gradient of the total, float32 [h, w, 3].

    With tiles, the network sees one tile at a time, so that its maps take the memory of a tile. The
    Gram matrices are those of the whole image, summed over the tiles, and the gradient is the same
    but for rounding. It takes 1.3 times as long, and the pixels around each tile come on top.

    Args:
        model: A VGG without the top that takes RGB in [0, 255], with its preprocessing inside. Its
            weights do not change.
        content: [h, w, 3] RGB in [0, 255].
        style: [h', w', 3] RGB in [0, 255].
        style_layers: Convolutions of VGG. Their maps are those after the ReLU, which follows batch
            norm where there is one; "block1_conv1:pre" is before it.
        content_layer: As `style_layers`.
        pooling_layers: "avg": average pooling in place of max pooling, as in the paper. None: the
            network's own.
        style_weight: The weight of the loss of style; that of the content is 1.
        tile: The side of a tile in pixels, a multiple of 16. None: no tiles.

    Raises:
        ValueError: a picture is no RGB image in [0, 255], or smaller than 32 pixels; a layer is no
            convolution of the VGG; the VGG does not take RGB; a bad weight or tile.
    """

    def __init__(
        self,
        model: keras.Model,
        content: np.ndarray,
        style: np.ndarray,
        *,
        style_layers: str | Sequence[str] = STYLE_LAYERS,
        content_layer: str = CONTENT_LAYER,
        pooling_layers: Literal["avg"] | None = "avg",
        style_weight: float = 5.0,
        tile: int | None = None,
    ) -> None:
        if not 0 < style_weight < float("inf"):
            raise ValueError(f"style_weight must be a positive number, not {style_weight}")
        style_layers, content_layer = after_relu(model, style_layers, content_layer)
        content, style = checked_picture(content, "content"), checked_picture(style, "style")
        require_finite_weights(model)
        self._style_layers, self._content_layer = style_layers, content_layer
        self._names = tuple(dict.fromkeys((*style_layers, content_layer)))
        self._strides = {name: stride_of(name) for name in self._names}
        halo = halo_of(self._names)
        self._windows = windows(content.shape[0], content.shape[1], tile, halo)
        extractor = rgb_extractor(model, self._names, pooling_layers)
        self._sums = _sums_network(extractor, self._style_layers, content_layer)
        own = [self._sums_of(content, window) for window in self._windows]
        style_windows = windows(style.shape[0], style.shape[1], tile, halo)
        others = [self._sums_of(style, w) for w in style_windows]
        self._content_maps = [sums[-1] for sums in own]
        self._style_grams = _gram_sums(others, len(style_layers))
        means = self._means(own, content.shape) + self._means(others, style.shape)
        scales = 2 / np.where(means > 0, means, 2)
        # The Gram matrix has the square of a scale, and its loss the fourth power.
        weights = style_weight * scales[:-1] ** 4 / len(style_layers)
        channels = self._content_maps[0].shape[-1]
        terms = channels * self._place_count(content_layer, content.shape)
        self._weights = np.array([*weights, scales[-1] ** 2 / terms], "float32")
        self._style_weight = style_weight
        self._gradient = gradient_of(
            _loss_network(extractor, self._style_layers, content_layer),
            lambda losses, _: ops.sum(ops.multiply(losses, self._weights), axis=1),
        )
        self.shape = content.shape

    def __call__(self, image: np.ndarray) -> tuple[Losses, np.ndarray]:
        """Return the losses of an image and the gradient of the total.

        Raises:
            ValueError: the image has another shape than the content.
        """
        if image.shape != self.shape:
            raise ValueError(f"the image must be {self.shape} as the content, not {image.shape}")
        parts = [0.0 * gram for gram in self._style_grams]
        sums = []
        if len(self._windows) > 1:
            sums = [self._sums_of(image, window) for window in self._windows]
            parts = _gram_sums(sums, len(self._style_layers))
        gradient = np.zeros(self.shape, "float32")
        style, content = np.zeros(len(self._style_layers)), 0.0
        for number, window in enumerate(self._windows):
            own = sums[number] if sums else parts
            rest = [whole - part for whole, part in zip(parts, own, strict=False)]
            inputs = [
                *rest,
                *self._style_grams,
                *self._masks(window, image.shape),
                self._content_maps[number],
                as_input(_part(image, window)),
            ]
            losses, slope = self._gradient(
                [ops.convert_to_tensor(x) for x in inputs], ops.zeros(1, "int32")
            )
            losses = as_array(losses)[0]
            style, content = losses[:-1], content + float(losses[-1])
            slope = as_array(slope)
            slope = np.moveaxis(slope, 1, -1) if channel_axis() == 1 else slope
            gradient[slice(*window.rows), slice(*window.columns)] += slope[0]
        weighted = style.astype("float64") * self._weights[:-1]
        content *= float(self._weights[-1])
        total = float(weighted.sum()) + content
        return Losses(total, float(weighted.sum()) / self._style_weight, content), gradient

    def _masks(self, window: Window, shape: Sequence[int]) -> list[np.ndarray]:
        """Return for each layer, style then content, which places belong to the tile; [1, h, w, 1].

        Those of the style are divided by the root of the number of places in the whole image, so
        that the sums over all tiles are means.
        """
        masks = []
        for name in (*self._style_layers, self._content_layer):
            stride = self._strides[name]
            sides = [
                _places(side, core, stride, whole)
                for side, core, whole in zip(window[:2], window[2:], shape, strict=False)
            ]
            mask = np.outer(*sides)[np.newaxis, :, :, np.newaxis].astype("float32")
            masks.append(mask)
        places = [self._place_count(name, shape) for name in self._style_layers]
        scaled = [mask / np.sqrt(n) for mask, n in zip(masks[:-1], places, strict=True)]
        return [*(mask.astype("float32") for mask in scaled), masks[-1]]

    def _place_count(self, name: str, shape: Sequence[int]) -> int:
        return (shape[0] // self._strides[name]) * (shape[1] // self._strides[name])

    def _sums_of(self, image: np.ndarray, window: Window) -> list[np.ndarray]:
        """Return a tile's share of each Gram matrix and of each mean, and its content map."""
        inputs = [*self._masks(window, image.shape), as_input(_part(image, window))]
        outputs = answer_of(self._sums, [ops.convert_to_tensor(x) for x in inputs])
        return [as_array(output) for output in outputs]

    def _means(self, sums: Sequence[list[np.ndarray]], shape: Sequence[int]) -> np.ndarray:
        """Return the mean of each layer's map, style then content."""
        first = len(self._style_layers)
        totals = np.sum([[float(x[0]) for x in part[first:-1]] for part in sums], axis=0)
        names = (*self._style_layers, self._content_layer)
        counts = [float(self._place_count(name, shape)) for name in names]
        counts[:-1] = np.sqrt(counts[:-1]).tolist()  # the masks of the style hold the other half
        return totals / np.array(counts)


def _gram_sums(sums: Sequence[list[np.ndarray]], layers: int) -> list[np.ndarray]:
    """Return the Gram matrices of a whole image from those of its tiles."""
    return [np.sum([part[i] for part in sums], axis=0) for i in range(layers)]


def checked_picture(image: np.ndarray, name: str) -> np.ndarray:
    """Return a picture as float32. ValueError: it is no image in [0, 255], or too small."""
    if np.ndim(image) != 3 or np.shape(image)[2] != 3:
        raise ValueError(f"the {name} must be [height, width, 3], not {list(np.shape(image))}")
    if min(np.shape(image)[:2]) < LEAST_SIDE:
        raise ValueError(
            f"the {name} must be at least {LEAST_SIDE} pixels high and wide, not "
            f"{np.shape(image)[0]} x {np.shape(image)[1]}"
        )
    image = np.asarray(image)
    require_finite_images(image, f"the {name} holds")
    check_range(image, subject=f"the {name}", advice="pass values in [0, 255]")
    return image.astype("float32")


def after_relu(
    model: keras.Model, style_layers: str | Sequence[str], content_layer: str
) -> tuple[tuple[str, ...], str]:
    """Return the layers of style and the layer of content by names that give maps after the ReLU.

    With batch norm, a convolution's own output is before both.

    Raises:
        ValueError: a layer is no convolution of VGG; two layers of style are the same.
    """
    style_layers = [style_layers] if isinstance(style_layers, str) else style_layers
    for name in (*style_layers, content_layer):
        _place_of(name)
    normalizes = any(isinstance(x, keras.layers.BatchNormalization) for x in all_layers(model))
    *styles, content = (
        f"{name}:post" if normalizes and ":" not in name else name
        for name in (*style_layers, content_layer)
    )
    if not styles or len(set(styles)) != len(styles):
        raise ValueError(f"style_layers must be different layers, not {list(style_layers)}")
    return tuple(styles), content


def rgb_extractor(
    model: keras.Model, names: Sequence[str], pooling_layers: Literal["avg"] | None
) -> keras.Model:
    """Return the `feature_extractor` of these layers.

    Raises:
        ValueError: the model does not take RGB, or has no preprocessing inside.
    """
    if not has_preprocessing(model):
        raise ValueError(
            f"the model {model.name} has no preprocessing inside, and a style needs it: build it "
            "with include_preprocessing=True"
        )
    extractor = feature_extractor(model, names, pooling_layers=pooling_layers)
    channels = extractor.inputs[0].shape[channel_axis()]
    if channels != 3:
        raise ValueError(
            f"a style needs a network for RGB, and {model.name} takes images of {channels} "
            f"channel{'s' * (channels != 1)}: choose other weights"
        )
    return extractor


def stride_of(name: str) -> int:
    """Return the pixels between two places of a layer. ValueError: it is no convolution of VGG."""
    return 2 ** (_place_of(name)[0] - 1)


def _place_of(name: str) -> tuple[int, int]:
    """Return the number of a convolution's block, and its own in the block."""
    match = re.fullmatch(r"block([1-5])_conv(\d)(:pre|:post)?", name)
    if match is None:
        raise ValueError(
            f"a layer of style or content must be a convolution of VGG, such as {CONTENT_LAYER}, "
            f"not {name!r}"
        )
    return int(match[1]), int(match[2])


def _places(side: tuple[int, int], core: tuple[int, int], stride: int, whole: int) -> np.ndarray:
    """Return 1 for the places of a window's side that belong to the tile, and 0 for the others."""
    count = (side[1] - side[0]) // stride
    first = (core[0] - side[0]) // stride
    last = count if core[1] == whole else (core[1] - side[0]) // stride
    return (np.arange(count) >= first) & (np.arange(count) < last)


def _part(image: np.ndarray, window: Window) -> np.ndarray:
    return image[slice(*window.rows), slice(*window.columns)]


def as_input(image: np.ndarray) -> np.ndarray:
    batch = image[np.newaxis].astype("float32")
    return np.moveaxis(batch, -1, 1) if channel_axis() == 1 else batch


def _inputs(
    extractor: keras.Model, style_layers: Sequence[str], content_layer: str
) -> tuple[list[Any], Any, dict[str, Any]]:
    """Return inputs for the masks and the image, and the image's maps, channels last, float32."""
    masks = [keras.Input((None, None, 1), name=f"mask_{i}") for i in range(len(style_layers) + 1)]
    image = keras.Input(extractor.inputs[0].shape[1:], name="image")
    maps: Any = extractor(image)
    maps = {name: ops.cast(x, "float32") for name, x in maps.items()}  # of mixed precision
    if channel_axis() == 1:
        maps = {name: ops.moveaxis(maps[name], 1, -1) for name in (*style_layers, content_layer)}
    return masks, image, maps


def _gram_sum(feature_map: Any, mask: Any) -> Any:
    """Return the Gram matrix [n, c, c] of the places of a tile; the mask has the scale."""
    masked = feature_map * mask
    channels = masked.shape[-1]
    rows: Any = keras.layers.Reshape((-1, channels), dtype="float32")(masked)
    rows = rows / float(np.sqrt(channels))
    return ops.matmul(ops.transpose(rows, (0, 2, 1)), rows)


def _sums_network(
    extractor: keras.Model, style_layers: Sequence[str], content_layer: str
) -> keras.Model:
    """Return a model from [masks, image] to [Gram matrices, totals of maps, content map]."""
    masks, image, maps = _inputs(extractor, style_layers, content_layer)
    names = (*style_layers, content_layer)
    grams = [_gram_sum(maps[n], m) for n, m in zip(style_layers, masks, strict=False)]
    totals = [
        ops.sum(ops.mean(maps[n] * m, axis=-1), axis=(1, 2))
        for n, m in zip(names, masks, strict=True)
    ]
    return keras.Model([*masks, image], [*grams, *totals, maps[content_layer]])


def _loss_network(
    extractor: keras.Model, style_layers: Sequence[str], content_layer: str
) -> keras.Model:
    """Return a model from what a tile's losses depend on to the losses of each layer, [1, l + 1].

    The inputs are the Gram matrices of the other tiles, those of the style, the masks, the
    content's map and the image.
    """
    masks, image, maps = _inputs(extractor, style_layers, content_layer)
    squares = [(maps[name].shape[-1],) * 2 for name in style_layers]
    rest = [keras.Input(shape, name=f"rest_{i}") for i, shape in enumerate(squares)]
    wanted = [keras.Input(shape, name=f"style_{i}") for i, shape in enumerate(squares)]
    content = keras.Input((None, None, maps[content_layer].shape[-1]), name="content")
    losses = []
    for name, mask, other, style in zip(style_layers, masks, rest, wanted, strict=False):
        difference = _gram_sum(maps[name], mask) + other - style
        total: Any = ops.sum(ops.square(difference), axis=(1, 2))
        losses.append(total / 4)
    total = ops.sum(ops.square((maps[content_layer] - content) * masks[-1]), axis=(1, 2, 3))
    losses.append(total / 2)
    return keras.Model([*rest, *wanted, *masks, content, image], ops.stack(losses, axis=1))

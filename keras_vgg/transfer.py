"""A trained VGG put to another use: features, descriptors, frozen bases, perceptual losses."""

from __future__ import annotations

import dataclasses
import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.layers import ImagePreprocessing

BLOCKS = ("block1", "block2", "block3", "block4", "block5")


def freeze(model: keras.Model, until: str) -> tuple[str, ...]:
    """Keep the blocks before `until` as they are in training; call it before `compile`.

    A frozen batch normalisation uses its statistics and does not change them.

    Args:
        model: A VGG.
        until: "none": every layer is trained; "block2" ... "block5": the blocks before it are not;
            "all": no block is, only the classifier.

    Returns:
        The frozen layers that have weights.

    Raises:
        ValueError: another `until`.
    """
    frozen_blocks = {"none": 0, "all": len(BLOCKS)} | {b: i for i, b in enumerate(BLOCKS)}
    if until not in frozen_blocks:
        raise ValueError(f"until must be one of {', '.join(frozen_blocks)}, not {until!r}")
    for layer in model.layers:
        block = re.match(r"block(\d)_", layer.name)
        layer.trainable = not (block and int(block[1]) <= frozen_blocks[until])
    return tuple(layer.name for layer in model.layers if layer.weights and not layer.trainable)


def feature_extractor(
    model: keras.Model, layers: str | Sequence[str], pooling: str | int | None = None
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
        output = _layer(model, name).output
        if len(output.shape) == 4:
            output = _pooled(output, pooling, name)
        outputs[name] = output
    return keras.Model(model.inputs[0], outputs, name=f"{model.name}_features")


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
    first = keras.config.image_data_format() == "channels_first"
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
) -> np.ndarray:
    """The paper's image descriptor (appendix B): float32 [n, d], each of length 1.

    Each image, whole, is rescaled to each smallest side Q. The layer's map is averaged over the
    image, then over the image and its mirror image, and divided by its length. Several scales are
    stacked, or averaged, and divided by the length again.

    Args:
        model: A VGG for images of any size: without the top, or with head="conv".
        images: [n, h, w, 3], or a list of [h, w, 3] of any sizes, in the model's range: RGB in
            [0, 255] if the preprocessing is inside.
        layer: A layer's name. Default: "fc2" with head="conv", as in the paper, else "block5_pool".
        sizes: The smallest sides Q, such as (256, 384, 512); None: the images as they are.
        combine: "stack" or "average" over scales.
        flip: Use the mirror image.
        batch_size: Images of one size at a time.

    Raises:
        ValueError: no image, an image that is none, too small or not finite; another `combine`.
    """
    if combine not in ("stack", "average"):
        raise ValueError(f"combine must be 'stack' or 'average', not {combine!r}")
    if len(images) == 0:
        raise ValueError("there are no images to embed")
    if sizes is not None and (not sizes or min(sizes) < 32):
        raise ValueError(f"sizes must be 32 or more, not {sizes}")
    for i, image in enumerate(images):
        if np.ndim(image) != 3:
            raise ValueError(
                f"image {i} has shape {np.shape(image)}, not [height, width, channels]"
            )
        if not np.isfinite(image).all():
            raise ValueError(f"image {i} holds values that are not finite")
    if layer is None:
        maps = [x.name for x in model.layers if len(np.shape(x.output)) == 4]
        layer = "fc2" if "fc2" in maps else "block5_pool"
    extractor = feature_extractor(model, layer, pooling="avg")
    scales = []
    for size in sizes or (None,):
        groups: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(_rescaled(np.shape(image), size), []).append(i)
        found: np.ndarray | None = None
        for shape, members in groups.items():
            if min(shape) < 32:
                raise ValueError(f"image {members[0]} is {shape}, smaller than 32x32: give sizes")
            for start in range(0, len(members), batch_size):
                chosen = members[start : start + batch_size]
                batch = np.stack([np.asarray(images[i], "float32") for i in chosen])
                batch = ops.image.resize(batch, shape, antialias=True) if size else batch
                values = _descriptors(extractor, batch, layer, flip)
                if found is None:
                    found = np.zeros((len(images), values.shape[1]), "float32")
                found[chosen] = values
        scales.append(_unit(found))
    return _unit(np.concatenate(scales, 1) if combine == "stack" else np.mean(scales, 0))


def _rescaled(shape: Sequence[int], size: int | None) -> tuple[int, int]:
    """(height, width) with the smallest side `size`, the aspect kept."""
    height, width = shape[:2]
    if size is None:
        return height, width
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def _descriptors(extractor: keras.Model, batch: Any, layer: str, flip: bool) -> np.ndarray:
    views = [batch, ops.flip(batch, axis=2)] if flip else [batch]
    values = [extractor(ops.convert_to_tensor(view), training=False)[layer] for view in views]
    return np.mean([ops.convert_to_numpy(v) for v in values], axis=0)


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(length > 0, length, 1)).astype("float32")


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on features, and how its regularisation was chosen."""

    classifier: Any
    """A scikit-learn pipeline: predict, and with kind="logistic" predict_proba."""
    C: float
    validation_accuracy: float
    tried: tuple[tuple[float, float], ...]
    """(C, validation accuracy) of everything tried."""
    converged: bool

    def score(self, features: np.ndarray, labels: np.ndarray) -> float:
        return float(self.classifier.score(features, labels))


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    validation_features: np.ndarray,
    validation_labels: np.ndarray,
    *,
    C: Iterable[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    kind: str = "logistic",
    standardize: bool = True,
    max_iter: int = 200,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear classifier for each C and keep the best on validation (of equals, the least C).

    Args:
        train_features: [n, d]; train_labels: [n]. Likewise for validation.
        C: Inverse strengths of the regularisation, as in scikit-learn.
        kind: "logistic" (multinomial, L-BFGS) or "svm" (linear, one against the rest; the paper's).
        standardize: Give every feature mean 0 and deviation 1 over the training images first.
        max_iter: Iterations at most; `LinearProbe.converged` tells whether they sufficed.
        seed: Of the SVM's solver.

    Raises:
        ValueError: lengths that differ, no C, features that are not finite, a single class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    strengths = sorted(C)
    if not strengths or strengths[0] <= 0:
        raise ValueError(f"C must be one or more positive numbers, not {strengths}")
    makers: dict[str, Callable[[float], Any]] = {
        "logistic": lambda c: LogisticRegression(C=c, max_iter=max_iter),
        "svm": lambda c: LinearSVC(C=c, max_iter=max_iter, random_state=seed),
    }
    if kind not in makers:
        raise ValueError(f"kind must be one of {', '.join(makers)}, not {kind!r}")
    _check_features("training", train_features, train_labels)
    _check_features("validation", validation_features, validation_labels)
    if len(np.unique(train_labels)) < 2:
        raise ValueError("the training labels are all the same: there is nothing to tell apart")
    tried, best = [], None
    for c in strengths:
        steps = [StandardScaler()] if standardize else []
        classifier = make_pipeline(*steps, makers[kind](c))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(train_features, train_labels)
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in said)
        accuracy = float(classifier.score(validation_features, validation_labels))
        tried.append((c, accuracy))
        if best is None or accuracy > best[1]:
            best = (c, accuracy, classifier, converged)
    c, accuracy, classifier, converged = best
    return LinearProbe(classifier, c, accuracy, tuple(tried), converged)


def _check_features(name: str, features: np.ndarray, labels: np.ndarray) -> None:
    if np.ndim(features) != 2 or len(features) != len(labels) or len(features) == 0:
        raise ValueError(
            f"{name} features must be [n, d] with n labels, not {np.shape(features)} with "
            f"{len(labels)}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{name} features hold values that are not finite")


class PerceptualLoss(keras.losses.Loss):
    """How differently a VGG sees two images: weighted distances of its features.

    For `model.compile(loss=PerceptualLoss(vgg, {"block2_conv2": 1.0}))`, where the model makes
    images (Johnson et al., arXiv:1603.08155, equation 2). Images are [n, h, w, 1 or 3], RGB in
    `value_range`. Gives [n], before Keras' reduction: the sum over layers of weight x mean over
    the map of the squared (or absolute) difference.

    Args:
        model: A VGG for images of that size; it is used as in inference, and never trained.
        layers: Names, or {name: weight}.
        distance: "l2" (squared) or "l1" (absolute).
        preprocessing: What the network was trained on, such as `ImagePreprocessing.caffe()`, where
            the model has none inside. False: the images come preprocessed.
        value_range: What the images' values lie in, such as (0, 1); mapped to [0, 255].
        normalize: Divide each pixel's features by their length first.

    Raises:
        ValueError: layers, weights or a distance that do not fit; no preprocessing anywhere.
    """

    def __init__(
        self,
        model: keras.Model,
        layers: Mapping[str, float] | Sequence[str],
        *,
        distance: str = "l2",
        preprocessing: ImagePreprocessing | bool | None = None,
        value_range: tuple[float, float] = (0.0, 255.0),
        normalize: bool = False,
        name: str = "perceptual_loss",
        reduction: str = "sum_over_batch_size",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if not isinstance(layers, Mapping):
            layers = dict.fromkeys([layers] if isinstance(layers, str) else layers, 1.0)
        if not layers or any(not np.isfinite(w) or w <= 0 for w in layers.values()):
            raise ValueError(f"layers need positive weights, not {dict(layers)}")
        if distance not in ("l2", "l1"):
            raise ValueError(f"distance must be 'l2' or 'l1', not {distance!r}")
        low, high = value_range
        if not low < high:
            raise ValueError(f"value_range must rise, not {value_range}")
        inside = any(isinstance(layer, ImagePreprocessing) for layer in model.layers)
        if inside == bool(preprocessing) and preprocessing is not False:
            raise ValueError(
                "the model has its preprocessing inside: pass none"
                if inside
                else "the model has no preprocessing inside: pass what it was trained on, such as "
                "ImagePreprocessing.caffe(), or False if the images come preprocessed"
            )
        self._extractor = feature_extractor(model, list(layers))
        self._layers = dict(layers)
        self._distance = distance
        self._preprocessing = preprocessing or None
        self._range = value_range
        self._normalize = normalize

    def call(self, y_true, y_pred):
        wanted, found = self._features(y_true), self._features(y_pred)
        measure = ops.square if self._distance == "l2" else ops.abs
        total = 0.0
        for name, weight in self._layers.items():
            difference = found[name] - ops.stop_gradient(wanted[name])
            measure = ops.square if self._distance == "l2" else ops.abs
            difference = measure(difference)
            axes = tuple(range(1, len(difference.shape)))
            total = total + weight * ops.mean(difference, axis=axes)
        return total

    def _features(self, images) -> dict[str, Any]:
        images = ops.cast(images, "float32")
        if images.shape[-1] == 1:
            images = ops.repeat(images, 3, axis=-1)
        low, high = self._range
        if self._range != (0.0, 255.0):
            images = (images - low) * (255.0 / (high - low))
        if self._preprocessing is not None:
            images = self._preprocessing(images)
        features = self._extractor(images, training=False)
        if self._normalize:
            features = {name: ops.normalize(f, axis=-1) for name, f in features.items()}
        return features

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(
            "a PerceptualLoss holds a network and is not saved with a model: save the model "
            "without its compilation, or give custom_objects when it is loaded"
        )

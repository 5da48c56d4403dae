"""Prepare images for ImageNet checkpoints, and name the classes of their outputs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
import urllib.error
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.files import keras_home
from keras_vgg.layers import ImagePreprocessing

CLASS_INDEX_URL = "https://storage.googleapis.com/download.tensorflow.org/data/" + (
    "imagenet_class_index.json"
)
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
MODES = {"caffe": ImagePreprocessing.caffe, "torchvision": ImagePreprocessing.torchvision}


def preprocess_input(x: Any, data_format: str | None = None, mode: str = "caffe") -> Any:
    """Preprocess images as a checkpoint expects; a drop-in for keras.applications' function.

    Unlike that function, this one does not change its input, and is right for integers: three
    uint8 channels of 200 become [96.061, 83.221, 76.32], not [97, 84, 77].

    Args:
        x: [h, w, 3] or [n, h, w, 3] (or channels first), RGB in [0, 255]: a NumPy array, a tensor
            of the backend, or a Keras tensor. A tensor's number of channels may be unknown, as it
            is after tf.io.decode_png; then a fourth channel, alpha, is dropped.
        data_format: "channels_last" or "channels_first"; None for Keras' default.
        mode: "caffe" is BGR minus the mean, for Keras' own files; "torchvision" is
            (RGB / 255 - mean) / deviation, for torchvision's and timm's. A builder's
            `weights="imagenet"` wants "caffe" for VGG16 and VGG19 without batch norm, and
            "torchvision" for VGG11, VGG13 and all with batch norm.

    Returns:
        The same kind and shape. Floats keep their dtype; other types become Keras' `floatx`.

    Raises:
        ValueError: the mode, data format, rank, number of channels or dtype is wrong.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if data_format is None:
        data_format = keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"data_format must be channels_last or channels_first, not {data_format!r}"
        )
    is_tensor = isinstance(x, keras.KerasTensor) or ops.is_tensor(x)
    x = x if is_tensor else np.asarray(x)
    dtype = keras.backend.standardize_dtype(x.dtype) if is_tensor else x.dtype.name
    if not dtype.startswith(("bool", "int", "uint", "float", "bfloat")):
        raise ValueError(f"images must be numbers, not of dtype {dtype}")
    if len(x.shape) not in (3, 4):
        raise ValueError(f"images must be [h, w, 3] or [n, h, w, 3], not {tuple(x.shape)}")
    axis = len(x.shape) - (3 if data_format == "channels_first" else 1)
    if x.shape[axis] != 3 and not (is_tensor and x.shape[axis] is None):
        raise ValueError(
            f"images must have 3 channels, {data_format}; the shape is {tuple(x.shape)}"
        )
    dtype = dtype if "float" in dtype else keras.config.floatx()
    config = MODES[mode]().get_config()
    order = [2, 1, 0] if config["channel_order"] == "bgr" else [0, 1, 2]
    shape = [1] * len(x.shape)
    shape[axis] = 3
    # In the images' own precision, the result has the same bits as keras.applications'.
    mean = np.reshape(np.take(config["mean"], order), shape)
    scale = np.reshape(np.take(np.broadcast_to(np.divide(1, config["std"]), 3), order), shape)
    if not is_tensor:
        return (np.take(x, order, axis).astype(dtype) - mean.astype(dtype)) * scale.astype(dtype)
    x = ops.cast(ops.take(x, order, axis), dtype)
    return (x - ops.cast(mean, dtype)) * ops.cast(scale, dtype)


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Name the most probable of ImageNet's 1000 classes, as keras.applications does.

    Args:
        preds: [n, 1000] probabilities or logits, of any number type (quantised ones too).
        top: Number of classes to name, from 1 to 1000.

    Returns:
        For each image, a list of (WordNet id, name, probability), the most probable first.

    Raises:
        ValueError: `preds` has another shape, or `top` is out of range.
        OSError: the class index is not cached and cannot be downloaded.
    """
    preds = ops.convert_to_numpy(preds) if ops.is_tensor(preds) else np.asarray(preds)
    if preds.ndim != 2 or preds.shape[1] != 1000:
        raise ValueError(
            f"predictions must be [n, 1000], one column for each ImageNet class, not {preds.shape}"
        )
    if top not in range(1, 1001):
        raise ValueError(f"top must be from 1 to 1000, not {top}")
    classes = class_index()
    preds = preds.astype("float64")  # the negative of an unsigned number wraps around
    order = np.argsort(-preds, axis=1, kind="stable")[:, : int(top)]
    return [
        [(*classes[i], float(row[i])) for i in best] for row, best in zip(preds, order, strict=True)
    ]


def class_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1000 classes in the outputs' order; see `class_index`."""
    return tuple(name for _, name in class_index())


def class_index() -> tuple[tuple[str, str], ...]:
    """Return (WordNet id, name) of ImageNet's 1000 classes.

    They are read from the file that keras.applications caches, or downloads first.

    Raises:
        OSError: the file is not cached and cannot be downloaded.
        ValueError: the cached file is damaged, or the download has another hash.
    """
    return _read_index(_fetch_index())


def _fetch_index() -> Path:
    name = "models/imagenet_class_index.json"
    path = keras_home(name) / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # get_file writes under the final name from the first byte. A temporary folder keeps a
        # partial or wrong file from other readers of the cache.
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            with contextlib.redirect_stdout(sys.stderr):  # Keras prints its progress there
                file = keras.utils.get_file(
                    path.name, CLASS_INDEX_URL, cache_subdir=folder, file_hash=CLASS_INDEX_MD5
                )
            os.replace(file, path)
    except ValueError as error:  # another hash
        raise ValueError(f"{CLASS_INDEX_URL} is not the class index: {error}") from error
    except Exception as error:  # get_file turns urllib's errors into a bare Exception
        cause = error.__context__ or error
        if isinstance(cause, urllib.error.HTTPError):
            cause.close()  # the error keeps its connection open
        raise ConnectionError(
            f"ImageNet's class names cannot be downloaded ({cause}): put {CLASS_INDEX_URL} at "
            f"{path} by hand"
        ) from error
    return path


@functools.cache
def _read_index(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return tuple((str(index[str(i)][0]), str(index[str(i)][1])) for i in range(1000))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it to download it again"
        ) from error

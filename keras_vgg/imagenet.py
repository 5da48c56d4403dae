"""What ImageNet checkpoints expect, and what their outputs mean."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vgg.layers import ImagePreprocessing

CLASS_INDEX_URL = "https://storage.googleapis.com/download.tensorflow.org/data/" + (
    "imagenet_class_index.json"
)
CLASS_INDEX_MD5 = "c2c37ea517e94d9795004a39431a14cb"
MODES = {"caffe": ImagePreprocessing.caffe, "torchvision": ImagePreprocessing.torchvision}


def preprocess_input(x: Any, data_format: str | None = None, mode: str = "caffe") -> Any:
    """Images as a checkpoint expects them; drop-in for keras.applications' function.

    Unlike that one it leaves its input as it was, and is right for integers: a uint8 200 becomes
    [96.061, 83.221, 76.32], not [97, 84, 77].

    Args:
        x: [h, w, 3] or [n, h, w, 3] (or channels first), RGB in [0, 255]: a NumPy array, a tensor
            of the backend, or a Keras tensor.
        data_format: "channels_last" or "channels_first"; Keras' default where None.
        mode: "caffe", BGR minus the mean, for Keras' own files; "torchvision", RGB / 255, minus
            mean, over deviation, for torchvision's and timm's.

    Returns:
        The same kind and shape; floats keep their dtype, the rest becomes Keras' `floatx`.

    Raises:
        ValueError: another mode, format, rank or number of channels.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"data_format must be channels_last or channels_first, not {data_format!r}"
        )
    tensor = isinstance(x, keras.KerasTensor) or ops.is_tensor(x)
    if not tensor:
        x = np.asarray(x)
        if x.dtype.kind not in "biuf":
            raise ValueError(f"images must be numbers, not of dtype {x.dtype}")
    if len(x.shape) not in (3, 4):
        raise ValueError(f"images must be [h, w, 3] or [n, h, w, 3], not of shape {tuple(x.shape)}")
    axis = len(x.shape) - (3 if data_format == "channels_first" else 1)
    if x.shape[axis] != 3:
        raise ValueError(
            f"images must have 3 channels, {data_format}; the shape is {tuple(x.shape)}"
        )
    config = MODES[mode]().get_config()
    shape = [1] * len(x.shape)
    shape[axis] = 3
    dtype = keras.backend.standardize_dtype(x.dtype)
    dtype = dtype if "float" in dtype else keras.config.floatx()
    # In float64, as keras.applications computes arrays; tensors in their own precision.
    mean = np.reshape(config["mean"], shape)
    scale = np.reshape(np.broadcast_to(np.divide(1.0, config["std"]), 3), shape)
    if not tensor:
        y = (x - mean) * scale
        y = np.flip(y, axis) if config["channel_order"] == "bgr" else y
        return np.ascontiguousarray(y, dtype)
    y = (ops.cast(x, dtype) - ops.cast(mean, dtype)) * ops.cast(scale, dtype)
    return ops.flip(y, axis) if config["channel_order"] == "bgr" else y


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Name the most probable of ImageNet's 1000 classes, as keras.applications does.

    Args:
        preds: [n, 1000] probabilities or logits.
        top: How many classes, from 1 to 1000.

    Returns:
        For each image (WordNet id, name, probability), most probable first.

    Raises:
        ValueError: another shape or `top`.
        OSError: the class index is not cached and cannot be downloaded.
    """
    preds = np.asarray(preds)
    if preds.ndim != 2 or preds.shape[1] != 1000:
        raise ValueError(
            f"predictions must be [n, 1000], one column for each ImageNet class, not {preds.shape}"
        )
    if not 1 <= top <= 1000:
        raise ValueError(f"top must be from 1 to 1000, not {top}")
    classes = class_index()
    order = np.argsort(-preds, axis=1, kind="stable")[:, :top]
    return [
        [(*classes[i], float(row[i])) for i in best] for row, best in zip(preds, order, strict=True)
    ]


def class_names() -> tuple[str, ...]:
    """The names of ImageNet's 1000 classes, in the order of the outputs; see `class_index`."""
    return tuple(name for _, name in class_index())


def class_index() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of ImageNet's 1000 classes, from the file that keras.applications caches.

    Raises:
        OSError: it is not cached and cannot be downloaded.
        ValueError: the cached file is damaged.
    """
    return _read_index(_fetch_index())


def _fetch_index() -> Path:
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    path = home / "models" / "imagenet_class_index.json"
    if path.is_file():
        return path
    try:
        keras.utils.get_file(
            path.name,
            CLASS_INDEX_URL,
            cache_subdir=str(path.parent),
            file_hash=CLASS_INDEX_MD5,
        )
    except ValueError as error:  # another hash
        path.unlink(missing_ok=True)
        raise ValueError(f"what {CLASS_INDEX_URL} gave is not the class index: {error}") from error
    except Exception as error:  # get_file raises a bare Exception from urllib's
        path.unlink(missing_ok=True)
        cause = error.__context__ or error
        if hasattr(cause, "close"):
            cause.close()  # an HTTPError holds its connection
        raise ConnectionError(
            f"ImageNet's class names cannot be downloaded ({cause}): put {CLASS_INDEX_URL} at "
            f"{path} by hand"
        ) from error
    return path


@functools.cache
def _read_index(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        index = json.loads(path.read_text())
        return tuple((str(index[str(i)][0]), str(index[str(i)][1])) for i in range(1000))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it, and it is downloaded anew"
        ) from error

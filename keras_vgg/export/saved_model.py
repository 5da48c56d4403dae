"""Write a SavedModel for TensorFlow Serving: four signatures, class names, warm-up requests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from keras_vgg.augment import channels_for, may_take_pictures
from keras_vgg.data.decode import (
    MAX_UPLOAD_PIXELS,
    BitDepth,
    decode,
    encoded_sides,
    transform_encoded,
)
from keras_vgg.export.warmup import write_warmup
from keras_vgg.features import feature_extractor

CLASS_NAMES = "class_names.txt"


def write_saved_model(
    model: keras.Model,
    path: Path,
    class_names: Sequence[str],
    *,
    transform: Callable,
    bit_depth: BitDepth = "16",
    top: int = 5,
) -> None:
    """Write a model with these signatures, each for any batch size:

    - `serving_default`: `images` float32 [n, size, size, 3] RGB in [0, 255] -> `probabilities`
      float32 [n, classes];
    - `serving_uint8`: the same for uint8 images;
    - `classify`: `image_bytes` string [n], image files (JPEG, PNG, BMP, GIF, WebP), which the
      model decodes, turns upright and transforms -> `classes` string, `indices` int32 and
      `probabilities` float32, all [n, top], the most probable first. A model that answers with a
      map has no such signature;
    - `features`: `images` float32 -> `features` float32 [n, channels], the last block's feature
      map averaged over the image. A model without a feature map has no such signature.

    A request gets an INVALID_ARGUMENT error for a bad image, images of another size or an empty
    batch. If the first bytes of an image show the error (an unknown format, or more than 25
    megapixels), nothing is decoded, and the message names the image's place in the batch. Else the
    message is the decoder's.

    The class names are the asset class_names.txt. The file assets.extra/tf_serving_warmup_requests
    has a request for each signature. TensorFlow Serving answers these before it reports ready.

    Args:
        model: images [n, size, size, 3] -> probabilities [n, classes], or a map of them.
        class_names: One name for each output, without line breaks.
        transform: A decoded image, uint8 [h, w, 3] -> float32 [size, size, 3] in [0, 255].
        bit_depth: How `classify` decodes a 16-bit PNG, as `keras_vgg.data.decode`.
        top: How many classes `classify` names, at most all of them.
    """
    shape = tuple(model.input_shape[1:])
    sample = transform(tf.zeros([256, 256, 3], tf.uint8))
    if sample.shape[-1] != shape[-1]:
        raise ValueError(
            f"model {model.name!r} takes {shape[-1]} channels, and `classify` gives it "
            f"{sample.shape[-1]}; pass a transform that makes such images, or leave out saved_model"
        )
    archive = keras.export.ExportArchive()
    # No track(model): the endpoints track the variables, and both would store every weight twice.
    requests = {
        "serving_default": {"images": sample[tf.newaxis]},
        "serving_uint8": {"images": tf.cast(sample, tf.uint8)[tf.newaxis]},
        "classify": {
            "image_bytes": tf.io.encode_jpeg(tf.zeros([256, 256, 3], tf.uint8))[tf.newaxis]
        },
    }

    def images_of(dtype: tf.DType) -> list[tf.TensorSpec]:
        return [tf.TensorSpec((None, *shape), dtype, name="images")]

    def probabilities(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probabilities": model(_checked(images, shape), training=False)}

    archive.add_endpoint("serving_default", probabilities, images_of(tf.float32))
    archive.add_endpoint("serving_uint8", lambda images: probabilities(images), images_of(tf.uint8))
    with tempfile.TemporaryDirectory() as folder:
        names = _table(class_names, Path(folder, CLASS_NAMES))
        archive.track(names)
        if len(model.output_shape) == 2:
            archive.add_endpoint(
                "classify",
                _classify(model, names, transform, bit_depth, min(top, len(class_names))),
                [tf.TensorSpec((None,), tf.string, name="image_bytes")],
            )
        else:  # A map has no most probable class.
            del requests["classify"]
        if (layer := _last_feature_map(model)) is not None:
            archive.add_endpoint("features", _features(model, layer), images_of(tf.float32))
            requests["features"] = requests["serving_default"]
        # Keras returns the archive of the current backend, here TensorFlow.
        archive.write_out(str(path), verbose=False)  # pyright: ignore[reportAttributeAccessIssue]
    extra = path / "assets.extra"  # TensorFlow Serving reads this folder, TensorFlow does not.
    extra.mkdir()
    write_warmup(requests, extra / "tf_serving_warmup_requests", model.name)


def _checked(images: tf.Tensor, shape: tuple[int | None, ...]) -> tf.Tensor:
    """Return images as float32. They must have the shape of the model's input, and be some."""
    # TensorFlow does not check a signature's shape when it is called: an image of 31x32 pixels, or
    # a grey one, would get an answer.
    with tf.control_dependencies([_not_empty(images)]):
        return tf.cast(tf.ensure_shape(images, (None, *shape)), tf.float32)


def _features(model: keras.Model, layer: str) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    shape = tuple(model.input_shape[1:])
    extractor = feature_extractor(model, layer, "avg")

    def features(images: tf.Tensor) -> dict[str, tf.Tensor]:
        answers = extractor(_checked(images, shape), training=False)
        return {"features": tf.cast(answers[layer], tf.float32)}

    return features


def _classify(
    model: keras.Model,
    names: tf.lookup.StaticHashTable,
    transform: Callable,
    bit_depth: BitDepth,
    top: int,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    shape = [None if side is None else int(side) for side in model.input_shape[1:]]
    decodes_lazily = may_take_pictures(transform)

    def image(item: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        index, encoded = item
        with tf.control_dependencies(_header_checks(index, encoded)):
            encoded = tf.identity(encoded)
        if decodes_lazily:
            transformed = transform_encoded(
                encoded, transform, MAX_UPLOAD_PIXELS, bit_depth, channels_for(transform)
            )
        else:
            transformed = transform(decode(encoded, MAX_UPLOAD_PIXELS, bit_depth))
        return tf.cast(transformed, tf.float32)

    def classify(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([_not_empty(image_bytes)]):
            numbered = tf.range(tf.size(image_bytes)), image_bytes
        images = tf.map_fn(image, numbered, fn_output_signature=tf.TensorSpec(shape, tf.float32))
        best = tf.math.top_k(model(images, training=False), top)
        return {
            "classes": names.lookup(tf.cast(best.indices, tf.int64)),
            "indices": best.indices,
            "probabilities": best.values,
        }

    return classify


def _not_empty(batch: tf.Tensor) -> tf.Operation | None:
    """Check that a batch has an image: fused convolutions would fail with another message."""
    return tf.debugging.Assert(tf.shape(batch)[0] > 0, ["the batch has no image"])


def _header_checks(index: tf.Tensor, encoded: tf.Tensor) -> list[tf.Operation | None]:
    """Return the checks of one image before it is decoded."""
    sides = encoded_sides(encoded)
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    image = tf.strings.format("image {} of the batch", index)
    unknown = "is not a JPEG, PNG, BMP, GIF or WebP image, or ends after its first bytes"
    too_large = (
        f"has more than {MAX_UPLOAD_PIXELS:,} pixels; make it smaller; its height and width:"
    )
    return [
        tf.debugging.Assert(tf.reduce_min(sides) > 0, [image, unknown]),
        tf.debugging.Assert(pixels <= MAX_UPLOAD_PIXELS, [image, too_large, sides]),
    ]


def _table(class_names: Sequence[str], path: Path) -> tf.lookup.StaticHashTable:
    """Return a table index -> name, from a file that becomes the SavedModel's asset."""
    path.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    lines = tf.lookup.TextFileInitializer(
        str(path),
        key_dtype=tf.int64,
        key_index=tf.lookup.TextFileIndex.LINE_NUMBER,
        value_dtype=tf.string,
        value_index=tf.lookup.TextFileIndex.WHOLE_LINE,
    )
    return tf.lookup.StaticHashTable(lines, default_value="")


def _last_feature_map(model: keras.Model) -> str | None:
    """Return the name of the layer with the last feature map: block5_pool for a VGG."""
    maps = [layer.name for layer in model.layers if _gives_a_map(layer)]
    return "block5_pool" if "block5_pool" in maps else maps[-1] if maps else None


def _gives_a_map(layer: keras.Layer) -> bool:
    """Return whether a layer's one output has 4 dimensions; a dict or list of outputs has none."""
    if isinstance(layer, keras.layers.InputLayer):
        return False
    return len(getattr(layer.output, "shape", ())) == 4

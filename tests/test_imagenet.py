"""Preprocessing and class names of ImageNet checkpoints; runs on TensorFlow and on JAX."""

import hashlib
import http.server
import json
import os
import socket

import keras
import numpy as np
import pytest
from keras import ops

from keras_vgg import imagenet
from tests.hub import serving

RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.uniform(0, 255, shape).astype("float32")


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 5, 4, 3)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_same_bits_as_keras_applications(shape, dtype, data_format):
    x = images(*shape).astype(dtype)
    x = np.moveaxis(x, -1, -3) if data_format == "channels_first" else x
    vgg16 = keras.applications.vgg16
    expected = vgg16.preprocess_input(x.copy(), data_format)  # which overwrites its input
    np.testing.assert_array_equal(imagenet.preprocess_input(x, data_format), expected)
    tensor = ops.convert_to_tensor(x)
    expected = ops.convert_to_numpy(vgg16.preprocess_input(tensor, data_format))
    found = imagenet.preprocess_input(tensor, data_format)
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 5, 4, 3)])
def test_torchvision_as_keras_applications_torch(shape):
    x = images(*shape)
    expected = keras.applications.imagenet_utils.preprocess_input(x.copy(), mode="torch")
    found = imagenet.preprocess_input(x, mode="torchvision")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    first = np.moveaxis(x, -1, -3)
    found = imagenet.preprocess_input(first, data_format="channels_first", mode="torchvision")
    np.testing.assert_allclose(np.moveaxis(found, -3, -1), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float16", "float32", "float64"])
def test_every_dtype_is_right_and_left_alone(dtype):
    x = np.full((2, 2, 3), 200, dtype)
    found = imagenet.preprocess_input(x)
    assert found.dtype == (dtype if "float" in dtype else "float32")
    atol = 0.05 if dtype == "float16" else 1e-4
    np.testing.assert_allclose(found[0, 0], [96.061, 83.221, 76.32], atol=atol)
    assert np.all(x == 200)
    assert x.dtype == dtype
    # A tensor of the backend likewise.
    if dtype not in ("float64", "int64"):  # which JAX has not by default
        tensor = imagenet.preprocess_input(ops.convert_to_tensor(x))
        np.testing.assert_allclose(ops.convert_to_numpy(tensor)[0, 0], found[0, 0], atol=0.1)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_inside_a_model(dtype, tmp_path):
    image = keras.Input((4, 4, 3), dtype=dtype)
    model = keras.Model(image, imagenet.preprocess_input(image))
    x = images(2, 4, 4, 3).astype(dtype)
    expected = imagenet.preprocess_input(x)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, atol=1e-4)
    layer = keras.layers.Lambda(imagenet.preprocess_input, dtype=dtype)
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), expected, atol=1e-4)


tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.data is TensorFlow's"
)


@tensorflow_only
@pytest.mark.parametrize("mode", ["caffe", "torchvision"])
@pytest.mark.parametrize("batch", [None, 3])
def test_inside_a_data_set(batch, mode):
    import tensorflow as tf

    x = RNG.integers(0, 256, (6, 4, 4, 3)).astype("uint8")
    dataset = tf.data.Dataset.from_tensor_slices(x)
    dataset = dataset.batch(batch) if batch else dataset
    dataset = dataset.map(lambda image: imagenet.preprocess_input(image, mode=mode))
    found = np.reshape(list(dataset.as_numpy_iterator()), x.shape)
    np.testing.assert_allclose(found, imagenet.preprocess_input(x, mode=mode), atol=1e-4)


@tensorflow_only
@pytest.mark.parametrize("mode", ["caffe", "torchvision"])
def test_decoded_images_of_unknown_channels(mode):
    import tensorflow as tf

    def preprocessed(image):
        dataset = tf.data.Dataset.from_tensors(tf.io.encode_png(image))
        return dataset.map(lambda b: imagenet.preprocess_input(tf.io.decode_png(b), mode=mode))

    x = RNG.integers(0, 256, (4, 5, 4)).astype("uint8")
    expected = imagenet.preprocess_input(x[..., :3], mode=mode)
    for image in (x[..., :3], x):
        dataset = preprocessed(image)
        assert dataset.element_spec.shape.as_list() == [None, None, 3]
        np.testing.assert_allclose(next(iter(dataset)), expected, atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="indices"):
        next(iter(preprocessed(x[..., :1])))


@tensorflow_only
@pytest.mark.parametrize("dtype", ["string", "complex64"])
def test_tensors_that_are_no_numbers(dtype):
    import tensorflow as tf

    x = tf.fill((2, 2, 3), tf.constant("a")) if dtype == "string" else tf.zeros((2, 2, 3), dtype)
    with pytest.raises(ValueError, match=f"images must be numbers, not of dtype {dtype}"):
        imagenet.preprocess_input(x)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((4, 4, 3)), {"mode": "tf"}, "mode must be one of caffe, torchvision, not 'tf'"),
        (np.zeros((4, 4, 3)), {"data_format": "nhwc"}, "data_format must be channels_last or"),
        (np.zeros((4, 4, 3)), {"data_format": ""}, "channels_first, not ''"),
        (np.zeros((4, 4, 1)), {}, r"must have 3 channels, channels_last; the shape is \(4, 4, 1\)"),
        (np.zeros((4, 4)), {}, r"must be \[h, w, 3\] or \[n, h, w, 3\]"),
        (np.zeros((4, 4, 3)), {"data_format": "channels_first"}, "3 channels, channels_first"),
        (np.zeros((1, 1, 4, 4, 3)), {}, r"must be \[h, w, 3\] or \[n, h, w, 3\]"),
        (np.array([["a"]]), {}, "images must be numbers"),
        ("cat.jpg", {}, "images must be numbers"),
        (None, {}, "images must be numbers, not of dtype object"),
    ],
)
def test_what_is_no_image(x, options, message):
    with pytest.raises(ValueError, match=message):
        imagenet.preprocess_input(x, **options)


INDEX = {str(i): [f"n{i:08d}", f"thing_{i}"] for i in range(1000)}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A class index on a local server, and an empty cache."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "imagenet_class_index.json").write_text(json.dumps(INDEX))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(served))

        def log_message(self, *arguments):
            pass

    digest = hashlib.md5((served / "imagenet_class_index.json").read_bytes()).hexdigest()
    monkeypatch.setattr(imagenet, "CLASS_INDEX_MD5", digest)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        url = f"http://127.0.0.1:{running.server_address[1]}/imagenet_class_index.json"
        monkeypatch.setattr(imagenet, "CLASS_INDEX_URL", url)
        with serving(running):
            yield served


def cached(tmp_path):
    return tmp_path / "home" / "models" / "imagenet_class_index.json"


def test_decode_predictions(server, tmp_path, capsys):
    preds = np.zeros((2, 1000), "float32")
    preds[0, [7, 3]] = 0.6, 0.3
    preds[1, 999] = 1
    first, second = imagenet.decode_predictions(preds, top=2)
    assert first == [
        ("n00000007", "thing_7", pytest.approx(0.6)),
        ("n00000003", "thing_3", pytest.approx(0.3)),
    ]
    assert second[0] == ("n00000999", "thing_999", 1.0)
    assert len(imagenet.decode_predictions(preds)[0]) == 5
    assert capsys.readouterr().out == ""  # where rows for programs go
    assert imagenet.class_names()[999] == "thing_999"
    # Cached, it needs no server.
    (server / "imagenet_class_index.json").unlink()
    imagenet._read_index.cache_clear()
    assert imagenet.decode_predictions(preds, top=1)[1] == second[:1]
    assert list(cached(tmp_path).parent.iterdir()) == [cached(tmp_path)]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16"])
def test_scores_of_any_number_type(server, dtype):
    preds = np.full((1, 1000), -128 if dtype == "int8" else 0, dtype)
    preds[0, [5, 9]] = 100, 90
    expected = [("n00000005", "thing_5", 100.0), ("n00000009", "thing_9", 90.0)]
    assert imagenet.decode_predictions(preds, top=2) == [expected]
    assert imagenet.decode_predictions(ops.convert_to_tensor(preds), top=2) == [expected]
    assert imagenet.decode_predictions(preds.tolist(), top=2) == [expected]


def test_as_keras_applications_decodes(server, monkeypatch):
    from keras.src.applications import imagenet_utils

    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", INDEX)
    preds = RNG.permuted(np.arange(2000, dtype="float32")).reshape(2, 1000)
    for top in (1, 5, 1000):
        expected = keras.applications.vgg16.decode_predictions(preds, top=top)
        assert imagenet.decode_predictions(preds, top=top) == expected


def test_missing_on_the_server(server, tmp_path):
    (server / "imagenet_class_index.json").unlink()
    message = rf"cannot be downloaded .*404.* put http.*json at {cached(tmp_path)} by hand"
    with pytest.raises(OSError, match=message):
        imagenet.class_names()
    assert not list(cached(tmp_path).parent.iterdir())


def test_connection_refused(server, tmp_path, monkeypatch):
    with socket.socket() as reserved:  # bound, and not listening
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/index.json"
        monkeypatch.setattr(imagenet, "CLASS_INDEX_URL", url)
        with pytest.raises(OSError, match=rf"refused.* put {url} at .* by hand"):
            imagenet.class_names()
    assert not list(cached(tmp_path).parent.iterdir())


def test_a_cache_that_cannot_be_written(server, tmp_path):
    (tmp_path / "home").rmdir()
    (tmp_path / "home").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"Not a directory.* by hand"):
        imagenet.class_names()


def test_a_home_that_cannot_be_written(server, tmp_path, monkeypatch):
    """As get_file, and as for weights: the temporary folder takes its place."""
    isdir, access = os.path.isdir, os.access
    monkeypatch.setattr("os.path.isdir", lambda path: path != "/tmp" and isdir(path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.access", lambda p, mode: p != tmp_path / "home" and access(p, mode))
    assert imagenet.class_names()[999] == "thing_999"
    other = tmp_path / ".keras" / "models" / "imagenet_class_index.json"
    assert other.is_file()
    # A home that has the file needs no other.
    cached(tmp_path).parent.mkdir()
    other.replace(cached(tmp_path))
    (server / "imagenet_class_index.json").unlink()
    assert imagenet.class_names()[999] == "thing_999"


def test_another_hash_is_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet, "CLASS_INDEX_MD5", "0" * 32)
    with pytest.raises(ValueError, match=r"http.* is not the class index"):
        imagenet.class_names()
    assert not list(cached(tmp_path).parent.iterdir())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"0": ["n01440764"]}', "\xff"])
def test_damaged_cache(server, tmp_path, text):
    cached(tmp_path).parent.mkdir(parents=True)
    cached(tmp_path).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{cached(tmp_path)} is damaged .* delete it"):
        imagenet.class_index()


@pytest.mark.parametrize("shape", [(2, 10), (1000,), (1, 2, 1000)])
def test_predictions_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"predictions must be \[n, 1000\]"):
        imagenet.decode_predictions(np.zeros(shape))


@pytest.mark.parametrize("top", [0, 1001, 2.5])
def test_top_out_of_range(top):
    with pytest.raises(ValueError, match=f"top must be from 1 to 1000, not {top}"):
        imagenet.decode_predictions(np.zeros((1, 1000)), top=top)

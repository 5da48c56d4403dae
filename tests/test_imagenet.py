"""Preprocessing and class names of ImageNet checkpoints; runs on TensorFlow and on JAX."""

import hashlib
import http.server
import json
import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_vgg import imagenet

RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.uniform(0, 255, shape).astype("float32")


@pytest.mark.parametrize("mode", ["caffe", "torchvision"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 5, 4, 3)])
def test_floats_as_keras_applications(shape, mode):
    x = images(*shape)
    theirs = keras.applications.imagenet_utils.preprocess_input(
        x.copy(), mode={"torchvision": "torch"}.get(mode, mode)
    )
    np.testing.assert_allclose(imagenet.preprocess_input(x, mode=mode), theirs, atol=1e-4)
    first = np.moveaxis(x, -1, -3)
    found = imagenet.preprocess_input(first, data_format="channels_first", mode=mode)
    np.testing.assert_allclose(np.moveaxis(found, -3, -1), theirs, atol=1e-4)


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


def test_inside_a_model():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, imagenet.preprocess_input(image))
    x = images(2, 4, 4, 3)
    expected = imagenet.preprocess_input(x)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data is TensorFlow's")
def test_inside_a_data_set():
    import tensorflow as tf

    x = RNG.integers(0, 256, (6, 4, 4, 3)).astype("uint8")
    dataset = tf.data.Dataset.from_tensor_slices(x).map(imagenet.preprocess_input)
    found = np.stack(list(dataset.as_numpy_iterator()))
    np.testing.assert_allclose(found, imagenet.preprocess_input(x), atol=1e-4)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((4, 4, 3)), {"mode": "tf"}, "mode must be one of caffe, torchvision, not 'tf'"),
        (np.zeros((4, 4, 3)), {"data_format": "nhwc"}, "data_format must be channels_last or"),
        (np.zeros((4, 4, 1)), {}, r"must have 3 channels, channels_last; the shape is \(4, 4, 1\)"),
        (np.zeros((4, 4)), {}, r"must be \[h, w, 3\] or \[n, h, w, 3\]"),
        (np.array([["a"]]), {}, "images must be numbers"),
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
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        url = f"http://127.0.0.1:{running.server_address[1]}/imagenet_class_index.json"
        monkeypatch.setattr(imagenet, "CLASS_INDEX_URL", url)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield served
        running.shutdown()
        thread.join()


def cached(tmp_path):
    return tmp_path / "home" / "models" / "imagenet_class_index.json"


def test_decode_predictions(server, tmp_path):
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
    assert imagenet.class_names()[999] == "thing_999"
    # Cached, it needs no server.
    (server / "imagenet_class_index.json").unlink()
    imagenet._read_index.cache_clear()
    assert imagenet.decode_predictions(preds, top=1)[1] == second[:1]
    cached(tmp_path).write_text("{}")
    imagenet._read_index.cache_clear()
    with pytest.raises(ValueError, match=r"imagenet_class_index.json is damaged .* delete it"):
        imagenet.decode_predictions(preds)


def test_offline_says_what_to_do(server, tmp_path, monkeypatch):
    (server / "imagenet_class_index.json").unlink()
    message = rf"cannot be downloaded .*404.* put http.* at {cached(tmp_path)} by hand"
    with pytest.raises(OSError, match=message):
        imagenet.class_names()
    monkeypatch.setattr(imagenet, "CLASS_INDEX_URL", "http://127.0.0.1:9/index.json")
    with pytest.raises(OSError, match=r"refused.* by hand"):
        imagenet.class_names()
    assert not cached(tmp_path).exists()


def test_another_file_is_not_kept(server, tmp_path):
    (server / "imagenet_class_index.json").write_text("something else")
    with pytest.raises(ValueError, match="is not the class index"):
        imagenet.class_names()
    assert not cached(tmp_path).exists()


@pytest.mark.parametrize("shape", [(2, 10), (1000,), (1, 2, 1000)])
def test_predictions_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"predictions must be \[n, 1000\]"):
        imagenet.decode_predictions(np.zeros(shape))


@pytest.mark.parametrize("top", [0, 1001])
def test_top_out_of_range(top):
    with pytest.raises(ValueError, match=f"top must be from 1 to 1000, not {top}"):
        imagenet.decode_predictions(np.zeros((1, 1000)), top=top)

"""A SavedModel serves files and images as the model answers them, without Keras."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import augment
from keras_vgg.data import load_image
from keras_vgg.export.saved_model import _last_feature_map, write_saved_model
from keras_vgg.models import vgg
from keras_vgg.transfer import feature_extractor
from tests import bombs

NAMES = ("zero", "one", "two", "drei ß", "one", "a, b: c")
TRANSFORM = partial(augment.eval_image, size=32, scale=40)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.float32)


def pixels(height: int, width: int) -> np.ndarray:
    """Smooth, so that JPEG keeps it; no symmetry, so that turning shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([3 * x % 256, 4 * y % 256, (x * y) % 256], axis=2).astype(np.uint8)


def encoded(image: np.ndarray, format: str = "JPEG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, exif=exif)
    return file.getvalue()


FILES = {
    "jpeg": encoded(pixels(50, 60)),
    "png": encoded(pixels(90, 45), "PNG"),
    "turned": encoded(pixels(44, 70), orientation=6),
    "grey": encoded(pixels(40, 40)[..., 0]),
    "tiny": encoded(pixels(3, 5), "PNG"),
}
PNG_BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * (20_000).to_bytes(4, "big") + b"\x08\x02\0\0\0"


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(2)
    return vgg(
        "A",
        weights=None,
        input_shape=(32, 32, 3),
        classes=len(NAMES),
        width_multiplier=1 / 16,
        hidden_units=16,
        include_preprocessing=True,
    )


@pytest.fixture(scope="module")
def path(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "saved_model"
    write_saved_model(model, path, NAMES, transform=TRANSFORM, top=3)
    return path


@pytest.fixture(scope="module")
def served(path: Path):
    return tf.saved_model.load(str(path))


def classify(served, *files: bytes) -> dict[str, np.ndarray]:
    found = served.signatures["classify"](image_bytes=tf.constant(list(files), tf.string))
    return {name: value.numpy() for name, value in found.items()}


SIGNATURES = """
import sys
sys.modules["keras_vgg"] = sys.modules["keras"] = None
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
for name, signature in sorted(model.signatures.items()):
    specs = [signature.structured_input_signature[1], signature.structured_outputs]
    values = [value for group in specs for value in sorted(group.items())]
    print(name, *[(k, spec.dtype.name, spec.shape.as_list()) for k, spec in values])
found = model.signatures["classify"](image_bytes=tf.constant([open(sys.argv[2], "rb").read()]))
print(" ".join(map(str, found["indices"].numpy()[0])))
"""


IMAGES_INPUT = {"images": ("float32", [None, 32, 32, 3])}
PROBABILITIES = {"probabilities": ("float32", [None, 6])}
SPECIFICATIONS = {
    "classify": (
        {"image_bytes": ("string", [None])},
        {
            "classes": ("string", [None, 3]),
            "indices": ("int32", [None, 3]),
            "probabilities": ("float32", [None, 3]),
        },
    ),
    "features": (IMAGES_INPUT, {"features": ("float32", [None, 32])}),
    "serving_default": (IMAGES_INPUT, PROBABILITIES),
    "serving_uint8": ({"images": ("uint8", [None, 32, 32, 3])}, PROBABILITIES),
}


def test_the_signatures(served) -> None:
    found = {}
    for name, signature in served.signatures.items():
        specs = signature.structured_input_signature[1], signature.structured_outputs
        found[name] = tuple(
            {key: (spec.dtype.name, spec.shape.as_list()) for key, spec in group.items()}
            for group in specs
        )
    assert found == SPECIFICATIONS


@pytest.mark.slow
def test_a_fresh_process_without_keras_has_the_signatures(
    model: keras.Model, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(FILES["png"])
    done = subprocess.run(
        [sys.executable, "-I", "-c", SIGNATURES, str(path), str(tmp_path / "image")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )

    images = "('images', 'float32', [None, 32, 32, 3])"
    probabilities = "('probabilities', 'float32', [None, 6])"
    *signatures, indices = done.stdout.splitlines()
    assert signatures == [
        "classify ('image_bytes', 'string', [None]) ('classes', 'string', [None, 3])"
        " ('indices', 'int32', [None, 3]) ('probabilities', 'float32', [None, 3])",
        f"features {images} ('features', 'float32', [None, 32])",
        f"serving_default {images} {probabilities}",
        f"serving_uint8 {images.replace('float32', 'uint8')} {probabilities}",
    ]
    (expected,) = model.predict(seen(tmp_path / "image")[np.newaxis], verbose=0)
    assert indices == " ".join(map(str, np.argsort(-expected)[:3]))


@pytest.mark.slow
def test_saved_model_cli_shows_and_runs_it(path: Path, model: keras.Model, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("saved_model_cli"))]
    options = {"check": True, "capture_output": True, "text": True, "timeout": 120}
    shown = subprocess.run([*command, "show", "--dir", str(path), "--all"], **options).stdout
    for name in ("serving_default", "serving_uint8", "classify", "features"):
        assert f"signature_def['{name}']" in shown

    np.save(tmp_path / "images.npy", IMAGES)
    arguments = ["--tag_set", "serve", "--signature_def", "serving_default"]
    arguments += ["--inputs", f"images={tmp_path / 'images.npy'}", "--outdir", str(tmp_path)]
    subprocess.run([*command, "run", "--dir", str(path), *arguments], **options)
    found = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(found, model.predict(IMAGES, verbose=0), atol=1e-6)


def seen(path: Path) -> np.ndarray:
    """What evaluation makes of an image file."""
    return np.asarray(TRANSFORM(load_image(path)))


@pytest.mark.parametrize("name", FILES)
def test_classify_sees_what_evaluation_sees(
    name: str, served, model: keras.Model, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    (expected,) = model.predict(seen(tmp_path / name)[np.newaxis], verbose=0)
    order = np.argsort(-expected)[:3]

    found = classify(served, FILES[name])

    np.testing.assert_array_equal(found["indices"], [order])
    np.testing.assert_allclose(found["probabilities"], [expected[order]], atol=1e-5)
    assert [c.decode() for c in found["classes"][0]] == [NAMES[i] for i in order]


def test_a_batch_answers_each_file_in_its_place(served) -> None:
    together = classify(served, *FILES.values())
    for i, file in enumerate(FILES.values()):
        alone = classify(served, file)
        np.testing.assert_allclose(
            together["probabilities"][i], alone["probabilities"][0], atol=1e-6
        )
        np.testing.assert_array_equal(together["classes"][i], alone["classes"][0])
    assert len({row.tobytes() for row in together["probabilities"]}) == len(FILES)


@pytest.mark.parametrize("signature", ["serving_default", "serving_uint8", "features"])
def test_an_empty_batch_is_refused(signature: str, served) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="the batch has no image"):
        classify(served)
    dtype = tf.uint8 if signature == "serving_uint8" else tf.float32
    with pytest.raises(tf.errors.InvalidArgumentError, match="the batch has no image"):
        served.signatures[signature](images=tf.zeros([0, 32, 32, 3], dtype))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"garbage", r"image 1 of the batch\] \[is not a JPEG, PNG"),
        (b"", r"image 1 of the batch\] \[is not a JPEG, PNG"),
        (PNG_BOMB, r"image 1 of the batch.*more than 25,000,000 pixels.*\[20000 20000\]"),
        # Only the decoder finds these, and TensorFlow has it say no more.
        (FILES["jpeg"][:400], "Invalid JPEG data"),
        (FILES["jpeg"][:-300], "Invalid JPEG data"),
        (FILES["png"][:-300], "Invalid PNG data"),
    ],
    ids=["garbage", "empty", "bomb", "jpeg head", "cut jpeg", "cut png"],
)
def test_a_bad_file_is_an_invalid_argument_and_the_model_lives_on(
    bad: bytes, message: str, served
) -> None:
    before = classify(served, FILES["jpeg"])
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s){message}"):
        classify(served, FILES["png"], bad)

    after = classify(served, FILES["jpeg"])
    np.testing.assert_array_equal(after["probabilities"], before["probabilities"])


def test_a_jpeg_bomb_is_refused_from_its_head(served) -> None:
    head = bytearray(encoded(pixels(16, 16)))
    start = head.index(b"\xff\xc0")  # the frame: length, precision, height, width
    head[start + 5 : start + 9] = 2 * (20_000).to_bytes(2, "big")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)image 0.*\[20000 20000\]"):
        classify(served, bytes(head))


def test_an_animation_is_classified_by_its_first_frame_alone(served) -> None:
    frame, huge = bombs.gif_frame(30, 40), bombs.gif_frame(60_000, 60_000, pixels=bytes(3))
    expected = classify(served, bombs.gif(30, 40, frame))
    found = classify(served, bombs.gif(30, 40, frame, huge))
    np.testing.assert_array_equal(found["probabilities"], expected["probabilities"])
    claims_more = bombs.gif(30, 40, bombs.gif_frame(5_001, 5_000, pixels=bytes(3)))
    message = r"(?s)image 1 of the batch.*more than 25,000,000 pixels.*\[5001 5000\]"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        classify(served, FILES["png"], claims_more)


MEMORY = """
import sys
from keras_vgg import hardware
hardware.prepare_environment()
import tensorflow as tf
from tests import bombs
classify = tf.saved_model.load(sys.argv[1]).signatures["classify"]
classify(image_bytes=tf.constant([bombs.gif(30, 40, bombs.gif_frame(30, 40))]))
before = bombs.peak_bytes()
frames = bombs.gif_frame(5_000, 5_000) * 60
classify(image_bytes=tf.constant([bombs.gif(5_000, 5_000, frames)]))
print(bombs.peak_bytes() - before)
large_gif = bombs.gif(10_000, 10_000, bombs.gif_frame(10_000, 10_000))
for refused in (large_gif, bombs.png(5_001, 5_000, 16)):
    try:
        classify(image_bytes=tf.constant([refused]))
    except tf.errors.InvalidArgumentError as error:
        print("25,000,000 pixels" in str(error))
print(bombs.peak_bytes() - before)
"""


@pytest.mark.slow
def test_bombs_cost_classify_little_memory(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    one_frame, *refused, all_of_them = done.stdout.split()
    # 25 MB of indices and 75 MB of pixels; 60 frames would take 1.5 GB.
    assert int(one_frame) < 250_000_000
    assert refused == ["True", "True"]
    assert int(all_of_them) < 250_000_000


@pytest.mark.parametrize("signature", ["serving_default", "serving_uint8", "features"])
@pytest.mark.parametrize(
    "images", [np.zeros((1, 31, 32, 3)), np.zeros((32, 32, 3)), np.zeros((1, 32, 32, 1))]
)
def test_images_of_another_shape_are_refused(signature: str, images: np.ndarray, served) -> None:
    dtype = tf.uint8 if signature == "serving_uint8" else tf.float32
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
        served.signatures[signature](images=tf.constant(images, dtype))


@pytest.mark.parametrize(
    ("signature", "dtype"), [("serving_default", tf.uint8), ("serving_uint8", tf.float32)]
)
def test_images_of_another_type_are_refused(signature: str, dtype: tf.DType, served) -> None:
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
        served.signatures[signature](images=tf.zeros([1, 32, 32, 3], dtype))


def test_uint8_and_float_images_have_the_same_answer(served, model: keras.Model) -> None:
    expected = model.predict(IMAGES, verbose=0)
    for name, dtype in (("serving_default", tf.float32), ("serving_uint8", tf.uint8)):
        found = served.signatures[name](images=tf.cast(IMAGES, dtype))["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_features_are_the_last_block_averaged(served, model: keras.Model) -> None:
    expected = feature_extractor(model, "block5_pool")(IMAGES)["block5_pool"]
    found = served.signatures["features"](images=tf.constant(IMAGES))["features"]
    np.testing.assert_allclose(found, np.mean(expected, axis=(1, 2)), rtol=1e-5, atol=1e-5)
    assert np.std(found, axis=0).max() > 0


def test_sixteen_threads_get_the_same_answers(served) -> None:
    batches = [list(FILES.values())[i % 3 : i % 3 + 3] for i in range(48)]
    expected = [classify(served, *batch)["probabilities"] for batch in batches[:3]]

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda batch: classify(served, *batch), batches))

    for i, answer in enumerate(found):
        np.testing.assert_array_equal(answer["probabilities"], expected[i % 3])


def test_every_weight_is_stored_once(path: Path, model: keras.Model) -> None:
    stored = tf.train.list_variables(str(path / "variables" / "variables"))
    assert sum(math.prod(shape) for _, shape in stored if shape) == model.count_params()


def test_the_class_names_are_an_asset(path: Path) -> None:
    text = (path / "assets" / "class_names.txt").read_text(encoding="utf-8")
    assert text == "".join(f"{name}\n" for name in NAMES)


def test_the_warm_up_has_a_request_for_each_signature(path: Path, served) -> None:
    # TensorFlow Serving's own definition of the messages.
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    file = path / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(file)):
        log = PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        signature = request.model_spec.signature_name
        answers = served.signatures[signature](**inputs)
        assert {len(value) for value in answers.values()} == {1}
        seen.append(signature)
    assert sorted(seen) == sorted(served.signatures)


@pytest.mark.slow
def test_a_model_of_any_size_and_without_a_map(tmp_path: Path) -> None:
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs))
    flat = keras.Model(inputs, outputs)
    shrink = partial(augment.eval_image, size=8, scale=8)
    write_saved_model(flat, tmp_path / "flat", ["a", "b"], transform=shrink, top=5)
    served = tf.saved_model.load(str(tmp_path / "flat"))
    assert set(served.signatures) == {"serving_default", "serving_uint8", "classify"}
    assert classify(served, FILES["png"])["classes"].shape == (1, 2)

    free = vgg(
        "A", True, None, None, (None, None, 3), classes=2, width_multiplier=1 / 16, head="gap"
    )
    write_saved_model(free, tmp_path / "free", ["a", "b"], transform=TRANSFORM)
    served = tf.saved_model.load(str(tmp_path / "free"))
    assert classify(served, FILES["png"])["classes"].shape == (1, 2)
    wide = served.signatures["features"](images=tf.zeros([1, 64, 96, 3]))
    assert wide["features"].shape == (1, 32)


def test_the_last_map_is_found_beside_an_inner_network_and_in_a_sequential() -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    pooled = [keras.layers.GlobalAveragePooling2D()(x), keras.layers.GlobalMaxPooling2D()(x)]
    inner = keras.Model(x, {"mean": pooled[0], "most": pooled[1]}, name="inner")
    pair = inner(x)
    outputs = keras.layers.Dense(2)(keras.layers.Concatenate()([pair["mean"], pair["most"]]))
    model = keras.Model(inputs, outputs)
    assert _last_feature_map(model) == "first"
    assert feature_extractor(model, "first", "avg")(IMAGES[:1, :8, :8])["first"].shape == (1, 4)

    def sequential(*first: keras.layers.Layer) -> keras.Model:
        last = [keras.layers.Flatten(), keras.layers.Dense(2)]
        return keras.Sequential([keras.Input((8, 8, 3)), *first, *last])

    assert _last_feature_map(sequential(keras.layers.Conv2D(4, 3, name="only"))) == "only"
    assert _last_feature_map(sequential()) is None

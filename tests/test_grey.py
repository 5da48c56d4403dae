"""A run of grey images: one channel from the recipe to the export."""

import io
from functools import partial

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from PIL import Image

import keras_vgg
from keras_vgg import augment, cli, convert, data, models, report, weights
from keras_vgg.augment import may_take_pictures
from keras_vgg.data.decode import decode, transform_encoded
from keras_vgg.export import export
from keras_vgg.fit import evaluation_transform, fit, training_transform
from keras_vgg.fit.model import build_model, initial_weights
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs import evaluate_run, explain_files, export_run, predict_files, report_runs
from tests.other_backends import on_jax
from tests.test_fit import TINY

GREY = TINY.replace(epochs=1, color="grey", batch_norm=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:  # to draw the curve takes 0.4 s
        patch.setattr(report, "plot_history", lambda *_, **__: None)
        return fit(GREY, tmp_path_factory.mktemp("grey") / "run", verbose=0)


def picture(path, side=40):
    values = np.random.default_rng(0).integers(0, 256, (side, side, 3), "uint8")
    path.write_bytes(tf.io.encode_png(values).numpy())
    return path


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_luma(dtype):
    grey = np.arange(256).repeat(3).reshape(16, 16, 3).astype(dtype)
    np.testing.assert_array_equal(augment.to_grey(tf.constant(grey)), grey[..., :1])
    colour = np.random.default_rng(0).uniform(0, 255, (4, 5, 3)).astype(dtype)
    luma = augment.to_grey(tf.constant(colour))
    assert luma.dtype == dtype
    expected = colour.astype("float64") @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(luma[..., 0], expected, atol=0.51 if dtype == "uint8" else 1e-4)


def test_transforms_of_a_grey_recipe():
    evaluate, rgb = evaluation_transform(GREY), evaluation_transform(TINY)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype("uint8")
    assert evaluate.keywords == rgb.keywords
    assert may_take_pictures(evaluate)
    # The image becomes grey, and rounded, before it is resampled.
    np.testing.assert_allclose(evaluate(image), augment.to_grey(rgb(image)), atol=0.51)
    assert (augment.channels_for(evaluate), augment.channels_for(rgb)) == (1, 3)
    train = training_transform(GREY.replace(rgb_shift=0), None)
    assert train(image, tf.constant([1, 2])).shape == (32, 32, 1)
    batches = tf.data.Dataset.from_tensors(image).map(evaluate)
    assert next(iter(batches)).shape == (32, 32, 1)
    assert not may_take_pictures(augment.in_grey(lambda image: image))


def test_augmentation_in_grey_is_that_in_colour():
    """Of grey images, the two give the same but for rounding; colour clips at other places."""
    strengths = {"brightness": 0.2, "contrast": 0.3, "saturation": 0.4, "hue": 0.1, "shift": 0.1}
    statistics = {"eigenvalues": np.ones(3) / 10, "eigenvectors": np.eye(3)}
    train = partial(augment.train_image, size=32, scale=(32, 40), **strengths, **statistics)
    grey = np.random.default_rng(0).integers(60, 180, (40, 50, 1)).astype("uint8")
    for seed in range(4):
        in_color = augment.to_grey(train(grey.repeat(3, axis=-1), tf.constant([1, seed])))
        in_grey = augment.in_grey(train)(grey, tf.constant([1, seed]))
        assert in_grey.dtype == tf.uint8
        # The luma of a rounded colour, and a rounded luma.
        np.testing.assert_allclose(in_grey, tf.cast(in_color, tf.int32), atol=1)


def encoded_as(form, pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(form.partition(" ")[2] or "RGB").save(
        file, form.partition(" ")[0], **options
    )
    return tf.constant(file.getvalue())


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    "form", ["JPEG", "PNG LA", "JPEG L", "JPEG CMYK", "PNG", "PNG L", "PNG P", "BMP", "WEBP", "GIF"]
)
def test_files_are_decoded_to_luma(form):
    rows = np.linspace(60, 190, 48)[:, np.newaxis, np.newaxis]
    pixels = (rows + np.linspace(-40, 40, 56)[:, np.newaxis] * [1, 0.5, -1]).astype("uint8")
    encoded = encoded_as(form, pixels)
    luma = decode(encoded, channels=1)
    assert (luma.shape, luma.dtype) == ((48, 56, 1), tf.uint8)
    expected = tf.cast(augment.to_grey(decode(encoded)), tf.int32)
    np.testing.assert_allclose(luma, expected, atol=1 if form.startswith("JPEG") else 0)
    transform = partial(augment.eval_image, size=32, scale=40)
    in_grey = augment.in_grey(transform)
    view = transform_encoded(encoded, in_grey, channels=augment.channels_for(in_grey))
    rgb = transform_encoded(encoded, transform)
    np.testing.assert_allclose(view, augment.to_grey(rgb), atol=1)


@pytest.mark.slow
def test_a_turned_jpeg_and_a_deep_png_are_decoded_to_luma():
    pixels = np.arange(40 * 56, dtype="uint16").reshape(40, 56)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded_as("JPEG L", (pixels % 200).astype("uint8"), exif=exif)
    assert decode(turned, channels=1).shape == (56, 40, 1)
    np.testing.assert_array_equal(decode(turned, channels=1), decode(turned)[..., :1])
    deep = tf.io.encode_png(pixels[..., np.newaxis])
    for bits in ("16", "stretch"):
        luma, rgb = (decode(deep, bit_depth=bits, channels=count) for count in (1, 3))
        np.testing.assert_array_equal(luma, rgb[..., :1])
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(b"\xff\xd8\xff not a JPEG"), channels=1)


@pytest.mark.parametrize("is_grey", [True, False])
def test_images_in_memory_in_grey(is_grey):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    if is_grey:
        images[:] = images[..., :1]
    split = data.Split("train", 4, labels=np.arange(4, dtype=np.int32), images=images)
    channels = []

    @augment.takes_pictures
    def transform(image):
        channels.append(image.channels)
        return augment.decoded(image)

    batches = data.evaluation_dataset(split, 4, augment.in_grey(transform))
    views, _ = next(iter(batches))
    assert channels == [1]
    np.testing.assert_array_equal(views, augment.to_grey(tf.constant(images)))


def test_pretrained_weights_see_grey_as_rgb_saw_it(tmp_path):
    """The untrained network of a grey recipe gives what that of the RGB recipe gives."""
    source = models.vgg(
        *("A", False, None),
        width_multiplier=TINY.width_multiplier,
        batch_norm=TINY.batch_norm,
        include_preprocessing=True,
    )
    source.save(tmp_path / "base.keras")
    init = {"init": str(tmp_path / "base.keras"), "initialization": "he_normal"}
    zeros = np.zeros(3)
    statistics = data.ChannelStatistics(zeros, np.ones(3), zeros, np.eye(3), 0)
    outputs = []
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype("float32")
    for color, channels in (("grey", 1), ("rgb", 3)):
        recipe = TINY.replace(color=color, **init)
        model = build_model(recipe, 10, statistics, initial=initial_weights(recipe))
        assert model.input_shape == (None, 32, 32, channels)
        maps = keras_vgg.feature_extractor(model, ["block5_pool"])
        outputs.append(maps(images.repeat(channels, axis=-1))["block5_pool"].numpy())
    np.testing.assert_allclose(*outputs, atol=1e-5 * outputs[1].max())
    assert outputs[1].max() > 0


def test_weights_of_one_channel_take_the_luma_of_the_means(tmp_path):
    """As a PyTorch file of a network for grey images, which states no input."""
    source = models.vgg(
        *("A", False, None),
        width_multiplier=GREY.width_multiplier,
        batch_norm=GREY.batch_norm,
        input_shape=(32, 32, 1),
    )
    source.save(tmp_path / "a.keras")
    convert.convert_weights(tmp_path / "a.keras", tmp_path / "a.safetensors")
    recipe = GREY.replace(
        init=str(tmp_path / "a.safetensors"),
        initialization="he_normal",
        mean_rgb=(10.0, 100.0, 200.0),
        std_rgb=(1.0, 1.0, 1.0),
    )
    statistics = data.ChannelStatistics(np.zeros(3), np.ones(3), np.zeros(3), np.eye(3), 0)
    model = build_model(recipe, 10, statistics, initial=initial_weights(recipe))
    assert model.get_layer("block1_conv1").kernel.shape[2] == 1
    config = model.get_layer("preprocessing").get_config()
    np.testing.assert_allclose(config["mean"], [0.299 * 10 + 0.587 * 100 + 0.114 * 200])
    np.testing.assert_allclose(config["std"], [1])
    # Without weights, as with them.
    recipe = recipe.replace(init=None)
    model = build_model(recipe, 10, statistics)
    assert model.get_layer("block1_conv1").kernel.shape[2] == 1


def test_a_grey_run(run, tmp_path):
    model = run.model()
    assert model.input_shape == (None, 32, 32, 1)
    assert model.get_layer("block1_conv1").kernel.shape[2] == 1
    assert convert.recognise(weights.read_weights(run.directory)).channels == 1
    assert run.results["parameters"] == sum(row.parameters for row in run.recipe.layers(10))
    image = picture(tmp_path / "a.png")
    (answer,) = predict_files(run, [image], top=3)
    assert len(answer) == 3


@pytest.mark.slow
def test_a_grey_run_is_evaluated_explained_and_reported(run, tmp_path):
    for protocol in ("center", "dense", "multi-crop"):
        evaluated = evaluate_run(run, "validation", protocol=protocol)
        assert len(evaluated.labels) == evaluated.count > 0
    image = picture(tmp_path / "a.png")
    explain_files(run, [image], out=tmp_path / "explained")
    explain_files(run, [image], methods=["features"], out=tmp_path / "explained")
    assert len(list((tmp_path / "explained").glob("*.png"))) == 2
    assert report_runs([run], tmp_path / "report.html", images=2).is_file()


@pytest.mark.slow
def test_a_grey_run_exports(run, tmp_path):
    artifacts = export_run(
        run,
        tmp_path / "export",
        images=8,
        formats=["saved_model", "litert"],
        tolerance=100,
    )
    assert [artifact.format for artifact in artifacts] == ["saved_model", "litert"]
    served = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    file = picture(tmp_path / "a.png")
    answers = served.signatures["classify"](tf.constant([file.read_bytes()]))
    ((name, probability), *_) = predict_files(run, [file], top=1)[0]
    assert answers["classes"][0, 0].numpy().decode() == name
    np.testing.assert_allclose(answers["probabilities"][0, 0], probability, atol=1e-4)


@pytest.mark.slow
def test_files_of_a_pretrained_grey_network_are_the_colour_network_on_repeated_grey(tmp_path):
    options = {"include_top": False, "width_multiplier": 1 / 16, "include_preprocessing": True}
    rgb = models.vgg("A", weights=None, input_shape=(32, 32, 3), **options)
    rgb.save(tmp_path / "rgb.keras")
    grey = models.vgg("A", weights=tmp_path / "rgb.keras", input_shape=(32, 32, 1), **options)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1)).astype("float32")
    ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Softmax()]
    model = keras.Sequential([grey, *ends])
    names = [str(number) for number in range(32)]
    export(model, names, tmp_path / "export", images=images, formats=["saved_model"])
    expected = keras.Sequential([rgb, *ends]).predict(images.repeat(3, axis=-1), verbose=0)
    served = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    found = served.signatures["serving_default"](images=tf.constant(images))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


ON_JAX = """
import sys
import keras, numpy as np
from keras_vgg import models
weights, folder = sys.argv[1:]
images = np.load(f"{folder}/grey.npy")
ends = [keras.layers.GlobalAveragePooling2D(), keras.layers.Softmax()]
for channels in (1, 3):
    options = {"input_shape": (224, 224, channels), "include_preprocessing": True}
    base = models.vgg("D", False, weights, **options)
    maps = base.predict(np.repeat(images, 3, axis=-1)[..., :channels], verbose=0)
    np.save(f"{folder}/{channels}.npy", maps)  # of block5_pool
    model = keras.Sequential([base, *ends])
    model.save(f"{folder}/{channels}.keras")
"""


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this exports")
def test_photographs_in_grey_from_jax_to_an_export(data_folder, tmp_path):
    """Oxford's convolutions on JAX: one channel gives what three give, in the exported file too."""
    files = sorted((data_folder / "imagenet_samples").glob("*.JPEG"))[:4]
    to_grey = augment.in_grey(partial(augment.eval_image, size=224, scale=256))
    images = np.stack([to_grey(data.load_image(file)) for file in files]).astype("float32")
    np.save(tmp_path / "grey.npy", images)
    base = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    on_jax("-c", ON_JAX, str(base), str(tmp_path))
    maps = np.load(tmp_path / "3.npy")
    assert maps.shape == (4, 7, 7, 512)
    np.testing.assert_allclose(np.load(tmp_path / "1.npy"), maps, atol=1e-5 * maps.max())
    model, names = keras.models.load_model(tmp_path / "1.keras"), [str(i) for i in range(512)]
    export(model, names, tmp_path / "export", images=images, formats=["saved_model"])
    served = tf.saved_model.load(str(tmp_path / "export" / "saved_model"))
    found = served.signatures["serving_default"](images=tf.constant(images))["probabilities"]
    expected = scipy.special.softmax(maps.mean(axis=(1, 2)), axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_a_demo_of_a_grey_run(run, tmp_path):
    from keras_vgg.demo.answer import Answerer

    answer = Answerer(run).of_file(picture(tmp_path / "a.png"))
    assert answer.seen > 0


def test_wrong_grey_recipes(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"rand_augment=0\.5 works on RGB images"):
        Recipe(color="grey", rand_augment=0.5)
    with pytest.raises(ValueError, match="color must be one of rgb, grey, not 'gray'"):
        Recipe(color="gray")
    # A run of RGB is no run of grey.
    directory = str(tmp_path / "run")
    run = Run(tmp_path / "run", TINY)
    assert run.recipe.differences(GREY)["color"] == ("rgb", "grey")
    assert cli.main(["train", "--color", "gray", "--workdir", directory]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_batch_augmentations_of_grey(tmp_path):
    varied = {"mixup": 0.2, "cutmix": 1.0, "random_erasing": 0.5, "saturation": 0.5}
    recipe = GREY.replace(batch_norm=True, **varied)
    fit(recipe, tmp_path / "run", verbose=0)
    loaded = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert loaded.input_shape == (None, 32, 32, 1)

"""The builders; this file runs on TensorFlow and on JAX."""

import gc
import importlib
import inspect
import warnings

import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_vgg
from keras_vgg import architecture, builder_checks, convert, models
from keras_vgg.layers import ImagePreprocessing
from keras_vgg.weights import Weights, download
from tests.dense_networks import answers

SMALL = {"weights": None, "width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7}
CONFIGURATIONS = list(architecture.CONFIGURATIONS)
RNG = np.random.default_rng(0)


def images(*shape):
    return RNG.uniform(0, 255, shape).astype("float32")


@pytest.fixture(autouse=True)
def _freed(request):
    """Free the networks of a slow test, which are of full width, before the next test."""
    yield
    if request.node.get_closest_marker("slow"):
        keras.utils.clear_session()
        gc.collect()


# All configurations: tests/test_summary.py, with and without batch norm.
@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        ("B", {"head": "gap"}),
        ("D", {"head": "conv"}),
        ("E", {"include_top": False}),
        ("A", {"include_top": False, "pooling": "max"}),
    ],
    ids=str,
)
def test_built_network_is_the_table(configuration, options):
    """Names, shapes and parameters of every layer are those that architecture.py computes."""
    model = models.vgg(configuration, input_shape=(64, 96, 3), **(SMALL | options))
    table = {k: v for k, v in (SMALL | options).items() if k != "weights"}
    for row in architecture.layers(configuration, input_shape=(64, 96, 3), **table):
        layer = model.get_layer(row.name)
        assert layer.count_params() == row.parameters, row.name
        assert tuple(layer.output.shape[1:]) == row.output_shape, row.name
    assert model.count_params() == architecture.parameters(
        configuration, input_shape=(64, 96, 3), **table
    )
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    rows = architecture.layers(configuration, input_shape=(64, 96, 3), **table)
    assert trainable == sum(row.trainable_parameters for row in rows)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(("configuration", "head"), [("A-LRN", "fc"), ("C", "conv"), ("A", "gap")])
def test_output_is_a_distribution_and_dropout_only_trains(configuration, head):
    model = models.vgg(configuration, input_shape=(32, 32, 3), head=head, **SMALL)
    x = images(3, 32, 32, 3) / 255
    y = model.predict(x, verbose=0)
    assert y.shape == (3, 7)
    np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(y, model.predict(x, verbose=0))
    assert not np.allclose(y, keras.ops.convert_to_numpy(model(x, training=True)))


FULL = pytest.param(1, marks=pytest.mark.slow)  # the width at which their weights are published


def keras_applications(monkeypatch, name, width=1 / 16, **options):
    """Build a VGG of keras.applications, by its own code; fc1 and fc2 of the narrow one have 8."""
    module = importlib.import_module(f"keras.src.applications.{name.lower()}")

    class Narrow:
        def __getattr__(self, layer):
            return getattr(keras.layers, layer)

        def Conv2D(self, filters, *args, **kwargs):
            return keras.layers.Conv2D(int(filters * width), *args, **kwargs)

        def Dense(self, units, *args, **kwargs):
            return keras.layers.Dense(8 if units == 4096 else units, *args, **kwargs)

    with monkeypatch.context() as patch:
        if width != 1:
            patch.setattr(module, "layers", Narrow())
        return getattr(keras.applications, name)(**options)


@pytest.mark.parametrize("variant", ["VGG16", "VGG19"])
def test_signature_and_layer_names_are_those_of_keras_applications(monkeypatch, variant):
    ours = getattr(keras_vgg, variant)
    wanted = inspect.signature(getattr(keras.applications, variant)).parameters
    positional = [
        p
        for p in inspect.signature(ours).parameters.values()
        if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert [(p.name, p.default) for p in positional] == [
        (p.name, p.default) for p in wanted.values()
    ]
    dropout = {"fc1_dropout", "fc2_dropout"}
    small = {"hidden_units": 8, "width_multiplier": 1 / 16}
    for top in (True, False):
        arguments = {"weights": None, "include_top": top, "input_shape": (32, 32, 3)}
        names = [layer.name for layer in ours(**arguments, **small).layers[1:]]
        theirs = keras_applications(monkeypatch, variant, **arguments)
        expected = [layer.name for layer in theirs.layers[1:]]
        assert [name for name in names if name not in dropout] == expected


@pytest.mark.parametrize("width", [1 / 16, FULL])
@pytest.mark.parametrize(
    ("top", "pooling"),
    [
        (True, None),
        pytest.param(True, "max", marks=pytest.mark.slow),
        (False, None),
        (False, "avg"),
        pytest.param(False, "max", marks=pytest.mark.slow),
    ],
)
def test_outputs_equal_keras_applications(monkeypatch, tmp_path, top, pooling, width):
    arguments = {"include_top": top, "pooling": pooling, "input_shape": (64, 64, 3), "classes": 9}
    theirs = keras_applications(monkeypatch, "VGG16", width, weights=None, **arguments)
    path = tmp_path / "vgg16.weights.h5"
    theirs.save_weights(path)
    x = images(2, 64, 64, 3)
    expected = answers(theirs, x)
    assert np.ptp(expected) > 0.01
    small = {} if width == 1 else {"width_multiplier": width, "hidden_units": 8}
    ours = keras_vgg.VGG16(weights=path, **arguments, **small)
    np.testing.assert_allclose(answers(ours, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1 / 16, FULL])
@pytest.mark.parametrize("shape", [(48, 64, 1), (64, 48, 3)], ids=str)
def test_outputs_equal_keras_applications_with_an_input_tensor_and_other_channels(
    monkeypatch, shape, width
):
    options = {"weights": None, "include_top": False}
    theirs = keras_applications(monkeypatch, "VGG19", width, input_shape=shape, **options)
    ours = keras_vgg.VGG19(input_tensor=keras.Input(shape), width_multiplier=width, **options)
    ours.set_weights(theirs.get_weights())
    x = images(1, *shape)
    expected = answers(theirs, x)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(ours.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (33, 3), (63, 1), (63, 3)])
def test_channels_and_odd_sizes(channels, size):
    model = models.vgg("B", input_shape=(size, size, channels), **SMALL)
    assert answers(model, images(1, size, size, channels)).shape == (1, 7)


def test_four_channels_pass_and_five_warn():
    with pytest.warns(UserWarning, match="has 5"):
        models.vgg("A", input_shape=(32, 32, 5), **SMALL)
    model = models.vgg("A", input_shape=(32, 32, 4), **SMALL)
    assert model.input_shape == (None, 32, 32, 4)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "options",
    [{"head": "conv", "train_size": 32}, {"head": "gap"}, {"include_top": False}],
    ids=str,
)
def test_any_size(options):
    model = models.vgg("A", input_shape=(None, None, 3), **(SMALL | options))
    for height, width in ((32, 32), (65, 40)):
        y = model.predict(images(1, height, width, 3), verbose=0)
        feature_map = (1, height // 32, width // 32, 32)
        assert y.shape == ((1, 7) if options.get("include_top", True) else feature_map)


def test_default_shapes():
    base = keras_vgg.VGG11(include_top=False, weights=None, width_multiplier=1 / 16)
    assert base.input_shape == (None, None, None, 3)
    assert models.vgg("A", **SMALL).input_shape == (None, 224, 224, 3)


def test_conv_head_is_the_fc_head(tmp_path):
    fc = models.vgg("A", input_shape=(64, 96, 3), **SMALL)
    conv = models.vgg("A", input_shape=(64, 96, 3), head="conv", **SMALL)
    keras_vgg.copy_weights(fc, conv)
    x = images(2, 64, 96, 3)
    expected = answers(fc, x)
    np.testing.assert_allclose(answers(conv, x), expected, rtol=1e-4, atol=1e-6)
    # Through a file, and back.
    fc.save_weights(tmp_path / "fc.weights.h5")
    options = SMALL | {"weights": tmp_path / "fc.weights.h5", "head": "conv"}
    dense = models.vgg("A", input_shape=(None, None, 3), train_size=(64, 96), **options)
    np.testing.assert_allclose(answers(dense, x), expected, rtol=1e-4, atol=1e-6)
    back = models.vgg("A", input_shape=(64, 96, 3), **SMALL)
    keras_vgg.copy_weights(conv, back)
    np.testing.assert_array_equal(answers(back, x), expected)


def test_input_tensor():
    image = keras.Input((32, 32, 3), name="picture")
    scaled = keras.layers.Rescaling(2.0)(image)
    model = models.vgg("A", input_tensor=scaled, **SMALL)
    assert model.inputs[0].name == "picture"
    plain = models.vgg("A", input_shape=(32, 32, 3), **SMALL)
    plain.set_weights(model.get_weights())
    x = images(2, 32, 32, 3)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), answers(plain, 2 * x), rtol=1e-5, atol=1e-7
    )


def test_channels_first():
    last = models.vgg("A-LRN", input_shape=(32, 64, 3), include_preprocessing=True, **SMALL)
    keras.config.set_image_data_format("channels_first")
    try:
        first = models.vgg("A-LRN", input_shape=(3, 32, 64), include_preprocessing=True, **SMALL)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert [w.shape for w in first.weights] == [w.shape for w in last.weights]
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels-first convolution on a CPU; JAX runs this")
    first.set_weights(last.get_weights())
    x = images(2, 32, 64, 3)
    np.testing.assert_allclose(
        answers(first, np.moveaxis(x, -1, 1)),
        answers(last, x),
        rtol=1e-4,
        atol=1e-6,
    )


def test_include_preprocessing():
    x = images(2, 32, 32, 3)
    inside = models.vgg("A", input_shape=(32, 32, 3), include_preprocessing=True, **SMALL)
    outside = models.vgg("A", input_shape=(32, 32, 3), **SMALL)
    outside.set_weights(inside.get_weights())
    prepared = keras.applications.vgg16.preprocess_input(x.copy())
    expected = answers(outside, prepared)
    np.testing.assert_allclose(answers(inside, x), expected, rtol=1e-3, atol=1e-6)
    own = ImagePreprocessing((10,), (20,))
    model = models.vgg("A", input_shape=(32, 32, 1), include_preprocessing=own, **SMALL)
    assert model.layers[1] is own


def test_regulariser_and_initialiser_reach_every_kernel():
    model = models.vgg(
        "A",
        input_shape=(32, 32, 3),
        kernel_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.5),
        **SMALL,
    )
    kernels = [w for w in model.weights if w.name == "kernel"]
    assert len(kernels) == 11
    total = sum(float(np.prod(w.shape)) for w in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), 0.5 * total, rtol=1e-5)


def test_an_initialiser_instance_gives_every_layer_its_own_numbers():
    """Keras' random initialisers repeat themselves: one instance would make equal layers."""
    instance = keras.initializers.RandomNormal(stddev=0.1)
    model = models.vgg("E", input_shape=(32, 32, 3), kernel_initializer=instance, **SMALL)
    one, other = (
        keras.ops.convert_to_numpy(model.get_layer(f"block5_conv{i}").kernel) for i in (2, 3)
    )
    assert one.shape == other.shape
    assert np.abs(one - other).max() > 0.1


# Between them they have every kind of layer: the others have more convolutions of the same kinds.
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("configuration", ["A-LRN", "C"])
def test_keras_file_gives_the_same_outputs(tmp_path, configuration):
    model = models.vgg(
        configuration,
        input_shape=(32, 32, 3),
        batch_norm=True,
        include_preprocessing=True,
        kernel_regularizer=keras.regularizers.L2(1e-4),
        **SMALL,
    )
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = images(2, 32, 32, 3)
    np.testing.assert_array_equal(answers(again, x), answers(model, x))


def test_mixed_precision_keeps_probabilities_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        built = [
            models.vgg("A", input_shape=(32, 32, 3), head=head, **SMALL)
            for head in ("fc", "conv", "gap")
        ]
    finally:
        keras.config.set_dtype_policy("float32")
    for model in built:
        assert model.get_layer("block1_conv1").compute_dtype == "bfloat16"
        assert model.output.dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"configuration": "F"}, "unknown VGG configuration 'F'"),
        ({"classes": 0}, "classes must be a positive whole number, not 0"),
        ({"classes": True}, "classes must be a positive whole number, not True"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "input_tensor must be a Keras tensor"),
        ({"head": "mlp"}, "head must be one of fc, conv, gap, not 'mlp'"),
        ({"pooling": "sum"}, "pooling must be None, 'avg' or 'max', not 'sum'"),
        ({"input_shape": (28, 28, 1)}, r"at least 32x32, not `input_shape=\(28, 28, 1\)`.*Pad"),
        ({"input_shape": (32, 32)}, "must be a tuple of three integers"),
        ({"input_shape": (None, None, 3)}, "head='conv' and head='gap' take any size"),
        ({"input_shape": (32, 32, None)}, "must state the channels"),
        ({"width_multiplier": 0}, "width_multiplier must be positive"),
        ({"filters": (4,)}, "filters needs 8 numbers for configuration A.* it has 1"),
        ({"filters": (4,) * 8, "width_multiplier": 0.5}, "or width_multiplier=0.5, not both"),
        (
            {"filters": (4,) * 8, "weights": "imagenet", "input_shape": None},
            "has the paper's widths; leave out `filters`",
        ),
        ({"hidden_units": 0}, "hidden_units must be a positive whole number"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"weights": "imagnet"}, "there is no file 'imagnet'"),
        ({"weights": "imagenet", "classes": 10}, "`classes` must be 1000, not 10"),
        ({"weights": "imagenet", "input_shape": (32, 32, 3)}, r"must be \(224, 224, 3\)"),
        (
            {"weights": "imagenet", "input_shape": (200, 200, 1)},
            r"must be \(224, 224, 1\), not \(200, 200, 1\)",
        ),
        ({"weights": "imagenet", "input_shape": None, "width_multiplier": 0.5}, "needs `width_mul"),
        ({"weights": "imagenet", "input_shape": None, "head": "gap"}, "use include_top=False"),
        ({"weights": "torchvision", "input_shape": None, "hidden_units": 8}, "hidden_units=4096"),
        (
            {"head": "conv", "train_size": 31, "width_multiplier": 1 / 16},
            "train_size must be at least 32",
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    base = {"configuration": "A", "weights": None, "input_shape": (64, 64, 3)}
    with pytest.raises(ValueError, match=message):
        models.vgg(**(base | arguments))


def test_missing_weight_file_and_failed_download(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file .nowhere\.h5"):
        keras_vgg.VGG16(weights="nowhere.h5")

    def offline(checkpoint):
        raise ConnectionError(f"cannot get {checkpoint.file}")

    monkeypatch.setattr(download, "fetch", offline)
    with pytest.raises(OSError, match=r"cannot get vgg16_weights_tf_dim_ordering_tf_kernels\.h5"):
        keras_vgg.VGG16()


def published_as_vgg13(monkeypatch, tmp_path):
    """Put a network of 7 classes, in PyTorch's layout, in the place of VGG13's checkpoint.

    Returns the network and the list of the checkpoints that are asked for.
    """
    source = models.vgg(
        "B",
        weights=None,
        input_shape=(32, 32, 3),
        hidden_units=8,
        classes=7,
        include_preprocessing=ImagePreprocessing.torchvision(),
    )
    source.save(tmp_path / "vgg13.keras")
    path = tmp_path / "model.safetensors"
    convert.convert_weights(tmp_path / "vgg13.keras", path)
    asked = []
    monkeypatch.setattr(download, "fetch", lambda checkpoint: (asked.append(checkpoint), path)[1])
    return source, asked


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    "weights", ["imagenet", pytest.param("torchvision", marks=pytest.mark.slow)]
)
def test_published_weights_bring_their_preprocessing(weights, monkeypatch, tmp_path):
    """What is fetched for VGG13, a whole network in PyTorch's layout, goes into a base."""
    source, asked = published_as_vgg13(monkeypatch, tmp_path)
    x = images(2, 32, 32, 3)
    features = keras.Model(source.inputs[0], source.get_layer("block5_pool").output)
    expected = keras.ops.mean(features(x), axis=(1, 2))
    base = keras_vgg.VGG13(
        weights=weights, include_top=False, pooling="avg", include_preprocessing=True
    )
    assert [c.location for c in asked] == ["timm/vgg13.tv_in1k"]
    np.testing.assert_allclose(answers(base, x), expected, rtol=1e-4, atol=1e-5)


def test_imagenet_warns_where_keras_own_preprocessing_is_wrong(monkeypatch):
    monkeypatch.setattr(models.weight_files, "obtain", lambda *_, **__: Weights({}, "vgg11"))
    monkeypatch.setattr(models.weight_files, "assign", lambda *_: None)
    options = {"include_top": False, "kernel_initializer": "zeros"}
    with pytest.warns(UserWarning, match=r"VGG11 are torchvision's: preprocess with mode='tor"):
        keras_vgg.VGG11(weights="imagenet", **options)
    keras_vgg.VGG11(weights="torchvision", **options)  # the name says it
    for batch_norm, count in ((False, 0), (True, 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            builder_checks.warn_of_preprocessing("imagenet", "VGG16", batch_norm)
        assert len(caught) == count


def test_a_preprocessing_other_than_the_weights_is_refused(tmp_path):
    path = tmp_path / "base.keras"
    options = {"include_top": False, "width_multiplier": 1 / 16}
    own = ImagePreprocessing.torchvision()
    models.vgg("A", weights=None, include_preprocessing=own, **options).save(path)
    with pytest.raises(ValueError, match=r"base.keras already states what its network expects, RG"):
        models.vgg("A", weights=path, include_preprocessing=ImagePreprocessing.caffe(), **options)
    again = ImagePreprocessing.torchvision(name="first")
    model = models.vgg("A", weights=path, include_preprocessing=again, **options)
    assert model.layers[1].name == "first"


@pytest.mark.slow  # the network that is refused is of 133 million parameters
@pytest.mark.parametrize("weights", ["imagenet", "torchvision"])
def test_a_published_file_of_another_classifier_is_refused(monkeypatch, tmp_path, weights):
    published_as_vgg13(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="do not fit the model"):
        keras_vgg.VGG13(weights=weights)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_full_size(configuration):
    model = models.vgg(configuration, weights=None)
    assert model.count_params() == architecture.parameters(configuration)
    assert model.predict(images(1, 224, 224, 3), verbose=0).shape == (1, 1000)


@pytest.mark.slow
def test_published_weights_contradict_another_preprocessing(monkeypatch, tmp_path):
    """torchvision's file states no preprocessing, but the table of published weights does."""
    source, _ = published_as_vgg13(monkeypatch, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, path)  # without this package's statement
    caffe = ImagePreprocessing.caffe()
    for options in ({"weights": "torchvision"}, {"weights": "imagenet"}):
        with pytest.raises(ValueError, match="already states what its network expects, RGB"):
            keras_vgg.VGG13(include_top=False, include_preprocessing=caffe, **options)
    base = keras_vgg.VGG13(weights="torchvision", include_top=False, include_preprocessing=True)
    assert base.layers[1].channel_order == "rgb"
    assert len(base.get_weights()) == 2 * 10 == len(source.get_weights()) - 6


@pytest.mark.parametrize("head", ["fc", "conv", "gap"])
def test_numbers_of_numpy(head, tmp_path):
    model = models.vgg(
        "A",
        weights=None,
        classes=np.int64(7),
        hidden_units=np.int32(8),
        filters=np.full(8, 4),
        head=head,
        input_shape=(64, 64, 3),
        train_size=np.int64(64) if head == "conv" else None,
    )
    model.save(tmp_path / "a.keras")
    assert keras.saving.load_model(tmp_path / "a.keras").output_shape == (None, 7)

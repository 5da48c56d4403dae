"""From one weight format to another: formats, recognition of the network, bad input."""

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy

import keras_vgg
from keras_vgg import cli, convert, weights
from keras_vgg.architecture import convolutions
from keras_vgg.weights import torch_naming
from tests.dense_networks import answers
from tests.test_models import FULL, keras_applications

SMALL = {"width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7, "input_shape": (64, 64, 3)}


UNEVEN = {"filters": (3, 9, 5, 7, 6, 8, 4, 2), "width_multiplier": 1}  # as of a pruned network


# C has convolutions of 1 x 1, E the most layers.
@pytest.mark.parametrize(
    ("suffix", "configuration", "options"),
    [
        *((s, c, SMALL) for s, c in zip(convert.SUFFIXES, "ACECE", strict=True)),
        *((suffix, "A", SMALL | UNEVEN) for suffix in (".keras", ".safetensors")),
    ],
)
def test_every_format_keeps_every_number(tmp_path, configuration, suffix, options):
    if suffix == ".pth":
        pytest.importorskip("torch")
    model = keras_vgg.vgg(
        configuration,
        weights=None,
        batch_norm=True,
        include_preprocessing=keras_vgg.ImagePreprocessing.torchvision(),
        **options,
    )
    model.save(tmp_path / "first.keras")
    network = convert.convert_weights(tmp_path / "first.keras", tmp_path / f"middle{suffix}")
    assert network.filters == options.get("filters", ())
    again = keras_vgg.vgg(
        configuration, weights=tmp_path / f"middle{suffix}", batch_norm=True, **options
    )
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("configuration", "options"),
    [
        *((configuration, {}) for configuration in "ABCDE"),
        ("A", {"batch_norm": True}),
        ("B", {"include_top": False}),
        ("C", {"head": "gap"}),
        ("D", {"width_multiplier": 0.1, "classes": 3}),
        ("A", UNEVEN | {"classes": 3}),
        ("E", {"input_shape": (32, 32, 1)}),
    ],
    ids=str,
)
def test_the_network_is_recognised(configuration, options):
    options = SMALL | options
    model = keras_vgg.vgg(configuration, weights=None, **options)
    found = weights.Weights(weights.tensors_of(model), "model")
    network = convert.recognise(found)
    assert network.configuration == configuration
    assert network.batch_norm == options.get("batch_norm", False)
    assert network.include_top == options.get("include_top", True)
    assert network.channels == options["input_shape"][2]
    again = convert.build(found)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("width", [1 / 16, FULL])
def test_keras_applications_loads_what_is_written(monkeypatch, tmp_path, width):
    model = keras_vgg.VGG16(weights=None, include_top=False, width_multiplier=width)
    model.save(tmp_path / "a.keras")
    convert.convert_weights(tmp_path / "a.keras", tmp_path / "a.h5")
    options = {"include_top": False, "weights": tmp_path / "a.h5"}
    theirs = keras_applications(monkeypatch, "VGG16", width, **options)
    for a, b in zip(model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_input(tmp_path):
    source = tmp_path / "a.keras"
    keras_vgg.vgg("A", weights=None, **SMALL).save(source)
    with pytest.raises(ValueError, match=r"must end in one of .weights.h5, .h5, .keras"):
        convert.convert_weights(source, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="naming must be one of torchvision, timm, not 'caffe'"):
        convert.convert_weights(source, tmp_path / "a.safetensors", naming="caffe")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        convert.convert_weights(source, tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        convert.convert_weights(tmp_path / "nothing.h5", tmp_path / "a.safetensors")
    (tmp_path / "there.safetensors").write_text("precious")
    with pytest.raises(ValueError, match=r"there.safetensors exists; pass overwrite"):
        convert.convert_weights(source, tmp_path / "there.safetensors")
    assert (tmp_path / "there.safetensors").read_text() == "precious"
    convert.convert_weights(source, tmp_path / "there.safetensors", overwrite=True)
    assert weights.read_weights(tmp_path / "there.safetensors").tensors


def test_layers_of_no_configuration(tmp_path):
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1"]
        group = file.create_group("block1_conv1")
        group.attrs["weight_names"] = [b"kernel", b"bias"]
        group["kernel"], group["bias"] = np.ones((3, 3, 3, 4), "float32"), np.ones(4, "float32")
    with pytest.raises(ValueError, match="none of the paper's configurations; it holds block1_co"):
        convert.convert_weights(tmp_path / "odd.h5", tmp_path / "odd.safetensors")


def test_nothing_is_left_of_a_conversion_that_fails(tmp_path, monkeypatch):
    source = tmp_path / "a.keras"
    keras_vgg.vgg("A", weights=None, **SMALL).save(source)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert.torch_format, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert.convert_weights(source, tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.keras"]


def read(path):
    return weights.read_weights(path)


def changed(tensors, **changes):
    tensors = {name: list(values) for name, values in tensors.items()}
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("changes", "message", "suffix"),
    [
        ({"dense": [np.ones((3, 3), "float32")] * 2}, "left over dense", ".h5"),
        ({"block3_conv1_bn": None}, "missing block3_conv1_bn", ".safetensors"),
        ({"block2_conv1": "bias"}, r"block2_conv1 is \[.*\(3,\)\], should be", ".keras"),
        (
            {"fc2": [np.ones((5, 9), "float32"), np.ones(9, "float32")]},
            r"fc2 is \(5, 9\), for 8",
            ".h5",
        ),
        ({"fc1": None}, "has only fc2, predictions of the classifier", ".safetensors"),
    ],
    ids=str,
)
def test_what_is_no_whole_network_is_not_converted(tmp_path, changes, message, suffix):
    model = keras_vgg.vgg("A", weights=None, batch_norm=True, **SMALL)
    tensors = weights.tensors_of(model)
    if "block2_conv1" in changes:
        changes = {"block2_conv1": [tensors["block2_conv1"][0], np.ones(3, "float32")]}
    convert.keras_format.write_legacy(changed(tensors, **changes), tmp_path / "odd.h5")
    with pytest.raises(ValueError, match=message):
        convert.convert_weights(tmp_path / "odd.h5", tmp_path / f"out{suffix}")
    assert not (tmp_path / f"out{suffix}").exists()


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("configuration", "head", "activation"),
    [
        ("A-LRN", "fc", "softmax"),
        ("A", "fc", None),
        ("A", "conv", "softmax"),
        ("A-LRN", "conv", None),
        ("A-LRN", "gap", "softmax"),
        ("A", "gap", None),
        ("A", "fc", "sigmoid"),
        ("A", "conv", "sigmoid"),
    ],
)
def test_a_converted_network_computes_the_same(tmp_path, configuration, head, activation):
    options = {"classifier_activation": activation}
    x = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    model = keras_vgg.vgg(
        configuration, weights=None, head=head, include_preprocessing=True, **options, **SMALL
    )
    model.save(tmp_path / "a.keras")
    network = convert.convert_weights(tmp_path / "a.keras", tmp_path / "b.keras")
    assert network.configuration == configuration
    again = keras.saving.load_model(tmp_path / "b.keras")
    np.testing.assert_allclose(answers(again, x), answers(model, x), rtol=1e-4, atol=1e-5)


def test_a_classifier_keeps_the_size_of_its_images(tmp_path):
    """48 pixels give as many cells as 32."""
    model = keras_vgg.vgg(
        "A", weights=None, include_preprocessing=True, **(SMALL | {"input_shape": (48, 48, 3)})
    )
    model.save(tmp_path / "a.keras")
    assert convert.convert_weights(tmp_path / "a.keras", tmp_path / "b.safetensors").side == 48
    assert convert.convert_weights(tmp_path / "b.safetensors", tmp_path / "c.keras").side == 48
    again = keras.saving.load_model(tmp_path / "c.keras")
    assert again.input_shape == (None, 48, 48, 3)
    x = np.random.default_rng(0).uniform(0, 255, (2, 48, 48, 3)).astype("float32")
    np.testing.assert_allclose(answers(again, x), answers(model, x), rtol=1e-5)


def base(**options):
    options = SMALL | {"weights": None, "include_top": False} | options
    return keras_vgg.vgg("A", include_preprocessing=True, **options)


def test_a_soft_max_of_its_own_is_kept(tmp_path):
    body = base()
    x = keras.layers.GlobalAveragePooling2D()(body.output)
    x = keras.layers.Softmax()(keras.layers.Dense(3, name="predictions")(x))
    model = keras.Model(body.input, x)
    model.save(tmp_path / "a.keras")
    convert.convert_weights(tmp_path / "a.keras", tmp_path / "b.keras")
    again = keras.saving.load_model(tmp_path / "b.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(answers(again, images), answers(model, images), rtol=1e-4)


def with_elu():
    model = base()
    model.get_layer("block2_conv1").activation = keras.activations.elu
    return model


def with_other(layer_of, **options):
    """A base whose layers `layer_of` replaces, where it returns one."""

    def replaced(layer):
        return layer_of(layer) or type(layer).from_config(layer.get_config())

    return keras.models.clone_model(base(**options), clone_function=replaced)


def average_pool(layer):
    is_pool = isinstance(layer, keras.layers.MaxPooling2D)
    return keras.layers.AveragePooling2D(2, name=layer.name) if is_pool else None


def leaky(layer):
    is_second = layer.name == "block2_conv1_relu"
    return keras.layers.LeakyReLU(name="leaky") if is_second else None


def elu(layer):
    is_second = layer.name == "block2_conv1_relu"
    return keras.layers.Activation("elu", name=layer.name) if is_second else None


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: base(output_stride=8), "a pool block4_pool that keeps the size"),
        (lambda: with_other(average_pool), "a pool block1_pool other than the maximum of 2x2"),
        (lambda: with_other(leaky, batch_norm=True), "the activation LeakyReLU in leaky"),
        (lambda: with_other(elu, batch_norm=True), "the activation 'elu' in block2_conv1_relu"),
        (lambda: base(output_stride=16), "a pool block5_pool that keeps the size"),
        (with_elu, "the activation 'elu' in block2_conv1"),
    ],
)
def test_a_network_that_would_become_another_is_not_built(tmp_path, make, reason):
    model = make()
    model.save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match=rf"a.keras has {reason}, so another network"):
        convert.convert_weights(tmp_path / "a.keras", tmp_path / "b.keras")
    assert not (tmp_path / "b.keras").exists()
    convert.convert_weights(tmp_path / "a.keras", tmp_path / "b.safetensors")  # weights alone
    found = read(tmp_path / "b.safetensors").tensors
    np.testing.assert_array_equal(found["block2_conv1"][0], model.get_layer("block2_conv1").kernel)


def test_another_epsilon_is_told(tmp_path):
    model = base(batch_norm=True)
    model.save(tmp_path / "a.keras")
    assert read(tmp_path / "a.keras").note == ""
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            layer.epsilon = 1e-3
    model.save(tmp_path / "b.keras")
    assert "adds epsilon=0.001 to a variance" in read(tmp_path / "b.keras").note


def test_pools_that_pad_are_told(tmp_path):
    def padded(layer):
        is_pool = isinstance(layer, keras.layers.MaxPooling2D)
        return keras.layers.MaxPooling2D(2, padding="same", name=layer.name) if is_pool else None

    with_other(padded).save(tmp_path / "a.keras")
    assert "its pools pad odd sides" in read(tmp_path / "a.keras").note


def test_builders_refuse_what_they_do_not_build(tmp_path):
    with_other(average_pool).save(tmp_path / "average.keras")
    bases = SMALL | {"include_top": False}
    average = tmp_path / "average.keras"
    for build in (
        lambda: keras_vgg.VGG11(weights=average, **bases),
        lambda: keras_vgg.dense.unet("A", 2, weights=average, width_multiplier=1 / 16),
    ):
        with pytest.raises(ValueError, match=r"a pool block1_pool other than .*another network"):
            build()
    dilated = keras_vgg.VGG11(weights=None, output_stride=8, **bases)
    dilated.save(tmp_path / "dilated.keras")
    again = keras_vgg.VGG11(weights=tmp_path / "dilated.keras", output_stride=8, **bases)
    np.testing.assert_array_equal(again.get_weights()[0], dilated.get_weights()[0])


def test_builders_warn_of_another_epsilon(tmp_path):
    model = base(batch_norm=True)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            layer.epsilon = 1e-3
    model.save(tmp_path / "a.keras")
    options = SMALL | {"include_top": False, "include_preprocessing": True, "batch_norm": True}
    with pytest.warns(UserWarning, match=r"a\.keras: its batch normalisation adds epsilon=0\.001"):
        keras_vgg.VGG11(weights=tmp_path / "a.keras", **options)
    with pytest.raises(ValueError, match=r"pass what read_weights returns to keras_vgg\.weights"):
        keras_vgg.VGG11(weights=read(tmp_path / "a.keras"), **options)


def test_images_that_are_not_square_are_told(tmp_path):
    keras_vgg.VGG11(weights=None, **SMALL | {"input_shape": (32, 64, 3)}).save(tmp_path / "a.keras")
    found = read(tmp_path / "a.keras")
    assert found.side is None
    assert "its images of 32x64 are not square" in found.note


def test_response_normalisation_survives_or_the_loss_is_told(tmp_path):
    keras_vgg.VGG11LRN(weights=None, **SMALL).save(tmp_path / "a.keras")
    stated = tmp_path / "b.safetensors"
    assert convert.convert_weights(tmp_path / "a.keras", stated).note == ""
    assert convert.convert_weights(stated, tmp_path / "c.keras").configuration == "A-LRN"
    note = convert.convert_weights(stated, tmp_path / "d.h5").note
    assert "d.h5 does not state that the network has local response normalisation" in note
    for source in (tmp_path / "a.keras", stated):
        with pytest.raises(ValueError, match=r"'A' has none: build configuration 'A-LRN'"):
            keras_vgg.vgg("A", weights=source, **SMALL)
        keras_vgg.vgg("A-LRN", weights=source, **SMALL)


def test_several_labels_survive_or_the_loss_is_told(tmp_path):
    model = keras_vgg.vgg(
        "A",
        weights=None,
        classifier_activation="sigmoid",
        include_preprocessing=keras_vgg.ImagePreprocessing.torchvision(),
        **SMALL,
    )
    model.save(tmp_path / "a.keras")
    keras.saving.save_model(model, tmp_path / "hub", zipped=False)  # as a push does
    assert read(tmp_path / "hub").several_labels
    with pytest.raises(ValueError, match=r"a\.keras gives an image several labels"):
        keras_vgg.vgg("A", weights=tmp_path / "a.keras", **SMALL)
    options = SMALL | {"classifier_activation": "sigmoid"}
    loaded = keras_vgg.vgg("A", weights=tmp_path / "a.keras", **options)
    np.testing.assert_array_equal(loaded.get_weights()[-2], model.get_weights()[-2])
    stated = tmp_path / "b.safetensors"
    assert convert.convert_weights(tmp_path / "a.keras", stated).note == ""
    convert.convert_weights(stated, tmp_path / "c.keras")
    again = keras.saving.load_model(tmp_path / "c.keras")
    assert again.layers[-1].activation is keras.activations.sigmoid
    base = tmp_path / "base.safetensors"
    note = convert.convert_weights(stated, base, include_top=False).note
    assert "sigmoids" not in note
    assert not read(base).several_labels
    for suffix in (".h5", ".weights.h5"):
        note = convert.convert_weights(stated, tmp_path / f"d{suffix}").note
        assert f"d{suffix} does not state that the network ends in sigmoids" in note
        assert not read(tmp_path / f"d{suffix}").several_labels


def test_grey_images_and_scores_survive(tmp_path):
    grey = SMALL | {"input_shape": (32, 32, 1), "classifier_activation": None}
    preprocessing = keras_vgg.ImagePreprocessing.torchvision()
    model = keras_vgg.vgg("A", weights=None, include_preprocessing=preprocessing, **grey)
    model.save(tmp_path / "a.keras")
    convert.convert_weights(tmp_path / "a.keras", tmp_path / "b.safetensors")
    assert convert.convert_weights(tmp_path / "b.safetensors", tmp_path / "c.keras").channels == 1
    again = keras.saving.load_model(tmp_path / "c.keras")
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype("float32")
    np.testing.assert_array_equal(again(images), model(images))
    base = tmp_path / "base.safetensors"
    convert.convert_weights(tmp_path / "b.safetensors", base, include_top=False)
    assert read(base).grey
    assert not read(base).logits


@pytest.mark.parametrize("naming", ["torchvision", "timm"])
def test_a_classifier_of_rectangular_images(tmp_path, naming):
    options = SMALL | {"input_shape": (64, 96, 3)}
    model = keras_vgg.vgg("A", weights=None, **options)
    model.save(tmp_path / "a.keras")
    target = tmp_path / "a.safetensors"
    if naming == "timm":  # whose kernel has rows and columns
        with pytest.raises(ValueError, match="order of rows and columns cannot be known"):
            convert.convert_weights(tmp_path / "a.keras", target, naming)
        return
    convert.convert_weights(tmp_path / "a.keras", target, naming)
    again = keras_vgg.vgg("A", weights=target, **options)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="not for square images"):
        convert.convert_weights(target, tmp_path / "b.keras")


def test_a_silent_source_is_told_what_it_expects(tmp_path):
    pytest.importorskip("torch")
    keras_vgg.vgg("A", weights=None, **SMALL).save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="is not known to expect torchvision's input"):
        convert.convert_weights(tmp_path / "a.weights.h5", tmp_path / "a.pth")
    convert.convert_weights(
        tmp_path / "a.weights.h5", tmp_path / "a.pth", preprocessing="torchvision"
    )
    told = tmp_path / "a.safetensors"
    convert.convert_weights(tmp_path / "a.weights.h5", told, preprocessing="caffe")
    assert read(told).preprocessing.channel_order == "bgr"
    convert.convert_weights(told, tmp_path / "same.safetensors", preprocessing="caffe")
    assert read(tmp_path / "same.safetensors").preprocessing.channel_order == "bgr"
    with pytest.raises(
        ValueError, match=r"already states what its network expects, BGR with .*: omit"
    ):
        convert.convert_weights(told, tmp_path / "b.keras", preprocessing="torchvision")
    with pytest.raises(ValueError, match="preprocessing must be one of caffe, torchvision"):
        convert.convert_weights(tmp_path / "a.weights.h5", tmp_path / "b.keras", preprocessing="tf")


def test_what_a_pytorch_file_is_only_assumed_to_expect_can_be_stated(tmp_path, capsys):
    """As Caffe's networks in PyTorch's format, such as vgg19-d01eb7cb.pth, which take BGR."""
    model = keras_vgg.vgg("A", weights=None, **SMALL)
    state = torch_naming.to_torch(weights.tensors_of(model), "torchvision")
    safetensors.numpy.save_file(state, tmp_path / "silent.safetensors")
    assert read(tmp_path / "silent.safetensors").assumed
    assert cli.main(["weights", str(tmp_path / "silent.safetensors")]) == 0
    assert "(assumed: the file does not state it)" in capsys.readouterr().out
    stated = tmp_path / "stated.safetensors"
    convert.convert_weights(tmp_path / "silent.safetensors", stated, preprocessing="caffe")
    assert read(stated).preprocessing.channel_order == "bgr"
    assert not read(stated).assumed
    assert cli.main(["weights", str(stated)]) == 0
    assert "assumed" not in capsys.readouterr().out


@pytest.mark.parametrize("channels", [1, 4])
def test_torchvisions_input_is_assumed_for_three_channels_only(tmp_path, channels):
    model = keras_vgg.vgg("A", weights=None, **SMALL | {"input_shape": (32, 32, channels)})
    state = torch_naming.to_torch(weights.tensors_of(model), "torchvision")
    safetensors.numpy.save_file(state, tmp_path / "silent.safetensors")
    silent = tmp_path / "silent.safetensors"
    assert read(silent).preprocessing is None
    with pytest.raises(ValueError, match=f"is for images of {channels} channels, and preproc"):
        convert.convert_weights(silent, tmp_path / "a.keras", preprocessing="caffe")
    convert.convert_weights(silent, tmp_path / "a.keras")


def test_kernels_of_one_dimension_are_no_vgg():
    tensors = {
        name: [np.ones((kernel, 1, 4), "float32"), np.ones(4, "float32")]
        for name, kernel, _ in convolutions("A")
    }
    with pytest.raises(ValueError, match="none of the paper's"):
        convert.recognise(weights.Weights(tensors, "audio"))


@pytest.mark.parametrize("shape", [(), (4,), (1, 4, 5)])
def test_a_classifier_whose_kernel_has_no_two_sides_is_named(shape):
    model = keras_vgg.vgg("A", weights=None, head="gap", classes=5, width_multiplier=1 / 16)
    tensors = weights.tensors_of(model) | {"predictions": [np.ones(shape), np.ones(5)]}
    with pytest.raises(ValueError, match=r"damaged.h5 is not a complete VGG: predictions is \("):
        convert.recognise(weights.Weights(tensors, "damaged.h5"))

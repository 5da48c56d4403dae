"""Keras weight files, whole or not at all; this file runs on TensorFlow and on JAX."""

import gc
import shutil

import h5py
import keras
import numpy as np
import pytest

import keras_vgg
from keras_vgg import models, weights

SMALL = {"width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7, "input_shape": (32, 32, 3)}


def small(configuration="A", **options):
    return models.vgg(configuration, weights=None, **(SMALL | options))


def save_legacy(model, path):
    """The layout in which keras.applications' files are published."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{w.name}:0".encode() for w in layer.weights]
            group.attrs["weight_names"] = names
            for name, w in zip(names, layer.weights, strict=True):
                group[name.decode()] = keras.ops.convert_to_numpy(w)


SAVE = {
    "vgg.h5": save_legacy,
    "vgg.weights.h5": lambda model, path: model.save_weights(path),
    "vgg.keras": lambda model, path: model.save(path),
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", SAVE)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_format_loads_exactly(tmp_path, name, batch_norm):
    model = small(batch_norm=batch_norm)
    SAVE[name](model, tmp_path / name)
    again = small(batch_norm=batch_norm)
    keras_vgg.load_weights(again, tmp_path / name)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["vgg.weights.h5", "vgg.keras"])
def test_weights_in_bfloat16_become_float32(tmp_path, name):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = small()
        SAVE[name](model, tmp_path / name)
    finally:
        keras.config.set_dtype_policy("float32")
    again = small()
    keras_vgg.load_weights(again, tmp_path / name)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.cast(a, "float32"), b, err_msg=a.path)


def test_a_whole_model_in_a_legacy_file(tmp_path):
    """As model.save("x.h5") writes it: the layers lie under model_weights."""
    model = small()
    save_legacy(model, tmp_path / "weights.h5")
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        with h5py.File(tmp_path / "weights.h5") as found:
            group = file.create_group("model_weights")
            for name, value in found.attrs.items():
                group.attrs[name] = value
            for name in found:
                found.copy(name, group)
        file.create_group("optimizer_weights")
    again = small()
    keras_vgg.load_weights(again, tmp_path / "whole.h5")
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_convolution_of_another_map_is_refused():
    """As many numbers in another order are other numbers."""
    conv = small(head="conv", input_shape=(64, 256, 3), train_size=(64, 256))
    dense = small(input_shape=(128, 128, 3))
    with pytest.raises(ValueError, match=r"fc1 is \[\(2, 8, 32, 8\)"):
        keras_vgg.copy_weights(conv, dense)
    same = small(input_shape=(64, 256, 3))
    keras_vgg.copy_weights(conv, same)
    for a, b in zip(conv.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a.reshape(b.shape), b)


def test_optimiser_state_in_a_file_is_not_a_layer(tmp_path):
    model = small()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "a.weights.h5")
    again = small()
    keras_vgg.load_weights(again, tmp_path / "a.weights.h5")
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        ({"configuration": "B"}, ["missing block1_conv2", "missing block2_conv2"]),
        ({"include_top": False}, ["left over fc1", "left over predictions"]),
        ({"classes": 5}, [r"predictions is \[\(8, 7\), \(7,\)\], the model wants \[\(8, 5\)"]),
        ({"batch_norm": True}, ["the model has batch normalisation, and they have none"]),
        ({"input_shape": (64, 64, 3)}, [r"fc1 is \[\(32, 8\)"]),
    ],
    ids=str,
)
def test_another_architecture_is_refused_and_nothing_is_loaded(tmp_path, options, messages):
    small().save_weights(tmp_path / "a.weights.h5")
    other = small(**options)
    before = other.get_weights()
    for message in [*messages, "nothing was loaded"]:
        with pytest.raises(ValueError, match=message):
            keras_vgg.load_weights(other, tmp_path / "a.weights.h5")
    for a, b in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def damaged(tmp_path):
    """name -> (file, what is said of it)"""
    whole = tmp_path / "whole.weights.h5"
    model = small()
    model.save_weights(whole)
    model.save(tmp_path / "whole.keras")
    (tmp_path / "text.h5").write_text("not weights")
    (tmp_path / "text.keras").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "text.bin").write_text("not weights at all")
    (tmp_path / "nothing.h5").touch()
    h5py.File(tmp_path / "empty.h5", "w").close()
    (tmp_path / "cut.weights.h5").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "cut.keras").write_bytes((tmp_path / "whole.keras").read_bytes()[:3000])
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path, "text.h5")
    (tmp_path / "folder").mkdir()
    broken = bytearray((tmp_path / "whole.keras").read_bytes())
    start = broken.rindex(b"PK\x01\x02")
    broken[start : start + 4] = b"PK??"
    (tmp_path / "broken.keras").write_bytes(broken)
    return {
        "broken.keras": "is damaged",
        "text.h5": "is damaged: its content is not an HDF5 file",
        "text.keras": "is damaged: its content is not a .keras archive",
        "text.safetensors": "is damaged: its content is not a safetensors file",
        "text.bin": "is no weight file; pass Keras .h5",
        "nothing.h5": "is empty",
        "empty.h5": "holds no layer weights",
        "cut.weights.h5": "is damaged, or no Keras weight file",
        "cut.keras": "is damaged: its content is not a .keras archive",
        "other.zip": "is no weight file; pass",
        "folder": "is a folder without weights",
    }


def test_damaged_files(tmp_path):
    model = small()
    before = model.get_weights()
    for name, message in damaged(tmp_path).items():
        with pytest.raises(ValueError, match=rf"{name} {message}"):
            weights.read_weights(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            keras_vgg.load_weights(model, tmp_path / name)
        for a, b in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(FileNotFoundError, match="no weight file at"):
        weights.read_weights(tmp_path / "nowhere.h5")


def test_integer_weights_are_refused(tmp_path):
    with h5py.File(tmp_path / "int8.h5", "w") as file:
        file.attrs["layer_names"] = [b"fc1"]
        group = file.create_group("fc1")
        group.attrs["weight_names"] = [b"kernel"]
        group["kernel"] = np.ones((4, 4), "int8")
    with pytest.raises(ValueError, match=r"not floating-point numbers in fc1 \(int8\)"):
        weights.read_weights(tmp_path / "int8.h5")


def test_layers_are_dropped_only_when_asked(tmp_path):
    source = small()
    source.save_weights(tmp_path / "a.weights.h5")
    other = small(classes=5)
    before = [keras.ops.convert_to_numpy(w) for w in other.get_layer("predictions").weights]
    keras_vgg.load_weights(other, tmp_path / "a.weights.h5", drop=("predictions",))
    for a, b in zip(before, other.get_layer("predictions").weights, strict=True):
        np.testing.assert_array_equal(a, keras.ops.convert_to_numpy(b))
    np.testing.assert_array_equal(source.get_weights()[-4], other.get_weights()[-4])
    gap = small(head="gap")
    with pytest.raises(ValueError, match="left over fc1"):
        keras_vgg.load_weights(gap, tmp_path / "a.weights.h5", drop=("predictions",))
    keras_vgg.load_weights(gap, tmp_path / "a.weights.h5", drop=weights.TOP)
    with pytest.raises(ValueError, match="cannot drop fc3: there is no such layer"):
        keras_vgg.load_weights(gap, tmp_path / "a.weights.h5", drop=("fc3",))


def test_tensors_without_a_source_are_no_weights():
    with pytest.raises(ValueError, match=r"be a keras_vgg.weights.Weights, such as .* not a dict"):
        weights.assign(small(), {})


def test_without_the_top_a_builder_leaves_the_classifier_out(tmp_path):
    source = small()
    source.save(tmp_path / "a.keras")
    base = models.vgg("A", include_top=False, weights=tmp_path / "a.keras", width_multiplier=1 / 16)
    for a, b in zip(base.get_weights(), source.get_weights()):  # noqa: B905
        np.testing.assert_array_equal(a, b)


def test_the_preprocessing_of_a_file_goes_into_the_model(tmp_path):
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    own = keras_vgg.ImagePreprocessing((100, 110, 120), (50, 60, 70), "bgr", name="mine")
    model = small(include_preprocessing=own)
    model.save(tmp_path / "a.keras")
    again = models.vgg("A", weights=tmp_path / "a.keras", include_preprocessing=True, **SMALL)
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    model.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match="does not say which input its network was trained on"):
        models.vgg("A", weights=tmp_path / "a.weights.h5", include_preprocessing=True, **SMALL)
    # keras.applications' files say it by their names.
    name = "vgg16_weights_tf_dim_ordering_tf_kernels.h5"
    save_legacy(small(), tmp_path / name)
    found = weights.read_weights(tmp_path / name).preprocessing.get_config()
    caffe = keras_vgg.ImagePreprocessing.caffe().get_config()
    assert [found[k] for k in ("mean", "std")] == [caffe[k] for k in ("mean", "std")]
    assert found["channel_order"] == "bgr"


def test_a_run_directory_is_read_by_its_model(tmp_path):
    model = small()
    model.save(tmp_path / "model.keras")
    (tmp_path / "recipe.json").write_text("{}")
    np.testing.assert_array_equal(
        weights.read_weights(tmp_path).tensors["fc1"][0], model.get_layer("fc1").get_weights()[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("classifier", [False, True])
def test_kerashub_presets(tmp_path, classifier):
    """KerasHub's own network, saved by it, gives the same outputs here."""
    hub = pytest.importorskip("keras_hub")
    converter = hub.layers.VGGImageConverter(image_size=(32, 32), scale=1 / 60, offset=[-2, -1, 0])
    backbone = hub.models.VGGBackbone([2, 2, 3, 3, 3], [4, 8, 16, 32, 32], image_shape=(32, 32, 3))
    if classifier:
        theirs = hub.models.VGGImageClassifier(
            backbone=backbone,
            num_classes=7,
            pooling="flatten",
            pooling_hidden_dim=8,
            activation="softmax",
            preprocessor=hub.models.VGGImageClassifierPreprocessor(image_converter=converter),
        )
    else:
        theirs = backbone
    theirs.save_to_preset(str(tmp_path / "preset"))
    options = SMALL | {"include_top": classifier, "weights": tmp_path / "preset"}
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = keras.ops.convert_to_numpy(theirs(x, training=False))
    np.testing.assert_allclose(models.vgg("D", **options)(x), expected, rtol=1e-5, atol=1e-5)
    if classifier:
        found = weights.read_weights(tmp_path / "preset").preprocessing
        np.testing.assert_allclose(found(x), x / 60 + np.float32([-2, -1, 0]), atol=1e-5)


def test_values_that_are_not_finite_are_refused(tmp_path):
    model = small()
    model.get_layer("fc2").bias.assign(np.full(8, np.nan, "float32"))
    model.save_weights(tmp_path / "nan.weights.h5")
    with pytest.raises(ValueError, match="not finite in fc2"):
        keras_vgg.load_weights(small(), tmp_path / "nan.weights.h5")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_batch_normalisation_on_one_side_alone_is_named(tmp_path, batch_norm):
    options = {"include_top": False, "width_multiplier": 1 / 16, "input_shape": (32, 32, 3)}
    models.vgg("A", weights=None, batch_norm=batch_norm, **options).save(tmp_path / "a.keras")
    other = not batch_norm
    with pytest.raises(ValueError, match=f"nothing was loaded: the.* batch_norm={batch_norm}$"):
        models.vgg("A", weights=tmp_path / "a.keras", batch_norm=other, **options)


def test_the_table_of_published_checkpoints():
    by_network = {}
    for c in weights.CHECKPOINTS:
        by_network.setdefault((c.source, c.configuration, c.batch_norm), []).append(c)
        assert c.classes == 1000
        assert 60 < c.top1 < c.top5 < 100
        assert c.hash is None or c.hash.startswith(("md5:", "sha256:"))
    assert len([key for key in by_network if key[0] == "torchvision"]) == 8
    stated = {  # by the hub
        ("B", True): "sha256:7dae235e",
        ("D", True): "sha256:88bbedbc",
        ("E", False): "sha256:11aea017",
        ("E", True): "sha256:f8249087",
    }
    for (configuration, batch_norm), start in stated.items():
        (found,) = by_network["torchvision", configuration, batch_norm]
        assert found.hash.startswith(start)
    # What get_file's progress bar says of Keras' files; some kilobytes are the format's.
    sizes = {c.file: c.bytes for c in weights.CHECKPOINTS if c.source == "keras"}
    assert 0 < 553467096 - sizes["vgg16_weights_tf_dim_ordering_tf_kernels.h5"] < 40_000
    assert 0 < 80134624 - sizes["vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"] < 40_000


@pytest.mark.parametrize(
    ("name", "configuration", "batch_norm", "top", "expected"),
    [
        ("imagenet", "D", False, True, ("keras", True)),
        ("imagenet", "VGG19", False, False, ("keras", False)),
        ("imagenet", "D", True, False, ("torchvision", True)),
        ("imagenet", "A", False, True, ("torchvision", True)),
        ("torchvision", "D", False, False, ("torchvision", True)),
    ],
)
def test_what_imagenet_means(name, configuration, batch_norm, top, expected):
    found = weights.find(name, configuration, batch_norm, top)
    assert (found.source, found.include_top) == expected
    assert found.batch_norm == batch_norm


@pytest.mark.parametrize("configuration", ["C", "A-LRN"])
def test_no_weights_are_published_of_some(configuration):
    with pytest.raises(
        ValueError, match=r"no ImageNet weights of VGG1.*A, B, D and E have weights"
    ):
        models.vgg(configuration, weights="imagenet")


@pytest.mark.slow
def test_published_imagenet_convolutions(data_folder):
    """Oxford's VGG-16 convolutions give what keras.applications gives with them."""
    path = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    image = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")
    x = keras.applications.vgg16.preprocess_input(image.copy())

    def features(build, images, **options):  # of full width: one network at a time
        found = build(include_top=False, weights=path, **options).predict(images, verbose=0)
        keras.utils.clear_session()
        gc.collect()
        return found

    expected = features(keras.applications.VGG16, x)
    assert expected.max() > 1  # trained features, not zeros
    np.testing.assert_allclose(features(keras_vgg.VGG16, x), expected, atol=1e-5)
    inside = features(keras_vgg.VGG16, image, include_preprocessing=True)
    np.testing.assert_allclose(inside, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "model", "message"),
    [
        ({"configuration": "A-LRN"}, {}, "for local response normalisation, and the model has"),
        ({"classifier_activation": "sigmoid"}, {}, "for sigmoids, and the model ends in a soft"),
        (
            {"include_preprocessing": keras_vgg.ImagePreprocessing.torchvision()},
            {"include_preprocessing": True},
            "already states what its network expects, RGB with mean",
        ),
        (
            {
                "include_preprocessing": keras_vgg.ImagePreprocessing.torchvision(),
                "input_shape": (64, 64, 1),
            },
            {"include_preprocessing": True, "input_shape": (64, 64, 1)},
            "already states what its network expects, RGB with mean",
        ),
    ],
)
def test_a_file_of_another_kind_of_network_is_refused(tmp_path, options, model, message):
    small(**options).save(tmp_path / "a.keras")
    other = small(**model)
    before = other.get_weights()
    with pytest.raises(ValueError, match=message):
        weights.load_weights(other, tmp_path / "a.keras")
    for now, then in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = small()
    model.save(tmp_path / "a.keras")
    again = models.vgg("A", weights="~/a.keras", **SMALL)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])


def test_normalisation_is_not_lost_between_two_networks():
    source, target = small("A-LRN"), small()
    with pytest.raises(ValueError, match="for local response normalisation, and the model has non"):
        weights.copy_weights(source, target)
    again = small("A-LRN")
    weights.copy_weights(source, again)
    for one, other in zip(source.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

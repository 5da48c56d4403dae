"""Weights as people save them: other heads, networks around a VGG, wrapped PyTorch checkpoints."""

import argparse
import collections
import io
import re
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import keras_vgg
from keras_vgg import cli, convert, models, weights

SHAPE = (32, 32, 3)
BASE = {"include_top": False, "width_multiplier": 1 / 16, "input_shape": SHAPE}
WITH_TOP = BASE | {"include_top": True, "hidden_units": 8}


def base(name=None, batch_norm=False):
    return models.vgg("A", weights=None, name=name, batch_norm=batch_norm, **BASE)


def flat(batch_norm=False):
    """A head of one's own on the outputs of the base."""
    vgg = base(batch_norm=batch_norm)
    x = layers.Flatten()(vgg.output)
    x = layers.BatchNormalization(name="bn")(layers.Dense(6, activation="relu")(x))
    return keras.Model(vgg.input, layers.Dense(5, name="out")(layers.Dropout(0.5)(x)))


def sequential(batch_norm=False):
    """A base as a layer of a Sequential, after data augmentation."""
    vgg = base("vgg16", batch_norm)
    flip = [layers.Input(SHAPE), layers.RandomFlip(), layers.RandomRotation(0.1)]
    return keras.Sequential([*flip, vgg, layers.Flatten(), layers.Dense(5, name="predictions")])


def functional(batch_norm=False):
    image = layers.Input(SHAPE)
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).uniform(0, 255, (4, *SHAPE)))
    x = base("my_base", batch_norm)(normalization(image))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3)(x))


def twice_nested(batch_norm=False):
    inner = keras.Sequential([layers.Input(SHAPE), base("deep", batch_norm)], name="middle")
    return keras.Sequential([inner, layers.GlobalMaxPooling2D(), layers.Dense(2)])


NETWORKS = {f.__name__: f for f in (flat, sequential, functional, twice_nested)}
LEFT_OUT = {
    "flat": {"dense", "bn", "out"},
    "sequential": {"predictions"},
    "functional": {"normalization", "dense"},
    "twice_nested": {"dense"},
}


def base_of(model):
    """The VGG within a model."""
    for layer in model.layers:
        if layer.name == "block1_conv1":
            return model
        found = base_of(layer) if hasattr(layer, "layers") else None
        if found:
            return found
    return None


def assert_same_base(ours, model):
    for layer in ours.layers:
        theirs = base_of(model).get_layer(layer.name).get_weights() if layer.weights else []
        for a, b in zip(layer.get_weights(), theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    "suffix", [".keras", *(pytest.param(s, marks=pytest.mark.slow) for s in (".h5", ".weights.h5"))]
)
@pytest.mark.parametrize(
    ("name", "batch_norm"),
    [*((name, False) for name in NETWORKS), ("sequential", True), ("twice_nested", True)],
)
def test_a_base_is_found_and_any_head_left_out(tmp_path, name, suffix, batch_norm):
    keras.utils.set_random_seed(1)
    model = NETWORKS[name](batch_norm)
    path = tmp_path / f"mine{suffix}"
    (model.save_weights if suffix == ".weights.h5" else model.save)(path)
    ours = models.vgg("A", weights=path, batch_norm=batch_norm, **BASE)
    assert_same_base(ours, model)
    note = weights.read_weights(path, include_top=False).note
    names = note.split("left out: ")[1].split(", ")
    assert {n.rstrip("_0123456789") for n in names} == LEFT_OUT[name]
    if name != "flat":
        where = {"sequential": "vgg16", "functional": "my_base", "twice_nested": ""}[name]
        assert f"the VGG is the layer {where}" in note


def without_names(file):
    """Take the layers' names out of an HDF5 file, as Keras before 3.6 writes it."""

    def strip(_, item):
        item.attrs.pop("name", None)

    with h5py.File(file, "r+") as opened:
        opened.visititems(strip)


def numbered_as_tensorflow_2_13(file):
    """Call the container as TensorFlow 2.13 does, which counts layers with weights twice."""
    with h5py.File(file, "r+") as opened:
        opened.move("layers", "_layer_checkpoint_dependencies")
        layers = opened["_layer_checkpoint_dependencies"]
        for i in range(7, 0, -1):
            layers.move(f"conv2d_{i}", f"conv2d_{2 * i}")


def older(path, change=without_names):
    """Change the HDF5 inside a .keras file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    content = io.BytesIO(files["model.weights.h5"])
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {"model.weights.h5": content.getvalue()}).items():
            archive.writestr(name, data)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_keras_before_3_6_are_read(tmp_path, name):
    """They state no layer names; the configuration has them in the same order."""
    keras.utils.set_random_seed(3)
    model = NETWORKS[name]()
    model.save(tmp_path / "old.keras")
    older(tmp_path / "old.keras")
    assert_same_base(models.vgg("A", weights=tmp_path / "old.keras", **BASE), model)
    keras.saving.save_model(model, tmp_path / "hub", zipped=False)
    without_names(tmp_path / "hub" / "model.weights.h5")
    assert_same_base(models.vgg("A", weights=tmp_path / "hub", **BASE), model)


def test_a_file_of_tensorflow_2_13_is_read(tmp_path):
    model = flat()
    model.save(tmp_path / "old.keras")
    older(tmp_path / "old.keras")
    older(tmp_path / "old.keras", numbered_as_tensorflow_2_13)
    assert_same_base(models.vgg("A", weights=tmp_path / "old.keras", **BASE), model)


def test_a_bare_file_of_keras_before_3_6_says_what_it_lacks(tmp_path, capsys):
    path = tmp_path / "old.weights.h5"
    flat().save_weights(path)
    without_names(path)
    reason = "it was written by Keras before 3.6, which states no layer names: load it into"
    with pytest.raises(ValueError, match=rf"holds no convolutions of VGG .*: {reason}"):
        models.vgg("A", weights=path, **BASE)
    with pytest.raises(ValueError, match=rf"nothing was loaded.*\({reason}"):
        keras_vgg.load_weights(base(), path)
    assert cli.main(["weights", str(path)]) == 2
    assert reason in capsys.readouterr().err
    (tmp_path / "preset").mkdir()
    path.rename(tmp_path / "preset" / "model.weights.h5")
    with pytest.raises(ValueError, match=rf"model\.weights\.h5: {reason}"):
        weights.read_weights(tmp_path / "preset")


def test_another_network_is_said_to_have_no_convolutions_of_vgg(tmp_path):
    other = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(2, 3, name="conv1_conv")])
    for name in ("other.h5", "other.keras"):
        other.save(tmp_path / name)
        message = rf"{name} holds no convolutions of VGG \(block1_conv1 ...\): left out: conv1_conv"
        with pytest.raises(ValueError, match=message):
            models.vgg("A", weights=tmp_path / name, **BASE)


def test_with_the_top_another_head_is_refused(tmp_path):
    model = flat()
    for name in ("mine.h5", "mine.keras"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"left over bn; left over dense.*; missing fc1"):
            models.vgg("A", weights=tmp_path / name, **WITH_TOP)
    nested = sequential()
    nested.save(tmp_path / "nested.h5")
    target = base()
    before = target.get_weights()
    with pytest.raises(ValueError, match=r"left over predictions.*\(the VGG is the layer vgg16"):
        keras_vgg.load_weights(target, tmp_path / "nested.h5")
    for a, b in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    keras_vgg.load_weights(target, tmp_path / "nested.h5", drop=["predictions"])
    assert_same_base(target, nested)


def test_a_counter_of_a_normalization_does_not_make_a_file_unreadable(tmp_path):
    model = functional()
    for name in ("mine.keras", "mine.h5"):
        model.save(tmp_path / name)
        layers_of_file = weights.read_weights(tmp_path / name).tensors
        others = [layer for layer in layers_of_file if not layer.startswith("block")]
        assert len(others) == 2  # Normalization and Dense
        target = base()
        keras_vgg.load_weights(target, tmp_path / name, drop=others)
        assert_same_base(target, model)


def test_a_whole_vgg_within_a_network_loads_with_its_top(tmp_path):
    options = {"width_multiplier": 1 / 16, "input_shape": SHAPE, "hidden_units": 8, "classes": 4}
    vgg = models.vgg("A", weights=None, name="inner", **options)
    model = keras.Sequential([layers.Input(SHAPE), layers.RandomFlip(), vgg])
    for name in ("whole.h5", "whole.keras"):
        model.save(tmp_path / name)
        again = models.vgg("A", weights=tmp_path / name, **options)
        for a, b in zip(again.get_weights(), vgg.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    # Another layer of the same name does not take the place of VGG's.
    outer = keras.Sequential([layers.Input(SHAPE), vgg, layers.Dense(2, name="predictions")])
    for name in ("outer.h5", "outer.keras"):
        outer.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"left over predictions \(outside\)"):
            models.vgg("A", weights=tmp_path / name, **options)


def test_two_vggs_are_ambiguous(tmp_path):
    image = layers.Input(SHAPE)
    joined = layers.Concatenate()([base("left")(image), base("right")(image)])
    model = keras.Model(image, joined)
    for name in ("two.h5", "two.keras"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match="holds several VGGs: left, right; save one"):
            models.vgg("A", weights=tmp_path / name, **BASE)


def test_a_layer_between_the_convolutions_is_no_head(tmp_path):
    vgg = base()
    x = image = layers.Input(SHAPE)
    for layer in vgg.layers[1:]:
        x = layer(x)
        if layer.name == "block2_pool":
            x = layers.BatchNormalization(name="between")(x)
    model = keras.Model(image, x)
    for name in ("odd.h5", "odd.keras"):
        model.save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is no VGG: between lie between the conv"):
            models.vgg("A", weights=tmp_path / name, **BASE)


def test_a_missing_layer_is_an_error_without_the_top_too(tmp_path):
    base().save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match=r"nothing was loaded: .*missing block1_conv2"):
        models.vgg("B", weights=tmp_path / "a.keras", **BASE)


def test_the_command_says_what_a_file_holds(tmp_path, capsys):
    flat().save(tmp_path / "mine.h5")
    assert cli.main(["weights", str(tmp_path / "mine.h5")]) == 0
    out = capsys.readouterr().out
    assert "VGG11 (configuration A), width 0.0625, no classifier" in out
    assert "left out: bn, dense" in out
    sequential().save(tmp_path / "nested.keras")
    assert cli.main(["weights", str(tmp_path / "nested.keras")]) == 0
    assert "the VGG is the layer vgg16 of a larger network" in capsys.readouterr().out
    keras.Sequential([layers.Input((3,)), layers.Dense(2)]).save(tmp_path / "other.keras")
    assert cli.main(["weights", str(tmp_path / "other.keras")]) == 2
    error = capsys.readouterr().err
    assert "other.keras is none of the paper's configurations; it holds dense" in error
    assert error.count("\n") == 1


def test_a_pool_by_the_maximum_does_not_become_an_average(tmp_path, capsys):
    vgg = models.vgg("A", weights=None, pooling="max", **BASE)
    head = layers.Dense(5, activation="softmax", name="predictions")
    keras.Model(vgg.input, head(vgg.output)).save(tmp_path / "mine.keras")
    arguments = ["convert", str(tmp_path / "mine.keras"), str(tmp_path / "other.keras")]
    assert cli.main(arguments) == 2
    assert (
        "mine.keras pools by the maximum, and the gap head by the average; include_top=False "
        "(--no-include-top) converts the convolutions alone"
    ) in capsys.readouterr().err
    assert cli.main([*arguments, "--no-include-top"]) == 0
    assert cli.main(["weights", str(tmp_path / "mine.keras")]) == 0
    assert "VGG11 (configuration A), width 0.0625, no classifier" in capsys.readouterr().out


@pytest.mark.parametrize(("pooling", "head"), [("max", "gap"), ("avg", "fc"), ("max", "fc")])
def test_a_head_behind_another_pooling_is_not_loaded(tmp_path, pooling, head):
    vgg = models.vgg("A", weights=None, pooling=pooling, **BASE)
    x = vgg.output
    for name in ("fc1", "fc2") if head == "fc" else ():
        x = layers.Dense(8, activation="relu", name=name)(x)
    path = tmp_path / "mine.keras"
    keras.Model(vgg.input, layers.Dense(5, name="predictions")(x)).save(path)
    found = weights.read_weights(path)
    assert found.pooling == pooling
    with pytest.raises(ValueError, match="pools "):
        convert.recognise(found)
    options = BASE | {"include_top": True, "classes": 5, "hidden_units": 8}
    with pytest.raises(ValueError, match=f"predictions stands behind a global {pooling} pooling"):
        models.vgg("A", weights=path, head=head, **options)


@pytest.mark.parametrize(("head", "pooling"), [("gap", "avg"), ("fc", None), ("conv", None)])
def test_a_head_of_our_own_is_loaded(tmp_path, head, pooling):
    options = BASE | {"include_top": True, "classes": 5, "hidden_units": 8, "head": head}
    models.vgg("A", weights=None, **options).save(tmp_path / "mine.keras")
    assert weights.read_weights(tmp_path / "mine.keras").pooling == pooling
    models.vgg("A", weights=tmp_path / "mine.keras", **options)


def test_the_command_converts_a_base(tmp_path, capsys):
    model = flat()
    model.save(tmp_path / "mine.h5")
    target = tmp_path / "base.safetensors"
    assert cli.main(["convert", str(tmp_path / "mine.h5"), str(target)]) == 2
    error = capsys.readouterr().err
    assert "left over bn" in error
    assert "--no-include-top" in error
    options = ["--no-include-top", "--preprocessing", "caffe"]
    assert cli.main(["convert", str(tmp_path / "mine.h5"), str(target), *options]) == 0
    assert "left out: bn, dense" in capsys.readouterr().out
    assert_same_base(models.vgg("A", weights=target, **BASE), model)


# PyTorch's checkpoints

torch = pytest.importorskip("torch") if keras.backend.backend() == "tensorflow" else None


@pytest.fixture(scope="module")
def state():
    """The state dict of a VGG in torchvision's naming, without a classifier."""
    keras.utils.set_random_seed(2)
    arrays = weights.torch_naming.to_torch(weights.tensors_of(base()), "torchvision")
    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def renamed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def inserted(state):
    return {name.replace("features.", "features.module.", 1): v for name, v in state.items()}


CHECKPOINTS = {
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "the checkpoint's state_dict"),
    "model": (lambda s: {"model": s, "optimizer": {"state": {}}}, "the checkpoint's model"),
    "model_state_dict": (lambda s: {"model_state_dict": s, "loss": 0.5}, "model_state_dict"),
    "net": (lambda s: {"net": s, "acc": 93.5, "epoch": 200}, "the checkpoint's net"),
    "numpy": (
        lambda s: {"state_dict": s, "best_acc": np.float64(93.5), "epoch": np.int64(7)},
        "the checkpoint's state_dict",
    ),
    "nested": (lambda s: {"checkpoint": {"model": s}}, "the checkpoint's checkpoint.model"),
    "options": (
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, data="path")},
        "the checkpoint's model",
    ),
    "optimizer": (
        lambda s: {
            "model": s,
            "optimizer": {
                "state": {0: {"momentum_buffer": torch.zeros(3)}, 1: {"step": torch.ones(1)}},
                "param_groups": [{"lr": 0.1, "params": [0, 1]}],
            },
        },
        "the checkpoint's model",
    ),
    "module": (lambda s: renamed(s, "module."), r"without module\. in"),
    "compiled": (lambda s: renamed(s, "_orig_mod.module."), r"without _orig_mod\. and module\."),
    "features_module": (inserted, r"without module\. in"),
    "lightning": (
        lambda s: {"state_dict": renamed(s, "model.") | {"loss.weight": torch.ones(5)}},
        r"state_dict; without model\. in",
    ),
    "backbone": (
        lambda s: renamed(s, "net.backbone.") | {"net.fc.weight": torch.ones(5, 32)},
        r"without net\.backbone\. in",
    ),
    "ordered": (lambda s: collections.OrderedDict(renamed(s, "module.")), r"without module\. in"),
}


@pytest.mark.fast_cases(6)
@pytest.mark.skipif(torch is None, reason="PyTorch's files do not depend on the backend")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pytorch_checkpoints_are_opened(tmp_path, state, name):
    wrap, note = CHECKPOINTS[name]
    torch.save(wrap(state), tmp_path / "mine.pth")
    vgg = models.vgg("A", weights=tmp_path / "mine.pth", **BASE)
    kernel = vgg.get_layer("block5_conv2").get_weights()[0]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["features.18.weight"].numpy())
    loaded = weights.read_weights(tmp_path / "mine.pth", include_top=False)
    assert re.search(note, loaded.note)
    assert loaded.preprocessing is not None


@pytest.mark.skipif(torch is None, reason="PyTorch's files do not depend on the backend")
def test_the_counter_of_averaged_weights_is_no_weight(tmp_path, state):
    """torch.optim.swa_utils.AveragedModel counts the networks of its mean."""
    torch.save(renamed(state, "module.") | {"n_averaged": torch.tensor(3)}, tmp_path / "mean.pth")
    target = base()
    keras_vgg.load_weights(target, tmp_path / "mean.pth")
    kernel = target.get_layer("block1_conv1").get_weights()[0]
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), state["features.0.weight"].numpy())


@pytest.mark.fast_cases(2)
@pytest.mark.skipif(torch is None, reason="PyTorch's files do not depend on the backend")
@pytest.mark.parametrize(
    "head",
    [
        {"classifier.weight": (10, 32), "classifier.bias": (10,)},
        {"classifier.0.weight": (7,), "classifier.0.bias": (7,), "classifier.1.weight": (7, 7)},
        {"classifier.0.weight": (9, 31), "classifier.0.bias": (9,)},
        {"classifier.6.weight": (5, 512), "classifier.6.bias": (5,), "attention.query": (3, 3)},
        {"fc.weight": (2, 32), "fc.bias": (2,), "fc.num_batches_tracked": ()},
    ],
    ids=str,
)
def test_heads_of_pytorch_are_left_out(tmp_path, state, head):
    from safetensors.torch import save_file

    tensors = state | {name: torch.ones(shape) for name, shape in head.items()}
    torch.save(tensors, tmp_path / "mine.pth")
    save_file(renamed(tensors, "module."), tmp_path / "mine.safetensors")
    for name in ("mine.pth", "mine.safetensors"):
        vgg = models.vgg("A", weights=tmp_path / name, **BASE)
        kernel = vgg.get_layer("block1_conv1").get_weights()[0]
        np.testing.assert_array_equal(
            kernel.transpose(3, 2, 0, 1), state["features.0.weight"].numpy()
        )
        with pytest.raises(ValueError, match=r"nothing was loaded.*left over"):
            models.vgg("A", weights=tmp_path / name, **WITH_TOP)


@pytest.mark.skipif(torch is None, reason="PyTorch's files do not depend on the backend")
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda s: {"model": s, "model_ema": s}, "several networks: model, model_ema; save"),
        (
            lambda s: renamed(s, "teacher.") | renamed(s, "student."),
            r"several VGGs: student\., teacher\.; save one",
        ),
        (lambda s: renamed(s, "module.") | s, r"several VGGs: features\., module\.; save one"),
        (lambda s: {"state_dict": {}}, "is no state dict"),
        (lambda s: {"state_dict": [1, 2]}, "is no state dict"),
        (lambda s: {"a": {"b": {"c": {"d": {"e": s}}}}}, "is no state dict"),
        (lambda s: {"epoch": 3}, "is no state dict"),
        (lambda s: {"state_dict": {0: torch.ones(3)}}, "its names must be text, not int"),
        (lambda s: {"state_dict": {"conv.weight": torch.ones(3)}}, "holds no VGG"),
        (
            lambda s: s | {"features.30.scale": torch.ones(3)},
            r"missing nothing; left over features\.30\.scale",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_checkpoints_that_are_refused(tmp_path, state, wrap, message):
    torch.save(wrap(state), tmp_path / "mine.pth")
    with pytest.raises(ValueError, match=rf"mine\.pth.*({message})"):
        models.vgg("A", weights=tmp_path / "mine.pth", **BASE)


@pytest.mark.skipif(torch is None, reason="PyTorch's files do not depend on the backend")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_broken_classifier_is_refused_with_the_top_only(tmp_path, state, suffix):
    """torchvision's vgg16_features, and a classifier of which a part is broken."""
    from safetensors.torch import save_file

    save = save_file if suffix == ".safetensors" else torch.save
    nan = float("nan")
    head = {
        **{f"classifier.{i}.weight": torch.full((8, n), nan) for i, n in ((0, 32), (3, 8), (6, 8))},
        **{f"classifier.{i}.bias": torch.full((8,), nan) for i in (0, 3, 6)},
    }
    save(state | head, tmp_path / f"features{suffix}")
    options = {"width_multiplier": 1 / 16, "input_shape": SHAPE, "hidden_units": 8, "classes": 8}
    with pytest.raises(ValueError, match=r"missing fc1.*hold nothing but NaN.*include_top=False"):
        models.vgg("A", weights=tmp_path / f"features{suffix}", **options)
    models.vgg("A", weights=tmp_path / f"features{suffix}", **BASE)
    head["classifier.0.weight"] = torch.zeros(8, 32)
    save(state | head, tmp_path / f"broken{suffix}")
    with pytest.raises(ValueError, match="not finite in fc1, fc2, predictions"):
        models.vgg("A", weights=tmp_path / f"broken{suffix}", **options)
    models.vgg("A", weights=tmp_path / f"broken{suffix}", **BASE)
    save(state | {"features.0.bias": torch.full((4,), nan)}, tmp_path / f"base{suffix}")
    with pytest.raises(ValueError, match="not finite in block1_conv1"):
        models.vgg("A", weights=tmp_path / f"base{suffix}", **BASE)

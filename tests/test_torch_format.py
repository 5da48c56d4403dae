"""PyTorch's files: against a VGG built here in PyTorch, in torchvision's layout."""

import gc
import warnings

import keras
import numpy as np
import pytest

import keras_vgg
from keras_vgg import architecture, convert, weights
from keras_vgg.weights import torch_format, torch_naming
from tests.dense_networks import answers

torch = pytest.importorskip("torch")
SMALL = {"width_multiplier": 1 / 16, "hidden_units": 8, "classes": 7}
NETS = [(c, bn) for c in "ABDE" for bn in (False, True)]


def torch_vgg(configuration, batch_norm, width=1 / 16, hidden=8, classes=7, side=7):
    """torchvision's VGG, by its published layout, with random weights and statistics."""
    nn = torch.nn
    features, channels = [], 3
    for block in architecture.CONFIGURATIONS[configuration].blocks:
        for kernel, filters in block:
            filters = architecture.scaled_width(filters, width)
            features.append(nn.Conv2d(channels, filters, kernel, padding=kernel // 2))
            if batch_norm:
                features.append(nn.BatchNorm2d(filters))
            features.append(nn.ReLU(inplace=True))
            channels = filters
        features.append(nn.MaxPool2d(2, 2))

    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*features)
            self.avgpool = nn.AdaptiveAvgPool2d((side, side))
            self.classifier = nn.Sequential(
                nn.Linear(channels * side * side, hidden),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(hidden, hidden),
                nn.ReLU(True),
                nn.Dropout(),
                nn.Linear(hidden, classes),
            )

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    torch.manual_seed(0)
    net = VGG().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                module.bias.uniform_(-0.1, 0.1)
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    values.uniform_(0.5, 2)
                for values in (module.bias, module.running_mean):
                    values.uniform_(-0.5, 0.5)
                module.num_batches_tracked.fill_(1234)
    return net


def logits(net, images):
    with torch.no_grad():
        return net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def save(net, path, naming="torchvision"):
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    if naming == "timm":
        state = torch_naming.to_torch(torch_naming.from_torch(state, "net"), "timm")
    if path.suffix == ".pth":
        torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    else:
        from safetensors.numpy import save_file

        save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return path


# Every triple of batch norm, format and naming; the full size, below, is slow.
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("configuration", "batch_norm", "suffix", "naming"),
    [
        ("A", False, ".safetensors", "torchvision"),
        pytest.param("A", True, ".pth", "timm", marks=pytest.mark.slow),
        pytest.param("B", False, ".pth", "torchvision", marks=pytest.mark.slow),
        ("B", True, ".safetensors", "timm"),
        pytest.param("D", False, ".safetensors", "timm", marks=pytest.mark.slow),
        ("D", True, ".pth", "torchvision"),
        pytest.param("E", False, ".pth", "timm", marks=pytest.mark.slow),
        ("A", True, ".safetensors", "torchvision"),
        pytest.param("E", True, ".safetensors", "torchvision", marks=pytest.mark.slow),
    ],
)
def test_logits_equal_pytorch(tmp_path, configuration, batch_norm, suffix, naming):
    net = torch_vgg(configuration, batch_norm, side=2)
    path = save(net, tmp_path / f"vgg{suffix}", naming)
    options = SMALL | {"batch_norm": batch_norm, "classifier_activation": None, "weights": path}
    ours = keras_vgg.vgg(configuration, input_shape=(64, 64, 3), **options)
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    expected = logits(net, x)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(answers(ours, x), expected, rtol=1e-4, atol=1e-4)
    # With the preprocessing inside, from the file, on an image in [0, 255].
    inside = keras_vgg.vgg(
        configuration, input_shape=(64, 64, 3), include_preprocessing=True, **options
    )
    image = (x * (0.229, 0.224, 0.225) + (0.485, 0.456, 0.406)) * 255
    np.testing.assert_allclose(
        answers(inside, image.astype("float32")), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(("configuration", "batch_norm"), NETS)
def test_full_size_logits_equal_pytorch(tmp_path, configuration, batch_norm):
    net = torch_vgg(configuration, batch_norm, width=1, hidden=4096, classes=1000)
    path = save(net, tmp_path / "vgg.safetensors")
    x = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype("float32")
    expected = logits(net, x)
    parameters = sum(
        value.numel() for name, value in net.state_dict().items() if "num_batches" not in name
    )
    del net  # half a gigabyte each: one at a time
    gc.collect()
    ours = keras_vgg.vgg(
        configuration, weights=path, batch_norm=batch_norm, classifier_activation=None
    )
    assert ours.count_params() == parameters
    np.testing.assert_allclose(ours.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-4)
    del ours
    keras.utils.clear_session()
    gc.collect()


@pytest.mark.slow
def test_published_imagenet_convolutions_in_pytorch(tmp_path, data_folder):
    """The real tensors, converted, give PyTorch the features that Keras has."""
    path = data_folder / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    convert.convert_weights(path, tmp_path / "vgg16.safetensors")
    found = weights.read_weights(tmp_path / "vgg16.safetensors")
    assert found.preprocessing.channel_order == "bgr"  # not torchvision's: the file says so
    net = torch_vgg("D", False, width=1, hidden=8)
    state = torch_naming.to_torch(found.tensors, "torchvision")
    net.features.load_state_dict(
        {name.removeprefix("features."): torch.from_numpy(v) for name, v in state.items()}
    )
    x = np.random.default_rng(0).uniform(-120, 150, (1, 64, 96, 3)).astype("float32")
    with torch.no_grad():
        theirs = net.features(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    del net, state, found  # networks of full width: one at a time
    gc.collect()
    ours = keras_vgg.VGG16(include_top=False, weights=path).predict(x, verbose=0)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-3)
    keras.utils.clear_session()
    gc.collect()


@pytest.mark.parametrize(
    ("middle", "batch_norm", "naming"),
    [
        (".keras", False, "torchvision"),
        (".keras", True, "timm"),
        (".safetensors", True, "torchvision"),
        (".safetensors", False, "timm"),
        (".pth", True, "torchvision"),
        (".pth", False, "timm"),
    ],
)
def test_a_round_trip_is_bit_exact(tmp_path, middle, batch_norm, naming):
    net = torch_vgg("B", batch_norm)
    first = save(net, tmp_path / "first.safetensors", naming)
    convert.convert_weights(first, tmp_path / f"middle{middle}", naming)
    network = convert.convert_weights(
        tmp_path / f"middle{middle}", tmp_path / "last.safetensors", naming
    )
    assert (network.configuration, network.batch_norm, network.side) == ("B", batch_norm, 224)
    from safetensors.numpy import load_file

    before, after = load_file(first), load_file(tmp_path / "last.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if name.endswith("num_batches_tracked"):  # a counter, which Keras has not
            assert after[name] == 0
        else:
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    if naming == "torchvision":  # and PyTorch takes it, strictly
        net.load_state_dict({name: torch.from_numpy(value) for name, value in after.items()})


def test_a_pth_cannot_say_that_it_expects_another_input(tmp_path):
    model = keras_vgg.vgg(
        "A", weights=None, include_preprocessing=True, input_shape=(32, 32, 3), **SMALL
    )
    model.save(tmp_path / "caffe.keras")
    with pytest.raises(ValueError, match="does not expect torchvision's input"):
        convert.convert_weights(tmp_path / "caffe.keras", tmp_path / "a.pth")
    assert not list(tmp_path.glob("*.pth"))


def test_a_file_of_features_only_is_no_classifier(tmp_path):
    net = torch_vgg("D", False)
    with torch.no_grad():
        for parameter in net.classifier.parameters():
            parameter.fill_(float("nan"))
    path = save(net, tmp_path / "vgg16_features.pth")
    with pytest.raises(
        ValueError, match=r"missing fc1.*hold nothing but NaN: .* include_top=False"
    ):
        keras_vgg.VGG16(weights=path, **SMALL)
    base = keras_vgg.VGG16(
        weights=path, include_top=False, width_multiplier=1 / 16, include_preprocessing=True
    )
    # A classifier that is broken in part is not that file: refused, its preprocessing kept.
    state = net.state_dict()
    state["classifier.0.weight"] = torch.zeros_like(state["classifier.0.weight"])
    torch.save(dict(state), tmp_path / "broken.pth")
    with pytest.raises(ValueError, match="not finite in fc1, fc2, predictions"):
        weights.read_weights(tmp_path / "broken.pth")
    config = base.get_layer("preprocessing").get_config()
    np.testing.assert_allclose(config["mean"], (123, 117, 104), atol=0.01)
    assert (config["std"], config["channel_order"]) == ([1.0], "rgb")


class Payload:
    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path("payload-was-run"),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Payload()}, "evil.pth")
    torch.save({"features.0.weight": Payload()}, "old.pth", _use_new_zipfile_serialization=False)
    for name in ("evil.pth", "old.pth"):
        message = rf"{name} is refused: its pickle asks for \S+, which is no tensor and could run"
        with pytest.raises(ValueError, match=message):
            weights.read_weights(name)
    assert not (tmp_path / "payload-was-run").exists()


def test_a_torchscript_archive_is_named(tmp_path):
    with warnings.catch_warnings(action="ignore"):  # PyTorch will drop TorchScript
        torch.jit.script(torch.nn.Conv2d(3, 4, 3)).save(tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"script\.pt is a TorchScript archive.* torch.jit.load"):
        weights.read_weights(tmp_path / "script.pt")


def test_files_that_are_no_vgg(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="is no state dict"):
        weights.read_weights(tmp_path / "list.pth")
    torch.save({"layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"holds no VGG .* its tensors are layer1.0.conv1.weight"):
        weights.read_weights(tmp_path / "resnet.pth")
    state = torch_vgg("A", True).state_dict()
    del state["features.1.running_mean"]
    state["surplus"] = torch.zeros(3)
    torch.save(dict(state), tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"missing features.1.running_mean; left over surplus"):
        weights.read_weights(tmp_path / "odd.pth")
    shifted = {
        n.replace("features.8.", "features.10."): v
        for n, v in torch_vgg("A", False).state_dict().items()
    }
    torch.save(shifted, tmp_path / "shifted.pth")
    with pytest.raises(ValueError, match=r"a convolution at features.10, where features.8"):
        weights.read_weights(tmp_path / "shifted.pth")
    whole = save(torch_vgg("A", False), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"cut.pth is damaged"):
        weights.read_weights(tmp_path / "cut.pth")
    whole = save(torch_vgg("A", False), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"cut.safetensors is damaged"):
        weights.read_weights(tmp_path / "cut.safetensors")


def test_half_precision_and_parameters_are_read(tmp_path):
    from safetensors.torch import save_file

    net = torch_vgg("A", False)
    half = {name: value.to(torch.bfloat16) for name, value in net.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    torch.save(half, tmp_path / "half.pth")
    torch.save(dict(net.named_parameters()), tmp_path / "parameters.pth")
    expected = half["classifier.6.bias"].float().numpy()
    for name in ("half.safetensors", "half.pth"):
        found = weights.read_weights(tmp_path / name).tensors["predictions"][1]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    found = weights.read_weights(tmp_path / "parameters.pth").tensors["fc2"][1]
    np.testing.assert_array_equal(found, net.classifier[3].bias.detach().numpy())


def test_indices_are_those_that_torchvision_publishes():
    plain = {
        "A": [0, 3, 6, 8, 11, 13, 16, 18],
        "D": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    }
    norm = {
        "A": [0, 4, 8, 11, 15, 18, 22, 25],
        "D": [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40],
    }
    for batch_norm, table in ((False, plain), (True, norm)):
        for configuration, expected in table.items():
            model = keras_vgg.vgg(
                configuration,
                weights=None,
                include_top=False,
                batch_norm=batch_norm,
                width_multiplier=1 / 64,
            )
            state = torch_naming.to_torch(weights.tensors_of(model), "torchvision")
            found = [int(n.split(".")[1]) for n, v in state.items() if v.ndim == 4]
            assert found == expected


def test_without_pytorch_a_pth_file_says_what_to_do(tmp_path, monkeypatch):
    path = save(torch_vgg("A", False), tmp_path / "a.pth")
    monkeypatch.setattr(torch_format.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="PyTorch is not installed: pip install torch"):
        weights.read_weights(path)

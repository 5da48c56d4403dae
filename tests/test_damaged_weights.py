"""Weight files that are damaged, or hold what no network has: each error names the file."""

from __future__ import annotations

import functools
import io
import json
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import keras_vgg
from keras_vgg import ImagePreprocessing, weights
from tests.test_weights import save_legacy, small


@functools.cache
def network(**options: Any) -> keras.Model:
    """One model for all files: what is refused does not change it."""
    return small(**options)


@functools.cache
def archive_members() -> dict[str, bytes]:
    """The members of a model's archive."""
    with tempfile.TemporaryDirectory() as folder:
        small(include_preprocessing=True).save(Path(folder, "a.keras"))
        content = io.BytesIO(Path(folder, "a.keras").read_bytes())
    with zipfile.ZipFile(content) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def assert_refused(path: Path, message: str, **options: Any) -> None:
    """The file is refused with this message after its name, and a model stays as it was."""
    model = network(**options)
    before = model.get_weights()
    with pytest.raises(ValueError, match=rf"{path.name}.*{message}"):
        keras_vgg.load_weights(model, path)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def changed_archive(path: Path, **members: bytes | Callable[[bytes], bytes]) -> Path:
    """A model's archive with other members; `config` is config.json, `weights` the HDF5 file."""
    names = {"config": "config.json", "weights": "model.weights.h5"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in archive_members().items():
            new = next(
                (members[key] for key, n in names.items() if n == name and key in members), value
            )
            archive.writestr(name, new(value) if callable(new) else new)
    return path


def with_layer(**values: Any) -> Callable[[bytes], bytes]:
    """Change the configuration of the layer ImagePreprocessing."""

    def change(text: bytes) -> bytes:
        config = json.loads(text)
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "ImagePreprocessing":
                layer["config"].update(values)
        return json.dumps(config).encode()

    return change


CONFIGS = {
    "not UTF-8": (b'{"a": "\xff"}', "utf-8"),
    "no JSON": (b"{", "Expecting"),
    "a list": (b"[1, 2]", "config.json holds a list, not an object"),
    "deep": (b"[" * 100_000, "recursion"),
    "mean text": (with_layer(mean="123"), "mean must be finite numbers.*not 123"),
    "mean NaN": (with_layer(mean=[float("nan")] * 3), "mean must be finite numbers.*nan"),
    "mean of text": (with_layer(mean=["1", "2", "3"]), "mean must be finite numbers"),
    "mean None": (with_layer(mean=None), "mean must be finite numbers.*not None"),
    "no mean": (with_layer(mean=[]), "mean must be finite numbers"),
    "std NaN": (with_layer(std=[float("nan")]), "std must be finite numbers"),
    "std 0": (with_layer(std=[0.0]), "std must be positive"),
    "std tiny": (with_layer(std=[1e-300]), "std must be positive"),
    "order": (with_layer(channel_order=["rgb"]), "channel_order must be"),
    "layer": (
        b'{"class_name": "ImagePreprocessing", "config": "text"}',
        "ImagePreprocessing in config.json must state mean",
    ),
}


@pytest.mark.parametrize(("content", "message"), CONFIGS.values(), ids=CONFIGS)
def test_an_archive_with_a_wrong_configuration(tmp_path, content, message):
    assert_refused(changed_archive(tmp_path / "a.keras", config=content), message)


def test_a_layer_name_of_another_type_does_not_matter(tmp_path):
    content = b'{"name": ["fc1"], "activation": {"linear": 1}}'
    path = changed_archive(tmp_path / "a.keras", config=content)
    assert not weights.read_weights(path).logits


def test_an_archive_of_another_version_of_zip(tmp_path):
    path = changed_archive(tmp_path / "a.keras")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99
    path.write_bytes(content)
    assert_refused(path, "is damaged: zip file version 9.9")


def test_an_archive_with_names_that_are_not_utf8(tmp_path):
    path = changed_archive(tmp_path / "a.keras")
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02")
    content[place + 9] |= 0x08  # the flag of UTF-8
    content[place + 46] = 0xFF
    path.write_bytes(content)
    assert_refused(path, "is damaged: 'utf-8' codec can't decode")


def test_an_archive_without_sound_weights(tmp_path):
    assert_refused(changed_archive(tmp_path / "a.keras", weights=b"text"), "signature not found")
    cut = changed_archive(tmp_path / "b.keras", weights=lambda content: content[:3000])
    assert_refused(cut, "is damaged, or no Keras weight file")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((8,), 1e300), "block5_conv2/bias holds values too large for float32"),
        (np.zeros((8,), "complex64"), r"not floating-point numbers in block5_conv2 \(complex64\)"),
        (np.zeros((8,), "S3"), "not floating-point numbers in block5_conv2"),
        (np.zeros((8,), np.longdouble), "not floating-point numbers in block5_conv2"),
        (np.zeros((0,), "float32"), "arrays without values in block5_conv2"),
        ("a group", "block5_conv2/bias:0 is a group, not an array"),
    ],
    ids=["1e300", "complex", "text", "long", "empty", "group"],
)
def test_values_that_no_weights_have(tmp_path, value, message):
    model = small()
    save_legacy(model, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        group = file["block5_conv2"]
        del group["block5_conv2/bias:0"]
        if isinstance(value, str):
            group.create_group("block5_conv2/bias:0")
        else:
            shape = (model.get_layer("block5_conv2").bias.shape[0],) if value.size else (0,)
            group["block5_conv2/bias:0"] = np.resize(value, shape)
    assert_refused(tmp_path / "a.h5", message)


@pytest.mark.parametrize("name", ["a.h5", "a.weights.h5", "a.keras"])
def test_negative_variances_are_refused(tmp_path, name):
    model = small(batch_norm=True)
    layer = model.get_layer("block2_conv1_bn")
    layer.moving_variance.assign(np.full(layer.moving_variance.shape, -1.0))
    save = {"a.h5": save_legacy, "a.weights.h5": keras.Model.save_weights}
    save.get(name, keras.Model.save)(model, tmp_path / name)
    assert_refused(tmp_path / name, "negative variances in block2_conv1_bn", batch_norm=True)


def test_two_layers_of_one_name_are_refused(tmp_path):
    small().save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        layers = [group for group in file["layers"].values() if len(group.get("vars", ()))]
        layers[0]["vars"].attrs["name"] = layers[1]["vars"].attrs["name"]
    assert_refused(tmp_path / "a.weights.h5", "two layers of it are called")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "preprocessor.json is damaged, or no KerasHub preprocessor"),
        (b'{"config": {"scale": 0.0, "offset": 1}}', "must be finite numbers"),
        (b'{"config": {"scale": "x", "offset": 1}}', "no KerasHub preprocessor"),
        (b'{"config": {"scale": NaN, "offset": 1}}', "must be finite numbers"),
    ],
)
def test_a_preset_with_a_wrong_preprocessor(tmp_path, content, message):
    small().save_weights(tmp_path / "model.weights.h5")
    (tmp_path / "preprocessor.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        weights.read_weights(tmp_path)


@pytest.mark.parametrize("values", [[np.nan], [], "123", [1e300], None, [[1.0]], 5])
def test_a_preprocessing_is_finite(values):
    for name in ("mean", "std"):
        with pytest.raises(ValueError, match=f"{name} must be finite numbers"):
            ImagePreprocessing(**{name: values})


def state() -> dict[str, np.ndarray]:
    from keras_vgg.weights.torch_naming import to_torch

    return to_torch(weights.tensors_of(network()), "torchvision")


def save_safetensors(path: Path, metadata: dict[str, str] | None = None, **changed: Any) -> Path:
    from safetensors.numpy import save_file

    save_file(state() | changed, path, metadata)
    return path


@pytest.mark.parametrize(
    "said",
    ['{"mean": [NaN], "std": [1], "channel_order": "rgb"}', "[1]", "[" * 100_000, '{"mean": [1]}'],
    ids=["nan", "list", "deep", "part"],
)
def test_safetensors_with_a_wrong_preprocessing(tmp_path, said):
    path = save_safetensors(tmp_path / "a.safetensors", {"preprocessing": said})
    assert_refused(path, "states a preprocessing that cannot be read")


def test_safetensors_without_filters(tmp_path):
    changed = {"features.0.weight": np.zeros((0, 3, 3, 3), "f4")}
    path = save_safetensors(tmp_path / "a.safetensors", **changed)
    assert_refused(path, "holds tensors without values: features.0.weight")


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "XX"])
def test_safetensors_of_other_types(tmp_path, kind):
    header = {"features.0.weight": {"dtype": kind, "shape": [1, 1, 1, 4], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert_refused(path, "")


def torch_cases() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """name -> (PyTorch -> a bias, what is said of it)"""
    dense = "dense floating-point numbers: features.0.bias"
    return {
        "sparse": (lambda t: t.ones(4).to_sparse(), rf"{dense} \(sparse_coo\)"),
        "compressed": (lambda t: t.eye(4).to_sparse_csr(), rf"{dense} \(sparse_csr\)"),
        "meta": (lambda t: t.ones(4, device="meta"), rf"{dense} \(meta, without values\)"),
        "quantised": (
            lambda t: t.quantize_per_tensor(t.ones(4), 0.1, 0, t.quint8),
            rf"{dense} \(quantised\)",
        ),
        "float8": (lambda t: t.ones(4).to(t.float8_e4m3fn), rf"{dense} \(float8_e4m3fn\)"),
        "complex": (lambda t: t.ones(4, dtype=t.complex64), rf"{dense} \(complex64\)"),
        "conjugate": (lambda t: t.ones(4, dtype=t.complex64).conj(), rf"{dense} \(complex64\)"),
        "imaginary": (lambda t: t.ones(4, dtype=t.complex64).conj().imag, "features.0.bias|dense"),
        "nested": (lambda t: t.nested.nested_tensor([t.ones(1), t.ones(3)]), "is refused|nested"),
        "expanded": (
            lambda t: t.zeros(1).expand(1 << 30, 4, 1, 1),
            r"its arrays claim 17,1\d\d,\d{3},\d{3}",
        ),
        "integers": (lambda t: t.ones(4, dtype=t.int32), "not floating-point numbers in block1"),
    }


@pytest.mark.parametrize("name", torch_cases())
def test_pytorch_tensors_that_are_no_arrays(tmp_path, name):
    torch = pytest.importorskip("torch")
    make, message = torch_cases()[name]
    tensors = {key: torch.from_numpy(value) for key, value in state().items()}
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own, of what it is to remove
        tensors["features.0.bias"] = make(torch)
        torch.save(tensors, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", message)


@pytest.mark.parametrize(("key", "kind"), [(1, "int"), ((1, 2), "tuple"), (None, "NoneType")])
def test_pytorch_names_that_are_no_text(tmp_path, key, kind):
    torch = pytest.importorskip("torch")
    torch.save({"features.0.weight": torch.ones(3), key: torch.ones(3)}, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", f"its names must be text, not {kind}")


def test_a_compressed_pytorch_file_of_zeros(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/data/0", bytes(100 * 2**20))
    assert_refused(tmp_path / "a.pth", "its arrays claim 104,857,600")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full(4, "text"), "a.npz is damaged: it holds <U4 instead of real numbers"),
        (np.full(4, 1j), "a.npz is damaged: it holds complex128 instead of real numbers"),
    ],
    ids=["text", "complex"],
)
def test_a_checkpoint_of_other_values(tmp_path, value, message):
    from keras_vgg.fit import checkpoint

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    checkpoint.save(tmp_path / "a.npz", checkpoint.copied(model, checkpoint.Progress()))
    with np.load(tmp_path / "a.npz") as file:
        arrays = {name: np.asarray(file[name]) for name in file.files}
    bias = next(name for name in arrays if name.endswith("bias"))
    np.savez(tmp_path / "a.npz", **(arrays | {bias: value}))
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        checkpoint.load(tmp_path / "a.npz", model)
    assert all(map(np.array_equal, before, model.get_weights()))


def test_a_checkpoint_that_claims_too_much(tmp_path):
    from keras_vgg.fit import checkpoint

    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("progress.npy", bytes(100 * 2**20))
    with pytest.raises(ValueError, match=r"a\.npz .* arrays claim 104,857,600"):
        checkpoint.load(tmp_path / "a.npz", network())

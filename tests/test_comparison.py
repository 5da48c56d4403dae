"""keras-vgg compare: pairs of files, their distances, and what it prints."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg import DISTS, LPIPS, VGG16, ImagePreprocessing, cli
from keras_vgg.runs import comparison, memory
from keras_vgg.runs.comparison import compare_files, mean_values, pair_files


@pytest.fixture
def folders(tmp_path):
    """Two photographs, and both with noise; a third one in each folder has no partner."""
    generator = np.random.default_rng(0)
    for folder in ("original", "copy"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        image = generator.integers(0, 256, (24, 40, 3), "uint8")
        noisy = np.clip(image + generator.normal(0, 20, image.shape), 0, 255).astype("uint8")
        Image.fromarray(image).save(tmp_path / "original" / f"{name}.png")
        Image.fromarray(noisy).save(tmp_path / "copy" / f"{name}.bmp")
    Image.fromarray(image).save(tmp_path / "original" / "c.png")
    Image.fromarray(image).save(tmp_path / "copy" / "d.png")
    return tmp_path


def read(path):
    return np.asarray(Image.open(path)).astype(float)


def gaussian_ssim(a, b):
    """Wang et al. (2004), on each channel: a Gaussian of 11 pixels, only whole windows."""
    distances = np.arange(11) - 5
    row = np.exp(-(distances**2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2
    patches = [np.lib.stride_tricks.sliding_window_view(x, (11, 11), (0, 1)) for x in (a, b)]
    mean_a, mean_b = ((p * window).sum((-1, -2)) for p in patches)
    var_a, var_b = (
        (p**2 * window).sum((-1, -2)) - m**2 for p, m in zip(patches, (mean_a, mean_b), strict=True)
    )
    covariance = (patches[0] * patches[1] * window).sum((-1, -2)) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (ssim / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def test_psnr_and_ssim_by_hand(folders):
    files = pair_files(folders / "original", folders / "copy")
    assert [tuple(p.split("/", 1)[-1][-5:] for p in pair) for pair in files.pairs] == [
        ("a.png", "a.bmp"),
        ("b.png", "b.bmp"),
    ]
    assert sorted(path[-5:] for path in files.unmatched) == ["c.png", "d.png"]
    rows = list(compare_files(files.pairs, ("psnr", "ssim")))
    for row in rows:
        a, b = read(row.first), read(row.second)
        psnr = 10 * np.log10(255**2 / ((a - b) ** 2).mean())
        np.testing.assert_allclose(row.values["psnr"], psnr, rtol=1e-5)
        np.testing.assert_allclose(row.values["ssim"], gaussian_ssim(a, b), rtol=1e-3)
    means = mean_values(rows)
    assert means["ssim"] == pytest.approx(np.mean([row.values["ssim"] for row in rows]))


def test_lpips_and_dists_share_a_network(folders, monkeypatch):
    """The real network is in test_perceptual_packages.py; here a stand-in shows who is called."""
    networks = []

    def stand_in(network):
        networks.append(network)
        return lambda a, b: np.float32(np.abs(a.astype(float) - b).mean())

    monkeypatch.setattr(
        comparison, "trunk", lambda weights, preprocessing: (weights, preprocessing)
    )
    monkeypatch.setattr(comparison, "LPIPS", stand_in)
    monkeypatch.setattr(comparison, "DISTS", stand_in)
    pair = str(folders / "original/a.png"), str(folders / "copy/a.bmp")
    (row,) = compare_files([pair], ("dists", "lpips"), weights="some.h5")
    assert networks == [("some.h5", None)] * 2
    expected = np.abs(read(pair[0]) - read(pair[1])).mean()
    assert row.values == pytest.approx({"dists": expected, "lpips": expected})
    with pytest.raises(ValueError, match=r"metrics must be some of lpips, .* not \['mse'\]"):
        compare_files([pair], ["mse"])


def run(*arguments):
    return cli.main(["compare", *map(str, arguments), "--metrics", "psnr", "ssim"])


def test_the_command_prints_a_table_and_writes_files(folders, capsys):
    original, copy = folders / "original", folders / "copy"
    assert run(original, copy) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines() if "." in line][-1] == "mean"
    assert "c.png has no partner" in printed.err
    (copy / "scan.tif").write_bytes(b"II*\0")
    assert run(original, copy) == 0
    assert "not read: 1 TIFF (.tif): " in capsys.readouterr().err
    (copy / "scan.tif").unlink()
    assert run(original / "a.png", original / "a.png", "--format", "jsonl") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["psnr"], row["ssim"], row["reason"]) == (None, 1.0, None)
    assert run(original, copy, "--out", folders / "rows.csv") == 0
    header, *rows = (folders / "rows.csv").read_text().splitlines()
    assert (header, len(rows)) == ("first,second,psnr,ssim,reason", 2)


@pytest.mark.slow
def test_the_command_computes_lpips_and_dists_as_the_functions_do(folders, capsys):
    """VGG-16 at its full width, with random weights from a file."""
    network = VGG16(
        include_top=False,
        weights=None,
        kernel_initializer="he_normal",
        include_preprocessing=ImagePreprocessing.torchvision(),
    )
    network.save_weights(folders / "random.weights.h5")
    command = ["compare", str(folders / "original"), str(folders / "copy"), "--format", "jsonl"]
    command += ["--weights", str(folders / "random.weights.h5"), "--preprocessing", "torchvision"]
    assert cli.main([*command, "--metrics", "dists", "lpips"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [["first", "second", "dists", "lpips", "reason"]] * 2
    for name, metric in (("lpips", LPIPS(network)), ("dists", DISTS(network))):
        for row in rows:
            value = float(metric(read(row["first"]), read(row["second"])))
            assert value > 0.001
            assert row[name] == pytest.approx(value, rel=1e-4)


def test_channels_first_reach_the_network_so(folders, monkeypatch):
    shapes = []

    def stand_in(network):
        return lambda a, b: np.float32(shapes.append((a.shape, b.shape)) or 0)

    monkeypatch.setattr(comparison, "trunk", lambda weights, preprocessing: None)
    monkeypatch.setattr(comparison, "LPIPS", stand_in)
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    pair = str(folders / "original/a.png"), str(folders / "copy/a.bmp")
    (row,) = compare_files([pair], ("lpips",))
    assert (row.values, shapes) == ({"lpips": 0}, [((3, 24, 40),) * 2])


def test_the_bits_of_16_bit_files(folders, capsys):
    """Scans of 12 bits, of which the upper 8 of 16 hold 4 levels or fewer."""
    rng = np.random.default_rng(0)
    for name, top in (("a", 4096), ("b", 1024)):
        values = rng.integers(0, top, (24, 40), "uint16")
        Image.fromarray(values).save(folders / f"{name}.png")
    files = folders / "a.png", folders / "b.png"
    psnr = {}
    for depth in ("16", "12"):
        assert run(*files, "--format", "jsonl", "--bit-depth", depth) == 0
        printed = capsys.readouterr()
        psnr[depth] = json.loads(printed.out)["psnr"]
        assert ("2 of 2 16-bit files that were looked at use few" in printed.err) == (depth == "16")
        assert ("(--bit-depth), such as 12" in printed.err) == (depth == "16")
    first, second = (np.asarray(Image.open(file)) // 16 for file in files)
    expected = 10 * np.log10(255**2 / ((first.astype(float) - second) ** 2).mean())
    assert psnr["12"] == pytest.approx(expected, rel=1e-5)
    assert psnr["16"] > psnr["12"] + 20


def test_a_pair_that_memory_does_not_hold_has_a_reason(folders, monkeypatch):
    pair = str(folders / "original/a.png"), str(folders / "copy/a.bmp")
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    (row,) = compare_files([pair], ("psnr", "ssim"))
    assert re.fullmatch(
        r"a pair of 40x24 pixels needs about 0.0 GB of memory, and 0.0 GB are left: make the "
        "images smaller",
        row.reason,
    )
    (row,) = compare_files([pair], ("psnr",))
    assert row.values
    monkeypatch.setattr(memory, "available_memory", lambda: None)

    def too_large(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")

    monkeypatch.setattr(comparison.tf.image, "ssim", too_large)
    (row,) = compare_files([pair], ("ssim",))
    assert row.reason == ("the memory is too small: make the images smaller (OOM when allocating)")


def test_a_pair_that_cannot_be_compared_has_a_reason(folders, capsys):
    Image.new("RGB", (40, 25)).save(folders / "copy" / "a.bmp")
    assert run(folders / "original", folders / "copy", "--format", "jsonl") == 3
    printed = capsys.readouterr()
    first, second = map(json.loads, printed.out.splitlines())
    assert first["reason"] == "the images have different sizes, 40x24 and 40x25"
    assert (first["psnr"], second["reason"]) == (None, None)
    assert "1 of 2 pairs cannot be compared" in printed.err


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ("absent.png", "copy/a.bmp", (), "absent.png: no such image file or folder"),
        ("original", "copy/a.bmp", (), "original is a folder and .*a.bmp is a file: give two"),
        ("original/a.png", "copy/d.png", ("--out", "x.txt"), "--out x.txt needs --format csv or"),
        ("original/sub", "copy", (), "no image of .*sub has the name of one in .*copy: 'b' is"),
        ("original/a.png", "note.txt", (), "none|note.txt"),
        ("original", "twice", (), "x.bmp and .*x.png have one name: remove one"),
    ],
)
def test_wrong_inputs(folders, first, second, options, message, capsys):
    (folders / "note.txt").write_text("no image")
    (folders / "twice").mkdir()
    for name in ("x.png", "x.bmp"):
        Image.new("RGB", (16, 16)).save(folders / "twice" / name)
    assert run(folders / first, folders / second, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_what_is_behind_a_dot_need_not_be_a_suffix(tmp_path):
    image = Image.new("RGB", (40, 40))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("scan 1.5 mm", "scan 1.6 mm"):
            image.save(tmp_path / folder / name, format="PNG")
    found = pair_files(tmp_path / "one", tmp_path / "two")
    names = [[path.rpartition("/")[2] for path in pair] for pair in found.pairs]
    assert names == [["scan 1.5 mm"] * 2, ["scan 1.6 mm"] * 2]

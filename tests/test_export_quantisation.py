"""Ranges that calibration chooses, and the report of what integers cost in each layer."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

from keras_vgg import cli
from keras_vgg.export import ranges
from keras_vgg.export.litert import write_litert, write_source
from keras_vgg.export.quantisation import layer_errors
from keras_vgg.export.ranges import mse_range, percentile_range

IMAGES = np.random.default_rng(0).integers(0, 64, (12, 32, 32, 3)).astype(np.float32)
IMAGES[0, 16, 16] = 255  # an extreme value in one image


def histogram(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    low, high = float(values.min()), float(values.max())
    return np.histogram(values, 2048, (low, high))[0], low, high


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = np.rint(-low / step)
    integers = np.clip(np.rint(values / step) + zero, 0, 255)
    return float(np.mean(((integers - zero) * step - values) ** 2))


def test_a_percentile_leaves_extreme_values_out() -> None:
    values = np.append(np.random.default_rng(1).uniform(0, 1, 1_000_000), [50.0, -30.0])

    low, high = percentile_range(*histogram(values))

    assert -0.05 < low <= 0
    assert 1 <= high < 1.05
    outside = np.mean((values < low) | (values > high))
    assert 0 < outside < 2e-5


def test_the_mse_range_has_a_smaller_error_than_the_whole_range() -> None:
    values = np.random.default_rng(2).standard_normal(500_000)
    counts, low, high = histogram(values)

    chosen = mse_range(counts, low, high)

    # Banner et al. (arXiv:1810.05723) give 3.92 for a symmetric range and 8 bits.
    assert chosen[1] - chosen[0] == pytest.approx(2 * 3.92, rel=0.05)
    less = squared_error(values, *chosen)
    assert less < 0.9 * squared_error(values, low, high)
    for factor in (0.85, 1.15):  # near the minimum
        assert less < squared_error(values, *(factor * limit for limit in chosen))


@pytest.mark.parametrize("choose", [percentile_range, mse_range])
def test_even_values_keep_nearly_their_whole_range(choose) -> None:
    counts, low, high = histogram(np.linspace(-2, 3, 100_001))

    np.testing.assert_allclose(choose(counts, low, high), (low, high), atol=0.06)


@pytest.mark.parametrize("channels", [1, 15, 16])
def test_a_sample_has_values_of_every_channel(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.ones((1, 128, 128, 1)) * np.arange(channels)  # a channel has one value
    monkeypatch.setattr(ranges, "values_on", lambda *_: [(0, values)])
    limits = {0: (np.zeros(1), np.full(1, 15.0))}
    counts = ranges._histograms(b"", IMAGES, [0], limits)[0]
    assert np.count_nonzero(counts) == channels


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("quantised")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1.0, offset=-30, name="preprocessing")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="block1_conv1")(x)
    x = layers.MaxPooling2D(4, name="block1_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    outputs = layers.Dense(4, activation="softmax", name="predictions")(x)
    write_source(keras.Model(inputs, outputs), folder / "source")
    contents = {}
    wanted: list[tuple[str, ranges.CalibrationMethod]] = [
        ("float32", "minmax"),
        ("int8", "minmax"),
        ("int8", "percentile"),
        ("int8", "mse"),
        ("int16", "minmax"),
    ]
    for precision, method in wanted:
        path = folder / f"{precision}_{method}.tflite"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranges, "_SHARE", 0.9999)  # These are few values.
            write_litert(folder / "source", path, precision, IMAGES, method)
        contents[path.stem] = path.read_bytes()
    return contents


def errors(files: dict[str, bytes], name: str) -> dict[str, dict]:
    names = ["preprocessing", "block1_conv1", "block1_pool", "flatten", "predictions"]
    rows = layer_errors(files[name], files["float32_minmax"], IMAGES[1:5], names)
    return {row["layer"]: row for row in rows}


def test_every_layer_that_computes_has_a_row(files: dict[str, bytes]) -> None:
    rows = errors(files, "int8_minmax")

    assert list(rows) == ["preprocessing", "block1_conv1", "predictions"]
    conv = rows["block1_conv1"]
    assert conv["operation"] == "CONV_2D"
    assert conv["range"][0] == 0
    assert conv["clipped"] == 0
    assert 40 < conv["weights_db"] < 60  # 8 bits, one scale a channel
    assert rows["preprocessing"]["weights_db"] is None
    assert conv["total_db"] < conv["rounding_db"]  # earlier errors come on top
    assert 15 < rows["predictions"]["total_db"] < 50


def test_chosen_ranges_are_those_of_the_file(files: dict[str, bytes]) -> None:
    tops = {
        method: errors(files, f"int8_{method}")["block1_conv1"]["range"][1]
        for method in ("minmax", "percentile", "mse")
    }
    ratios = {
        method: errors(files, f"int8_{method}")["block1_conv1"]["rounding_db"] for method in tops
    }

    assert tops["percentile"] < 0.8 * tops["minmax"]
    assert tops["mse"] < tops["minmax"]  # one large error counts much in it
    assert ratios["mse"] > ratios["minmax"]  # the images lack the extreme value


def test_integers_of_16_bits_round_least(files: dict[str, bytes]) -> None:
    eight, sixteen = (errors(files, f"{name}_minmax") for name in ("int8", "int16"))

    del sixteen["preprocessing"]  # 8 bits hold its whole numbers without an error
    for layer, row in sixteen.items():
        assert row["rounding_db"] > eight[layer]["rounding_db"] + 30
        assert row["weights_db"] == eight[layer]["weights_db"]
        assert row["total_db"] > eight[layer]["total_db"]


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(
    ("precision", "method"),
    [("int8", "minmax"), ("int8", "percentile"), ("int8", "mse"), ("int16", "minmax")],
)
def test_pixels_are_read_as_they_are_though_no_calibration_image_is_white(
    precision: str, method: ranges.CalibrationMethod, tmp_path: Path
) -> None:
    inputs = keras.Input((8, 8, 3))
    means = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    write_source(keras.Model(inputs, layers.Softmax()(means)), tmp_path / "source")
    dark = np.random.default_rng(0).integers(0, 111, (8, 8, 8, 3)).astype(np.float32)
    write_litert(tmp_path / "source", tmp_path / "file.tflite", precision, dark, method)
    interpreter = Interpreter(str(tmp_path / "file.tflite"))
    (details,) = interpreter.get_input_details()
    if precision == "int8":
        assert details["quantization"] == (1.0, 0)
    else:
        first = next(d for d in interpreter.get_tensor_details() if d["dtype"] == np.int16)
        assert first["quantization"][0] == pytest.approx(255 / 32767, rel=1e-3)


def test_a_method_without_its_format_is_refused(tmp_path: Path, capsys) -> None:
    def error_of(*flags: str) -> str:
        assert cli.main(["export", str(tmp_path), *flags]) == cli.BAD_INPUT
        return capsys.readouterr().err

    assert "mse is for the format litert_int8" in error_of("--calibration-method", "mse")
    flags = ("--calibration-method", "percentile", "--format", "litert,litert_int16")
    assert "percentile is for the format litert_int8" in error_of(*flags)
    assert "entropy" in error_of("--calibration-method", "entropy")

"""benchmarks/inference.py: its arithmetic, its tables, and one whole measurement."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import inference

    return inference


def test_shares_are_those_of_the_same_round(inference) -> None:
    results = [
        inference.Result(inference.SOURCE, 1, 1, [100.0, 200.0, 400.0], 2_000_000_000),
        inference.Result(inference.SOURCE, 1, 32, [3000.0, 3000.0, 3000.0], 3_000_000_000),
        inference.Result("litert_int8", 1, 1, [50.0, 50.0, 40.0], 150_000_000),
        inference.Result("litert_int8", 1, 32, [1500.0, 1200.0, 1800.0], None),
    ]
    assert inference.table(results, "VGG-16 at 224, 1 thread").splitlines() == [
        "| VGG-16 at 224, 1 thread | batch 1, ms | share of Keras' | peak MB |"
        " batch 32, ms | share of Keras' | peak MB |",
        "|---|---|---|---|---|---|---|",
        "| Keras, predict | 200 |  | 2,000 | 3,000 |  | 3,000 |",
        "| litert_int8 | 50 | 0.25 (0.10 to 0.50) | 150 | 1,500 | 0.50 (0.40 to 0.60) |  |",
    ]
    assert inference._milliseconds(1.234) == "1.2"


def test_the_features_of_processors(inference) -> None:
    assert inference.features({"sse2", "avx2"}) == ["AVX2"]
    xeon = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}
    assert inference.features(xeon) == ["AVX2", "AVX512", "VNNI", "BF16"]
    assert inference.features(set()) == []


def test_every_format_of_an_export_is_an_engine(inference) -> None:
    from keras_vgg.export.formats import FILES

    engines = inference.engines(FILES)
    assert {*FILES, inference.SOURCE} <= set(engines)


@pytest.mark.slow
def test_a_tiny_network_is_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "inference.py"), "--size", "32"]
    command += ["--width", "0.0625", "--rounds", "2", "--out", str(tmp_path / "figures.json")]
    command += ["--only", "litert", "saved_model_bfloat16", "openvino"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "figures.json").read_text())
    first, *lines = process.stdout.splitlines()
    assert first.startswith(record["processor"])
    assert all(feature in first for feature in record["features"])
    rows = [line for line in lines if line.startswith("| ") and "batch" not in line]
    assert sum(line.startswith("| litert |") for line in rows) == 2  # one and two threads
    by_case = {(r["engine"], r["threads"], r["batch"]): r for r in record["results"]}
    assert len(by_case) == 2 * len(rows)
    assert all(len(result["milliseconds"]) == 2 for result in by_case.values())
    for threads in (1, 2):
        small, large = (by_case["litert", threads, batch]["peak_bytes"] for batch in (1, 32))
        assert small <= large
        # A process with TensorFlow in it is several times as large.
        assert 3 * small < by_case["Keras, predict", threads, 1]["peak_bytes"]


@pytest.mark.parametrize(
    "wrong", [["--threads", "0"], ["--rounds", "0"], ["--size", "8"], ["--only", "torch"]]
)
def test_wrong_arguments(inference, monkeypatch: pytest.MonkeyPatch, wrong: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["inference.py", *wrong])
    with pytest.raises(SystemExit) as ended:
        inference.main()
    assert ended.value.code

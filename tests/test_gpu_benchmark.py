"""benchmarks/gpu.py: nothing that was measured is lost, and every part runs on a CPU."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.other_backends import UNOPTIMISED
from tests.test_data import write_idx

pytest.importorskip("jax", reason="the benchmark runs on JAX")

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def job(gpu, out: Path, name: str, code: str, minutes: float = 1.0):
    file = out / f"{name.replace(':', '_')}.json"
    command = [sys.executable, "-c", code, str(file)]
    return gpu.Job(name, [command], minutes, lambda: gpu._read(file), lambda: "epoch 1 of 2")


WRITES = "import sys; open(sys.argv[1], 'w').write('{\"images_per_second\": [1, 2, 3]}')"


@pytest.mark.slow
def test_a_job_is_done_fails_or_stops_at_its_limit(gpu, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    assert gpu.run_job(job(gpu, tmp_path, "step:a", WRITES), tmp_path, deadline) == "done"
    failing = job(gpu, tmp_path, "step:b", "raise SystemExit('no device')")
    assert gpu.run_job(failing, tmp_path, deadline) == "failed with exit status 1: no device"
    without = job(gpu, tmp_path, "step:c", "pass")
    assert gpu.run_job(without, tmp_path, deadline) == "ended without figures"
    endless = job(gpu, tmp_path, "cifar10:0", "import time; time.sleep(600)", minutes=0)
    state = gpu.run_job(endless, tmp_path, deadline)
    assert state == "stopped at its limit; epoch 1 of 2"
    assert "no device" in (tmp_path / "output" / "step_b.txt").read_text()


def test_finished_jobs_are_kept(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        job(gpu, tmp_path, "step:a", WRITES),
        job(gpu, tmp_path, "cifar10:0", "raise SystemExit('no images')"),
    ]
    monkeypatch.setattr(gpu, "jobs_of", lambda options: iter(jobs))
    gpu.main(["--out", str(tmp_path)])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["step:a"] == {"state": "done", "figures": {"images_per_second": [1, 2, 3]}}
    assert figures["cifar10:0"]["state"].endswith("no images")
    monkeypatch.setattr(gpu, "run_job", lambda job, *_: f"{job.name} again")
    gpu.main(["--out", str(tmp_path)])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["step:a"]["state"] == "done"
    assert figures["cifar10:0"]["state"] == "cifar10:0 again"
    gpu.main(["--out", str(tmp_path), "--only", "pipeline"])
    assert json.loads((tmp_path / "figures.json").read_text()) == figures


def test_the_table_compares_the_steps(gpu) -> None:
    def row(figures):
        return {"state": "done", "figures": figures}

    text = gpu.markdown(
        {
            "step:matrix": row({"tflops": 800.0, "device": "a GPU", "versions": "JAX 1"}),
            "step:keras_vgg:64": row({"images_per_second": [3000.0, 3448.0, 4000.0]}),
            "step:torchvision:64": row({"images_per_second": [1724.0]}),
            "step:keras_vgg:128": row(None),
            "step:torchvision:128": row(None),
        }
    )
    # 92.8 GFLOP for each of 3,448 images are 320 TFLOP.
    assert "| 64 | 3,448 (3,000 to 4,000) | 40% | 1,724 (1,724 to 1,724) | 2.00 |" in text
    assert "| 128 | not measured |  | not measured |  |" in text


def test_the_trainings_are_of_recipes_that_exist(gpu, tmp_path: Path) -> None:
    options = gpu.Options(tmp_path, 1.0, gpu.PARTS, tmp_path, tmp_path, tiny=False)
    jobs = list(gpu.jobs_of(options))
    files = {word for job in jobs for words in job.commands for word in words if ".py" in word}
    assert all(Path(file).is_file() for file in files)
    # The best of the table in training/README.md.
    assert str(ROOT / "training" / "recipes" / "fashion_mnist_half_width.py") in files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cifar", "nowhere"], "nowhere is not a folder"),
        (["--minutes", "0"], "--minutes must be more than 0"),
        (["--only", "speed"], "invalid choice: 'speed'"),
    ],
)
def test_wrong_arguments(gpu, tmp_path: Path, capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main(["--out", str(tmp_path / "out"), *arguments])
    assert message in f"{error.value}{capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_every_part_runs(gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("XLA_FLAGS", UNOPTIMISED)
    pixels = np.random.default_rng(0)
    for name in "cat", "dog":
        (tmp_path / "cifar" / name).mkdir(parents=True)
        for number in range(100):
            image = Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(tmp_path / "cifar" / name / f"{number}.jpg")
    (tmp_path / "fashion").mkdir()
    write_idx(tmp_path / "fashion", zipped=True, training=120)
    folders = ["--cifar", str(tmp_path / "cifar"), "--fashion-mnist", str(tmp_path / "fashion")]
    gpu.main(["--out", str(tmp_path / "out"), "--tiny", *folders])
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert {name: row["state"] for name, row in figures.items()} == dict.fromkeys(figures, "done")
    assert {name.partition(":")[0] for name in figures} == set(gpu.PARTS)

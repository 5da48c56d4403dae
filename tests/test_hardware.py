"""What is decided on which machine; the machines are described, not there."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vgg import fit as fitting
from keras_vgg import hardware
from keras_vgg.hardware import Engine, Machine, choose_engine
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run

SMALL = Recipe()  # a quarter-width A at 32x32
TINY = Recipe(width_multiplier=1 / 16)
LARGE = Recipe(configuration="D", width_multiplier=1.0, image_size=224, hidden_units=4096)

AVX2 = Machine("cpu", ("cpu:0",), None, xla_is_fast=True)
AVX512_BF16 = Machine("cpu", ("cpu:0",), "bfloat16", half_is_fast=False)
AMX = Machine("cpu", ("cpu:0",), "bfloat16")
LOGICAL = Machine("cpu", ("cpu:0", "cpu:1"), None)
PASCAL = Machine("gpu", ("gpu:0",), None)
VOLTA = Machine("gpu", ("gpu:0",), "float16")
HOPPERS = Machine("gpu", tuple(f"gpu:{i}" for i in range(8)), "bfloat16")
TPUS = Machine("tpu", tuple(f"tpu:{i}" for i in range(4)), "bfloat16")


@pytest.mark.parametrize(
    ("recipe", "machine", "expected"),
    [
        (SMALL, AVX2, "cpu, float32, without XLA"),
        (SMALL, AMX, "cpu, mixed_bfloat16, without XLA (bfloat16 is this cpu's fastest)"),
        (TINY, AMX, "cpu, float32, without XLA (float32: the network is small)"),
        (LARGE, AVX2, "cpu, float32, with XLA"),
        (LARGE, AVX512_BF16, "cpu, float32, without XLA (this cpu's bfloat16 is slow)"),
        (LARGE.replace(precision="float32"), AMX, "cpu, float32, without XLA"),
        (LARGE, AMX, "cpu, mixed_bfloat16, without XLA (bfloat16 is this cpu's fastest)"),
        (SMALL, LOGICAL, "cpu, float32, without XLA"),
        (SMALL.replace(devices="2"), LOGICAL, "2 cpus, float32, without XLA"),
        (SMALL, PASCAL, "gpu, float32, with XLA"),
        (SMALL, VOLTA, "gpu, mixed_float16, with XLA (float16 is this gpu's fastest)"),
        (LARGE, HOPPERS, "8 gpus, mixed_bfloat16, without XLA (bfloat16 is this gpu's fastest)"),
        (LARGE.replace(devices="1", precision="float32"), HOPPERS, "gpu, float32, with XLA"),
        (SMALL, TPUS, "4 tpus, mixed_bfloat16, without XLA (bfloat16 is this tpu's fastest)"),
        (SMALL.replace(jit="on"), AVX2, "cpu, float32, with XLA"),
        (SMALL.replace(precision="mixed_bfloat16"), AVX2, "cpu, mixed_bfloat16, without XLA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_decided(recipe: Recipe, machine: Machine, expected: str) -> None:
    assert str(choose_engine(recipe, machine)) == expected


def test_a_resume_compiles_as_before_where_it_can(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun on one GPU goes on with eight, and one of another backend compiles as usual."""
    run = Run(tmp_path, LARGE.replace(batch_size=64))
    one = dataclasses.replace(HOPPERS, devices=HOPPERS.devices[:1])
    before = {"precision": "float32", "jit_compile": True, "backend": "tensorflow"}
    for machine, changes, compiled in (
        (one, {}, True),
        (one, {"jit_compile": False}, False),
        (one, {"jit_compile": False, "backend": "jax"}, True),
        (HOPPERS, {}, False),
    ):
        monkeypatch.setattr(hardware, "find_machine", lambda _, machine=machine: machine)
        run.write_json("environment.json", before | changes)
        engine = fitting._engine(run, is_new=False)
        assert (engine.devices, engine.jit_compile) == (machine.devices, compiled)
        assert engine.precision == "float32"


def test_a_resume_on_another_kind_of_device_says_what_differs(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, LARGE)
    gpu = dataclasses.replace(HOPPERS, devices=HOPPERS.devices[:1])
    slow = "a new one takes float32 here"
    for before, machine, after in (
        ("gpu, mixed_bfloat16, with XLA (why)", gpu, "gpu, mixed_bfloat16, with XLA"),
        ("cpu, float32, without XLA", AVX2, "cpu, float32, without XLA"),  # as it was measured
        (
            "gpu, mixed_bfloat16, with XLA (why)",
            AVX512_BF16,
            f"cpu, mixed_bfloat16, without XLA (the run began on gpu; {slow}; "
            "the run began with XLA)",
        ),
        (
            "2 gpus, mixed_bfloat16, without XLA",
            AVX2,
            f"cpu, mixed_bfloat16, without XLA (the run began on 2 gpus; {slow})",
        ),
        (
            "cpu, mixed_bfloat16, without XLA",
            gpu,
            "gpu, mixed_bfloat16, with XLA (the run began without XLA)",
        ),
    ):
        monkeypatch.setattr(hardware, "find_machine", lambda _, machine=machine: machine)
        precision = before.split(", ")[1]
        environment = {"precision": precision, "jit_compile": "with XLA" in before}
        run.write_json("environment.json", environment | {"engine": before})
        assert str(fitting._engine(run, is_new=False)) == after


@pytest.mark.parametrize("version", [1, 2])
def test_memory_within_a_containers_limit(
    version: int, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job may take 3,000 of 5,000 bytes, and the group around it leaves 1,700."""
    root = tmp_path / "memory" if version == 1 else tmp_path
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    if version == 2:
        names = ("memory.max", "memory.current", "inactive_file")
    (tmp_path / "cgroup").write_text(
        "4:cpu,memory:/group/job\n" if version == 1 else "0::/group/job"
    )
    for folder, (most, used, cache) in {
        root: ("max", 0, 0), root / "group": (2000, 400, 100), root / "group/job": (5000, 2000, 0)
    }.items():  # fmt: skip
        folder.mkdir(exist_ok=True)
        (folder / names[0]).write_text(f"{most}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\n")
    monkeypatch.setattr(hardware, "_CGROUPS_OF_THIS", tmp_path / "cgroup")
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path)
    assert hardware.available_memory() == 1700
    monkeypatch.setattr(hardware, "_CGROUPS_OF_THIS", tmp_path / "nowhere")
    assert (hardware.available_memory() or 10**9) > 10**6


def test_all_devices_that_can_share_a_batch_equally() -> None:
    engine = choose_engine(SMALL.replace(batch_size=60, warmup_epochs=0), HOPPERS)
    assert engine.devices == HOPPERS.devices[:6]


def test_a_batch_in_parts_is_one_devices_of_tensorflow() -> None:
    parts = SMALL.replace(gradient_accumulation=16)
    assert choose_engine(parts, HOPPERS).devices == HOPPERS.devices[:1]
    assert choose_engine(parts, VOLTA).precision == "float32"
    with pytest.raises(ValueError, match=r"on one device of TensorFlow.*not with devices=2"):
        choose_engine(parts.replace(devices="2"), HOPPERS)
    with pytest.raises(ValueError, match="mixed_float16 does not go with gradient_accumulation"):
        choose_engine(parts.replace(precision="mixed_float16"), VOLTA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": "9"}, r"devices=9, but there are 8: gpu:0, gpu:1"),
        ({"devices": "7"}, "7 devices cannot share a batch of 64 images equally"),
        ({"jit": "on"}, "jit='on' does not work on several devices of TensorFlow"),
    ],
    ids=str,
)
def test_what_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_engine(SMALL.replace(**changes), HOPPERS)


@pytest.mark.parametrize("devices", ["0", "gpu", "-1", "1.5", ""])
def test_devices_is_a_number_or_a_word(devices: str) -> None:
    with pytest.raises(ValueError, match="devices must be auto, cpu or a number"):
        Recipe(devices=devices)


def test_this_machine_is_found() -> None:
    found = hardware.find_machine("cpu")
    assert found.kind == "cpu"
    assert found.devices == tuple(keras.distribution.list_devices("cpu"))
    assert isinstance(choose_engine(SMALL.replace(devices="cpu")), Engine)


def test_evaluation_asks_for_no_devices_of_the_training() -> None:
    recipe = SMALL.replace(devices="64", jit="on")
    assert hardware.compiles_evaluation(recipe) is (hardware.find_machine().kind != "cpu")
    assert not hardware.compiles_evaluation(recipe.replace(jit="off"))


PREPARED = "from keras_vgg import hardware; hardware.prepare_environment()"


# A line of TensorFlow's log, and not a progress bar or the line of a command.
LOG_LINE = r"^[IWEF]\d{4} |WARNING|oneDNN|cuInit|absl|jpeg_mem|JPEG lib"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    unset = {"TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND"}
    variables = {k: v for k, v in os.environ.items() if k not in unset} | environment
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=variables, stderr=subprocess.PIPE, text=True)


def stderr_of(code: str, **environment: str) -> str:
    return python("-c", code, **environment).stderr


@pytest.mark.slow
def test_a_script_starts_without_a_word() -> None:
    code = f"{PREPARED}; import keras_vgg.runs, keras_vgg.demo, keras; keras.ops.ones(3)"
    assert stderr_of(code) == ""


@pytest.mark.slow
def test_a_command_has_no_word_of_tensorflow_about_start_up_and_damage(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg", quality=95)
    damaged, other = (tmp_path / "photos" / name / "0.jpg" for name in "ab")
    damaged.write_bytes(damaged.read_bytes()[:2000])
    other.write_bytes(other.read_bytes()[:500])
    report = tmp_path / "report.json"
    arguments = ["data", "check", f"folder:{tmp_path / 'photos'}", "--report", str(report)]
    # An error of native code, other than about an image, must be shown.
    code = f"""
import os, sys
from keras_vgg import cli
from keras_vgg.cli.data import DataCheck
call = DataCheck.__call__
def call_with_error(self):
    os.write(2, b"E0000 00:00:1.2 3 other.cc:5] a real error\\n")
    print("Python's own line", file=sys.stderr)
    call(self)
DataCheck.__call__ = call_with_error
sys.argv = ["keras-vgg", *{arguments!r}]
sys.exit(cli.main())
"""
    lines = stderr_of(code).splitlines()
    assert "E0000 00:00:1.2 3 other.cc:5] a real error" in lines
    assert "Python's own line" in lines
    rest = "\n".join(line for line in lines if "a real error" not in line)
    assert not re.search(LOG_LINE, rest, re.MULTILINE)
    assert "2 images of" in rest
    assert "a/0.jpg" in rest
    assert "b/0.jpg" in rest


@pytest.mark.slow
def test_a_training_has_no_word_of_tensorflow(tmp_path) -> None:
    options = ("--epochs", "1", "--width-multiplier", "0.0625", "--workdir", str(tmp_path / "run"))
    done = python("-m", "keras_vgg.cli", "train", *options)
    assert done.returncode == 0, done.stderr
    assert not re.search(LOG_LINE, done.stderr, re.MULTILINE), done.stderr
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.slow
def test_the_demo_has_no_word_of_tensorflow(tmp_path) -> None:
    """`make demo`, with a tiny network."""
    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        "from keras_vgg import Recipe\n"
        "RECIPE = Recipe(width_multiplier=1 / 16, hidden_units=8, epochs=3, test_fraction=0.8)\n"
    )
    script = Path(__file__).parents[1] / "training" / "demo.py"
    options = ("--recipe", str(recipe), "--workdir", str(tmp_path / "run"))
    done = python(str(script), *options)
    assert done.returncode == 0, done.stderr
    assert not re.search(f"{LOG_LINE}|XNNPACK", done.stderr, re.MULTILINE), done.stderr


@pytest.mark.slow
def test_tensorflow_speaks_when_asked() -> None:
    assert stderr_of(PREPARED, TF_CPP_MIN_LOG_LEVEL="0") != ""


def test_errors_come_through_the_filter_of_start_up_messages() -> None:
    lines = (
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1.2 3 port.cc:153] oneDNN custom operations are on.",
        "2026-01-02 03:04:05.678901: W tensorflow/core/a.cc:1] old form",
        "To enable the following instructions: AVX2, rebuild TensorFlow",
        "E0000 00:00:1.2 3 cuda_platform.cc:52] failed call to cuInit: UNKNOWN ERROR (303)",
        "E0000 00:00:1.2 3 cuda_platform.cc:52] failed call to cuInit: CUDA_ERROR_UNKNOWN (999)",
        "ImportError: a library is missing",
        "F0000 00:00:1.2 3 cpu_feature_guard.cc] compiled to use AVX, which is not there",
    )
    # An error may end the process.
    code = (
        "import os\nfrom keras_vgg import hardware, native_stderr\n"
        "with native_stderr.without_native_stderr(hardware._STARTUP_MESSAGES):\n"
        f"    os.write(2, {chr(10).join(lines).encode()!r})\n"
        "    os.abort()"
    )
    assert stderr_of(code).splitlines() == [*lines[5:]]


def test_what_is_said_of_a_damaged_jpeg_is_dropped_and_the_rest_is_shown() -> None:
    lines = (
        "E0000 00:00:1.2 3 jpeg_mem.cc:338] Premature end of JPEG data. Stopped at line 12/480",
        "2026-01-02 03:04:05.678901: E tensorflow/core/lib/jpeg/jpeg_mem.cc:320] Image too large",
        "Improper call to JPEG library in state 201",
        "Bogus DHT index 17",
        "Huffman table 0x02 was not defined",
        "Corrupt JPEG data: 12 extraneous bytes before marker 0xd9",  # it is decoded all the same
        "E0000 00:00:1.2 3 cuda_dnn.cc:52] Could not create cudnn handle",
        "W0000 00:00:1.2 3 other.cc:52] a warning about jpeg_mem.cc",
        "Bogus, says Python",
    )
    code = (
        "import os, sys\nfrom keras_vgg import hardware\n"
        "before = sys.stderr\n"
        "with hardware.without_messages_about_images():\n"
        f"    os.write(2, {chr(10).join(lines).encode()!r} + b'\\n')\n"
        "    sys.stderr.write('Improper call to JPEG library, says Python\\n')\n"
        "    assert sys.stderr is not before\n"
        "assert sys.stderr is before\n"
        "print('after', file=sys.stderr)\n"
    )
    said = stderr_of(code).splitlines()
    assert said[-1] == "after"
    assert sorted(said[:-1]) == sorted([*lines[5:], "Improper call to JPEG library, says Python"])
    assert len(stderr_of(code.replace("not before", "before"), TF_CPP_MIN_LOG_LEVEL="0")) > len(
        "\n".join(lines)
    )


def test_flags_of_a_processor(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = tmp_path / "cpuinfo"
    described.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nflags\t: other\n")
    monkeypatch.setattr(hardware, "_CPUINFO", described)
    assert hardware.find_machine("cpu").half == "bfloat16"
    described.write_text("processor\t: 0\nflags\t\t: fpu avx2\n")
    assert hardware.find_machine("cpu").half is None
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "none")
    assert hardware.find_machine("cpu").half is None


@pytest.mark.parametrize(
    ("cpuinfo", "half", "half_is_fast", "xla_is_fast"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx2", None, True, True),
        ("vendor_id\t: AuthenticAMD\nflags\t: avx512f avx512_bf16", "bfloat16", True, False),
        ("vendor_id\t: GenuineIntel\nflags\t: avx512f avx512_bf16", "bfloat16", False, False),
        ("vendor_id\t: GenuineIntel\nflags\t: avx512f amx_bf16", "bfloat16", True, False),
        ("", None, False, True),
    ],
    ids=["AMD, AVX2", "AMD, bfloat16", "Intel, bfloat16", "Intel, AMX", "unknown"],
)
def test_what_a_processor_is_expected_to_do_well(
    monkeypatch, tmp_path, cpuinfo: str, half: str | None, half_is_fast: bool, xla_is_fast: bool
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    monkeypatch.setattr(hardware, "_CPUINFO", file)
    machine = hardware.find_machine("cpu")
    assert machine.half == half
    assert (machine.half_is_fast, machine.xla_is_fast) == (half_is_fast, xla_is_fast)

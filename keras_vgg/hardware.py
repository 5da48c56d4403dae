"""Decide how to use the machine: devices, precision and XLA, and the reasons to print."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from keras_vgg import architecture
from keras_vgg.backend import backend_name, is_jax, is_tensorflow, is_torch
from keras_vgg.native_stderr import without_native_stderr
from keras_vgg.recipe import Recipe

# Multiply-accumulates of a forward pass of one image. On a CPU whose bfloat16 is fast (AMD's Zen 4
# and later, Intel's with AMX; not Intel's AVX512-BF16 alone, see training/README.md), it shortens
# the convolutions of networks above the first bound; in smaller ones, its conversions take as long.
# Without AVX-512, XLA compiles the convolutions of networks above the second bound well; in smaller
# networks, and on newer processors, its convolutions are slower than oneDNN's.
_BFLOAT16_MACS = 8e6
_XLA_MACS = 1e9
# The first NVIDIA architectures whose matrix units support the type: Volta and Ampere.
_FLOAT16_CAPABILITY = (7, 0)
_BFLOAT16_CAPABILITY = (8, 0)
# Flags of x86 processors. Without one of these, a processor emulates bfloat16.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}
_BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino")  # those of Keras
_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUPS_OF_THIS, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

# Lines that TensorFlow's C++ code writes on stderr before it reads its log level: notes, warnings,
# and two errors without meaning (no GPU on a machine without NVIDIA's driver; a library that
# registers twice).
_STARTUP_MESSAGES = (
    r"([IW]\d{4} |\d{4}-\d\d-\d\d \S+ [IW] |WARNING: All log messages before absl"
    r"|To enable the following instructions: "
    r"|E.*(cuInit: .*(\(303\)|CUDA_ERROR_NO_DEVICE)|Unable to register cu\w+ factory))"
)

# TensorFlow and libjpeg report a JPEG that cannot be decoded without the file's name. Each command
# names the file itself. libjpeg's warnings about a JPEG that is decoded all the same are shown.
_DAMAGED_IMAGE_MESSAGES = (
    r"((E\d{4} .*|\d{4}-\d\d-\d\d \S+ E .*)jpeg_mem\.cc"
    r"|WARNING: All log messages before absl"
    r"|(Improper call to JPEG library in state|Bogus (Huffman table|marker length|D\w+ index)"
    r"|Unsupported (JPEG process|marker type)|Invalid (JPEG file structure|component ID)"
    r"|Invalid progressive parameters|Input file read error|Not a JPEG file|Empty JPEG image"
    r"|(Quantization|Huffman) table 0x\w+ was not defined|Didn't expect more than one scan))"
)


@contextlib.contextmanager
def without_messages_about_images() -> Iterator[None]:
    """Drop TensorFlow's log lines about damaged images; other errors are shown.

    For a program that has its stderr to itself. With TF_CPP_MIN_LOG_LEVEL=0 or 1, every message is
    shown.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in ("0", "1"):
        yield
        return
    with without_native_stderr(_DAMAGED_IMAGE_MESSAGES):
        yield


def prepare_environment(backend: str | None = None) -> None:
    """Import TensorFlow and Keras with the settings of this package, without start-up messages.

    Call this before anything imports TensorFlow. It switches oneDNN on: TensorFlow leaves oneDNN
    off on x86 processors without AVX-512, where it trains a small VGG about 1.5 times as fast (see
    training/README.md). It hides log messages below errors. Environment variables that are already
    set take precedence. With TF_CPP_MIN_LOG_LEVEL=0 or 1, every message is shown.

    Args:
        backend: The backend of Keras. None: KERAS_BACKEND decides.

    Raises:
        ValueError: Keras has no such backend, the backend is not installed, or Keras already runs
            on another backend.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    quiet = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1")
    variable = os.environ.get("KERAS_BACKEND")
    if backend is None and variable and variable not in _BACKENDS:
        raise ValueError(f"KERAS_BACKEND must be one of {', '.join(_BACKENDS)}, not {variable!r}")
    if backend is not None:
        if importlib.util.find_spec(backend) is None:
            raise ValueError(
                f"Keras' backend {backend} (KERAS_BACKEND or --backend) is not installed: "
                f"pip install 'keras-vgg[{backend}]'"
            )
        os.environ["KERAS_BACKEND"] = backend
    if "tensorflow" not in sys.modules:
        with without_native_stderr(_STARTUP_MESSAGES) if quiet else contextlib.nullcontext():
            import tensorflow as tf

            # This prints the messages about GPUs. It starts no device, also not with JAX.
            tf.config.list_physical_devices()
    if backend is not None and backend_name() != backend:
        raise ValueError(
            f"Keras already runs on {backend_name()}: set KERAS_BACKEND={backend} before the first "
            "import of Keras"
        )


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices for a computation.

    Attributes:
        kind: cpu, gpu or tpu.
        devices: Keras' names of all devices of that kind.
        half: The fastest half-precision type of the devices: bfloat16, float16, or None.
        hosts: The number of processes that own the devices.
        half_is_fast: Whether the rule expects half precision to train faster than float32.
        xla_is_fast: Whether the rule expects XLA to train large float32 networks faster on a CPU.
    """

    kind: str
    devices: tuple[str, ...]
    half: str | None
    hosts: int = 1
    half_is_fast: bool = True
    xla_is_fast: bool = False


@dataclasses.dataclass(frozen=True)
class Engine:
    """The devices, precision and compiler of a training.

    Attributes:
        devices: Keras' names. Each of several devices takes an equal part of a batch.
        precision: A Keras dtype policy.
        jit_compile: Whether XLA compiles the training step.
        why: The reasons for the decisions of `choose_engine`.
    """

    devices: tuple[str, ...]
    precision: str
    jit_compile: bool
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = self.devices[0].partition(":")[0]
        devices = kind if len(self.devices) == 1 else f"{len(self.devices)} {kind}s"
        xla = "with XLA" if self.jit_compile else "without XLA"
        why = f" ({'; '.join(self.why)})" if self.why else ""
        return f"{devices}, {self.precision}, {xla}{why}"


def find_machine(devices: str = "auto") -> Machine:
    """Return the devices that Keras' backend sees; with `devices` "cpu", no accelerators."""
    import keras

    # Without a kind: JAX raises an error for a kind that the machine lacks.
    names = keras.distribution.list_devices() if devices != "cpu" else []
    for kind in ("tpu", "gpu"):
        accelerators = [name for name in names if name.startswith(kind)]
        if accelerators:
            half = _half_of_gpu() if kind == "gpu" else "bfloat16"
            return Machine(kind, tuple(accelerators), half, _hosts())
    flags = _processor_flags()
    return Machine(
        "cpu",
        tuple(keras.distribution.list_devices("cpu")),
        "bfloat16" if flags & _BFLOAT16_FLAGS else None,
        _hosts(),
        half_is_fast="amx_bf16" in flags or _processor_fact("vendor_id") == "AuthenticAMD",
        xla_is_fast="avx512f" not in flags,
    )


def _hosts() -> int:
    if not is_jax():
        return 1
    import jax

    return jax.process_count()


def _processor_flags() -> set[str]:
    """Return the first processor's flags on Linux; an empty set on other systems."""
    return set(_processor_fact("flags").split())


def _processor_fact(name: str) -> str:
    """Return a value that Linux states of the first processor; "" on other systems."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    return next((ln.partition(":")[2].strip() for ln in lines if ln.startswith(name)), "")


def processor_name() -> str:
    """Return the first processor's model name and flags on Linux; else what Python knows."""
    return f"{_processor_fact('model name') or platform.processor()} {sorted(_processor_flags())}"


def _half_of_gpu() -> str | None:
    if is_jax():
        import jax

        text = getattr(jax.local_devices()[0], "compute_capability", "")
        capability = tuple(int(part) for part in str(text).split(".") if part.isdigit())
    else:
        import tensorflow as tf

        gpu = tf.config.list_physical_devices("GPU")[0]
        capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", ())
    if capability >= _BFLOAT16_CAPABILITY:
        return "bfloat16"
    return "float16" if capability >= _FLOAT16_CAPABILITY else None


def peak_memory(engine: Engine) -> int | None:
    """Return the peak memory so far in bytes: of the fullest device, or on a CPU of this process.

    None: the system does not report it, as Windows.
    """
    if engine.devices[0].startswith("cpu"):
        try:
            import resource
        except ImportError:  # Windows
            return None
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not is_tensorflow():
        import jax

        statistics = [device.memory_stats() or {} for device in jax.local_devices()]
        return max((each.get("peak_bytes_in_use", 0) for each in statistics), default=0) or None
    import tensorflow as tf

    names = [name for name in engine.devices if name.startswith("gpu")]
    peaks = [tf.config.experimental.get_memory_info(name.upper())["peak"] for name in names]
    return max(peaks, default=None)


def own_cores() -> int:
    """Return how many cores this process may use: a job may have fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Return the bytes of main memory that new processes can use; None: the system does not say.

    A limit of a container or a job counts, on Linux. The memory of GPUs is not counted.
    """
    left = [*_left_in_cgroups()]
    try:
        lines = _MEMINFO.read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("MemAvailable:")]
        left.append(1024 * int(line.split()[1]))
    except (OSError, ValueError):
        pass
    return min(left, default=None)


def _left_in_cgroups() -> Iterator[int]:
    """Yield the bytes that are left below the limits of this process's cgroups, inner and outer."""
    try:
        lines = _CGROUPS_OF_THIS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = root / path.strip("/")
        for folder in (own, *own.parents):
            if not folder.is_relative_to(root):
                break
            limit, usage, cache = names
            with contextlib.suppress(OSError, ValueError, KeyError):  # no file, or no limit: "max"
                most, used = (int((folder / name).read_text()) for name in (limit, usage))
                rows = (folder / "memory.stat").read_text().splitlines()
                # What only caches files can be given to a process.
                yield max(0, most - used + int(dict(row.split() for row in rows)[cache]))


def choose_engine(recipe: Recipe, machine: Machine | None = None) -> Engine:
    """Choose devices, precision and XLA for a recipe; by default on this machine.

    Raises:
        ValueError: the machine has fewer devices than the recipe asks for, the devices cannot share
            a batch equally, or two fields do not go together on these devices.
    """
    machine = machine or find_machine(recipe.devices)
    devices = _devices(recipe, machine)
    why = []
    macs = architecture.totals(recipe.layers()).macs
    precision = recipe.precision
    if precision == "auto":
        useful = machine.half is not None and (
            machine.kind != "cpu" or (machine.half_is_fast and macs >= _BFLOAT16_MACS)
        )
        precision = f"mixed_{machine.half}" if useful else "float32"
        if precision == "mixed_float16" and recipe.gradient_accumulation > 1:
            useful, precision = False, "float32"
            why.append("float32: a batch is computed in parts")
        if useful:
            why.append(f"{machine.half} is this {machine.kind}'s fastest")
        elif machine.half is not None and not why:
            small = machine.half_is_fast
            why.append(
                "float32: the network is small" if small else f"this cpu's {machine.half} is slow"
            )
    elif precision == "mixed_float16" and recipe.gradient_accumulation > 1:
        # Keras' loss scaling drops a part that overflows, and then miscounts the parts.
        raise ValueError("mixed_float16 does not go with gradient_accumulation; use mixed_bfloat16")
    jit = {"on": True, "off": False, "auto": _jit(machine, precision, macs)}[recipe.jit]
    if len(devices) > 1 and jit and is_tensorflow():
        if recipe.jit == "on":
            # keras-team/keras#20763
            raise ValueError("jit='on' does not work on several devices of TensorFlow; use 'auto'")
        jit = False
    return Engine(devices, precision, jit, tuple(why))


def compiles_evaluation(recipe: Recipe) -> bool:
    """Return whether to compile an evaluation with XLA: on accelerators only.

    On a CPU, XLA would compile the network for each of many image sizes.
    """
    # Keras lists no devices of PyTorch, which has no XLA either.
    return recipe.jit != "off" and not is_torch() and find_machine(recipe.devices).kind != "cpu"


def _devices(recipe: Recipe, machine: Machine) -> tuple[str, ...]:
    available, batch = machine.devices, recipe.part_size
    if machine.hosts > 1:
        if batch % len(available):
            raise ValueError(
                f"the {len(available)} devices of {machine.hosts} hosts cannot share a batch of "
                f"{batch} images equally"
            )
        if recipe.devices.isdigit() and int(recipe.devices) != len(available):
            raise ValueError(
                f"devices={recipe.devices}, but the hosts have {len(available)} together"
            )
        return available
    if recipe.gradient_accumulation > 1 and is_tensorflow():
        # Keras' optimiser cannot skip a step under tf.distribute.
        if recipe.devices.isdigit() and int(recipe.devices) > 1:
            raise ValueError(
                "gradient_accumulation works on one device of TensorFlow, or on several of JAX, "
                f"not with devices={recipe.devices}"
            )
        return available[:1]
    if recipe.devices in ("auto", "cpu"):
        most = len(available) if machine.kind != "cpu" else 1
        return available[: max(n for n in range(1, most + 1) if batch % n == 0)]
    wanted = int(recipe.devices)
    if wanted > len(available):
        raise ValueError(
            f"devices={wanted}, but there are {len(available)}: {', '.join(available)}"
        )
    if batch % wanted:
        raise ValueError(f"{wanted} devices cannot share a batch of {batch} images equally")
    return available[:wanted]


def _jit(machine: Machine, precision: str, macs: float) -> bool:
    if machine.kind != "cpu" or not is_tensorflow():
        return True  # without XLA, Keras on JAX runs operation by operation
    return macs >= _XLA_MACS and precision == "float32" and machine.xla_is_fast

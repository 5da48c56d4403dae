"""Measure the latency and memory of VGG-16 in Keras, in our exports, and in other engines.

python benchmarks/inference.py [--threads 1 2] [--rounds 5] [--only NAME ...] [--out FILE]

The network has 1,000 classes and random weights, which cost as much as trained weights. It is
exported once in each format. For each number of threads, each engine then has its own process. The
engines take turns, so that other work on the machine slows all of them. The output is a Markdown
table for each number of threads: milliseconds (the median of the rounds), the share of Keras' time
in the same round, with the spread, and the most memory that the engine's process ever had until the
first answer at that batch size. --out also writes every figure as JSON. ONNX needs `pip install
'keras-vgg[onnx]'`, and OpenVINO `pip install 'keras-vgg[openvino]'`; an engine that is not
installed is left out. All engines are in memory at once.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

BATCHES = {1: 8, 32: 1}  # batch size -> answers in a round
CLASSES = 1000
SLOW = {"litert_int16"}  # Processors run it a hundred times slower: only if --only names it.
PACKAGES = ("keras", "tensorflow", "ai-edge-litert", "onnxruntime", "openvino")
# What speeds inference up -> the flags, one of which /proc/cpuinfo has.
FEATURES = {
    "AVX2": {"avx2"},
    "AVX512": {"avx512f"},
    "VNNI": {"avx_vnni", "avx512_vnni"},
    "BF16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_tile"},
}

Answer = Callable[[np.ndarray], np.ndarray]
Engine = Callable[[Path, int], Answer]  # a folder and the number of threads -> what answers


@dataclass
class Result:
    """What one engine took for one batch size: a round each in `milliseconds`."""

    engine: str
    threads: int
    batch: int
    milliseconds: list[float]
    peak_bytes: int | None


# --- engines, each in a process of its own ------------------------------------------------------


def _tensorflow(threads: int):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def _keras(folder: Path, threads: int) -> Answer:
    _tensorflow(threads)
    import keras

    import keras_vgg.layers  # noqa: F401  registers the model's layers

    model = keras.saving.load_model(folder / "model.keras")
    assert isinstance(model, keras.Model)
    return lambda images: np.asarray(
        model.predict(images, batch_size=len(images), verbose=0)  # pyright: ignore[reportArgumentType]
    )


def _keras_export(folder: Path, threads: int) -> Answer:
    tf = _tensorflow(threads)
    loaded = tf.saved_model.load(str(folder / "keras_export"))
    return lambda images: loaded.serve(tf.constant(images)).numpy()


@functools.cache
def _run_artifact() -> ModuleType:
    """Return the script that runs an export, without the package, which imports TensorFlow."""
    package = importlib.util.find_spec("keras_vgg")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "export" / "run_artifact.py"
    spec = importlib.util.spec_from_file_location("run_artifact", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _exported(format: str, name: str, folder: Path, threads: int) -> Answer:
    runners = _run_artifact().RUNNERS
    kind = next(kind for kind in runners if format.startswith(kind))
    return runners[kind](str(folder / "export" / name), threads)


def _openvino(precision: str, folder: Path, threads: int) -> Answer:
    import openvino

    properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    path = str(folder / "export" / "openvino" / "model.xml")
    model = openvino.Core().compile_model(path, "CPU", properties)
    return lambda images: model({"images": images})["probabilities"]


def engines(files: Mapping[str, str]) -> dict[str, Engine]:
    """Return every engine by its name; `files` are those of the formats of an export."""
    return {
        SOURCE: _keras,
        "SavedModel of Keras' model.export": _keras_export,
        **{format: functools.partial(_exported, format, name) for format, name in files.items()},
        "openvino, float32": functools.partial(_openvino, "f32"),
        "openvino, bfloat16": functools.partial(_openvino, "bf16"),
    }


SOURCE = "Keras, predict"

_answer: Answer  # set by _load in an engine's process


def _load(
    name: str, engine: Engine, folder: Path, threads: int, size: int
) -> dict[int, int | None]:
    """Load an engine; return the peak of the process's memory after an answer at each batch."""
    global _answer
    _answer = engine(folder, threads)
    peaks = {}
    for count in BATCHES:
        probabilities = _answer(_images(count, size))
        if probabilities.shape != (count, CLASSES):
            raise ValueError(
                f"{name} answers with shape {probabilities.shape}, not {(count, CLASSES)}"
            )
        peaks[count] = _run_artifact()._peak_bytes()
    return peaks


def _measure(count: int, size: int) -> float:
    """Return the milliseconds of an answer: the median of a round."""
    images = _images(count, size)
    _answer(images)  # some engines set up again for another batch size
    seconds = []
    for _ in range(BATCHES[count]):
        start = time.perf_counter()
        _answer(images)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def _images(count: int, size: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    return np.rint(generator.uniform(0, 255, (count, size, size, 3))).astype(np.float32)


# --- the measurement ------------------------------------------------------------------------------


def write(folder: Path, size: int, width: float, formats: Sequence[str]) -> None:
    import keras

    from keras_vgg.export import export
    from keras_vgg.models import VGG16

    keras.utils.set_random_seed(0)
    model = VGG16(
        weights=None,
        input_shape=(size, size, 3),
        classes=CLASSES,
        width_multiplier=width,
        kernel_initializer="he_normal",
        include_preprocessing=True,
    )
    model.save(folder / "model.keras")
    model.export(folder / "keras_export", verbose=False)
    images = _images(8, size)
    names = [f"class {i}" for i in range(CLASSES)]
    # A random network's best class is only a little better, so 8-bit integers may name another.
    options = {"images": images, "calibration": images, "tolerance": 100, "verbose": True}
    export(model, names, folder / "export", formats=formats, **options)


def measured(
    chosen: Mapping[str, Engine], folder: Path, threads: int, size: int, rounds: int
) -> list[Result]:
    """Measure engines with one number of threads, in turns."""
    context = multiprocessing.get_context("spawn")
    workers = {name: ProcessPoolExecutor(1, context) for name in chosen}
    results: list[Result] = []
    try:
        for name, worker in workers.items():
            print(f"loading {name}", file=sys.stderr)
            peaks = worker.submit(_load, name, chosen[name], folder, threads, size).result()
            results += [Result(name, threads, count, [], peaks[count]) for count in BATCHES]
        for turn in range(rounds):
            for result in sorted(results, key=lambda result: result.batch):
                worker = workers[result.engine]
                milliseconds = worker.submit(_measure, result.batch, size).result()
                result.milliseconds.append(milliseconds)
                text = f"round {turn + 1} of {rounds}, {threads} threads: {result.engine}"
                text += f", batch {result.batch}: {milliseconds:.0f} ms"
                print(text, file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.shutdown(cancel_futures=True)
    return results


# --- the answer -----------------------------------------------------------------------------------


def features(flags: set[str]) -> list[str]:
    """Return which of FEATURES a processor with these flags has."""
    return [name for name, names in FEATURES.items() if flags & names]


def table(results: Sequence[Result], title: str) -> str:
    """Return results of one number of threads as Markdown; the first header is `title`."""
    columns = "".join(f" batch {n}, ms | share of Keras' | peak MB |" for n in BATCHES)
    lines = [f"| {title} |{columns}", "|---|" + "---|---|---|" * len(BATCHES)]
    by_engine: dict[str, dict[int, Result]] = {}
    for result in results:
        by_engine.setdefault(result.engine, {})[result.batch] = result
    for name, by_batch in by_engine.items():
        cells = []
        for count, result in by_batch.items():
            keras_times = by_engine[SOURCE][count].milliseconds
            shares = [t / k for t, k in zip(result.milliseconds, keras_times, strict=True)]
            spread = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
            time_text = _milliseconds(statistics.median(result.milliseconds))
            peak = "" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:,.0f}"
            cells += [time_text, "" if name == SOURCE else spread, peak]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _installed(name: str) -> bool:
    packages_of = {"onnx": ("onnx", "onnxruntime", "tf2onnx"), "openvino": ("openvino",)}
    needed = {p for word, packages in packages_of.items() if word in name for p in packages}
    return all(importlib.util.find_spec(package) for package in needed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--size", type=int, default=224, help="height and width of the images, in pixels (224)"
    )
    parser.add_argument(
        "--width", type=float, default=1.0, help="width of VGG-16, to try the benchmark (1)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="threads of each engine (1 2)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine (5)")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="measure only these engines and Keras"
    )
    parser.add_argument("--out", type=Path, help="write every figure to this JSON file")
    options = parser.parse_args()
    for name, least in (("size", 32), ("rounds", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, not {getattr(options, name)}")
    if min(options.threads) < 1 or len(set(options.threads)) != len(options.threads):
        parser.error(f"--threads must be different numbers of at least 1, not {options.threads}")
    return options


def main() -> None:
    options = _arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from keras_vgg.export.formats import FILES
    from keras_vgg.files import write_json
    from keras_vgg.hardware import processor_name
    from keras_vgg.versions import package_versions

    known = engines(FILES)
    if unknown := set(options.only or ()) - set(known):
        sys.exit(f"unknown engines: {', '.join(sorted(unknown))}; choose from: {'; '.join(known)}")
    wanted = {SOURCE, *options.only} if options.only else set(known) - SLOW
    selected = [name for name in known if name in wanted]
    missing = [name for name in selected if not _installed(name)]
    for name in missing:
        print(f"not installed, left out: {name}", file=sys.stderr)
    chosen = {name: known[name] for name in selected if name not in missing}
    # An engine's name begins with the format that it runs. An export needs at least one format.
    formats = [f for f in FILES if any(name.partition(",")[0] == f for name in chosen)]

    results: list[Result] = []
    with tempfile.TemporaryDirectory() as scratch:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as writer:  # its end frees the memory
            network = (options.size, options.width, formats or ["litert"])
            writer.submit(write, Path(scratch), *network).result()
        for threads in options.threads:
            results += measured(chosen, Path(scratch), threads, options.size, options.rounds)
    name, _, flags = processor_name().partition(" [")
    record: dict[str, Any] = {
        "network": "VGG-16" if options.width == 1 else f"VGG-16, width {options.width:g}",
        "size": options.size,
        "processor": name,
        "features": features(set(re.findall(r"\w+", flags))),
        "versions": package_versions(PACKAGES),
        "results": [asdict(result) for result in results],
    }
    print(f"{name}: {', '.join(record['features']) or 'its features are unknown'}")
    for threads in options.threads:
        words = "1 thread" if threads == 1 else f"{threads} threads"
        title = f"{record['network']} at {options.size}, {words}"
        print()
        print(table([result for result in results if result.threads == threads], title))
    if options.out is not None:
        write_json(options.out, record)


if __name__ == "__main__":
    main()

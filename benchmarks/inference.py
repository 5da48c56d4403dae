"""Measure the latency of VGG-16 in Keras, in our exports, and in other engines.

python benchmarks/inference.py [--size 224] [--threads 2] [--rounds 5] [--only NAME ...]

The network has 1,000 classes and random weights, which cost as much as trained weights. It is
exported once in each format. Each engine then has its own process with the given number of threads.
The engines take turns, so that other work on the machine slows all of them. The output is
milliseconds (the median of the rounds), and the share of Keras' time in the same round, with the
spread. ONNX and OpenVINO need `pip install 'keras-vgg[onnx,openvino]'`; an engine that is not
installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

BATCHES = {1: 8, 32: 1}  # batch size -> answers in a round
CLASSES = 1000

Answer = Callable[[np.ndarray], np.ndarray]


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


def _saved_model(name: str) -> Callable[[Path, int], Answer]:
    def load(folder: Path, threads: int) -> Answer:
        tf = _tensorflow(threads)
        loaded = tf.saved_model.load(str(folder / "export" / name))
        serve = loaded.signatures["serving_default"]
        # The default argument keeps the model alive while its signature is in use.
        return lambda images, _model=loaded: serve(images=tf.constant(images))[
            "probabilities"
        ].numpy()

    return load


def _litert(name: str) -> Callable[[Path, int], Answer]:
    def load(folder: Path, threads: int) -> Answer:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(folder / "export" / name), num_threads=threads)
        serve = interpreter.get_signature_runner("serving_default")
        dtype = serve.get_input_details()["images"]["dtype"]
        return lambda images: serve(images=images.astype(dtype))["probabilities"]

    return load


def _onnxruntime(folder: Path, threads: int) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "export" / "model.onnx"), options)
    return lambda images: np.asarray(session.run(["probabilities"], {"images": images})[0])


def _openvino(precision: str) -> Callable[[Path, int], Answer]:
    def load(folder: Path, threads: int) -> Answer:
        import openvino  # pyright: ignore[reportMissingImports]

        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        core = openvino.Core()
        model = core.compile_model(str(folder / "export/openvino/model.xml"), "CPU", properties)
        return lambda images: model({"images": images})["probabilities"]

    return load


ENGINES: dict[str, Callable[[Path, int], Answer]] = {
    "Keras, predict": _keras,
    "SavedModel of Keras' model.export": _keras_export,
    "saved_model": _saved_model("saved_model"),
    "saved_model_bfloat16": _saved_model("saved_model_bfloat16"),
    "litert": _litert("model.tflite"),
    "litert_float16": _litert("model_float16.tflite"),
    "litert_dynamic": _litert("model_dynamic.tflite"),
    "litert_int8": _litert("model_int8.tflite"),
    "onnx, by ONNX Runtime": _onnxruntime,
    "openvino, float32": _openvino("f32"),
    "openvino, bfloat16": _openvino("bf16"),
}
SOURCE = "Keras, predict"

_answer: Answer  # set by _load in an engine's process


def _load(name: str, folder: Path, threads: int, size: int) -> None:
    global _answer
    _answer = ENGINES[name](folder, threads)
    for count in BATCHES:
        probabilities = _answer(_images(count, size))
        if probabilities.shape != (count, CLASSES):
            raise ValueError(
                f"{name} answers with shape {probabilities.shape}, not {(count, CLASSES)}"
            )


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


def write(folder: Path, size: int, formats: tuple[str, ...]) -> None:
    import keras

    from keras_vgg.export import export
    from keras_vgg.models import VGG16

    keras.utils.set_random_seed(0)
    model = VGG16(
        weights=None,
        input_shape=(size, size, 3),
        classes=CLASSES,
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


def _installed(name: str) -> bool:
    packages_of = {"onnx": ("onnx", "onnxruntime", "tf2onnx"), "openvino": ("openvino",)}
    needed = {p for word, packages in packages_of.items() if word in name for p in packages}
    return all(importlib.util.find_spec(package) for package in needed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--size", type=int, default=224, help="height and width of the images, in pixels (224)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine (2)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine (5)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=ENGINES,
        metavar="NAME",
        help="measure only these engines and Keras",
    )
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    selected = [name for name in ENGINES if not options.only or name in (SOURCE, *options.only)]
    missing = [name for name in selected if not _installed(name)]
    names = [name for name in selected if name not in missing]
    for name in missing:
        print(f"not installed, left out: {name}", file=sys.stderr)

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        from keras_vgg.export import FORMATS

        folder = Path(scratch)
        needed = {name.partition(",")[0] for name in names}
        formats = tuple(f for f in FORMATS if f in needed) or ("saved_model",)
        with ProcessPoolExecutor(1, context) as writer:  # its end frees the memory
            writer.submit(write, folder, options.size, formats).result()
        workers = {name: ProcessPoolExecutor(1, context) for name in names}
        try:
            for name, worker in workers.items():
                print(f"loading {name}", file=sys.stderr)
                worker.submit(_load, name, folder, options.threads, options.size).result()
            times = {name: {count: [] for count in BATCHES} for name in names}
            for turn in range(options.rounds):
                for count in BATCHES:
                    for name, worker in workers.items():
                        milliseconds = worker.submit(_measure, count, options.size).result()
                        times[name][count].append(milliseconds)
                        text = f"round {turn + 1} of {options.rounds}: {name}, batch {count}"
                        print(f"{text}: {milliseconds:.0f} ms", file=sys.stderr, flush=True)
        finally:
            for worker in workers.values():
                worker.shutdown(cancel_futures=True)
    print("| engine |" + "".join(f" batch {n}, ms | share of Keras' |" for n in BATCHES))
    print("|---|" + "---|---|" * len(BATCHES))
    for name, times_by_batch in times.items():
        cells = []
        for count, own_times in times_by_batch.items():
            shares = [t / k for t, k in zip(own_times, times[SOURCE][count], strict=True)]
            spread = f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
            cells += [f"{statistics.median(own_times):.0f}", "" if name == SOURCE else spread]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

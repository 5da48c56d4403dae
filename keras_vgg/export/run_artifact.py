"""Run an exported file as a user would: python run_artifact.py KIND FILE THREADS IMAGES OUTPUT

This is a script. It runs in a process of its own, which cannot import keras_vgg and Keras, and can
import TensorFlow only for a SavedModel. It writes an .npz to OUTPUT with these arrays:

- `seconds`, of each of several answers to one image, after the first answer;
- `peak_bytes`, the most memory that the process had until then, if the system reports it;
- `probabilities` of all images, unless THREADS is 1, which only measures;
- `precision` in which the runtime computes, if the runtime chose it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

_BATCH = 32  # images: more than one, to find a batch size that is frozen into a file
_REPEATS = 50
_SECONDS = 3.0  # One image is measured no longer than this, so a large network takes no minutes.

Runner = Callable[[np.ndarray], np.ndarray]
_precision: dict[str, str] = {}

# Python refuses to import a module whose entry is None.
_modules: dict[str, ModuleType | None] = sys.modules  # pyright: ignore[reportAssignmentType]


def _saved_model(path: str, threads: int) -> Runner:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = tf.saved_model.load(path)
    serve = model.signatures["serving_default"]
    # The default argument keeps the model alive while its signature is in use.
    return lambda images, _model=model: serve(images=tf.constant(images))["probabilities"].numpy()


def _litert(path: str, threads: int) -> Runner:
    _modules["tensorflow"] = None
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    serve = interpreter.get_signature_runner("serving_default")
    takes_uint8 = serve.get_input_details()["images"]["dtype"] == np.uint8

    def run(images: np.ndarray) -> np.ndarray:
        images = np.rint(images).astype(np.uint8) if takes_uint8 else images
        (answers,) = serve(images=images).values()  # such as probabilities
        return answers

    return run


def _onnx(path: str, threads: int) -> Runner:
    _modules["tensorflow"] = None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["probabilities"], {"images": images})[0])


def _openvino(path: str, threads: int) -> Runner:
    _modules["tensorflow"] = None
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads}
    model = openvino.Core().compile_model(f"{path}/model.xml", "CPU", options)
    chosen: Any = model.get_property("INFERENCE_PRECISION_HINT")
    _precision["precision"] = chosen.to_string()
    return lambda images: model({"images": images})["probabilities"]


RUNNERS = {"saved_model": _saved_model, "litert": _litert, "onnx": _onnx, "openvino": _openvino}


def _peak_bytes() -> int | None:
    """Return the most memory that this process had at a time; None on Windows."""
    if sys.platform == "linux":
        # getrusage would count the peak of the process that started this one as well.
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(kind: str, path: str, threads: str, images: str, output: str) -> None:
    _modules["keras"] = _modules["keras_vgg"] = None
    run = RUNNERS[kind](path, int(threads))
    stored = np.load(images, mmap_mode="r")
    one = np.array(stored[:1])
    run(one)  # The first answer takes longer: the runtime prepares itself.
    seconds: list[float] = []
    while len(seconds) < _REPEATS and (len(seconds) < 5 or sum(seconds) < _SECONDS):
        start = time.perf_counter()
        run(one)
        seconds.append(time.perf_counter() - start)
    arrays: dict[str, Any] = {"seconds": seconds, **_precision}
    if (peak_bytes := _peak_bytes()) is not None:
        arrays["peak_bytes"] = peak_bytes
    if threads != "1":
        starts = range(0, len(stored), _BATCH)
        answers = [run(np.array(stored[start : start + _BATCH])) for start in starts]
        arrays["probabilities"] = np.concatenate(answers)
    with open(output, "wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])

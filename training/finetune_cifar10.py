"""Fine-tune VGG-16 on a few images of CIFAR-10, and compare with what one would do otherwise.

    python training/finetune_cifar10.py --data DIR --weights FILE --classes 5 --images 120
    python training/finetune_cifar10.py --data DIR --weights FILE --classes 10 --images 100

DIR holds train/<class>/<image>; FILE is VGG-16's convolutions, as Keras publishes them. For each
seed, a fifth of the images is held out as the test split, and read once. The same training and test
images, at the size that the command chose, go to

- `keras-vgg finetune FOLDER --init FILE`, with nothing else said;
- a linear probe: scikit-learn's logistic regression on the pooled, standardised features of the
  frozen base, its strength chosen on the validation images;
- keras.applications' usual script: a dense layer on the frozen base with Adam, then block 5 too at
  1e-5, with random mirror images and rotations, for as much processor time as the first.

Measured with 5 classes x 120 images, seeds 3 to 5: 80.83 %, 75.00 % and 73.06 % of 120 test images,
in this order, in 343 s of user time for the command. With 10 classes x 100, seed 3: 68.50 %,
63.00 % and 42.50 % of 200 test images, in 396 s. training/README.md has the conditions.

Times are the user time of the processes, because the machine does other work at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from keras_vgg import hardware
from keras_vgg.files import write_json

TERMINATED = 143  # the exit status after SIGTERM


def make_folder(data: Path, folder: Path, classes: int, images: int) -> Path:
    """Link the first images of the first classes, by name."""
    for source in sorted((data / "train").iterdir())[:classes]:
        (folder / source.name).mkdir(parents=True, exist_ok=True)
        for path in sorted(source.iterdir())[:images]:
            link = folder / source.name / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    return folder


def run_finetune(folder: Path, weights: Path, workdir: Path, seed: int) -> dict[str, Any]:
    """Run the command in a process of its own.

    Raises:
        SystemExit: the command failed, or a process that was ended had begun the run, so that the
            processor time of the whole is not known.
    """
    if workdir.exists():
        raise SystemExit(f"{workdir} was begun earlier, and its time is not known: remove it")
    command = [sys.executable, "-m", "keras_vgg.cli", "finetune", str(folder)]
    command += ["--init", str(weights), "--workdir", str(workdir), "--seed", str(seed), "--quiet"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    while (status := subprocess.run(command, check=False).returncode) == TERMINATED:
        print("the command was ended; it is repeated, and resumes", flush=True)
    if status:
        raise SystemExit(status)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
    seconds = time.perf_counter() - started
    from keras_vgg import Run
    from keras_vgg.runs import evaluate_run

    run = Run.open(workdir)
    return {
        "test": run.results["test"]["top1"],
        "validation": run.results["validation_accuracy"],
        "epoch": run.results["best_epoch"],
        "image_size": run.recipe.image_size,
        "user_seconds": round(spent, 1),
        "seconds": round(seconds, 1),
        # The dense protocol at the image's own size: the average over the mirror image.
        "test_with_mirror_image": evaluate_run(run, protocol="dense").top1,
    }


def load_splits(folder: Path, seed: int, size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return float32 [n, size, size, 3] in [0, 255] and int [n] of each split."""
    from functools import partial

    from keras_vgg import augment, data

    source = data.load_source(f"folder:{folder}", seed=seed)
    transform = partial(augment.eval_image, size=size, scale=size)
    splits = {}
    for name, split in source.splits().items():
        batches = [*data.evaluation_dataset(split, 64, transform).as_numpy_iterator()]
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        splits[name] = images.astype("float32"), labels
    return splits


def run_probe(splits: dict[str, tuple[np.ndarray, np.ndarray]], weights: Path) -> dict[str, Any]:
    from keras_vgg import VGG16, linear_probe

    started = time.process_time()
    base: Any = VGG16(
        include_top=False,
        weights=weights,
        input_shape=splits["train"][0].shape[1:],
        pooling="avg",
        include_preprocessing=True,
    )
    features = {name: base.predict(x, verbose=0) for name, (x, _) in splits.items()}
    x, y = features["train"], splits["train"][1]
    probe = linear_probe(x, y, features["validation"], splits["validation"][1])
    return {
        "test": probe.score(features["test"], splits["test"][1]),
        "validation": probe.validation_accuracy,
        "C": probe.C,
        "user_seconds": round(time.process_time() - started, 1),
    }


def run_keras(
    splits: dict[str, tuple[np.ndarray, np.ndarray]], weights: Path, seconds: float, seed: int
) -> dict[str, Any]:
    """Train for this much processor time, a half of it on the dense layer alone."""
    import keras

    keras.utils.set_random_seed(seed)
    started = time.process_time()
    classes = int(splits["train"][1].max()) + 1
    shape = splits["train"][0].shape[1:]
    base = keras.applications.VGG16(include_top=False, weights=str(weights), input_shape=shape)
    inputs = keras.Input(shape)
    x: Any = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.applications.vgg16.preprocess_input(x)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    model: Any = keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(x))
    best: dict[str, Any] = {"val_accuracy": -1.0, "epochs": 0}

    class Clock(keras.callbacks.Callback):
        """Keep the best epoch by validation accuracy, and stop when the time is spent."""

        def __init__(self, end: float) -> None:
            super().__init__()
            self.end = end

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            if time.process_time() - started > self.end:
                model.stop_training = True

        def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
            best["epochs"] += 1
            if (logs or {})["val_accuracy"] >= best["val_accuracy"]:
                best.update(val_accuracy=(logs or {})["val_accuracy"], weights=model.get_weights())
            if time.process_time() - started > self.end:
                model.stop_training = True

    for rate, share in ((1e-3, 0.5), (1e-5, 1.0)):
        base.trainable = share == 1.0
        for layer in base.layers:
            layer.trainable = share == 1.0 and layer.name.startswith("block5")
        model.compile(
            keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        model.fit(
            *splits["train"],
            validation_data=splits["validation"],
            batch_size=32,
            epochs=1000,
            callbacks=[Clock(share * seconds)],
            verbose=0,
        )
    model.set_weights(best["weights"])
    hits = model.predict(splits["test"][0], verbose=0).argmax(1) == splits["test"][1]
    return {
        "test": float(hits.mean()),
        "validation": best["val_accuracy"],
        "epochs": best["epochs"],
        "user_seconds": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train/<class>/")
    parser.add_argument("--weights", type=Path, required=True, help="VGG-16's convolutions, .h5")
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--images", type=int, default=120, help="images of each class")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--workdir", type=Path, default=Path("runs/finetune_cifar10"))
    arguments = parser.parse_args()
    hardware.prepare_environment()
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    workdir = arguments.workdir / f"{arguments.classes}x{arguments.images}"
    folder = make_folder(
        arguments.data, workdir / "photographs", arguments.classes, arguments.images
    )
    results = workdir / "results.json"
    measured = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    by_seed: dict[int, dict[str, Any]] = {row["seed"]: row for row in measured}
    rows = [by_seed.setdefault(seed, {"seed": seed}) for seed in arguments.seeds]
    for row in rows:
        seed = row["seed"]
        if "finetune" not in row:
            row["finetune"] = run_finetune(folder, arguments.weights, workdir / f"seed{seed}", seed)
            write_json(results, [*by_seed.values()])
        splits = load_splits(folder, seed, row["finetune"]["image_size"])
        if "probe" not in row:
            row["probe"] = run_probe(splits, arguments.weights)
            write_json(results, [*by_seed.values()])
        if "keras.applications" not in row:
            seconds = row["finetune"]["user_seconds"]
            row["keras.applications"] = run_keras(splits, arguments.weights, seconds, seed)
            write_json(results, [*by_seed.values()])
        print(json.dumps(row, indent=2), flush=True)
    for name in ("finetune", "probe", "keras.applications"):
        tests = [row[name]["test"] for row in rows]
        print(f"{name}: test {np.mean(tests):.2%} ({', '.join(f'{t:.2%}' for t in tests)})")


if __name__ == "__main__":
    main()

"""What benchmarks/gpu.py runs in processes of its own: the speed of a step, and made photographs.

python benchmarks/gpu_step.py matrix|keras_vgg|torchvision --batch N --json FILE [--tiny]
python benchmarks/gpu_step.py photographs --cifar DIR --count N --json FOLDER
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from libraries import channel_statistics  # beside this file

from keras_vgg import hardware
from keras_vgg.files import write_json
from keras_vgg.recipe import Recipe

CLASSES = 1000
REPEATS, SECONDS = 5, 3.0
_SIDES = (375, 500)  # the most common size of an ImageNet photograph


def rates(take: Callable[[int], None], amount: float, seconds: float) -> list[float]:
    """Return the speed of each of five repeats, in `amount` a second.

    Args:
        take: Takes a number of steps, and returns when the device has finished them.
        amount: What one step does, such as the images of a batch.
        seconds: About how long a repeat takes.
    """
    take(3)  # compiles
    start = time.perf_counter()
    take(3)
    steps = max(1, round(3 * seconds / (time.perf_counter() - start)))
    speeds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        take(steps)
        speeds.append(amount * steps / (time.perf_counter() - start))
    return speeds


def matrix(tiny: bool) -> dict[str, Any]:
    """Return the device and its rate for bfloat16 matrices, in 10^12 operations a second."""
    import jax
    import jax.numpy as jnp

    size, products = (256, 2) if tiny else (8192, 10)
    first = jnp.ones((size, size), jnp.bfloat16)
    second = jnp.full((size, size), 1 / size, jnp.bfloat16)
    chain = jax.jit(
        lambda a, b: jax.lax.fori_loop(0, products, lambda _, x: (x @ b).astype(jnp.bfloat16), a)
    )

    def take(steps: int) -> None:
        result = first
        for _ in range(steps):
            result = chain(result, second)
        result.block_until_ready()

    speeds = rates(take, products * 2 * size**3 / 1e12, 0.1 if tiny else SECONDS)
    versions = f"JAX {jax.__version__}, Python {platform.python_version()}"
    device = jax.devices()[0].device_kind
    return {"tflops": statistics.median(speeds), "device": device, "versions": versions}


def keras_vgg_step(batch: int, tiny: bool) -> dict[str, Any]:
    """Return the images a second of `model.fit`, as a training compiles it."""
    hardware.prepare_environment()
    import keras

    from keras_vgg import fit

    recipe = Recipe(
        configuration="D",
        width_multiplier=1 / 16 if tiny else 1.0,
        batch_norm=False,
        hidden_units=16 if tiny else 4096,
        image_size=32 if tiny else 224,
        batch_size=batch,
    )
    engine = hardware.choose_engine(recipe)
    model = fit.build_model(recipe, CLASSES, channel_statistics(), engine.precision)
    fit.compile_model(model, recipe, engine)
    images, labels = _batch(batch, recipe.image_size)
    on_device = tuple(
        keras.ops.convert_to_tensor(values)
        for values in (images, np.eye(CLASSES, dtype="float32")[labels])
    )

    def take(steps: int) -> None:
        batches = (on_device for _ in range(steps))
        # Keras documents numbers for verbose, but annotates it as str.
        model.fit(batches, steps_per_epoch=steps, verbose=0)  # pyright: ignore[reportArgumentType]

    speeds = rates(take, batch, 0.2 if tiny else SECONDS)
    return {"images_per_second": speeds, "engine": str(engine)}


def torchvision_step(batch: int, tiny: bool) -> dict[str, Any]:
    """Return the images a second of torchvision's vgg16 at its best."""
    missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    if missing:
        return {"absent": f"{' and '.join(missing)} is not installed"}
    import torch
    import torchvision  # pyright: ignore[reportMissingImports]  # no requirement

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    network = torchvision.models.vgg16(num_classes=CLASSES)
    network = network.to(device, memory_format=torch.channels_last).train()
    model: Any = network if tiny else torch.compile(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    images, labels = _batch(batch, 32 if tiny else 224)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, memory_format=torch.channels_last)
    y = torch.from_numpy(labels).to(device)

    def take(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device, dtype=torch.bfloat16):
                scaled = (x.float() - 120.0) / 60.0
                loss = torch.nn.functional.cross_entropy(model(scaled), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    speeds = rates(take, batch, 0.2 if tiny else SECONDS)
    return {
        "images_per_second": speeds,
        "versions": f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}",
    }


def _batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    return images, generator.integers(0, CLASSES, batch)


def make_photographs(cifar: Path, count: int, folder: Path) -> None:
    """Write JPEG files of the size of ImageNet's photographs, from CIFAR-10's images.

    Twelve images side by side are enlarged to 500x375, and noise makes a file as large as that of
    a photograph, about 110 kB.
    """
    from PIL import Image

    generator = np.random.default_rng(0)
    files = sorted(cifar.rglob("*.jp*g")) or sorted(cifar.rglob("*.png"))
    if not files:
        raise SystemExit(f"gpu: there are no images in {cifar}")
    folder.mkdir(parents=True, exist_ok=True)
    height, width = _SIDES
    for number in range(count):
        chosen = generator.choice(len(files), 12)
        tiles = [np.asarray(Image.open(files[i]).convert("RGB").resize((32, 32))) for i in chosen]
        mosaic = np.concatenate(
            [np.concatenate(tiles[row : row + 4], axis=1) for row in (0, 4, 8)], axis=0
        )
        large = Image.fromarray(mosaic).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(large) + generator.normal(0, 12, (height, width, 1))
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:04}.jpg", quality=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=("matrix", "keras_vgg", "torchvision", "photographs"))
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, help="file of the result, or folder")
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if arguments.kind == "photographs":
        make_photographs(arguments.cifar, arguments.count, arguments.json)
        return
    if arguments.kind == "matrix":
        result = matrix(arguments.tiny)
    elif arguments.kind == "keras_vgg":
        result = keras_vgg_step(arguments.batch, arguments.tiny)
    else:
        result = torchvision_step(arguments.batch, arguments.tiny)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.json, result)


if __name__ == "__main__":
    main()

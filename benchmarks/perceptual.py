"""Compare LPIPS and DISTS with the packages lpips and DISTS-pytorch: the values, and the speed.

python benchmarks/perceptual.py agreement PHOTOGRAPHS WEIGHTS [--packages FOLDER] [--side 64]
python benchmarks/perceptual.py speed WEIGHTS [--packages FOLDER] [--rounds 3]

WEIGHTS is a file with VGG-16's ImageNet convolutions. Both sides get the same convolutions and
torchvision's preprocessing. `agreement` compares every photograph, cut to --side pixels, with its
distortions: blur, noise, JPEG and shift at three strengths each. It also compares gradients.
`speed` times a batch of 32 pairs at 256 pixels; the engines are processes that take turns. It
prints the time of the clock, and the processor time, which says more on a machine with other work.

The packages need torchvision, and --packages names a folder that holds all three:
pip install --no-deps --target FOLDER lpips==0.1.4 DISTS-pytorch==0.1 torchvision
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
DISTORTIONS = {
    "blur": (1.0, 2.0, 4.0),  # deviation in pixels
    "noise": (10.0, 25.0, 50.0),  # deviation of 255
    "JPEG": (50, 20, 5),  # quality
    "shift": (1, 3, 8),  # pixels
}


def photographs(folder: Path, side: int) -> Iterator[np.ndarray]:
    """Yield the middle of every photograph, uint8 [side + 8, side + 8, 3], for a shift of 8."""
    from PIL import Image

    whole = side + 8
    for path in sorted(folder.iterdir()):
        image = Image.open(path).convert("RGB")
        scale = 2 * whole / min(image.size)
        image = image.resize([max(whole, round(scale * n)) for n in image.size])
        left, top = ((n - whole) // 2 for n in image.size)
        yield np.asarray(image.crop((left, top, left + whole, top + whole)))


def distorted(image: np.ndarray, kind: str, strength: float, seed: int) -> np.ndarray:
    """Return a distortion of `photographs`' image, uint8 [side, side, 3]."""
    from PIL import Image, ImageFilter

    side = len(image) - 8
    if kind == "shift":
        start = int(strength)
        return image[start : start + side, start : start + side]
    image = image[:side, :side]
    if kind == "blur":
        blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(strength))
        return np.asarray(blurred)
    if kind == "noise":
        noise = np.random.default_rng(seed).normal(0, strength, image.shape)
        return np.clip(np.rint(image + noise), 0, 255).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(strength))
    return np.asarray(Image.open(file))


def trunk(weights: str | Path) -> Any:
    """Return VGG-16 without the top, whose preprocessing is torchvision's.

    The first kernel of a file for BGR minus a mean is changed so that it takes RGB over a
    deviation. Then the network is almost the file's; on both sides it is the same.
    """
    from keras_vgg import VGG16, ImagePreprocessing
    from keras_vgg.layers import IMAGENET_MEAN

    preprocessing = ImagePreprocessing.torchvision()
    network = VGG16(include_top=False, weights=weights)
    model = VGG16(include_top=False, weights=None, include_preprocessing=preprocessing)
    arrays = network.get_weights()
    mean, std, own_mean = (
        np.asarray(values, "float32")[:, None]
        for values in (preprocessing.mean, preprocessing.std, IMAGENET_MEAN)
    )
    kernel = arrays[0][:, :, ::-1]  # RGB
    arrays[1] = arrays[1] + (kernel * (mean - own_mean)).sum((0, 1, 2))
    arrays[0] = kernel * std
    model.set_weights(arrays)
    return model


def import_packages(folder: Path | None) -> tuple[Any, Any, Any]:
    """Return the modules torch, lpips and DISTS_pytorch.

    Raises:
        ImportError: a package is absent.
    """
    import torch

    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        import torchvision  # pyright: ignore[reportMissingImports]
    except RuntimeError:
        # torchvision for CUDA without CUDA has no kernels, and its import asks for two. No network
        # here uses them.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        torchvision_operators.append(library)
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        import torchvision  # pyright: ignore[reportMissingImports]

    vgg16 = torchvision.models.vgg16
    # The packages ask for weights to download; they get those of `trunk` instead.
    torchvision.models.vgg16 = lambda *_, **__: vgg16(weights=None)
    import DISTS_pytorch  # pyright: ignore[reportMissingImports]
    import lpips  # pyright: ignore[reportMissingImports]

    return torch, lpips, DISTS_pytorch


torchvision_operators: list[Any] = []  # a library's operators live as long as it does


def peers(model: Any, folder: Path | None) -> dict[str, Any]:
    """Return the packages' metrics with a model's convolutions, as modules of PyTorch."""
    torch, lpips, DISTS_pytorch = import_packages(folder)
    arrays = model.get_weights()
    metrics = {"LPIPS": lpips.LPIPS(net="vgg", verbose=False)}
    metrics["DISTS"] = DISTS_pytorch.DISTS(load_weights=False)
    package = Path(DISTS_pytorch.__file__).parent
    learned = torch.load(package / "weights.pt", weights_only=True)
    metrics["DISTS"].alpha.data, metrics["DISTS"].beta.data = learned["alpha"], learned["beta"]
    for metric in metrics.values():
        network = getattr(metric, "net", metric)
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        convolutions = [m for m in convolutions if m.kernel_size == (3, 3)]
        for i, convolution in enumerate(convolutions):
            kernel = arrays[2 * i].transpose(3, 2, 0, 1)
            convolution.weight.data = torch.tensor(np.ascontiguousarray(kernel))
            convolution.bias.data = torch.tensor(arrays[2 * i + 1])
        assert 2 * len(convolutions) == len(arrays)
    return metrics


def peers_distances(
    name: str, metric: Any, first: np.ndarray, second: np.ndarray, gradient: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return a package's distances [n] of images in [0, 255], and the gradient of their sum."""
    import torch

    a, b = (
        torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), dtype=torch.float32) / 255
        for images in (first, second)
    )
    b.requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        if name == "LPIPS":
            values = metric(a, b, normalize=True)
        else:
            values = metric(a, b, require_grad=gradient)
    values = values.reshape(-1)
    slope = None
    if gradient:
        (slope,) = torch.autograd.grad(values.sum(), b)
        slope = slope.numpy().transpose(0, 2, 3, 1) / 255
    return values.detach().numpy(), slope


def own_gradient(metric: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the gradient of our distances' sum with respect to the second images."""
    import tensorflow as tf

    a, b = (tf.constant(images, "float32") for images in (first, second))
    with tf.GradientTape() as tape:
        tape.watch(b)
        total = tf.reduce_sum(metric(a, b))
    return np.asarray(tape.gradient(total, b))


def agreement(
    images: Sequence[np.ndarray], weights: str | Path, folder: Path | None, every: int = 1
) -> dict[str, tuple[int, float, float, float]]:
    """Compare the values of all pairs, and the gradients of every n-th photograph's.

    Returns:
        The metric's name -> pairs, largest difference, least cosine of gradients, largest value.
    """
    from keras_vgg import DISTS, LPIPS

    model = trunk(weights)
    ours, theirs = {"LPIPS": LPIPS(model), "DISTS": DISTS(model)}, peers(model, folder)
    pairs, results = 0, {}
    differences = {name: [0.0] for name in ours}
    cosines, largest = {name: [1.0] for name in ours}, dict.fromkeys(ours, 0.0)
    for number, image in enumerate(images):
        side = len(image) - 8
        kinds = [(kind, s) for kind, strengths in DISTORTIONS.items() for s in strengths]
        second = np.stack([distorted(image, kind, s, number) for kind, s in kinds])
        first = np.repeat(image[None, :side, :side], len(second), axis=0)
        pairs += len(second)
        for name, metric in ours.items():
            gradient = number % every == 0
            expected, slope = peers_distances(name, theirs[name], first, second, gradient)
            found = metric(first, second)
            differences[name].append(float(np.abs(found - expected).max()))
            largest[name] = max(largest[name], float(found.max()))
            if slope is not None:
                own = own_gradient(metric, first, second)
                for a, b in zip(
                    own.reshape(len(own), -1), slope.reshape(len(own), -1), strict=True
                ):
                    lengths = np.linalg.norm(a) * np.linalg.norm(b)
                    cosines[name].append(float(a.astype(float) @ b / lengths))
        results = {
            name: (pairs, max(differences[name]), min(cosines[name]), largest[name])
            for name in ours
        }
        print(f"{number + 1} photographs: {results}", file=sys.stderr, flush=True)
    return results


_measured: Any  # set by _prepare in an engine's process


def _prepare(engine: str, weights: str, folder: Path | None) -> None:
    global _measured
    if engine.startswith("keras_vgg"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        from keras_vgg import DISTS, LPIPS

        model = trunk(weights)
        _measured = LPIPS(model) if "LPIPS" in engine else DISTS(model)
    else:
        import torch

        torch.set_num_threads(THREADS)
        name = "LPIPS" if engine == "lpips" else "DISTS"
        metric = peers(trunk(weights), folder)[name]
        _measured = lambda a, b: peers_distances(name, metric, a, b)[0]  # noqa: E731


def _seconds(count: int, side: int) -> tuple[float, float]:
    """Return the seconds of one batch by the clock, and those of all processors."""
    generator = np.random.default_rng(0)
    a, b = (generator.integers(0, 256, (count, side, side, 3)).astype("float32") for _ in range(2))
    start, busy = time.perf_counter(), time.process_time()
    _measured(a, b)
    return time.perf_counter() - start, time.process_time() - busy


def speed(
    weights: str, folder: Path | None, metrics: Sequence[str], rounds: int, count: int, side: int
) -> None:
    context = multiprocessing.get_context("spawn")
    packages = {"LPIPS": "lpips", "DISTS": "DISTS-pytorch"}
    engines = [name for metric in metrics for name in (f"keras_vgg {metric}", packages[metric])]
    pools = {name: ProcessPoolExecutor(1, context) for name in engines}
    for name, pool in pools.items():
        pool.submit(_prepare, name, weights, folder).result()
        for small in (1, 2):  # TensorFlow's function is for batches of any size after two of them
            pool.submit(_seconds, small, side).result()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, pool in pools.items():
            seconds[name].append(pool.submit(_seconds, count, side).result())
    for own, peer in zip(engines[::2], engines[1::2], strict=True):
        for place, kind in enumerate(("clock", "processors")):
            values = {name: [s[place] for s in seconds[name]] for name in (own, peer)}
            ratios = [b / a for a, b in zip(values[own], values[peer], strict=True)]
            for name in (own, peer):
                rounded = " ".join(f"{s:.1f}" for s in values[name])
                print(f"{name:16} {statistics.median(values[name]):7.1f} s, {kind} ({rounded})")
            print(f"  {statistics.median(ratios):.2f} times as fast as {peer}", flush=True)
    for pool in pools.values():
        pool.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    values = commands.add_parser("agreement", help="compare the values and the gradients")
    values.add_argument("photographs", type=Path, help="folder of photographs")
    times = commands.add_parser("speed", help="time a batch of 32 pairs at 256 pixels")
    for command in (values, times):
        command.add_argument("weights", help="file with VGG-16's convolutions")
        command.add_argument("--packages", type=Path, help="folder with lpips and the others")
    values.add_argument("--side", type=int, default=64, help="side of the images, in pixels (64)")
    values.add_argument("--first", type=int, help="compare only so many photographs")
    values.add_argument("--every", type=int, default=10, help="gradients of every n-th one (10)")
    times.add_argument("--rounds", type=int, default=3, help="turns of each engine (3)")
    times.add_argument("--count", type=int, default=32, help="pairs in a batch (32)")
    times.add_argument("--size", type=int, default=256, help="side of the images, in pixels (256)")
    times.add_argument(
        "--metrics", nargs="+", choices=("LPIPS", "DISTS"), default=("LPIPS", "DISTS")
    )
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if options.command == "speed":
        settings = (options.metrics, options.rounds, options.count, options.size)
        speed(options.weights, options.packages, *settings)
        return
    images = list(photographs(options.photographs, options.side))[: options.first]
    results = agreement(images, options.weights, options.packages, options.every)
    for name, (pairs, difference, cosine, largest) in results.items():
        print(
            f"{name}: {pairs:,} pairs, values up to {largest:.3f}: largest difference "
            f"{difference:.1e}, least cosine of gradients {cosine:.7f}"
        )


if __name__ == "__main__":
    main()

"""Compare the augmentation of single images with torchvision's: speed, or means and ranges.

python benchmarks/augmentation.py DIR [--rounds 5] [--seconds 6] [--json OUT]
python benchmarks/augmentation.py DIR --operations [--json OUT]

DIR holds photographs (JPEG files, at any depth). Both make uint8 batches of 128 crops of 224x224 of
the same files: a crop of 8 to 100 % of the area and of a ratio of 3/4 to 4/3, mirrored or not, and
then nothing, TrivialAugment, RandAugment, or an affine map (15 degrees, shear, translation), all
bilinear. keras_vgg uses as many threads as there are cores, PyTorch's DataLoader as many processes.
torchvision runs on Pillow's images and on tensors, whichever is faster counts. In each round, the
pipelines run one after another for some seconds, each in a new process.

--operations applies every operation of both policies, at several levels and both signs, to the
photographs at 224x224, and compares mean, smallest and largest value of each channel of each image.
It also draws the fields of a recipe that move pixels, and compares the pixels on tensors: with one
call of torchvision's affine, of the matrix that the documentation of these fields states, or for a
crop that is not turned with resized_crop, antialiased if the crop is shrunk more than twofold. This
needs PyTorch and torchvision.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline import BATCH, SIZE, cores, files_in, images_per_second, in_new_process

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
ROTATION, SHEAR, TRANSLATION = 15.0, 0.1, 0.1
CASES = ("crop", "trivial", "rand", "affine")
BACKENDS = ("keras_vgg", "torchvision, Pillow", "torchvision, tensors")
LEVELS = (9, 30)  # of 0 to 30
DRAWS = 8  # of each field
ENLARGED = (280, 280)
FIELDS: dict[str, dict[str, Any]] = {
    "rotation": {"rotation": ROTATION},
    "shear": {"shear": SHEAR},
    "translation": {"translation": TRANSLATION},
    "vertical_flip": {"vertical_flip": True},
    "all of these, and scale": {
        "rotation": ROTATION, "shear": SHEAR, "translation": TRANSLATION, "vertical_flip": True,
        "scale": ENLARGED,
    },
    "scale": {"scale": ENLARGED},
    "crop_area, crop_ratio": {"crop_area": AREA, "crop_ratio": RATIO},
}  # fmt: skip

# torchvision's name of each operation.
NAMES = {
    "rotate": "Rotate", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "identity": "Identity", "brightness": "Brightness",
    "saturation": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}  # fmt: skip


# --- speed -----------------------------------------------------------------------------------


def ours(files: list[str], case: str) -> Iterator:
    from functools import partial

    import numpy as np
    import tensorflow as tf

    from keras_vgg import augment, data

    repeated = np.array(files * -(-max(4096, len(files)) // len(files)), dtype=object)
    labels = np.zeros(len(repeated), np.int32)
    split = data.Split("train", len(repeated), labels=labels, paths=repeated)
    affine = {"rotation": ROTATION, "shear": SHEAR, "translation": TRANSLATION}
    options: dict[str, dict[str, Any]] = {
        "crop": {},
        "trivial": {"policy": augment.trivial_augment()},
        "rand": {"policy": augment.rand_augment()},
        "affine": affine,
    }
    transform = partial(
        augment.train_image, size=SIZE, crop_area=AREA, crop_ratio=RATIO, **options[case]
    )
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = cores()
    return iter(data.training_dataset(split, BATCH, transform, seed=0).with_options(threads))


def torchvision_images(files: list[str], case: str, on_tensors: bool) -> Iterator:
    import math

    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode, v2  # pyright: ignore[reportMissingImports]

    bilinear = {"interpolation": InterpolationMode.BILINEAR}
    degrees = math.degrees(math.atan(SHEAR))
    then = {
        "crop": [],
        "trivial": [v2.TrivialAugmentWide(**bilinear)],
        "rand": [v2.RandAugment(**bilinear)],
        "affine": [
            v2.RandomAffine(
                ROTATION,
                translate=(TRANSLATION, TRANSLATION),
                shear=(-degrees, degrees, -degrees, degrees),
                **bilinear,
            )
        ],
    }[case]
    first, last = ([v2.PILToTensor()], []) if on_tensors else ([], [v2.PILToTensor()])
    crop = v2.RandomResizedCrop(SIZE, AREA, RATIO)
    transform = v2.Compose([*first, crop, v2.RandomHorizontalFlip(), *then, *last])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(files[index % len(files)]).convert("RGB"))

    loader = torch.utils.data.DataLoader(Images(), BATCH, num_workers=cores(), shuffle=True)
    return iter(loader)


def batches_of(backend: str, case: str, files: list[str]) -> Iterator:
    if backend == "keras_vgg":
        return ours(files, case)
    return torchvision_images(files, case, on_tensors=backend.endswith("tensors"))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, dict[str, list[float]]] = {
        case: {backend: [] for backend in BACKENDS} for case in arguments.cases
    }
    for number in range(arguments.rounds):
        for case in arguments.cases:
            for backend in BACKENDS:
                speed = in_new_process(__file__, [backend, case], arguments)
                runs[case][backend].append(speed)
                print(f"round {number + 1}, {case}, {backend}: {speed:.0f}", file=sys.stderr)
    print(f"{cores()} cores; images/s: median (range) of {arguments.rounds} runs\n")
    print(f"| case | {' | '.join(BACKENDS)} | ratio to the faster |\n|---|---|---|---|---|")
    for case, speeds in runs.items():
        cells = [
            f"{statistics.median(speeds[backend]):.0f} ({min(speeds[backend]):.0f} to "
            f"{max(speeds[backend]):.0f})"
            for backend in BACKENDS
        ]
        # A ratio for each round, because the machine's speed drifts.
        rounds = list(zip(*speeds.values(), strict=True))
        ratios = [own / max(others) for own, *others in rounds]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {case} | {' | '.join(cells)} | {ratio} |")
    return {"images_per_second": runs}


# --- means and ranges ------------------------------------------------------------------------


def compare_operations(files: list[str], levels: Sequence[int]) -> dict[str, Any]:
    import numpy as np
    import tensorflow as tf
    import torch
    from torchvision import transforms  # pyright: ignore[reportMissingImports]

    from keras_vgg import augment
    from keras_vgg.augment import policies

    spaces = {
        "trivial": (
            augment.trivial_augment(),
            transforms.TrivialAugmentWide()._augmentation_space(policies.LEVELS),
        ),
        "rand": (
            augment.rand_augment(),
            transforms.RandAugment()._augmentation_space(policies.LEVELS, (SIZE, SIZE)),
        ),
    }
    photographs = [tf.io.decode_jpeg(tf.io.read_file(path), 3).numpy() for path in files]
    squares = [np.rint(augment.eval_image(p, size=SIZE, scale=256)) for p in photographs]
    images = np.stack(squares).astype(np.uint8)
    pixels = tf.data.Dataset.from_tensor_slices(images)
    torch.set_num_threads(1)
    table: dict[str, Any] = {}
    print("Largest differences from torchvision on Pillow's images, and on tensors\n")
    print("| policy, operation | mean | smallest, largest | mean | smallest, largest |")
    print("|---|---|---|---|---|")
    for policy_name, (policy, space) in spaces.items():
        strengths = policies.strengths(policy, SIZE)
        for number, name in enumerate(policies.OPERATIONS):
            magnitudes, signed = space[NAMES[name]]
            largest = np.zeros([2, 2])
            for level in levels if magnitudes.ndim else (0,):
                magnitude = float(magnitudes[level]) if magnitudes.ndim else 0.0
                if "translate" in name:  # whole pixels; torchvision would cut 15.999999 to 15
                    magnitude = int(magnitude + 1e-4)
                np.testing.assert_allclose(strengths[number, level], magnitude, atol=1e-4)
                for sign in (1, -1) if signed else (1,):
                    strength = sign * strengths[number, level] + (name in policies.FACTORS)
                    operation = policies.Operation(
                        tf.constant(number), tf.constant(strength, tf.float32)
                    )
                    results = pixels.map(lambda x, drawn=operation: policies.apply(drawn, x))
                    result = results.batch(len(images)).get_single_element().numpy()
                    for backend, theirs in enumerate(peers(images, name, sign * magnitude)):
                        difference = differences(result, theirs)
                        largest[backend] = np.maximum(largest[backend], difference)
            cells = " | ".join(f"{mean:.2f} | {extreme:.0f}" for mean, extreme in largest)
            print(f"| {policy_name}, {name} | {cells} |", flush=True)
            table[f"{policy_name}, {name}"] = largest.tolist()
    print("\nPixels' mean absolute difference from torchvision on tensors, of the worst image\n")
    print(f"| field, {DRAWS} draws | mean absolute difference |\n|---|---|")
    fields = {}
    for name in FIELDS:
        sources = photographs if "crop_area" in FIELDS[name] else images
        fields[name] = max(field_differences(name, image) for image in sources)
        print(f"| {name} | {fields[name]:.3f} |", flush=True)
    return {
        "photographs": len(files),
        "largest_difference": table,
        "largest_mean_difference_of_pixels": fields,
    }


def peers(images, name: str, magnitude: float) -> Iterator:
    """Yield torchvision's images [n, size, size, 3]: of Pillow's images, and of tensors."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms  # pyright: ignore[reportMissingImports]

    InterpolationMode, autoaugment = transforms.InterpolationMode, transforms.autoaugment

    def apply(image: Any) -> Any:
        bilinear = InterpolationMode.BILINEAR
        return autoaugment._apply_op(image, NAMES[name], magnitude, bilinear, None)

    yield np.stack([np.asarray(apply(Image.fromarray(image))) for image in images])
    yield apply(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def differences(images, others) -> tuple[float, float]:
    """Return the largest difference of a channel's mean, and of its smallest or largest value."""
    import numpy as np

    means = images.mean((1, 2)) - others.mean((1, 2))
    extremes = [
        extreme(images, axis=(1, 2)).astype(int) - extreme(others, axis=(1, 2))
        for extreme in (np.min, np.max)
    ]
    return abs(means).max(), max(abs(difference).max() for difference in extremes)


def field_differences(name: str, image) -> float:
    """Return the largest mean absolute difference of the draws of a field; uint8 [h, w, 3]."""
    import numpy as np
    import torch
    from torchvision.transforms import (  # pyright: ignore[reportMissingImports]
        InterpolationMode,
        _functional_tensor,
    )
    from torchvision.transforms.v2 import functional  # pyright: ignore[reportMissingImports]

    from keras_vgg import augment

    tensor, worst = torch.from_numpy(image).permute(2, 0, 1), 0.0
    for number in range(DRAWS):
        drawn = {"size": SIZE, "flip": False, **FIELDS[name]}
        seed: Any = [number, 0]
        result = augment.train_image(image, seed, **drawn).numpy()
        window = augment.train_window(image.shape[:2], seed, **drawn)
        ratio = image.shape[:2] / window.scaled.numpy()
        start = ratio * window.start.numpy()
        if name in ("scale", "crop_area, crop_ratio"):
            first, last = (np.rint(start + ratio * side).astype(int) for side in (0, SIZE))
            theirs = functional.resized_crop(
                tensor, *first, *(last - first), [SIZE, SIZE], InterpolationMode.BILINEAR,
                antialias=bool((ratio > 2).any()),
            )  # fmt: skip
        else:
            places = inverse_map(number, **FIELDS[name])
            places = ratio[:, None] * places + np.stack([0 * start, 0 * start, start], axis=1)
            # From the centre on, x before y.
            places[:, 2] += places[:, :2].sum(1) * SIZE / 2 - SIZE / 2
            matrix = places[::-1, [1, 0, 2]].ravel().tolist()
            theirs = _functional_tensor.affine(tensor, matrix, "bilinear", None)
        difference = np.abs(result.astype(int) - theirs.permute(1, 2, 0).numpy()).mean()
        worst = max(worst, float(difference))
    return worst


def inverse_map(
    number: int,
    rotation: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    vertical_flip: bool = False,
    **_: Any,
):
    """Return (row, column) of a crop -> that in the window: float64 [2, 3], as documented."""
    import numpy as np

    from keras_vgg.augment import training

    draws = training._view_draws([number, 0]).numpy().astype(float)  # pyright: ignore[reportArgumentType]
    signed = 2 * draws - 1
    cosine, sine = (f(np.radians(rotation * signed[0])) for f in (np.cos, np.sin))
    mirror = np.diag([-1.0 if vertical_flip and draws[5] < 0.5 else 1.0, 1.0])
    up, left = np.eye(2), np.eye(2)
    up[0, 1], left[1, 0] = -shear * signed[1], -shear * signed[2]
    counterclockwise = np.array([[cosine, -sine], [sine, cosine]])
    inverse = np.linalg.inv(counterclockwise @ left @ up @ mirror)
    center = np.full(2, SIZE / 2)
    offset = center - inverse @ (center + translation * SIZE * signed[3:5])
    return np.concatenate([inverse, offset[:, None]], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="a folder of JPEG photographs")
    parser.add_argument("--operations", action="store_true", help="compare means and ranges")
    parser.add_argument(
        "--levels", type=int, nargs="+", default=LEVELS, help="strengths to compare (9 30)"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each pipeline (5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of a run (6)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--only", nargs=2, help="run one pipeline and case once in this process")
    arguments = parser.parse_args()
    files = files_in(arguments.directory)
    if arguments.only:
        backend, case = arguments.only
        print(images_per_second(batches_of(backend, case, files), arguments.seconds))
        return
    figures = (
        compare_operations(files, arguments.levels) if arguments.operations else measure(arguments)
    )
    if arguments.json:
        environment = {"cores": cores(), "machine": platform.platform(), "files": len(files)}
        arguments.json.write_text(json.dumps({**environment, **figures}, indent=2))


if __name__ == "__main__":
    main()

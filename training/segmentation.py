"""Compare networks that name every pixel, on VGG-16's frozen ImageNet convolutions.

command:  python training/segmentation.py PHOTOS OBJECTS --weights FILE --workdir runs/segmentation
          (PHOTOS: a folder of photographs; OBJECTS: Fashion-MNIST's four IDX files; FILE: weights
          of VGG-16, or the word imagenet; --quick tries everything, and its figures mean nothing)
hardware: two CPU cores beside much other work, half an hour
result:   training/README.md

A scene is a part of a photograph with one to three articles of clothing on it. The articles are cut
out and tinted, so the class of every pixel is known. Training and test scenes have no articles and
no photographs in common.

The convolutions are frozen. So their maps are computed once, and `model.fit` trains the part of
each network behind them: a linear classifier of block5_pool's cells, FCN-32s, 16s and 8s, and a
U-Net. All have the same scenes, epochs and batches, which were chosen beforehand; the learning rate
of the U-Net was raised for its training loss. The test scenes choose nothing. The best network is
exported, and the files are verified on test scenes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported below

import keras  # noqa: E402
import numpy as np  # noqa: E402
from PIL.Image import Image  # noqa: E402
from rich.console import Console  # noqa: E402
from scenes import background, cut_out, paste, photo, photographs  # noqa: E402

from keras_vgg import data, dense, export, report, transfer  # noqa: E402
from keras_vgg.files import write_atomically, write_json  # noqa: E402

# Number of the class in Fashion-MNIST -> its name.
ARTICLES = {0: "T-shirt", 1: "trouser", 7: "sneaker", 8: "bag"}
CLASSES = ("background", *ARTICLES.values())
COLOURS = np.array([[0, 0, 0], [230, 60, 60], [60, 120, 240], [250, 190, 40], [70, 190, 90]])
# The maps that each network reads: levels of `dense.pyramid`, and pools.
LEVELS = ("P0", "P1", "P2", "P3", "P4")
POOLS = ("block5_pool", "block4_pool", "block3_pool")
READS = {
    "linear head": POOLS[:1],
    "FCN-32s": POOLS[:1],
    "FCN-16s": POOLS[:2],
    "FCN-8s": POOLS,
    "U-Net": (*LEVELS, POOLS[0]),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings. Sides are in pixels; `object_sides` is a share of a scene's side."""

    scene: int = 96
    object_sides: tuple[float, float] = (0.35, 0.65)
    train: int = 400
    test: int = 150
    batch_size: int = 10
    epochs: int = 12
    learning_rate: float = 1e-3
    hidden_units: int = 128
    decoder_filters: tuple[int, ...] = (64, 32, 16, 8, 8)
    seed: int = 0


# A U-Net normalises its maps to about 1; the FCNs score activations of some hundreds. At the FCNs'
# rate, the training loss of a U-Net was still 0.68 after 12 epochs, and theirs 0.2.
RATES = {"U-Net": 1e-2}

QUICK: dict[str, Any] = {"train": 20, "test": 10, "epochs": 1}


class Scenes(NamedTuple):
    """Images [n, side, side, 3] uint8, and masks [n, side, side] uint8, places in CLASSES."""

    images: np.ndarray
    masks: np.ndarray


def networks(plan: Plan, weights: str) -> dict[str, Callable[[], keras.Model]]:
    """Return the name of each network -> a function that builds it."""
    options: dict[str, Any] = {
        "classes": len(CLASSES),
        "weights": weights,
        "input_shape": (plan.scene, plan.scene, 3),
    }
    # The scales of the skips are those that the recorded results were measured with.
    fcn: dict[str, Any] = {
        "hidden_units": plan.hidden_units,
        "fc_weights": False,
        "skip_scales": (1e-2, 1e-4),
        **options,
    }
    return {
        "linear head": lambda: dense.fcn("D", stride=32, **{**fcn, "hidden_units": None}),
        "FCN-32s": lambda: dense.fcn("D", stride=32, **fcn),
        "FCN-16s": lambda: dense.fcn("D", stride=16, **fcn),
        "FCN-8s": lambda: dense.fcn("D", stride=8, **fcn),
        "U-Net": lambda: dense.unet("D", decoder_filters=plan.decoder_filters, **options),
    }


# --- scenes ----------------------------------------------------------------------------------


def scenes(photos: Path, objects: Path, plan: Plan) -> dict[str, Scenes]:
    """Return the training and the test scenes, from 75 and 25 % of the photographs."""
    paths = photographs(photos, plan.seed)
    source = data.load_source(f"idx:{objects}", validation_fraction=0.1, seed=plan.seed)
    edge = round(0.75 * len(paths))
    parts = {"train": (source.train, paths[:edge]), "test": (source.test, paths[edge:])}
    composed = {}
    for number, (name, (split, split_paths)) in enumerate(parts.items()):
        # A source of files in MNIST's format has both splits, in memory.
        assert split is not None
        assert split.images is not None
        assert split.labels is not None
        kept = np.isin(split.labels, list(ARTICLES))
        articles, labels = split.images[kept, ..., 0], split.labels[kept]
        backgrounds = [photo(path, 2 * plan.scene) for path in split_paths]
        random = np.random.default_rng([plan.seed, number])
        pairs = [
            compose(articles, labels, backgrounds, plan, random)
            for _ in range(plan.train if name == "train" else plan.test)
        ]
        composed[name] = Scenes(*map(np.stack, zip(*pairs, strict=True)))
    return composed


def compose(
    articles: np.ndarray,
    labels: np.ndarray,
    backgrounds: list[Image],
    plan: Plan,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene, uint8 [side, side, 3], and its mask, uint8 [side, side]."""
    scene = background(backgrounds, plan.scene, random)
    mask = np.zeros((plan.scene, plan.scene), np.uint8)
    for _ in range(random.integers(1, 4)):
        number = random.integers(len(labels))
        article, alpha = cut_out(articles[number], plan.object_sides, plan.scene, random)
        height, width = alpha.shape
        top, left = (random.integers(0, plan.scene - extent + 1) for extent in alpha.shape)
        place = np.s_[top : top + height, left : left + width]
        paste(article, alpha, scene[place], random)
        mask[place][alpha > 0.5] = 1 + list(ARTICLES).index(labels[number])
    return scene, mask


# --- training --------------------------------------------------------------------------------


class Maps(keras.utils.PyDataset):
    """Batches of the maps that a network reads, and the masks; each epoch has another order."""

    def __init__(self, maps: list[np.ndarray], masks: np.ndarray, plan: Plan) -> None:
        super().__init__()
        self._maps, self._masks, self._plan = maps, masks, plan
        self._random = np.random.default_rng(plan.seed)
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self._order = self._random.permutation(len(self._masks))

    def __len__(self) -> int:
        return -(-len(self._masks) // self._plan.batch_size)

    def __getitem__(self, number: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        first = number * self._plan.batch_size
        places = self._order[first : first + self._plan.batch_size]
        batch = tuple(x[places].astype(np.float32) for x in self._maps)
        return batch, self._masks[places].astype(np.int32)


def tensor_of(model: keras.Model, name: str) -> Any:
    """Return the Keras tensor of a pool or a pyramid's level."""
    if name in LEVELS:
        return dense.pyramid(model).pyramid_outputs[name]
    return model.get_layer(name).output


def maps_of(model: keras.Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return all maps of the frozen convolutions, float16: it keeps 11 bits of a value."""
    names = (*LEVELS, *POOLS)
    encoder = keras.Model(model.inputs[0], [tensor_of(model, name) for name in names])
    parts = [
        [np.asarray(x, np.float16) for x in encoder.predict_on_batch(part.astype(np.float32))]
        for part in np.array_split(images, -(-len(images) // 25))
    ]
    maps = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return dict(zip(names, maps, strict=True))


def train(
    model: keras.Model, name: str, maps: dict[str, np.ndarray], masks: np.ndarray, plan: Plan
) -> tuple[keras.Model, dict[str, Any]]:
    """Train a network behind its convolutions; return that part, and the record."""
    start = time.perf_counter()
    transfer.freeze(model, "all")
    head = keras.Model([tensor_of(model, read) for read in READS[name]], model.output)
    batches = Maps([maps[read] for read in READS[name]], masks, plan)
    schedule: Any = keras.optimizers.schedules.CosineDecay(
        RATES.get(name, plan.learning_rate), plan.epochs * len(batches)
    )
    head.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    history = head.fit(batches, epochs=plan.epochs, verbose=2)  # pyright: ignore[reportArgumentType]
    return head, {
        "trained_parameters": int(sum(np.prod(w.shape) for w in head.trainable_weights)),
        "loss": history.history["loss"],
        "seconds": round(time.perf_counter() - start, 1),
    }


# --- testing ---------------------------------------------------------------------------------


def confusions(answers: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return each scene's pixels by class and answer: [n, classes, classes]."""
    n, count = len(CLASSES), len(masks)
    pairs = (n * masks.astype(int) + answers).reshape(count, -1)
    return np.stack([np.bincount(row, minlength=n * n).reshape(n, n) for row in pairs])


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class, [..., classes]; nan without pixels."""
    both = np.diagonal(confusion, axis1=-2, axis2=-1)
    either = confusion.sum(-1) + confusion.sum(-2) - both
    return np.divide(both, either, out=np.full(both.shape, np.nan), where=either > 0)


def tested(answers: np.ndarray, masks: np.ndarray, seed: int) -> dict[str, Any]:
    """Return the mean IoU, its 95 % interval over scenes (bootstrap), and each class's IoU."""
    each = confusions(answers, masks)
    random = np.random.default_rng(seed)
    samples = random.integers(len(each), size=(2000, len(each)))
    means = [np.nanmean(class_ious(each[sample].sum(0))) for sample in samples]
    ious = class_ious(each.sum(0))
    return {
        "mean_iou": float(np.nanmean(ious)),
        "interval": np.quantile(means, [0.025, 0.975]).tolist(),
        "iou": dict(zip(CLASSES, ious.tolist(), strict=True)),
        "pixel_accuracy": float(np.mean(answers == masks)),
    }


def draw(scenes: Scenes, answers: dict[str, np.ndarray], path: Path) -> None:
    """Draw some scenes, their true masks, and what each network answers."""
    from matplotlib.figure import Figure

    shown = range(min(8, len(scenes.masks)))
    rows = {"scene": None, "truth": scenes.masks, **answers}
    figure = Figure((1.25 * len(shown), 1.25 * len(rows)), dpi=150, layout="constrained")
    axes = np.reshape(figure.subplots(len(rows), len(shown)), (len(rows), len(shown)))
    for row, (name, masks) in zip(axes, rows.items(), strict=True):
        for axis, number in zip(row, shown, strict=True):
            picture = scenes.images[number].astype(float)
            if masks is not None:
                mask = masks[number]
                share = np.where(mask > 0, 0.75, 0.0)[..., np.newaxis]
                grey = picture.mean(-1, keepdims=True) * 0.5 + 100
                picture = share * COLOURS[mask] + (1 - share) * grey
            axis.imshow(picture.clip(0, 255).astype(np.uint8))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def show(results: dict[str, Any], console: Console) -> None:
    rows = [
        [
            name,
            f"{record['trained_parameters']:,}",
            f"{100 * record['mean_iou']:.1f} %",
            " to ".join(f"{100 * end:.1f}" for end in record["interval"]),
            f"{100 * record['pixel_accuracy']:.1f} %",
            f"{record['seconds']:.0f} s",
        ]
        for name, record in results["networks"].items()
    ]
    headers = ["network", "trained parameters", "mean IoU", "95 % interval", "pixels", "training"]
    console.print(report.table(rows, headers, f"{results['test']} test scenes"))
    for artifact in results["export"]:
        console.print(
            f"{artifact['format']} of {results['best']}: {artifact['agreement']:.2%} of the pixels "
            f"have the model's class; probabilities differ by {artifact['max_difference']:.2g}"
        )


def run(
    photos: Path, objects: Path, weights: str, names: list[str], workdir: Path, plan: Plan
) -> dict[str, Any]:
    """Train and test networks, draw, export the best; return what results.json keeps."""
    start = time.perf_counter()
    both = scenes(photos, objects, plan)
    test, records, answers, models = both["test"], {}, {}, {}
    maps: dict[str, dict[str, np.ndarray]] = {}
    builders = networks(plan, weights)
    for name in names:
        print(name, flush=True)
        keras.utils.set_random_seed(plan.seed)
        models[name] = builders[name]()
        # The frozen convolutions are the same in all networks.
        maps = maps or {part: maps_of(models[name], both[part].images) for part in both}
        head, records[name] = train(models[name], name, maps["train"], both["train"].masks, plan)
        probabilities = head.predict(
            tuple(maps["test"][read].astype(np.float32) for read in READS[name]),
            batch_size=plan.batch_size,
            verbose=0,  # pyright: ignore[reportArgumentType]
        )
        answers[name] = np.asarray(probabilities).argmax(-1)
        records[name] |= tested(answers[name], test.masks, plan.seed)
        print(f"mean IoU {records[name]['mean_iou']:.3f}", flush=True)
    draw(test, answers, workdir / "scenes.png")
    best = max(records, key=lambda name: records[name]["mean_iou"])
    artifacts = export.export(
        models[best],
        CLASSES,
        workdir / "export",
        images=test.images[:50].astype(np.float32),
        labels=test.masks[:50],
        overwrite=True,
    )
    return {
        "networks": records,
        "test": len(test.masks),
        "best": best,
        "export": [{**dataclasses.asdict(a), "path": a.path.name} for a in artifacts],
        "plan": dataclasses.asdict(plan),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("objects", type=Path, help="Fashion-MNIST's four IDX files")
    parser.add_argument("--weights", default="imagenet", help="weights of VGG-16's convolutions")
    parser.add_argument("--workdir", type=Path, default=Path("runs/segmentation"))
    parser.add_argument(
        "--networks", nargs="+", choices=list(READS), default=list(READS), help="which to train"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="try everything in about a minute")
    arguments = parser.parse_args()
    plan = Plan(seed=arguments.seed, **(QUICK if arguments.quick else {}))
    workdir = arguments.workdir
    path = workdir / "results.json"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        results = run(
            arguments.photos,
            arguments.objects,
            arguments.weights,
            arguments.networks,
            workdir,
            plan,
        )
        write_json(path, results)
    show(json.loads(path.read_text()), Console())


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"segmentation: {error}")

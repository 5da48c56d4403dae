"""Repeat the paper's localisation experiment (appendix A, Table 8) with articles on photographs.

command:  python training/localization.py PHOTOS OBJECTS --workdir runs/localization
          (PHOTOS: a folder of photographs; OBJECTS: Fashion-MNIST's four IDX files; --quick tries
          everything in a minute, and its figures mean nothing)
hardware: one CPU core (AVX2) beside other work, 50 minutes
result:   training/README.md

A scene is a part of a photograph with an article of clothing on it. The article is cut out and
tinted, and has a random size and place, so its box is known. Training, validation and test scenes
have no articles and no photographs in common. Networks are trained on windows of the scenes. They
are tested on the centre window with the true class given, as in Table 8; then on whole scenes
without any information, both as convolutions and window by window.

A training window holds at least half of the article (OverFeat's rule; the paper states none).
Unlike in the paper, Adam trains the networks, without dropout and weight decay. In short trials,
the classifier with dropout and weight decay was still near chance after 160 to 200 steps of SGD (at
0.05, 0.01 and 0.003; width 1/4 or 1/8). Without both, at width 1/8, Adam at 2e-3 classified 27 % of
the validation windows correctly after 240 steps. No other choice was tried, so we do not know which
difference matters.

The localisers differ in their boxes and in the trained layers, not in epochs or learning rates.
Validation scenes decide how close boxes are merged, and which localiser is best; test scenes are
read once. Every trained network is kept, so an interrupted command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from keras_vgg import hardware

hardware.prepare_environment()  # before TensorFlow is imported below

import keras  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from scenes import background, cut_out, paste, photo, photographs  # noqa: E402

from keras_vgg import data, evaluation, localization, models, report  # noqa: E402
from keras_vgg.files import write_atomically, write_json  # noqa: E402
from keras_vgg.fit.batch_norm import fuse  # noqa: E402

ARTICLES = ("T-shirt", "trouser", "pullover", "dress", "coat")
ARTICLES += ("sandal", "shirt", "sneaker", "bag", "ankle boot")
MATCHES = (0.0, 0.3, 0.5, 0.7, 0.9, 1.2, 2.0)
STAGES = {  # name -> (whether each class has its own box, the trained layers)
    "SCR, fc": (False, "fc"),
    "PCR, fc": (True, "fc"),
    "PCR, all": (True, "all"),
}


# How a whole scene is evaluated -> the argument `dense` of `predict_boxes`.
WAYS = {"dense": True, "windows": False}


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings. Sides are in pixels; `object_sides` is a share of a scene's side."""

    configuration: str = "A"
    width_multiplier: float = 1 / 4
    hidden_units: int = 512
    scene: int = 96
    window: int = 64
    object_sides: tuple[float, float] = (0.35, 0.7)
    train: int = 20_000  # scenes in an epoch; no two are the same
    validation: int = 2_000
    test: int = 5_000
    batch_size: int = 64
    epochs: int = 8
    box_epochs: int = 5
    dropout: float = 0.0
    learning_rate: float = 2e-3
    box_learning_rate: float = 1e-3
    seed: int = 0


QUICK = {
    "width_multiplier": 1 / 8,
    "hidden_units": 128,
    "train": 1_024,
    "validation": 200,
    "test": 200,
    "epochs": 3,
    "box_epochs": 2,
}


# --- scenes ----------------------------------------------------------------------------------


class Material(NamedTuple):
    """The parts of one split's scenes: grey articles [n, 28, 28] and photographs."""

    name: str
    articles: np.ndarray
    labels: np.ndarray
    photos: list[Image.Image]


class Scenes(NamedTuple):
    """Images [n, side, side, 3] uint8, labels [n], and boxes' corners [n, 4] in pixels."""

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


def materials(photos: Path, objects: Path, plan: Plan) -> tuple[dict[str, Material], str]:
    """Return each split's material (70, 10 and 20 % of the photographs), and a digest of all."""
    source = data.load_source(f"idx:{objects}", validation_fraction=0.1, seed=plan.seed)
    if len(source.class_names) != len(ARTICLES):
        raise ValueError(f"{objects} has {len(source.class_names)} classes, not {len(ARTICLES)}")
    paths = photographs(photos, plan.seed)
    edges = [0, round(0.7 * len(paths)), round(0.8 * len(paths)), len(paths)]
    digest = hashlib.sha256("/".join(path.name for path in paths).encode())
    by_split = {}
    for i, split in enumerate((source.train, source.validation, source.test)):
        # A source of files in MNIST's format has all three splits, in memory.
        assert split is not None
        assert split.images is not None
        assert split.labels is not None
        digest.update(split.fingerprint().encode())
        split_photos = [photo(path, 2 * plan.scene) for path in paths[edges[i] : edges[i + 1]]]
        name = ("train", "validation", "test")[i]
        by_split[name] = Material(name, split.images[..., 0], split.labels, split_photos)
    return by_split, digest.hexdigest()


def compose(
    material: Material, index: int, plan: Plan, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene of one article, uint8 [side, side, 3], and its box's corners [4] in pixels."""
    article, alpha = cut_out(material.articles[index], plan.object_sides, plan.scene, random)
    height, width = alpha.shape
    scene = background(material.photos, plan.scene, random)
    if random.random() < 0.5:
        scene = scene[:, ::-1].copy()

    top, left = random.integers(0, plan.scene - np.array([height, width]) + 1)
    paste(article, alpha, scene[top : top + height, left : left + width], random)
    return scene, np.array([left, top, left + width, top + height], float)


def window_of(box: np.ndarray, plan: Plan, random: np.random.Generator) -> tuple[int, int]:
    """Return (top, left) of a random window that holds at least half of the box."""
    starts = np.arange(plan.scene - plan.window + 1)
    shares = [
        np.clip(np.minimum(high, starts + plan.window) - np.maximum(low, starts), 0, None)
        / (high - low)
        for low, high in ((box[1], box[3]), (box[0], box[2]))
    ]
    places = np.argwhere(np.outer(*shares) >= 0.5)
    top, left = places[random.integers(len(places))]
    return int(top), int(left)


class TrainingWindows(keras.utils.PyDataset):
    """Batches ([n, w, w, 3] float32, labels) of windows; every epoch composes new scenes.

    Labels are [n] classes, or with `boxes` [n, 5], the class and the relative box.
    """

    def __init__(self, material: Material, plan: Plan, boxes: bool) -> None:
        super().__init__()
        self._material, self._plan, self._boxes = material, plan, boxes
        self._epoch = -1
        self.on_epoch_end()

    def on_epoch_end(self) -> None:
        self._epoch += 1
        random = np.random.default_rng([self._plan.seed, self._epoch])
        order = random.permutation(len(self._material.labels))
        self._order = np.resize(order, self._plan.train)

    def __len__(self) -> int:
        return -(-self._plan.train // self._plan.batch_size)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        plan, images, labels = self._plan, [], []
        random = np.random.default_rng([plan.seed, self._epoch, number])
        first = number * plan.batch_size
        for index in self._order[first : first + plan.batch_size]:
            scene, box = compose(self._material, index, plan, random)
            top, left = window_of(box, plan, random)
            images.append(scene[top : top + plan.window, left : left + plan.window])
            relative = localization.to_relative(box, plan.window, (top, left))
            labels.append([self._material.labels[index], *relative])
        images, labels = np.stack(images).astype(np.float32), np.array(labels, np.float32)
        return images, labels if self._boxes else labels[:, 0].astype(np.int32)


def fixed(material: Material, count: int, plan: Plan) -> Scenes:
    """Return `count` scenes that are always the same, each with another article."""
    count = min(count, len(material.labels))
    indices = np.random.default_rng(plan.seed).permutation(len(material.labels))[:count]
    pairs = [
        compose(material, index, plan, np.random.default_rng([plan.seed, index]))
        for index in indices
    ]
    images, boxes = map(np.stack, zip(*pairs, strict=True))
    return Scenes(images, material.labels[indices], boxes)


def centre(scenes: Scenes, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre windows [n, w, w, 3] float32, and their labels [n, 5]."""
    start = (plan.scene - plan.window) // 2
    images = scenes.images[:, start : start + plan.window, start : start + plan.window]
    relative = localization.to_relative(scenes.boxes, plan.window, (start, start))
    labels = np.column_stack([scenes.labels, relative]).astype(np.float32)
    return images.astype(np.float32), labels


# --- training --------------------------------------------------------------------------------


def stage(workdir: Path, name: str, train: Callable[[], keras.Model]) -> keras.Model:
    """Return a trained network: load its file if it exists, else train and save it."""
    stem = name.lower().replace(", ", "_")
    path = workdir / f"{stem}.keras"
    if not path.exists():
        print(name, flush=True)
        start = time.perf_counter()
        model = train()
        seconds = round(time.perf_counter() - start, 1)
        record = {"seconds": seconds, "history": model.history.history}
        write_json(workdir / f"{stem}.json", record)
        write_atomically(path, model.save)
    model = keras.saving.load_model(path, compile=False)
    assert isinstance(model, keras.Model)
    return model


def fit(model: keras.Model, windows: TrainingWindows, validation: tuple, epochs: int) -> None:
    fuse(model)
    model.fit(windows, validation_data=validation, epochs=epochs, verbose=2)  # pyright: ignore[reportArgumentType]


def optimizer(rate: float, epochs: int, plan: Plan) -> keras.optimizers.Optimizer:
    steps = epochs * -(-plan.train // plan.batch_size)
    warm = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm, warmup_target=rate, warmup_steps=warm
    )
    return keras.optimizers.Adam(schedule)  # pyright: ignore[reportArgumentType]  # Keras says float


def train_classifier(material: Material, validation: Scenes, plan: Plan) -> keras.Model:
    keras.utils.set_random_seed(plan.seed)
    model = models.vgg(
        plan.configuration,
        weights=None,
        input_shape=(plan.window, plan.window, 3),
        classes=len(ARTICLES),
        batch_norm=True,
        width_multiplier=plan.width_multiplier,
        hidden_units=plan.hidden_units,
        dropout=plan.dropout,
        include_preprocessing=True,
    )
    model.compile(
        optimizer(plan.learning_rate, plan.epochs, plan),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    images, labels = centre(validation, plan)
    windows = TrainingWindows(material, plan, boxes=False)
    fit(model, windows, (images, labels[:, 0].astype(np.int32)), plan.epochs)
    return model


def train_localizer(
    classifier: keras.Model, name: str, material: Material, validation: Scenes, plan: Plan
) -> keras.Model:
    per_class, trainable = STAGES[name]
    keras.utils.set_random_seed(plan.seed)
    model = localization.localizer(classifier, len(ARTICLES) if per_class else None, trainable)
    model.compile(
        optimizer(plan.box_learning_rate, plan.box_epochs, plan), localization.EuclideanLoss()
    )
    windows = TrainingWindows(material, plan, boxes=True)
    fit(model, windows, centre(validation, plan), plan.box_epochs)
    return model


# --- testing ---------------------------------------------------------------------------------


def centre_boxes(model: keras.Model, scenes: Scenes, plan: Plan) -> np.ndarray:
    """Return the corners [n, 4] of the true class's box, from the centre window only."""
    images, labels = centre(scenes, plan)
    predicted = np.asarray(model.predict(images, verbose=0))  # pyright: ignore[reportArgumentType]
    true_class_boxes = localization.boxes_of(labels, predicted)
    start = (plan.scene - plan.window) // 2
    return localization.to_corners(
        np.asarray(keras.ops.convert_to_numpy(true_class_boxes)), plan.window, (start, start)
    )


def constant_boxes(material: Material, scenes: Scenes, plan: Plan) -> np.ndarray:
    """Return the baseline: each class's mean box in training windows, corners [n, 4]."""
    windows = TrainingWindows(material, plan, boxes=True)
    labels = np.concatenate([windows[i][1] for i in range(min(len(windows), 30))])
    means = np.stack([labels[labels[:, 0] == c, 1:].mean(0) for c in range(len(ARTICLES))])
    start = (plan.scene - plan.window) // 2
    return localization.to_corners(means[scenes.labels], plan.window, (start, start))


def whole_scenes(
    localizations: Sequence[localization.Localization], scenes: Scenes, match: float, how: str
) -> dict[str, np.ndarray]:
    """Return which whole scenes are right [n]: true class given, in the top 5, in the top 1."""
    right: dict[str, list[bool]] = {"true class": [], "top-5": [], "top-1": []}
    for one, label, box in zip(localizations, scenes.labels, scenes.boxes, strict=True):
        true_class = localization.located(one.merged(label, match)[0][0], box)
        guesses = one.guesses(5, match=match)
        hits = [g.label == label and localization.located(g.box, box) for g in guesses]
        for key, hit in zip(right, (true_class, any(hits), hits[0]), strict=True):
            right[key].append(bool(hit))
    return {f"{how}, {key}": np.array(hits) for key, hits in right.items()}


def centre_classes(
    classifier: keras.Model, boxes: np.ndarray, scenes: Scenes, plan: Plan
) -> dict[str, np.ndarray]:
    """Return which centre windows are right [n], with the true class in the top 5 and top 1."""
    images = centre(scenes, plan)[0]
    probabilities = np.asarray(classifier.predict(images, verbose=0))  # pyright: ignore[reportArgumentType]
    located = localization.located(boxes, scenes.boxes)
    ranks = (-probabilities).argsort(1, kind="stable").argsort(1)
    rank = ranks[np.arange(len(scenes.labels)), scenes.labels]
    return {f"centre, top-{k}": located & (rank < k) for k in (5, 1)}


def scored(right: np.ndarray) -> evaluation.Evaluation:
    """Return right or wrong as an evaluation, which has an interval and can be compared."""
    shares = np.stack([right, ~right], 1).astype(np.float32)
    return evaluation.Evaluation(np.zeros(len(right), int), shares, ("located", "missed"))


def test(
    nets: dict[str, keras.Model],
    classifier: keras.Model,
    material: dict[str, Material],
    validation: Scenes,
    plan: Plan,
    sheet: Path,
) -> dict:
    """Return all reported results in a form for JSON, and draw the sheet of scenes."""
    validation_hits = {
        name: localization.located(centre_boxes(net, validation, plan), validation.boxes)
        for name, net in nets.items()
    }
    best = max(validation_hits, key=lambda name: validation_hits[name].mean())

    def localize(scenes: Scenes, how: str) -> list[localization.Localization]:
        return localization.predict_boxes(
            nets[best], classifier, scenes.images, dense=WAYS[how], verbose=True
        )

    tried, best_match = {}, {}
    for how in WAYS:
        localizations = localize(validation, how)
        tried[how] = {
            match: whole_scenes(localizations, validation, match, how) for match in MATCHES
        }
        located = {match: hits[f"{how}, true class"].mean() for match, hits in tried[how].items()}
        best_match[how] = max(MATCHES, key=lambda match, of=located: of[match])
        validation_hits |= tried[how][best_match[how]]
    validation_hits |= centre_classes(
        classifier, centre_boxes(nets[best], validation, plan), validation, plan
    )

    scenes = fixed(material["test"], plan.test, plan)  # read once, here
    boxes = {name: centre_boxes(net, scenes, plan) for name, net in nets.items()}
    right = {name: localization.located(corners, scenes.boxes) for name, corners in boxes.items()}
    right |= centre_classes(classifier, boxes[best], scenes, plan)
    localized = {how: localize(scenes, how) for how in WAYS}
    for how, localizations in localized.items():
        right |= whole_scenes(localizations, scenes, best_match[how], how)
    constant = constant_boxes(material["train"], scenes, plan)
    right["constant box"] = localization.located(constant, scenes.boxes)
    drawn = max(WAYS, key=lambda how: validation_hits[f"{how}, true class"].mean())
    draw(scenes, localized[drawn], best_match[drawn], sheet)
    evaluations = {name: scored(hits) for name, hits in right.items()}

    def error(name: str) -> dict:
        low, high = evaluations[name].interval()
        figures = {"test_error": 1 - evaluations[name].top1, "interval": [1 - high, 1 - low]}
        return figures | (
            {"validation_error": 1 - float(validation_hits[name].mean())}
            if name in validation_hits
            else {}
        )

    pairs = [
        ("SCR, fc", "PCR, fc"),
        ("PCR, fc", "PCR, all"),
        (best, "dense, true class"),
        (best, "windows, true class"),
        ("dense, true class", "windows, true class"),
        ("centre, top-5", "windows, top-5"),
    ]
    classes = {
        how: np.argmax([one.probabilities for one in localizations], axis=1)
        for how, localizations in localized.items()
    }
    return {
        "scenes": {"validation": len(validation.labels), "test": len(scenes.labels)},
        "best_on_validation": best,
        "match": best_match,
        "match_tried_on_validation": {
            how: {
                str(match): {key: 1 - float(hits.mean()) for key, hits in hits_by_class.items()}
                for match, hits_by_class in by_match.items()
            }
            for how, by_match in tried.items()
        },
        "drawn": drawn,
        "class_error": {
            how: float((guess != scenes.labels).mean()) for how, guess in classes.items()
        },
        "errors": {name: error(name) for name in right},
        "comparisons": [
            {"one": one, "other": other}
            | dataclasses.asdict(evaluation.compare(evaluations[one], evaluations[other]))
            for one, other in pairs
        ],
    }


# --- reporting -------------------------------------------------------------------------------


def draw(
    scenes: Scenes,
    localizations: Sequence[localization.Localization],
    match: float,
    path: Path,
    shape: tuple[int, int] = (5, 8),
) -> None:
    """Draw the first test scenes with the true box (green) and the best guess (red, dashed)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(1.7 * shape[1], 1.95 * shape[0]), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(*shape).ravel()
    for axis in axes:
        axis.set_axis_off()
    rows = zip(axes, scenes.images, scenes.labels, scenes.boxes, localizations, strict=False)
    for axis, image, label, truth, one in rows:
        guess = one.guesses(1, match=match)[0]
        side = image.shape[0]
        axis.imshow(image, extent=(0, side, side, 0))
        for box, colour, line in ((truth, "#00d000", "-"), (guess.box, "#ff2020", "--")):
            left, top, right, bottom = box
            # A wider white line below makes the box visible on any background.
            for edge, wide in (("white", 3.2), (colour, 1.8)):
                corner, sides = (left, top), (right - left, bottom - top)
                style = {"fill": False, "edgecolor": edge, "linewidth": wide, "linestyle": line}
                axis.add_patch(Rectangle(corner, *sides, **style))
        axis.set(xlim=(0, side), ylim=(side, 0))
        agreement = localization.intersection_over_union(guess.box, truth)
        text = f"{ARTICLES[label]}, IoU {agreement:.2f}"
        if guess.label != label:
            text += f"\nanswer: {ARTICLES[guess.label]}"
        axis.set_title(text, fontsize=7)
    write_atomically(path, lambda partial: figure.savefig(partial, format="png"))


def tables(results: dict) -> list[Table]:
    def cells(name: str) -> list[str]:
        figures = results["errors"][name]
        low, high = figures["interval"]
        validation_error = figures.get("validation_error")
        return [
            "–" if validation_error is None else f"{validation_error:.1%}",
            f"{figures['test_error']:.1%}",
            f"{low:.1%} to {high:.1%}",
        ]

    headers = ["validation error", "test error", "95 % interval"]
    best = results["best_on_validation"]
    first = [[name, *cells(name)] for name in ("constant box", *STAGES)]
    second = [
        [what, classes, *cells(f"{what}, {classes}")]
        for what in ("centre", *WAYS)
        for classes in ("true class", "top-5", "top-1")
        if f"{what}, {classes}" in results["errors"]
    ]
    second.insert(0, ["centre", "true class", *cells(best)])
    merged = " and ".join(f"{match} ({how})" for how, match in results["match"].items())
    third = [
        [
            f"{pair['one']} → {pair['other']}",
            # The comparison is of accuracies; a difference of errors has the other sign.
            f"{-100 * pair['difference']:+.1f}",
            " to ".join(f"{-100 * end:+.1f}" for end in reversed(pair["interval"])),
            f"{pair['p_value']:.2g}",
        ]
        for pair in results["comparisons"]
    ]
    return [
        report.table(first, ["network", *headers], "true class given, centre window"),
        report.table(second, ["evaluation", "class", *headers], f"{best}, merged at {merged}"),
        report.table(
            third, ["change", "difference of errors", "95 % interval", "p"], "paired, in points"
        ),
    ]


def show(results: dict, console: Console) -> None:
    for table in tables(results):
        console.print(table)


def require_same(workdir: Path, settings: dict) -> None:
    """Refuse a folder that holds an experiment with other settings; note these in a new folder."""
    path = workdir / "settings.json"
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
    elif json.loads(path.read_text()) != settings:
        raise ValueError(f"{workdir} holds an experiment with other settings; pass another folder")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("objects", type=Path, help="Fashion-MNIST's four IDX files")
    parser.add_argument("--workdir", type=Path, default=Path("runs/localization"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="try everything in about a minute")
    arguments = parser.parse_args()
    plan = Plan(seed=arguments.seed, **(QUICK if arguments.quick else {}))
    workdir, start = arguments.workdir, time.perf_counter()
    material, digest = materials(arguments.photos, arguments.objects, plan)
    require_same(workdir, {**dataclasses.asdict(plan), "material": digest})
    path = workdir / "results.json"
    if not path.exists():
        validation = fixed(material["validation"], plan.validation, plan)
        train = material["train"]
        classifier = stage(workdir, "classifier", lambda: train_classifier(train, validation, plan))
        nets = {
            name: stage(
                workdir,
                name,
                lambda name=name: train_localizer(classifier, name, train, validation, plan),
            )
            for name in STAGES
        }
        results = test(nets, classifier, material, validation, plan, workdir / "boxes.png")
        results["seconds"] = round(time.perf_counter() - start, 1)
        with (workdir / "table.txt").open("w") as file:
            show(results, Console(file=file, width=100))
        write_json(path, results)
    show(json.loads(path.read_text()), Console())


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ArithmeticError) as error:
        sys.exit(f"localization: {error}")

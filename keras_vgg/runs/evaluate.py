"""Testing runs as the paper does: protocols, scales, fusion; the posteriors are kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from keras_vgg import augment, data, evaluation, hardware, report
from keras_vgg.array_cache import ArrayCache
from keras_vgg.console import progress_bars
from keras_vgg.files import write_atomically
from keras_vgg.fit import describe, evaluation_transform, load_source, require_same_data
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run

PROTOCOLS = (*evaluation.PROTOCOLS, "both")
_SECTION_4_3 = ("dense", "multi-crop", "both")  # what Tables 5 and 6 compare
_ARITHMETIC = 1  # to be counted up when the same images and weights get other posteriors
_PIXELS = 2**21  # at a time, at most: 42 images of 224x224

Scale = int | None


def evaluate_run(
    run: Run,
    split: str = "test",
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
) -> evaluation.Evaluation:
    """Test a run's best model on every image of a split.

    Writes the figures into the run's results.json under `evaluation_name`, and the confusion
    matrix to confusion_NAME.csv (rows are true classes) and confusion_NAME.png. The posteriors of
    each protocol and scale are kept in posteriors/, so that an interrupted evaluation goes on, and
    other scales or a fusion cost no more than what is new in them.

    Args:
        run: A finished run.
        split: "test", "validation" or "train".
        verbose: Show a progress bar.
        protocol: "center", one crop an image; "dense", the classifier as convolutions over the
            whole image; "multi-crop", a 5 x 5 grid of crops; "both", the average of the two
            (section 3.2). All but center see the mirror image, too, if training did.
        scales: Smallest sides that an image is rescaled to, bilinearly and antialiased; the
            posteriors are averaged. Default: the recipe's eval_scale.
        average: As `evaluation.Protocol`.

    Raises:
        ValueError: an unknown protocol or average; a scale below the image size; the run has not
            finished training; its source has no such split, has changed since, or holds a damaged
            image.
    """
    found = evaluate_runs([run], split, verbose, protocol, scales, average)[0]
    name = evaluation_name(split, protocol, scales, average)
    figures = found.to_dict()
    del figures["confusion"]  # a million numbers for ImageNet
    run.add_results(**{name: figures})
    write_atomically(
        run.directory / f"confusion_{name}.csv",
        lambda path: np.savetxt(path, found.confusion, "%d", ","),
    )
    report.plot_confusion(found.confusion, run.class_names, run.directory / f"confusion_{name}.png")
    return found


def evaluate_runs(
    runs: Sequence[Run],
    split: str = "test",
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
) -> list[evaluation.Evaluation]:
    """Each run's evaluation, with which `evaluation.fuse` and `evaluation.compare` work.

    Args and raises: as `evaluate_run`; ValueError also if the runs' images or classes differ.
    Nothing but posteriors/ is written.
    """
    _check(runs, protocol, scales, average)
    found = []
    for tested in _opened(runs, split, average, verbose):
        plan = _plan(protocol, scales or [tested.run.recipe.eval_scale])
        found.append(tested.average_of(plan))
        tested.close()
    return found


def evaluation_name(
    split: str, protocol: str, scales: Sequence[int] = (), average: str | None = None
) -> str:
    """What a run calls the results of an evaluation, such as test_dense_256_384_512."""
    parts = [split] if protocol == "center" else [split, protocol.replace("-", "_")]
    default = protocol != "both" and average == evaluation.Protocol(protocol).average
    return "_".join(
        [*parts, *map(str, sorted(scales)), *([average] if average and not default else [])]
    )


def is_evaluated(run: Run, split: str) -> bool:
    """Whether a run's central crops of a split have been evaluated, all of them, at some scale."""
    if split in run.results:
        return True
    images = run.read_json("data.json")["splits"].get(split, {}).get("images")
    ends = (run.directory / "posteriors" / split).glob(f"center-*/*-{images or 0:09d}.npz")
    return any(ends)


def run_names(runs: Sequence[Run]) -> list[str]:
    """What a table calls each run: its directory's name where that tells them apart, or path."""
    names = [run.directory.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def paper_scales(recipe: Recipe) -> tuple[Sequence[Scale], Sequence[Scale]]:
    """The paper's test scales: of single-scale testing (one), and of multi-scale testing.

    Trained at S, or at S in [low, high]: Q = S and {S - d, S, S + d}, or (low + high) / 2 and
    {low, (low + high) / 2, high}. d is 32 for images of 224 and as much of other sizes. No scale is
    below the image size. Recipes that do not rescale are tested as they are.
    """
    if recipe.train_scale is None:
        return [recipe.eval_scale], [recipe.eval_scale]
    low, high = recipe.train_scale
    middle = (low + high) // 2
    if low == high:
        step = round(recipe.image_size / 7)
        low, high = low - step, high + step
    several = {max(scale, recipe.image_size) for scale in (low, middle, high)}
    return [max(middle, recipe.image_size)], sorted(several)


def paper_tables(
    runs: Sequence[Run], split: str = "test", verbose: bool = False, average: str | None = None
) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
    """The paper's Tables 3 to 6 of some runs: (title, headers, rows) each. Errors in per cent.

    Args and raises: as `evaluate_runs`; the scales are those of `paper_scales`. Table 6 fuses all
    of the runs; one alone has none.
    """
    _check(runs, "both", (), average)
    names = run_names(runs)
    errors = ("top-1 error", "95 % interval", "top-5 error")
    single, multiple, compared = [], [], []
    opened = _opened(runs, split, average, verbose)
    plans = []
    for name, tested in zip(names, opened, strict=True):
        trained = _range(tested.run.recipe.train_scale)
        one, several = paper_scales(tested.run.recipe)
        for rows, scales in ((single, one), (multiple, several)):
            found = tested.average_of(_plan("dense", scales))
            rows.append((name, trained, _listed(scales), *_errors(found)))
        plans.append({protocol: _plan(protocol, several) for protocol in _SECTION_4_3})
        compared += [
            (name, protocol, *_errors(tested.average_of(plan)))
            for protocol, plan in plans[-1].items()
        ]
        tested.close()  # a network of the paper's takes half a gigabyte
    tables = [
        ("Table 3: dense testing at one scale", ("net", "S", "Q", *errors), single),
        ("Table 4: dense testing at several scales", ("net", "S", "Q", *errors), multiple),
        ("Table 5: dense and multi-crop testing", ("net", "testing", *errors), compared),
    ]
    if len(runs) > 1:
        rows = []
        for protocol in _SECTION_4_3:
            each = [t.average_of(plan[protocol]) for t, plan in zip(opened, plans, strict=True)]
            rows.append((" + ".join(names), protocol, *_errors(evaluation.fuse(each))))
        tables.append(("Table 6: fusion", ("nets", "testing", *errors), rows))
    return tables


def _errors(found: evaluation.Evaluation) -> tuple[str, str, str | None]:
    """Top-1 error, its interval, top-5 error; per cent."""
    low, high = found.interval()
    top5 = None if found.top5 is None else f"{100 * (1 - found.top5):.2f}"
    bounds = f"{100 * (1 - high):.2f} to {100 * (1 - low):.2f}"
    return f"{100 * (1 - found.top1):.2f}", bounds, top5


def _opened(runs: Sequence[Run], split: str, average: str | None, verbose: bool) -> list[_Tested]:
    """All runs on one split: what is wrong with any of them is found before hours of evaluation."""
    require_same_split(runs, split)
    return [_Tested(run, split, average, verbose) for run in runs]


class _Tested:
    """A run under test on one split. The model and the data are opened when they are needed."""

    def __init__(self, run: Run, split: str, average: str | None, verbose: bool) -> None:
        if not run.finished:
            raise ValueError(f"{run.directory} has not finished training; resume it first")
        self.run = run
        self._name, self._average, self._verbose = split, average, verbose
        self._split = open_split(run, split)
        self._images = {"split": self._split.fingerprint(), "files": self._split.stamp()}
        with run.model_path.open("rb") as file:
            self._weights = hashlib.file_digest(file, "sha256").hexdigest()
        self._model = None
        self._runners: dict[evaluation.Protocol, Callable] = {}

    def posteriors(self, name: str, scale: Scale) -> evaluation.Evaluation:
        """Return every image's posteriors by one protocol at one scale, kept ones from disk."""
        recipe, split = self.run.recipe, self._split
        protocol = evaluation.Protocol(name, self._average, mirror=recipe.horizontal_flip)
        transform = _transform(recipe, protocol.name, scale)
        key = {
            **self._images,
            "model": self._weights,
            "arithmetic": _ARITHMETIC,
            "protocol": dataclasses.asdict(protocol),
            "transform": transform.keywords,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        # What is of other weights or images keeps a folder of its own.
        folder = "-".join(map(str, (protocol.name, protocol.average, scale or "native", digest)))
        cache = ArrayCache(self.run.directory / "posteriors" / self._name / folder, key)
        if cache.done < split.size:
            self._run(protocol, transform, cache, f"{self.run.directory.name} {folder}")
        found = cache.load()
        return evaluation.Evaluation(found["labels"], found["posteriors"], self.run.class_names)

    def average_of(self, plan: Sequence[tuple[str, Scale]]) -> evaluation.Evaluation:
        """The posteriors of several protocols and scales, averaged."""
        return evaluation.fuse([self.posteriors(*one) for one in plan])

    def close(self) -> None:
        """Let the network go; it is loaded again if it is needed."""
        self._model = None
        self._runners = {}

    def _run(
        self, protocol: evaluation.Protocol, transform: partial, cache: ArrayCache, label: str
    ) -> None:
        recipe, split, classes = self.run.recipe, self._split, len(self.run.class_names)
        if self._model is None:
            self._model = self.run.model()
            self._model.jit_compile = hardware.compiles_evaluation(recipe)
        if protocol not in self._runners:  # one for all scales: to build it is to trace it
            self._runners[protocol] = evaluation.runner(self._model, protocol, classes)
        rest = split.between(cache.done, split.size)
        images = data.evaluation_dataset(rest, None, transform).as_numpy_iterator()
        blocks = evaluation.posteriors(
            self._runners[protocol],
            images,  # pyright: ignore[reportArgumentType]  # the stub has one column
            classes=classes,
            pixels=min(recipe.batch_size * recipe.image_size**2, _PIXELS),
        )
        with (
            data.bad_images_named(split),
            progress_bars(self._verbose) as progress,
            _unwarned("triggered tf.function retracing"),  # a network for each run and protocol
        ):
            task = progress.add_task(label, total=split.size, completed=cache.done)
            for labels, probabilities in blocks:
                cache.add(labels=labels, posteriors=probabilities)
                progress.update(task, completed=cache.done)
        if cache.done != split.size:
            raise ValueError(f"evaluated {cache.done} of {split.size} images")


@contextlib.contextmanager
def _unwarned(message: str) -> Iterator[None]:
    """Leave a message of TensorFlow's out that is none of the user's business."""
    logger = logging.getLogger("tensorflow")

    def other(record: logging.LogRecord) -> bool:
        return message not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def open_split(run: Run, name: str) -> data.Split:
    """A split of the run's source, the same images as when the run began.

    Raises:
        ValueError: the source has no such split, or has changed.
    """
    source = load_source(run.recipe)
    split = getattr(source, name, None)
    if split is None:
        raise ValueError(f"source {run.recipe.source} has no {name} split")
    require_same_data(run, describe(source))
    return split


def _transform(recipe: Recipe, protocol: str, scale: Scale) -> partial:
    if protocol == "dense":
        return partial(augment.whole_image, size=recipe.image_size, scale=scale)
    if protocol == "center":
        return partial(evaluation_transform(recipe), scale=scale)
    return partial(
        augment.grid_crops,
        size=recipe.image_size,
        scale=scale,
        padding=recipe.crop_padding,
        flip=recipe.horizontal_flip,
    )


def _plan(protocol: str, scales: Sequence[Scale]) -> list[tuple[str, Scale]]:
    names = ("dense", "multi-crop") if protocol == "both" else (protocol,)
    return [(name, scale) for name in names for scale in scales]


def _check(runs: Sequence[Run], protocol: str, scales: Sequence[int], average: str | None) -> None:
    if not runs:
        raise ValueError("there is no run to evaluate")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    evaluation.Protocol("center", average)
    size = max(run.recipe.image_size for run in runs)
    for scale in scales:
        if scale < size:
            raise ValueError(
                f"scale {scale} is below {size}, the size of the network's images: it would see "
                "a frame of zeros that it was not trained on"
            )
    if len(set(scales)) != len(scales):
        raise ValueError(f"scales must differ, not {', '.join(map(str, scales))}")


def require_same_split(runs: Sequence[Run], split: str) -> None:
    """Before hours of evaluation, not after.

    Raises:
        ValueError: the runs' classes, or their images of this split, differ.
    """
    described = [run.read_json("data.json") for run in runs]
    for run, found in zip(runs, described, strict=True):
        first = described[0]
        same = found["class_names"] == first["class_names"]
        if not same or found["splits"].get(split) != first["splits"].get(split):
            raise ValueError(
                f"{run.directory} and {runs[0].directory} cannot be compared: their {split} images "
                "or classes differ"
            )


def _range(scale: tuple[int, int] | None) -> str:
    if scale is None:
        return "as it is"
    return f"{scale[0]}" if scale[0] == scale[1] else f"[{scale[0]}, {scale[1]}]"


def _listed(scales: Sequence[Scale]) -> str:
    return ", ".join("as it is" if scale is None else str(scale) for scale in scales)

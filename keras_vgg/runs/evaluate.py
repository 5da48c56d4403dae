"""Evaluate runs as the paper does: protocols, scales, fusion. Posteriors are kept on disk."""

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
_SECTION_4_3 = ("dense", "multi-crop", "both")  # the protocols of Tables 5 and 6
_ARITHMETIC = 1  # Increase it when the same images and weights get other posteriors.
_PIXELS = 2**21  # in a batch at most: 42 images of 224x224

Scale = int | None


def evaluate_run(
    run: Run,
    split: str = "test",
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
) -> evaluation.Evaluation:
    """Evaluate a run's best model on every image of a split.

    The figures go into the run's results.json under `evaluation_name`. The confusion matrix goes to
    confusion_NAME.csv (rows are true classes) and confusion_NAME.png. The posteriors of each
    protocol and scale are kept in posteriors/: an interrupted evaluation resumes, and only what
    other scales or protocols add is computed.

    Args:
        run: A finished run.
        split: "test", "validation" or "train".
        verbose: Show a progress bar.
        protocol: "center", one crop an image; "dense", the classifier as convolutions over the
            whole image; "multi-crop", a 5 x 5 grid of crops; "both", the average of dense and
            multi-crop (section 3.2). All but center also see the mirror image if training did.
        scales: The image is rescaled to each of these smallest sides (bilinear, antialiased), and
            the posteriors are averaged. Empty: the recipe's eval_scale.
        average: As `evaluation.Protocol`.

    Raises:
        ValueError: an unknown protocol or average; a scale below the image size; the run has not
            finished training; its source has no such split, has changed since, or holds a damaged
            image.
    """
    evaluated = evaluate_runs([run], split, verbose, protocol, scales, average)[0]
    name = evaluation_name(split, protocol, scales, average)
    figures = evaluated.to_dict()
    del figures["confusion"]  # It has a million numbers for ImageNet.
    run.add_results(**{name: figures})
    confusion, path = evaluated.confusion, run.directory / f"confusion_{name}.csv"
    write_atomically(path, lambda partial: np.savetxt(partial, confusion, "%d", ","))
    report.plot_confusion(confusion, run.class_names, path.with_suffix(".png"))
    return evaluated


def evaluate_runs(
    runs: Sequence[Run],
    split: str = "test",
    verbose: bool = False,
    protocol: str = "center",
    scales: Sequence[int] = (),
    average: str | None = None,
) -> list[evaluation.Evaluation]:
    """Return each run's evaluation, for `evaluation.fuse` and `evaluation.compare`.

    Args and raises: as `evaluate_run`; ValueError also if the runs' images or classes differ.
    Only posteriors/ is written.
    """
    _check(runs, protocol, scales, average)
    evaluations = []
    for evaluator in _evaluators(runs, split, average, verbose):
        plan = _plan(protocol, scales or [evaluator.run.recipe.eval_scale_side])
        evaluations.append(evaluator.average_of(plan))
        evaluator.close()
    return evaluations


def evaluation_name(
    split: str, protocol: str, scales: Sequence[int] = (), average: str | None = None
) -> str:
    """Return the key of an evaluation in results.json, such as test_dense_256_384_512."""
    parts = [split] if protocol == "center" else [split, protocol.replace("-", "_")]
    default = protocol != "both" and average == evaluation.Protocol(protocol).average
    return "_".join(
        [*parts, *map(str, sorted(scales)), *([average] if average and not default else [])]
    )


def is_evaluated(run: Run, split: str) -> bool:
    """Return whether all central crops of a split have been evaluated, at any scale."""
    if split in run.results:
        return True
    images = run.read_json("data.json")["splits"].get(split, {}).get("images")
    # The last file of posteriors has the number of images in its name.
    last_files = (run.directory / "posteriors" / split).glob(f"center-*/*-{images or 0:09d}.npz")
    return any(last_files)


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its directory's name, or its path if two names are equal."""
    names = [run.directory.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.directory) for run in runs]


def paper_scales(recipe: Recipe) -> tuple[Sequence[Scale], Sequence[Scale]]:
    """Return the paper's test scales: those of single-scale and those of multi-scale testing.

    A network trained at S is tested at Q = S, and at {S - d, S, S + d}; d is 32 for images of 224,
    and in proportion for other sizes. A network trained at S in [low, high] is tested at
    (low + high) / 2, and at {low, (low + high) / 2, high}. No scale is below the image size. If a
    recipe does not rescale, its images are not rescaled here.
    """
    if recipe.train_scale_range is None:
        return [recipe.eval_scale_side], [recipe.eval_scale_side]
    low, high = recipe.train_scale_range
    middle = (low + high) // 2
    if low == high:
        step = round(recipe.image_size / 7)
        low, high = low - step, high + step
    multiple = {max(scale, recipe.image_size) for scale in (low, middle, high)}
    return [max(middle, recipe.image_size)], sorted(multiple)


def paper_tables(
    runs: Sequence[Run], split: str = "test", verbose: bool = False, average: str | None = None
) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
    """Return the paper's Tables 3 to 6 of some runs as (title, headers, rows); errors in per cent.

    Args and raises: as `evaluate_runs`; the scales are those of `paper_scales`. Table 6 fuses all
    runs; it is left out for a single run.
    """
    _check(runs, "both", (), average)
    names = run_names(runs)
    errors = ("top-1 error", "95 % interval", "top-5 error")
    single_scale, multi_scale, by_protocol = [], [], []
    evaluators = _evaluators(runs, split, average, verbose)
    plans = []
    for name, evaluator in zip(names, evaluators, strict=True):
        train_scale = _train_scale_text(evaluator.run.recipe.train_scale_range)
        one_scale, several_scales = paper_scales(evaluator.run.recipe)
        for rows, scales in ((single_scale, one_scale), (multi_scale, several_scales)):
            evaluated = evaluator.average_of(_plan("dense", scales))
            rows.append((name, train_scale, _test_scales_text(scales), *_errors(evaluated)))
        plans.append({protocol: _plan(protocol, several_scales) for protocol in _SECTION_4_3})
        by_protocol += [
            (name, protocol, *_errors(evaluator.average_of(plan)))
            for protocol, plan in plans[-1].items()
        ]
        evaluator.close()  # A network of the paper takes half a gigabyte.
    tables = [
        ("Table 3: dense testing at one scale", ("net", "S", "Q", *errors), single_scale),
        ("Table 4: dense testing at several scales", ("net", "S", "Q", *errors), multi_scale),
        ("Table 5: dense and multi-crop testing", ("net", "testing", *errors), by_protocol),
    ]
    if len(runs) > 1:
        rows = []
        for protocol in _SECTION_4_3:
            evaluations = [
                evaluator.average_of(plan[protocol])
                for evaluator, plan in zip(evaluators, plans, strict=True)
            ]
            rows.append((" + ".join(names), protocol, *_errors(evaluation.fuse(evaluations))))
        tables.append(("Table 6: fusion", ("nets", "testing", *errors), rows))
    return tables


def _errors(evaluated: evaluation.Evaluation) -> tuple[str, str, str | None]:
    """Return the top-1 error, its interval and the top-5 error, in per cent."""
    low, high = evaluated.interval()
    top5 = None if evaluated.top5 is None else f"{100 * (1 - evaluated.top5):.2f}"
    bounds = f"{100 * (1 - high):.2f} to {100 * (1 - low):.2f}"
    return f"{100 * (1 - evaluated.top1):.2f}", bounds, top5


def _evaluators(
    runs: Sequence[Run], split: str, average: str | None, verbose: bool
) -> list[_Evaluator]:
    """Open all runs first, so that an error shows before hours of evaluation."""
    require_same_split(runs, split)
    return [_Evaluator(run, split, average, verbose) for run in runs]


class _Evaluator:
    """A run on one split. The model and the data are opened when they are needed."""

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
        """Return every image's posteriors by one protocol at one scale; reuse those on disk."""
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
        # Other weights or images have another digest, and so a folder of their own.
        folder = "-".join(map(str, (protocol.name, protocol.average, scale or "native", digest)))
        cache = ArrayCache(self.run.directory / "posteriors" / self._name / folder, key)
        if cache.done < split.size:
            self._run(protocol, transform, cache, f"{self.run.directory.name} {folder}")
        arrays = cache.load()
        return evaluation.Evaluation(arrays["labels"], arrays["posteriors"], self.run.class_names)

    def average_of(self, plan: Sequence[tuple[str, Scale]]) -> evaluation.Evaluation:
        """Return the average of the posteriors of several protocols and scales."""
        return evaluation.fuse([self.posteriors(protocol, scale) for protocol, scale in plan])

    def close(self) -> None:
        """Free the network's memory. It is loaded again if it is needed."""
        self._model = None
        self._runners = {}

    def _run(
        self, protocol: evaluation.Protocol, transform: partial, cache: ArrayCache, label: str
    ) -> None:
        recipe, split, classes = self.run.recipe, self._split, len(self.run.class_names)
        if self._model is None:
            self._model = self.run.model()
            self._model.jit_compile = hardware.compiles_evaluation(recipe)
        if protocol not in self._runners:  # All scales share one: each new one is traced anew.
            self._runners[protocol] = evaluation.runner(self._model, protocol, classes)
        remaining = split.between(cache.done, split.size)
        images = data.evaluation_dataset(remaining, None, transform).as_numpy_iterator()
        blocks = evaluation.posteriors(
            self._runners[protocol],
            images,  # pyright: ignore[reportArgumentType]  # The stub has one column.
            classes=classes,
            pixels=min(recipe.batch_size * recipe.image_size**2, _PIXELS),
        )
        with (
            data.bad_images_named(split),
            progress_bars(self._verbose) as progress,
            # Each run and protocol has a network of its own, so retracing is expected.
            _without_tensorflow_message("triggered tf.function retracing"),
        ):
            task = progress.add_task(label, total=split.size, completed=cache.done)
            for labels, probabilities in blocks:
                cache.add(labels=labels, posteriors=probabilities)
                progress.update(task, completed=cache.done)
        if cache.done != split.size:
            raise ValueError(f"evaluated {cache.done} of {split.size} images")


@contextlib.contextmanager
def _without_tensorflow_message(message: str) -> Iterator[None]:
    """Drop records of TensorFlow's logger that contain a message."""
    logger = logging.getLogger("tensorflow")

    def is_other(record: logging.LogRecord) -> bool:
        return message not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def open_split(run: Run, name: str) -> data.Split:
    """Open a split of the run's source, with the same images as when the run began.

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
    if protocol == "center":
        return partial(evaluation_transform(recipe), scale=scale)
    transform = partial(
        augment.whole_image, size=recipe.image_size, scale=scale, resize=recipe.resize
    )
    if protocol == "multi-crop":
        transform = partial(
            augment.grid_crops,
            **transform.keywords,
            padding=recipe.crop_padding,
            flip=recipe.horizontal_flip,
        )
    return augment.in_grey(transform) if recipe.color == "grey" else transform


def _plan(protocol: str, scales: Sequence[Scale]) -> list[tuple[str, Scale]]:
    names = ("dense", "multi-crop") if protocol == "both" else (protocol,)
    return [(name, scale) for name in names for scale in scales]


def _check(runs: Sequence[Run], protocol: str, scales: Sequence[int], average: str | None) -> None:
    if not runs:
        raise ValueError("there is no run to evaluate; name at least one")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, not {protocol!r}")
    evaluation.Protocol("center", average)
    size = max(run.recipe.image_size for run in runs)
    for scale in scales:
        if scale < size:
            raise ValueError(
                f"scale {scale} is below {size}, the size of the network's images: the network "
                "would see a frame of zeros, which no training image has; choose a larger scale"
            )
    if len(set(scales)) != len(scales):
        raise ValueError(f"scales must differ, not {', '.join(map(str, scales))}")


def require_same_split(runs: Sequence[Run], split: str) -> None:
    """Raise ValueError if the runs' classes, or their images of this split, differ."""
    descriptions = [run.read_json("data.json") for run in runs]
    first = descriptions[0]
    for run, description in zip(runs, descriptions, strict=True):
        same_classes = description["class_names"] == first["class_names"]
        same_images = description["splits"].get(split) == first["splits"].get(split)
        if not (same_classes and same_images):
            raise ValueError(
                f"{run.directory} and {runs[0].directory} cannot be compared: their {split} images "
                "or classes differ"
            )


def _train_scale_text(scale: tuple[int, int] | None) -> str:
    if scale is None:
        return "not rescaled"
    return f"{scale[0]}" if scale[0] == scale[1] else f"[{scale[0]}, {scale[1]}]"


def _test_scales_text(scales: Sequence[Scale]) -> str:
    return ", ".join("not rescaled" if scale is None else str(scale) for scale in scales)

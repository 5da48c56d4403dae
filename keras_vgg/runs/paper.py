"""The paper's Tables 3 to 6 of some runs, at the paper's test scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_vgg import evaluation
from keras_vgg.recipe import Recipe
from keras_vgg.run import Run
from keras_vgg.runs.evaluate import check_options, open_evaluators, run_names
from keras_vgg.runs.evaluator import Scale, plan_of
from keras_vgg.runs.images import UnknownClasses

_SECTION_4_3 = ("dense", "multi-crop", "both")  # the protocols of Tables 5 and 6


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
    runs: Sequence[Run],
    split: str | None = None,
    verbose: bool = False,
    average: str | None = None,
    *,
    source: str | None = None,
    unknown_classes: UnknownClasses = "error",
) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
    """Return the paper's Tables 3 to 6 of some runs as (title, headers, rows); errors in per cent.

    Args and raises: as `evaluate_runs`; the scales are those of `paper_scales`. Table 6 fuses all
    runs; it is left out for a single run.
    """
    check_options(runs, "both", (), average)
    names = run_names(runs)
    errors = ("top-1 error", "95 % interval", "top-5 error")
    single_scale, multi_scale, by_protocol = [], [], []
    evaluators = open_evaluators(runs, split, average, verbose, source, unknown_classes)
    plans = []
    for name, evaluator in zip(names, evaluators, strict=True):
        train_scale = _train_scale_text(evaluator.run.recipe.train_scale_range)
        one_scale, several_scales = paper_scales(evaluator.run.recipe)
        for rows, scales in ((single_scale, one_scale), (multi_scale, several_scales)):
            evaluated = evaluator.average_of(plan_of("dense", scales))
            rows.append((name, train_scale, _test_scales_text(scales), *_errors(evaluated)))
        plans.append({protocol: plan_of(protocol, several_scales) for protocol in _SECTION_4_3})
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


def _train_scale_text(scale: tuple[int, int] | None) -> str:
    if scale is None:
        return "not rescaled"
    return f"{scale[0]}" if scale[0] == scale[1] else f"[{scale[0]}, {scale[1]}]"


def _test_scales_text(scales: Sequence[Scale]) -> str:
    return ", ".join("not rescaled" if scale is None else str(scale) for scale in scales)

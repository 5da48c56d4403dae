"""Choose the most accurate export that meets a size or a latency, measured on this machine."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keras_vgg import export
from keras_vgg.console import progress_bars
from keras_vgg.export.checks import check_tolerance
from keras_vgg.export.exporting import NAMES, RECORD
from keras_vgg.export.folder import whole_folder
from keras_vgg.export.formats import FLOAT32_FORMATS
from keras_vgg.files import write_json
from keras_vgg.image_paths import expanded
from keras_vgg.run import read_fields

THREADS = 2  # threads of the latency that a target limits
UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Target:
    """The limits that an exported file has to meet.

    Attributes:
        latency_ms: The most milliseconds that one image may take at batch 1 with two threads (the
            median). None: any.
        size_mb: The most megabytes (1,000,000 bytes) of the file or folder. None: any.
    """

    latency_ms: float | None = None
    size_mb: float | None = None

    def __post_init__(self) -> None:
        for name, limit, unit in (
            ("target_latency", self.latency_ms, "milliseconds"),
            ("target_size", self.size_mb, "megabytes"),
        ):
            if limit is not None and not 0 < limit < math.inf:
                raise ValueError(f"{name} must be a positive number of {unit}, not {limit:g}")

    def __str__(self) -> str:
        latency = None if self.latency_ms is None else f"{self.latency_ms:g} ms"
        size = None if self.size_mb is None else f"{self.size_mb:g} MB"
        return " and ".join(filter(None, (latency, size)))


def target_of(latency_ms: float | None, size_mb: float | None) -> Target | None:
    """Return the target of two limits; None if there is no limit."""
    return None if latency_ms is None and size_mb is None else Target(latency_ms, size_mb)


@dataclass(frozen=True)
class Attempt:
    """A file that was tried.

    Attributes:
        format: One of FORMATS.
        network: UNCHANGED, or what was done to the network, such as "compressed".
        artifact: The figures of the file. None: there is no such file.
        model_accuracy: The accuracy of the run's own network on the same images, in [0, 1]. None:
            the images have no labels.
        refused: Why there is no such file.
    """

    format: str
    network: str = UNCHANGED
    artifact: export.Artifact | None = None
    model_accuracy: float | None = None
    refused: str | None = None

    @property
    def name(self) -> str:
        """The format, and what was done to the network if anything was."""
        return self.format if self.network == UNCHANGED else f"{self.format}, {self.network}"

    @property
    def figures(self) -> export.Artifact:
        """The figures of a file that ran."""
        assert self.artifact is not None, self.refused
        return self.artifact

    @property
    def milliseconds(self) -> float:
        """The median of an image's milliseconds with THREADS threads."""
        return self.figures.latency_ms[THREADS][0]

    @property
    def megabytes(self) -> float:
        return self.figures.bytes / 1e6

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy in [0, 1]; mean average precision for several labels an image."""
        precision = self.figures.mean_average_precision
        return self.figures.top1 if precision is None else precision

    @property
    def lost(self) -> float:
        """Lost percentage points of accuracy; without labels, of agreement. Negative: a gain."""
        if self.accuracy is None or self.model_accuracy is None:
            return round(100 * (1 - self.figures.agreement), 6)
        return round(100 * (self.model_accuracy - self.accuracy), 6)

    def keeps(self, tolerance: float) -> bool:
        """Return whether at most `tolerance` percentage points are lost."""
        return self.lost <= tolerance + 1e-6  # float64's rounding does not decide

    def excess(self, target: Target) -> float:
        """Return the largest quotient of a figure and its limit: at most 1 if the target is met."""
        quotients = []
        if target.latency_ms is not None:
            quotients.append(self.milliseconds / target.latency_ms)
        if target.size_mb is not None:
            quotients.append(self.megabytes / target.size_mb)
        return max(quotients)

    def verdict(self, target: Target, tolerance: float) -> str:
        """Return "passed", "refused", or everything that speaks against the file."""
        if self.artifact is None:
            return "refused"
        faults = {
            "too slow": target.latency_ms is not None and self.milliseconds > target.latency_ms,
            "too large": target.size_mb is not None and self.megabytes > target.size_mb,
            "loses too much": not self.keeps(tolerance),
        }
        return ", ".join(fault for fault, is_so in faults.items() if is_so) or "passed"


@dataclass(frozen=True)
class Group:
    """Candidates that are tried together: some formats of one network.

    Attributes:
        network: As in Attempt.
        formats: The formats to try.
        write: `export.export`, with its arguments but for the folder, the formats, the tolerance,
            `overwrite` and `verbose`.
        based_on: Another network, as in Attempt, that this one is made from. If each of its files
            loses too much, no file of this group is made. None: the formats are tried in any case.
    """

    network: str
    formats: tuple[str, ...]
    write: Callable[..., list[export.Artifact]]
    based_on: str | None = None


class TargetError(export.ExportError):
    """No file meets the target within the tolerance.

    `tried` and `left_out` are what export.json would show under "tried" and "left_out".
    """

    def __init__(
        self, message: str, tried: list[dict[str, Any]], left_out: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.tried, self.left_out = tried, tuple(left_out)


def groups_of(
    formats: Sequence[str],
    network: str,
    write: Callable[..., list[export.Artifact]],
    based_on: str | None = None,
) -> list[Group]:
    """Return the groups of one network. The float32 formats of the unchanged one come first.

    A float32 format of the unchanged network answers like the network, so that no other format can
    lose less.
    """
    if network != UNCHANGED:
        return [Group(network, tuple(formats), write, based_on)]
    exact = tuple(format for format in formats if format in FLOAT32_FORMATS)
    lower = tuple(format for format in formats if format not in FLOAT32_FORMATS)
    return [Group(network, chosen, write) for chosen in (exact, lower) if chosen]


def export_for_target(
    groups: Sequence[Group],
    target: Target,
    directory: Path,
    *,
    tolerance: float,
    overwrite: bool = False,
    verbose: bool = False,
    left_out: Sequence[str] = (),
) -> list[export.Artifact]:
    """Try candidates, and keep the most accurate one that meets a target.

    The groups are tried in their order, each as a whole, until a group has a file that meets the
    target and loses at most `tolerance` percentage points. The file that loses the least is kept;
    at equal loss, the one with the higher agreement, then the one that is further below the target.
    What was measured is the file that is kept: nothing is written a second time. export.json gets
    the key `target`, with every attempt.

    Args:
        groups: The candidates, those that are expected to lose the least accuracy first.
        directory, overwrite, verbose: As `export.export`.
        left_out: Why other formats and networks are not among the candidates, for export.json.

    Returns:
        The artifact that is kept.

    Raises:
        TargetError: no file meets the target. Nothing is written.
        ValueError, OSError: as `export.export`, for the first candidate. A later network that
            cannot be made, or a format that cannot represent it, is an attempt that was refused.
    """
    check_tolerance(tolerance)
    attempts: list[Attempt] = []
    chosen = None
    directory = Path(os.path.abspath(expanded(directory)))
    with (
        whole_folder(directory, RECORD, overwrite, NAMES) as new_folder,
        progress_bars(verbose) as progress,
    ):
        task = progress.add_task("", total=sum(len(group.formats) for group in groups))
        remaining = list(groups)
        while remaining and chosen is None:
            group = remaining.pop(0)
            candidate = new_folder.parent / "candidate"
            reason = _hopeless(group, attempts, tolerance)
            tried = (
                [Attempt(format, group.network, refused=reason) for format in group.formats]
                if reason
                else _tried(group, candidate, is_first=not attempts)
            )
            for attempt in tried:
                progress.update(task, advance=1, description=attempt.name)
                attempts.append(attempt)
                if attempt.verdict(target, tolerance) == "passed" and (
                    chosen is None or _cost(attempt, target) < _cost(chosen, target)
                ):
                    chosen = attempt
                    shutil.rmtree(new_folder)
                    candidate.rename(new_folder)
                shutil.rmtree(candidate, ignore_errors=True)
        if chosen is None:
            raise TargetError(
                _missed(attempts, target, tolerance),
                _rows(attempts, target, tolerance),
                left_out,
            )
        record = new_folder / RECORD
        search = {
            "latency_ms": target.latency_ms,
            "size_mb": target.size_mb,
            "threads": THREADS,
            "chosen": chosen.name,
            "cost": cost_of(chosen),
            "tried": _rows(attempts, target, tolerance),
            "not_tried": [
                Attempt(f, group.network).name for group in remaining for f in group.formats
            ],
            "left_out": list(left_out),
        }
        write_json(record, {**read_fields(record), "tolerance": tolerance, "target": search})
    return [replace(chosen.figures, path=directory / chosen.figures.path.name)]


def _hopeless(group: Group, attempts: Sequence[Attempt], tolerance: float) -> str | None:
    """Return why no file of a group can keep the accuracy; None: it has to be tried."""
    made = [a for a in attempts if a.network == group.based_on and a.artifact is not None]
    if not made or any(attempt.keeps(tolerance) for attempt in made):
        return None
    return f"the network {group.based_on} alone loses more than {tolerance:g} percentage points"


def _tried(group: Group, folder: Path, is_first: bool) -> Iterator[Attempt]:
    """Write each format of a group into `folder`, which may be taken away, and yield the figures.

    An error of the first network of all is raised. A later network that cannot be made is refused.
    """
    # This tolerance refuses no loss, so that a file that loses too much has figures, too.
    options = {"tolerance": 100.0, "overwrite": False, "verbose": False}
    for place, format in enumerate(group.formats):
        try:
            (artifact,) = group.write(folder, formats=[format], **options)
        except export.ExportError as error:
            yield Attempt(format, group.network, refused=str(error))
        except ValueError as error:
            if is_first:
                raise
            for refused in group.formats[place:]:
                yield Attempt(refused, group.network, refused=str(error))
            return
        else:
            model = read_fields(folder / RECORD)["model"]
            accuracy = model.get("mean_average_precision", model.get("top1"))
            yield Attempt(format, group.network, artifact, accuracy)


def _cost(attempt: Attempt, target: Target) -> tuple[float, float, float]:
    """Return what is least for the best file. A gain in accuracy is chance, and counts as none."""
    return max(attempt.lost, 0.0), -attempt.figures.agreement, attempt.excess(target)


def cost_of(attempt: Attempt) -> str:
    """Return one sentence about what a file costs."""
    artifact = attempt.figures
    agreement = f"agrees with the network on {artifact.agreement:.2%} of {artifact.images:,} images"
    start = f"{attempt.name} has {_figures(attempt)} an image"
    if attempt.accuracy is None or attempt.model_accuracy is None:
        return f"{start} and {agreement}; these images have no labels."
    metric = "top-1 accuracy" if artifact.top1 is not None else "mean average precision"
    points = f"{attempt.lost:.2f} percentage points of" if attempt.lost > 0 else "no"
    return (
        f"{start}; it loses {points} {metric} ({attempt.accuracy:.2%}, the network"
        f" {attempt.model_accuracy:.2%}) and {agreement}."
    )


def _figures(attempt: Attempt) -> str:
    return f"{attempt.megabytes:.3g} MB and {attempt.milliseconds:.3g} ms"


def _missed(attempts: Sequence[Attempt], target: Target, tolerance: float) -> str:
    """Return the error that no file meets the target: the nearest one, and what may help."""
    ran = [attempt for attempt in attempts if attempt.artifact is not None]
    if not ran:
        return f"no file could be made: {attempts[0].refused}"
    within = [attempt for attempt in ran if attempt.keeps(tolerance)]
    message = f"no export loses at most {tolerance:g} percentage points"
    if within:
        message = f"no export meets the target of {target}"
        nearest = min(within, key=lambda attempt: attempt.excess(target))
        message += (
            f"; the nearest that loses at most {tolerance:g} percentage points is {nearest.name},"
            f" with {_figures(nearest)}"
        )
    lossy = [attempt for attempt in ran if attempt not in within and attempt.excess(target) <= 1]
    if lossy:
        best = min(lossy, key=lambda attempt: attempt.lost)
        message += (
            f"; {best.name} meets {target} and loses {best.lost:.2f}: raise the tolerance for it"
        )
    return f"{message}. Nothing was written"


def _rows(attempts: Sequence[Attempt], target: Target, tolerance: float) -> list[dict[str, Any]]:
    """Return attempts as export.json keeps them."""
    rows = []
    for attempt in attempts:
        row: dict[str, Any] = {"format": attempt.format, "network": attempt.network}
        if (artifact := attempt.artifact) is not None:
            row |= {
                "images": artifact.images,
                "bytes": artifact.bytes,
                "latency_ms": {str(n): figures for n, figures in artifact.latency_ms.items()},
                "agreement": artifact.agreement,
                "accuracy": attempt.accuracy,
                "lost_points": attempt.lost,
            }
        verdict = attempt.verdict(target, tolerance)
        rows.append({**row, "verdict": verdict, "refused": attempt.refused})
    return rows

"""keras-vgg export."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from keras_vgg.cli.sources import DEFAULT_OPTIONS, FlatSourceOptions
from keras_vgg.console import new_table, percent, show

if TYPE_CHECKING:
    from keras_vgg.run import Run


@dataclasses.dataclass(frozen=True)
class Export:
    """Write files of a trained network for deployment, each verified on real images first.

    A run is verified on its validation images, a weight file on those of --source. The files take
    RGB images in [0, 255]; they contain the preprocessing, and state how to bring an image to their
    size, and the class names. Each file runs in a process of its own.
    Accuracy, agreement with the model, latency and memory go into export.json. If a file loses more
    than the tolerance, no file is kept.
    """

    run: tyro.conf.Positional[Path]
    """The run directory, or a weight file with its classifier, or hf://OWNER/NAME."""
    format: str | None = None
    """Comma-separated formats: saved_model, saved_model_bfloat16 (TensorFlow Serving); litert,
    litert_float16, litert_dynamic, litert_int8, litert_int16 (LiteRT, formerly TFLite); onnx;
    openvino (default: saved_model,litert; with --compress litert_int8; with a target, the choice is
    among all that are installed)."""
    output: Path | None = None
    """Folder to write into (default: export/ in the run directory; for a weight file FILE.export
    beside it; for hf://OWNER/NAME NAME.export in the working directory)."""
    tolerance: float = 0.5
    """Percentage points of top-1 accuracy that a format of less than float32 may lose. A float32
    format must answer like the model."""
    images: int | None = None
    """Number of images to verify with, evenly spaced (default: all validation images, or all that
    --source gives)."""
    top: int = 5
    """Number of classes that the SavedModel's signature classify names."""
    compress: bool = False
    """Factorise fc1 and fc2 first, as far as accuracy allows. Every other validation image chooses
    the ranks, which may cost half of the tolerance; the remaining ones verify the export. Also
    writes compression.png."""
    target_latency: float | None = None
    """Choose one file: the most accurate one that answers an image within this many milliseconds on
    this machine (median, batch 1, two threads). The float32 formats are measured first; if none is
    fast enough, the others; then the networks of --pruned; then the network with fc1 and fc2
    compressed; then those of --pruned with fc1 and fc2 compressed. --format and --compress restrict
    the choice."""
    target_size: float | None = None
    """Choose one file: the most accurate one of at most this many megabytes. As --target-latency,
    and litert_int16 is tried last; with both, the file meets both."""
    pruned: Path | None = None
    """With a target: the directory of `keras-vgg prune RUN`, whose networks are candidates, too."""
    fine_tune_steps: int = 0
    """With --compress, or a target that compression may meet: train the factors on the original's
    answers for this many batches of 32."""
    calibration_method: Literal["minmax", "percentile", "mse"] = "minmax"
    """How training images give the range of values of each layer in litert_int8. minmax: the least
    and the greatest value; percentile: without one value in 100,000 at either end; mse: the range
    with the least squared error."""
    calibrated: bool = False
    """Divide the scores by the temperature of `keras-vgg calibrate`, inside the files."""
    overwrite: bool = False
    """Replace an existing export."""
    source: str | None = None
    """Source of images to verify on: digits, folder:PATH, csv:FILE, records:PATH, idx:PATH or a
    TFDS name. A run's recipe says how they come to the network; their classes are matched by name;
    its test images are read, or all if it has no splits, but the validation images for a weight
    file, and of the run's own images in a new place (default for a run: its own validation
    images)."""
    unknown_classes: Literal["error", "skip"] = "error"
    """If another set has classes that a run does not know: stop with an error, or skip their
    images."""
    source_options: FlatSourceOptions = DEFAULT_OPTIONS

    def __call__(self) -> None:
        from keras_vgg import runs

        has_target = self.target_latency is not None or self.target_size is not None
        formats = None if self.format is None else self.format.split(",")
        if formats is None and not has_target:
            formats = ["litert_int8"] if self.compress else ["saved_model", "litert"]
        if formats is not None:
            formats = tuple(format.strip() for format in formats)
        uses_method = formats is None or "litert_int8" in formats  # a target may try it
        if self.calibration_method != "minmax" and not uses_method:
            raise ValueError(
                f"--calibration-method {self.calibration_method} is for the format litert_int8; add"
                " it to --format, or leave the method out"
            )
        options = {
            "formats": formats,
            "images": self.images,
            "tolerance": self.tolerance,
            "top": self.top,
            "compress": self.compress,
            "fine_tune_steps": self.fine_tune_steps,
            "target_latency": self.target_latency,
            "target_size": self.target_size,
            "calibration_method": self.calibration_method,
            "overwrite": self.overwrite,
            "verbose": True,
        }
        run = runs.run_of(self.run)
        try:
            artifacts = self._artifacts(run, options)
        except runs.TargetError as error:
            _show_attempts(error.tried)
            _show_left_out(error.left_out)
            raise
        self._show(artifacts)

    def _artifacts(self, run: Run | None, options: dict[str, Any]) -> Sequence:
        """Return the artifacts of an export of a run, or of a weight file."""
        from keras_vgg import runs
        from keras_vgg.run import Run, directory_of_run
        from keras_vgg.weights import hub_repository

        path, repository = directory_of_run(self.run), hub_repository(self.run)
        # A Path has one slash where the text has two.
        name = str(path) if repository is None else f"hf://{repository}"
        output = self.output
        if output is None and (run is None or path.is_file()):  # a run directory has its export/
            file = path if repository is None else Path(repository.rpartition("/")[2])
            named = file if file.name else file.absolute()  # "."
            output = named.with_name(f"{named.name}.export")
        if run is not None and (path.is_dir() or self.source is not None):
            data_dir, columns = self.source_options.data_dir, self.source_options.columns
            others = dataclasses.replace(self.source_options, data_dir=None, columns="")
            if others != DEFAULT_OPTIONS:
                raise ValueError(
                    "how a run's source is opened is in its recipe; leave out the options of the"
                    " source, such as --seed, but for --data-dir and --columns"
                )
            run = runs.in_data_dir(run, data_dir, self.source)
            run = runs.with_columns(run, columns or None, self.source)
            return runs.export_run(
                run,
                output,
                source=self.source,
                unknown_classes=self.unknown_classes,
                calibrated=self.calibrated,
                pruned=self.pruned,
                **options,
            )
        if self.source is None:
            if path.is_file() or repository is not None:
                raise ValueError(
                    f"{name} is not a run directory; name images to verify on with --source, such "
                    "as folder:PHOTOS"
                )
            Run.open(path)  # raises an error that says why there is no run
            raise AssertionError
        for option in ("calibrated", "pruned", "unknown_classes"):
            if getattr(self, option) not in (None, False, "error"):
                flag = option.replace("_", "-")
                raise ValueError(f"--{flag} needs a run, which {name} is not")
        source = self.source_options.open(self.source)
        assert output is not None  # there is no run
        return runs.export_weights(name, source, output, **options)

    def _show(self, artifacts: Sequence) -> None:
        headers = ("MB", "top-1", "top-5", "agreement", "max |Δp|", "ms, 1 thread", "2 threads")
        directory = artifacts[0].path.parent
        record = json.loads((directory / "export.json").read_text())
        search = record.get("target")
        if search is not None:
            _show_attempts(search["tried"])
        model = record["model"]
        names = ("top1", "top5")
        if "mean_average_precision" in model:  # several labels an image
            names, headers = ("mean_average_precision",), (headers[0], "mean AP", *headers[3:])
        figures = [percent(model[name]) for name in names]
        of = "validation images" if self.source is None else f"images of {self.source}"
        table = new_table(
            f"verified on {artifacts[0].images:,} {of}; ms: median (95th percentile)",
            *("format", *headers, "peak MB"),
        )
        table.add_row("the model, float32", f"{model['bytes'] / 1e6:.2f}", *figures)
        for a in artifacts:
            table.add_row(
                a.format,
                f"{a.bytes / 1e6:.2f}",
                *(percent(getattr(a, name)) for name in (*names, "agreement")),
                f"{a.max_difference:.1e}",
                *(f"{median:.2f} ({p95:.2f})" for median, p95 in a.latency_ms.values()),
                "" if a.peak_bytes is None else f"{a.peak_bytes / 1e6:.0f}",
            )
        show(table)
        for a in artifacts:
            if a.float_operations:
                show(f"{a.format}: {', '.join(a.float_operations)} stayed in float32")
        self._show_errors(directory / "quantisation.json")
        if search is not None:
            _show_choice(search)
        picture = directory / "compression.png"
        pictures = [picture] if picture.is_file() else []
        show("\n".join(map(str, [*(a.path for a in artifacts), *pictures])))

    def _show_errors(self, file: Path) -> None:
        """Show by layer what the files of integers lose, if there are any."""
        for format, rows in (json.loads(file.read_text()) if file.is_file() else {}).items():
            table = new_table(
                f"{format}: signal-to-noise ratio in dB, by layer",
                *("layer", "clipped", "weights alone", "rounding alone", "all errors so far"),
            )
            for row in rows:
                ratios = (row[name] for name in ("weights_db", "rounding_db", "total_db"))
                cells = ("" if ratio is None else f"{ratio:.1f}" for ratio in ratios)
                table.add_row(row["layer"], percent(row["clipped"]), *cells)
            show(table)


def _show_attempts(tried: Sequence[Mapping[str, Any]]) -> None:
    """Show every candidate of a target, and why a candidate gave no file."""
    names = [
        row["format"] if row["network"] == "unchanged" else f"{row['format']}, {row['network']}"
        for row in tried
    ]
    table = new_table(
        "candidates, measured on this machine; ms: median at batch 1",
        *("format", "MB", "ms, 1 thread", "2 threads", "accuracy", "points lost", "agreement", ""),
    )
    for name, row in zip(names, tried, strict=True):
        if row["refused"] is not None:
            table.add_row(name, *[""] * 6, row["verdict"])
            continue
        latency = row["latency_ms"]
        table.add_row(
            name,
            f"{row['bytes'] / 1e6:.2f}",
            *(f"{latency[n][0]:.2f}" if n in latency else "" for n in ("1", "2")),
            percent(row["accuracy"]),
            f"{row['lost_points']:.2f}",
            percent(row["agreement"]),
            row["verdict"],
        )
    show(table)
    refused: dict[str, list[str]] = {}
    for name, row in zip(names, tried, strict=True):
        if row["refused"] is not None:
            refused.setdefault(row["refused"], []).append(name)
    for reason, refused_names in refused.items():
        verb = "was" if len(refused_names) == 1 else "were"
        show(f"{'; '.join(refused_names)} {verb} refused: {reason}")


def _show_choice(search: Mapping[str, Any]) -> None:
    """Show which candidate was chosen and what it costs, and what was not tried."""
    show(f"Chosen: {search['cost']}")
    if search["not_tried"]:
        show(f"Not tried, because others met the target first: {'; '.join(search['not_tried'])}")
    _show_left_out(search["left_out"])


def _show_left_out(reasons: Sequence[str]) -> None:
    for reason in reasons:
        show(f"Not tried: {reason}")

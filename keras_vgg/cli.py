"""keras-vgg: one library call per subcommand. Imports nothing heavy before a command runs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from keras_vgg import __version__
from keras_vgg.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.table import Table

OK, DIVERGED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network: keras-vgg train [RECIPE.py] --workdir RUN [--field value ...]

    Without a recipe it learns scikit-learn's handwritten digits. Every field of the recipe is an
    option below; the defaults shown are those of the recipe given. The run directory gets the
    recipe, the environment, metrics.csv, TensorBoard logs, checkpoints and model.keras, the best
    epoch by validation accuracy. Repeating a command resumes what was interrupted; on SIGTERM (exit
    status 143) and Ctrl-C (130) the step is ended and kept first.
    """

    workdir: Path
    """The run directory: new, empty, or an earlier run of the same recipe."""
    recipe: Annotated[tyro.conf.FlagConversionOff[Recipe], tyro.conf.arg(name="")] = (
        dataclasses.field(default_factory=Recipe)
    )
    quiet: bool = False
    """A line an epoch instead of a progress bar."""
    backend: Literal["tensorflow", "jax"] | None = None
    """Of Keras; on JAX several hosts can train together (default: KERAS_BACKEND, or tensorflow)."""
    coordinator: str | None = None
    """Several processes: HOST:PORT of the first, the same for all, or auto: SLURM, Open MPI."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which this is, from 0 (default: JOB_COMPLETION_INDEX, as Kubernetes sets it)."""

    def __call__(self) -> None:
        from keras_vgg.fit import fit, hosts

        if self.coordinator is not None:
            hosts.join(self.coordinator, self.processes, self.process)
        elif (self.processes, self.process) != (None, None):
            raise ValueError("--processes and --process need --coordinator HOST:PORT")
        run = fit(self.recipe, self.workdir, verbose=2 if self.quiet else "auto")
        if hosts.index():
            return
        results = run.results
        peak = results.get("peak_memory")
        memory = f", peak memory {peak / 1e9:.2f} GB" if peak else ""
        _print(
            f"best epoch {results['best_epoch']} of {results['epochs']}: validation accuracy "
            f"{results['validation_accuracy']:.2%}, {results['training_seconds']:.0f} s{memory}\n"
            f"{run.model_path}\n{run.directory / 'training_curve.png'}\n"
            f"next: keras-vgg evaluate {run.directory}"
        )


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Test trained networks: top-1, top-5, loss, accuracy of each class, confusion matrix.

    Every image of the split is counted. A run's figures go into its results.json, the confusion
    matrix into a PNG beside it. Read the test split once, to report; select on validation.
    Several runs are compared, and fused by averaging their posteriors: that is only printed.
    Posteriors are kept in the
    run directory: what is interrupted goes on, and what was computed is not computed again.
    Intervals are bootstrap intervals of 95 %; p is McNemar's, against the first run.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories."""
    split: Literal["test", "validation", "train"] = "test"
    """Which images."""
    protocol: Literal["center", "dense", "multi-crop", "both"] = "center"
    """One crop an image; the classifier as convolutions over the whole image; a 5 x 5 grid of
    crops; or the average of the last two. All but center see the mirror image, if training did."""
    scales: str = ""
    """Comma-separated smallest sides to rescale to, bilinearly; their posteriors are averaged
    (default: the recipe's eval_scale)."""
    average: Literal["scores", "posteriors"] | None = None
    """Of the places of an image, before or after the soft-max (default: dense scores, multi-crop
    posteriors)."""
    tables: bool = False
    """Print the paper's Tables 3 to 6 of the runs instead; the scales are the paper's."""

    def __call__(self) -> None:
        from keras_vgg import runs as testing
        from keras_vgg.fit.run import Run

        if not self.runs:
            raise ValueError("evaluate needs at least one run directory")
        runs = [Run.open(path) for path in self.runs]
        options = {"split": self.split, "verbose": True, "average": self.average}
        if self.tables:
            if self.scales or self.protocol != "center":
                raise ValueError("--tables has the paper's protocols and scales: leave them out")
            for title, headers, rows in testing.paper_tables(runs, **options):
                table = _table(f"{title}; {self.split}, per cent", *headers)
                for row in rows:
                    table.add_row(*("" if cell is None else cell for cell in row))
                _print(table)
            return
        options |= {"protocol": self.protocol, "scales": self._scales()}
        if len(runs) > 1:
            names = testing.run_names(runs)
            self._compare(names, testing.evaluate_runs(runs, **options))
            return
        evaluation = testing.evaluate_run(runs[0], **options)
        table = _table(self._title(self.runs[0]), "", "")
        table.add_row("images", f"{evaluation.count:,}")
        low, high = evaluation.interval()
        table.add_row("top-1 accuracy", f"{evaluation.top1:.2%} ({low:.2%} to {high:.2%})")
        if evaluation.top5 is not None:
            low, high = evaluation.interval(5)
            table.add_row("top-5 accuracy", f"{evaluation.top5:.2%} ({low:.2%} to {high:.2%})")
        table.add_row("loss", f"{evaluation.loss:.4f}")
        _print(table)
        table = _table("accuracy by class", "class", "images", "accuracy")
        counts = evaluation.confusion.sum(axis=1)
        for name, count, accuracy in zip(
            evaluation.class_names, counts, evaluation.per_class, strict=True
        ):
            table.add_row(name, str(count), f"{accuracy:.2%}" if count else "no image")
        _print(table)
        name = testing.evaluation_name(
            self.split, self.protocol, options["scales"], options["average"]
        )
        _print(str(runs[0].directory / f"confusion_{name}.png"))

    def _compare(self, names: Sequence[str], evaluations: Sequence) -> None:
        from keras_vgg.evaluation import compare, fuse

        headers = ("top-1", "95 % interval", "top-5", "loss", "minus the first", "p")
        table = _table(self._title(*self.runs), "run", *headers)
        rows = [*zip(names, evaluations, strict=True)]
        for name, found in [*rows, ("all, fused", fuse(evaluations))]:
            low, high = found.interval()
            cells = [f"{found.top1:.2%}", f"{low:.2%} to {high:.2%}"]
            cells += ["" if found.top5 is None else f"{found.top5:.2%}", f"{found.loss:.4f}"]
            if found is not evaluations[0]:
                between = compare(evaluations[0], found)
                low, high = between.interval
                cells.append(f"{between.difference:+.2%} ({low:+.2%} to {high:+.2%})")
                cells.append(f"{between.p_value:.2g}")
            table.add_row(name, *cells)
        _print(table)

    def _title(self, *runs: Path) -> str:
        parts = [str(runs[0])] if len(runs) == 1 else [f"{len(runs)} runs"]
        parts[0] += f": {self.split}, {self.protocol}"
        if self.scales:
            parts.append(f"scales {self.scales}")
        if self.protocol != "center":
            parts.append(f"averaged: {self.average or 'dense scores, multi-crop posteriors'}")
        return ", ".join(parts)

    def _scales(self) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in self.scales.split(",") if part.strip())
        except ValueError:
            raise ValueError(
                f"--scales must be whole numbers such as 256,384,512, not {self.scales!r}"
            ) from None


@dataclasses.dataclass(frozen=True)
class Predict:
    """Name what is on images: the most probable classes of each, with their probabilities."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files (JPEG, PNG, BMP, GIF, WebP)."""
    top: int = 5
    """How many classes to name."""

    def __call__(self) -> None:
        from keras_vgg.fit.run import Run
        from keras_vgg.runs import predict_files

        if not self.images:
            raise ValueError("predict needs at least one image file")
        run = Run.open(self.run)
        for path, ranked in zip(
            self.images, predict_files(run, self.images, top=self.top), strict=True
        ):
            table = _table(str(path), "class", "probability")
            for name, probability in ranked:
                table.add_row(name, f"{probability:.2%}")
            _print(table)


@dataclasses.dataclass(frozen=True)
class Where:
    """How a source is opened."""

    data_dir: str | None = None
    """TFDS: where prepared data sets live (default: TFDS's own, ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """TFDS: a folder that holds the data set's original files, which are then not downloaded."""
    download: bool = False
    """TFDS: download and prepare the data set when it is not there."""
    validation_fraction: float = 0.1
    """Share of the training images held out where a source has no validation split."""
    test_fraction: float = 0.2
    """Share of the images held out where a source has no test split (digits, folders)."""
    seed: int = 0
    """Decides what is held out."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A damaged image: stop and name it, or decode all first, leave it out and say how many."""

    def open(self, source: str):
        from keras_vgg import data

        return data.load_source(source, **dataclasses.asdict(self))


Opened = Annotated[Where, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True)
class Export:
    """Write deployable artifacts of a trained network, each proved on real images first.

    Of a run, on its validation images; of a weight file, on those of --source. The artifacts take
    RGB images in [0, 255]: the preprocessing is inside. Each is run in a process of its own;
    accuracy, agreement with the model, latency and memory go into export.json. Nothing is kept
    when one of them loses more than the tolerance.
    """

    run: tyro.conf.Positional[Path]
    """The run directory, or a weight file with its classifier."""
    format: str | None = None
    """Comma-separated: saved_model (TensorFlow Serving); litert, litert_float16, litert_dynamic,
    litert_int8 (LiteRT, formerly TFLite); onnx (default: saved_model,litert; with --compress
    litert_int8)."""
    output: Path | None = None
    """Where to (default: export/ in the run directory, or beside the weight file)."""
    tolerance: float = 0.5
    """Percentage points of top-1 accuracy that an artifact of less than float32 may lose; one of
    float32 must answer like the model."""
    images: int | None = None
    """How many validation images to verify with, evenly spaced (default: all of them)."""
    top: int = 5
    """How many classes the SavedModel's signature classify names."""
    compress: bool = False
    """Factorise fc1 and fc2 first, as far as accuracy allows: every other validation image chooses
    the ranks, which may cost half of the tolerance, and the rest verify. Draws compression.png."""
    fine_tune_steps: int = 0
    """With --compress: teach the factors the original's answers for so many batches of 32."""
    overwrite: bool = False
    """Replace an export that is there."""
    source: str | None = None
    """Of a weight file: digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    where: Opened = Where()

    def __call__(self) -> None:
        from keras_vgg import runs
        from keras_vgg.fit.run import Run

        format = self.format or ("litert_int8" if self.compress else "saved_model,litert")
        options = {
            "formats": tuple(f.strip() for f in format.split(",")),
            "images": self.images,
            "tolerance": self.tolerance,
            "top": self.top,
            "compress": self.compress,
            "fine_tune_steps": self.fine_tune_steps,
            "overwrite": self.overwrite,
            "verbose": True,
        }
        if self.source is None:
            if self.run.is_file():
                raise ValueError(f"{self.run} is no run: say with --source what to verify it on")
            artifacts = runs.export_run(Run.open(self.run), self.output, **options)
        else:
            source = self.where.open(self.source)
            output = self.output or self.run.with_name(f"{self.run.name}.export")
            artifacts = runs.export_weights(self.run, source, output, **options)
        self._show(artifacts)

    def _show(self, artifacts: Sequence) -> None:
        headers = ("MB", "top-1", "top-5", "agreement", "max |Δp|", "ms, 1 thread", "2 threads")
        directory = artifacts[0].path.parent
        record = json.loads((directory / "export.json").read_text())
        table = _table(
            f"verified on {artifacts[0].images:,} validation images; ms: median (95th percentile)",
            *("format", *headers, "peak MB"),
        )
        model = record["model"]
        figures = [*map(_percent, (model["top1"], model["top5"]))]
        table.add_row("the model, float32", f"{model['bytes'] / 1e6:.2f}", *figures)
        for a in artifacts:
            table.add_row(
                a.format,
                f"{a.bytes / 1e6:.2f}",
                *map(_percent, (a.top1, a.top5, a.agreement)),
                f"{a.max_difference:.1e}",
                *(f"{median:.2f} ({p95:.2f})" for median, p95 in a.latency_ms.values()),
                f"{a.peak_bytes / 1e6:.0f}",
            )
        _print(table)
        for a in artifacts:
            if a.float_operations:
                _print(f"{a.format}: {', '.join(a.float_operations)} stayed in float32")
        pictures = [directory / "compression.png"] if self.compress else []
        _print("\n".join(map(str, [*(a.path for a in artifacts), *pictures])))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print the layers of a configuration: output shape, parameters, MACs, receptive field.

    Computed from the paper's table, without building the network.
    """

    configuration: tyro.conf.Positional[str]
    """A, A-LRN, B, C, D, E, or VGG11, VGG11LRN, VGG13, VGG16C, VGG16, VGG19."""
    input_size: int = 224
    """Side of the image, from 32 up."""
    channels: int = 3
    """Of the image."""
    classes: int = 1000
    """Width of the classifier."""
    batch_norm: bool = False
    """With batch normalisation."""
    width_multiplier: float = 1.0
    """Scales the filters of every convolution."""
    head: Literal["fc", "conv", "gap"] = "fc"
    """The classifier."""
    hidden_units: int = 4096
    """Width of fc1 and fc2."""

    def __call__(self) -> None:
        from keras_vgg import architecture

        rows = architecture.layers(
            self.configuration,
            input_shape=(self.input_size, self.input_size, self.channels),
            classes=self.classes,
            batch_norm=self.batch_norm,
            width_multiplier=self.width_multiplier,
            head=self.head,
            hidden_units=self.hidden_units,
        )
        found = architecture.get_configuration(self.configuration)
        table = _table(
            f"{found.builder}, configuration {found.name}: {found.weight_layers} weight layers",
            *("layer", "kernel", "output", "parameters", "MACs", "receptive field"),
        )
        for row in rows:
            table.add_row(
                row.name,
                "x".join(map(str, row.kernel)) if row.kernel else "",
                "x".join(map(str, row.output_shape)),
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                str(row.receptive_field or "all"),
            )
        table.add_section()
        total, macs = sum(r.parameters for r in rows), sum(r.macs for r in rows)
        table.add_row("total", "", "", f"{total:,}", f"{macs:,}", "")
        _print(table)


@dataclasses.dataclass(frozen=True)
class Weights:
    """List the published ImageNet checkpoints, or say what a weight file holds.

    Without a file: each checkpoint's network, size, preprocessing, published accuracy, licence,
    where it comes from and its hash. weights="imagenet" takes Keras' for VGG16 and VGG19 without
    batch norm, torchvision's for the rest.
    """

    file: tyro.conf.Positional[Path | None] = None
    """A weight file, the folder of a KerasHub preset, or a run directory."""

    def __call__(self) -> None:
        if self.file is None:
            self._list()
            return
        from keras_vgg import convert
        from keras_vgg.weights import read_weights

        weights = read_weights(self.file)
        print(f"{self.file}: {convert.describe(convert.recognise(weights))}")
        if weights.preprocessing is None:
            print("input: the file does not say what its network was trained on")
        else:
            config = weights.preprocessing.get_config()
            mean, std = (tuple(round(v, 3) for v in config[name]) for name in ("mean", "std"))
            print(f"input: {config['channel_order'].upper()}, minus {mean}, over {std}")
        if weights.note:
            print(weights.note)

    def _list(self) -> None:
        from keras_vgg.weights import CHECKPOINTS

        headers = ("network", "top", "MB", "top-1", "top-5", "preprocessing", "licence")
        table = _table("published ImageNet checkpoints, 1000 classes, 224x224", *headers)
        for c in CHECKPOINTS:
            table.add_row(
                c.network,
                "yes" if c.include_top else "no",
                f"{c.bytes / 1e6:.1f}",
                f"{c.top1:.2f}",
                f"{c.top5:.2f}",
                c.preprocessing,
                c.licence,
            )
        _print(table)
        for c in CHECKPOINTS:
            where = f"the Hugging Face hub, {c.location}, {c.file}" if c.on_hub else c.location
            print(f"{c.name}: {where}; {c.hash or 'SHA-256 as the hub states it'}")


@dataclasses.dataclass(frozen=True)
class Convert:
    """Write a weight file's numbers in another format: Keras' or PyTorch's, either way.

    Keras .h5, .weights.h5 and .keras, .safetensors and PyTorch .pth are read and written, KerasHub
    presets and run directories are read. Every weight stays the same.
    """

    source: tyro.conf.Positional[Path]
    """What to read."""
    target: tyro.conf.Positional[Path]
    """What to write; its suffix decides the format."""
    naming: Literal["torchvision", "timm"] = "torchvision"
    """Names and layout in a .safetensors or .pth."""
    overwrite: bool = False
    """Replace a file that is there."""
    preprocessing: Literal["caffe", "torchvision"] | None = None
    """What the network expects, where the source does not say."""

    def __call__(self) -> None:
        from keras_vgg import convert

        network = convert.convert_weights(
            self.source, self.target, self.naming, self.overwrite, self.preprocessing
        )
        print(f"{self.target}: {convert.describe(network)}")


SourceName = tyro.conf.Positional[str]


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """Decode every image of a source beforehand; report damage, formats, sizes and classes.

    The exit status is 2 if an image is damaged; the report names each. Of records:PATH the files'
    hashes are compared as well.
    """

    source: SourceName
    """digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    report: Path = Path("data_check.json")
    """Where the report goes."""
    where: Opened = Where()

    def __call__(self) -> None:
        from keras_vgg import data
        from keras_vgg.atomic import write_atomically

        # What is skipped would not be reported.
        source = dataclasses.replace(self.where, on_bad_image="error").open(self.source)
        self.report.parent.mkdir(parents=True, exist_ok=True)
        report = data.check(source, verbose=True)
        text = json.dumps(report, indent=2) + "\n"
        write_atomically(self.report, lambda path: path.write_text(text))
        table = _table(self.source, "split", "images", "bad", "height", "width", "formats")
        for name, split in report["splits"].items():
            sides = [
                "{} to {}".format(*split[side][::2]) if side in split else ""
                for side in ("height", "width")
            ]
            formats = [f"{kind} {count:,}" for kind, count in split.get("formats", {}).items()]
            bad = str(len(split["bad"])) if "bad" in split else "in memory"
            table.add_row(name, f"{split['images']:,}", bad, *sides, "; ".join(formats))
        _print(table)
        _print(str(self.report))
        bad = [name for split in report["splits"].values() for name, _ in split.get("bad", [])]
        if bad:
            listed = ", ".join(bad[:10]) + (", ..." if len(bad) > 10 else "")
            raise ValueError(f"{len(bad)} images of {self.source} cannot be decoded: {listed}")
        form, _, path = self.source.partition(":")
        if form == "records":
            data.verify(path)


@dataclasses.dataclass(frozen=True)
class DataStats:
    """Mean, deviation and principal components of RGB over a source's training split."""

    source: SourceName
    """digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    limit: int | None = None
    """Look at so many images, evenly spaced (default: all)."""
    where: Opened = Where()

    def __call__(self) -> None:
        from keras_vgg import data

        split = self.where.open(self.source).train
        with data.bad_images_named(split):
            found = data.statistics(split, limit=self.limit, verbose=True)
        title = f"{self.source}: {found.images:,} of {split.size:,} training images, in [0, 255]"
        table = _table(title, "", "red", "green", "blue")
        table.add_row("mean", *(f"{v:.3f}" for v in found.mean))
        table.add_row("standard deviation", *(f"{v:.3f}" for v in found.std))
        _print(table)
        table = _table(
            "covariance of RGB in [0, 1]: its components", "eigenvalue", "red", "green", "blue"
        )
        for value, vector in zip(found.eigenvalues, found.eigenvectors.T, strict=True):
            table.add_row(f"{value:.6f}", *(f"{v:+.4f}" for v in vector))
        _print(table)
        for name, values in (("mean", found.mean), ("std", found.std)):
            _print(f"--{name}-rgb " + " ".join(f"{v:.3f}" for v in values))


@dataclasses.dataclass(frozen=True)
class DataPack:
    """Write a source's splits as sharded TFRecords, to be read as records:OUT.

    Files are stored byte for byte, and every image is decoded once to see that it is whole.
    Repeating a command goes on with what was interrupted.
    """

    source: SourceName
    """digits, folder:PATH, idx:PATH or a TFDS name."""
    out: tyro.conf.Positional[Path]
    """The folder of the pack: new, empty, or an unfinished pack of the same source."""
    shard_images: int = 1024
    """Images a file."""
    where: Opened = Where()

    def __call__(self) -> None:
        from keras_vgg import data

        source = self.where.open(self.source)
        manifest = data.pack(source, self.out, shard_images=self.shard_images, verbose=True)
        table = _table(str(self.out), "split", "images", "files", "MB")
        for name, split in manifest["splits"].items():
            size = sum(shard["bytes"] for shard in split["shards"])
            row = (f"{split['images']:,}", str(len(split["shards"])), f"{size / 1e6:.1f}")
            table.add_row(name, *row)
        _print(table)
        _print(f"next: keras-vgg train --source records:{self.out} --workdir RUN")


@dataclasses.dataclass(frozen=True)
class DataShow:
    """Draw what a recipe makes of a source's training images: a contact sheet.

    A row an image: the original with the places of the crops, what evaluation sees, and several
    augmentations of it.
    """

    source: SourceName
    """digits, folder:PATH, records:PATH, idx:PATH or a TFDS name."""
    recipe: Path | None = None
    """A recipe file, or a run's recipe.json (default: the recipe of the digits)."""
    out: Path = Path("contact_sheet.png")
    """Where the picture goes."""
    images: int = 6
    """Rows."""
    views: int = 5
    """Augmentations of each."""
    where: Opened = Where()

    def __call__(self) -> None:
        from keras_vgg.runs import show_augmentation

        recipe = load_recipe(self.recipe) if self.recipe else Recipe()
        if recipe.source != self.source:  # the recipe's named splits are of its own source
            splits = dict.fromkeys(("train_split", "validation_split", "test_split"))
            recipe = recipe.replace(source=self.source, **splits)
        given, default = dataclasses.asdict(self.where), dataclasses.asdict(Where())
        recipe = recipe.replace(**{k: v for k, v in given.items() if v != default[k]})
        show_augmentation(recipe, self.out, images=self.images, views=self.views)
        _print(str(self.out))


@dataclasses.dataclass(frozen=True)
class Tune:
    """Search for a better recipe: keras-vgg tune [RECIPE.py] --workdir DIR --budget 30m

    Trials are training runs with other values of some of the recipe's fields, chosen by keras-tuner
    and compared on the validation images; the test images are not read. The folder gets a run
    directory for each, trials.csv, plots, and best_recipe.py for keras-vgg train. Repeating a
    command goes on with what was interrupted, also with more trials or a larger budget. Several
    processes search together where KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and
    KERASTUNER_ORACLE_PORT are set: one is called chief.
    """

    workdir: Path
    """The folder of the search: new, empty, or of the same search."""
    recipe: tyro.conf.Positional[Path | None] = None
    """A recipe file (default: the recipe of the digits)."""
    tuner: Literal["random", "bayesian", "hyperband", "grid"] = "hyperband"
    """keras-tuner's algorithm. Hyperband gives most trials few epochs, the best all of them."""
    max_trials: int | None = None
    """At most so many (default: until the budget or the tuner ends)."""
    budget: str | None = None
    """Time for all of it, over all calls: 90s, 30m or 2h (default: no limit)."""
    space: tuple[str, ...] = ()
    """What is tried in place of the default: learning_rate=0.01:0.3:log width_multiplier=0.25,0.5
    train_scale=32-36,32-40 hue=0:0.1:0.02; a single value is set and not searched."""
    only: bool = False
    """Search what --space names and nothing else."""
    max_parameters: int | None = None
    """Refuse larger networks."""
    max_memory_mb: float | None = None
    """Refuse what needs more memory to train, by arithmetic, in units of 10^6 bytes."""
    max_latency_ms: float | None = None
    """Refuse networks that take longer for an image on this machine."""
    seed: int = 0
    """Of the tuner: the same trials again."""
    prune: tyro.conf.FlagConversionOff[bool] = True
    """End trials that are below the median of the others (not with hyperband, which halves)."""
    worker_timeout: float = 60.0
    """The chief gives a worker's trial to another after so many seconds without a sign of life."""

    def __call__(self) -> None:
        from keras_vgg import tuning
        from keras_vgg.tuning.watch import trial_table

        recipe = load_recipe(self.recipe) if self.recipe else Recipe()
        space = tuning.parse_space(self.space)
        found = tuning.search(
            recipe,
            self.workdir,
            tuner=self.tuner,
            space=space if self.only else tuning.default_space(recipe) | space,
            limits=tuning.Limits(self.max_parameters, self.max_memory_mb, self.max_latency_ms),
            max_trials=self.max_trials,
            budget=None if self.budget is None else _seconds(self.budget),
            seed=self.seed,
            prune=self.prune,
            worker_timeout=self.worker_timeout,
        )
        winner = tuning.best(found)
        if winner is None:  # a worker's
            return
        ranked = sorted(found, key=lambda a: a.val_accuracy or 0, reverse=True)
        _print(trial_table(ranked[:10]))
        _print(
            f"best of {len(found)} trials: {winner.number}, validation accuracy "
            f"{winner.val_accuracy:.2%}, {winner.parameters:,} parameters"
        )
        names = ("best_recipe.py", "trials.csv", "search.png", "parallel_coordinates.png")
        _print("\n".join(str(self.workdir / name) for name in names))
        _print(f"next: keras-vgg train {self.workdir / names[0]} --workdir RUN")


def _seconds(text: str) -> float:
    """90s, 30m or 2h."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise ValueError(f"the budget is a time such as 90s, 30m or 2h, not {text!r}") from None


COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "export": Export,
    "tune": Tune,
    "summary": Summary,
    "weights": Weights,
    "convert": Convert,
    "data check": DataCheck,
    "data stats": DataStats,
    "data pack": DataPack,
    "data show": DataShow,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0; 1: the loss diverged; 2: bad input; 130: Ctrl-C. SIGTERM ends a training with 143.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if arguments in (["--version"], ["-V"]):
        print(f"keras-vgg {__version__}")
        return OK
    try:
        name, rest = _name_of(arguments)
        if name is not None:
            command = _parse(name, rest)
            tables_only = isinstance(command, Summary) or command == Weights()
            if not tables_only:
                backend = command.backend if isinstance(command, Train) else None
                _import_engine(backend)
            command()
            return OK
        return _help(arguments)
    except KeyboardInterrupt:
        print(
            "keras-vgg: interrupted; repeat a train, tune or evaluate to go on",
            file=sys.stderr,
        )
        return INTERRUPTED
    except (ValueError, OSError, NotImplementedError, ArithmeticError, MemoryError) as error:
        if debug:
            raise
        print(f"keras-vgg: error: {' '.join(str(error).split())}", file=sys.stderr)
        return DIVERGED if isinstance(error, ArithmeticError) else BAD_INPUT


def _name_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(command, the rest) of a command line; a command is one word, or data and another."""
    for words in (1, 2):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            return name, list(arguments[words:])
    return None, list(arguments)


def _help(arguments: Sequence[str]) -> int:
    group = [name for name in COMMANDS if arguments and name.startswith(f"{arguments[0]} ")]
    rest = arguments[1:] if group else arguments
    if rest and rest[0] not in ("-h", "--help"):
        known = ", ".join(group or COMMANDS)
        wrong = " ".join(arguments[:2] if group else arguments[:1])
        raise ValueError(f"unknown command {wrong!r}; the commands are {known}")
    print("usage: keras-vgg COMMAND [-h] ...\n\nTrain, test and export the VGG networks.\n")
    for name in group or COMMANDS:
        print(f"  {name:10} {(COMMANDS[name].__doc__ or '').splitlines()[0]}")
    print("\n  --version  print the version\n  --debug    show the traceback of an error")
    print("\nkeras-vgg COMMAND --help explains a command.")
    return OK


def _parse(name: str, arguments: list[str]):
    options = {}
    if name == "train":
        given = bool(arguments) and not arguments[0].startswith("-")
        late = [a for a in arguments[1:] if a.endswith(".py")]
        if late and not given:
            raise ValueError(f"the recipe comes first: keras-vgg train {late[0]} --workdir ...")
        recipe = load_recipe(arguments.pop(0)) if given else Recipe()
        options["default"] = Train(workdir=tyro.MISSING, recipe=recipe)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(COMMANDS[name], prog=f"keras-vgg {name}", args=arguments, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # tyro draws a box; the house's errors are one line.
        lines = [line.strip("╭╮╰╯│─ \n") for line in said.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line.strip("-"))
        raise ValueError(text.split(" For full helptext")[0]) from None


def _import_engine(backend: str | None = None) -> None:
    """Import TensorFlow with its native start-up chatter kept off stderr.

    Args:
        backend: What Keras, which TensorFlow imports, is to run on; None: as it is set.

    Raises:
        ValueError: that is not installed, or Keras runs on another already.
    """
    from keras_vgg import hardware

    if backend is not None:
        if importlib.util.find_spec(backend) is None:
            raise ValueError(f"--backend {backend}: pip install 'keras-vgg[{backend}]'")
        os.environ["KERAS_BACKEND"] = backend
    hardware.prepare_environment()
    with _native_stderr_held():
        import tensorflow as tf

        if backend != "jax":  # it would take a GPU's memory from JAX
            tf.config.list_physical_devices()
    if backend is None:
        return
    import keras

    if keras.backend.backend() != backend:
        raise ValueError(
            f"Keras runs on {keras.backend.backend()} already: set KERAS_BACKEND={backend} before"
        )


@contextlib.contextmanager
def _native_stderr_held() -> Iterator[None]:
    """Hold what C++ libraries write to stderr; show it only if something fails."""
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _table(title: str, *headers: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", show_header=any(headers), box=box.SIMPLE_HEAD
    )
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _print(what: str | Table) -> None:
    from rich.console import Console

    # A path must come out whole, to be copied, where a title is folded to its table's width; a
    # pipe has no width of its own; a class may be called [red].
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, markup=False, highlight=False)
    title = None if isinstance(what, str) else what.title
    if title:
        console.print(title, style="italic", soft_wrap=True)
        what.title = None
    console.print(what, soft_wrap=isinstance(what, str))


if __name__ == "__main__":
    sys.exit(main())

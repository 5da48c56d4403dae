"""keras-vgg prune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from keras_vgg.cli.arguments import command_line
from keras_vgg.console import new_table, show


@dataclasses.dataclass(frozen=True)
class Prune:
    """Make a run's network narrower and faster: keras-vgg prune RUN --workdir DIR

    Validation images say how many filters each convolution can lose. The least important filters
    are removed, and least squares fit the weights that are left to what the network computed
    before. The narrower network is then trained on the run's data, with the run as teacher. The
    result in DIR/step-1 is an ordinary run, to evaluate, explain and export. pruning.json and
    pruning.png show what was measured. Repeat the command to resume, also if RUN or DIR has moved.
    """

    run: tyro.conf.Positional[Path]
    """The run directory, of a finished training."""
    workdir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """A directory for the steps: new, empty, or of the same pruning."""
    macs: float = 0.5
    """Share of the multiply-accumulates to keep, above 0 and below 1."""
    steps: int = 1
    """Prune in so many steps, each followed by a training. Several small steps take longer, and may
    lose less than one large step: the literature reports that where much is removed (Han et al.,
    arXiv:1506.02626, for single weights). It was not measured here."""
    criterion: Literal["taylor", "l1", "batch_norm"] = "taylor"
    """What makes a filter important. taylor: how much the loss changes without it. l1: its absolute
    weights. batch_norm: the scale of its batch normalisation."""
    images: int = 1000
    """Number of validation images, and of training images, that importance and sensitivity are
    measured on. The weights are fitted on 1,000 training images."""
    epochs: int | None = None
    """Epochs of the training in each step (default: a third of the run's)."""
    learning_rate: float | None = None
    """Learning rate that the training of each step begins with (default: a tenth of the run's)."""
    distillation_weight: float = 0.5
    """Weight of the original network's probabilities in the loss; that of the labels is 1 minus
    this."""
    source: str | None = None
    """Where the run's images are now if they have moved, such as folder:PATH."""
    data_dir: str | None = None
    """TFDS: the folder of prepared data sets, if it has moved (default: the run's own)."""
    quiet: bool = False
    """Print one line for each epoch instead of a progress bar."""

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import in_data_dir, prune_run

        result = prune_run(
            in_data_dir(Run.open(self.run), self.data_dir, self.source),
            self.workdir,
            macs=self.macs,
            steps=self.steps,
            criterion=self.criterion,
            images=self.images,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            verbose=2 if self.quiet else "auto",
            source=self.source,
            distillation_weight=self.distillation_weight,
        )
        table = new_table(
            f"{self.workdir}: {self.run} pruned",
            "",
            "multiply-accumulates",
            "parameters",
            result.figure,
        )
        names = ("original", *(f"step {number + 1}" for number in range(len(result.steps))))
        for name, stage in zip(names, (result.original, *result.steps), strict=True):
            share = f"{stage.macs / result.original.macs:.0%}"
            table.add_row(
                name,
                f"{stage.macs / 1e6:,.1f} million, {share}",
                f"{stage.parameters:,}",
                f"{stage.validation:.2%}",
            )
        show(table)
        run = result.run.directory
        show(str(self.workdir / "pruning.png"))
        show(f"next: {command_line('evaluate', run)}; {command_line('export', run)}")

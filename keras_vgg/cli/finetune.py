"""keras-vgg finetune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from keras_vgg.cli.arguments import command_line, is_run
from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Fine-tune ImageNet's weights on a folder of photographs: keras-vgg finetune FOLDER

    First the base is frozen: its features are computed once, and a linear classifier is fitted to
    them. Then the last block and the classifier are trained at a low rate, with data augmentation;
    not for fewer than 20 training images a class. Image size, scales, batch and class weights
    follow the photographs. At the end come the test split's accuracy, report.html and the next
    commands. Repeat the command to resume. To change more than the options below, train the run's
    recipe.json with keras-vgg train, which has an option for every field.
    """

    source: tyro.conf.Positional[str]
    """A folder with a folder for each class, or such folders in train/, val/ and test/. Also
    csv:FILE (one label an image), records:PATH or idx:PATH."""
    workdir: Path | None = None
    """The run directory: new, empty, or of the same fine-tuning (default: runs/ and the folder's
    name)."""
    init: str = "imagenet"
    """Pretrained weights: imagenet, torchvision, a weight file, a run directory or
    hf://OWNER/NAME."""
    head_only: bool = False
    """Train only the classifier."""
    configuration: str | None = None
    """Column of the paper's Table 1, such as D or E; that of the weights (default: that of the run
    in --init, else D)."""
    batch_norm: bool | None = None
    """Whether the weights are those of a network with batch normalisation (default: that of the run
    in --init, else False)."""
    image_size: int | None = None
    """Side of the network's input (default: by the images, from 128 to 224)."""
    batch_size: int | None = None
    """Training images in a step (default: by the memory and the set, at most 32)."""
    freeze_until: Literal["block2", "block3", "block4", "block5"] | None = None
    """The first block to train (default: block5; no block for few images)."""
    epochs: int | None = None
    """Passes over the training images (default: 6; 3 if only the classifier is trained)."""
    learning_rate: float | None = None
    """Learning rate (default: 0.0005; 0.00001 if only the classifier is trained)."""
    resize: Literal["crop", "squash", "pad"] | None = None
    """How an image comes to the input's shape (default: crop)."""
    class_weights: str | None = None
    """Weights of the classes in the loss: none, balanced, or by name, such as cat=2,dog=0.5
    (default: balanced where classes are uneven)."""
    validation_fraction: float | None = None
    """Share of the training images to hold out if there is no val folder (default: 0.1)."""
    test_fraction: float | None = None
    """Share of the images to hold out if there is no train folder (default: 0.2)."""
    columns: str | None = None
    """csv: the columns' names if they are not common ones, such as path=file,label=diagnosis."""
    group_pattern: str | None = None
    """A folder, csv: regular expression on an image's path. What the first parenthesis matches is
    the image's group, such as a patient; no split has images of one group on two sides."""
    on_bad_image: Literal["error", "skip"] | None = None
    """If an image is damaged: stop with an error, or leave it out (default: error)."""
    mean_rgb: tuple[float, float, float] | None = None
    """Mean that the network subtracts, for weights that do not say it and for a network that takes
    RGB. For BGR, as keras.applications': keras-vgg convert --preprocessing caffe."""
    std_rgb: tuple[float, float, float] | None = None
    """Deviation that the network divides by, as mean_rgb."""
    seed: int | None = None
    """Random seed (default: 0)."""
    quiet: bool = False
    """Print one line for each epoch instead of a progress bar."""

    def check(self) -> None:
        """Raise ValueError if a run is named in the place of the photographs; no TensorFlow."""
        if is_run(Path(self.source)):
            advice = command_line("finetune", "FOLDER", "--init", self.source)
            raise ValueError(
                f"{self.source} is a run, and finetune takes a folder of photographs; to begin "
                f"with the weights of the run: {advice}"
            )

    def __call__(self) -> None:
        from keras_vgg.runs import finetune

        fields = dataclasses.asdict(self)
        for name in ("source", "workdir", "init", "head_only", "quiet"):
            del fields[name]
        fields = {name: value for name, value in fields.items() if value is not None}
        folder = Path(self.source.partition(":")[2] or self.source)
        workdir = self.workdir or Path("runs") / (folder.resolve().name or "photographs")
        run = finetune(
            self.source,
            workdir,
            init=self.init,
            head_only=self.head_only,
            verbose=2 if self.quiet else "auto",
            **fields,
        )
        results = run.results
        show(f"validation accuracy {results['validation_accuracy']:.2%}")
        if "test" in results:
            test = results["test"]
            low, high = test["top1_interval"]
            show(
                f"test accuracy {test['top1']:.2%} ({low:.2%} to {high:.2%}) of "
                f"{test['count']:,} images"
            )
            if test.get("balanced_accuracy") is not None:
                show(
                    f"majority baseline {test['majority_share']:.2%} (always "
                    f"{test['majority_class']}), balanced accuracy {test['balanced_accuracy']:.2%}"
                )
        commands = [command_line(name, run.directory, "IMAGE") for name in ("predict", "explain")]
        commands.append(command_line("export", run.directory))
        again = command_line("train", run.directory / "recipe.json", "--workdir", "OTHER")
        show(
            f"{run.directory / 'report.html'}\n"
            f"next: {'; '.join(commands)}\n"
            f"to change the recipe: {again}"
        )

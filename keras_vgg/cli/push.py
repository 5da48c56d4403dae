"""keras-vgg push."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.cli.arguments import command_line, is_run


@dataclasses.dataclass(frozen=True)
class Push:
    """Push a run to the Hugging Face hub, with a model card.

    The repository then loads as hf://OWNER/NAME: in keras.saving.load_model, and as weights or
    --init here. The command needs a login of the hub's client (hf auth login, or HF_TOKEN).
    """

    run: tyro.conf.Positional[Path]
    """The run directory."""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME. A repository that does not exist is made."""
    private: bool = False
    """Make a new repository private."""

    def check(self) -> None:
        """Raise ValueError if the run is not the first argument; without TensorFlow."""
        if is_run(Path(self.repository)) and not is_run(self.run):
            raise ValueError(
                f"the run comes first: {command_line('push', self.repository, self.run)}"
            )

    def __call__(self) -> None:
        from keras_vgg.run import Run
        from keras_vgg.runs import push_run

        print(push_run(Run.open(self.run), self.repository, private=self.private))

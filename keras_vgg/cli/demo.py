"""keras-vgg demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Demo:
    """Serve a page for trying a run: drop a picture, see its classes and what speaks for the best.

    The heat is Grad-CAM's, over the picture at its own size. Nothing leaves the machine, and
    pictures are deleted after minutes. Ctrl-C ends it. It needs pip install 'keras-vgg[demo]'.
    """

    run: tyro.conf.Positional[Path]
    """The run directory."""
    host: str = "127.0.0.1"
    """An address of this machine; 0.0.0.0: all of them, for everyone who can reach one."""
    port: int = 7860
    """0: a free one."""
    max_upload_mb: int = 10
    """Larger files are refused."""
    layer: str | None = None
    """Whose heat is shown, such as block4_conv3 (default: the last convolution's)."""

    def __call__(self) -> None:
        from keras_vgg import demo
        from keras_vgg.run import Run

        demo.serve(
            Run.open(self.run),
            host=self.host,
            port=self.port,
            max_upload_mb=self.max_upload_mb,
            layer=self.layer,
            announce=lambda address: show(f"{address}  (Ctrl-C ends it)"),
        )

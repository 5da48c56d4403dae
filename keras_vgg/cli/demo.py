"""keras-vgg demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from keras_vgg.console import show


@dataclasses.dataclass(frozen=True)
class Demo:
    """Serve a local page that classifies the pictures you drop there, and shows Grad-CAM.

    Nothing leaves the machine, and pictures are deleted after minutes. Press Ctrl-C to end the
    server. Install it first: pip install 'keras-vgg[demo]'.
    """

    run: tyro.conf.Positional[Path]
    """The run directory."""
    host: str = "127.0.0.1"
    """Address to serve on. 0.0.0.0 is every address of this machine: then anyone who reaches the
    machine can use the page."""
    port: int = 7860
    """Port to serve on; 0 takes a free one."""
    max_upload_mb: int = 10
    """Size of the largest file that is accepted, in MB."""
    layer: str | None = None
    """Layer for Grad-CAM, such as block4_conv3 (default: the last convolution)."""

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

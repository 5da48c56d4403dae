"""The packages that a format needs beyond those of keras_vgg."""

from __future__ import annotations

import importlib.util

PACKAGES = {"onnx": ("tf2onnx", "onnx", "onnxruntime"), "openvino": ("openvino",)}


def require_packages(format: str) -> None:
    """Raise ValueError, which names what to install, if a package of a format is missing."""
    needed = PACKAGES.get(format, ())
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"the format {format} needs {', '.join(missing)}: pip install 'keras-vgg[{format}]'"
        )
